"""The record of a run: parameters, metrics with their protocol, environment and inputs, in one small JSON file."""

import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldmlab import __version__
from ldmlab.atomic import atomic_write
from ldmlab.damage import DamagedFile, read_json, read_or_set_aside, reading, seal
from ldmlab.data.listing.names import fit_name
from ldmlab.evaluation.distances import Score
from ldmlab.study.config.budgets import BUDGETS
from ldmlab.study.config.paths import PACKAGE, results_dir
from ldmlab.study.config.presets import study_spec
from ldmlab.study.records.networks import networks_of, split_inputs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = 1
IN_NAME = ("f", "reg", "data", "size", "tier", "seed")
MAX_NAME = 200  # bytes; file systems allow 255, of which a file that is being written takes some more


@dataclass
class Record:
    """The measurements of one run with its parameters, protocol and environment. Curves are lists of [x, value]."""

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
    pictures: dict[str, Any] = field(default_factory=dict)  # the report on the data: what was found, used and left out

    def value(self, metric: str) -> float:
        """The value of a metric; KeyError if the record does not have it."""
        return self.metrics[metric]["value"]

    @property
    def file_name(self) -> str:
        """Name of the JSON file, from the parameters that distinguish runs of one notebook."""
        p, written = self.params, {"f": "f{}", "size": "{}px", "seed": "s{}"}
        parts = [written.get(name, "{}").format(p[name]) for name in IN_NAME if name in p]
        tier = BUDGETS.get(p.get("tier", ""))
        usual = {"perceptual"} if tier and p.get("perceptual") == tier.perceptual else set()  # it came later
        parts += [f"{name}-{p[name]}" for name in sorted(p) if name not in {*IN_NAME, *usual}]
        return fit_name("_".join(parts).replace("/", "_"), MAX_NAME) + ".json"

    def set_data(self, report: dict[str, Any], former_fingerprint: str) -> None:
        """Keep the report on the data; by its former fingerprint records of earlier versions are found."""
        former = {"former_fingerprint": former_fingerprint} if former_fingerprint != self.inputs.get("data") else {}
        self.pictures = report | former

    def of_our_data(self, other: "Record") -> "Record":
        """`other` with its data named as this record's, where an earlier version measured it on the same files."""
        former = self.pictures.get("former_fingerprint")
        if former is None or other.inputs.get("data") != former:
            return other
        params, inputs = other.params | {"data": self.params["data"]}, other.inputs | {"data": self.inputs["data"]}
        return replace(other, params=params, inputs=inputs, pictures=self.pictures)

    def _former_file_name(self) -> str | None:
        """The name under which an earlier version saved a record of these files; None where it is the same."""
        if "former_fingerprint" not in self.pictures:
            return None
        name = Path(str(self.pictures["name"])).stem
        return replace(self, params=self.params | {"data": name}).file_name

    def stored(self, folder: Path | None = None) -> "Record | None":
        """The record saved under this name, if it was measured with the same parameters, inputs and networks.

        A record that lacks one of the networks, or one of whose networks is unknown, is measured again; a damaged file
        is set aside.
        """
        folder = folder or results_dir() / self.notebook
        names = filter(None, (self.file_name, self._former_file_name()))
        read = (read_or_set_aside(folder / name, read_record) for name in names)
        other = next((record for record in read if record is not None), None)
        if other is None:
            return None
        other = self.of_our_data(other)
        (ours, inputs), (_, others) = (split_inputs(r.inputs, r.notebook) for r in (self, other))
        same = (other.schema, other.params, others) == (self.schema, self.params, inputs)
        return other if same and other.metrics and networks_of(other) == ours else None

    def save(self, folder: Path | None = None) -> Path:
        """Write the record to results/<notebook>/ or `folder`, atomically, sorted, one metric per line.

        ValueError, and nothing is written, for a metric whose value is not finite.
        """
        path = (folder or results_dir() / self.notebook) / self.file_name
        for name, metric in self.metrics.items():
            if isinstance(value := metric.get("value"), float) and not math.isfinite(value):
                raise ValueError(f"{path} is not written: its metric {name} is {value}")
        return atomic_write(path, seal(_dumps(asdict(self))))


def read_record(path: Path) -> Record:
    """The record in a file; DamagedFile, which names it, where there is none, FileNotFoundError for a missing file."""
    content = read_json(path)
    with reading(path):
        record = Record(**content)
        maps = (record.params, record.metrics, record.curves, record.protocol, record.inputs, record.env)
        if not all(isinstance(value, dict) for value in (*maps, *record.metrics.values())):
            raise DamagedFile(path, "its fields are not those of a record")
        return record


def load_records(notebook: str, folder: Path | None = None, **params: Any) -> list[Record]:
    """All records of a notebook whose parameters have the given values, sorted by file name; [] if there are none.

    They are read from results/<notebook>/ or `folder`. A JSON file that is no record, or a damaged one, is passed over
    and named.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Record("04_tradeoff", "LDM-8", {"f": 8}, metrics={"psnr": {"value": 24.0}}).save(Path(folder))
    ...     [record.value("psnr") for record in load_records("04_tradeoff", Path(folder), f=8)]
    [24.0]
    """
    folder = folder or results_dir() / notebook
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            record = read_record(path)
        except (DamagedFile, FileNotFoundError) as error:
            print(f"passed over, since it is no record of schema {SCHEMA}: {error}", flush=True)
            continue
        if all(record.params.get(name) == value for name, value in params.items()):
            found.append(record)
    return found


def environment(device: Any) -> dict[str, Any]:
    """Versions, device, threads and git state, as stored in records."""
    import torch

    name = torch.cuda.get_device_name(device) if str(device).startswith("cuda") else _processor()
    return {
        "ldmlab": __version__, "python": platform.python_version(), "torch": torch.__version__,
        "platform": platform.system(), "device": str(device), "device_name": name,
        "threads": torch.get_num_threads(), "cpus": os.cpu_count(), "git": _git_state(),
    }


def _processor() -> str:
    """Name of the processor and torch's instruction set on it, since times are comparable on one processor only."""
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
    """The current time in UTC, ISO 8601, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _dumps(value: Any) -> str:
    """Sorted JSON, indented to depth two, so that a diff shows one metric per line."""

    def dump(value: Any, depth: int) -> str:
        if isinstance(value, dict) and value and depth < 2:
            pad = "  " * (depth + 1)
            rows = [f"{pad}{json.dumps(key)}: {dump(item, depth + 1)}" for key, item in sorted(value.items())]
            return "{\n" + ",\n".join(rows) + "\n" + "  " * depth + "}"
        return json.dumps(value, sort_keys=True)

    return dump(value, 0) + "\n"


def as_metrics(scores: Mapping[str, Score]) -> dict[str, dict]:
    """Scores as the metrics of a record, without their protocol, which the record has."""
    return {name: {key: value for key, value in score.as_dict().items() if key != "protocol" and value != ""}
            for name, score in scores.items()}


def add_points(record: Record, scores: Mapping[str, Score], x: float | int) -> None:
    """Append a point at `x` to each named curve, and the ends of its interval to curves `<name>_low` and `_high`."""
    for name, score in scores.items():
        ends = {"": score.value}
        if score.interval is not None:
            ends |= {"_low": score.interval.low, "_high": score.interval.high}
        for end, value in ends.items():
            record.curves.setdefault(name + end, []).append([x, float(f"{value:.6g}")])


def save_figure(fig: "Figure", name: str, data: str, tier: str, size: int) -> Path:
    """Write results/figures/<name>_<data>_<tier>.png atomically; a size other than the tier's is part of the name."""
    other = f"_{size}px" if size != study_spec(1, tier=tier).data.size else ""
    path = results_dir() / "figures" / f"{fit_name(f'{name}_{data}_{tier}{other}'.replace('/', '_'), MAX_NAME)}.png"
    return atomic_write(path, lambda part: fig.savefig(part, format="png"))
