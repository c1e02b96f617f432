"""An unconditional model, guided by a picture at test time [LDM v2, App. C, Fig. 14].

The task is super-resolution without training for it: y is a validation picture shrunk by `factor`, T shrinks, and the
gradient of the distance between y and T(D(z0_hat)) pulls every step of the sampler. Curves of the record run over the
guidance scale, one a guider of `GUIDERS`: `psnr_small_by_guidance_gaussian`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ldmlab.data.images import quantize_8bit, to_float
from ldmlab.diffusion.guidance import image_guided
from ldmlab.diffusion.guiders import downsample, gaussian_guider, guiding_decoder, perceptual_guider
from ldmlab.diffusion.model import Guided
from ldmlab.diffusion.samplers import EpsModel
from ldmlab.evaluation.distances import Score
from ldmlab.evaluation.reconstruction import psnr
from ldmlab.evaluation.uncertainty import mean_score
from ldmlab.first_stage.reconstruct import reconstruct
from ldmlab.perception.losses import perceptual_loss
from ldmlab.study.records.record import Record, add_points, as_metrics
from ldmlab.study.runs.run import Run
from ldmlab.study.training.progress import progress


@dataclass(frozen=True)
class Kind:
    """A guider: its name in figures, the scales it is tried at, and whether its gradient passes the denoiser."""

    name: str
    scales: tuple[float, ...]
    distance: str = "gaussian"  # or "perceptual": a sum over pixels, a mean of order 1, so scales have other units
    through_denoiser: bool = False


# To the letter, Eq. 17 overshoots before it is strong enough: its gradient is largest where z0_hat is least sure.
GUIDERS = {
    "exact": Kind("Gaussian, through the denoiser", (0.03, 0.1, 0.3), through_denoiser=True),
    "gaussian": Kind("Gaussian, short cut", (1.0, 3.0, 10.0, 30.0, 100.0)),
    "perceptual": Kind("perceptual, short cut", (100.0, 300.0, 1000.0, 3000.0), "perceptual"),
}


def targets(run: Run, n: int) -> Float[Tensor, "n 3 H W"]:
    """The first `n` validation pictures, or all there are."""
    return to_float(run.pictures.val.images(range(min(n, len(run.pictures.val)))))


def enlarge(y: Float[Tensor, "n 3 h w"], factor: int) -> Float[Tensor, "n 3 H W"]:
    """Bicubic, clamped: what the small picture shows without any model."""
    return F.interpolate(y, scale_factor=factor, mode="bicubic").clamp(-1, 1)


def guide(run: Run, kind: str, y: Float[Tensor, "n 3 h w"], factor: int, scale: float | int) -> Guided:
    """What `LatentDiffusion.sample` takes to be guided towards small pictures `y` by one of `GUIDERS`.

    The perceptual guider sees both, shrunk and enlarged again: its network needs pictures of some size.
    """
    model, small = run.diffusion.model, downsample(factor)
    decode = guiding_decoder(model.first_stage, model.stats)
    if kind not in GUIDERS:
        raise ValueError(f"a guider is one of {', '.join(GUIDERS)}; got {kind!r}")

    plan = GUIDERS[kind]

    def steer(eps_model: EpsModel, rows: slice) -> EpsModel:
        if plan.distance == "gaussian":
            guider = gaussian_guider(decode, y[rows].to(run.device), small)
        else:
            net = perceptual_loss(run.spec.first_stage.perceptual).to(run.device)
            blurred = lambda x: enlarge(small(x.clamp(-1, 1)), factor)  # noqa: E731
            guider = perceptual_guider(decode, enlarge(y[rows], factor).to(run.device), net, blurred)
        return image_guided(eps_model, guider, model.schedule, scale, through_denoiser=plan.through_denoiser)

    return steer


def sample_guided(
    run: Run, kind: str, y: Float[Tensor, "n 3 h w"], factor: int, scale: float | int,
    progress: Callable[[int], None] | None = None, size: int = 0, batch_size: int = 64,
) -> Float[Tensor, "n 3 H W"]:
    """Unconditional samples guided towards small pictures `y`, as they would be saved; scale 0 is unguided.

    `size` pixels, if not that of training, are sampled convolutionally: a latent of another size [LDM v2, Fig. 14].
    FloatingPointError where the guide pulled so hard that no picture is left.
    """
    model = run.diffusion.model if not size else replace(run.diffusion.model, size=size)
    guided = guide(run, kind, y, factor, scale) if scale else None
    try:
        samples = model.sample(model.null_condition(len(y)), num_steps=run.spec.evaluation.num_steps,
                               seed=run.spec.seed, guided=guided, batch_size=batch_size, progress=progress)
    except FloatingPointError as error:
        raise FloatingPointError(f"guided by {GUIDERS[kind].name} at scale {scale:g}, samples diverge: take a smaller "
                                 f"guidance_scale") from error
    return quantize_8bit(samples)


# --- What is measured -------------------------------------------------------------------------------------------------


def record_image_guiding(run: Run) -> Record:
    """PSNR of the shrunk sample against its target, PSNR and FD-lab of the sample itself, over guidance scales.

    Beside them: unguided samples, the bicubic enlargement, and the first stage's reconstruction of the true picture,
    than which no sample can be nearer. What was measured before, on the same model, is loaded.
    """
    diffusion, scorer, factor = run.diffusion, run.scorer, run.params["factor"]
    record = run.new_record()
    record.inputs |= {"denoiser": diffusion.hash} | scorer.inputs("fd_lab", perceptual=True)  # that of the guider
    if (known := run.measured_before(record)) is not None:
        return known
    record.events += scorer.missing
    x = targets(run, run.spec.budget.num_guided)
    y = downsample(factor)(x).clamp(-1, 1)
    record.protocol |= scorer.protocol | {"guided_n": len(x), "labels": "none: unconditional", "factor": factor,
                                          "targets": "validation pictures, bicubic, antialiased"}
    record.events += diffusion.curve.events
    baselines = {"bicubic": enlarge(y, factor), "reconstructions": reconstruct(run.first_stage.model, x),
                 "unguided": sample_guided(run, "gaussian", y, factor, 0)}
    for name, samples in baselines.items():
        record.metrics |= as_metrics({f"{key}_{name}": s for key, s in _scores(run, samples, x, y).items()})
    jobs = [(kind, scale) for kind, plan in GUIDERS.items() for scale in plan.scales]
    with progress(len(x) * len(jobs), f"{diffusion.name}, guided by pictures", unit="pictures") as bar:
        for kind, scale in jobs:
            try:
                samples = sample_guided(run, kind, y, factor, scale, progress=bar.counter())
            except FloatingPointError as error:
                record.events.append(f"left out: {error}")
                print(record.events[-1], flush=True)
                continue
            scores = _scores(run, samples, x, y)
            add_points(record, {f"{m}_by_guidance_{kind}": score for m, score in scores.items()}, scale)
    return record


def _scores(run: Run, samples: Tensor, x: Tensor, y: Tensor) -> dict[str, Score]:
    scorer, factor = run.scorer, x.shape[2] // y.shape[2]
    small = quantize_8bit(downsample(factor)(samples).clamp(-1, 1))
    scores = {"psnr": mean_score(psnr(x, samples), "PSNR", "dB"),
              "psnr_small": mean_score(psnr(quantize_8bit(y), small), "PSNR", "dB")}
    return scores | scorer.score(scorer.moments(samples), ("fd_lab",), allow_few=True)


def best_scale(record: Record, kind: str) -> float:
    """The scale of a guider whose samples are nearest to the true pictures, in PSNR."""
    return max(record.curves[f"psnr_by_guidance_{kind}"], key=lambda point: point[1])[0]


def larger(run: Run, n: int, scale: float | int) -> dict[str, Tensor]:
    """Fig. 14: samples of the training size guide samples of twice that, and what these are without the guide.

    `scale` is right for the run's factor. Shrunk by 2, a picture has more pixels to sum over, so it is scaled to these.
    """
    side, scale = run.spec.data.size, scale * (2 / run.params["factor"]) ** 2
    y = sample_guided(run, "gaussian", torch.zeros(n, 3, side, side), 1, 0)
    return {"samples of the training size": y,
            "guided, twice the size": sample_guided(run, "gaussian", y, 2, scale, size=2 * side),
            "not guided, twice the size": sample_guided(run, "gaussian", y, 2, 0, size=2 * side)}
