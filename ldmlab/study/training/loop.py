"""One training loop for both stages: exact resume, atomic checkpoints, a NaN sentinel, progress with time left.

Everything random in step k is a pure function of (seed, k): the batch through `StepSampler`, noise and dropout through
the seed set before the step. So a checkpoint holds weights, optimizers, EMA and the curve, and nothing else is needed
to continue exactly where an uninterrupted run would be.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler

from ldmlab.atomic import check_free_space
from ldmlab.damage import set_aside
from ldmlab.study.training.callbacks import build_trainer, loop_callback
from ldmlab.study.training.curve import Curve
from ldmlab.study.training.device import usable_precision
from ldmlab.study.training.interrupts import Interrupted, Interrupts
from ldmlab.study.training.slurm import on_warning, tasks_note
from ldmlab.study.training.state import load_state, state_files

MAX_READERS = 8  # processes that decode pictures of a set too large to be kept


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


def fit(
    module: Any,
    dataset: Any,
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
    whole through `__getitems__`, and where the dataset is not `is_decoded`, by other processes ahead of their steps.
    `at_steps[k]` are called with (module, k, curve) once step k is done. `compiled`, a part of `module`, is compiled
    after some steps, and what that cost and gained is printed, see `Compiling`.
    Returns the curve: losses every `log_every` steps and what the callbacks added.
    """
    curve, start, run_dir = Curve(), 0, Path(run_dir)
    if (state := load_state(run_dir)) is not None:
        _restore(module, state, run_dir)
        curve, start = Curve(state["curve"], state["events"]), state["step"]
    if start >= num_steps:
        return curve

    sampler = StepSampler(len(dataset) // 2, batch_size, seed=seed, start=start, stop=num_steps)
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=_num_readers(dataset), collate_fn=_as_it_is,
                        pin_memory=device.type == "cuda", persistent_workers=False)
    interrupts = Interrupts()
    loop = loop_callback(curve, run_dir, start, num_steps, seed, label, log_every, at_steps or {}, interrupts)
    callbacks = [loop]
    if compiled is not None:
        from ldmlab.study.training.compiling import Compiling  # imports Lightning

        callbacks = [Compiling(compiled, label, num_steps - start, curve), loop]  # first: scoring is no part of a step
    check_free_space(run_dir, _state_bytes(module), f"the training state of {label}")
    if (note := tasks_note()) is not None:
        print(note, flush=True)
    trainer = build_trainer(device, usable_precision(precision, device), callbacks, module)
    try:
        interrupts.listen()
        with on_warning(loop.save_soon):
            trainer.fit(module, loader)
    except Interrupted:
        pass
    finally:
        interrupts.restore()
    if loop.done < num_steps or interrupts.received is not None:
        interrupts.finish(f"{label}: stopped at step {loop.done} of {num_steps}; run the same again to continue")
    return curve


def _restore(module: Any, state: dict[str, Any], run_dir: Path) -> None:
    """Load the module's part of a state; one of another model, which does not fit, is set aside, and ValueError."""
    try:
        module.load_training_state(state["module"])
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        why = f"it does not fit this model: {str(error).splitlines()[0]}"
        for file in state_files(run_dir):
            set_aside(file, why)
        raise ValueError(f"the state of a training in {run_dir} was set aside, since {why}. Run the same again: it "
                         "trains from the beginning") from error


def _state_bytes(module: nn.Module) -> int:
    """Bytes of two states and of a third that is being written; of Adam's two averages and the weights' own."""
    return 3 * 4 * sum(value.numel() * value.element_size() for value in module.parameters() if value.requires_grad)


def _num_readers(dataset: Any) -> int:
    """Processes that read and decode: none for what is in memory, or mapped into it."""
    if getattr(dataset, "is_decoded", True):
        return 0
    return min(MAX_READERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _as_it_is(batch: Any) -> Any:
    return batch
