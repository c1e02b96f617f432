"""The metrics of samples, a row each: `study.runs.scoring.Scorer` takes every one of them from this table.

A row holds all that is particular to a metric. `Scorer.score` embeds the pictures once for each extractor, computes
the requested rows, and adds protocol and interval.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ldmlab.evaluation.distances import FeatureMoments, Interval, Score, frechet_score, kid_score, score_name
from ldmlab.evaluation.neighbours import precision_recall_scores
from ldmlab.evaluation.uncertainty import frechet_infinity, frechet_interval, kernel_interval, kernel_score

SCORE_NETWORK = "effnet"
FD_PICTURES = 2560  # twice the features of EfficientNet-Lite0; with fewer, FD-EffNet is mostly bias
KID_SUBSET = 500  # vectors in a subset of the kernel distance, or all where there are fewer

Protocol = Mapping[str, Any]


@dataclass(frozen=True)
class Metric:
    """A metric of samples against a reference set, on the features of one extractor.

    `measure(real, fake, protocol)` returns a `Score`, or a number that becomes one under the row's label and unit.
    `interval(real, fake, num_resamples=, seed=)` gives the interval of a score that does not bring its own.
    """

    key: str  # in records: `metrics[key]`
    label: str  # in figures and tables
    unit: str  # "1" for a pure number
    extractor: str  # one of `perception.lab_networks.ARCHITECTURES` that may score
    measure: Callable[[FeatureMoments, FeatureMoments, Protocol], Score | float]
    interval: Callable[..., Interval] | None = None
    min_fake: Callable[[int], int] = lambda dim: 1  # samples that it needs, given the number of features
    min_real: Callable[[int], int] = lambda dim: 1  # reference pictures that it needs
    refuse_few: bool = False  # fewer are an error; otherwise the metric is left out
    at_milestones: bool = False  # taken during training as well: it costs time at each milestone
    standard: bool = True  # whether it is taken where none is named

    def __call__(self, real: FeatureMoments, fake: FeatureMoments, protocol: Protocol) -> Score:
        """The score of `fake` against `real`, without the interval that `interval` adds."""
        score = self.measure(real, fake, protocol)
        if isinstance(score, Score):
            return score
        score_name(self.label, real, fake)  # refuses features of two networks, or of one that trains models
        return Score(score, self.label, self.unit, real.n, fake.n, real.extractor, real.weights_hash, dict(protocol))

    def enough(self, real: FeatureMoments, fake: FeatureMoments) -> bool:
        """Whether there are as many pictures of both as the metric needs."""
        return real.n >= self.min_real(real.dim) and fake.n >= self.min_fake(fake.dim)


def _frechet(real: FeatureMoments, fake: FeatureMoments, protocol: Protocol) -> Score:
    return frechet_score(real, fake, protocol, allow_few=True)  # `refuse_few` of the row says whether few are allowed


def _kernel(real: FeatureMoments, fake: FeatureMoments, protocol: Protocol) -> Score:
    return kid_score(real, fake, protocol, subset_size=min(KID_SUBSET, fake.n, real.n))


def _kernel_effnet(real: FeatureMoments, fake: FeatureMoments, protocol: Protocol) -> Score:
    return kernel_score(real, fake, protocol, times=1000)


def _frechet_effnet(real: FeatureMoments, fake: FeatureMoments, protocol: Protocol) -> Score:
    score = _frechet(real, fake, protocol)
    ranks = {"effective_rank_real": round(real.effective_rank, 1), "effective_rank_fake": round(fake.effective_rank, 1)}
    return replace(score, protocol={**score.protocol, **ranks})


def _kid_interval(real: FeatureMoments, fake: FeatureMoments, **_: int) -> Interval:
    return kernel_interval(real, fake, over="fake")


def _precision(real: FeatureMoments, fake: FeatureMoments, protocol: Protocol) -> Score:
    return precision_recall_scores(real, fake, protocol)["precision"]


def _recall(real: FeatureMoments, fake: FeatureMoments, protocol: Protocol) -> Score:
    return precision_recall_scores(real, fake, protocol)["recall"]


def _more_than_features(dim: int) -> int:
    return dim + 1


def _four_times_features(dim: int) -> int:
    return 4 * dim


_FRECHET: dict[str, Any] = {
    "measure": _frechet, "interval": frechet_interval, "min_fake": _more_than_features,
    "min_real": _more_than_features, "refuse_few": True}
_INFINITY: dict[str, Any] = {"measure": frechet_infinity, "min_fake": _four_times_features}

_FORMER: dict[str, Any] = {"standard": False}  # they do not see structure, and are taken to show that

METRICS: dict[str, Metric] = {row.key: row for row in (
    Metric("kd_effnet", "KD-EffNet", "1", "effnet", _kernel_effnet, min_fake=lambda dim: 5, min_real=lambda dim: 5,
           at_milestones=True),
    Metric("fd_effnet", "FD-EffNet", "1", "effnet", _frechet_effnet, min_fake=lambda dim: FD_PICTURES,
           min_real=lambda dim: FD_PICTURES),
    Metric("precision", "PR-EffNet precision", "1", "effnet", _precision, standard=False),
    Metric("recall", "PR-EffNet recall", "1", "effnet", _recall, standard=False),
    Metric("fd_lab", "FD-lab", "1", "fd-lab", **_FRECHET, **_FORMER),
    Metric("kid_lab", "KID-lab", "1", "fd-lab", _kernel, _kid_interval, min_fake=lambda dim: 5, **_FORMER),
    Metric("fd_lab_infinity", "FD∞-lab", "1", "fd-lab", **_INFINITY, **_FORMER),
    Metric("fd_referee", "FD-referee", "1", "referee", **_FRECHET, **_FORMER),
    Metric("fd_referee_infinity", "FD∞-referee", "1", "referee", **_INFINITY, **_FORMER),
)}
