"""Pictures made from less than a picture, by several methods, held against the true ones [LDM v2, Tab. 5, 7].

Super-resolution and inpainting share this: the same scores for every method on the same pictures, and the models in
pixels that the latent one is compared with.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ldmlab.data.images import to_float, to_uint8
from ldmlab.evaluation.distances import Score, frechet_score, kid_score, moments_of
from ldmlab.evaluation.reconstruction import psnr, ssim
from ldmlab.evaluation.uncertainty import frechet_interval, kid_interval, mean_interval
from ldmlab.perception import PsimLoss, feature_net
from ldmlab.study.records.record import Record, as_metrics
from ldmlab.study.runs.run import Run

MEASURES = {"psnr": "PSNR [dB]", "ssim": "SSIM", "pd_referee": "PD-referee", "fd_lab": "FD-lab", "kid_lab": "KID-lab"}


def true_pictures(run: Run) -> Float[Tensor, "n 3 H W"]:
    """The validation pictures that methods have to give back."""
    return to_float(run.pictures.val.images(range(min(run.spec.budget.num_restored, len(run.pictures.val)))))


def perceptual_distances(run: Run, x: Float[Tensor, "n 3 H W"], x_hat: Float[Tensor, "n 3 H W"]) -> Float[Tensor, " n"]:
    """PD-referee: distance of each pair on the features of the referee, by the formula of PSIM-lab.

    The network that trained the first stage must not judge what its decoder gives, and this one did not.
    """
    net = PsimLoss(feature_net("referee")).to(run.device)
    with torch.inference_mode():
        parts = [net(a.to(run.device), b.to(run.device)).cpu()
                 for a, b in zip(x.split(128), x_hat.split(128), strict=True)]
    return torch.cat(parts)


def restored_scores(run: Run, x: Float[Tensor, "n 3 H W"], x_hat: Float[Tensor, "n 3 H W"]) -> dict[str, Score]:
    """PSNR, SSIM, PD-referee against the true pictures `x`; FD-lab and KID-lab against the training pictures.

    FD-lab of no more pictures than it has features is left out (not at the smoke tier); KID-lab stays, being unbiased.
    """
    scorer, n = run.scorer, len(x)
    x_hat = to_float(to_uint8(x_hat))
    values = {"psnr": (psnr(x, x_hat), "PSNR", "dB"), "ssim": (ssim(x, x_hat), "SSIM", "1"),
              "pd_referee": (perceptual_distances(run, x, x_hat), "PD-referee", "1")}
    scores = {key: Score(v.mean().item(), name, unit, n, n, interval=mean_interval(v))
              for key, (v, name, unit) in values.items()}
    real, fake = scorer.reference("fd-lab"), moments_of(x_hat.split(256), scorer.nets["fd-lab"])
    options = {"num_resamples": scorer.num_resamples, "seed": run.spec.seed}
    if min(n, real.n) > fake.dim or scorer.is_smoke:
        fd = frechet_score(real, fake, allow_few=scorer.is_smoke)
        scores["fd_lab"] = replace(fd, interval=frechet_interval(real, fake, **options))
    if n > 2:
        kid = kid_score(real, fake, subset_size=min(500, n, real.n))
        scores["kid_lab"] = replace(kid, interval=kid_interval(real, fake, **options))
    return scores


def add_method(record: Record, method: str, scores: Mapping[str, Score]) -> None:
    """A method's scores as metrics `<measure>_<method>`."""
    record.metrics |= as_metrics({f"{key}_{method}": score for key, score in scores.items()})


def in_pixels(run: Run) -> Run:
    """The same run at f = 1: the pixel-space model of as many parameters, told the same."""
    params = {**run.params, "f": 1, "reg": "kl", "data": run.spec.data.name}
    return Run(run.notebook, params, str(run.device), quiet=True)
