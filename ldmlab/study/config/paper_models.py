"""The paper's models as published: first stages by regularizer and f, denoisers by f; one row a model.

Rows are those of [LDM v2, Tab. 8, 13] and of the released configurations. The models of other conditions than the class
stand in their kinds' rows, in `study.config.conditions`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from ldmlab.diffusion.unet.unet import DenoiserConfig
from ldmlab.first_stage.networks import AutoencoderConfig
from ldmlab.study.config.conditions import ConditionKind
from ldmlab.study.config.specs import ConditionSpec, DiffusionSpec, FirstStageSpec, SpatialSpec


class Models(NamedTuple):
    """What is trained: a first stage, and the diffusion model on top."""

    first_stage: FirstStageSpec
    diffusion: DiffusionSpec


class FirstStageRow(NamedTuple):
    """A first stage of [LDM v2, Tab. 8]: its shape, and how it was trained."""

    z_channels: int
    num_codes: int
    ch_mult: tuple[int, ...]
    attention: tuple[int, ...]  # resolutions at which the autoencoder attends, beside its middle
    num_steps: int
    batch_size: int
    disc_start: int  # step at which the discriminator joins in
    disc_weight: float
    disc_layers: int


class DenoiserRow(NamedTuple):
    """A class-conditional denoiser of [LDM v2, Tab. 13], and how it was trained."""

    ch: int
    ch_mult: tuple[int, ...]
    batch_size: int
    lr: float
    attention_at: tuple[int, ...]  # downsampling of the latent: its side over the "CA-resolution" of the table


# Not released are f = 2, whose ch_mult is our assumption, and VQ-f32, whose ch_mult is that of KL-f32.
FIRST_STAGES = {
    #                         c  codes  ch_mult              attention      steps batch disc: start, weight, layers
    ("vq", 2):  FirstStageRow(2,  2048,  (1, 2),             (),         500_000,  8,        0, 0.75, 3),
    ("vq", 4):  FirstStageRow(3,  8192,  (1, 2, 4),          (),         533_066,  8,        0, 0.75, 3),
    ("vq", 8):  FirstStageRow(4,  16384, (1, 2, 2, 4),       (32,),      971_043, 10,        1, 0.6,  2),
    ("vq", 16): FirstStageRow(8,  16384, (1, 1, 2, 2, 4),    (16,),    1_101_166, 14,  250_001, 0.75, 2),
    ("vq", 32): FirstStageRow(16, 16384, (1, 1, 2, 2, 4, 4), (16, 8),  1_101_166, 14,  250_001, 0.75, 2),
    ("kl", 2):  FirstStageRow(2,  8192,  (1, 2),             (),         176_991, 10,   50_001, 0.5,  3),
    ("kl", 4):  FirstStageRow(3,  8192,  (1, 2, 4),          (),         176_991, 10,   50_001, 0.5,  3),
    ("kl", 8):  FirstStageRow(4,  8192,  (1, 2, 4, 4),       (),         246_803,  4,   50_001, 0.5,  3),
    ("kl", 16): FirstStageRow(16, 8192,  (1, 1, 2, 2, 4),    (16,),      442_998,  6,   50_001, 0.5,  3),
    ("kl", 32): FirstStageRow(64, 8192,  (1, 1, 2, 2, 4, 4), (16, 8),    406_763,  6,   50_001, 0.5,  3),
}
DENOISERS = {
    1:  DenoiserRow(ch=192, ch_mult=(1, 1, 2, 2, 4, 4), batch_size=7,   lr=4.9e-5, attention_at=(8, 16, 32)),
    2:  DenoiserRow(ch=192, ch_mult=(1, 2, 2, 4, 4),    batch_size=9,   lr=6.3e-5, attention_at=(4, 8, 16)),
    4:  DenoiserRow(ch=192, ch_mult=(1, 2, 3, 5),       batch_size=40,  lr=8e-5,   attention_at=(2, 4, 8)),
    8:  DenoiserRow(ch=256, ch_mult=(1, 2, 4),          batch_size=64,  lr=6.4e-5, attention_at=(1, 2, 4)),
    16: DenoiserRow(ch=256, ch_mult=(1, 2, 4),          batch_size=112, lr=4.5e-5, attention_at=(1, 2, 4)),
    32: DenoiserRow(ch=256, ch_mult=(1, 2, 4),          batch_size=112, lr=4.5e-5, attention_at=(1, 2, 4)),
}


def paper_models(f: int, reg: str, size: int, kind: ConditionKind, options: Mapping[str, Any]) -> Models:
    """The models of one f as published, with a condition of `kind`; `size` is the side of the pictures."""
    first_stage = pixels(size) if f == 1 else _first_stage(FIRST_STAGES[reg, f], f, reg, size)
    row, c = DENOISERS[f], first_stage.autoencoder.latent_channels
    denoiser = DenoiserConfig(in_channels=c, out_channels=c, widths=tuple(row.ch * m for m in row.ch_mult),
                              num_res_blocks=2, attention_at=row.attention_at, context_dim=512, num_heads=1)
    diffusion = DiffusionSpec(denoiser, 2_000_000, row.batch_size, row.lr, precision="bf16-mixed",
                              scale_mode="first_batch" if reg == "kl" else "none",
                              milestones=(100_000, 200_000, 500_000, 1_000_000, 1_500_000))
    tokens = kind.paper or kind.laptop
    if own := kind.paper_models.get(f):
        diffusion = replace(diffusion, denoiser=replace(denoiser, **own.denoiser), **own.training)
        tokens = {**tokens, **own.condition}
    return Models(first_stage, with_condition(diffusion, kind, kind.spec(options, **tokens), f))


def _first_stage(row: FirstStageRow, f: int, reg: str, size: int) -> FirstStageSpec:
    autoencoder = AutoencoderConfig(f=f, z_channels=row.z_channels, reg=reg, ch_mult=row.ch_mult,
                                    attn_resolutions=row.attention, resolution=size, num_codes=row.num_codes)
    # The published numbers come of the released order of updates; the other tiers take the faster one.
    return FirstStageSpec(autoencoder, row.num_steps, row.batch_size, lr=4.5e-6 * row.batch_size,
                          disc_start=row.disc_start, disc_weight=row.disc_weight, disc_layers=row.disc_layers,
                          exact=True, val_every=5000)


def pixels(size: int) -> FirstStageSpec:
    """The first stage of f = 1: the identity, which nobody trains."""
    return FirstStageSpec(AutoencoderConfig(f=1, z_channels=3, reg="none", resolution=size), num_steps=0, batch_size=1,
                          lr=0.0)


def with_condition(
    diffusion: DiffusionSpec, kind: ConditionKind, spec: ConditionSpec | SpatialSpec | None, f: int
) -> DiffusionSpec:
    """The same model with a condition: tokens to attend to, or channels beside its input and nothing to attend to.

    None, the class, leaves it as it is. A condition that enters by channels is never dropped in training.
    """
    denoiser = diffusion.denoiser
    if spec is None:
        return diffusion
    if isinstance(spec, ConditionSpec):
        return replace(diffusion, condition=spec, denoiser=replace(denoiser, context_dim=spec.dim))
    if kind.channels is None:
        raise ValueError(f"a condition of kind {kind.name} enters by tokens, by a ConditionSpec; got {spec}")
    c = denoiser.out_channels
    denoiser = replace(denoiser, in_channels=c + kind.channels(f, c, spec), context_dim=None)
    return replace(diffusion, condition=spec, p_uncond=0.0, denoiser=denoiser)
