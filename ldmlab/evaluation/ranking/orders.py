"""Which orders of `families` a metric keeps: its value at each level, and the difference of each two neighbours.

The same pictures are behind all levels, so differences are paired: over pictures for distances between two pictures,
by a jackknife over groups of pictures for distances between sets. An order is kept where every difference is above 0 at
95 %, broken where one is below 0, and undecided otherwise.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import t as student
from torch import Tensor

from ldmlab.evaluation.distances import FeatureMoments, cubic_kernel, frechet
from ldmlab.evaluation.neighbours import nearest
from ldmlab.evaluation.ranking.families import FAMILIES, Family, Material
from ldmlab.evaluation.reconstruction import psnr, ssim
from ldmlab.perception.base import FeatureNet

GROUPS = 8  # of the jackknife
LEVEL = 0.95
KEPT, BROKEN, UNDECIDED = "kept", "broken", "undecided"
OF_ALL = ("quality", "variety")  # what a distance between sets should see

NEAREST = 3  # neighbour that the balls of precision and recall reach to
MOST_FEATURES = 2 * 1280  # fewer pictures give no Fréchet distance of EfficientNet's features

OfRows = Callable[[Tensor], float]  # rows to keep -> value
OfLevel = Callable[[Tensor], OfRows]  # features of a level -> value of some of its rows
# Values of a metric at one level: of all pictures, then without each group, or one for each picture.
Values = tuple[float, np.ndarray]


@dataclass(frozen=True)
class RankedMetric:
    """A metric as the suite applies it; a larger value of `sign` times it means worse pictures.

    Metrics of pairs compare picture i with true picture i. Those of sets take features of `extractor`.
    """

    key: str
    label: str
    sees: tuple[str, ...]  # what it claims to see of "quality", "variety", "novelty"
    sign: int = 1
    extractor: str = ""
    pairs: Callable[[Tensor, Tensor], Tensor] | None = None  # (x, y) -> (n,)
    sets: Callable[[Tensor, Tensor], OfLevel] | None = None  # see "Metrics of sets"
    trains: bool = False  # the network trains first stages: it decides nothing

    def applies(self, family: Family) -> bool:
        """Whether the metric can be taken on a family."""
        if self.pairs is not None:
            return family.paired
        return self.sees != ("novelty",) or not family.paired  # the search for neighbours is slow


@dataclass(frozen=True)
class Order:
    """What a metric makes of a family: values by level, and (difference, low, high) of neighbours, in units of the
    metric; positive where the worse level is called worse."""

    values: list[float]
    steps: list[tuple[float, float, float]]

    @property
    def verdict(self) -> str:
        """KEPT, BROKEN or UNDECIDED."""
        if all(low > 0 for _, low, _ in self.steps):
            return KEPT
        return BROKEN if any(high < 0 for *_, high in self.steps) else UNDECIDED


# --- Metrics of sets --------------------------------------------------------------------------------------------------
# Each is bound in three steps, so that a jackknife repeats only the last one: to the training and the true pictures, to
# those of a level, and to the rows of the level that are kept.


def kernel_distance(train: Float[Tensor, "m d"], true: Float[Tensor, "n d"]) -> OfLevel:
    """Unbiased kernel distance times 1000 [KID, Sec. 4]."""
    train = train.double()

    def within(k: Tensor) -> Tensor:
        return (k.sum() - k.trace()) / (len(k) * (len(k) - 1))

    of_train = within(cubic_kernel(train, train))

    def of_level(level: Tensor) -> OfRows:
        own, both = cubic_kernel(level.double(), level.double()), cubic_kernel(train, level.double())
        return lambda keep: 1000 * (of_train + within(own[keep][:, keep]) - 2 * both[:, keep].mean()).item()

    return of_level


def frechet_distance(train: Float[Tensor, "m d"], true: Float[Tensor, "n d"]) -> OfLevel:
    """Fréchet distance [FID, Eq. 6]."""
    def moments(rows: Tensor) -> FeatureMoments:
        return FeatureMoments(rows.shape[1], keep=len(rows)).update(rows)

    of_train = moments(train)
    return lambda level: lambda keep: frechet(of_train, moments(level[keep]))


def precision(train: Float[Tensor, "m d"], true: Float[Tensor, "n d"]) -> OfLevel:
    """Share of a level's vectors within the ball of a training one [Kynkäänniemi et al. 2019, Eq. 1-2]."""
    mean = train.mean(0)
    radii = _radii(torch.cdist(train - mean, train - mean))

    def of_level(level: Tensor) -> OfRows:
        inside = (torch.cdist(level - mean, train - mean) <= radii).any(1)
        return lambda keep: inside[keep].double().mean().item()

    return of_level


def recall(train: Float[Tensor, "m d"], true: Float[Tensor, "n d"]) -> OfLevel:
    """Share of training vectors within the ball of one of the level's."""
    mean = train.mean(0)

    def of_level(level: Tensor) -> OfRows:
        own, both = torch.cdist(level - mean, level - mean), torch.cdist(train - mean, level - mean)
        return lambda keep: (both[:, keep] <= _radii(own[keep][:, keep])).any(1).double().mean().item()

    return of_level


def _radii(distances: Float[Tensor, "n n"]) -> Float[Tensor, " n"]:
    """Distances to neighbour NEAREST, the vector itself not counted."""
    return distances.kthvalue(NEAREST + 1, dim=1).values


def memorisation(train: Float[Tensor, "m d"], true: Float[Tensor, "n d"]) -> OfLevel:
    """Probability that a vector is nearer to the training set than a true picture's is; 0.5 for true pictures."""
    unseen = nearest(true, train)[0][:, 0]

    def of_level(level: Tensor) -> OfRows:
        ours = nearest(level, train)[0]
        nearer = ((ours < unseen).double() + 0.5 * (ours == unseen).double()).mean(1)
        return lambda keep: nearer[keep].mean().item()

    return of_level


def set_metrics(extractors: Sequence[str], num: int) -> list[RankedMetric]:
    """The metrics of sets of `num` pictures on those extractors: effnet, inception, fd-lab and referee."""
    rows = [RankedMetric("kd_effnet", "KD-EffNet", OF_ALL, extractor="effnet", sets=kernel_distance),
            RankedMetric("fd_effnet", "FD-EffNet", OF_ALL, extractor="effnet", sets=frechet_distance),
            RankedMetric("precision", "precision", ("quality",), -1, "effnet", sets=precision),
            RankedMetric("recall", "recall", ("variety",), -1, "effnet", sets=recall),
            RankedMetric("memorisation", "memorisation", ("novelty",), 1, "effnet", sets=memorisation),
            RankedMetric("kid", "KID", OF_ALL, extractor="inception", sets=kernel_distance),
            RankedMetric("fd_lab", "FD-lab", OF_ALL, extractor="fd-lab", sets=frechet_distance),
            RankedMetric("fd_referee", "FD-referee", OF_ALL, extractor="referee", sets=frechet_distance)]
    return [row for row in rows if row.extractor in extractors and (row.key != "fd_effnet" or num > MOST_FEATURES)]


# --- Metrics of pairs -------------------------------------------------------------------------------------------------


def pair_metrics(networks: Mapping[str, Callable[[Tensor, Tensor], Tensor]], trains: Sequence[str] = ()
                 ) -> list[RankedMetric]:
    """PSNR and SSIM, and a distance of pairs by each network; those named in `trains` train first stages."""
    found = [RankedMetric("psnr", "PSNR", ("quality",), -1, pairs=_finite_psnr),
             RankedMetric("ssim", "SSIM", ("quality",), -1, pairs=ssim)]
    return found + [RankedMetric(f"pairs_{name}", name, ("quality",), pairs=distance, trains=name in trains)
                    for name, distance in networks.items()]


def _finite_psnr(x: Tensor, y: Tensor) -> Tensor:
    return psnr(x, y).clamp(max=60.0)  # that of equal pictures is infinite


# --- Orders -----------------------------------------------------------------------------------------------------------


def rank(
    material: Material, metrics: Sequence[RankedMetric], nets: Mapping[str, FeatureNet],
    families: Mapping[str, Family] = FAMILIES, progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, Order]]:
    """{family: {metric: Order}} of every family that can be made of the material; level names are `levels_of`."""
    found: dict[str, dict[str, Order]] = {}
    reference = {name: net.embed(material.train) for name, net in nets.items()}
    for done, family in enumerate(families.values(), 1):
        levels = list(family.make(material).values())
        if levels:
            features = {name: [net.embed(x) for x in levels] for name, net in nets.items()}
            found[family.name] = {
                metric.key: _order(metric, _values(metric, levels, features, reference))
                for metric in metrics if metric.applies(family)}
        if progress is not None:
            progress(done, len(families))
    return found


@torch.inference_mode()
def _values(
    metric: RankedMetric, levels: list[Tensor], features: Mapping[str, list[Tensor]], reference: Mapping[str, Tensor]
) -> list[Values]:
    if metric.pairs is not None:
        true = levels[0].split(64)
        per_picture = [torch.cat([metric.pairs(x, y) for x, y in zip(true, level.split(64), strict=True)])
                       for level in levels]
        return [(values.double().mean().item(), values.double().numpy()) for values in per_picture]
    assert metric.sets is not None
    rows = features[metric.extractor]
    of_level, group = metric.sets(reference[metric.extractor], rows[0]), torch.arange(len(rows[0])) % GROUPS
    found = []
    for level in rows:
        value = of_level(level)
        found.append((value(group >= 0), np.array([value(group != g) for g in range(GROUPS)])))
    return found


def _order(metric: RankedMetric, values: list[Values]) -> Order:
    steps = []
    for (better, ours), (worse, theirs) in zip(values, values[1:], strict=False):
        parts = metric.sign * (theirs - ours)
        if metric.pairs is not None:
            error, dof = parts.std(ddof=1) / math.sqrt(len(parts)), len(parts) - 1
        else:  # jackknife [Efron 1982, Ch. 3]
            error, dof = math.sqrt((GROUPS - 1) * parts.var()), GROUPS - 1
        difference, reach = metric.sign * (worse - better), float(student.ppf((1 + LEVEL) / 2, dof)) * error
        steps.append((difference, difference - reach, difference + reach))
    return Order([value for value, _ in values], steps)
