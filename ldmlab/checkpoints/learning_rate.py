"""Learning-rate schedules of the released models: cycles of warm-up and decay."""

import math
from dataclasses import dataclass

DECAYS = ("linear", "cosine")


@dataclass(frozen=True)
class Cycle:
    """One cycle of `length` steps: `warmup` steps from `start` to `top`, then decay to `end`; factors of the rate."""

    length: int
    warmup: int
    start: float
    top: float
    end: float


@dataclass(frozen=True)
class LearningRate:
    """Cycles in sequence, each with warm-up and "linear" or "cosine" decay; the last one's `end` holds thereafter."""

    decay: str
    cycles: tuple[Cycle, ...]

    def __post_init__(self) -> None:
        if self.decay not in DECAYS or not self.cycles:
            raise ValueError(f"decay is one of {', '.join(DECAYS)}, with at least one cycle; got {self}")
        for cycle in self.cycles:
            if not 0 <= cycle.warmup <= cycle.length or cycle.length < 1:
                raise ValueError(f"a cycle has a positive length and 0 <= warmup <= length, got {cycle}")

    def factor(self, step: int) -> float:
        """Factor of the base rate at `step` >= 0; ValueError for a negative step.

        As released, a cycle's last step is one past its length, and linear decay runs over the whole length of the
        cycle: after the warm-up it starts below `top`.
        """
        if step < 0:
            raise ValueError(f"steps are counted from 0, got {step}")
        begin = 0
        for cycle in self.cycles[:-1]:
            if step <= begin + cycle.length:
                return self._within(cycle, step - begin)
            begin += cycle.length
        return self._within(self.cycles[-1], step - begin)

    def _within(self, cycle: Cycle, n: int) -> float:
        if n < cycle.warmup:
            return cycle.start + (cycle.top - cycle.start) * n / cycle.warmup
        n = min(n, cycle.length)
        if self.decay == "linear":
            left = (cycle.length - n) / cycle.length
        else:
            done = (n - cycle.warmup) / max(cycle.length - cycle.warmup, 1)
            left = 0.5 * (1 + math.cos(math.pi * done))
        return cycle.end + (cycle.top - cycle.end) * left
