"""Group records by seed, and decide which records are comparable."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

import numpy as np

from ldmlab.evaluation.protocol import SAMPLING, Protocol, refuse_differences
from ldmlab.study.config.budgets import is_smoke
from ldmlab.study.config.data_names import labels_of
from ldmlab.study.config.notebooks import SAMPLED_BY
from ldmlab.study.config.presets import study_spec
from ldmlab.study.config.specs import StudySpec
from ldmlab.study.records.networks import networks_behind
from ldmlab.study.records.record import Record, load_records

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Series:
    """The runs of one f and regularizer, one per seed."""

    f: int
    reg: str
    runs: list[Record]

    @property
    def flat(self) -> bool:
        """Whether all first stages had stopped improving; True without one (f = 1)."""
        return all(run.metrics.get("first_stage_flat", {}).get("value") is not False for run in self.runs)

    @property
    def name(self) -> str:
        """Label of the series: LDM-8, LDM-8 VQ, or LDM-16† if its first stage was still improving."""
        return f"LDM-{self.f}{' VQ' if self.reg == 'vq' else ''}{'' if self.flat else '†'}"

    def values(self, metric: str) -> np.ndarray:
        """The finite values of a metric over the seeds, (n,)."""
        found = [run.metrics[metric]["value"] for run in self.runs if metric in run.metrics]
        return np.array([value for value in found if value is not None and isfinite(value)])

    def curve(self, name: str) -> tuple[np.ndarray, ...]:
        """(x, mean, minimum, maximum) of a curve over the seeds, at the x that all of them share."""
        curves = [{x: value for x, value in run.curves.get(name, ())} for run in self.runs]
        steps = sorted(set.intersection(*map(set, curves)))
        table = np.array([[curve[step] for curve in curves] for step in steps]).reshape(len(steps), -1)
        return np.array(steps), table.mean(1), table.min(1), table.max(1)


def grouped(records: Sequence[Record]) -> list[Series]:
    """Group records by f and regularizer, in this order."""
    keys = sorted({(record.params["f"], record.params["reg"]) for record in records})
    return [Series(*key, [r for r in records if (r.params["f"], r.params["reg"]) == key]) for key in keys]


def comparison_key(record: Record, metric: str = "fd_lab") -> dict[str, str]:
    """What two records must have in common for their values of a metric to be comparable, as {name: text}."""
    named = SAMPLED_BY.get(metric, ())
    protocol = Protocol.of(record.metrics.get(metric, {}), record.protocol)
    # A record's own protocol is that of its samples.
    others = () if named else ("split", "quantization", "dtype")
    key = {
        "data": f"{data_name(record)} {record.inputs.get('data', '')[:8]}",
        "size": f"{record.params['size']} px",
        "tier": record.params["tier"],
        "perceptual loss": record.params.get("perceptual"),
        **protocol.compared(without=("data", "size", *SAMPLING, *others)),
    }
    key |= {name: record.protocol.get(name) for name in named}
    return {name: str(value) for name, value in key.items()} | {"networks": networks_behind(record, metric)}


def load_comparable(record: Record, metric: str = "fd_lab", notebooks: Sequence[str] = ()) -> list[Record]:
    """This record and all comparable ones on disk, of its notebook and of further `notebooks`.

    A run recorded by several notebooks is included once.
    """
    key, found = comparison_key(record, metric), {record.file_name: record}
    for notebook in (record.notebook, *notebooks):
        for other in map(record.of_our_data, load_records(notebook)):
            if comparison_key(other, metric) == key:
                found.setdefault(other.file_name, other)
    return list(found.values())


def study_records(data: str, tier: str | None = None, size: int = 0) -> tuple[list[Record], list[Record]]:
    """The largest group of comparable records of 04_tradeoff, and the other records.

    Records are of one data set and of `tier` (None: all but smoke) and `size` in pixels (0: any).
    """
    names = labels_of(data)
    records = [r for r in load_records("04_tradeoff")
               if data_name(r) in names and size in (0, r.params["size"])
               and (r.params["tier"] == tier if tier else not is_smoke(r.params["tier"]))]
    keys = [tuple(comparison_key(record).values()) for record in records]
    largest = Counter(keys).most_common(1)[0][0] if keys else None
    return ([r for r, key in zip(records, keys, strict=True) if key == largest],
            [r for r, key in zip(records, keys, strict=True) if key != largest])






def table(records: Sequence[Record]) -> "pd.DataFrame":
    """Main metrics of the records of 04_tradeoff, one row per record."""
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
    """Name of the record's data set: that of files ends in their fingerprint, unless an earlier version wrote it."""
    return str(record.params["data"])


def check_comparable(records: Sequence[Record], metric: str = "fd_lab") -> None:
    """Raise a ValueError if there are no records, or if two of them are not comparable, saying how they differ."""
    if not records:
        raise ValueError("a figure needs at least one record; results/ has none with these parameters")
    refuse_differences([(record.file_name, comparison_key(record, metric)) for record in records])


def device_of(record: Record) -> str:
    """Name of the device that a record was timed on; times are comparable on one device only."""
    env = record.env
    where = env.get("device_name") or env.get("device") or "an unknown device"
    threads = env.get("threads")
    return f"{where}, {threads} thread{'' if threads == 1 else 's'}" if env.get("device") == "cpu" else str(where)


def timed_alike(records: Sequence[Record]) -> tuple[str, list[Record]]:
    """The device on which most records were timed, and the records timed on it."""
    here = Counter(map(device_of, records)).most_common(1)[0][0]
    return here, [record for record in records if device_of(record) == here]


def throughput(record: Record) -> float | None:
    """Images per second at the number of DDIM steps of the record's scored samples; None if it was not timed."""
    rates = {steps: rate for steps, rate in record.curves.get("images_per_s", ())}
    return rates.get(record.protocol["num_steps"]) if "num_steps" in record.protocol else None


def format_range(numbers: Sequence[int]) -> str:
    """Format the range of sorted numbers as "3" or "1 to 3"."""
    return str(numbers[0]) if numbers[0] == numbers[-1] else f"{numbers[0]} to {numbers[-1]}"


def commits(records: Sequence[Record]) -> str:
    """The git commits that records were made at, and whether any had local changes."""
    states = [record.env.get("git") or {} for record in records]
    names = sorted({(state.get("commit") or "unknown")[:7] for state in states})
    return ", ".join(names) + (" with local changes" if any(state.get("dirty") for state in states) else "")


def spec_of(s: Series) -> StudySpec:
    """The spec that a series was trained with."""
    p = s.runs[0].params
    return study_spec(s.f, s.reg, p["data"], p["tier"], p["seed"], p["size"], perceptual=p.get("perceptual", ""))
