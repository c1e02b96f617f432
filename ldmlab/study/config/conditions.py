"""The kinds of condition tau_theta(y): one row a kind holds all that differs from kind to kind [LDM v2, Sec. 3.3].

A new kind is one class, in `diffusion.conditioning`, and one row of `KINDS`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ldmlab.data.annotations.annotation import Annotation
from ldmlab.data.images import ImageSet
from ldmlab.diffusion.conditioning.boxes import BoxTokenizer
from ldmlab.diffusion.conditioning.captions import CaptionTokenizer, find_vocabulary
from ldmlab.diffusion.conditioning.spatial import LabelMap, LowResolution, MaskedPicture, SpatialConditioner
from ldmlab.diffusion.conditioning.tokens import ClassEmbedder, Conditioner, LayoutEmbedder, TextEmbedder
from ldmlab.diffusion.conditioning.transformer import TokenTransformer
from ldmlab.first_stage.autoencoder import FirstStage
from ldmlab.first_stage.latents import LatentStats
from ldmlab.study.config.paths import runs_dir
from ldmlab.study.config.specs import ConditionSpec, DiffusionSpec, SpatialSpec

if TYPE_CHECKING:
    from ldmlab.evaluation.judge import Predictions


@dataclass(frozen=True)
class Sources:
    """What a conditioner is built from: the plan, the pictures and their annotations, the first stage."""

    plan: DiffusionSpec
    train: ImageSet
    annotations: Callable[[], list[Annotation]]  # of the training pictures
    first_stage: FirstStage | None = None  # needed where `injected_as` is "channels"
    stats: LatentStats | None = None

    @property
    def token_spec(self) -> ConditionSpec:
        """The plan's condition; ValueError unless it enters by tokens."""
        if not isinstance(self.plan.condition, ConditionSpec):
            raise ValueError(f"a condition by tokens needs a ConditionSpec; got {self.plan.condition}")
        return self.plan.condition

    @property
    def spatial_spec(self) -> SpatialSpec:
        """The plan's condition; ValueError unless it enters by channels."""
        if not isinstance(self.plan.condition, SpatialSpec):
            raise ValueError(f"a condition by channels needs a SpatialSpec; got {self.plan.condition}")
        return self.plan.condition

    @property
    def latent(self) -> tuple[FirstStage, LatentStats]:
        """First stage and statistics of its latents; ValueError where they are not given."""
        if self.first_stage is None or self.stats is None:
            raise ValueError("a condition by channels needs the first stage of its model and the latter's LatentStats")
        return self.first_stage, self.stats


@dataclass(frozen=True)
class PaperModel:
    """What a model of the paper changes of the sweep's at the same f, as fields of the specs of those names."""

    denoiser: Mapping[str, Any]
    training: Mapping[str, Any] = field(default_factory=dict)  # of DiffusionSpec [LDM v2, Tab. 15]
    condition: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ConditionKind:
    """One kind of condition. ValueError where a kind that enters by channels does not say by how many."""

    conditioner: type[Conditioner] | type[SpatialConditioner]
    build: Callable[[Sources], Conditioner | SpatialConditioner | None]
    # What the pictures must have
    reads: str = ""  # the field of an `Annotation` that is read
    maps: bool = False  # whether label maps are read
    source: str = ""  # where that comes from, in words
    # Tokens: the fields of ConditionSpec, at the paper's tier and at the others; none for the class
    laptop: Mapping[str, Any] = field(default_factory=dict)
    paper: Mapping[str, Any] = field(default_factory=dict)  # as `laptop` where empty
    num_tokens: Callable[[ConditionSpec], int] = lambda spec: spec.max_length  # of a sequence
    vocab_size: Callable[[ConditionSpec], int] = lambda spec: spec.num_tokens
    # Channels
    channels: Callable[[int, int, SpatialSpec], int] | None = None  # beside the c of z_t, from f, c and the spec
    options: Mapping[str, Any] = field(default_factory=dict)  # fields of SpatialSpec that a run may choose; the paper's
    encodes_picture: bool = False  # whether the first stage encodes a picture for it at every step
    # The paper's models of this kind by f; others have the shape of the sweep's [LDM v2, Tab. 13]
    paper_models: Mapping[int, PaperModel] = field(default_factory=dict)
    # Scores of samples by the judge network of `scenes`: names in figures, the main measure first; the function
    success: Mapping[str, str] = field(default_factory=dict)
    judged: Callable[..., dict[str, Any]] | None = None  # (judge.Predictions, annotations) -> Scores by measure

    def __post_init__(self) -> None:
        if self.injected_as == "channels" and self.channels is None:
            raise ValueError(f"a condition of kind {self.name} enters by channels: `channels` has to say by how many")

    @property
    def name(self) -> str:
        """What specs and records call this kind."""
        return self.conditioner.kind

    @property
    def injected_as(self) -> str:
        """By "tokens" that the denoiser attends to, or by "channels" beside those of z_t."""
        return self.conditioner.injected_as

    def spec(self, options: Mapping[str, Any], **tokens: Any) -> ConditionSpec | SpatialSpec | None:
        """The condition of a DiffusionSpec: channels of these `options`, or fields of ConditionSpec; None of neither.

        Options that are not given are as in the paper. ValueError for one that this kind does not have.
        """
        if unknown := options.keys() - self.options.keys():
            raise ValueError(f"a condition of kind {self.name} has the options {', '.join(self.options) or 'none'}; "
                             f"got {', '.join(sorted(unknown))}")
        if self.injected_as == "channels":
            return SpatialSpec(self.name, **{**self.options, **options})
        return ConditionSpec(self.name, **tokens) if tokens else None


# --- How each is built ------------------------------------------------------------------------------------------------
def _class(of: Sources) -> Conditioner | None:
    """None, an unconditional model, where the data has no classes."""
    num_classes, dim = of.train.num_classes, of.plan.denoiser.context_dim
    if num_classes and dim is None:
        raise ValueError("a class-conditional denoiser needs a context_dim, the width of the class tokens; got None")
    return ClassEmbedder(num_classes, dim, of.plan.p_uncond) if num_classes and dim else None


def _text(of: Sources) -> Conditioner:
    captions, length = [annotation.caption for annotation in of.annotations()], of.token_spec.max_length
    folder, closed = find_vocabulary(of.train.name, captions, runs_dir())
    tokenizer = CaptionTokenizer(folder, length, closed=closed, known=captions)
    return TextEmbedder(tokenizer, _transformer(of.token_spec, len(tokenizer), length), of.plan.p_uncond)


def _layout(of: Sources) -> Conditioner:
    spec = of.token_spec
    tokenizer = BoxTokenizer(len(of.train.box_names), spec.num_tokens, spec.max_objects)
    return LayoutEmbedder(tokenizer, _transformer(spec, spec.num_tokens, tokenizer.length), of.plan.p_uncond)


def _transformer(spec: ConditionSpec, vocab_size: int, max_length: int) -> TokenTransformer:
    return TokenTransformer(vocab_size, max_length, spec.dim, spec.num_layers, spec.num_heads, spec.head_dim)


def _labels(of: Sources) -> SpatialConditioner:
    first_stage, _ = of.latent
    return LabelMap(first_stage.f, len(of.train.map_names), first_stage.z_channels)


def _low_resolution(of: Sources) -> SpatialConditioner:
    first_stage, _ = of.latent
    return LowResolution(first_stage.f, of.spatial_spec.factor, of.spatial_spec.degradation)


def _mask(of: Sources) -> SpatialConditioner:
    model, stats = of.latent

    def encode_picture(x: Tensor) -> Tensor:
        return stats.scale(model.most_probable_latent(x))

    return MaskedPicture(model.f, model.z_channels, encode_picture)


# --- How samples of each are judged; the judge is loaded when it is needed, since scipy.stats is slow to import -------
def _class_judged(seen: "Predictions", annotations: Sequence[Annotation]) -> dict[str, Any]:
    from ldmlab.evaluation.judge import class_accuracy

    return {"class_accuracy": class_accuracy(seen, torch.tensor([a.label for a in annotations]))}


def _text_judged(seen: "Predictions", annotations: Sequence[Annotation]) -> dict[str, Any]:
    from ldmlab.evaluation.judge import caption_fulfilment

    scores = caption_fulfilment(seen, [a.caption for a in annotations])
    return {"fulfilled": scores["all"]} | {m: scores[m] for m in KINDS["text"].success if m in scores}


def _layout_judged(seen: "Predictions", annotations: Sequence[Annotation]) -> dict[str, Any]:
    from ldmlab.evaluation.judge import layout_scores

    return layout_scores(seen, [a.visible_boxes() for a in annotations])


# --- The rows ---------------------------------------------------------------------------------------------------------
# Released configurations and [LDM v2, Tab. 15, 17]; heads, and attention of labels and low_resolution, as released.
# Deviation of `laptop`: short sequences, and corners of boxes on a grid of the pictures' own pixels; the captions of
# `scenes` have up to 37 word pieces, its layouts up to four boxes.
_PER_HEAD = {"num_heads": None, "num_head_channels": 32}

KINDS: dict[str, ConditionKind] = {kind.name: kind for kind in (
    ConditionKind(
        ClassEmbedder, _class,
        success={"class_accuracy": "class accuracy"}, judged=_class_judged,
    ),
    ConditionKind(
        TextEmbedder, _text, reads="caption",
        source="captions: a .txt beside each picture holds its caption, or an annotations/captions_*.json in COCO's "
               "format",
        laptop=dict(dim=64, num_layers=2, num_heads=4, head_dim=16, max_length=40),
        paper=dict(dim=1280, num_layers=32, num_heads=8, head_dim=64),
        # The size of a vocabulary costs parameters and no operations; that of captions is BERT's where it is at hand.
        vocab_size=lambda spec: 30_522,
        paper_models={
            8: PaperModel(dict(widths=(320, 640, 1280, 1280), attention_at=(1, 2, 4), num_heads=8),
                          dict(batch_size=680, num_steps=390_000, lr=1e-4, beta=(0.00085, 0.012))),
            4: PaperModel(dict(widths=(192, 384, 576, 960), attention_at=(2, 4, 8), **_PER_HEAD),
                          condition=dict(dim=640)),
        },
        success={"fulfilled": "statements fulfilled", "objects": "objects", "colours": "colours", "place": "place",
                 "relations": "relations"}, judged=_text_judged,
    ),
    ConditionKind(
        LayoutEmbedder, _layout, reads="boxes",
        source="boxes: they come from annotations/*.json in COCO's format",
        laptop=dict(dim=64, num_layers=2, num_heads=4, head_dim=16, num_tokens=1025, max_objects=6),
        paper=dict(dim=512, num_layers=16, num_heads=8, head_dim=64),
        num_tokens=lambda spec: 3 * spec.max_objects + 2,  # a start, three a box, an end
        paper_models={
            4: PaperModel(dict(widths=(128, 256, 384, 512), attention_at=(2, 4, 8), transformer_depth=3, **_PER_HEAD),
                          dict(batch_size=24, num_steps=4_400_000, lr=4.8e-5, beta=(0.0015, 0.0205), loss="l1")),
        },
        success={"layout_iou": "IoU of boxes", "box_class_accuracy": "class accuracy of boxes"}, judged=_layout_judged,
    ),
    ConditionKind(
        LabelMap, _labels, maps=True,
        source="label maps: a folder segmentations/ beside images/ holds a .png of labels for each picture",
        channels=lambda f, c, spec: c,
        paper_models={  # the released model asks for attention at factors that it lacks
            4: PaperModel(dict(widths=(128, 512, 1024), attention_at=(), num_heads=8),
                          dict(batch_size=48, num_steps=360_000, lr=4.8e-5, beta=(0.0015, 0.0205), loss="l1")),
        },
    ),
    ConditionKind(
        LowResolution, _low_resolution, options={"factor": 4, "degradation": "bicubic"},
        channels=lambda f, c, spec: LowResolution.num_channels(f, spec.factor),
        paper_models={
            4: PaperModel(dict(widths=(160, 320, 320, 640), attention_at=(8,), **_PER_HEAD),
                          dict(batch_size=64, num_steps=860_000, lr=6.4e-5, beta=(0.0015, 0.0155))),
        },
    ),
    ConditionKind(
        MaskedPicture, _mask, channels=lambda f, c, spec: c + 1, encodes_picture=True,
        paper_models={  # the released file is another, "big" model
            4: PaperModel(dict(widths=(128, 512, 1024), attention_at=(), num_heads=8),
                          dict(batch_size=128, num_steps=360_000, lr=1e-6, beta=(0.0015, 0.0205), loss="l1")),
        },
    ),
)}


def condition_kind(name: str) -> ConditionKind:
    """The row of a kind; ValueError for an unknown one."""
    if name not in KINDS:
        raise ValueError(f"a condition is one of {', '.join(KINDS)}; got {name!r}")
    return KINDS[name]
