"""Which conditioner a spec asks for, what it reads of the pictures, and what samples are asked when they are scored."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ldmlab.data.annotations.annotation import Annotation
from ldmlab.diffusion.conditioning.boxes import BoxTokenizer
from ldmlab.diffusion.conditioning.captions import CaptionTokenizer, find_vocabulary
from ldmlab.diffusion.conditioning.spatial import LabelMap, LowResolution, MaskedPicture, SpatialConditioner
from ldmlab.diffusion.conditioning.tokens import ClassEmbedder, Conditioner, LayoutEmbedder, TextEmbedder
from ldmlab.diffusion.conditioning.transformer import TokenTransformer
from ldmlab.study.config.paths import runs_dir
from ldmlab.study.config.specs import DiffusionSpec
from ldmlab.study.runs.pictures import Pictures


def _class(plan: DiffusionSpec, pictures: Pictures, first_stage) -> Conditioner | None:
    num_classes = pictures.train.num_classes
    return ClassEmbedder(num_classes, plan.denoiser.context_dim, plan.p_uncond) if num_classes else None


def _text(plan: DiffusionSpec, pictures: Pictures, first_stage) -> Conditioner:
    captions, length = [annotation.caption for annotation in pictures.annotations()], plan.condition.max_length
    folder, closed = find_vocabulary(pictures.train.name, captions, runs_dir())
    tokenizer = CaptionTokenizer(folder, length, closed=closed, known=captions)
    return TextEmbedder(tokenizer, _transformer(plan, len(tokenizer), length), plan.p_uncond)


def _layout(plan: DiffusionSpec, pictures: Pictures, first_stage) -> Conditioner:
    spec = plan.condition
    tokenizer = BoxTokenizer(len(pictures.train.box_names), spec.num_tokens, spec.max_objects)
    return LayoutEmbedder(tokenizer, _transformer(plan, spec.num_tokens, tokenizer.length), plan.p_uncond)


def _low_resolution(plan: DiffusionSpec, pictures: Pictures, first_stage) -> SpatialConditioner:
    return LowResolution(first_stage.model.f, plan.condition.factor, plan.condition.degradation)


def _mask(plan: DiffusionSpec, pictures: Pictures, first_stage) -> SpatialConditioner:
    model, stats = first_stage.model, first_stage.stats

    def encode_picture(x: Tensor) -> Tensor:
        return stats.scale(model.most_probable_latent(x))

    return MaskedPicture(model.f, model.z_channels, encode_picture)


def _labels(plan: DiffusionSpec, pictures: Pictures, first_stage) -> SpatialConditioner:
    model = first_stage.model
    return LabelMap(model.f, len(pictures.train.map_names), model.z_channels)


def _transformer(plan: DiffusionSpec, vocab_size: int, max_length: int) -> TokenTransformer:
    spec = plan.condition
    return TokenTransformer(vocab_size, max_length, spec.dim, spec.num_layers, spec.num_heads, spec.head_dim)


class Kind(NamedTuple):
    """A kind of condition: how it is built, what it reads of an `Annotation`, and where that comes from."""

    build: Callable[..., Conditioner | SpatialConditioner | None]  # (plan, pictures, first stage)
    reads: str = ""
    source: str = ""
    maps: bool = False  # whether it needs label maps


KINDS: dict[str, Kind] = {
    "class": Kind(_class),  # unconditional where the data has no classes
    "text": Kind(_text, "caption", "captions: a .txt beside each picture holds its caption, or an "
                                   "annotations/captions_*.json in COCO's format"),
    "layout": Kind(_layout, "boxes", "boxes: they come from annotations/*.json in COCO's format"),
    "low_resolution": Kind(_low_resolution),
    "mask": Kind(_mask),
    "labels": Kind(_labels, source="label maps: a folder segmentations/ beside images/ holds a .png of labels for "
                                   "each picture", maps=True),
}


def check_known(plan: DiffusionSpec, pictures: Pictures) -> None:
    """ValueError where the pictures lack what the model is to be told, and for an unknown kind."""
    name = plan.condition.kind if plan.condition else "class"
    if name not in KINDS:
        raise ValueError(f"a condition is one of {', '.join(KINDS)}; got {name!r}")
    kind = KINDS[name]
    if kind.maps and not pictures.train.map_names:
        raise ValueError(f"{pictures.train.name} has no {kind.source}")
    if kind.reads and not any(getattr(annotation, kind.reads) for annotation in pictures.annotations()):
        raise ValueError(f"{pictures.train.name} has no {kind.source}")


def build_conditioner(
    plan: DiffusionSpec, pictures: Pictures, first_stage=None
) -> Conditioner | SpatialConditioner | None:
    """tau_theta of a spec, untrained: of the class where it names nothing else; ValueError as by `check_known`.

    Conditions that are aligned with the picture need the `first_stage` whose latents they stand beside.
    """
    check_known(plan, pictures)
    return KINDS[plan.condition.kind if plan.condition else "class"].build(plan, pictures, first_stage)


def read_conditions(conditioner: Conditioner, pictures: Pictures) -> Tensor:
    """What `conditioner` reads of every training picture and of its mirror image, in the order of `Latents`."""
    known = pictures.annotations()
    return conditioner.read([*known, *(annotation.mirrored() for annotation in known)])


def sample_conditions(conditioner: Conditioner | SpatialConditioner | None, pictures: Pictures, n: int) -> Tensor:
    """`n` conditions to score samples by: classes in equal shares, or what is known of validation pictures."""
    if conditioner is None or conditioner.kind == "class":
        return sample_labels(pictures.train.num_classes, n)
    if conditioner.enters == "channels":
        return spatial_conditions(conditioner, pictures, n)
    return conditioner.read(first_annotations(pictures, n))


def spatial_conditions(conditioner: SpatialConditioner, pictures: Pictures, n: int, seed: int = 0) -> Tensor:
    """What an aligned condition shows of the first `n` validation pictures, in turn; chance in it comes from `seed`."""
    val = pictures.val
    numbers = [i % len(val) for i in range(n)]
    batch = {"image": val.images(numbers)} | ({"map": val.maps(numbers)} if KINDS[conditioner.kind].maps else {})
    return conditioner.condition(batch, torch.Generator().manual_seed(seed))


def first_annotations(pictures: Pictures, n: int) -> list[Annotation]:
    """What is known of the first `n` validation pictures, from the first again where there are fewer."""
    return list(itertools.islice(itertools.cycle(pictures.annotations("val")), n))


def sample_labels(num_classes: int, n: int) -> Tensor:
    """Labels in equal shares, or zeros where there are none."""
    return torch.arange(n) % max(1, num_classes)
