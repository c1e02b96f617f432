"""The scoring network is worth using: its distances grow with every way of spoiling pictures."""

import pytest
import torch

from ldmlab.data.images import to_float
from ldmlab.data.scenes.scene import render_scene
from ldmlab.evaluation.distortions import LADDERS, degradation_curves, degrade, is_increasing
from ldmlab.perception.lab_networks import feature_net


@pytest.fixture(scope="module")
def scenes():
    """Two sets of different scenes."""
    images = [torch.stack([render_scene(5, "test", i, 32).image for i in range(s, s + 150)]) for s in (0, 150)]
    return [to_float(u) for u in images]


@pytest.mark.parametrize(("name", "mildest"), [("fd-lab", 0), ("referee", 2)])
def test_distances_grow_with_degradation(scenes, name, mildest):
    """Blur, noise, JPEG and block shuffle, each step further than the last, from the noise floor up.

    The referee never saw a spoiled picture in training and is spared the two mildest steps.
    """
    ladders = {kind: ladder[mildest:] for kind, ladder in LADDERS.items()}
    curves = degradation_curves(*scenes, feature_net(name), ladders)
    for kind, curve in curves.items():
        assert is_increasing(curve), (kind, curve)


@pytest.mark.parametrize("kind", sorted(LADDERS))
def test_degradations_are_repeatable_and_in_range(scenes, kind):
    """The same seed gives the same pictures, of the same shape, in [-1, 1], rounded to 8 bits."""
    x = scenes[0][:8]
    y = degrade(x, kind, LADDERS[kind][1])
    assert y.shape == x.shape and y.abs().max() <= 1 and not torch.equal(x, y)
    assert torch.equal(y, degrade(x, kind, LADDERS[kind][1]))
    torch.testing.assert_close((y + 1) * 127.5, ((y + 1) * 127.5).round(), atol=1e-4, rtol=0)


def test_shuffle_keeps_the_pixels(scenes):
    """Blocks move, none is lost or changed inside."""
    x = scenes[0][:4]
    y = degrade(x, "shuffle", 4)
    torch.testing.assert_close(x.flatten(1).sort(1).values, y.flatten(1).sort(1).values)
    corner = y[0, :, :8, :8]
    assert any(torch.allclose(corner, x[0, :, i : i + 8, j : j + 8]) for i in range(0, 32, 8) for j in range(0, 32, 8))
    with pytest.raises(ValueError, match="5 blocks"):
        degrade(x, "shuffle", 5)
    with pytest.raises(ValueError, match="blur, noise"):
        degrade(x, "swirl", 1)


def test_rises_is_strict():
    """A plateau is no growth."""
    assert is_increasing([0.0, 1.0, 2.0]) and not is_increasing([0.0, 1.0, 1.0])
