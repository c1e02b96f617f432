"""Small pictures from large ones: bicubic keeps what fits, BSR is repeatable and shows its steps."""

import pytest
import torch

from ldmlab.data.degradation import bicubic, bsr
from ldmlab.data.images import to_float
from ldmlab.data.scenes.scene import render_scene


@pytest.fixture(scope="module")
def picture():
    return render_scene(0, "train", 0, 64).image


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_bicubic_is_antialiased(factor):
    """Stripes finer than the small picture's pixels become grey, and a constant stays what it is."""
    stripes = torch.ones(1, 3, 64, 64)
    stripes[..., ::2] = -1
    small = bicubic(stripes, factor)
    assert small.shape == (1, 3, 64 // factor, 64 // factor)
    assert small[..., 1:-1].abs().max() < 0.15  # at the border the mean is over fewer stripes
    torch.testing.assert_close(bicubic(torch.full((1, 3, 16, 16), 0.3), 2), torch.full((1, 3, 8, 8), 0.3))


def test_bicubic_stays_in_range():
    """Edges overshoot, so the result is clamped."""
    x = -torch.ones(1, 1, 32, 32)
    x[..., 16:] = 1
    assert bicubic(x, 2).abs().max() <= 1


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_bsr_shows_its_steps(picture, factor):
    """From the original to the result, of the size asked for; noise and blur leave the size as it is."""
    for seed in range(12):
        steps = bsr(picture, factor, seed)
        names = [step.name for step in steps]
        assert torch.equal(steps[0].picture, picture)
        assert steps[-1].picture.shape == (3, 64 // factor, 64 // factor)
        assert names[0] == "original" and names[-1] == "last jpeg"
        shrunk = names.index("shrink" if "shrink" in names else "stride")
        assert {"blur", "noise", "resize"} <= set(names) and shrunk < names.index("resize")
        for before, step in zip(steps, steps[1:], strict=False):
            same = before.picture.shape == step.picture.shape
            assert same or step.name in ("halve", "shrink", "stride", "resize"), step.name


def test_bsr_is_a_function_of_its_seed(picture):
    """The same seed spoils alike; others differ, in order too."""
    results = [bsr(picture, 4, seed) for seed in range(12)]
    assert torch.equal(results[5][-1].picture, bsr(picture, 4, 5)[-1].picture)
    assert len({steps[-1].picture.numpy().tobytes() for steps in results}) == 12
    assert len({tuple(step.name for step in steps) for steps in results}) > 6


def test_bsr_spoils_but_does_not_move_or_darken(picture):
    """The mean over seeds is nearest to the bicubic picture unmoved; moved by a pixel, either way is as far."""
    small = bicubic(to_float(picture)[None], 4)[0]
    mean = torch.stack([to_float(bsr(picture, 4, seed)[-1].picture) for seed in range(60)]).mean(0)
    assert (mean - small).mean((1, 2)).abs().max() < 0.03

    def error(by, axis):
        return (mean - small.roll(by, axis))[:, 1:-1, 1:-1].square().mean()

    for axis in (1, 2):
        left, right = error(-1, axis), error(1, axis)
        assert error(0, axis) < 0.75 * min(left, right)
        assert 0.85 < left / right < 1.18, (axis, left, right)


def test_bad_input_is_refused(picture):
    """Factors that are not offered, sides that do not divide, pictures of a few pixels."""
    with pytest.raises(ValueError, match="one of 2, 4, 8; got 3"):
        bicubic(to_float(picture)[None], 3)
    with pytest.raises(ValueError, match="multiples of factor=4, got 64 x 62"):
        bsr(picture[..., :62].contiguous(), 4)
    with pytest.raises(ValueError, match="8 x factor = 32 pixels or more, got 16 x 64"):
        bsr(picture[:, :16].contiguous(), 4)
