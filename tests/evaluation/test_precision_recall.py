"""Precision falls with strange samples, recall with missing ones."""

import math

import pytest
import torch

from ldmlab.evaluation.distances import FeatureMoments
from ldmlab.evaluation.neighbours import precision_recall, precision_recall_scores


def line(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None]


def test_by_hand():
    """On a line with k = 1, real balls reach 1, generated ones 2 and 100: who lies in whose is counted by eye."""
    real, fake = line(0, 1, 10, 11), line(0.5, 2.5, 102.5)
    # 0.5 lies in a real ball, 2.5 and 102.5 in none. Real 0 and 1 lie within 2 of 0.5; 10 and 11 within 100 of 102.5.
    precision, recall = precision_recall(real, fake, k=1)
    assert math.isclose(precision, 1 / 3, rel_tol=1e-6) and recall == 1.0


def test_missing_modes_cost_recall_and_strange_samples_precision():
    """Two real modes; a generator of one of them, and one of both and a third."""
    g = torch.Generator().manual_seed(0)
    shift = torch.tensor([20.0, 0, 0, 0])
    a, b, c = (torch.randn(100, 4, generator=g) + k * shift for k in range(3))
    fresh = torch.randn(100, 4, generator=g)
    precision, recall = precision_recall(torch.cat([a, b]), fresh)
    assert precision > 0.8 and 0.35 < recall < 0.55
    precision, recall = precision_recall(torch.cat([a, b]), torch.cat([fresh, b + 0.1, c]))
    assert 0.5 < precision < 0.75 and recall > 0.8


def test_values_are_those_of_torch_fidelity():
    """In float32 without the mean as in float64 with it, and for other k."""
    from torch_fidelity.metric_prc import prc_features_to_metric

    g = torch.Generator().manual_seed(2)
    real, fake = torch.randn(150, 16, generator=g), 1.1 * torch.randn(201, 16, generator=g) + 0.2
    for k in (1, 3, 5):
        options = {"prc_neighborhood": k, "prc_batch_size": 1000, "save_cpu_ram": False, "verbose": False}
        theirs = prc_features_to_metric(fake.double(), real.double(), **options)
        precision, recall = precision_recall(real, fake, k)
        assert math.isclose(precision, theirs["precision"], rel_tol=1e-6) and 0 < precision < 1
        assert math.isclose(recall, theirs["recall"], rel_tol=1e-6) and 0 < recall < 1


def test_far_from_the_origin_neighbours_stay_apart():
    """A common offset changes nothing, though squares of its size would swallow the distances in float32."""
    g = torch.Generator().manual_seed(1)
    real, fake = torch.randn(2, 60, 8, generator=g)
    near = precision_recall(real.double(), fake.double())
    far = precision_recall(real.double() + 1e4, fake.double() + 1e4)
    assert near == far and 0 < near[0] < 1


def test_too_few_vectors_are_refused():
    """A ball to the third neighbour needs four vectors."""
    with pytest.raises(ValueError, match="k = 3"):
        precision_recall(torch.randn(3, 4), torch.randn(10, 4))


def test_scores_are_called_by_the_lab():
    """PR-lab, with k in the protocol and the numbers of vectors that were looked at."""
    real, fake = (FeatureMoments(4, keep=keep, extractor="fd-lab").update(torch.randn(30, 4)) for keep in (20, 50))
    scores = precision_recall_scores(real, fake, {"num_steps": 20})
    assert {key: s.name for key, s in scores.items()} == {"precision": "PR-lab precision", "recall": "PR-lab recall"}
    for score in scores.values():
        assert (score.n_real, score.n_fake, score.protocol) == (20, 30, {"num_steps": 20, "k": 3})
    with pytest.raises(ValueError, match="different networks"):
        precision_recall_scores(real, FeatureMoments(4, extractor="referee").update(torch.randn(30, 4)))


def test_features_that_are_not_finite_are_refused():
    """NaN compares with nothing, and would count as a picture in no ball."""
    real, broken = torch.randn(2, 20, 4)
    broken[3, 1] = math.nan
    for pair in ((real, broken), (broken, real)):
        with pytest.raises(ValueError, match="not finite"):
            precision_recall(*pair)
