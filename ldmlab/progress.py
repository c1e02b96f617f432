"""The type of progress callbacks, below every package, since all of them take one."""

from collections.abc import Callable

Progress = Callable[[int, int], object]  # called with (done, total); total is 0 where it is not known


def report_progress(progress: Progress | None, done: int, total: int, every: int = 128) -> None:
    """Call `progress`, if there is one, after each `every`-th item and after the last."""
    if progress is not None and (done % every == 0 or done == total):
        progress(done, total)
