"""Records that belong together: the seeds of one f and regularizer, and what may stand in one figure with what."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np

from ldmlab.evaluation.protocol import SAMPLING, Protocol, refuse_differences
from ldmlab.study.config.budgets import is_smoke
from ldmlab.study.config.notebooks import SAMPLED_BY
from ldmlab.study.config.presets import study_spec
from ldmlab.study.config.specs import StudySpec
from ldmlab.study.records.record import Record, load_records


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
    named = SAMPLED_BY.get(metric, ())
    protocol = Protocol.of(record.metrics.get(metric, {}), record.protocol)
    # A record's own protocol is that of its samples.
    others = () if named else ("split", "quantization", "dtype")
    key = {
        "data": f"{data_name(record)} {record.inputs.get('data', '')[:8]}",
        "size": f"{record.params['size']} px",
        "tier": record.params["tier"],
        **protocol.compared(without=("data", "size", *SAMPLING, *others)),
    }
    return {name: str(value) for name, value in key.items()} | {n: str(record.protocol.get(n)) for n in named}


def load_comparable(record: Record, metric: str = "fd_lab", notebooks: Sequence[str] = ()) -> list[Record]:
    """This record, and all on disk that may stand in one figure with it: of its notebook, and of further `notebooks`.

    A run that several notebooks have recorded counts once.
    """
    key, found = comparison_key(record, metric), {record.file_name: record}
    for notebook in (record.notebook, *notebooks):
        for other in load_records(notebook):
            if comparison_key(other, metric) == key:
                found.setdefault(other.file_name, other)
    return list(found.values())


def study_records(data: str, tier: str | None = None, size: int = 0) -> tuple[list[Record], list[Record]]:
    """The largest group of records of the study that compare, and the others; tier None takes all but smoke."""
    records = [r for r in load_records("04_tradeoff")
               if data_name(r) == Path(data).stem and size in (0, r.params["size"])
               and (r.params["tier"] == tier if tier else not is_smoke(r.params["tier"]))]
    keys = [tuple(comparison_key(record).values()) for record in records]
    largest = Counter(keys).most_common(1)[0][0] if keys else None
    return ([r for r, key in zip(records, keys, strict=True) if key == largest],
            [r for r, key in zip(records, keys, strict=True) if key != largest])






def table(records: Sequence[Record]):
    """Records side by side, a pandas DataFrame with a row each."""
    import pandas as pd

    def value(record: Record, metric: str) -> float | None:
        return record.metrics.get(metric, {}).get("value")

    rows = [{
        "model": record.name, "reg": record.params["reg"], "seed": record.params["seed"],
        "latent": value(record, "latent_dims"), "steps": record.curves["fd_lab"][-1][0],
        "train [s]": value(record, "train_s"),
        "PSNR [dB]": value(record, "psnr"), "rFD-lab": value(record, "rfd_lab"), "FD-lab": value(record, "fd_lab"),
        "FD-referee": value(record, "fd_referee"), "images/s": throughput(record),
        "first stage flat": value(record, "first_stage_flat"),
    } for record in sorted(records, key=lambda r: (r.params["f"], r.params["reg"], r.params["seed"]))]
    return pd.DataFrame(rows).set_index("model").round(2)


def data_name(record: Record) -> str:
    """The data set without the folders that lead to it."""
    return Path(str(record.params["data"])).stem


def check_comparable(records: Sequence[Record], metric: str = "fd_lab") -> None:
    """ValueError that says how two of the records differ, or that there are none."""
    if not records:
        raise ValueError("a figure needs at least one record; results/ holds none that fit")
    refuse_differences([(record.file_name, comparison_key(record, metric)) for record in records])


def device_of(record: Record) -> str:
    """Where a record was timed: seconds compare on one device only."""
    env = record.env
    where = env.get("device_name") or env.get("device") or "an unknown device"
    threads = env.get("threads")
    return f"{where}, {threads} thread{'' if threads == 1 else 's'}" if env.get("device") == "cpu" else str(where)


def timed_alike(records: Sequence[Record]) -> tuple[str, list[Record]]:
    """The device that most records were timed on, and those records."""
    here = Counter(map(device_of, records)).most_common(1)[0][0]
    return here, [record for record in records if device_of(record) == here]


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


def spec_of(s: Series) -> StudySpec:
    """What a series was trained with."""
    p = s.runs[0].params
    return study_spec(s.f, s.reg, p["data"], p["tier"], p["seed"], p["size"])
