"""Improved precision and recall, for fidelity and coverage [Kynkäänniemi et al. 2019, Eq. 1-2; LDM v2, Tab. 1].

On ldmlab's features they are named PR-lab. Published values use the features of Inception, as in the script of Dhariwal
and Nichol that the paper uses, or those of VGG16. Values on different features cannot be compared.
"""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ldmlab.evaluation.distances import FeatureMoments, Score, score_name


def precision_recall(real: Float[Tensor, "n d"], fake: Float[Tensor, "m d"], k: int = 3) -> tuple[float, float]:
    """(precision, recall) by torch-fidelity, both in [0, 1]; ValueError unless both sets have more than k >= 1 vectors.

    Precision is the share of generated vectors within the ball of a real one, recall that of real vectors within the
    ball of a generated one; a ball reaches to the k-th neighbour in its own set. Both depend on n and m.
    """
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    if k < 1 or min(len(real), len(fake)) <= k:
        raise ValueError(f"balls to neighbour k = {k} need more than k >= 1 vectors, got {len(real)} and {len(fake)}")
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
