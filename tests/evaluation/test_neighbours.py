"""A generator that copies is found out; one that is as new as unseen pictures is not."""

import pytest
import torch

from ldmlab.evaluation.distances import FeatureMoments
from ldmlab.evaluation.neighbours import memorisation_score, nearest, nearness_ratio


def moments(x: torch.Tensor, **keywords) -> FeatureMoments:
    return FeatureMoments(x.shape[1], keep=keywords.pop("keep", len(x)), extractor="fd-lab").update(x)


def a_world(seed: int):
    """300 training and 200 held-out vectors of one distribution, and 200 fresh ones as an honest generator's."""
    return torch.randn(700, 8, generator=torch.Generator().manual_seed(seed)).split([300, 200, 200])


@pytest.fixture
def world():
    return a_world(0)


def test_nearest_finds_copies_and_orders_the_rest(world):
    """A copy is at distance 0 and named by its index; further neighbours follow in order; chunks do not matter."""
    train, held_out, _ = world
    distances, indices = nearest(train[[7, 200]] + 100, train + 100, k=3)
    assert distances[:, 0].tolist() == [0, 0] and indices[:, 0].tolist() == [7, 200]
    assert (distances.diff(dim=1) > 0).all()
    for one, other in zip(nearest(held_out, train), nearest(held_out, train, chunk=7), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match="300; got 301"):
        nearest(held_out, train, k=301)


def test_an_honest_generator_is_as_new_as_unseen_pictures():
    """In 40 worlds: 0.5 on average and in 36 of the 95 % intervals; copies and small p-values as often as by chance."""
    scores = [memorisation_score(*map(moments, a_world(seed)), {"num_steps": 20}) for seed in range(40)]
    assert abs(sum(s.value for s in scores) / 40 - 0.5) < 0.02
    assert 36 <= sum(s.interval.low < 0.5 < s.interval.high for s in scores) < 40
    assert sum(s.protocol["copies"] for s in scores) / 40 < 0.03
    assert sum(s.protocol["p_value"] < 0.05 for s in scores) <= 5
    score = scores[0]
    assert (score.name, score.n_real, score.n_fake) == ("memorisation-lab", 300, 200)
    assert score.protocol["n_held_out"] == 200 and score.protocol["num_steps"] == 20


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_a_memorising_generator_is_found_out(world, share):
    """Training vectors with a little noise, among honest ones: far above 0.5; the share of copies is right."""
    train, held_out, fresh = world
    g = torch.Generator().manual_seed(1)
    num = int(share * 200)
    samples = torch.cat([train[:num] + 0.01 * torch.randn(num, 8, generator=g), fresh[num:]])
    score = memorisation_score(moments(train), moments(held_out), moments(samples))
    assert score.value > 0.5 + 0.45 * share - 0.05 and score.interval.low > 0.5 and score.protocol["p_value"] < 1e-3
    assert abs(score.protocol["copies"] - share) < 0.05
    ratio = nearness_ratio(samples, train, held_out)
    assert (ratio[:num] < 0.1).all()
    assert num == 200 or 0.8 < ratio[num:].median() < 1.2


def test_a_poor_generator_does_not_look_like_a_copying_one(world):
    """Samples far from everything score below 0.5."""
    train, held_out, fresh = world
    assert memorisation_score(moments(train), moments(held_out), moments(fresh + 5)).value < 0.1


def test_a_part_of_the_training_set_is_refused(world):
    """The nearest of some vectors is not the nearest."""
    train, held_out, fresh = world
    with pytest.raises(ValueError, match="of 300 training pictures only 100"):
        memorisation_score(moments(train, keep=100), moments(held_out), moments(fresh))


def test_copies_are_counted_where_held_out_pictures_are_copies_too(world):
    """Duplicates among 1 % of the held-out pictures put the quantile at 0: a set of copies is one all the same."""
    train, held_out, _ = world
    held_out = torch.cat([train[:4], held_out[4:]])
    assert memorisation_score(moments(train), moments(held_out), moments(train[:200])).protocol["copies"] == 1
