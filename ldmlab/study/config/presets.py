"""What is trained, in full: one row per model of the paper's sweep, and tiers that scale a row down.

Nothing but this module knows what a tier changes.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ldmlab.diffusion.conditioning.spatial import LowResolution
from ldmlab.diffusion.unet.unet import DenoiserConfig
from ldmlab.first_stage.networks import AutoencoderConfig
from ldmlab.study.config.notebooks import TIERS
from ldmlab.study.config.specs import (
    ClassifierSpec,
    ConditionSpec,
    DataSpec,
    DiffusionSpec,
    EvaluationSpec,
    FirstStageSpec,
    SpatialSpec,
    StudySpec,
)

# --- The paper's rows ------------------------------------------------------------------------------------------------
# [LDM v2, Tab. 8] and the released configurations. f: (z_channels, num_codes, ch_mult, attn_resolutions)
_PAPER_VQ = {
    2: (2, 2048, (1, 2), ()),  # not released: ch_mult is our assumption
    4: (3, 8192, (1, 2, 4), ()),
    8: (4, 16384, (1, 2, 2, 4), (32,)),
    16: (8, 16384, (1, 1, 2, 2, 4), (16,)),
    32: (16, 16384, (1, 1, 2, 2, 4, 4), (16, 8)),  # not released: ch_mult as KL-f32
}
_PAPER_KL = {
    2: (2, 0, (1, 2), ()),  # not released: ch_mult is our assumption
    4: (3, 0, (1, 2, 4), ()),
    8: (4, 0, (1, 2, 4, 4), ()),
    16: (16, 0, (1, 1, 2, 2, 4), (16,)),
    32: (64, 0, (1, 1, 2, 2, 4, 4), (16, 8)),
}
_PAPER_FIRST_STAGE_TRAINING = {  # (reg, f): (steps, batch, disc_start, disc_weight, disc_layers)
    ("vq", 2): (500_000, 8, 0, 0.75, 3), ("vq", 4): (533_066, 8, 0, 0.75, 3), ("vq", 8): (971_043, 10, 1, 0.6, 2),
    ("vq", 16): (1_101_166, 14, 250_001, 0.75, 2), ("vq", 32): (1_101_166, 14, 250_001, 0.75, 2),
    ("kl", 2): (176_991, 10, 50_001, 0.5, 3), ("kl", 4): (176_991, 10, 50_001, 0.5, 3),
    ("kl", 8): (246_803, 4, 50_001, 0.5, 3), ("kl", 16): (442_998, 6, 50_001, 0.5, 3),
    ("kl", 32): (406_763, 6, 50_001, 0.5, 3),
}
# [LDM v2, Tab. 13], class-conditional ImageNet. f: (ch, ch_mult, batch, lr, attention_at = latent side / CA-resolution)
_PAPER_LDM = {
    1: (192, (1, 1, 2, 2, 4, 4), 7, 4.9e-5, (8, 16, 32)),
    2: (192, (1, 2, 2, 4, 4), 9, 6.3e-5, (4, 8, 16)),
    4: (192, (1, 2, 3, 5), 40, 8e-5, (2, 4, 8)),
    8: (256, (1, 2, 4), 64, 6.4e-5, (1, 2, 4)),
    16: (256, (1, 2, 4), 112, 4.5e-5, (1, 2, 4)),
    32: (256, (1, 2, 4), 112, 4.5e-5, (1, 2, 4)),
}


def _identity(size: int) -> AutoencoderConfig:
    return AutoencoderConfig(f=1, z_channels=3, reg="none", resolution=size)


def _paper(f: int, reg: str, data: DataSpec) -> tuple[FirstStageSpec, DiffusionSpec, EvaluationSpec]:
    if f == 1:
        first_stage = FirstStageSpec(_identity(data.size), num_steps=0, batch_size=1, lr=0.0)
    else:
        c, num_codes, ch_mult, attn = (_PAPER_VQ if reg == "vq" else _PAPER_KL)[f]
        steps, batch, start, weight, layers = _PAPER_FIRST_STAGE_TRAINING[reg, f]
        autoencoder = AutoencoderConfig(f=f, z_channels=c, reg=reg, ch_mult=ch_mult, attn_resolutions=attn,
                                        resolution=data.size, num_codes=num_codes or 8192)
        # The published numbers come of the released order of updates; the tiers below take the faster one.
        first_stage = FirstStageSpec(autoencoder, steps, batch, lr=4.5e-6 * batch, perceptual="lpips",
                                     disc_start=start, disc_weight=weight, disc_layers=layers, exact=True,
                                     val_every=5000)
    ch, mult, batch, lr, attention_at = _PAPER_LDM[f]
    c = first_stage.autoencoder.latent_channels
    denoiser = DenoiserConfig(in_channels=c, out_channels=c, widths=tuple(ch * m for m in mult), num_res_blocks=2,
                              attention_at=attention_at, context_dim=512, num_heads=1)
    diffusion = DiffusionSpec(denoiser, 2_000_000, batch, lr, precision="bf16-mixed",
                              scale_mode="first_batch" if reg == "kl" else "none",
                              milestones=(100_000, 200_000, 500_000, 1_000_000, 1_500_000))
    # [LDM v2, App. E.3]: the curves of Fig. 6, 7 and 17 are drawn from 5k samples against the training set.
    return first_stage, diffusion, EvaluationSpec(5000, 100, 64, 0, speed_batch=64)


SPATIAL = {"low_resolution": ("factor", "degradation"), "mask": (), "labels": ()}  # the fields that each kind has
# [LDM v2, Tab. 17]; heads as in the released code.
_CONDITION = {
    "text": ConditionSpec("text", dim=1280, num_layers=32, num_heads=8, head_dim=64),
    "layout": ConditionSpec("layout", dim=512, num_layers=16, num_heads=8, head_dim=64),
}
# Released configurations: (widths, attention_at, heads, transformer depth, width of tau, training [LDM v2, Tab. 15]).
_PAPER_CONDITIONAL = {
    ("text", 8): ((320, 640, 1280, 1280), (1, 2, 4), {"num_heads": 8}, 1, 1280,
                  {"batch_size": 680, "num_steps": 390_000, "lr": 1e-4, "beta": (0.00085, 0.012)}),
    ("text", 4): ((192, 384, 576, 960), (2, 4, 8), {"num_heads": None, "num_head_channels": 32}, 1, 640, {}),
    ("layout", 4): ((128, 256, 384, 512), (2, 4, 8), {"num_heads": None, "num_head_channels": 32}, 3, 512,
                    {"batch_size": 24, "num_steps": 4_400_000, "lr": 4.8e-5, "beta": (0.0015, 0.0205), "loss": "l1"}),
}
# Models of a concatenated condition at f = 4 [LDM v2, Tab. 15]; attention of low_resolution and labels as released.
_PAPER_SPATIAL = {
    "low_resolution": ((160, 320, 320, 640), (8,), {"num_heads": None, "num_head_channels": 32},
                       {"batch_size": 64, "num_steps": 860_000, "lr": 6.4e-5, "beta": (0.0015, 0.0155)}),
    "mask": ((128, 512, 1024), (), {"num_heads": 8},  # the released file is another, "big" model
             {"batch_size": 128, "num_steps": 360_000, "lr": 1e-6, "beta": (0.0015, 0.0205), "loss": "l1"}),
    "labels": ((128, 512, 1024), (), {"num_heads": 8},  # attention is asked for at factors that it lacks
               {"batch_size": 48, "num_steps": 360_000, "lr": 4.8e-5, "beta": (0.0015, 0.0205), "loss": "l1"}),
}


# --- Tiers -----------------------------------------------------------------------------------------------------------
# f: z_channels (those of Tab. 8), side of the stem's patches, ch_mult, first-stage steps: more at large f
_LAPTOP_AE = {
    2: (2, 2, (1,), 3000), 4: (3, 4, (1,), 3300), 8: (4, 4, (1, 2), 3600), 16: (8, 4, (1, 2, 4), 4000),
    32: (16, 4, (1, 2, 4, 4), 4400),
}
# f: widths, attention_at, steps. The widths are what `match_widths` chose for LAPTOP_PARAMS; a test holds them to it.
LAPTOP_PARAMS = 1_235_000
_LAPTOP_LDM = {
    1: ((24, 40, 56, 56), (8,), 400), 2: ((32, 48, 64), (4,), 800), 4: ((32, 72), (2,), 1600),
    8: ((40, 64), (1, 2), 2400), 16: ((40, 64), (1, 2), 2400), 32: ((72,), (1,), 2400),
}
# Deviation: short sequences, and corners of boxes on a grid of the pictures' own pixels; the captions of `scenes` have
# up to 37 word pieces, its layouts up to four boxes.
_LAPTOP_CONDITION = {
    "text": ConditionSpec("text", dim=64, num_layers=2, num_heads=4, head_dim=16, max_length=40),
    "layout": ConditionSpec("layout", dim=64, num_layers=2, num_heads=4, head_dim=16, num_tokens=1025, max_objects=6),
}
_LAPTOP_SPATIAL_STEPS = {1: 400, 2: 800, 4: 2400, 8: 3200, 16: 3200, 32: 3200}
_LAPTOP_CONDITIONAL_STEPS = {1: 800, 2: 1600, 4: 3200, 8: 4000, 16: 4000, 32: 4000}
_MILESTONES = (100, 200, 400, 800, 1600)


def _laptop(f: int, reg: str, data: DataSpec) -> tuple[FirstStageSpec, DiffusionSpec, EvaluationSpec]:
    if f == 1:
        first_stage = FirstStageSpec(_identity(data.size), num_steps=0, batch_size=1, lr=0.0)
    else:
        c, patch, ch_mult, steps = _LAPTOP_AE[f]
        autoencoder = AutoencoderConfig(f=f, z_channels=c, reg=reg, ch=32, ch_mult=ch_mult, num_res_blocks=1,
                                        resolution=data.size, patch=patch, linear_shortcut=True, norm_groups=8,
                                        mid_attn=f > 2, num_codes=512)
        # Deviation: no discriminator here. Within these few steps it spoils what it should sharpen: a trial at f = 8
        # on `scenes`, with it in the second half of 1200 steps, took rFD-lab from 124 to 174 and cost 0.9 dB.
        first_stage = FirstStageSpec(
            autoencoder, steps, 16, lr=4e-3, warmup_steps=50, decay_from=0.0, final_lr=0.02, perceptual_weight=0.2,
            disc_weight=0.0, disc_layers=2, disc_ch=16, revive_every=50, val_every=steps // 20,
            precision="bf16-mixed")
    widths, attention_at, steps = _LAPTOP_LDM[f]
    c = first_stage.autoencoder.latent_channels
    denoiser = DenoiserConfig(in_channels=c, out_channels=c, widths=widths, num_res_blocks=1, norm_groups=8,
                              attention_at=attention_at, context_dim=64, num_heads=1)
    diffusion = DiffusionSpec(denoiser, steps, 64, lr=1e-3, warmup_steps=100, ema_decay=0.9995,
                              target_params=LAPTOP_PARAMS,
                              scale_mode="first_batch" if reg == "kl" else "none",
                              milestones=tuple(m for m in _MILESTONES if m < steps))
    return first_stage, diffusion, EvaluationSpec(512, 20, 128, 10_000)


def study_spec(f: int, reg: str = "kl", data: str = "scenes", tier: str = "laptop", seed: int = 0, size: int = 0,
               condition: str = "class", attention: bool = True, condition_options: Mapping[str, Any] | None = None,
               **changes) -> StudySpec:
    """The spec of one run; `size` = 0 takes the tier's own. `changes` replace fields of DiffusionSpec.

    `condition_options` are the fields of a spatial condition, see SPATIAL. Without `attention` the first stage has
    none, as in the last row of [LDM v2, Tab. 6]. Raises ValueError for an unknown tier or condition, or a size that f
    does not divide.
    """
    if tier not in TIERS:
        raise ValueError(f"tier is one of {', '.join(TIERS)}; got {tier!r}")
    if condition not in ("class", *_CONDITION, *SPATIAL):
        raise ValueError(f"condition is one of class, {', '.join((*_CONDITION, *SPATIAL))}; got {condition!r}")
    size = size or {"smoke": 32, "laptop": 32, "gpu": 64, "paper": 256}[tier]
    if size % f or size < 32:
        raise ValueError(f"size must be at least 32 and divisible by f = {f}; got {size}")
    reg = "none" if f == 1 else reg
    num_train, num_val = {"smoke": (256, 64), "laptop": (20_000, 1024), "gpu": (50_000, 2048), "paper": (0, 5000)}[
        tier]
    where = DataSpec(data, size, num_train, num_val)
    first_stage, diffusion, evaluation = (_paper if tier == "paper" else _laptop)(f, reg, where)
    if not attention:
        plain = replace(first_stage.autoencoder, mid_attn=False, attn_resolutions=())
        first_stage = replace(first_stage, autoencoder=plain)
    if condition in SPATIAL:
        diffusion = _beside(diffusion, SpatialSpec(condition, **(condition_options or {})), tier, f)
    elif condition != "class":
        diffusion = _conditioned(diffusion, condition, tier, f, reg)
    if tier == "gpu":
        first_stage, diffusion, evaluation = _gpu(first_stage, diffusion, evaluation)
    if tier == "smoke":
        first_stage, diffusion, evaluation = _smoke(first_stage, diffusion, evaluation)
    return StudySpec(f, reg, tier, seed, where, first_stage, replace(diffusion, **changes), evaluation)


def _conditioned(diffusion: DiffusionSpec, kind: str, tier: str, f: int, reg: str) -> DiffusionSpec:
    """The same model, told by a sequence of tokens what to show."""
    if tier == "paper":
        condition, rows = _CONDITION[kind], _PAPER_CONDITIONAL
        if (kind, f) in rows:
            widths, attention_at, heads, depth, dim, changes = rows[kind, f]
            denoiser = replace(diffusion.denoiser, widths=widths, attention_at=attention_at, transformer_depth=depth,
                               **heads)
            diffusion, condition = replace(diffusion, denoiser=denoiser, **changes), replace(condition, dim=dim)
    else:
        condition = _LAPTOP_CONDITION[kind]
        if tier == "gpu":
            condition = replace(condition, dim=2 * condition.dim, num_layers=4)
        diffusion = replace(diffusion, num_steps=_LAPTOP_CONDITIONAL_STEPS[f])
    return replace(diffusion, condition=condition, denoiser=replace(diffusion.denoiser, context_dim=condition.dim))


def _beside(diffusion: DiffusionSpec, spec: SpatialSpec, tier: str, f: int) -> DiffusionSpec:
    """The same model with a condition beside its input; it has no tokens to attend to."""
    c = diffusion.denoiser.out_channels
    beside = {"mask": c + 1, "labels": c}.get(spec.kind) or LowResolution.num_channels(f, spec.factor)
    denoiser, changes = diffusion.denoiser, {"num_steps": _LAPTOP_SPATIAL_STEPS[f]}
    if tier == "paper":
        changes = {}
        if f == 4:
            widths, attention_at, shape, changes = _PAPER_SPATIAL[spec.kind]
            denoiser = replace(denoiser, widths=widths, attention_at=attention_at, **shape)
    elif f == 32:  # one level, whose width comes in steps of 8: the nearest is 9 % too large
        denoiser, changes = replace(denoiser, widths=(88,)), changes | {"target_params": None}
    denoiser = replace(denoiser, in_channels=c + beside, context_dim=None)
    milestones = tuple(m for m in diffusion.milestones if m in (400, 1600) and m < changes.get("num_steps", 0))
    return replace(diffusion, denoiser=denoiser, condition=spec, p_uncond=0.0,
                   **({"milestones": milestones} if tier != "paper" else {}), **changes)


def regression_spec(spec: StudySpec) -> DiffusionSpec:
    """The network that gives back the mean of the pictures, for the pixel-space run of `spec`: shape as its denoiser.

    The paper takes its numbers from [SR3], which trains the same UNet with a squared error.
    """
    steps, batch = {"smoke": (8, 16), "laptop": (600, 32), "gpu": (15_000, 64), "paper": (860_000, 64)}[spec.tier]
    return replace(spec.diffusion, num_steps=steps, batch_size=batch, milestones=(),
                   denoiser=replace(spec.diffusion.denoiser, in_channels=spec.diffusion.denoiser.in_channels - 3))


def classifier_spec(spec: StudySpec, num_classes: int) -> ClassifierSpec:
    """The classifier that guides the model of `spec`; the paper gives neither its shape nor its training.

    From Tab. 10 follow 506M - 395M = 111M parameters for LDM-8-G: about the encoder half of its denoiser.
    """
    denoiser = spec.diffusion.denoiser
    config = replace(denoiser, out_channels=num_classes, context_dim=None, num_classes=None)
    if spec.tier == "paper":
        return ClassifierSpec(config, "adaptive", 300_000, 256, lr=3e-4, precision="bf16-mixed")
    steps, batch = {"smoke": (8, 16), "laptop": (1200, 64), "gpu": (10_000, 128)}[spec.tier]
    return ClassifierSpec(config, "adaptive", steps, batch, lr=1e-3, warmup_steps=50,
                          precision=spec.diffusion.precision)


def _gpu(first_stage, diffusion, evaluation):
    """The laptop's shapes, wider in the first stage, four times the parameters in the denoiser, trained longer."""
    factor = 10
    autoencoder = first_stage.autoencoder
    if autoencoder.f > 1:
        autoencoder = replace(autoencoder, ch=3 * autoencoder.ch)
        steps = factor * first_stage.num_steps
        first_stage = replace(first_stage, autoencoder=autoencoder, num_steps=steps, batch_size=64, lr=1e-3,
                              disc_start=steps // 2, disc_weight=0.1, disc_ch=64, disc_layers=3, val_every=steps // 20)
    denoiser = replace(diffusion.denoiser, widths=tuple(2 * w for w in diffusion.denoiser.widths),
                       context_dim=128 if diffusion.denoiser.context_dim else None)
    diffusion = replace(diffusion, target_params=diffusion.target_params and 4 * LAPTOP_PARAMS)
    steps = 30_000
    diffusion = replace(diffusion, denoiser=denoiser, num_steps=steps, batch_size=128, lr=5e-4, ema_decay=0.9999,
                        precision="bf16-mixed", milestones=(1000, 2000, 4000, 8000, 16_000))
    return first_stage, diffusion, replace(evaluation, num_samples=2048, num_steps=50, batch_size=512,
                                           num_reference=20_000, speed_batch=256)


def _smoke(first_stage, diffusion, evaluation):
    """Every code path in seconds; its numbers mean nothing."""
    if first_stage.num_steps:
        first_stage = replace(first_stage, num_steps=12, batch_size=16, disc_start=6, disc_weight=0.1, val_every=4,
                              revive_every=4)
    diffusion = replace(diffusion, num_steps=16, batch_size=16, warmup_steps=4, milestones=(8,))
    return first_stage, diffusion, replace(evaluation, num_samples=160, num_steps=4, batch_size=80, num_reference=256,
                                           speed_steps=(2, 4), speed_batch=4, speed_repeats=1)
