"""Which conditioner a spec asks for, what it reads of the pictures, and what samples are asked when they are scored."""

import itertools

import torch
from torch import Tensor

from ldmlab.data.annotations import Annotation
from ldmlab.diffusion.boxes import BoxTokenizer
from ldmlab.diffusion.conditioning import KINDS, ClassEmbedder, Conditioner, LayoutEmbedder, TextEmbedder
from ldmlab.diffusion.text import CaptionTokenizer, find_vocabulary
from ldmlab.diffusion.transformer import TokenTransformer
from ldmlab.study.paths import runs_dir
from ldmlab.study.pictures import Pictures
from ldmlab.study.presets import DiffusionSpec


def check_known(plan: DiffusionSpec, pictures: Pictures) -> None:
    """ValueError where the pictures lack what the model is to be told: captions, or boxes; and for an unknown kind."""
    kind, name = plan.condition and plan.condition.kind, pictures.train.name
    if kind not in (None, *KINDS):
        raise ValueError(f"a condition is one of {', '.join(KINDS)}; got {kind!r}")
    if kind == "text" and not any(annotation.caption for annotation in pictures.annotations()):
        raise ValueError(f"{name} has no captions: a .txt beside each picture holds its caption, or an "
                         f"annotations/captions_*.json in COCO's format")
    if kind == "layout" and not any(annotation.boxes for annotation in pictures.annotations()):
        raise ValueError(f"{name} has no boxes: they come from annotations/*.json in COCO's format")


def build_conditioner(plan: DiffusionSpec, pictures: Pictures) -> Conditioner | None:
    """tau_theta of a spec, untrained: of the class where it names no other and the data has classes.

    ValueError as by `check_known`.
    """
    check_known(plan, pictures)
    spec, num_classes = plan.condition, pictures.train.num_classes
    if spec is None:
        return ClassEmbedder(num_classes, plan.denoiser.context_dim, plan.p_uncond) if num_classes else None
    sizes = (spec.dim, spec.num_layers, spec.num_heads, spec.head_dim)
    if spec.kind == "text":
        captions = [annotation.caption for annotation in pictures.annotations()]
        folder, closed = find_vocabulary(pictures.train.name, captions, runs_dir())
        tokenizer = CaptionTokenizer(folder, spec.max_length, closed=closed, known=captions)
        return TextEmbedder(tokenizer, TokenTransformer(len(tokenizer), spec.max_length, *sizes), plan.p_uncond)
    tokenizer = BoxTokenizer(len(pictures.train.box_names), spec.num_tokens, spec.max_objects)
    return LayoutEmbedder(tokenizer, TokenTransformer(spec.num_tokens, tokenizer.length, *sizes), plan.p_uncond)


def read_conditions(conditioner: Conditioner, pictures: Pictures) -> Tensor:
    """What `conditioner` reads of every training picture and of its mirror image, in the order of `Latents`."""
    known = pictures.annotations()
    return conditioner.read([*known, *(annotation.mirrored() for annotation in known)])


def sample_conditions(conditioner: Conditioner | None, pictures: Pictures, n: int) -> Tensor:
    """`n` conditions to score samples by: classes in equal shares, captions and layouts of validation pictures."""
    if conditioner is None or conditioner.kind == "class":
        return sample_labels(pictures.train.num_classes, n)
    return conditioner.read(first_annotations(pictures, n))


def first_annotations(pictures: Pictures, n: int) -> list[Annotation]:
    """What is known of the first `n` validation pictures, from the first again where there are fewer."""
    return list(itertools.islice(itertools.cycle(pictures.annotations("val")), n))


def sample_labels(num_classes: int, n: int) -> Tensor:
    """Labels in equal shares, or zeros where there are none."""
    return torch.arange(n) % max(1, num_classes)
