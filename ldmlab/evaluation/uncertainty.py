"""Uncertainty of distances: intervals, and extrapolation to infinitely many samples.

The interval covers the spread over draws of samples. The Fréchet distance of n samples also has a bias of
about b/n, which FD∞ removes [Chong and Forsyth 2020, Sec. 3]; between scores at equal n it mostly cancels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ldmlab.evaluation.distances import (
    FeatureMoments,
    Interval,
    Score,
    covariance_root,
    cubic_kernel,
    frechet,
    frechet_from_root,
    frechet_score,
    score_name,
)

Over = Literal["fake", "both", "pairs"]
_RESAMPLED = {"fake": "generated pictures", "both": "both sets of pictures", "pairs": "pairs of pictures"}
MOST_ROWS = 2048  # vectors that a bootstrap draws from; of more, an evenly spaced part


def _rows(moments: FeatureMoments) -> Tensor:
    kept = moments.sample.double()
    return kept[torch.linspace(0, len(kept) - 1, min(len(kept), MOST_ROWS)).round().long()]


def _draw(n: int, rows: Tensor, num_resamples: int, rng: np.random.Generator) -> Float[Tensor, "b m"]:
    """Counts of each row in n draws with replacement, for each resample."""
    return torch.from_numpy(rng.multinomial(n, np.full(len(rows), 1 / len(rows)), num_resamples)).double()


def _weighted(rows: Float[Tensor, "m d"], counts: Float[Tensor, "b m"]) -> tuple[Tensor, Tensor]:
    """Means and covariances of the rows, weighted by each line of `counts`."""
    n, centre = counts.sum(1, keepdim=True), rows.mean(0)
    rows = rows - centre
    mean = counts @ rows / n
    cov = torch.einsum("bm,mi,mj->bij", counts, rows, rows) / n[..., None] - mean[:, :, None] * mean[:, None]
    return mean + centre, cov * (n / (n - 1))[..., None]


def _chunk(rows: Tensor) -> int:
    return max(1, 2**22 // rows.numel())  # lines of counts at a time, at 32 MB


def _check(level: float, num_resamples: int) -> None:
    if not 0 < level < 1 or num_resamples < 2:
        raise ValueError(f"need 0 < level < 1 and 2 resamples or more, got level={level}, {num_resamples} resamples")


def _around(
    value: float, std_error: float, level: float, method: str, *, floor: float = -math.inf, dof: float | int = math.inf
) -> Interval:
    from scipy.stats import t as student  # slow to import

    reach = float(student.ppf((1 + level) / 2, dof)) * std_error
    return Interval(max(floor, value - reach), value + reach, level, method)


def mean_interval(values: Tensor, level: float = 0.95) -> Interval | None:
    """Interval of the mean by its standard error and a quantile of t; None for fewer than two, or infinite, values."""
    if len(values) < 2 or not values.isfinite().all():
        return None
    std_error = (values.std() / math.sqrt(len(values))).item()
    return _around(values.mean().item(), std_error, level, "standard error of the mean", dof=len(values) - 1)


def mean_score(values: Float[Tensor, " n"], name: str, unit: str = "1", **about: Any) -> Score:
    """The mean of one number a picture with `mean_interval`, as a `Score` of pictures against as many true ones."""
    return Score(values.mean().item(), name, unit, len(values), len(values), interval=mean_interval(values), **about)


def frechet_interval(
    real: FeatureMoments,
    fake: FeatureMoments,
    *,
    over: Over = "fake",
    level: float = 0.95,
    num_resamples: int = 200,
    seed: int = 0,
) -> Interval:
    """Interval of the Fréchet distance over draws of as many pictures; it does not include the bias at this n.

    `over` is what is resampled: "fake" keeps the reference fixed, for scores that share one; "both" resamples it too,
    and needs all of its vectors; "pairs" resamples pictures with their reconstructions. The interval is centred at the
    score, with the bootstrap's standard deviation: its quantiles would be too high, since duplicates in a resample add
    the bias a second time. Raises ValueError for options out of range and for vectors that were not kept.
    """
    _check(level, num_resamples)
    if over != "fake" and real.n > len(real.sample):
        raise ValueError(
            f"{over!r} needs all vectors of the reference, but of {real.n} only {len(real.sample)} were kept"
        )
    if over == "pairs" and real.n != fake.n:
        raise ValueError(f"pairs need two sets of one size, got {real.n} and {fake.n} pictures")
    rng, rows, real_rows = np.random.default_rng(seed), _rows(fake), _rows(real)
    counts = _draw(fake.n, rows, num_resamples, rng)
    again = _draw(real.n, real_rows, num_resamples, rng) if over == "both" else counts
    mean, root, values = real.mean, covariance_root(real.cov), []
    chunk = _chunk(max(rows, real_rows, key=len))
    for part, real_part in zip(counts.split(chunk), again.split(chunk), strict=True):
        if over != "fake":
            mean, cov = _weighted(real_rows, real_part)
            root = covariance_root(cov)
        values.append(frechet_from_root(mean, root, *_weighted(rows, part)))
    method = f"bootstrap of the {_RESAMPLED[over]}, {num_resamples} resamples"
    return _around(frechet(real, fake), torch.cat(values).std().item(), level, method, floor=0.0)


def frechet_estimate(
    real: FeatureMoments,
    fake: FeatureMoments,
    protocol: Mapping[str, Any] | None = None,
    *,
    allow_few: bool = False,
    **options: Any,
) -> Score:
    """`frechet_score` with its interval; `options` go to `frechet_interval`."""
    score = frechet_score(real, fake, protocol, allow_few=allow_few)
    return replace(score, interval=frechet_interval(real, fake, **options))


def kernel_estimate(
    real: FeatureMoments, fake: FeatureMoments, *, over: Literal["fake", "both"] = "both"
) -> tuple[float, float]:
    """(kernel distance, its standard error) of all vectors kept: the unbiased squared MMD, which may be negative.

    The distance is [Gretton et al. 2012, Eq. 3] with the kernel of KID. The error joins the terms of first and second
    order of its variance, so that it holds for far and for equal sets alike; with `over` = "fake", for this very
    reference. Raises ValueError for fewer than 5 pictures in a set, whose spread says nothing.
    """
    if min(len(real.sample), len(fake.sample)) < 5:
        raise ValueError(f"a kernel distance with its error needs 5 pictures of each, got {len(real.sample)} real and "
                         f"{len(fake.sample)} generated ones")
    a, b = _rows(real), _rows(fake)
    n, m = len(a), len(b)
    (within_a, second_a), (within_b, second_b) = (_within(moments, rows) for moments, rows in ((real, a), (fake, b)))
    cross = cubic_kernel(a, b)
    one, two = within_a - cross.mean(1), within_b - cross.mean(0)
    # Variance of first order from how much each picture moves the distance [Hoeffding 1948]. The spread of these parts
    # holds the terms of second order twice.
    first, second = 4 * two.var() / m, 2 * second_b / (m * (m - 1))
    if over == "both":
        first = first + 4 * one.var() / n
        second = second + 2 * second_a / (n * (n - 1)) + 4 * _centred(cross).square().mean() / (n * m)
    variance = torch.maximum(first - second, second)
    return (one.mean() + two.mean()).item(), variance.sqrt().item()


def _centred(kernel: Tensor) -> Tensor:
    return kernel - kernel.mean(0) - kernel.mean(1, keepdim=True) + kernel.mean()


def _within(moments: FeatureMoments, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean kernel of each row with the others, and the mean square of the centred kernel; kept with the moments."""
    if moments.within is None or len(moments.within[0]) != len(rows):
        kernel, n = cubic_kernel(rows, rows), len(rows)
        means = (kernel.sum(1) - kernel.diagonal()) / (n - 1)
        off = _centred(kernel).square()
        moments.within = means, (off.sum() - off.trace()) / (n * (n - 1))
    return moments.within


def kernel_interval(
    real: FeatureMoments, fake: FeatureMoments, *, over: Literal["fake", "both"] = "both", level: float = 0.95,
    times: float | int = 1,
) -> Interval:
    """Interval of the kernel distance, times `times`, by `kernel_estimate` and quantiles of t.

    A negative lower end is kept: cut at 0, an interval of equal sets would hold only distances above it.
    """
    _check(level, 2)
    value, error = kernel_estimate(real, fake, over=over)
    dof = min(len(real.sample), len(fake.sample)) - 1
    return _around(times * value, times * error, level, f"variance of a U-statistic over {_RESAMPLED[over]}", dof=dof)


def kernel_contrast(
    real: FeatureMoments, fakes: Sequence[FeatureMoments], weights: Sequence[float | int], *, level: float = 0.95,
    times: float | int = 1,
) -> tuple[float, Interval]:
    """(value, interval) of a weighted sum of kernel distances, times `times`, of several sets to one reference.

    Picture i of every set belongs together, as where samples share their noise, and all share the reference: what they
    have in common cancels. ValueError for sets of different numbers of pictures, and as by `kernel_estimate`.
    """
    _check(level, 2)
    if len({len(fake.sample) for fake in fakes}) != 1 or len(fakes) != len(weights):
        raise ValueError(f"a contrast needs a weight for each set, and sets of one size; got {len(weights)} weights "
                         f"and sets of {', '.join(str(len(fake.sample)) for fake in fakes)} pictures")
    value, a = sum(w * kernel_estimate(real, fake)[0] for w, fake in zip(weights, fakes, strict=True)), _rows(real)
    within_a, second_a = _within(real, a)
    one, two, second = torch.zeros(len(a)).double(), 0.0, sum(weights) ** 2 * 2 * second_a / (len(a) * (len(a) - 1))
    for w, fake in zip(weights, fakes, strict=True):
        b = _rows(fake)
        (within_b, second_b), cross, m = _within(fake, b), cubic_kernel(a, b), len(b)
        one, two = one + w * (within_a - cross.mean(1)), two + w * (within_b - cross.mean(0))
        second = second + w**2 * (2 * second_b / (m * (m - 1)) + 4 * _centred(cross).square().mean() / (len(a) * m))
    # The spread holds the terms of second order twice, as in `kernel_estimate`; how much of them pairs share is not
    # known, so that they are not taken off.
    variance = torch.maximum(4 * one.var() / len(a) + 4 * two.var() / len(two), second)
    interval = _around(times * value, times * variance.sqrt().item(), level,
                       "variance of paired U-statistics with one reference", dof=min(len(a), len(two)) - 1)
    return times * value, interval


def kernel_score(
    real: FeatureMoments, fake: FeatureMoments, protocol: Mapping[str, Any] | None = None, *, times: float | int = 1
) -> Score:
    """Kernel distance of all vectors kept, at most 2048 of each, times `times`, with its interval over both sets.

    Named KD-EffNet on EfficientNet-Lite0, and KID on Inception only.
    """
    name, interval = score_name("KID", real, fake), kernel_interval(real, fake, times=times)
    n, m = (min(MOST_ROWS, len(moments.sample)) for moments in (real, fake))
    return Score((interval.low + interval.high) / 2, name, "1", n, m, real.extractor, real.weights_hash,
                 {**(protocol or {}), "times": times}, interval)


def frechet_infinity(
    real: FeatureMoments,
    fake: FeatureMoments,
    protocol: Mapping[str, Any] | None = None,
    *,
    level: float = 0.95,
    max_parts: int = 4,
    num_groups: int = 20,
    seed: int = 0,
) -> Score:
    """FD∞ of the generated side: a line through FD at N, N/2, N/3 ..., read at 1/N = 0 [Chong and Forsyth 2020].

    The reference is fixed. The protocol gets the standard error, a jackknife over groups of pictures, and the points of
    the line. Parts have at least 2 d vectors, below which FD is not linear in 1/N; ValueError for fewer than 4 d. The
    result may be negative where the distance is near 0.
    Deviation: each N is the mean over disjoint parts that together hold every vector once, where Chong and Forsyth draw
    15 overlapping subsets of quasi-random samples: the same line with less noise.
    """
    _check(level, num_groups)
    name, rows = score_name("FD∞", real, fake), fake.sample.double()
    parts = min(max_parts, len(rows) // (2 * fake.dim))
    if parts < 2:
        raise ValueError(
            f"{name} extrapolates from parts of at least {2 * fake.dim} pictures (twice the features), so it needs "
            f"{4 * fake.dim} generated ones, and {len(rows)} were kept"
        )
    # Shuffled, since samples are often sorted by class.
    rows = rows[torch.from_numpy(np.random.default_rng(seed).permutation(len(rows)))]
    index, ks = torch.arange(len(rows)), range(1, parts + 1)
    group = index * num_groups // len(rows)
    # Part j of k, of all vectors and of those without each group.
    kept = torch.stack([group != g for g in range(-1, num_groups)])
    members = torch.cat([kept & (index % k == j) for k in ks for j in range(k)]).double()
    root, chunks = covariance_root(real.cov), members.split(_chunk(rows))
    values = torch.cat([frechet_from_root(real.mean, root, *_weighted(rows, m)) for m in chunks])
    curves = np.stack([part.mean(0) for part in values.view(-1, num_groups + 1).split(list(ks))])
    at_zero = np.polyfit(ks, curves, 1)[1]
    value, std_error = float(at_zero[0]), math.sqrt((num_groups - 1) * at_zero[1:].var())
    points = [[len(rows) / k, float(fd)] for k, fd in zip(ks, curves[:, 0], strict=True)]
    return Score(
        value, name, "1", real.n, len(rows), real.extractor, real.weights_hash,
        {**(protocol or {}), "extrapolated_from": points, "std_error": std_error},
        _around(value, std_error, level, f"jackknife over {num_groups} groups", dof=num_groups - 1),
    )
