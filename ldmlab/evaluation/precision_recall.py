"""Improved precision and recall: fidelity and coverage apart [Kynkäänniemi et al. 2019, Eq. 1-2; LDM v2, Tab. 1].

On the lab's features they are called PR-lab. The published ones are taken on the features of Inception, as by the
script of Dhariwal and Nichol that the paper uses, or on those of VGG16: none of the three compares with another.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ldmlab.evaluation.distances import FeatureMoments, Score, score_name

BLOCK = 2048  # vectors of each set whose distances are held at once


def precision_recall(real: Float[Tensor, "n d"], fake: Float[Tensor, "m d"], k: int = 3) -> tuple[float, float]:
    """(precision, recall), both in [0, 1]; the values of torch-fidelity.

    Precision is the share of generated vectors inside a real one's ball, recall that of real vectors inside a generated
    one's; a ball reaches to the k-th neighbour in its own set. Both depend on the numbers n and m.
    """
    if k < 1 or min(len(real), len(fake)) <= k:
        raise ValueError(f"balls to neighbour k = {k} need more than k >= 1 vectors, got {len(real)} and {len(fake)}")
    # The squares of vectors far from 0 would swallow their distances in float32: first the common mean is taken away.
    mean = real.detach().cpu().double().mean(0)
    real, fake = ((v.detach().cpu().double() - mean).float() for v in (real, fake))
    in_real, in_fake = torch.zeros(len(fake), dtype=torch.bool), torch.zeros(len(real), dtype=torch.bool)
    real_radii, fake_radii = _radii(real, k), _radii(fake, k)
    for i in range(0, len(fake), BLOCK):
        for j in range(0, len(real), BLOCK):
            rows, columns = slice(i, i + BLOCK), slice(j, j + BLOCK)
            squares = _squared_distances(fake[rows], real[columns])
            in_real[rows] |= (squares <= real_radii[columns]).any(1)
            in_fake[columns] |= (squares <= fake_radii[rows, None]).any(0)
    return in_real.double().mean().item(), in_fake.double().mean().item()


def _radii(v: Float[Tensor, "n d"], k: int) -> Float[Tensor, " n"]:
    """The squared distance of each vector to its k-th neighbour; each pair of vectors is looked at once."""
    nearest = torch.full((len(v), k + 1), torch.inf)  # itself among them
    for i in range(0, len(v), BLOCK):
        for j in range(i, len(v), BLOCK):
            rows, columns = slice(i, i + BLOCK), slice(j, j + BLOCK)
            squares = _squared_distances(v[rows], v[columns])
            for part, block in ((rows, squares), (columns, squares.T))[: 1 + (j > i)]:
                nearest[part] = torch.cat([nearest[part], block], 1).topk(k + 1, largest=False).values
    return nearest.amax(1)


def _squared_distances(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    squares = torch.addmm(b.square().sum(1)[None], a, b.T, alpha=-2)
    return squares.add_(a.square().sum(1)[:, None]).clamp_(min=0)


def precision_recall_scores(
    real: FeatureMoments, fake: FeatureMoments, protocol: Mapping[str, Any] | None = None, *, k: int = 3
) -> dict[str, Score]:
    """`precision` and `recall` of the kept vectors, as PR-lab on the lab's features; n are the sizes of the samples."""
    name = score_name("PR", real, fake)
    values = zip(("precision", "recall"), precision_recall(real.sample, fake.sample, k), strict=True)
    about = (len(real.sample), len(fake.sample), real.extractor, real.weights_hash, {**(protocol or {}), "k": k})
    return {key: Score(value, f"{name} {key}".removeprefix("PR "), "1", *about) for key, value in values}
