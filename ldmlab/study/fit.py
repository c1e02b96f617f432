"""One training loop for both stages: exact resume, atomic checkpoints, a NaN sentinel, progress with time left.

Everything random in step k is a pure function of (seed, k): the batch through `StepSampler`, noise and dropout through
the seed set before the step. So a checkpoint holds weights, optimizers, EMA and the curve, and nothing else is needed
to continue exactly where an uninterrupted run would be.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from ldmlab.atomic import atomic_write
from ldmlab.study.progress import progress

CHECKPOINT_EVERY_S = 20.0
MAX_READERS = 8  # processes that decode pictures of a set too large to be kept
_CHECK_EVERY_ON_CUDA = 25  # reading a loss makes the host wait for the GPU


class NonFiniteLoss(RuntimeError):
    """A loss became NaN or infinite; the message says where batch and state were saved."""


class StepSampler(Sampler[list[int]]):
    """Indices of the batch of every step from `start` to `stop`: shuffled epochs, each picture mirrored at random.

    Index i + n stands for the mirror image of picture i. A pure function of (seed, step).
    """

    def __init__(self, n: int, batch_size: int, *, seed: int, start: int, stop: int):
        if not 1 <= batch_size <= n:
            raise ValueError(f"batch_size {batch_size} needs at least as many pictures, got {n}")
        self.n, self.batch_size, self.seed, self.start, self.stop = n, batch_size, seed, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[int]]:
        per_epoch = self.n // self.batch_size
        epoch = None
        for step in range(self.start, self.stop):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                rng = np.random.default_rng([self.seed, epoch])
                order = rng.permutation(self.n) + self.n * rng.integers(0, 2, self.n)
            at = step % per_epoch * self.batch_size
            yield order[at : at + self.batch_size].tolist()


class Curve:
    """What a run measured along the way: {name: [[step, value], ...]} and events as plain sentences."""

    def __init__(self, values: dict[str, list[list[float | int]]] | None = None, events: list[str] | None = None):
        self.values = values or {}
        self.events = events or []

    def add(self, step: int, **values: float) -> None:
        for name, value in values.items():
            self.values.setdefault(name, []).append([step, float(value)])

    def last(self, name: str) -> float:
        return self.values[name][-1][1]

    def steps(self, name: str) -> np.ndarray:
        return np.array([step for step, _ in self.values.get(name, [])])

    def __getitem__(self, name: str) -> np.ndarray:
        return np.array([value for _, value in self.values.get(name, [])])


def step_seed(seed: int, step: int) -> int:
    """Seed of everything random in one step."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)


def choose_device(name: str = "auto") -> torch.device:
    """cuda, then mps, then cpu; or the one asked for."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def usable_precision(precision: str, device: torch.device) -> str:
    """bf16 only where the hardware computes in it; elsewhere it would be slower than float32."""
    if "bf16" not in precision:
        return precision
    fast = {"cuda": lambda: torch.cuda.is_bf16_supported(), "cpu": _cpu_has_bf16}.get(device.type, lambda: False)()
    return precision if fast else "32-true"


def _cpu_has_bf16() -> bool:
    try:
        return torch.cpu._is_avx512_bf16_supported()
    except AttributeError:  # a private name, the only one there is
        return False


def fit(
    module,
    dataset: Dataset,
    *,
    num_steps: int,
    batch_size: int,
    seed: int,
    run_dir: Path,
    label: str,
    device: torch.device,
    precision: str = "32-true",
    log_every: int = 20,
    at_steps: dict[int, list[Callable[[Any, int, Curve], None]]] | None = None,
    compiled: nn.Module | None = None,
) -> Curve:
    """Train `module` for `num_steps` steps in all, continuing from `run_dir`'s checkpoint if there is one.

    `module` is a LightningModule with `training_state()`, `load_training_state(state)` and a `training_step` that
    returns {"loss": ..., further scalars}. `dataset[i]` for i < 2 n, i >= n being mirror images; batches are fetched
    whole through `__getitems__`, and where the dataset is not `is_kept`, by other processes ahead of their steps.
    `at_steps[k]` are called with (module, k, curve) once step k is done. `compiled`, a part of `module`, is compiled
    after some steps, and what that cost and gained is printed, see `Compiling`.
    Returns the curve: losses every `log_every` steps and what the callbacks added.
    """
    curve, start = Curve(), 0
    state_file = Path(run_dir) / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, map_location="cpu", weights_only=True)
        module.load_training_state(state["module"])
        curve, start = Curve(state["curve"], state["events"]), state["step"]
    if start >= num_steps:
        return curve

    sampler = StepSampler(len(dataset) // 2, batch_size, seed=seed, start=start, stop=num_steps)
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=_num_readers(dataset), collate_fn=_as_it_is,
                        pin_memory=device.type == "cuda", persistent_workers=False)
    loop = _loop_callback(module, curve, state_file, start, num_steps, seed, label, log_every, at_steps or {})
    callbacks = [loop]
    if compiled is not None:
        from ldmlab.study.compiling import Compiling

        callbacks = [Compiling(compiled, label, num_steps - start, curve), loop]  # first: scoring is no part of a step
    _trainer(device, usable_precision(precision, device), callbacks, module).fit(module, loader)
    if loop.done < num_steps:  # Lightning turns some interrupts into a quiet return
        raise KeyboardInterrupt(f"{label}: stopped at step {loop.done} of {num_steps}; run the same again to continue")
    return curve


def _num_readers(dataset: Dataset) -> int:
    """Processes that read and decode: none for what is in memory, or mapped into it."""
    if getattr(dataset, "is_kept", True):
        return 0
    return min(MAX_READERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _as_it_is(batch):
    return batch


def _trainer(device: torch.device, precision: str, callbacks: Sequence[Any], module):
    import logging
    import warnings

    import pytorch_lightning as pl

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
    # One epoch is the whole run: a step count of our own, since Lightning's counts every optimizer.
    return pl.Trainer(
        accelerator=device.type if device.type != "cuda" else "gpu", devices=1, precision=precision, max_epochs=1,
        callbacks=list(callbacks), logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, gradient_clip_val=module.clip_norm if module.automatic_optimization else None,
        use_distributed_sampler=False,
    )


def _loop_callback(module, curve: Curve, state_file: Path, start: int, num_steps: int, seed: int, label: str,
                   log_every: int, at_steps: dict[int, list[Callable]]):
    import pytorch_lightning as pl

    class Loop(pl.Callback):
        """What happens around a step; `done` counts finished steps."""

        def __init__(self):
            self.done, self.saved_at, self.batch = start, time.monotonic(), None
            self.train_s = curve.values.get("train_s", [[0, 0.0]])[-1][1]

        def setup(self, trainer, pl_module, stage):
            self.bar = progress(num_steps, label, initial=start)

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            torch.manual_seed(step_seed(seed, self.done))
            self.batch, self.began = batch, time.perf_counter()

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.done += 1
            logged = self.done % log_every == 0 or self.done == num_steps or self.done in at_steps
            if trainer.strategy.root_device.type == "cpu" or logged or self.done % _CHECK_EVERY_ON_CUDA == 0:
                self._check(outputs, pl_module)
            self.train_s += time.perf_counter() - self.began  # after the check, in which the GPU's work is waited for
            if logged:
                values = {name: float(value) for name, value in outputs.items()}
                curve.add(self.done, **values, train_s=self.train_s)
                self.bar.update(self.done - self.bar.n, loss=values["loss"])
            for call in at_steps.get(self.done, ()):
                call(pl_module, self.done, curve)
            if self.done == num_steps or time.monotonic() - self.saved_at > CHECKPOINT_EVERY_S:
                self._check(outputs, pl_module)
                self.save(pl_module)

        def on_train_end(self, trainer, pl_module):
            self.bar.close()

        def on_exception(self, trainer, pl_module, exception):
            if isinstance(exception, KeyboardInterrupt) and self.done > start:
                self.save(pl_module)

        def save(self, pl_module):
            state = {"step": self.done, "module": pl_module.training_state(), "curve": curve.values,
                     "events": curve.events}
            atomic_write(state_file, lambda part: torch.save(state, part))
            self.saved_at = time.monotonic()

        def _check(self, outputs: dict[str, Tensor], pl_module):
            if torch.isfinite(outputs["loss"]).all():
                return
            path = state_file.parent / f"nonfinite_step{self.done}.pt"
            atomic_write(path, lambda part: torch.save(
                {"step": self.done, "batch": self.batch, "module": pl_module.training_state()}, part))
            raise NonFiniteLoss(
                f"{label}: loss is {float(outputs['loss'])} at step {self.done}. Batch and state are in {path}; the "
                f"last good checkpoint{' is kept' if state_file.exists() else ' does not exist yet'}. "
                "A lower learning rate, or 32-bit precision, is the usual cure.")

    return Loop()
