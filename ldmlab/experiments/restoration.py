"""Restored pictures, by several methods, compared with the true ones [LDM v2, Tab. 5, 7].

Super-resolution and inpainting share this: the same scores for every method on the same pictures, and the models in
pixels that the latent one is compared with.
"""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from ldmlab.data.images import to_float
from ldmlab.evaluation.distances import Score
from ldmlab.evaluation.metrics import METRICS
from ldmlab.study.records.record import Record, as_metrics
from ldmlab.study.runs.run import Run

MEASURES = {"psnr": "PSNR [dB]", "ssim": "SSIM", "lpips_alex": "LPIPS, AlexNet"} | {
    name: METRICS[name].label for name in ("kd_effnet", "fd_effnet")}
SCORES = ("kd_effnet", "lpips_alex")  # those of MEASURES that a network computes; FD-EffNet has that of KD-EffNet
# Measures of pairs that a figure draws, the first that all records have; 1 for a distance, -1 for a similarity.
PAIRS = {"lpips_alex": 1, "ssim": -1}


def true_pictures(run: Run) -> Float[Tensor, "n 3 H W"]:
    """The validation pictures that methods restore, in [-1, 1], in the order of `spatial_conditions`."""
    val = run.pictures.val
    return to_float(val.images(val.subset(run.spec.budget.num_restored)))


def restored_scores(run: Run, x: Float[Tensor, "n 3 H W"], x_hat: Float[Tensor, "n 3 H W"]) -> dict[str, Score]:
    """PSNR, SSIM, LPIPS against the true pictures `x`; KD-EffNet, and FD-EffNet of many, against training pictures.

    LPIPS is that of AlexNet, where its weights are at hand: the scorer's `missing` says so where they are not.
    """
    return run.scorer.score_pairs(x, x_hat) | run.scorer.score(x_hat)


def add_method(record: Record, method: str, scores: Mapping[str, Score]) -> None:
    """A method's scores as metrics `<measure>_<method>`."""
    record.metrics |= as_metrics({f"{key}_{method}": score for key, score in scores.items()})


def in_pixels(run: Run) -> Run:
    """The same run at f = 1: the pixel-space model of as many parameters, with the same condition."""
    params = {**run.params, "f": 1, "reg": "kl", "data": run.spec.data.name}
    return Run(run.notebook, params, str(run.device), quiet=True)
