"""Effects estimated from records, with confidence intervals, as evidence for or against claims of the paper.

A `Quantity` reads one number from a record, and `estimate_effect` returns a weighted sum of its means by f and
regularizer as an `Effect` with its interval. Ratios are handled as logarithms, whose spread over runs is about the
same at all f.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf, isfinite, sqrt
from pathlib import Path
from typing import TypeGuard

import numpy as np
from scipy import stats

from ldmlab.study.config.budgets import evidence_tiers
from ldmlab.study.config.data_names import labels_of
from ldmlab.study.config.notebooks import NOTEBOOKS
from ldmlab.study.records.compare import comparison_key, data_name, device_of
from ldmlab.study.records.record import Record, load_records

LEVEL = 0.95
FAR = 4.0  # half-width of the interval of a single run without standard error, in assumed spreads

Cell = tuple[int, str]  # f and regularizer


@dataclass(frozen=True)
class Quantity:
    """One number of a record, None where the record does not have it."""

    name: str
    notebook: str
    metric: str  # of which records must have comparable protocols
    needs: str  # what a record must have, in words
    read: Callable[[Record, "Evidence"], float | int | None]
    error: Callable[[Record], float | None] = lambda record: None  # standard error over samples
    ratio: bool = True  # whether the number is a natural logarithm, so that a difference is a factor
    unit: str = ""
    spread: float = 0.1  # standard deviation over seeds, assumed until there are two; 0 for exact numbers
    timed: bool = False  # whether records are comparable on one device only

    @property
    def spread_name(self) -> str:
        """The assumed spread over seeds, in words."""
        return f"spread of {self.spread:.0%}" if self.ratio else f"spread of {self.spread:g} {self.unit}".rstrip()


@dataclass(frozen=True)
class Effect:
    """An effect with its standard error and degrees of freedom; `missing` gives the reasons if there is none."""

    value: float = 0.0
    error: float = 0.0
    df: float = inf
    reach: float | None = None  # half-width in standard errors, if it does not follow from the level
    basis: str = ""
    runs: str = ""
    missing: tuple[str, ...] = ()

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """The confidence interval at `level`."""
        reach = self.reach if self.reach is not None else float(stats.t.ppf((1 + level) / 2, self.df))
        return self.value - reach * self.error, self.value + reach * self.error


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
            records = [record for row in NOTEBOOKS.values() if row.evidence
                       for record in load_records(row.name)]
        groups: dict[tuple, list[Record]] = {}
        for record in records:
            if data_name(record) in names and record.params["tier"] == tier:
                groups.setdefault((record.inputs.get("data"), record.params["size"]), []).append(record)
        self.records = _largest(groups, lambda record: record.started)
        self.left_out = sum(map(len, groups.values())) - len(self.records)
        self._known: dict[Quantity, dict[Cell, list[tuple[Record, float]]]] = {}

    def cells(self, quantity: Quantity) -> dict[Cell, list[tuple[Record, float]]]:
        """Records that have a quantity under one protocol, with its values, by f and regularizer; one per seed."""
        if quantity not in self._known:
            self._known[quantity] = self._read(quantity)
        return self._known[quantity]

    def _read(self, quantity: Quantity) -> dict[Cell, list[tuple[Record, float]]]:
        groups: dict[tuple, list[tuple[Record, float]]] = {}
        for record in self.records:
            value = quantity.read(record, self) if record.notebook == quantity.notebook else None
            if not is_number(value):
                continue
            key = (*comparison_key(record, quantity.metric).values(), device_of(record) if quantity.timed else "")
            groups.setdefault(key, []).append((record, float(value)))
        found: dict[Cell, dict[int, tuple[Record, float]]] = {}
        for record, value in _largest(groups, lambda pair: pair[0].started):
            cell = (record.params["f"], record.params.get("reg", "kl"))
            found.setdefault(cell, {}).setdefault(record.params["seed"], (record, value))
        return {cell: list(seeds.values()) for cell, seeds in sorted(found.items())}

    @cached_property
    def shared_step(self) -> int | None:
        """The last training step at which the samples of every model were scored; None if there is none."""
        steps = [{int(step) for step, _ in record.curves["fd_lab"]} for record in self._swept]
        return max(set.intersection(*steps), default=None) if steps else None

    @cached_property
    def shared_seconds(self) -> float | int | None:
        """Seconds of training that every model has reached; None if a record lacks its times."""
        ends = [record.curves["train_s"][-1][1] for record in self._swept if record.curves.get("train_s")]
        return min(ends) if ends and len(ends) == len(self._swept) else None

    @cached_property
    def _swept(self) -> list[Record]:
        scored = Quantity("", "04_tradeoff", "fd_lab", "", lambda r, _: len(r.curves.get("fd_lab", ())) or None)
        return [record for runs in self.cells(scored).values() for record, _ in runs]


def _largest(groups: Mapping[tuple, list], started: Callable) -> list:
    """The group with most members; of several, that started last."""
    return max(groups.values(), key=lambda group: (len(group), max(map(started, group))), default=[])


def is_number(value: object) -> TypeGuard[float | int]:
    """Whether a value is a finite number; bool and None are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)


def cell_name(cell: Cell) -> str:
    """Name of a cell, e.g. LDM-8 or LDM-8 VQ."""
    return f"LDM-{cell[0]}{' VQ' if cell[1] == 'vq' else ''}"


def estimate_effect(evidence: Evidence, quantity: Quantity, weights: Mapping[Cell, float] | None = None) -> Effect:
    """The weighted sum of a quantity's means over seeds; without weights, its mean in the cell with most runs.

    If any cell has several seeds, they give a pooled standard deviation over runs and a t interval. Otherwise the
    error over samples is combined with the assumed spread, and without one the interval is FAR assumed spreads to
    either side.
    """
    cells = evidence.cells(quantity)
    if weights is None:
        weights = {max(cells, key=lambda cell: len(cells[cell])): 1.0} if cells else {}
        if not weights:
            return Effect(missing=(f"no record of {quantity.name} ({quantity.needs})",))
    if absent := [cell for cell in weights if cell not in cells]:
        names = ", ".join(map(cell_name, absent))
        return Effect(missing=(f"no record of {quantity.name} of {names} ({quantity.needs})",))
    values = {cell: np.array([value for _, value in cells[cell]]) for cell in cells}
    effect = sum(w * values[cell].mean() for cell, w in weights.items())
    size = sqrt(sum(w**2 / len(values[cell]) for cell, w in weights.items()))
    runs = ", ".join(f"{cell_name(cell)} x{len(values[cell])}" for cell in sorted(weights))
    df = sum(len(v) - 1 for v in values.values())
    if df:
        spread = sqrt(sum(np.square(v - v.mean()).sum() for v in values.values()) / df)
        return Effect(float(effect), spread * size, float(df), None, f"seeds, {df} degrees of freedom", runs)
    if quantity.spread == 0:
        return Effect(float(effect), 0.0, inf, None, "exact", runs)
    errors = {cell: quantity.error(cells[cell][0][0]) for cell in weights}
    known = {cell: error for cell, error in errors.items() if error is not None}
    if len(known) == len(errors):
        variance = sum(w**2 * (known[cell] ** 2 + quantity.spread**2) for cell, w in weights.items())
        basis = f"one seed: error over samples and an assumed {quantity.spread_name}"
        return Effect(float(effect), sqrt(variance), inf, None, basis, runs)
    basis = f"one seed: {FAR:g} times an assumed {quantity.spread_name}"
    return Effect(float(effect), quantity.spread * size, inf, FAR, basis, runs)

