"""Replays of the learning rates of the released models: warm-up and decay."""

import torch

from ldmlab.checkpoints.learning_rate import Cycle, LearningRate

from .case import Case


def replay_cycles(case: Case) -> None:
    """One list entry a cycle."""
    c = case.config
    names = ("cycle_lengths", "warm_up_steps", "f_start", "f_max", "f_min")
    cycles = tuple(Cycle(*values) for values in zip(*(c[name] for name in names), strict=True))
    decay = "cosine" if "Cosine" in case.meta["module"] else "linear"
    _compare(case, LearningRate(decay, cycles))


def replay_cosine(case: Case) -> None:
    c = case.config
    cycle = Cycle(c["max_decay_steps"], c["warm_up_steps"], c["lr_start"], c["lr_max"], c["lr_min"])
    _compare(case, LearningRate("cosine", (cycle,)))


def _compare(case: Case, rate: LearningRate) -> None:
    factors = [rate.factor(step) for step in case.tensor("in.n").tolist()]
    case.compare("out.lr_multiplier", torch.tensor(factors, dtype=torch.float64))


REPLAYS = {
    "LambdaLinearScheduler": replay_cycles,
    "LambdaWarmUpCosineScheduler": replay_cosine,
    "LambdaWarmUpCosineScheduler2": replay_cycles,
}
