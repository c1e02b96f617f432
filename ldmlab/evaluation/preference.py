"""Statistics of a user study: preference shares, strengths and sample sizes [LDM v2, App. E.3.6].

The design is the two-alternative forced choice: two pictures, one answer, no ties. Answers of one rater, and on one
picture, are correlated, so an interval for independent answers is too narrow. The intervals here generalise to other
raters and other pictures.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize
from scipy.sparse.csgraph import connected_components
from scipy.special import expit
from scipy.stats import binom, binomtest, norm
from scipy.stats import t as student

from ldmlab.evaluation.distances import Interval

Number = float | int


class Vote(NamedTuple):
    """One answer: `rater` preferred `winner` to `loser` on picture `item`."""

    rater: str
    winner: str
    loser: str
    item: str


@dataclass(frozen=True)
class Preference:
    """How often `first` was preferred to `second`: a share with its interval, and (wins, answers) of each rater."""

    first: str
    second: str
    wins: int
    n: int
    share: float
    interval: Interval
    design_effect: float  # variance over that of independent answers; 1 where raters and pictures are all alike
    by_rater: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Strengths:
    """Bradley-Terry: a is preferred to b with probability 1 / (1 + exp(strength b - strength a)); their mean is 0."""

    methods: tuple[str, ...]
    values: tuple[float, ...]  # in logits
    intervals: tuple[Interval, ...]
    n: int

    def probability(self, first: str, second: str) -> float:
        """Probability of preferring `first` to `second`."""
        return float(expit(self.values[self.methods.index(first)] - self.values[self.methods.index(second)]))


# --- Shares -----------------------------------------------------------------------------------------------------------


def share_interval(
    wins: int, n: int, level: float = 0.95, method: Literal["wilson", "exact"] = "wilson"
) -> Interval:
    """Interval of a share from `wins` of `n` independent answers; "exact" is Clopper-Pearson."""
    if not 0 <= wins <= n or n < 1:
        raise ValueError(f"need 0 <= wins <= n and one answer or more, got {wins} wins of {n} answers")
    _check_level(level)
    low, high = binomtest(wins, n).proportion_ci(level, method)
    return Interval(float(low), float(high), level, {"wilson": "Wilson", "exact": "Clopper-Pearson"}[method])


def preference(votes: Sequence[Vote], first: str, second: str, level: float = 0.95) -> Preference:
    """The share of `first` among the votes between two methods, pooled over raters.

    The interval is Wilson's for the effective number of independent answers: the variance is that of sums over raters
    plus that of sums over pictures minus that of single answers, with Student's t for their number. With a single rater
    or picture it does not generalise to others, which its `method` states. Raises ValueError where the two were never
    compared.
    """
    _check_level(level)
    mine = [vote for vote in votes if {vote.winner, vote.loser} == {first, second}]
    if first == second or not mine:
        raise ValueError(f"no vote between {first!r} and {second!r}")
    won = np.array([vote.winner == first for vote in mine], float)
    n, wins = len(mine), int(won.sum())
    spread, dof, over = _clustered((won - won.mean())[:, None], mine)
    alone = float(((won - won.mean()) ** 2).sum())
    effect = max(1.0, float(spread[0, 0]) / alone) if alone else 1.0
    z = float(norm.ppf((1 + level) / 2))
    worth = n / effect * (z / student.ppf((1 + level) / 2, dof)) ** 2
    low, high = _wilson(wins / n, worth, z)
    raters = sorted({vote.rater for vote in mine})
    by_rater = {r: (sum(v.winner == first for v in mine if v.rater == r), sum(v.rater == r for v in mine))
                for r in raters}
    return Preference(first, second, wins, n, wins / n, Interval(low, high, level, f"Wilson, {over}"), effect, by_rater)


def _wilson(share: float, n: float, z: float) -> tuple[float, float]:
    """Wilson's interval for a number of answers that need not be whole."""
    middle, reach = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (middle - reach) / (1 + z * z / n)), min(1.0, (middle + reach) / (1 + z * z / n))


def _clustered(
    scores: Float[np.ndarray, "n k"], votes: Sequence[Vote]
) -> tuple[Float[np.ndarray, "k k"], float, str]:
    """Covariance of the sum of scores, clustered by rater and picture; its degrees of freedom; a description."""
    total, counts, alone = scores.T @ scores, [], []
    result = total.copy()
    for kind, name in (("rater", "raters"), ("item", "pictures")):
        groups, index = np.unique([getattr(vote, kind) for vote in votes], return_inverse=True)
        num = len(groups)
        if num < 2:
            alone.append(f"one {name.removesuffix('s')}")
            continue
        sums = np.zeros((num, scores.shape[1]))
        np.add.at(sums, index, scores)
        result += sums.T @ sums * num / (num - 1) - total  # the covariance within groups
        counts.append((num, name))
    over = " and ".join([f"{num} {name}" for num, name in counts] + alone)
    return result, float(min((num for num, _ in counts), default=math.inf)) - 1, f"over {over}"


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")


# --- Strengths --------------------------------------------------------------------------------------------------------


def bradley_terry(votes: Sequence[Vote], level: float = 0.95) -> Strengths:
    """The strengths under which the votes are most probable [Bradley and Terry 1952], with intervals.

    The variance is that of `preference`, by the sandwich of Hessian and clustered scores, and never below the
    Hessian's own. ValueError where the votes fix no strengths: methods that were never compared, directly or by way of
    others, and groups that won, or lost, every comparison with the rest [Ford 1957].
    """
    _check_level(level)
    methods = tuple(sorted({name for vote in votes for name in (vote.winner, vote.loser)}))
    if len(methods) < 2:
        raise ValueError(f"strengths need votes between two methods or more, got {len(votes)} votes")
    won = np.array([methods.index(vote.winner) for vote in votes])
    lost = np.array([methods.index(vote.loser) for vote in votes])
    _check_identified(methods, won, lost)
    signs = np.zeros((len(votes), len(methods)))
    signs[np.arange(len(votes)), won], signs[np.arange(len(votes)), lost] = 1.0, -1.0
    level_out = np.full((len(methods),) * 2, 1 / len(methods))  # the mean of all strengths is 0

    def loss(values: np.ndarray) -> float:
        return float(np.logaddexp(0, -signs @ values).sum() + values.sum() ** 2 / (2 * len(methods)))

    def gradient(values: np.ndarray) -> np.ndarray:
        return -signs.T @ expit(-signs @ values) + level_out @ values

    def hessian(values: np.ndarray) -> np.ndarray:
        p = expit(signs @ values)
        return signs.T @ (signs * (p * (1 - p))[:, None]) + level_out

    values = minimize(loss, np.zeros(len(methods)), jac=gradient, hess=hessian, method="trust-exact").x
    inverse = np.linalg.inv(hessian(values)) - level_out
    meat, dof, over = _clustered(signs * expit(-signs @ values)[:, None], votes)
    variance = np.maximum(np.diag(inverse), np.diag(inverse @ meat @ inverse))
    reach = student.ppf((1 + level) / 2, dof) * np.sqrt(variance)
    intervals = tuple(Interval(float(v - r), float(v + r), level, f"sandwich, {over}")
                      for v, r in zip(values, reach, strict=True))
    return Strengths(methods, tuple(map(float, values)), intervals, len(votes))


def _check_identified(methods: Sequence[str], won: Int[np.ndarray, " n"], lost: Int[np.ndarray, " n"]) -> None:
    beaten = np.zeros((len(methods),) * 2)
    beaten[won, lost] = 1

    def names(members: np.ndarray) -> str:
        return ", ".join(methods[int(i)] for i in np.flatnonzero(members))

    num, part = connected_components(beaten, directed=False)
    if num > 1:
        raise ValueError(f"no strengths: {names(part == 0)} and {names(part != 0)} were never compared, "
                         "directly or by way of others")
    num, part = connected_components(beaten, connection="strong")
    for i in range(num if num > 1 else 0):
        inside = part == i
        if not beaten[np.ix_(~inside, inside)].any():
            raise ValueError(f"no finite strengths: {names(inside)} won every comparison with {names(~inside)}; "
                             "more answers are needed")


# --- How many questions? ----------------------------------------------------------------------------------------------


def power(p: float, n: int | Int[np.ndarray, " m"], level: float = 0.95) -> Float[np.ndarray, "*m"]:
    """Power of the exact two-sided test of `n` independent answers for a preference `p` against 0.5."""
    n = np.asarray(n)
    tail = (1 - level) / 2
    most = binom.ppf(tail, n, 0.5)
    most = np.where(binom.cdf(most, n, 0.5) > tail, most - 1, most)  # so few wins, or so few losses, are significant
    return np.asarray(binom.cdf(most, n, p) + binom.cdf(most, n, 1 - p))


def questions_needed(
    p: Number, wanted: float = 0.8, level: float = 0.95, design_effect: Number = 1.0
) -> int:
    """Number of answers from which on the test of a preference `p` against 0.5 has power `wanted`.

    `design_effect` is that of a `Preference`: raters who answer m questions each, and agree with themselves at
    correlation r, have 1 + (m - 1) r. ValueError where `p` is 0.5 or so close that a million answers do not do.
    """
    _check_level(level)
    if not 0 <= p <= 1 or not 0 < wanted < 1 or design_effect < 1:
        raise ValueError(f"need 0 <= p <= 1, 0 < wanted < 1 and design_effect >= 1, got p={p}, wanted={wanted}, "
                         f"design_effect={design_effect}")
    z, gap = norm.ppf((1 + level) / 2), abs(p - 0.5)
    rough = ((z / 2 + norm.ppf(wanted) * math.sqrt(p * (1 - p))) / gap) ** 2 if gap else math.inf
    if rough > 1e6:
        raise ValueError(f"p = {p:g} is too close to 0.5: it takes more than a million answers")
    # Power is a sawtooth in n, so the last n without enough power decides.
    sizes = np.arange(max(1, int(0.8 * rough) - 50), int(1.2 * rough) + 60)
    short = np.flatnonzero(power(float(p), sizes, level) < wanted)
    return math.ceil(float(sizes[0] if not len(short) else sizes[short[-1]] + 1) * design_effect)


# --- Raters -----------------------------------------------------------------------------------------------------------


def attentive(checks: Iterable[tuple[str, bool]], least: float = 0.75) -> dict[str, bool]:
    """Whether each rater, given as (rater, right) for each attention check, has a share of at least `least` right."""
    right: dict[str, list[bool]] = {}
    for rater, ok in checks:
        right.setdefault(rater, []).append(ok)
    return {rater: sum(answers) >= least * len(answers) for rater, answers in right.items()}


@dataclass(frozen=True)
class SimulatedRater:
    """A rater with logistic noise on utilities, who answers a share `lapse` of the questions at random.

    `taste` is this rater's bias for each method, in logits, on all pictures.
    """

    name: str
    sharpness: Number = 1.0  # logits a unit of utility
    lapse: float = 0.0
    taste: Mapping[str, float] = field(default_factory=dict)

    def probability(self, first: str, second: str, gain: Number) -> float:
        """Probability of choosing `first`, whose utility is higher by `gain`."""
        logit = self.sharpness * gain + self.taste.get(first, 0.0) - self.taste.get(second, 0.0)
        return self.lapse / 2 + (1 - self.lapse) * float(expit(logit))


def simulated_class(
    num: int, methods: Sequence[str], *, sharpness: Number = 1.0, lapse: float = 0.0, taste_sd: Number = 0.0,
    seed: int = 0,
) -> list[SimulatedRater]:
    """Raters with random tastes, independent by method, of standard deviation `taste_sd` logits."""
    tastes = np.random.default_rng(seed).normal(0, taste_sd, (num, len(methods)))
    return [SimulatedRater(f"simulated-{i + 1}", sharpness, lapse, dict(zip(methods, map(float, row), strict=True)))
            for i, row in enumerate(tastes)]


def known_share(
    gains: Float[np.ndarray, " n"], *, sharpness: Number = 1.0, lapse: float = 0.0, taste_sd: Number = 0.0
) -> float:
    """Expected share of a `simulated_class` with infinitely many raters, over pictures with these gains."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(41)  # two tastes differ with variance 2 taste_sd**2
    logits = sharpness * gains[:, None] + math.sqrt(2) * taste_sd * nodes
    return lapse / 2 + (1 - lapse) * float((expit(logits) @ weights / weights.sum()).mean())
