"""How much work a tier is: one row a tier holds all that it changes beyond the shapes of the models.

A new tier is one row of `BUDGETS`. If no recipe of `study.config.presets.RECIPES` fits its models, it is one function
there as well. Nothing slow is imported here: parameters are checked against these names before torch is loaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


class Training(NamedTuple):
    """How a network beside the diffusion model is trained; a regressor has the diffusion model's own lr and warm-up."""

    num_steps: int
    batch_size: int
    lr: float | None = None
    warmup_steps: int = 0


@dataclass(frozen=True)
class Budget:
    """The amount of work of one tier; numbers are pictures unless the comment says otherwise."""

    models: str  # the recipe of first stage and denoiser, one of study.config.presets.RECIPES
    is_smoke: bool  # every code path in seconds: few pictures are allowed for a score, and scores are no evidence
    paper_scale: bool  # meant for the paper's machines: not timed on this one, and no limits of time
    minutes: int  # allowed for one run of the study; a job of SLURM is stopped after that
    memory_mb: int  # asked for one run of the study
    threads: int  # of one run of the study

    perceptual: str  # loss of the first stage, one of perception.losses.LOSSES, where the run does not say
    size: int  # side of a picture in pixels, where the run does not say
    num_train: int  # 0: all there are
    num_val: int
    evaluation: Mapping[str, Any]  # the fields of EvaluationSpec: how samples are scored and timed
    num_scored: int  # samples for each of many settings, such as guidance scales; 0: as many as at milestones
    num_resamples: int  # of a bootstrap, for intervals over samples

    classifier: Training  # guides a class-conditional model
    regression: Training  # restores the mean of the pictures

    num_restored: int  # super-resolution, inpainting, semantic synthesis
    repeats: int  # samples for each hole, where several are compared
    num_repeated: int  # holes that several samples are drawn for
    num_guided: int  # image guiding, at each scale
    num_beyond: int  # beyond the training size, at each size
    num_beyond_reference: int
    tiled_side: int  # side in pixels of the picture reconstructed in tiles

    timed_rounds: int  # of the inpainting models' speed
    timed_batch: int
    machine_s: float  # seconds of timing a machine; warm-up calls come on top

    num_compared: int  # user study
    num_simulated: int  # simulations again, to see how often intervals hold the truth
    num_raters: int  # simulated people
    num_questions: int  # for each of them

    released_reconstructed: int  # released models
    released_samples: int  # 0: as many as the paper
    released_reference: int  # 0: all there are
    released_steps: int  # DDIM steps; 0: as many as the paper


BUDGETS: dict[str, Budget] = {
    "smoke": Budget(
        models="smoke", is_smoke=True, paper_scale=False, minutes=10, memory_mb=4000, threads=1,
        perceptual="student", size=32, num_train=256, num_val=64, num_scored=64, num_resamples=20,
        evaluation=dict(num_samples=160, num_steps=4, batch_size=80, num_reference=256, speed_steps=(2, 4),
                        speed_batch=4, speed_repeats=1),
        classifier=Training(8, 16, lr=1e-3, warmup_steps=50), regression=Training(8, 16),
        num_restored=16, repeats=2, num_repeated=8, num_guided=8, num_beyond=6, num_beyond_reference=12, tiled_side=96,
        timed_rounds=2, timed_batch=2, machine_s=1.0,
        num_compared=8, num_simulated=10, num_raters=4, num_questions=10,
        released_reconstructed=12, released_samples=12, released_reference=24, released_steps=3,
    ),
    "laptop": Budget(
        models="laptop", is_smoke=False, paper_scale=False, minutes=60, memory_mb=4000, threads=1,
        perceptual="student", size=32, num_train=20_000, num_val=1024, num_scored=0, num_resamples=200,
        evaluation=dict(num_samples=512, num_steps=20, batch_size=128, num_reference=10_000),
        classifier=Training(1200, 64, lr=1e-3, warmup_steps=50), regression=Training(600, 32),
        num_restored=512, repeats=4, num_repeated=128, num_guided=256, num_beyond=256, num_beyond_reference=2048,
        tiled_side=512,
        timed_rounds=7, timed_batch=16, machine_s=30.0,
        num_compared=64, num_simulated=400, num_raters=20, num_questions=40,
        released_reconstructed=64, released_samples=16, released_reference=2048, released_steps=20,
    ),
    "gpu": Budget(
        models="gpu", is_smoke=False, paper_scale=False, minutes=120, memory_mb=16_000, threads=4,
        perceptual="lpips", size=64, num_train=50_000, num_val=2048, num_scored=0, num_resamples=200,
        evaluation=dict(num_samples=2048, num_steps=50, batch_size=512, num_reference=20_000, speed_batch=256),
        classifier=Training(10_000, 128, lr=1e-3, warmup_steps=50), regression=Training(15_000, 64),
        num_restored=2048, repeats=6, num_repeated=512, num_guided=512, num_beyond=1024, num_beyond_reference=10_000,
        tiled_side=512,
        timed_rounds=9, timed_batch=64, machine_s=30.0,
        num_compared=128, num_simulated=400, num_raters=20, num_questions=40,
        released_reconstructed=5000, released_samples=2500, released_reference=10_000, released_steps=0,
    ),
    "paper": Budget(
        models="paper", is_smoke=False, paper_scale=True, minutes=10_080, memory_mb=64_000, threads=8,
        perceptual="lpips", size=256, num_train=0, num_val=5000, num_scored=0, num_resamples=200,
        # [LDM v2, App. E.3]: the curves of Fig. 6, 7 and 17 are drawn from 5k samples against the training set.
        evaluation=dict(num_samples=5000, num_steps=100, batch_size=64, num_reference=0, speed_batch=64),
        classifier=Training(300_000, 256, lr=3e-4), regression=Training(860_000, 64),
        num_restored=5000, repeats=6, num_repeated=1000, num_guided=1000, num_beyond=1000, num_beyond_reference=10_000,
        tiled_side=1024,
        timed_rounds=9, timed_batch=8, machine_s=30.0,
        num_compared=256, num_simulated=400, num_raters=40, num_questions=40,
        released_reconstructed=50_000, released_samples=0, released_reference=0, released_steps=0,
    ),
}
TIERS = BUDGETS.keys()  # a view: rows that are added later are in it


def budget_of(tier: str) -> Budget:
    """The row of a tier; ValueError for an unknown one."""
    if tier not in BUDGETS:
        raise ValueError(f"tier is one of {', '.join(TIERS)}; got {tier!r}")
    return BUDGETS[tier]


def is_smoke(tier: str) -> bool:
    """Whether numbers of this tier are no evidence; those of an unknown tier count as evidence."""
    return tier in BUDGETS and BUDGETS[tier].is_smoke


def evidence_tiers() -> tuple[str, ...]:
    """The tiers whose numbers count as evidence."""
    return tuple(tier for tier in TIERS if not is_smoke(tier))


def auto_tier(device: str) -> str:
    """What tier "auto" stands for on a device of this type ("cpu", "cuda", "mps")."""
    return "gpu" if device == "cuda" else "laptop"
