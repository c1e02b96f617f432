"""Super-resolution by a model conditional on the small picture, beside its baselines [LDM v2, Sec. 4.4].

A record holds each measure of `restoration.MEASURES` for each of `METHODS`: `psnr_ldm`, `fd_lab_bicubic`.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ldmlab.data.images import quantize_8bit
from ldmlab.diffusion.unet.unet import count_params
from ldmlab.experiments import image_guiding
from ldmlab.experiments.restoration import SCORES, add_method, in_pixels, restored_scores, true_pictures
from ldmlab.first_stage.reconstruct import reconstruct
from ldmlab.study.records.record import Record
from ldmlab.study.runs.conditioners import as_spatial, spatial_conditions
from ldmlab.study.runs.regression import train_regression
from ldmlab.study.runs.run import Run
from ldmlab.study.training.progress import progress

METHODS = {
    "bicubic": "bicubic enlargement", "regression": "regression in pixels", "pixels": "diffusion in pixels",
    "ldm": "latent diffusion", "guided": "unconditional latent diffusion, guided (Eq. 17)",
    "reconstructions": "first stage, of the true picture",
}
GUIDANCE = 30.0  # of the guided variant, at factor 4: the best scale found in 14_image_guiding
PAPER = {  # rows of Tab. 5 that stand for our methods
    "regression": "ImageNet x4 / Image Regression", "pixels": "ImageNet x4 / SR3", "ldm": "ImageNet x4 / LDM-4",
    "guided": "ImageNet x4 / LDM-4 guided, 50 steps",
}


def small_pictures(run: Run, n: int) -> Float[Tensor, "n 3 h w"]:
    """The first `n` validation pictures, degraded, in [-1, 1]."""
    return spatial_conditions(as_spatial(run.conditioner), run.pictures, n)


def enlarge(y: Float[Tensor, "n 3 h w"], factor: int) -> Float[Tensor, "n 3 H W"]:
    """Bicubic enlargement, as it would be saved."""
    return quantize_8bit(image_guiding.enlarge(y, factor))


def upscale(
    run: Run, y: Float[Tensor, "n 3 h w"], *, num_steps: int = 0, seed: int | None = None, label: str = ""
) -> Float[Tensor, "n 3 H W"]:
    """Samples of the run's model for small pictures, as they would be saved; `num_steps` = 0 takes the tier's own."""
    plan, model = run.spec.evaluation, run.diffusion.model
    with progress(len(y), label or f"{run.spec.name}, super-resolution", unit="pictures") as bar:
        x = model.sample(y, num_steps=num_steps or plan.num_steps, batch_size=plan.batch_size,
                         seed=run.spec.seed if seed is None else seed, progress=lambda done: bar.update(done - bar.n))
    return quantize_8bit(x)


def restore(
    run: Run, y: Float[Tensor, "n 3 h w"], x: Float[Tensor, "n 3 H W"], method: str
) -> Float[Tensor, "n 3 H W"]:
    """One of METHODS; models are trained at first use. `x`, the true pictures, is for "reconstructions" alone.

    The guided variant is an unconditional model under the gradient of Eq. 17, which needs the operator that made y:
    ValueError for degradations other than bicubic.
    """
    factor = run.params["factor"]
    match method:
        case "bicubic":
            return enlarge(y, factor)
        case "regression":
            return train_regression(in_pixels(run))(y)
        case "pixels" if run.spec.f != 1:
            return upscale(in_pixels(run), y)
        case "ldm" | "pixels":
            return upscale(run, y)
        case "guided":
            if run.params["degradation"] != "bicubic":
                raise ValueError("method 'guided' needs degradation bicubic, whose operator Eq. 17 applies; "
                                 f"got {run.params['degradation']}")
            # y has fewer terms at larger factors; the sum over them should pull as hard.
            return image_guiding.sample_guided(_unconditional(run), "gaussian", y, factor, GUIDANCE * (factor / 4) ** 2)
        case "reconstructions":
            return quantize_8bit(reconstruct(run.first_stage.model, x))
    raise ValueError(f"a method is one of {', '.join(METHODS)}; got {method!r}")


def methods_of(run: Run) -> list[str]:
    """Those of METHODS that this run can have; at f = 1 the run's own model is the one in pixels."""
    left_out = {"ldm", "guided", "reconstructions"} if run.spec.f == 1 else set()
    if run.params["degradation"] != "bicubic":
        left_out.add("guided")
    return [method for method in METHODS if method not in left_out]


def _unconditional(run: Run) -> Run:
    """The run of the model that is guided by Eq. 17: the same f, data and seed."""
    return Run("14_image_guiding", {**run.params, "data": run.spec.data.name}, str(run.device), quiet=True)


def _networks(run: Run) -> dict[str, str]:
    """Hashes of the models of the methods besides the run's own, which are trained here if they are not yet."""
    methods, pixels = methods_of(run), in_pixels(run)
    found = {"regression": train_regression(pixels).hash}
    if run.spec.f != 1:
        found["denoiser_pixels"] = pixels.diffusion.hash
    if "guided" in methods:
        found["denoiser_guided"] = _unconditional(run).diffusion.hash
    return found


def record_super_resolution(run: Run) -> Record:
    """Scores of all methods on the same validation pictures; what was measured before, on the same models, is loaded.

    Events say which methods were left out, and why.
    """
    diffusion, scorer = run.diffusion, run.scorer
    record = run.new_record()
    record.inputs |= {"denoiser": diffusion.hash} | scorer.inputs(*SCORES) | _networks(run)
    if (known := run.measured_before(record)) is not None:
        return known
    record.events += scorer.missing
    x = true_pictures(run)
    y = small_pictures(run, len(x))
    record.protocol |= scorer.protocol | {
        "n": len(x), "labels": "none", "factor": run.params["factor"], "degradation": run.params["degradation"],
        "guided_scale": GUIDANCE * (run.params["factor"] / 4) ** 2, "perceptual": "PD-referee, pairs",
        "targets": "validation pictures", "reference": "train"}
    record.events += diffusion.curve.events
    if run.params["degradation"] != "bicubic":
        record.events.append("guided left out: Eq. 17 applies the degradation, here only bicubic")
    record.metrics["num_params"] = {"value": count_params(diffusion.model.denoiser), "unit": "1"}
    for method in methods_of(run):
        scores = restored_scores(run, x, restore(run, y, x, method))
        if "fd_lab" not in scores:
            note = f"FD-lab left out: {len(x)} pictures, or the training set, fewer than features"
            record.events += [] if note in record.events else [note]
        add_method(record, method, scores)
    return record


def spread_of_samples(run: Run, y: Float[Tensor, "n 3 h w"], k: int) -> list[Float[Tensor, "n 3 H W"]]:
    """`k` samples for each small picture, with other noise each time: what y leaves open differs between them."""
    return [upscale(run, y, seed=run.spec.seed + 1000 * (i + 1), label=f"sample {i + 1} of {k}") for i in range(k)]


def mean_of_samples(samples: list[Float[Tensor, "n 3 H W"]]) -> Float[Tensor, "n 3 H W"]:
    """The mean of several samples: nearer to what a squared error asks for than any of them."""
    return quantize_8bit(torch.stack(samples).mean(0))
