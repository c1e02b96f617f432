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

MEASURES = {"psnr": "PSNR [dB]", "ssim": "SSIM", "pd_referee": "PD-referee"} | {
    name: METRICS[name].label for name in ("fd_lab", "kid_lab")}
SCORES = ("fd_lab", "kid_lab", "pd_referee")  # those of MEASURES that a network computes


def true_pictures(run: Run) -> Float[Tensor, "n 3 H W"]:
    """The validation pictures that methods restore, in [-1, 1], in the order of `spatial_conditions`."""
    val = run.pictures.val
    return to_float(val.images(val.subset(run.spec.budget.num_restored)))


def restored_scores(run: Run, x: Float[Tensor, "n 3 H W"], x_hat: Float[Tensor, "n 3 H W"]) -> dict[str, Score]:
    """PSNR, SSIM, PD-referee against the true pictures `x`; FD-lab and KID-lab against the training pictures.

    FD-lab of no more pictures than it has features is left out (not at the smoke tier); KID-lab stays, being unbiased.
    """
    return run.scorer.score_pairs(x, x_hat) | run.scorer.score(x_hat, ("fd_lab", "kid_lab"))


def add_method(record: Record, method: str, scores: Mapping[str, Score]) -> None:
    """A method's scores as metrics `<measure>_<method>`."""
    record.metrics |= as_metrics({f"{key}_{method}": score for key, score in scores.items()})


def in_pixels(run: Run) -> Run:
    """The same run at f = 1: the pixel-space model of as many parameters, with the same condition."""
    params = {**run.params, "f": 1, "reg": "kl", "data": run.spec.data.name}
    return Run(run.notebook, params, str(run.device), quiet=True)
