"""Nearest training pictures of samples, and whether samples lie nearer to them than unseen pictures do.

The paper shows neighbours in VGG's feature space [LDM v2, Fig. 32-34] and leaves the judgement to the eye.
Deviation: the features are those of the network given, and the judgement is a number: how often a sample is nearer to
the training set than a held-out picture is, the statistic of [Meehan et al. 2020, Sec. 3].
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from scipy.stats import mannwhitneyu
from torch import Tensor

from ldmlab.evaluation.distances import FeatureMoments, Interval, Score, score_name


def nearest(
    queries: Float[Tensor, "n d"], references: Float[Tensor, "m d"], k: int = 1, *, chunk: int = 256
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Distances to the k nearest references and their indices, nearest first; Euclidean, 0 for an exact copy."""
    if not 1 <= k <= len(references):
        raise ValueError(f"k must lie between 1 and the number of references, {len(references)}; got {k}")
    # The usual way by inner products leaves a copy at a small distance of rounding errors.
    exact = "donot_use_mm_for_euclid_dist"
    found = [
        torch.cdist(part, references, compute_mode=exact).topk(k, largest=False) for part in queries.split(chunk)
    ]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def nearness_ratio(
    samples: Float[Tensor, "n d"], train: Float[Tensor, "m d"], held_out: Float[Tensor, "l d"]
) -> Float[Tensor, " n"]:
    """Each sample's distance to the training set over the median held-out picture's: 0 for a copy, near 1 if new."""
    return nearest(samples, train)[0][:, 0] / nearest(held_out, train)[0].median()


def memorisation_score(
    train: FeatureMoments,
    held_out: FeatureMoments,
    samples: FeatureMoments,
    protocol: Mapping[str, Any] | None = None,
) -> Score:
    """Probability that a sample is nearer to the training set than a held-out picture is: 0.5 is as new as unseen ones.

    Towards 1, samples are copies; below 0.5 they are farther from the data than real pictures are, so a poor generator
    hides its copies: read it beside the Fréchet distance. `protocol` gains the p-value of being above 0.5 by chance
    (Mann-Whitney), and the share of `copies`: samples nearer than the nearest hundredth of held-out pictures, 0.01 by
    chance. Needs all vectors: build the moments with `keep` >= n.
    """
    for what, moments in (("training", train), ("held-out", held_out), ("generated", samples)):
        if moments.n > len(moments.sample):
            raise ValueError(
                f"of {moments.n} {what} pictures only {len(moments.sample)} were kept; a nearest one needs all"
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
    copies = (ours < unseen.quantile(0.01)).float().mean().item()
    return Score(
        value, name, "1", train.n, n, train.extractor, train.weights_hash,
        {**(protocol or {}), "n_held_out": m, "p_value": float(test.pvalue), "copies": copies},
        Interval(max(0.0, value - reach), min(1.0, value + reach), 0.95, "Hanley and McNeil"),
    )
