"""Effects estimated from runs, with intervals that join the errors over seeds and over pictures, and their power.

The variance of one run is that over seeds and that over its pictures. With two or three seeds a cell, its own estimate
is weak, and one pooled over unlike cells is wrong: so each is moderated by the other cells of its regularizer, as
variances of genes are by those of all genes [Smyth 2004, Eq. 1 to 5]. Deviation: the prior counts as one seed at most,
and no variance is taken to be smaller than the cell's own or than that over its pictures; simulations of this study's
sizes (`tests/claims/test_estimates.py`) need both to keep intervals from being too short where cells differ.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, sqrt

import numpy as np
from scipy import optimize, special

from ldmlab.claims.evidence import Cell, Evidence, Quantity, Value, cell_name

LEVEL = 0.95
MOST_PRIOR = 1.0  # degrees of freedom of the other cells' variance, at most
MOST_SEEDS = 1000
FAR = 30.0  # effects of more standard errors are found in any case


@dataclass(frozen=True)
class Term:
    """One cell's part of an effect: weight, variance of one run, its degrees of freedom, and number of runs.

    `fixed` is a variance that more runs do not average: that over pictures on which all of them are measured.
    """

    weight: float | int
    variance: float
    df: float | int
    num: int
    fixed: float = 0.0


@dataclass(frozen=True)
class Effect:
    """An effect as a weighted sum of means over seeds; `missing` gives the reasons if there is none."""

    value: float | int = 0.0
    terms: tuple[Term, ...] = ()
    most_df: float | int = inf
    basis: str = ""
    runs: str = ""
    missing: tuple[str, ...] = ()

    @property
    def error(self) -> float:
        """Standard error."""
        return sqrt(sum(t.weight**2 * (t.variance / t.num + t.fixed) for t in self.terms))

    @property
    def df(self) -> float:
        """Degrees of freedom of the error [Satterthwaite 1946], at most those that were measured."""
        parts = [(t.weight**2 * t.variance / t.num, t.df) for t in self.terms]
        measured = [(part, df) for part, df in parts if df < inf]
        # Moderated variances share what they are drawn to: together they have no more than most_df.
        spent = max(sum(part**2 / df for part, df in measured), sum(part for part, _ in measured) ** 2 / self.most_df)
        return self.error**4 / spent if spent else inf

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """The confidence interval at `level`."""
        reach = _quantile((1 + level) / 2, self.df) * self.error
        return self.value - reach, self.value + reach

    def p_above(self, threshold: float | int) -> float:
        """The level at which the interval just begins to lie above a threshold, in [0, 1]; below: `p_below`."""
        if self.error == 0:
            return 0.0 if self.value > threshold else 1.0
        return min(1.0, 2 * _below((threshold - self.value) / self.error, self.df))

    def p_below(self, threshold: float | int) -> float:
        """The level at which the interval just begins to lie below a threshold, in [0, 1]."""
        if self.error == 0:
            return 0.0 if self.value < threshold else 1.0
        return min(1.0, 2 * _below((self.value - threshold) / self.error, self.df))

    def power(self, beyond: float | int, level: float = LEVEL, seeds: int | None = None) -> float:
        """The probability that an interval lies above a threshold that the true effect exceeds by `beyond`.

        With the present runs, or with as many `seeds` of every cell, whose variances are taken as known today.
        """
        error, df = self.error, self.df
        if seeds:
            error = sqrt(sum(t.weight**2 * (t.variance / seeds + t.fixed) for t in self.terms))
            df = max(1, len(self.terms) * (seeds - 1))
        if error == 0 or beyond / error > FAR:
            return 1.0
        reach = _quantile((1 + level) / 2, df)
        if df == inf:
            return float(special.ndtr(beyond / error - reach))
        return 1 - float(special.nctdtr(df, beyond / error, reach))


def _quantile(p: float, df: float | int) -> float:
    """Quantile of Student's distribution, normal for infinite degrees of freedom."""
    return float(special.ndtri(p) if df == inf else special.stdtrit(df, p))


def _below(x: float, df: float | int) -> float:
    """Probability that a Student's variable is below x."""
    return float(special.ndtr(x) if df == inf else special.stdtr(df, x))


def moderated(spreads: Sequence[float], dfs: Sequence[int], pictures: Sequence[float], sizes: Sequence[float]
              ) -> tuple[list[float], float, float]:
    """Variances of one run by cell, degrees of freedom of their prior, and the prior's variance at size 1.

    `spreads` are variances over seeds with `dfs` above 0, `pictures` variances over pictures, `sizes` what spreads over
    seeds are proportional to. The prior of a cell is c * size**2 + pictures, with c such that all cells have the
    spread that it gives on average.
    """
    s, d, e, m = (np.array(part, float) for part in (spreads, dfs, pictures, sizes))

    def excess(c: float) -> float:
        return float((d * s / (c * m**2 + e)).sum() - d.sum())

    most = float((d * s / m**2).sum() / d.sum())
    if not e.any():
        c = most
    else:
        least = 1e-9 * most  # a cell without error over pictures would divide by 0
        c = float(optimize.brentq(excess, least, most)) if excess(least) > 0 > excess(most) else (
            0.0 if (e > 0).all() else most)
    prior = c * m**2 + e
    weight = 0.0
    if len(s) > 1:
        logs = np.log(np.maximum(s / prior, 1e-8)) - special.digamma(d / 2) + np.log(d / 2)
        extra = logs.var(ddof=1) - special.polygamma(1, d / 2).mean()
        weight = MOST_PRIOR if extra < special.polygamma(1, MOST_PRIOR / 2) else 2 * float(
            optimize.brentq(lambda y: special.polygamma(1, y) - extra, 1e-4, MOST_PRIOR / 2))
    joint = (weight * prior + d * s) / (weight + d)
    return np.maximum.reduce([joint, s, e]).tolist(), weight, c


def estimate_effect(evidence: Evidence, quantity: Quantity, weights: Mapping[Cell, float | int] | None = None,
                    without: int | None = None) -> Effect:
    """The weighted sum of a quantity's means over seeds; without weights, its mean in the cell with most runs.

    Cells whose values cannot differ have no error. A regularizer (f = 1 counts as KL, of whose sweep it is part) none
    of whose cells has two seeds has the assumed spread; twice that, where errors over pictures are unknown as well.
    """
    of = tuple(sorted(weights or ()))
    cells = evidence.cells(quantity, of, without)
    others = f", seed {without} left out" if without is not None else ""
    if weights is None:
        weights = {max(cells, key=lambda cell: len(cells[cell])): 1.0} if cells else {}
        if not weights:
            return Effect(missing=(f"no record of {quantity.name} ({quantity.needs}{others})",))
    if absent := [cell for cell in weights if cell not in cells]:
        names = ", ".join(map(cell_name, absent))
        return Effect(missing=(f"no record of {quantity.name} of {names} ({quantity.needs}{others})",))
    known = {cell: np.array([v.value for v in found]) for cell, found in cells.items()}
    terms: list[Term] = []
    notes: list[str] = []
    most_df = 0.0
    for group in {_group(cell) for cell in weights}:
        inside = {cell: w for cell, w in weights.items() if _group(cell) == group}
        made, df, note = _terms(quantity, inside, {c: v for c, v in cells.items() if _group(c) == group})
        terms, notes, most_df = terms + made, [*notes, note], most_df + df
    runs = ", ".join(f"{cell_name(cell)} x{len(known[cell])}" for cell in sorted(weights))
    return Effect(sum(w * float(known[cell].mean()) for cell, w in weights.items()), tuple(terms), most_df or inf,
                  "; ".join(sorted(set(notes))) + others, runs)


def _terms(quantity: Quantity, weights: Mapping[Cell, float | int], cells: Mapping[Cell, Sequence[Value]]
           ) -> tuple[list[Term], float, str]:
    """The terms of cells of one regularizer, the degrees of freedom of all its seeds, and the basis in words."""
    means = {cell: float(np.mean([v.value for v in found])) for cell, found in cells.items()}
    sizes = {cell: max(abs(mean), quantity.floor) if quantity.floor else 1.0 for cell, mean in means.items()}
    # On the same pictures for all seeds, errors over pictures are no part of the spread over seeds.
    pictures = {cell: _picture_variance(found) for cell, found in cells.items()}
    inside = {cell: 0.0 if quantity.shared else pictures[cell] or 0.0 for cell in cells}
    spreads = {cell: float(np.var([v.value for v in found], ddof=1)) for cell, found in cells.items()
               if len(found) > 1 and not quantity.exact(cell)}
    spreads = {cell: spread for cell, spread in spreads.items() if spread > 0}  # equal seeds measure no spread
    dfs = {cell: len(cells[cell]) - 1 for cell in spreads}
    total = float(sum(dfs.values()))
    num_prior, c = 0.0, quantity.spread**2
    variances: dict[Cell, float] = {}
    if spreads:
        found, num_prior, c = moderated(
            list(spreads.values()), list(dfs.values()), [inside[cell] for cell in spreads],
            [sizes[cell] for cell in spreads])
        variances = dict(zip(spreads, found, strict=True))
    terms, unknown = [], False
    for cell, weight in weights.items():
        if quantity.exact(cell):
            terms.append(Term(weight, 0.0, inf, len(cells[cell])))
            continue
        # Without errors over pictures, an assumed spread is doubled to make up for them.
        blind = not spreads and pictures[cell] is None
        unknown |= blind
        variance = variances.get(cell, c * sizes[cell] ** 2 * (4 if blind else 1) + inside[cell])
        df = min(total, num_prior + dfs[cell]) if cell in dfs else total if spreads else inf
        terms.append(Term(weight, variance, df, len(cells[cell]), (pictures[cell] or 0.0) * quantity.shared))
    if all(map(quantity.exact, weights)):
        return terms, 0.0, "exact"
    if spreads:
        return terms, total, f"seeds, {total:.0f} degrees of freedom"
    return terms, 0.0, (f"one seed: twice an assumed {quantity.spread_name}" if unknown else
                        f"one seed: error over pictures and an assumed {quantity.spread_name}")


def _group(cell: Cell) -> str:
    return "vq" if cell[1] == "vq" else "kl"


def _picture_variance(found: Sequence[Value]) -> float | None:
    """The mean variance over pictures of a cell's runs; None if one is unknown."""
    errors = [value.error for value in found]
    return None if any(error is None for error in errors) else float(np.mean([error**2 for error in errors if error]
                                                                              or [0.0]))


def joined(effects: Sequence[Effect]) -> Effect:
    """The mean of independent effects that are there; of none, what is missing."""
    there = [effect for effect in effects if not effect.missing]
    if not there:
        return Effect(missing=tuple(reason for effect in effects for reason in effect.missing))
    k = len(there)
    terms = tuple(Term(t.weight / k, t.variance, t.df, t.num, t.fixed) for effect in there for t in effect.terms)
    dfs = [effect.most_df for effect in there if effect.most_df < inf]
    return Effect(sum(effect.value for effect in there) / k, terms, sum(dfs) or inf,
                  "; ".join(dict.fromkeys(effect.basis for effect in there)),
                  "; ".join(effect.runs for effect in there))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for all of them, valid whatever their dependence [Holm 1979].

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values)
    steps = np.array(p_values)[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(1, np.maximum.accumulate(steps))
    return corrected.tolist()
