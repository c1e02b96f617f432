"""The released models of CompVis, one row each: architecture and settings of training [LDM v2, App. E].

Rows have the names of the authors' folders; `paper` is the row of the paper's tables. `released_row` finds a row by
either name; `released_model` builds, loads and writes it.
"""

from dataclasses import dataclass, replace
from typing import Any

from ldmlab.checkpoints.learning_rate import Cycle, LearningRate
from ldmlab.diffusion.schedules import Schedule, scaled_linear
from ldmlab.diffusion.unet.config import DenoiserConfig
from ldmlab.first_stage.networks import AutoencoderConfig


@dataclass(frozen=True)
class FirstStageRow:
    """A released first stage; its discriminator has `disc_layers` layers and is active from step `disc_start` on."""

    name: str
    paper: str
    config: AutoencoderConfig
    disc_start: int
    disc_weight: float
    reg_weight: float  # of the KL divergence, or of the codebook's loss
    disc_layers: int = 3
    other_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Condition:
    """The condition of a released model and its encoder; `enters` as "tokens" or as "channels" [LDM v2, Sec. 3.3].

    "class" has `num_items` classes, each a token of `channels`; with `has_null_condition` the last is the null class.
    "text" and "layout" have a transformer of `num_layers` over `max_length` tokens of `num_items` kinds. "labels" are
    maps of `num_items` labels, mapped to `channels` at the size of the latent. "low_resolution" (the small picture) and
    "mask" (the masked picture's latent, and the mask) have no network of their own.
    """

    kind: str
    enters: str
    channels: int
    num_items: int = 0
    num_layers: int = 0
    max_length: int = 0
    has_null_condition: bool = False


@dataclass(frozen=True)
class LdmRow:
    """A released latent diffusion model; beta_t is linear in sqrt(beta) between the two `beta_ends`, T = 1000.

    `scale_factor` multiplies z; None where it was measured in training and is stored in the file. `size` is the side of
    the training pictures in pixels. `ema`: the file holds averaged weights beside the last ones.
    """

    name: str
    paper: str
    first_stage: FirstStageRow
    denoiser: DenoiserConfig
    condition: Condition | None = None
    size: int = 256
    beta_ends: tuple[float, float] = (0.0015, 0.0195)
    scale_factor: float | None = 1.0
    loss: str = "l2"
    ema: bool = True
    base_lr: float = 2e-6  # the released code multiplies it by batch size and number of GPUs
    learning_rate: LearningRate | None = None
    other_names: tuple[str, ...] = ()

    @property
    def schedule(self) -> Schedule:
        """beta_t and alpha_bar_t."""
        return scaled_linear(1000, *self.beta_ends)


def _kl(
    name: str, paper: str, channels: int, ch_mult: tuple[int, ...], also: str, attn: tuple[int, ...] = ()
) -> FirstStageRow:
    config = AutoencoderConfig(2 ** (len(ch_mult) - 1), channels, "kl", ch_mult=ch_mult, attn_resolutions=attn)
    return FirstStageRow(name, paper, config, disc_start=50_001, disc_weight=0.5, reg_weight=1e-6, other_names=(also,))


def _vq(
    name: str, paper: str, channels: int, ch_mult: tuple[int, ...], num_codes: int, disc_start: int, *,
    attn: tuple[int, ...] = (), disc_weight: float = 0.75, disc_layers: int = 3, mid_attn: bool = True,
) -> FirstStageRow:
    config = AutoencoderConfig(2 ** (len(ch_mult) - 1), channels, "vq", ch_mult=ch_mult, attn_resolutions=attn,
                               num_codes=num_codes, vq_legacy=True, mid_attn=mid_attn)
    return FirstStageRow(name, paper, config, disc_start, disc_weight, reg_weight=1.0, disc_layers=disc_layers)


FIRST_STAGES: dict[str, FirstStageRow] = {row.name: row for row in (
    _kl("kl-f4", "KL-f4 c3", 3, (1, 2, 4), "autoencoder_kl_64x64x3"),
    _kl("kl-f8", "KL-f8 c4", 4, (1, 2, 4, 4), "autoencoder_kl_32x32x4"),
    _kl("kl-f16", "KL-f16 c16", 16, (1, 1, 2, 2, 4), "autoencoder_kl_16x16x16", attn=(16,)),
    _kl("kl-f32", "KL-f32 c64", 64, (1, 1, 2, 2, 4, 4), "autoencoder_kl_8x8x64", attn=(16, 8)),
    _vq("vq-f4", "VQ-f4 Z8192", 3, (1, 2, 4), 8192, 0),
    _vq("vq-f4-noattn", "VQ-f4 Z8192 no attention", 3, (1, 2, 4), 8192, 11, mid_attn=False),
    _vq("vq-f8", "VQ-f8 Z16384", 4, (1, 2, 2, 4), 16_384, 1, attn=(32,), disc_weight=0.6, disc_layers=2),
    _vq("vq-f8-n256", "VQ-f8 Z256", 4, (1, 2, 2, 4), 256, 250_001, attn=(32,)),
    _vq("vq-f16", "VQ-f16 Z16384", 8, (1, 1, 2, 2, 4), 16_384, 250_001, attn=(16,), disc_layers=2),
)}

_VQ4, _KL8 = FIRST_STAGES["vq-f4"], FIRST_STAGES["kl-f8"]
_UNCONDITIONAL_4 = DenoiserConfig(3, 3, (224, 448, 672, 896), attention_at=(8, 4, 2), num_head_channels=32)
_LABELS: dict[str, Any] = dict(
    denoiser=DenoiserConfig(6, 3, (128, 512, 1024), num_heads=8),  # attention in the middle block only
    condition=Condition("labels", "channels", 3, num_items=182), beta_ends=(0.0015, 0.0205), loss="l1", base_lr=1e-6)

LDMS: dict[str, LdmRow] = {row.name: row for row in (
    LdmRow("celeba256", "CelebA-HQ / LDM-4", _VQ4, _UNCONDITIONAL_4),
    LdmRow("ffhq256", "FFHQ / LDM-4", _VQ4, _UNCONDITIONAL_4),
    LdmRow("lsun_beds256", "LSUN-Bedrooms / LDM-4", _VQ4, _UNCONDITIONAL_4),
    LdmRow(
        "lsun_churches256", "LSUN-Churches / LDM-8", _KL8,
        DenoiserConfig(4, 4, (192, 384, 384, 768, 768), attention_at=(1, 2, 4, 8), num_heads=8,
                       use_scale_shift_norm=True, resblock_updown=True),
        beta_ends=(0.0015, 0.0155), scale_factor=None, loss="l1", base_lr=5e-5,
        learning_rate=LearningRate("linear", (Cycle(10_000_000_000_000, 10_000, 1e-6, 1.0, 1.0),))),
    LdmRow(
        "cin256", "ImageNet / LDM-8", FIRST_STAGES["vq-f8"],
        DenoiserConfig(4, 4, (256, 512, 1024), attention_at=(4, 2, 1), num_head_channels=32, context_dim=512),
        Condition("class", "tokens", 512, num_items=1000), base_lr=1e-6),
    LdmRow(
        "cin256-v2", "ImageNet / LDM-4", _VQ4,
        DenoiserConfig(3, 3, (192, 384, 576, 960), attention_at=(8, 4, 2), num_heads=1, context_dim=512),
        Condition("class", "tokens", 512, num_items=1001, has_null_condition=True), ema=False, base_lr=1e-4),
    LdmRow(
        "text2img256", "text LAION, f4", _VQ4,
        DenoiserConfig(3, 3, (192, 384, 576, 960), attention_at=(8, 4, 2), num_head_channels=32, context_dim=640),
        Condition("text", "tokens", 640, 30_522, num_layers=32, max_length=77, has_null_condition=True)),
    LdmRow(
        "txt2img-1p4B-eval", "MS-COCO / LDM-KL-8", _KL8,
        DenoiserConfig(4, 4, (320, 640, 1280, 1280), attention_at=(4, 2, 1), num_heads=8, context_dim=1280),
        Condition("text", "tokens", 1280, 30_522, num_layers=32, max_length=77, has_null_condition=True),
        beta_ends=(0.00085, 0.012), scale_factor=0.18215, ema=False, base_lr=5e-5, other_names=("txt2img-1p4B",)),
    LdmRow(
        "layout2img-openimages256", "layout OpenImages", _VQ4,
        DenoiserConfig(3, 3, (128, 256, 384, 512), attention_at=(8, 4, 2), num_head_channels=32, context_dim=512,
                       transformer_depth=3),
        Condition("layout", "tokens", 512, 8192, num_layers=16, max_length=92),
        beta_ends=(0.0015, 0.0205), loss="l1"),
    LdmRow("semantic_synthesis256", "semantic Landscapes", _VQ4, **_LABELS),
    LdmRow("semantic_synthesis512", "semantic Landscapes, 512", _VQ4, size=512, **_LABELS),
    LdmRow(
        "bsr_sr", "super-resolution, BSR", _VQ4,
        DenoiserConfig(6, 3, (160, 320, 320, 640), attention_at=(8,), num_head_channels=32),
        Condition("low_resolution", "channels", 3), beta_ends=(0.0015, 0.0155), base_lr=1e-6),
    LdmRow(
        "inpainting_big", "LDM-4 big", FIRST_STAGES["vq-f4-noattn"],
        DenoiserConfig(7, 3, (256, 512, 768, 1024), attention_at=(8, 4, 2), num_heads=8, resblock_updown=True),
        Condition("mask", "channels", 4), beta_ends=(0.0015, 0.0205), loss="l1", base_lr=1e-6,
        learning_rate=LearningRate("cosine", (Cycle(50_000, 1000, 1e-3, 0.1, 1e-4),))),
)}

Row = FirstStageRow | LdmRow
ROWS: dict[str, Row] = {**FIRST_STAGES, **LDMS}


def released_row(name: str) -> Row:
    """The row of a released model by its name, other names or paper row, ignoring case; ValueError for others."""
    for row in ROWS.values():
        if name.lower() in (known.lower() for known in (row.name, row.paper, *row.other_names)):
            return row
    raise ValueError(f"no released model {name!r}; accepted are {', '.join(ROWS)}")


def scaled_down(row: Row) -> Row:
    """A row of the same layout with some hundred times fewer weights, named "... small": for tests and tier smoke."""
    if isinstance(row, FirstStageRow):
        return _small_first_stage(row)
    unet, condition = row.denoiser, row.condition
    widths = tuple(32 * width // unet.widths[0] for width in unet.widths)
    context_dim = None if unet.context_dim is None else 32
    if condition is not None and condition.enters == "tokens":
        condition = replace(condition, channels=32, num_layers=min(condition.num_layers, 2))
    return replace(
        row, name=f"{row.name} small", first_stage=_small_first_stage(row.first_stage), condition=condition,
        other_names=(), denoiser=replace(unet, widths=widths, num_res_blocks=1, context_dim=context_dim))


def _small_first_stage(row: FirstStageRow) -> FirstStageRow:
    config = replace(row.config, ch=32, num_res_blocks=1, num_codes=min(row.config.num_codes, 64))
    return replace(row, name=f"{row.name} small", config=config, other_names=())
