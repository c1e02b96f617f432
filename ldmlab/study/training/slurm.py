"""Inside a job of SLURM: a run is one process, and SIGUSR1, SLURM's warning before a limit, saves and ends nothing."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_save_soon: Callable[[], object] | None = None  # of the training that runs


def tasks_note(environ: Mapping[str, str] = os.environ) -> str | None:
    """A sentence for a job of several tasks, of which a run uses one; None elsewhere."""
    tasks = environ.get("SLURM_NTASKS", "1")
    if not tasks.isdecimal() or int(tasks) <= 1:
        return None
    return (f"SLURM_NTASKS = {tasks}: a run is one process on one device, so {tasks} tasks would train the same model "
            f"{tasks} times and not faster. Ask for --ntasks=1, and for processors with --cpus-per-task")


def heed_warnings(environ: Mapping[str, str] = os.environ) -> None:
    """In a job of SLURM, from now on survive SIGUSR1, which by default ends a process; see `on_warning`."""
    if "SLURM_JOB_ID" in environ:
        _install()


@contextmanager
def on_warning(save_soon: Callable[[], object]) -> Iterator[None]:
    """Call `save_soon` at SIGUSR1, which `sbatch --signal=USR1@60` sends before the limit of time, and go on.

    A handler of others is kept; other threads than the main one, and Windows, have no handlers.
    """
    global _save_soon
    installed, before = _install(), _save_soon
    _save_soon = save_soon
    try:
        yield
    finally:
        _save_soon = before
        if installed:
            signal.signal(signal.SIGUSR1, signal.SIG_DFL)


def _install() -> bool:
    """Handle SIGUSR1 where nobody does; whether that was so."""
    if not hasattr(signal, "SIGUSR1") or threading.current_thread() is not threading.main_thread():
        return False
    if signal.getsignal(signal.SIGUSR1) is not signal.SIG_DFL:
        return False
    signal.signal(signal.SIGUSR1, _handle)
    return True


def _handle(signum: int, frame: Any) -> None:
    if _save_soon is not None:
        _save_soon()
