"""The conditioner of a spec, the conditions that it reads from pictures, and those that scored samples have."""

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ldmlab.data.annotations.annotation import Annotation
from ldmlab.data.images import ImageSet
from ldmlab.diffusion.conditioning.spatial import SpatialConditioner
from ldmlab.diffusion.conditioning.tokens import Conditioner
from ldmlab.study.config.conditions import ConditionKind, Sources, condition_kind
from ldmlab.study.config.specs import DiffusionSpec
from ldmlab.study.runs.pictures import Pictures

if TYPE_CHECKING:
    from ldmlab.study.runs.first_stage import TrainedFirstStage


def check_annotations(plan: DiffusionSpec, pictures: Pictures) -> None:
    """ValueError where the pictures lack the annotations that the condition is read from, and for an unknown kind."""
    kind = _kind(plan)
    if kind.maps and not pictures.train.map_names:
        raise ValueError(f"{pictures.train.name} has no {kind.source}")
    if kind.reads and not any(getattr(annotation, kind.reads) for annotation in pictures.annotations()):
        seen = "".join(f"; {line}" for line in pictures.train.annotation_report)
        raise ValueError(f"{pictures.train.name} has no {kind.source}{seen}")


def build_conditioner(
    plan: DiffusionSpec, pictures: Pictures, first_stage: "TrainedFirstStage | None" = None
) -> Conditioner | SpatialConditioner | None:
    """tau_theta of a spec, untrained: of the class where it names nothing else; ValueError as by `check_annotations`.

    Conditions that are aligned with the picture need the `first_stage` whose latents they stand beside.
    """
    check_annotations(plan, pictures)
    sources = Sources(plan, pictures.train, pictures.annotations)
    if first_stage is not None:
        sources = replace(sources, first_stage=first_stage.model, stats=first_stage.stats)
    return _kind(plan).build(sources)


def _kind(plan: DiffusionSpec) -> ConditionKind:
    return condition_kind(plan.condition.kind if plan.condition else "class")


def as_spatial(conditioner: Conditioner | SpatialConditioner | None) -> SpatialConditioner:
    """The same conditioner; ValueError unless it is aligned with the picture."""
    if not isinstance(conditioner, SpatialConditioner):
        found = f"a condition of kind {conditioner.kind}" if conditioner else "no condition"
        raise ValueError(f"this needs a model whose condition is aligned with the picture; it has {found}")
    return conditioner


def read_conditions(conditioner: Conditioner, pictures: Pictures) -> Tensor:
    """What `conditioner` reads of every training picture and of its mirror image, in the order of `Latents`."""
    annotations = pictures.annotations()
    return conditioner.read([*annotations, *(annotation.mirrored() for annotation in annotations)])


def sample_conditions(conditioner: Conditioner | SpatialConditioner | None, pictures: Pictures, n: int) -> Tensor:
    """`n` conditions to score samples by: classes in equal shares, or those of validation pictures."""
    if conditioner is None or conditioner.kind == "class":
        return sample_labels(pictures.train.num_classes, n)
    if isinstance(conditioner, SpatialConditioner):
        return spatial_conditions(conditioner, pictures, n)
    return conditioner.read(validation_annotations(pictures, n))


def spatial_conditions(conditioner: SpatialConditioner, pictures: Pictures, n: int, seed: int = 0) -> Tensor:
    """Aligned conditions y of `n` validation pictures, those of `ImageSet.subset`, from its first again if fewer.

    Random degradations and masks are drawn from `seed`.
    """
    val = pictures.val
    numbers = _in_turn(val, n)
    maps = condition_kind(conditioner.kind).maps
    batch = {"image": val.images(numbers)} | ({"map": val.maps(numbers)} if maps else {})
    return conditioner.condition(batch, torch.Generator().manual_seed(seed))


def validation_annotations(pictures: Pictures, n: int) -> list[Annotation]:
    """Annotations of `n` validation pictures, those of `ImageSet.subset`, from its first again if fewer."""
    known = pictures.annotations("val")
    return [known[i] for i in _in_turn(pictures.val, n)]


def _in_turn(images: ImageSet, n: int) -> list[int]:
    return list(itertools.islice(itertools.cycle(images.subset(n)), n))


def sample_labels(num_classes: int, n: int) -> Tensor:
    """Labels in equal shares, or zeros where there are none."""
    return torch.arange(n) % max(1, num_classes)
