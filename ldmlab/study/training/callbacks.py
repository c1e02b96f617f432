"""What happens around a training step: seeds, checks, checkpoints, the curve."""

import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from ldmlab.atomic import atomic_write
from ldmlab.checkpoints.files import nonfinite
from ldmlab.study.training.curve import Curve
from ldmlab.study.training.interrupts import Interrupted, Interrupts
from ldmlab.study.training.progress import progress
from ldmlab.study.training.state import save_state, state_files

if TYPE_CHECKING:
    import pytorch_lightning as pl

CHECKPOINT_EVERY_S = 20.0
_CHECK_EVERY_ON_CUDA = 25  # reading a loss makes the host wait for the GPU
_NO_FOLDER = os.path.join(os.devnull, "lightning")  # can never exist


class NonFiniteLoss(RuntimeError):
    """A loss, weights or their averages became NaN or infinite; says where, and where batch and state were saved."""


def step_seed(seed: int, step: int) -> int:
    """Seed of everything random in one step."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)


def build_trainer(device: torch.device, precision: Any, callbacks: Sequence[Any], module: Any) -> "pl.Trainer":
    """A Lightning trainer that runs its callbacks and a training loop of one epoch, and nothing else.

    `precision` is one of Lightning's names, such as "32-true"; the gradient's norm is clipped to `module.clip_norm`.
    """
    import logging
    import warnings

    import pytorch_lightning as pl
    from pytorch_lightning.plugins.environments import LightningEnvironment

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
    # One epoch is the whole run: a step count of our own, since Lightning's counts every optimizer.
    # One process, wherever it runs: in SLURM's environment Lightning refuses some numbers of tasks, and at SIGUSR1 it
    # saves to its root folder and requeues the job. It also loads any hpc_ckpt_N.ckpt in that folder, by default the
    # working directory, as soon as SLURM's variables are set: hence a folder that can hold none.
    return pl.Trainer(
        accelerator=device.type if device.type != "cuda" else "gpu", devices=1, precision=precision, max_epochs=1,
        callbacks=list(callbacks), logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, gradient_clip_val=module.clip_norm if module.automatic_optimization else None,
        use_distributed_sampler=False, plugins=[LightningEnvironment()], default_root_dir=_NO_FOLDER,
    )


def loop_callback(
    curve: Curve, run_dir: Path, start: int, num_steps: int, seed: int, label: str, log_every: int,
    at_steps: dict[int, list[Callable]], interrupts: Interrupts,
) -> Any:
    """A Lightning callback that seeds, checks and logs each step, and saves the state to `run_dir`.

    Its `done` counts finished steps. NonFiniteLoss where a loss is NaN or infinite, or anything in a state that would
    be saved. After a signal it saves the state once the step is done, and raises Interrupted. Arguments are those of
    `fit`.
    """
    import pytorch_lightning as pl

    class Loop(pl.Callback):
        """Seeds, checks, logs and saves around each step; `done` counts finished steps."""

        def __init__(self) -> None:
            self.done, self.saved_at = start, time.monotonic()
            self.batch: Any = None
            self.train_s = curve.values.get("train_s", [[0, 0.0]])[-1][1]

        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            self.bar = progress(num_steps, label, initial=start)

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            interrupts.listen()  # again, since Lightning has installed a handler of its own
            interrupts.in_step = True

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            torch.manual_seed(step_seed(seed, self.done))
            self.batch, self.began = batch, time.perf_counter()

        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            self.done += 1
            logged = self.done % log_every == 0 or self.done == num_steps or self.done in at_steps
            if trainer.strategy.root_device.type == "cpu" or logged or self.done % _CHECK_EVERY_ON_CUDA == 0:
                self._check(outputs, pl_module)
            self.train_s += time.perf_counter() - self.began  # after the check, in which the GPU's work is waited for
            if logged:
                values = {name: float(value) for name, value in outputs.items()}
                curve.add(self.done, **values, train_s=self.train_s)
                self.bar.update(self.done - self.bar.n, loss=values["loss"])
            if self.done in at_steps:
                self._measure(pl_module)
            stops = interrupts.received is not None
            if self.done == num_steps or stops or time.monotonic() - self.saved_at > CHECKPOINT_EVERY_S:
                self._check(outputs, pl_module)
                self.save(pl_module)
            if stops and self.done < num_steps:
                raise Interrupted

        def _measure(self, pl_module: Any) -> None:
            """What is measured at this step. A signal stops it at once; the run then continues before this step."""
            if interrupts.received is not None:
                raise Interrupted
            interrupts.in_step = False
            for call in at_steps[self.done]:
                call(pl_module, self.done, curve)
            interrupts.in_step = True

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            self.bar.close()

        def save_soon(self) -> None:
            """Save after the step that runs."""
            self.saved_at = -math.inf

        def save(self, pl_module: Any) -> None:
            state = pl_module.training_state()
            if bad := nonfinite(state):
                self._refuse(f"{bad} is not finite after step {self.done}", pl_module)
            save_state(run_dir, {"step": self.done, "module": state, "curve": curve.values, "events": curve.events})
            self.saved_at = time.monotonic()

        def _check(self, outputs: dict[str, Tensor], pl_module: Any) -> None:
            if not torch.isfinite(outputs["loss"]).all():
                self._refuse(f"loss is {float(outputs['loss'])} at step {self.done}", pl_module)

        def _refuse(self, what: str, pl_module: Any) -> NoReturn:
            path = run_dir / f"nonfinite_step{self.done}.pt"
            atomic_write(path, lambda part: torch.save(
                {"step": self.done, "batch": self.batch, "module": pl_module.training_state()}, part))
            kept = "the last good state, from which the same run continues, is kept" if state_files(run_dir) else \
                "no state was saved before it"
            raise NonFiniteLoss(f"{label}: {what}. Batch and state are in {path}; {kept}. Cures: another `seed`, or a "
                                "lower `lr` of this model in ldmlab/study/config/presets.py")

    return Loop()
