"""Inpainting: holes filled by sampling, beside what they are compared with, by how much is missing [LDM v2, Sec. 4.5].

Two sets of masks, as in Tab. 7: "all" takes the kinds of `data.masks` in turn; "hard" hides 40 to 50 % of each picture.
A record holds measures `fd_lab_ldm_all`, `pd_referee_regression_hard`, and curves over coverage.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ldmlab.data.images import quantize_8bit
from ldmlab.data.masks import KINDS, coverage, inpainting_masks
from ldmlab.diffusion.conditioning.spatial_ops import fill, masked
from ldmlab.diffusion.unet.unet import count_params
from ldmlab.evaluation.uncertainty import mean_interval, mean_score
from ldmlab.experiments.inpainting_speed import record_efficiency
from ldmlab.experiments.restoration import SCORES, add_method, in_pixels, restored_scores, true_pictures
from ldmlab.first_stage.reconstruct import reconstruct
from ldmlab.study.records.record import Record, as_metrics
from ldmlab.study.runs.regression import train_regression
from ldmlab.study.runs.run import Run
from ldmlab.study.training.progress import progress

METHODS = {
    "masked": "hole left black", "regression": "regression in pixels", "ldm": "latent diffusion",
    "reconstructions": "first stage, of the true picture",
}
SETS = ("all", "hard")
HARD = (0.4, 0.5)
BINS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)


def masks_of(which: str, n: int, size: int | tuple[int, int], seed: int = 0) -> Float[Tensor, "n 1 h w"]:
    """`n` masks of one of SETS; ValueError for another."""
    if which not in SETS:
        raise ValueError(f"a set of masks is one of {', '.join(SETS)}; got {which!r}")
    if which == "hard":
        return inpainting_masks(n, size, "thick", seed + 1, covered=HARD)
    by_kind = [inpainting_masks(-(-n // len(KINDS)), size, kind, seed + 1) for kind in KINDS]
    return torch.stack(by_kind, 1).flatten(0, 1)[:n]


def inpaint(
    run: Run, x: Float[Tensor, "n 3 H W"], mask: Float[Tensor, "n 1 H W"], *, num_steps: int = 0,
    seed: int | None = None, label: str = "",
) -> Float[Tensor, "n 3 H W"]:
    """Pictures whose holes are sampled by the run's model, as they would be saved; known pixels are as they were."""
    plan, model = run.spec.evaluation, run.diffusion.model
    with progress(len(x), label or f"{run.spec.name}, inpainting", unit="pictures") as bar:
        sample = model.sample(torch.cat([x, mask], 1), num_steps=num_steps or plan.num_steps,
                              batch_size=plan.batch_size, seed=run.spec.seed if seed is None else seed,
                              progress=lambda done: bar.update(done - bar.n))
    return fill(x, quantize_8bit(sample), mask)


def restore(run: Run, x: Float[Tensor, "n 3 H W"], mask: Float[Tensor, "n 1 H W"], method: str) -> Tensor:
    """One of METHODS; known pixels are kept by all of them."""
    match method:
        case "masked":
            return masked(x, mask)
        case "regression":
            return fill(x, train_regression(in_pixels(run))(torch.cat([x, mask], 1)), mask)
        case "ldm":
            return inpaint(run, x, mask)
        case "reconstructions":
            return fill(x, quantize_8bit(reconstruct(run.first_stage.model, x)), mask)
    raise ValueError(f"a method is one of {', '.join(METHODS)}; got {method!r}")


def record_inpainting(run: Run) -> Record:
    """Scores of all methods on both sets of masks, by coverage, and of several samples of a picture.

    What was measured before, on the same models, is loaded.
    """
    diffusion, scorer = run.diffusion, run.scorer
    record = run.new_record()
    record.inputs |= {"denoiser": diffusion.hash, "regression": train_regression(in_pixels(run)).hash}
    record.inputs |= scorer.inputs(*SCORES)
    if (known := run.measured_before(record)) is not None:
        return known
    record.events += scorer.missing
    x, budget = true_pictures(run), run.spec.budget
    record.protocol |= scorer.protocol | {
        "n": len(x), "labels": "none", "perceptual": "PD-referee, pairs", "targets": "validation pictures",
        "masks_all": "thin, medium, thick in turn", "masks_hard": "thick, 40 to 50 % of the picture",
        "known_pixels": "kept", "several": f"{budget.repeats} samples of {budget.num_repeated} pictures"}
    record.events += diffusion.curve.events
    record.metrics["num_params"] = {"value": count_params(diffusion.model.trained), "unit": "1"}
    for which in SETS:
        mask = masks_of(which, len(x), (x.shape[2], x.shape[3]))
        record.metrics[f"coverage_{which}"] = {"value": round(coverage(mask).mean().item(), 4), "unit": "1"}
        for method in METHODS if run.spec.f > 1 else [m for m in METHODS if m != "reconstructions"]:
            x_hat = restore(run, x, mask, method)
            scores = restored_scores(run, x, x_hat)
            if "fd_lab" not in scores:
                note = f"FD-lab left out: {len(x)} pictures, or the training set, fewer than features"
                record.events += [] if note in record.events else [note]
            add_method(record, f"{method}_{which}", scores)
            if which == "all":
                _by_coverage(record, method, run.scorer.perceptual_distances(x, x_hat), coverage(mask))
    _several(run, record, x)
    record_efficiency(run, record)
    return record


def _by_coverage(record: Record, method: str, distances: Tensor, covered: Tensor) -> None:
    """Mean distance by the share that is missing, in bins of `BINS`; x is the middle of a bin."""
    for low, high in zip(BINS, BINS[1:], strict=False):
        inside = distances[(covered > low) & (covered <= high)]
        if len(inside):
            interval = mean_interval(inside)
            ends = {"": inside.mean().item()} | (
                {"_low": interval.low, "_high": interval.high} if interval else {})
            for end, value in ends.items():
                name = f"pd_referee_by_coverage_{method}{end}"
                record.curves.setdefault(name, []).append([round((low + high) / 2, 3), float(f"{value:.6g}")])


def samples_of(run: Run, x: Float[Tensor, "n 3 H W"], mask: Float[Tensor, "n 1 H W"], k: int) -> list[Tensor]:
    """`k` fillings of each hole, with other noise each time; the first is that of `inpaint`."""
    return [inpaint(run, x, mask, seed=run.spec.seed + 1000 * i, label=f"filling {i + 1} of {k}") for i in range(k)]


def _several(run: Run, record: Record, x: Tensor) -> None:
    """One sample and several, where much is missing: the first, the nearest to the truth, how far apart they are."""
    x, k = x[: run.spec.budget.num_repeated], run.spec.budget.repeats
    mask = masks_of("hard", len(x), (x.shape[2], x.shape[3]))
    samples, distance = samples_of(run, x, mask, k), run.scorer.perceptual_distances
    to_truth = torch.stack([distance(x, sample) for sample in samples])
    apart = torch.stack([distance(samples[i], samples[j]) for i in range(k) for j in range(i)])
    values = {"first": to_truth[0], "mean": to_truth.mean(0), "nearest": to_truth.min(0).values, "apart": apart.mean(0)}
    record.metrics |= as_metrics({
        f"pd_referee_{name}_of_{k}": mean_score(v, "PD-referee") for name, v in values.items()})
