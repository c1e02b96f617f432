"""Records that belong together: the seeds of one f and regularizer, and what may stand in one figure with what."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np

from ldmlab.study.records import Record, load_records
from ldmlab.study.style import LINES, MARKS, colour


@dataclass
class Series:
    """The runs of one f and regularizer: its seeds."""

    f: int
    reg: str
    runs: list[Record]

    @property
    def flat(self) -> bool:
        """Whether every first stage had stopped improving; the identity has nothing to improve."""
        return all(run.metrics.get("first_stage_flat", {}).get("value") is not False for run in self.runs)

    @property
    def name(self) -> str:
        """LDM-8, LDM-8 VQ, LDM-16† if its first stage was still improving."""
        return f"LDM-{self.f}{' VQ' if self.reg == 'vq' else ''}{'' if self.flat else '†'}"

    @property
    def look(self) -> dict:
        """Colour, line and marker; hollow where the first stage was still improving."""
        tint = colour(self.f)
        return {"color": tint, "ls": LINES[self.reg], "marker": MARKS[self.reg], "mec": tint,
                "mfc": tint if self.flat else "white", "mew": 1.3}

    def values(self, metric: str) -> np.ndarray:
        """A metric of every seed that has it as a finite number."""
        found = [run.metrics[metric]["value"] for run in self.runs if metric in run.metrics]
        return np.array([value for value in found if value is not None and isfinite(value)])

    def curve(self, name: str) -> tuple[np.ndarray, ...]:
        """x, mean, least and greatest value over the seeds, at the steps that all of them share."""
        curves = [dict(run.curves.get(name, ())) for run in self.runs]
        steps = sorted(set.intersection(*map(set, curves)))
        table = np.array([[curve[step] for curve in curves] for step in steps]).reshape(len(steps), -1)
        return np.array(steps), table.mean(1), table.min(1), table.max(1)


def grouped(records: Sequence[Record]) -> list[Series]:
    """Records by f and regularizer."""
    keys = sorted({(record.params["f"], record.params["reg"]) for record in records})
    return [Series(*key, [r for r in records if (r.params["f"], r.params["reg"]) == key]) for key in keys]


def comparison_key(record: Record, metric: str = "fd_lab") -> dict[str, str]:
    """What two records must share for their values of a metric to stand in one figure, in words."""
    score = record.metrics.get(metric, {})
    key = {
        "data": f"{data_name(record)} {record.inputs.get('data', '')[:8]}",
        "size": f"{record.params['size']} px",
        "tier": record.params["tier"],
        "pictures scored": f"{score.get('n_fake')} against {score.get('n_real')}",
        "extractor": f"{score.get('extractor')} {score.get('weights_hash', '')[:8]}",
    }
    if metric == "fd_lab":
        key |= {name: str(record.protocol.get(name)) for name in ("sampler", "num_steps", "eta", "guidance_scale")}
    return key


def load_comparable(record: Record, metric: str = "fd_lab") -> list[Record]:
    """All records of the same notebook on disk that may stand in one figure with this one, and this one."""
    key = comparison_key(record, metric)
    others = [r for r in load_records(record.notebook) if comparison_key(r, metric) == key]
    return [r for r in others if r.file_name != record.file_name] + [record]


def data_name(record: Record) -> str:
    """The data set without the folders that lead to it."""
    return Path(str(record.params["data"])).stem


def check_comparable(records: Sequence[Record], metric: str = "fd_lab") -> None:
    """ValueError that says how two of the records differ, or that there are none."""
    if not records:
        raise ValueError("a figure needs at least one record; results/ holds none that fit")
    first = comparison_key(records[0], metric)
    for record in records[1:]:
        differs = [f"{name}: {first[name]} / {value}" for name, value in comparison_key(record, metric).items()
                   if first[name] != value]
        if differs:
            raise ValueError(f"{records[0].file_name} and {record.file_name} cannot stand in one figure; they differ "
                             f"in {'; '.join(differs)}")


def device_of(record: Record) -> str:
    """Where a record was timed: seconds compare on one device only."""
    env = record.env
    where = env.get("device_name") or env.get("device") or "an unknown device"
    return f"{where}, {env.get('threads')} threads" if str(env.get("device")) == "cpu" else str(where)


def throughput(record: Record) -> float | None:
    """Images per second at the number of DDIM steps with which this record's samples were scored."""
    return dict(record.curves.get("images_per_s", ())).get(record.protocol.get("num_steps"))


def ranged(numbers: Sequence[int]) -> str:
    """Sorted numbers as "3" or "1 to 3"."""
    return str(numbers[0]) if numbers[0] == numbers[-1] else f"{numbers[0]} to {numbers[-1]}"


def commits(records: Sequence[Record]) -> str:
    """The commits that records were made at, and whether any had changes on top."""
    states = [record.env.get("git") or {} for record in records]
    names = sorted({(state.get("commit") or "unknown")[:7] for state in states})
    return ", ".join(names) + (" with local changes" if any(state.get("dirty") for state in states) else "")
