"""Progress displays with the time left: a bar in a notebook front end, plain lines in logs."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

_LINE_S, _LINE_PART, _LATEST_S = 10.0, 0.1, 60.0  # one line per tenth of the work, 10 s to 60 s after the last


def progress(total: int, label: str, *, initial: int = 0, unit: str = "steps", mode: str = "auto") -> "Progress":
    """A progress display for `total` units of work, of which `initial` are done.

    `mode` is "widget", "lines", "silent", or "auto": a widget in JupyterLab, VS Code and Colab, nothing under pytest,
    lines elsewhere (papermill, scripts, cluster logs). Use it as a context manager, or call `close()`. ValueError for
    another mode.
    """
    modes = {"widget": _Widget, "lines": _Lines, "silent": Progress}
    if mode == "auto":
        mode = "silent" if "PYTEST_CURRENT_TEST" in os.environ else "widget" if has_front_end() else "lines"
    if mode not in modes:
        raise ValueError(f"mode {mode!r} is not one of auto, {', '.join(modes)}")
    return modes[mode](total, label, initial, unit)


def has_front_end() -> bool:
    """Whether this is a kernel of an interactive front end, as opposed to papermill or a script."""
    if "google.colab" in sys.modules:
        return True
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is None or not hasattr(shell, "kernel"):
        return False
    return "JPY_SESSION_NAME" in os.environ or "__vsc_ipynb_file__" in shell.user_ns


class Progress:
    """Base class, which counts and displays nothing. `n` is the number of units done."""

    def __init__(self, total: int, label: str, initial: int, unit: str):
        self.total, self.label, self.initial, self.unit = total, label, initial, unit
        self.n = initial

    def update(self, n: int = 1, **values: float | int) -> None:
        """Count `n` more units as done; `values`, such as the loss, are displayed."""
        self.n += n

    def counter(self) -> Callable[[int], None]:
        """A callback `done`: units done of a part of the work that begins now."""
        start = self.n
        return lambda done: self.update(start + done - self.n)

    def close(self) -> None:
        """Close the display."""

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class _Lines(Progress):
    """`first stage KL-f8   300/1500 steps   20 %  2.1 steps/s  9 min 30 s left  loss 0.123`"""

    def __init__(self, total: int, label: str, initial: int, unit: str):
        super().__init__(total, label, initial, unit)
        self._began = self._shown_at = time.monotonic()
        self._shown_n, self._closed = initial, False
        self._values: dict[str, float | int] = {}

    def update(self, n: int = 1, **values: float | int) -> None:
        super().update(n)
        self._values.update(values)
        now = time.monotonic()
        since, part = now - self._shown_at, (self.n - self._shown_n) / max(self.total, 1)
        if since >= _LATEST_S or (since >= _LINE_S and part >= _LINE_PART and self.n < self.total):
            self._show(now)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            if self.n > self.initial:  # no line if nothing was done
                self._show(time.monotonic())

    def _show(self, now: float) -> None:
        width = len(str(self.total))
        done, elapsed = self.n - self.initial, now - self._began
        parts = [f"{self.label}  {self.n:>{width}}/{self.total} {self.unit}  "
                 f"{100 * self.n // max(self.total, 1):>3} %"]
        if done > 0 and elapsed > 0:
            parts.append(f"{done / elapsed:.3g} {self.unit}/s")
        if self._closed:
            parts.append(f"{duration(elapsed)}, {'done' if self.n >= self.total else 'stopped'}")
        elif done > 0:
            parts.append(f"{duration(elapsed / done * (self.total - self.n))} left")
        parts += _shown(self._values)
        print("  ".join(parts), flush=True)
        self._shown_at, self._shown_n = now, self.n


class _Widget(Progress):
    """tqdm's bar for notebooks."""

    def __init__(self, total: int, label: str, initial: int, unit: str):
        from tqdm.notebook import tqdm

        super().__init__(total, label, initial, unit)
        self._bar = tqdm(total=total, desc=label, initial=initial, unit=f" {unit}")

    def update(self, n: int = 1, **values: float | int) -> None:
        super().update(n)
        if values:
            self._bar.set_postfix_str("  ".join(_shown(values)), refresh=False)
        self._bar.update(n)

    def close(self) -> None:
        self._bar.close()


@contextmanager
def progress_callback(label: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Context manager of a callback (done, total), whose first call opens a display; without calls none is shown."""
    with ExitStack() as stack:
        bars: list[Progress] = []

        def report(done: int, total: int) -> None:
            if not bars:
                bars.append(stack.enter_context(progress(total, label, unit=unit)))
            bars[0].update(done - bars[0].n)

        yield report


def duration(seconds: float | int) -> str:
    """Format seconds with at most two units: 42 s, 9 min 30 s, 3 h 5 min."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def _shown(values: dict[str, float | int]) -> list[str]:
    return [f"{name} {value:.3g}" for name, value in values.items()]
