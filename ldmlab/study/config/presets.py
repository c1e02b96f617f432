"""What is trained, in full: the spec of one run, from the models of its tier and the amounts of work of its budget.

A tier names one of `RECIPES`, functions that make the models of one f; all else that it changes is its row of
`study.config.budgets`. The paper's own models stand in `paper_models`, those of small machines here.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from ldmlab.diffusion.unet.unet import DenoiserConfig
from ldmlab.first_stage.networks import AutoencoderConfig
from ldmlab.study.config.budgets import budget_of
from ldmlab.study.config.conditions import ConditionKind, condition_kind
from ldmlab.study.config.paper_models import Models, paper_models, pixels, with_condition
from ldmlab.study.config.specs import (
    ClassifierSpec,
    ConditionSpec,
    DataSpec,
    DiffusionSpec,
    EvaluationSpec,
    FirstStageSpec,
    StudySpec,
)


class FirstStageRow(NamedTuple):
    """A first stage of the laptop tier: its shape, and how long it is trained."""

    z_channels: int  # those of [LDM v2, Tab. 8]
    patch: int  # side of the stem's patches in pixels
    ch_mult: tuple[int, ...]
    num_steps: int  # more at large f


class DenoiserRow(NamedTuple):
    """A denoiser of the laptop tier: its shape, and its steps of training under each kind of condition."""

    widths: tuple[int, ...]
    attention_at: tuple[int, ...]
    num_steps: int  # under a class, or under nothing
    num_steps_tokens: int  # under captions, layouts
    num_steps_channels: int  # under what is aligned with the picture


FIRST_STAGES = {
    2:  FirstStageRow(z_channels=2,  patch=2, ch_mult=(1,),         num_steps=3000),
    4:  FirstStageRow(z_channels=3,  patch=4, ch_mult=(1,),         num_steps=3300),
    8:  FirstStageRow(z_channels=4,  patch=4, ch_mult=(1, 2),       num_steps=3600),
    16: FirstStageRow(z_channels=8,  patch=4, ch_mult=(1, 2, 4),    num_steps=4000),
    32: FirstStageRow(z_channels=16, patch=4, ch_mult=(1, 2, 4, 4), num_steps=4400),
}
# The widths are what `match_widths` chose for LAPTOP_PARAMS; a test holds them to it.
LAPTOP_PARAMS = 1_235_000
DENOISERS = {
    # widths, attention_at, and steps of training
    1:  DenoiserRow((24, 40, 56, 56), (8,),   num_steps=400,  num_steps_tokens=800,  num_steps_channels=400),
    2:  DenoiserRow((32, 48, 64),     (4,),   num_steps=800,  num_steps_tokens=1600, num_steps_channels=800),
    4:  DenoiserRow((32, 72),         (2,),   num_steps=1600, num_steps_tokens=3200, num_steps_channels=2400),
    8:  DenoiserRow((40, 64),         (1, 2), num_steps=2400, num_steps_tokens=4000, num_steps_channels=3200),
    16: DenoiserRow((40, 64),         (1, 2), num_steps=2400, num_steps_tokens=4000, num_steps_channels=3200),
    32: DenoiserRow((72,),            (1,),   num_steps=2400, num_steps_tokens=4000, num_steps_channels=3200),
}
MILESTONES = (100, 200, 400, 800, 1600)  # those before the last step
MILESTONES_CHANNELS = (400, 1600)


# --- Recipes ----------------------------------------------------------------------------------------------------------
def laptop_models(f: int, reg: str, size: int, kind: ConditionKind, options: Mapping[str, Any]) -> Models:
    """Models of one f that a laptop trains in minutes, with a condition of `kind`; denoisers are of one size at all f.
    """
    first_stage, row = pixels(size) if f == 1 else _first_stage(f, reg, size), DENOISERS[f]
    c = first_stage.autoencoder.latent_channels
    denoiser = DenoiserConfig(in_channels=c, out_channels=c, widths=row.widths, num_res_blocks=1, norm_groups=8,
                              attention_at=row.attention_at, context_dim=64, num_heads=1)
    diffusion = DiffusionSpec(denoiser, row.num_steps, 64, lr=1e-3, warmup_steps=100, ema_decay=0.9995,
                              target_params=LAPTOP_PARAMS,
                              scale_mode="first_batch" if reg == "kl" else "none",
                              milestones=tuple(m for m in MILESTONES if m < row.num_steps))
    spec = kind.spec(options, **kind.laptop)
    if kind.injected_as == "channels":
        marks = tuple(m for m in diffusion.milestones if m in MILESTONES_CHANNELS)
        diffusion = replace(diffusion, num_steps=row.num_steps_channels, milestones=marks)
        if f == 32:  # one level, whose width comes in steps of 8: the nearest is 9 % too large
            diffusion = replace(diffusion, denoiser=replace(denoiser, widths=(88,)), target_params=None)
    elif spec is not None:
        diffusion = replace(diffusion, num_steps=row.num_steps_tokens)
    return Models(first_stage, with_condition(diffusion, kind, spec, f))


def _first_stage(f: int, reg: str, size: int) -> FirstStageSpec:
    row = FIRST_STAGES[f]
    autoencoder = AutoencoderConfig(f=f, z_channels=row.z_channels, reg=reg, ch=32, ch_mult=row.ch_mult,
                                    num_res_blocks=1, resolution=size, patch=row.patch, linear_shortcut=True,
                                    norm_groups=8, mid_attn=f > 2, num_codes=512)
    # Deviation: no discriminator here. Within these few steps it spoils what it should sharpen: a trial at f = 8 on
    # `scenes`, with it in the second half of 1200 steps, took rFD-lab from 124 to 174 and cost 0.9 dB.
    # Deviation: the weight of the perceptual loss is 0.3, not 1. With 1, LPIPS and its student alike leave dots at
    # f = 8 within 600 steps: at half a cycle a pixel the spectrum stands out by a factor of 2.1 and 1.8, that of true
    # pictures by 0.8; with 0.3 by 1.4 then, and by 0.9 after 1800 steps.
    return FirstStageSpec(
        autoencoder, row.num_steps, 16, lr=4e-3, warmup_steps=50, decay_from=0.0, final_lr=0.02, perceptual_weight=0.3,
        disc_weight=0.0, disc_layers=2, disc_ch=16, revive_every=50, val_every=row.num_steps // 20,
        precision="bf16-mixed")


def gpu_models(f: int, reg: str, size: int, kind: ConditionKind, options: Mapping[str, Any]) -> Models:
    """The laptop's shapes, wider in the first stage, four times the parameters in the denoiser, trained longer."""
    first_stage, diffusion = laptop_models(f, reg, size, kind, options)
    if f > 1:
        autoencoder, steps = first_stage.autoencoder, 10 * first_stage.num_steps
        first_stage = replace(first_stage, autoencoder=replace(autoencoder, ch=3 * autoencoder.ch), num_steps=steps,
                              batch_size=64, lr=1e-3, disc_start=steps // 2, disc_weight=0.1, disc_ch=64, disc_layers=3,
                              val_every=steps // 20)
    condition, denoiser = diffusion.condition, diffusion.denoiser
    if isinstance(condition, ConditionSpec):
        condition = replace(condition, dim=2 * condition.dim, num_layers=4)
    denoiser = replace(denoiser, widths=tuple(2 * w for w in denoiser.widths),
                       context_dim=denoiser.context_dim and 2 * denoiser.context_dim)
    return Models(first_stage, replace(
        diffusion, denoiser=denoiser, condition=condition, num_steps=30_000, batch_size=128, lr=5e-4, ema_decay=0.9999,
        precision="bf16-mixed", milestones=(1000, 2000, 4000, 8000, 16_000),
        target_params=diffusion.target_params and 4 * LAPTOP_PARAMS))


def smoke_models(f: int, reg: str, size: int, kind: ConditionKind, options: Mapping[str, Any]) -> Models:
    """The laptop's shapes, trained for seconds: every code path, and numbers that mean nothing."""
    first_stage, diffusion = laptop_models(f, reg, size, kind, options)
    if f > 1:
        first_stage = replace(first_stage, num_steps=12, batch_size=16, disc_start=6, disc_weight=0.1, val_every=4,
                              revive_every=4)
    return Models(first_stage, replace(diffusion, num_steps=16, batch_size=16, warmup_steps=4, milestones=(8,)))


RECIPES: dict[str, Callable[..., Models]] = {  # (f, reg, size, kind of condition, its options)
    "smoke": smoke_models, "laptop": laptop_models, "gpu": gpu_models, "paper": paper_models,
}


# --- Specs ------------------------------------------------------------------------------------------------------------
def study_spec(f: int, reg: str = "kl", data: str = "scenes", tier: str = "laptop", seed: int = 0, size: int = 0,
               condition: str = "class", attention: bool = True, condition_options: Mapping[str, Any] | None = None,
               perceptual: str = "", **changes: Any) -> StudySpec:
    """The spec of one run; `size` = 0 and `perceptual` = "" take the tier's own. `changes` replace fields of
    DiffusionSpec.

    `condition` is one of `conditions.KINDS`, `condition_options` are its `options`, by default as in the paper. Without
    `attention` the first stage has none, as in the last row of [LDM v2, Tab. 6]. Raises ValueError for an unknown tier,
    condition or option, or a size that f does not divide.

    >>> from ldmlab.study.config.presets import study_spec
    >>> spec = study_spec(4, tier="gpu", condition="text")
    >>> spec.name, spec.first_stage.name, spec.data.size, spec.diffusion.condition.kind
    ('LDM-4', 'KL-f4', 64, 'text')
    """
    budget, kind = budget_of(tier), condition_kind(condition)
    size, reg = size or budget.size, "none" if f == 1 else reg
    if size % f or size < 32:
        raise ValueError(f"size must be at least 32 and divisible by f = {f}; got {size}")
    first_stage, diffusion = RECIPES[budget.models](f, reg, size, kind, condition_options or {})
    first_stage = replace(first_stage, perceptual=perceptual or budget.perceptual)
    if not attention:
        plain = replace(first_stage.autoencoder, mid_attn=False, attn_resolutions=())
        first_stage = replace(first_stage, autoencoder=plain)
    return StudySpec(f, reg, tier, seed, DataSpec(data, size, budget.num_train, budget.num_val), first_stage,
                     replace(diffusion, **changes), EvaluationSpec(**budget.evaluation))


def regression_spec(spec: StudySpec) -> DiffusionSpec:
    """The network that gives back the mean of the pictures, for the pixel-space run of `spec`: shape as its denoiser.

    The paper takes its numbers from [SR3], which trains the same UNet with a squared error.
    """
    training, denoiser = spec.budget.regression, spec.diffusion.denoiser
    return replace(spec.diffusion, num_steps=training.num_steps, batch_size=training.batch_size, milestones=(),
                   denoiser=replace(denoiser, in_channels=denoiser.in_channels - 3))


def classifier_spec(spec: StudySpec, num_classes: int) -> ClassifierSpec:
    """The classifier that guides the model of `spec`; the paper gives neither its shape nor its training.

    From Tab. 10 follow 506M - 395M = 111M parameters for LDM-8-G: about the encoder half of its denoiser.
    """
    training = spec.budget.classifier
    config = replace(spec.diffusion.denoiser, out_channels=num_classes, context_dim=None, num_classes=None)
    return ClassifierSpec(config, "adaptive", training.num_steps, training.batch_size,
                          lr=training.lr or spec.diffusion.lr, warmup_steps=training.warmup_steps,
                          precision=spec.diffusion.precision)
