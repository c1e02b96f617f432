"""Neighbours in feature space: precision and recall, nearest training pictures, and a test for copies of them.

The paper shows neighbours in VGG's feature space [LDM v2, Fig. 32-34] without a measure. Deviation: the features are
those of the network given, and the measure is how often a sample is nearer to the training set than a held-out picture,
the statistic of [Meehan et al. 2020, Sec. 3].

Precision and recall [Kynkäänniemi et al. 2019, Eq. 1-2; LDM v2, Tab. 1] are named by their network: PR-EffNet, PR-lab.
Published values use the features of Inception, as in the script of Dhariwal and Nichol that the paper uses, or those of
VGG16. Values on different features cannot be compared.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ldmlab.evaluation.distances import FeatureMoments, Interval, Score, score_name


def nearest(
    queries: Float[Tensor, "n d"], references: Float[Tensor, "m d"], k: int = 1, *, chunk: int = 256
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Distances to the k nearest references and their indices, nearest first; Euclidean, 0 for an exact copy."""
    if not 1 <= k <= len(references):
        raise ValueError(f"k must lie between 1 and the number of references, {len(references)}; got {k}")
    # Distances by inner products would have rounding errors, so that exact copies are not at 0.
    exact = "donot_use_mm_for_euclid_dist"
    found = [
        torch.cdist(part, references, compute_mode=exact).topk(k, largest=False) for part in queries.split(chunk)
    ]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def nearness_ratio(
    samples: Float[Tensor, "n d"], train: Float[Tensor, "m d"], held_out: Float[Tensor, "l d"]
) -> Float[Tensor, " n"]:
    """Distance of each sample to the training set over the median of held-out pictures: 0 for a copy, near 1 if new."""
    return nearest(samples, train)[0][:, 0] / nearest(held_out, train)[0].median()


def memorisation_score(
    train: FeatureMoments,
    held_out: FeatureMoments,
    samples: FeatureMoments,
    protocol: Mapping[str, Any] | None = None,
) -> Score:
    """Probability that a sample is nearer to the training set than a held-out picture is; 0.5 without memorisation.

    Towards 1, samples are copies; below 0.5 they are farther from the data than real pictures, so poor samples can hide
    copies: compare with the Fréchet distance. The protocol gets the p-value of a value above 0.5 (Mann-Whitney) and
    the share of `copies`: samples within the 0.01 quantile of held-out pictures, 0.01 by chance. Raises ValueError
    unless the moments keep all vectors (`keep` >= n).
    """
    from scipy.stats import mannwhitneyu  # slow to import

    for what, moments in (("training", train), ("held-out", held_out), ("generated", samples)):
        if moments.n > len(moments.sample):
            raise ValueError(
                f"of {moments.n} {what} pictures only {len(moments.sample)} were kept; build the moments with "
                f"keep >= {moments.n}"
            )
    score_name("FD", train, held_out)
    name = score_name("memorisation", train, samples)
    ours, unseen = (nearest(m.sample, train.sample)[0][:, 0] for m in (samples, held_out))
    n, m = len(ours), len(unseen)
    test = mannwhitneyu(unseen.numpy(), ours.numpy(), alternative="greater", method="asymptotic")
    value = float(test.statistic) / (n * m)
    # Spread of the statistic as of an area under a curve [Hanley and McNeil 1982, Eq. 1].
    q1, q2 = value / (2 - value), 2 * value**2 / (1 + value)
    variance = (value * (1 - value) + (m - 1) * (q1 - value**2) + (n - 1) * (q2 - value**2)) / (n * m)
    reach = 1.959964 * max(0.0, variance) ** 0.5
    # Not <: where held-out pictures are themselves copies, the quantile is 0, and so are the copies' distances.
    copies = (ours <= unseen.quantile(0.01)).float().mean().item()
    return Score(
        value, name, "1", train.n, n, train.extractor, train.weights_hash,
        {**(protocol or {}), "n_held_out": m, "p_value": float(test.pvalue), "copies": copies},
        Interval(max(0.0, value - reach), min(1.0, value + reach), 0.95, "Hanley and McNeil"),
    )


def precision_recall(real: Float[Tensor, "n d"], fake: Float[Tensor, "m d"], k: int = 3) -> tuple[float, float]:
    """(precision, recall) by torch-fidelity, both in [0, 1].

    ValueError unless both sets have more than k >= 1 vectors, all of them finite.

    Precision is the share of generated vectors within the ball of a real one, recall that of real vectors within the
    ball of a generated one; a ball reaches to the k-th neighbour in its own set. Both depend on n and m.
    """
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    if k < 1 or min(len(real), len(fake)) <= k:
        raise ValueError(f"balls to neighbour k = {k} need more than k >= 1 vectors, got {len(real)} and {len(fake)}")
    if not (real.isfinite().all() and fake.isfinite().all()):
        raise ValueError("features have values that are not finite; check the pictures that they come from")
    # The common mean is subtracted first: distances of vectors far from 0 would be lost to rounding in float32.
    mean = real.detach().cpu().double().mean(0)
    real, fake = ((v.detach().cpu().double() - mean).float() for v in (real, fake))
    options = {"prc_neighborhood": k, "prc_batch_size": 2048, "save_cpu_ram": True, "verbose": False}
    result = prc_features_to_metric(fake, real, **options)
    return result[KEY_METRIC_PRECISION], result[KEY_METRIC_RECALL]


def precision_recall_scores(
    real: FeatureMoments, fake: FeatureMoments, protocol: Mapping[str, Any] | None = None, *, k: int = 3
) -> dict[str, Score]:
    """`precision` and `recall` of the kept vectors, as PR-lab on the lab's features; n are the sizes of the samples."""
    name = score_name("PR", real, fake)
    values = zip(("precision", "recall"), precision_recall(real.sample, fake.sample, k), strict=True)
    about = (len(real.sample), len(fake.sample), real.extractor, real.weights_hash, {**(protocol or {}), "k": k})
    return {key: Score(value, f"{name} {key}".removeprefix("PR "), "1", *about) for key, value in values}
