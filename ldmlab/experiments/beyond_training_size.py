"""Sampling beyond the training size, for the three models with an aligned condition [LDM v2, Sec. 4.3.2].

A UNet that only convolves and attends takes latents of any size. Whether what it makes there is as good as at its own
size is measured against real pictures of that size: `kd_effnet_by_size_<task>` of the record, sides in pixels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ldmlab.data.images import ImageSet, quantize_8bit, to_float
from ldmlab.diffusion.conditioning.spatial_ops import fill
from ldmlab.evaluation.distances import FeatureMoments
from ldmlab.experiments.inpainting import masks_of
from ldmlab.experiments.own_pictures import tiled
from ldmlab.first_stage.reconstruct import reconstruct
from ldmlab.study.records.record import Record, add_points, as_metrics
from ldmlab.study.runs.conditioners import as_spatial
from ldmlab.study.runs.pictures import open_set
from ldmlab.study.runs.run import Run
from ldmlab.study.training.progress import progress

SCALES = (1, 2, 3)  # of the training size
WIDE = 4  # how many times as wide as high the wide pictures are


@dataclass(frozen=True)
class Task:
    """One of the three: its notebook, what that needs besides the common parameters, and what it is called."""

    name: str
    notebook: str
    more: Mapping[str, object]


TASKS = {
    "super_resolution": Task("super-resolution", "12_super_resolution", {"factor": 4, "degradation": "bicubic"}),
    "inpainting": Task("inpainting", "13_inpainting", {"attention": True}),
    "semantic": Task("semantic synthesis", "11_semantic_synthesis", {}),
}


def task_runs(run: Run) -> dict[str, Run]:
    """The runs of the notebooks whose models do the tasks: the same f, data and seed.

    Without label maps there is no semantic synthesis.
    """
    params = {name: value for name, value in run.params.items() if name != "picture"} | {"data": run.spec.data.name}
    return {name: Run(task.notebook, {**params, **task.more}, str(run.device), quiet=True)
            for name, task in TASKS.items() if name != "semantic" or run.pictures.train.map_names}


def pictures_of(run: Run, size: int, split: str = "validation", num: int | None = None) -> ImageSet:
    """The run's pictures at another size."""
    return open_set(run.spec.data, split, num or 0, size=size)


def conditions(task: Run, images: ImageSet, numbers: range) -> Tensor:
    """Conditions y of a task's model for these pictures, of any size."""
    if task.notebook == TASKS["inpainting"].notebook:
        x = to_float(images.images(numbers))
        return torch.cat([x, masks_of("all", len(x), (x.shape[2], x.shape[3]))], 1)
    maps = task.notebook == TASKS["semantic"].notebook
    batch = {"map": images.maps(numbers)} if maps else {"image": images.images(numbers)}
    return as_spatial(task.conditioner).condition(batch, torch.Generator().manual_seed(task.spec.seed))


def sample(
    task: Run, y: Tensor, on_pictures: Callable[[int], None] | None = None
) -> Float[Tensor, "n 3 H W"]:
    """Samples of a task's model, as they would be saved; of inpainting, with the known pixels as they were."""
    h, w = as_spatial(task.conditioner).picture_size(y)
    plan, larger = task.spec.evaluation, max(1.0, h * w / task.spec.data.size**2)
    x = tiled(task).sample(y, num_steps=plan.num_steps, seed=task.spec.seed, progress=on_pictures,
                           batch_size=max(1, int(plan.batch_size / larger)))
    x = quantize_8bit(x)
    return fill(y[:, :3], x, y[:, 3:]) if task.notebook == TASKS["inpainting"].notebook else x


def record_beyond(run: Run) -> Record:
    """KD-EffNet of samples of each task at each of SCALES, against real pictures of that size; and of reconstructions.

    What was measured before, on the same models, is loaded.
    """
    scorer, size, budget = run.scorer, run.spec.data.size, run.spec.budget
    tasks = task_runs(run)
    record = run.new_record()
    record.inputs |= {f"denoiser_{name}": task.diffusion.hash for name, task in tasks.items()}
    record.inputs |= scorer.inputs("kd_effnet")
    if (known := run.measured_before(record)) is not None:
        return known
    if "semantic" not in tasks:
        record.events.append("semantic synthesis left out: these pictures have no label maps")
    n = min(budget.num_beyond, len(run.pictures.val))
    record.protocol |= scorer.protocol | {
        "n": n, "labels": "none", "reference": "training pictures of the same size", "factor": 4,
        "targets": "validation pictures", "num_reference": budget.num_beyond_reference}
    with progress(n * len(SCALES) * len(tasks), f"{run.spec.name}, beyond the training size", unit="pictures") as bar:
        for scale in SCALES:
            side = scale * size
            real = _reference(run, side)
            val = pictures_of(run, side, num=n)
            x = to_float(val.images(range(n)))
            made = {"real": x, "reconstructions": reconstruct(run.first_stage.model, x)}
            for name, task in tasks.items():
                made[name] = sample(task, conditions(task, val, range(n)), bar.counter())
            for name, pictures in made.items():
                fake = scorer.moments(quantize_8bit(pictures), batch_size=64)
                score = scorer.score(fake, ("kd_effnet",), reference=real)["kd_effnet"]
                add_points(record, {f"kd_effnet_by_size_{name}": score}, side)
                record.metrics |= as_metrics({f"kd_effnet_{name}_{side}px": score})
    return record


def _reference(run: Run, side: int) -> FeatureMoments:
    train = pictures_of(run, side, "train", run.spec.budget.num_beyond_reference)
    return run.scorer.moments_of_set(train)


def wide(task: Run, n: int = 3) -> dict[str, Tensor]:
    """`n` pictures WIDE times as wide as high: condition and sample; made of validation pictures side by side."""
    images = task.pictures.val
    y = conditions(task, images, range(min(n * WIDE, len(images))))
    y = y[: len(y) // WIDE * WIDE]
    side_by_side = y.unflatten(0, (-1, WIDE)).movedim(1, -2).flatten(-2)
    return {"condition": side_by_side, "sample": sample(task, side_by_side)}
