"""Degradations do what they say, repeatably."""

import pytest
import torch

from ldmlab.data.images import to_float
from ldmlab.data.scenes.scene import render_scene
from ldmlab.evaluation.distortions import KINDS, degrade

STRENGTH = {"blur": 1.0, "noise": 0.1, "jpeg": 50, "shuffle": 4}


@pytest.fixture(scope="module")
def scenes():
    """Eight scenes."""
    return to_float(torch.stack([render_scene(5, "test", i, 32).image for i in range(8)]))


@pytest.mark.parametrize("kind", KINDS)
def test_degradations_are_repeatable_and_in_range(scenes, kind):
    """The same seed gives the same pictures, of the same shape, in [-1, 1], rounded to 8 bits."""
    x = scenes
    y = degrade(x, kind, STRENGTH[kind])
    assert y.shape == x.shape and y.abs().max() <= 1 and not torch.equal(x, y)
    assert torch.equal(y, degrade(x, kind, STRENGTH[kind]))
    torch.testing.assert_close((y + 1) * 127.5, ((y + 1) * 127.5).round(), atol=1e-4, rtol=0)


def test_shuffle_keeps_the_pixels(scenes):
    """Blocks move, none is lost or changed inside."""
    x = scenes[:4]
    y = degrade(x, "shuffle", 4)
    torch.testing.assert_close(x.flatten(1).sort(1).values, y.flatten(1).sort(1).values)
    corner = y[0, :, :8, :8]
    assert any(torch.allclose(corner, x[0, :, i : i + 8, j : j + 8]) for i in range(0, 32, 8) for j in range(0, 32, 8))
    with pytest.raises(ValueError, match="5 blocks"):
        degrade(x, "shuffle", 5)
    with pytest.raises(ValueError, match="blur, noise"):
        degrade(x, "swirl", 1)
