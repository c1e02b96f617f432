"""Which records are evidence for a quantity: made alike, on the same pictures, and read at the same point of training.

A `Quantity` reads one number of a record. `Evidence.cells` gives its values by f and regularizer, one per seed. A clock
(equal steps, seconds or FLOPs) is limited by the models that a claim is about, and by no other.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import Literal, NamedTuple, TypeGuard

from ldmlab.evaluation.protocol import SAMPLING
from ldmlab.study.config.budgets import evidence_tiers
from ldmlab.study.config.data_names import labels_of
from ldmlab.study.config.notebooks import NOTEBOOKS
from ldmlab.study.config.presets import study_spec
from ldmlab.study.records.compare import comparison_key, data_name, device_of
from ldmlab.study.records.record import Record, load_records

Cell = tuple[int, str]  # f and regularizer
ClockName = Literal["steps", "seconds", "FLOPs"]
SCORE = "kd_effnet"  # records without it were made for the scores of earlier versions


@dataclass(frozen=True)
class Clock:
    """A point of training that all models of a claim have reached, and have been scored at or around."""

    name: ClockName
    value: float | int
    at_end: bool  # whether it is the end of training of all of them

    def __str__(self) -> str:
        return f"{self.value:.3g} FLOP" if self.name == "FLOPs" else f"{self.value:.0f} {self.name}"


Read = Callable[[Record, Clock | None], float | int | None]


@dataclass(frozen=True)
class Quantity:
    """One number of a record, None where the record does not have it."""

    name: str
    notebook: str
    metric: str  # of which records must have comparable protocols
    needs: str  # what a record must have, in words
    read: Read
    error: Read = lambda record, clock: None  # standard error over pictures
    ratio: bool = False  # whether the number is a natural logarithm, so that a difference is a factor
    unit: str = ""
    spread: float = 0.1  # standard deviation over seeds, assumed until there are two
    floor: float = 0.0  # above 0 the spread is a share of the value, or of the floor for values below it
    timed: bool = False  # whether records are comparable on one device only
    shared: bool = False  # whether all seeds are measured on the same pictures, so that more seeds do not average them
    exact: Callable[[Cell], bool] = lambda cell: False  # whether it cannot differ between seeds
    clock: ClockName | None = None

    @property
    def spread_name(self) -> str:
        """The assumed spread over seeds, in words."""
        return f"spread of {self.spread:.0%}" if self.ratio or self.floor else (
            f"spread of {self.spread:g} {self.unit}".rstrip())


class Value(NamedTuple):
    """A quantity of one run, with its standard error over pictures where that is known."""

    record: Record
    value: float
    error: float | None


class Evidence:
    """All records of one data set and tier that were made with the same pictures; by default of all on disk.

    Of several versions or sizes of the pictures, that with most records is taken; `left_out` counts the others.
    ValueError for tiers that give no evidence, as smoke.
    """

    def __init__(self, data: str, tier: str, records: Sequence[Record] | None = None):
        if tier not in evidence_tiers():
            raise ValueError(f"evidence comes from tier {', '.join(evidence_tiers())}; got {tier!r}")
        self.data, self.tier, names = Path(data).stem, tier, labels_of(data)
        if records is None:
            records = [record for row in NOTEBOOKS.values() if row.evidence for record in load_records(row.name)]
        groups: dict[tuple, list[Record]] = {}
        for record in records:
            if data_name(record) in names and record.params["tier"] == tier:
                groups.setdefault((record.inputs.get("data"), record.params["size"]), []).append(record)
        self.records = max(groups.values(), key=lambda group: (len(group), max(r.started for r in group)), default=[])
        self.left_out = sum(map(len, groups.values())) - len(self.records)
        self.cells = lru_cache(maxsize=None)(self._cells)
        self._groups = lru_cache(maxsize=None)(self._read)

    def _cells(self, quantity: Quantity, of: tuple[Cell, ...] = (), without: int | None = None
               ) -> dict[Cell, list[Value]]:
        """Values of a quantity under one protocol, by f and regularizer, one per seed.

        Of several protocols, that which most of the cells `of` a claim have; then today's scores before those of
        earlier versions; then that of most records. `without` is a seed that is left out.
        """
        clock = self.clock(quantity.clock, of, without) if quantity.clock else None
        groups = self._groups(quantity, clock, without) if clock or not quantity.clock else {}
        found: dict[Cell, dict[int, Value]] = {}

        def order(key: tuple) -> tuple:
            cells = {cell_of(value.record) for value in groups[key]}
            return len(cells & set(of)), key[-1], len(groups[key]), max(v.record.started for v in groups[key])

        for value in groups[max(groups, key=order)] if groups else []:
            found.setdefault(cell_of(value.record), {}).setdefault(value.record.params["seed"], value)
        return {cell: list(seeds.values()) for cell, seeds in sorted(found.items())}

    def _read(self, quantity: Quantity, clock: Clock | None, without: int | None) -> dict[tuple, list[Value]]:
        """All values of a quantity, by what must be equal for them to be compared."""
        groups: dict[tuple, list[Value]] = {}
        for record in self.records:
            if record.notebook != quantity.notebook or record.params["seed"] == without:
                continue
            value = quantity.read(record, clock)
            if is_number(value):
                error = quantity.error(record, clock)
                key = (*comparison_key(record, quantity.metric).values(), *_sampling(record, quantity.metric),
                       device_of(record) if quantity.timed else "", is_new(record))
                groups.setdefault(key, []).append(Value(record, float(value), error if is_number(error) else None))
        return groups

    def clock(self, name: ClockName, of: tuple[Cell, ...], without: int | None = None) -> Clock | None:
        """The last point that all runs of the cells `of` reach; None if there is none, or a cell has no such run."""
        swept = self.cells(SWEPT[name], of, without)
        runs = [value.record for cell in of for value in swept.get(cell, ())]
        if not runs or any(cell not in swept for cell in of):
            return None
        ends = [max(steps_of(record)) for record in runs]
        if name == "steps":
            shared = set.intersection(*(set(steps_of(record)) for record in runs))
            value: float | int | None = max(shared, default=None)
        else:
            value = min(costs(record, name)[end] for record, end in zip(runs, ends, strict=True))
        if value is None:
            return None
        passed = [costs(record, name)[end] for record, end in zip(runs, ends, strict=True)]
        return Clock(name, value, at_end=len(set(passed)) == 1)

    def lengths(self, of: tuple[Cell, ...], without: int | None = None) -> str:
        """The training steps of the cells, in words where they differ; "" where they are equal or unknown."""
        swept = self.cells(SWEPT["steps"], of, without)
        steps = {cell: max(max(steps_of(value.record)) for value in swept[cell]) for cell in of if cell in swept}
        if len(set(steps.values())) < 2:
            return ""
        return "unequal steps: " + ", ".join(f"{cell_name(cell)} {num}" for cell, num in steps.items())


def _scored(name: ClockName) -> Read:
    def read(record: Record, _: Clock | None) -> float | None:
        steps = steps_of(record)
        return 1.0 if steps and all(step in costs(record, name) for step in steps) else None
    return read


SWEPT: dict[ClockName, Quantity] = {
    name: Quantity("scored runs", "04_tradeoff", SCORE, f"curve {SCORE}", _scored(name), timed=name == "seconds")
    for name in ("steps", "seconds", "FLOPs")}


def _sampling(record: Record, metric: str) -> tuple:
    """How the pictures of a metric were sampled: as it says itself, else as its record says."""
    own = record.metrics.get(metric, {}).get("protocol") or {}
    return tuple(str(own.get(name, record.protocol.get(name))) for name in SAMPLING)


def steps_of(record: Record) -> list[int]:
    """The training steps at which a run was scored (eta = 0), in order."""
    return sorted(int(step) for step, _ in record.curves.get(SCORE, ()))


def costs(record: Record, name: ClockName) -> dict[int, float | int]:
    """Training cost by step: the steps themselves, seconds with those of the first stage, or FLOPs.

    FLOPs are those of the denoiser's forward passes, one per picture of a batch; backward passes, which cost about
    twice as much at every f, the training of the first stage, and encoding are left out.
    """
    if name == "seconds":
        first = record.metrics.get("first_stage_train_s", {}).get("value")
        if first is None and record.params["f"] > 1:
            return {}
        return {int(step): seconds + (first or 0) for step, seconds in record.curves.get("train_s", ())}
    if name == "steps":
        return {step: step for step in steps_of(record)}
    flops, p = record.metrics.get("flops", {}).get("value"), record.params
    if not is_number(flops):
        return {}
    batch = study_spec(p["f"], p["reg"], p["data"], p["tier"], p["seed"], p["size"]).diffusion.batch_size
    return {step: flops * batch * step for step in steps_of(record)}


def is_new(record: Record) -> bool:
    """Whether a record holds scores of today's network; those of earlier versions are never joined with them."""
    return any(SCORE in name for name in (*record.metrics, *record.curves))


def cell_of(record: Record) -> Cell:
    """f and regularizer of a record."""
    return record.params["f"], record.params.get("reg", "kl")


def cell_name(cell: Cell) -> str:
    """Name of a cell, e.g. LDM-8 or LDM-8 VQ."""
    return f"LDM-{cell[0]}{' VQ' if cell[1] == 'vq' else ''}"


def is_number(value: object) -> TypeGuard[float | int]:
    """Whether a value is a finite number; bool and None are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)


def at(record: Record, curve: str, x: float | int | None) -> float | int | None:
    """The value of a curve at exactly x, None if it has none."""
    points: Mapping[float | int, float | int] = {key: value for key, value in record.curves.get(curve, ())}
    return None if x is None else points.get(x)
