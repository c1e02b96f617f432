"""Training inside a job of SLURM: a run is one process, and SIGUSR1, SLURM's warning before a limit, saves."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


def tasks_note(environ: Mapping[str, str] = os.environ) -> str | None:
    """A sentence for a job of several tasks, of which a run uses one; None elsewhere."""
    tasks = environ.get("SLURM_NTASKS", "1")
    if not tasks.isdecimal() or int(tasks) <= 1:
        return None
    return (f"SLURM_NTASKS = {tasks}: a run is one process on one device, so {tasks} tasks would train the same model "
            f"{tasks} times and not faster. Ask for --ntasks=1, and for processors with --cpus-per-task")


@contextmanager
def on_warning(save_soon: Callable[[], object]) -> Iterator[None]:
    """Call `save_soon` at SIGUSR1, which `sbatch --signal=USR1@60` sends before the limit of time, and go on.

    Without it the signal would end the process. A handler that is already there is kept; other threads than the main
    one, and Windows, have no handlers.
    """
    number = getattr(signal, "SIGUSR1", None)
    in_main = threading.current_thread() is threading.main_thread()
    if number is None or not in_main or signal.getsignal(number) is not signal.SIG_DFL:
        yield
        return

    def handle(signum: int, frame: Any) -> None:
        save_soon()

    signal.signal(number, handle)
    try:
        yield
    finally:
        signal.signal(number, signal.SIG_DFL)
