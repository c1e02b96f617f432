"""A run's record: parameters, metrics with their protocol, environment, inputs; one small JSON file a run."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldmlab import __version__
from ldmlab.atomic import atomic_write
from ldmlab.evaluation.distances import Score
from ldmlab.study.config.paths import PACKAGE, results_dir
from ldmlab.study.config.presets import study_spec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = 1
IN_NAME = ("f", "reg", "data", "size", "tier", "seed")


@dataclass
class Record:
    """What one run measured, and all that is needed to judge it. Curves are lists of [x, value]."""

    notebook: str
    name: str
    params: dict[str, Any]
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    curves: dict[str, list[list[float | int]]] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    env: dict[str, Any] = field(default_factory=dict)
    started: str = ""
    wall_s: float = 0.0
    schema: int = SCHEMA

    def value(self, metric: str) -> float:
        """A metric's number."""
        return self.metrics[metric]["value"]

    @property
    def file_name(self) -> str:
        """From the parameters that tell runs of one notebook apart; parallel runs never meet."""
        p, written = self.params, {"f": "f{}", "size": "{}px", "seed": "s{}"}
        parts = [written.get(name, "{}").format(p[name]) for name in IN_NAME if name in p]
        parts += [f"{name}-{p[name]}" for name in sorted(p) if name not in IN_NAME]
        return "_".join(parts) + ".json"

    def stored(self, folder: Path | None = None) -> "Record | None":
        """The record saved under this name, if it was measured with the same parameters on the same inputs."""
        try:
            other = Record(**json.loads(((folder or results_dir() / self.notebook) / self.file_name).read_text()))
        except (OSError, TypeError, ValueError):  # none, or none that can be read: measure again
            return None
        same = (other.schema, other.params, other.inputs) == (self.schema, self.params, self.inputs)
        return other if same and other.metrics else None

    def save(self, folder: Path | None = None) -> Path:
        """Write to results/<notebook>/, sorted, one metric a line, atomically."""
        path = (folder or results_dir() / self.notebook) / self.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, _dumps(asdict(self)).encode())
        return path


def load_records(notebook: str, folder: Path | None = None, **params: Any) -> list[Record]:
    """All records of a notebook whose parameters have the given values, in order of their names.

    A file that is no record of this schema is an error that names it.
    """
    folder = folder or results_dir() / notebook
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            record = Record(**json.loads(path.read_text()))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is no record of schema {SCHEMA}: {error}") from error
        if all(record.params.get(name) == value for name, value in params.items()):
            found.append(record)
    return found


def environment(device: Any) -> dict[str, Any]:
    """Versions, device and git state of this run."""
    import torch

    name = torch.cuda.get_device_name(device) if str(device).startswith("cuda") else _processor()
    return {
        "ldmlab": __version__, "python": platform.python_version(), "torch": torch.__version__,
        "platform": platform.system(), "device": str(device), "device_name": name,
        "threads": torch.get_num_threads(), "cpus": os.cpu_count(), "git": _git_state(),
    }


def _processor() -> str:
    """The processor's name and the instructions torch uses on it: seconds of two processors do not compare."""
    import torch

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{(names or [platform.processor() or 'cpu'])[0]}, {torch.backends.cpu.get_cpu_capability()}"


def _git_state() -> dict[str, Any]:
    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=PACKAGE, capture_output=True, text=True, check=True).stdout

    try:
        dirty = [line for line in git("status", "--porcelain", "--", ".", "../notebooks").splitlines() if line]
        return {"commit": git("rev-parse", "HEAD").strip(), "dirty": bool(dirty)}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _dumps(value: Any) -> str:
    """Sorted JSON, indented to depth two and no further, so that a diff shows a metric a line."""

    def dump(value: Any, depth: int) -> str:
        if isinstance(value, dict) and value and depth < 2:
            pad = "  " * (depth + 1)
            rows = [f"{pad}{json.dumps(key)}: {dump(item, depth + 1)}" for key, item in sorted(value.items())]
            return "{\n" + ",\n".join(rows) + "\n" + "  " * depth + "}"
        return json.dumps(value, sort_keys=True)

    return dump(value, 0) + "\n"


def as_metrics(scores: Mapping[str, Score]) -> dict[str, dict]:
    """Scores for a record; their protocol is the record's own."""
    return {name: {key: value for key, value in score.as_dict().items() if key != "protocol" and value != ""}
            for name, score in scores.items()}


def add_points(record: Record, scores: Mapping[str, Score], x: float | int) -> None:
    """One point of each named curve at `x`; the ends of its interval, if it has one, in `<name>_low` and `_high`."""
    for name, score in scores.items():
        ends = {"": score.value}
        if score.interval is not None:
            ends |= {"_low": score.interval.low, "_high": score.interval.high}
        for end, value in ends.items():
            record.curves.setdefault(name + end, []).append([x, float(f"{value:.6g}")])


def save_figure(fig: "Figure", name: str, data: str, tier: str, size: int) -> Path:
    """Write results/figures/<name>_<data>_<tier>.png, atomically; a size that is not the tier's own is in the name."""
    other = f"_{size}px" if size != study_spec(1, tier=tier).data.size else ""
    path = results_dir() / "figures" / f"{name}_{data}_{tier}{other}.png"
    return atomic_write(path, lambda part: fig.savefig(part, format="png"))
