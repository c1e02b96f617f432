"""What a run is made of: a `StudySpec` fixes it completely, and its content is its key."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ldmlab.diffusion.unet.unet import DenoiserConfig, count_params, match_widths
from ldmlab.first_stage.networks import AutoencoderConfig
from ldmlab.study.config.budgets import Budget, budget_of

VERSION = 1  # raise it when training code changes what the same spec would give


@dataclass(frozen=True)
class DataSpec:
    """Which pictures, at which size; `num_train` = 0 takes all there are."""

    name: str
    size: int
    num_train: int
    num_val: int


@dataclass(frozen=True)
class FirstStageSpec:
    """A first stage and how it is trained [LDM v2, Tab. 8; released configurations]."""

    autoencoder: AutoencoderConfig
    num_steps: int
    batch_size: int
    lr: float
    warmup_steps: int = 0
    decay_from: float = 0.5
    final_lr: float = 1.0
    clip_norm: float | None = None
    perceptual: str = "student"  # one of perception.losses.LOSSES; `study_spec` takes the tier's
    perceptual_weight: float = 1.0
    kl_weight: float = 1e-6
    codebook_weight: float = 1.0
    disc_start: int = 50_001
    disc_weight: float = 0.5
    disc_layers: int = 3
    disc_ch: int = 64
    disc_lr: float | None = None  # as the autoencoder's, if None
    revive_every: int = 0
    exact: bool = False  # the released order of updates, see FirstStageModule
    val_every: int = 1000
    precision: str = "32-true"  # bf16 only where the device has it: see training.device.usable_precision

    @property
    def name(self) -> str:
        """As the paper writes it: KL-f8, VQ-f4."""
        config = self.autoencoder
        if config.f == 1:
            return "pixels"
        plain = config.f > 2 and not config.mid_attn  # at f = 2 the tiers below the paper's never attend
        return f"{config.reg.upper()}-f{config.f}{'-noattn' if plain else ''}"


@dataclass(frozen=True)
class ConditionSpec:
    """tau_theta over a sequence of tokens: its kind, its transformer, the sequence's length [LDM v2, Tab. 17]."""

    kind: str  # a key of study.config.conditions.KINDS that enters by tokens, other than "class"
    dim: int
    num_layers: int
    num_heads: int
    head_dim: int
    max_length: int = 77  # of a caption, in word pieces
    num_tokens: int = 8192  # of boxes: the largest square in it is the grid of their corners
    max_objects: int = 30


@dataclass(frozen=True)
class SpatialSpec:
    """A condition that is aligned with the picture and enters by channels [LDM v2, Sec. 4.3.2, 4.4, 4.5]."""

    kind: str  # a key of study.config.conditions.KINDS that enters by channels
    factor: int = 0  # of low_resolution
    degradation: str = ""


@dataclass(frozen=True)
class DiffusionSpec:
    """A latent diffusion model and how it is trained [LDM v2, Tab. 13]."""

    denoiser: DenoiserConfig
    num_steps: int
    batch_size: int
    lr: float
    beta: tuple[float, float] = (0.0015, 0.0195)
    T: int = 1000
    loss: str = "l2"
    warmup_steps: int = 0
    weight_decay: float = 0.01
    ema_decay: float = 0.9999
    scale_mode: str = "first_batch"
    p_uncond: float = 0.1
    precision: str = "32-true"
    target_params: int | None = None  # widths are matched to this number, so that all f are equally large
    milestones: tuple[int, ...] = ()  # steps at which samples are scored; the last step always is
    condition: ConditionSpec | SpatialSpec | None = None  # None is the class, where the data has classes
    accumulate: int = 1  # parts that a batch is taken in, to save memory; batch_size stays that of the whole
    compile: bool = False  # the denoiser by torch.compile, for training; needs a C++ compiler, or Triton on a GPU


@dataclass(frozen=True)
class ClassifierSpec:
    """A classifier of noisy latents, by which a sampler is guided, and how it is trained [LDM v2, App. C, D.4]."""

    config: DenoiserConfig  # of the encoder half; out_channels are the classes
    pool: str
    num_steps: int
    batch_size: int
    lr: float
    warmup_steps: int = 0
    weight_decay: float = 0.05
    ema_decay: float = 0.9995
    precision: str = "32-true"


@dataclass(frozen=True)
class EvaluationSpec:
    """How samples are scored and timed."""

    num_samples: int  # at milestones, and at the end
    num_steps: int  # DDIM, eta = 0
    batch_size: int
    num_reference: int  # training pictures the samples are compared with
    speed_steps: tuple[int, ...] = (10, 20, 50, 100, 200)
    speed_batch: int = 16
    speed_repeats: int = 3


@dataclass(frozen=True)
class StudySpec:
    """One run of the trade-off: a first stage of one f, and the diffusion model on top."""

    f: int
    reg: str
    tier: str
    seed: int
    data: DataSpec
    first_stage: FirstStageSpec
    diffusion: DiffusionSpec
    evaluation: EvaluationSpec = field(compare=False)

    @property
    def name(self) -> str:
        """As the paper writes it: LDM-8."""
        return f"LDM-{self.f}"

    @property
    def budget(self) -> Budget:
        """What its tier changes beyond the models."""
        return budget_of(self.tier)

    @property
    def num_scored(self) -> int:
        """Samples for each of many settings that are compared, such as guidance scales."""
        return min(self.evaluation.num_samples, self.budget.num_scored or self.evaluation.num_samples)


# Fields that came later are left out at these values: models keep the names that they are filed under.
_CAME_LATER = {"condition": None, "exact": False}
# How a step is computed. Like the device, this changes rounding and random draws, so a model is found either way.
_NOT_CONTENT = ("accumulate", "compile")


def content_key(*parts: Any) -> str:
    """sha256 of the parts' contents, 12 hex digits: what a trained model is filed under."""
    plain = [_content(part) if hasattr(part, "__dataclass_fields__") else part for part in parts]
    return hashlib.sha256(json.dumps([VERSION, *plain], sort_keys=True).encode()).hexdigest()[:12]


def _content(spec: Any) -> dict[str, Any]:
    return {name: value for name, value in asdict(spec).items()
            if name not in _NOT_CONTENT and _CAME_LATER.get(name, ...) is not value}


def denoiser_config(plan: DiffusionSpec, num_classes: int) -> DenoiserConfig:
    """The denoiser of a spec: `target_params` parameters within 3 %; unconditional without classes or a condition."""
    conditional, target = num_classes or plan.condition, plan.target_params
    config = plan.denoiser if conditional else replace(plan.denoiser, context_dim=None)
    if target is None or abs(count_params(config) / target - 1) <= 0.03:
        return config
    return match_widths(config, target)
