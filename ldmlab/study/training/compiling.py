"""torch.compile while training: switched on after a few steps without, so that a run can say whether it pays."""

import math
import statistics
import time
from typing import Any

import pytorch_lightning as pl
from torch import nn

from ldmlab.evaluation.cost import synchronize
from ldmlab.study.training.curve import Curve

SETTLE, TIMED = 3, 10  # steps that warm up, or compile, and steps whose median counts


class Compiling(pl.Callback):
    """Compile `part` of a module in place, keeping the names of its weights, and say after how many steps that pays.

    Only the first 26 steps are timed, and on a GPU waited for. The sentence is printed and joins the curve's events;
    a run too short for it stays as it is. Calls that are no training steps, as when samples are scored, belong under
    `torch.compiler.set_stance("force_eager")`: other batch sizes would be compiled anew.
    """

    def __init__(self, part: nn.Module, label: str, num_steps: int, curve: Curve, backend: str = "inductor"):
        self.part, self.label, self.num_steps, self.curve, self.backend = part, label, num_steps, curve, backend
        self.seconds: list[float] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.running = self.num_steps >= 2 * (SETTLE + TIMED)
        if not self.running:
            print(f"{self.label}: not compiled, {self.num_steps} steps are too few to tell", flush=True)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.running:
            if len(self.seconds) == SETTLE + TIMED:
                self.part.compile(backend=self.backend)
            self.began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.running:
            return
        synchronize()
        self.seconds.append(time.perf_counter() - self.began)
        if len(self.seconds) == 2 * (SETTLE + TIMED):
            self.running = False
            self.curve.events.append(f"{self.label}: {verdict(self.seconds, self.num_steps)}")
            print(self.curve.events[-1], flush=True)


def verdict(seconds: list[float], num_steps: int) -> str:
    """What the first steps' seconds, SETTLE + TIMED without and as many with, say of a run of `num_steps`."""
    plain, compiled = seconds[: SETTLE + TIMED], seconds[SETTLE + TIMED :]
    before, after = statistics.median(plain[SETTLE:]), statistics.median(compiled[SETTLE:])
    cost = max(0.0, sum(compiled[:SETTLE]) - SETTLE * after)
    timing = (f"compiling the denoiser took {cost:.3g} s; a step takes {1000 * after:.4g} ms instead of "
              f"{1000 * before:.4g} ms")
    if after >= before:
        return f"{timing}, so it does not pay"
    steps = math.ceil(cost / (before - after))
    return f"{timing}, so it has paid for itself after {steps} steps of {num_steps}"
