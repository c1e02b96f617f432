"""The ranking suite: families are in the order they claim, metrics agree with the library's, verdicts follow."""

import numpy as np
import pytest
import torch

from ldmlab.evaluation.distances import kid
from ldmlab.evaluation.neighbours import precision_recall
from ldmlab.evaluation.ranking import orders
from ldmlab.evaluation.ranking.families import FAMILIES, Material, with_random_phases
from ldmlab.evaluation.ranking.orders import BROKEN, KEPT, UNDECIDED, Order, RankedMetric, rank, set_metrics
from ldmlab.perception.lab_networks import feature_net


def pictures(num, seed, size=32):
    coarse = torch.rand(num, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size, mode="bicubic", align_corners=True).clamp(-0.9, 0.9)


@pytest.fixture(scope="module")
def material():
    return Material(pictures(24, 0), pictures(32, 1), torch.arange(24) % 6)


def test_every_family_starts_with_the_true_pictures_and_gets_farther_from_them(material):
    """Squared error grows along every family of distortions, which is what makes their order known."""
    for family in FAMILIES.values():
        levels = list(family.make(material).values())
        assert family.name == "first stages" or len(levels) >= 3, family.name
        for x in levels:
            assert x.shape == material.true.shape and x.abs().max() <= 1
        if family.paired and levels:
            errors = [(x - levels[0]).square().mean().item() for x in levels]
            assert all(a < b for a, b in zip(errors, errors[1:], strict=False)), family.name


def test_variety_and_novelty_fall_as_they_say(material):
    distinct = [len(x.flatten(1).unique(dim=0)) for x in FAMILIES["fewer distinct pictures"].make(material).values()]
    assert distinct == [24, 6, 1, 1]
    *_, copies = FAMILIES["copies"].make(material).values()
    assert (copies - material.train[:24]).abs().max() < 0.01
    assert FAMILIES["fewer classes"].make(Material(material.true, material.train)) == {}


def test_random_phases_keep_the_power_spectrum_and_the_mean(material):
    made = with_random_phases(material.true, 1.0, torch.Generator().manual_seed(0))
    power, expected = (torch.fft.rfft2(x).abs() for x in (made, material.true))
    inside = (..., slice(1, 16), slice(1, 16))  # the others are their own mirror images, so their phases are 0 or pi
    assert torch.allclose(power[inside], expected[inside], atol=1e-3)
    assert torch.allclose(made.mean((2, 3)), material.true.mean((2, 3)), atol=1e-4)


def test_metrics_of_sets_are_the_library_s():
    """Kernel distance, precision and recall equal those of `kid` and torch-fidelity, for all and for some rows."""
    generator = torch.Generator().manual_seed(0)
    train, true, level = (torch.randn(n, 8, generator=generator) for n in (60, 40, 40))
    keep = torch.arange(40) % 8 != 3
    for rows in (torch.ones(40, dtype=torch.bool), keep):
        expected = precision_recall(train, level[rows])
        assert orders.precision(train, true)(level)(rows) == pytest.approx(expected[0], abs=1e-6)
        assert orders.recall(train, true)(level)(rows) == pytest.approx(expected[1], abs=1e-6)
    everything = kid(train, train[:60] + 1, subset_size=60)[0]
    assert orders.kernel_distance(train, true)(train + 1)(torch.ones(60, dtype=torch.bool)) == pytest.approx(
        1000 * everything, rel=1e-6)
    assert orders.memorisation(train, true)(train[:40])(keep) == 1
    assert orders.memorisation(train, true)(true)(torch.ones(40, dtype=torch.bool)) == pytest.approx(0.5)


def test_a_metric_that_sees_keeps_orders_and_one_that_does_not_breaks_them(material):
    """Mean brightness is blind to blur; squared error sees it; its negative calls the worse one better."""
    def error(x, y):
        return (x - y).square().flatten(1).mean(1)

    metrics = [RankedMetric("sees", "", ("quality",), pairs=error),
               RankedMetric("inverted", "", ("quality",), -1, pairs=error),
               RankedMetric("blind", "", ("quality",), pairs=lambda x, y: torch.rand(
                   len(x), generator=torch.Generator().manual_seed(int(1e4 * y.std()))))]
    found = rank(material, metrics, {}, {"blur": FAMILIES["blur"], "copies": FAMILIES["copies"]})
    assert {key: order.verdict for key, order in found["blur"].items()} == {
        "sees": KEPT, "inverted": BROKEN, "blind": UNDECIDED}
    assert found["copies"] == {}  # pairs have no meaning there


def test_networks_that_score_see_copies_and_blur(material):
    """On the lab's network, quick: blur by FD-lab in order; of copies, the distance says that they are better."""
    nets = {"fd-lab": feature_net("fd-lab")}
    found = rank(material, set_metrics(list(nets), 24), nets, {k: FAMILIES[k] for k in ("blur", "copies")})
    assert np.all(np.diff(found["blur"]["fd_lab"].values) > 0)
    assert found["copies"]["fd_lab"].verdict == BROKEN


def test_the_verdict_needs_every_step():
    steps = [(1.0, 0.5, 1.5), (0.1, -0.2, 0.4)]
    assert Order([0.0, 1.0, 2.0], steps).verdict == UNDECIDED
    assert Order([0.0, 1.0, 2.0], [*steps, (-1.0, -2.0, -0.1)]).verdict == BROKEN
    assert Order([0.0, 1.0], steps[:1]).verdict == KEPT
