"""Keep a busy neighbour from freezing a run: torch's threads stop spinning while others need the processors.

OpenMP's threads wait for one another at the end of every parallel loop. GNU's libgomp spins there for milliseconds,
which is fastest on an idle machine. Where another process takes one of the processors, all threads spin until the one
that was displaced has its turn again, hundreds of times a step: sampling fell to a tenth and less.

In training the number of threads stays as it is. Gradients are sums over a batch that are split by threads, so another
number changes their last bits, and a resumed training would no longer equal an uninterrupted one. What changes is how
threads wait: while there are more OpenMP threads than processors, libgomp spins 100 times instead of 300 000 and then
sleeps (its manual, GOMP_SPINCOUNT). `_IdleTeam` brings their number above that of the processors.

Sampling has no such sums, and a batch of SAME_BITS_FROM pictures or more is the same to the bit with any number of
threads: beside a busy neighbour it takes one.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

INTERVAL_S = 0.5
TAKEN, FREE = 0.3, 0.1  # of a processor that torch's threads need: more, or less, is used by others
CALM = 4  # intervals in a row with less than FREE, before threads spin again
SAME_BITS_FROM = 16  # pictures: in smaller batches torch's convolutions are split by threads in another way
DECIDED = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")

_lock = threading.Lock()
_watch: "ProcessorWatch | None" = None


def share_processors(environ: Mapping[str, str] = os.environ) -> None:
    """Watch, from the first call on, what other processes use, and let torch's threads wait accordingly.

    Results do not change by it. Nothing is watched where the user has decided: `LDMLAB_THREADS=n` sets the number of
    torch's threads, and the variables in DECIDED are OpenMP's own; nor where there is no /proc/stat (macOS, Windows),
    or torch has one thread. Raises ValueError for an LDMLAB_THREADS that is no number from 1 on.
    """
    import torch

    global _watch
    if wanted := environ.get("LDMLAB_THREADS"):
        torch.set_num_threads(_number(wanted))
    elif not any(environ.get(name) for name in DECIDED):
        with _lock:
            if _watch is None and torch.get_num_threads() > 1 and busy_seconds() is not None:
                _watch = ProcessorWatch(torch.get_num_threads())
                _watch.start()


@contextmanager
def one_thread_if_busy(batch_size: int = SAME_BITS_FROM) -> Iterator[None]:
    """One thread for torch in this context, if other processes take the processors of the others when it begins.

    Smaller batches than SAME_BITS_FROM keep the threads that they have.
    """
    watch = _watch
    with watch.one_thread_if_busy() if watch is not None and batch_size >= SAME_BITS_FROM else nullcontext():
        yield


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"LDMLAB_THREADS is a number of threads from 1 on; got {text!r}")
    return int(text)


class ProcessorWatch(threading.Thread):
    """Looks every `interval` seconds whether other processes take processors that `num_threads` threads need."""

    def __init__(self, num_threads: int, interval: float = INTERVAL_S):
        super().__init__(daemon=True, name="ldmlab-processors")
        self._neighbours, self._idle = Neighbours(num_threads, num_processors()), _IdleTeam(num_threads)
        self._interval, self._end = interval, threading.Event()

    def run(self) -> None:
        """Until `stop` is called, or the process ends."""
        while not self._end.wait(self._interval):
            seconds = busy_seconds()
            if seconds is not None:
                self._idle.set(self._neighbours.update(time.monotonic(), seconds, time.process_time()))
        self._idle.set(False)

    @contextmanager
    def one_thread_if_busy(self) -> Iterator[None]:
        """As the function of this name."""
        import torch

        num_threads = torch.get_num_threads()
        if self._neighbours.are_busy:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(num_threads)

    def stop(self) -> None:
        """End it; threads spin again."""
        self._end.set()
        self.join()


class Neighbours:
    """Whether other processes take processors that `num_threads` threads would need, of `num_processors` there are."""

    def __init__(self, num_threads: int, num_processors: float):
        self.spare = num_processors - num_threads  # less than 0 where a container's limit is below the threads
        self.are_busy = False
        self._last: tuple[float, float, float] | None = None
        self._calm = 0

    def update(self, now: float, busy: float, own: float) -> bool:
        """`busy` and `own`: processor seconds spent by all processes and by this one, up to `now`."""
        if self._last is not None and now > self._last[0]:
            then, busy_then, own_then = self._last
            missing = ((busy - busy_then) - (own - own_then)) / (now - then) - self.spare
            self._calm = self._calm + 1 if missing < FREE else 0
            if missing > TAKEN:
                self.are_busy = True
            elif self._calm >= CALM:
                self.are_busy = False
        self._last = (now, busy, own)
        return self.are_busy


class _IdleTeam:
    """OpenMP threads that do nothing: a thread that has run one parallel loop keeps its team of them until it ends."""

    def __init__(self, num_threads: int, run: Callable[[int], None] | None = None):
        self._num_threads, self._run = num_threads, run or _parallel_loop
        self._thread: threading.Thread | None = None
        self._end = threading.Event()

    def set(self, present: bool) -> None:
        """Have them from now on, or not."""
        if present and self._thread is None:
            self._end.clear()
            self._thread = threading.Thread(target=self._stay, daemon=True, name="ldmlab-idle-team")
            self._thread.start()
        elif not present and self._thread is not None:
            self._end.set()
            self._thread.join()
            self._thread = None

    def _stay(self) -> None:
        self._run(self._num_threads)
        self._end.wait()


def _parallel_loop(num_threads: int) -> None:
    """A sum in place, large enough for torch to split it over all threads."""
    import torch

    torch.zeros(num_threads << 16).add_(1)


# What the system says


def busy_seconds(stat: Path = Path("/proc/stat")) -> float | None:
    """Processor seconds spent so far on the processors that this process may use; None where the system has no such."""
    try:
        lines = stat.read_text().splitlines()
        allowed = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        # user, nice, system, irq, softirq, steal; without idle and iowait; guests are part of user
        rows = [line.split() for line in lines if line.split(" ", 1)[0] in allowed]
        ticks = sum(int(row[i]) for row in rows for i in (1, 2, 3, 6, 7, 8))
    except (OSError, AttributeError, ValueError, IndexError):
        return None
    return ticks / os.sysconf("SC_CLK_TCK") if rows else None


def num_processors(cpu_max: Path = Path("/sys/fs/cgroup/cpu.max")) -> float:
    """Processors that this process may use: its affinity, or a container's limit if that is less."""
    allowed = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    try:
        quota, period = cpu_max.read_text().split()
        return allowed if quota == "max" else min(allowed, int(quota) / int(period))
    except (OSError, ValueError):
        return allowed
