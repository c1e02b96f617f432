"""The bookkeeping of a GPU day: each part in a process of its own, with a limit; what a cut part had done is kept.

A part is called as `run(context, save)` and calls `save(result)` with all it has so far whenever something is done.
"""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldmlab.atomic import atomic_write

TOTAL_S = 540.0  # for everything, the page included
PAGE_S = 12.0
Save = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Part:
    """A part by number, with its stated seconds; `flexible` ones also get what those before them have left over."""

    number: int
    title: str
    module: str  # of this package, with a function `run`
    function: str
    seconds: float
    flexible: bool = False


@dataclass(frozen=True)
class Context:
    """What a part is told: whether this is a rehearsal on a CPU, its scratch folder, and when it will be cut."""

    rehearse: bool
    scratch: Path
    deadline: float  # of time.time()

    @property
    def left(self) -> float:
        return self.deadline - time.time()


PARTS = (
    Part(1, "environment and parity", "parity", "run", 75),
    Part(2, "the suite's GPU tests", "suite", "run_tests", 65),
    Part(3, "throughput and share of peak", "throughput", "run", 240, flexible=True),
    Part(4, "resume after SIGKILL", "project", "run_resume", 60),
    Part(5, "tier gpu", "project", "run_tier", 62),
    Part(6, "several GPUs", "suite", "run_devices", 15),
)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Atomically, sorted, with five digits: timings have fewer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, (json.dumps(rounded(content), indent=1, sort_keys=True) + "\n").encode())


def rounded(value: Any) -> Any:
    """Floats to five digits, None for those that JSON cannot write."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list | tuple) else value


def attempt(do: Callable[[], Any]) -> Any:
    """Its result, or {"error": ...}: one failure must not end a part."""
    try:
        return do()
    except Exception as error:
        message = " ".join(str(error).split())
        return {"error": f"{type(error).__name__}: {message[:400]}"}


def limit_of(part: Part, left_for: Sequence[Part], elapsed: float, total: float = TOTAL_S) -> float:
    """Seconds that `part` gets, with `left_for` after it: its stated ones, or for flexible ones all that is spare."""
    spare = total - PAGE_S - elapsed - sum(other.seconds for other in left_for)
    return max(min(spare, total), 0.0) if part.flexible else max(min(part.seconds, spare), 0.0)


def run_parts(
    parts: Sequence[Part], result: dict[str, Any], out: Path, command: Callable[[Part, Path, float], list[str]],
    total: float = TOTAL_S,
) -> dict[str, Any]:
    """Run parts one after the other, each by `command(part, file, deadline)`, into `result["parts"]`; saved after each.

    A part that overruns its limit, or dies, leaves what it had saved, and says so under "cut".
    """
    began = time.monotonic()
    for i, part in enumerate(parts):
        limit = limit_of(part, parts[i + 1 :], time.monotonic() - began, total)
        print(f"part {part.number}, {part.title}: at most {limit:.0f} s", flush=True)
        entry = run_part(part, out, command, limit)
        result["parts"][str(part.number)] = {"title": part.title, "limit_s": limit, **entry}
        result["wall_s"] = time.monotonic() - began
        write_json(out / "gpu_day.json", result)
        print(f"part {part.number}: {entry['wall_s']:.0f} s{', ' + entry['cut'] if entry['cut'] else ''}", flush=True)
    return result


def run_part(part: Part, out: Path, command: Callable[[Part, Path, float], list[str]], limit: float) -> dict[str, Any]:
    """{"cut", "wall_s", "result"} of one part, in a session of its own so that its children end with it."""
    file = out / "scratch" / f"part{part.number}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    log, began, cut = out / "scratch" / f"part{part.number}.log", time.monotonic(), ""
    if limit < 1:
        return {"cut": "not started: no time was left", "wall_s": 0.0, "result": {}}
    with log.open("wb") as stream:
        process = subprocess.Popen(command(part, file, time.time() + limit), stdout=stream, stderr=subprocess.STDOUT,
                                   start_new_session=True)
        try:
            if process.wait(timeout=limit):
                cut = f"ended with exit status {process.returncode}"
        except subprocess.TimeoutExpired:
            cut = f"cut after {limit:.0f} s"
        finally:
            end_session(process)
    wall = time.monotonic() - began
    done = json.loads(file.read_text()) if file.exists() else {}
    if cut:
        done["last_output"] = log.read_text(errors="replace")[-1500:]
    return {"cut": cut, "wall_s": wall, "result": done}


def end_session(process: subprocess.Popen) -> None:
    """Kill the process and all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def this_part(part: Part, script: Path, rehearse: bool, file: Path, deadline: float) -> list[str]:
    """The command of one part: the script itself, told which part to run."""
    return [sys.executable, str(script), "--one", str(part.number), "--into", str(file), "--deadline", str(deadline),
            *["--rehearse"] * rehearse]
