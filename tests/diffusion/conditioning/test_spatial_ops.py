"""Conditions that enter by channels: the rescaler of label maps, and what an inpainting model sees."""

import pytest
import torch

from ldmlab.diffusion.conditioning.spatial_ops import SpatialRescaler, fill, inpainting_condition, masked, one_hot


def pictures(n=2, size=16, seed=0):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def left_half(n=2, size=16):
    mask = torch.zeros(n, 1, size, size)
    mask[..., : size // 2] = 1
    return mask


def test_rescaler_has_the_released_size():
    """182 labels to 3 channels at a quarter of the side: 546 weights and no bias, as in the released landscapes."""
    model = SpatialRescaler(2, 182, 3)
    assert sum(p.numel() for p in model.parameters()) == 546
    assert model(torch.zeros(1, 182, 32, 64)).shape == (1, 3, 8, 16)


def test_rescaled_labels_are_shares_of_area():
    """Halving one-hot maps gives each cell the shares that its labels cover, which sum to one."""
    labels = torch.randint(5, (2, 16, 16), generator=torch.Generator().manual_seed(0))
    shares = SpatialRescaler(2, 5)(one_hot(labels, 5))
    cells = one_hot(labels, 5).unfold(2, 4, 4).unfold(3, 4, 4).mean((-1, -2))
    torch.testing.assert_close(shares, cells)
    torch.testing.assert_close(shares.sum(1), torch.ones(2, 4, 4))


def test_rescaler_learns():
    """A loss on the condition reaches the convolution."""
    model = SpatialRescaler(1, 4, 2)
    model(torch.rand(1, 4, 8, 8)).square().mean().backward()
    assert model.channel_mapper.weight.grad.abs().min() > 0


def test_one_hot_refuses_unknown_labels():
    """A label outside of the list is named, not wrapped around or dropped."""
    with pytest.raises(ValueError, match="labels are 0 to 4; got 0 to 7"):
        one_hot(torch.tensor([[[0, 7]]]), 5)
    with pytest.raises(ValueError, match="got -1"):
        one_hot(torch.tensor([[[-1, 2]]]), 5)


@pytest.mark.parametrize("arguments, message", [
    ({"num_stages": -1}, "num_stages >= 0"), ({"out_channels": 0}, "positive channels"),
    ({"method": "cubic"}, "nearest, bilinear"), ({"factor": 2.0}, r"factor must be in \(0, 1\]"),
])
def test_rescaler_refuses_bad_arguments(arguments, message):
    """Each message names what is accepted."""
    with pytest.raises(ValueError, match=message):
        SpatialRescaler(**{"num_stages": 1, "in_channels": 4, **arguments})


def test_rescaler_refuses_maps_that_do_not_fit():
    """Another number of labels, and maps smaller than the stride."""
    model = SpatialRescaler(2, 4, 3)
    with pytest.raises(ValueError, match="takes 4 channels, got 5"):
        model(torch.zeros(1, 5, 8, 8))
    with pytest.raises(ValueError, match="too small for 2 stages"):
        model(torch.zeros(1, 4, 2, 8))


def test_holes_are_black_and_the_rest_is_untouched():
    """The hole is -1 as released, not the grey of 0."""
    x, mask = pictures(), left_half()
    hidden = masked(x, mask)
    assert (hidden[..., :8] == -1).all()
    assert torch.equal(hidden[..., 8:], x[..., 8:])


def test_the_condition_hides_the_hole():
    """Pictures that differ only in the hole give one condition; its last channel is the mask, 1 in the hole."""
    mask = left_half()
    x = pictures()
    other = fill(x, pictures(seed=1), mask)
    assert not torch.equal(x, other)

    def encode(x):
        return torch.nn.functional.avg_pool2d(x, 4)

    condition = inpainting_condition(x, mask, encode)
    assert condition.shape == (2, 4, 4, 4)
    assert torch.equal(condition, inpainting_condition(other, mask, encode))
    assert torch.equal(condition[:, 3], torch.tensor([1.0, 1, -1, -1]).expand(2, 4, 4))
    assert torch.equal(condition, inpainting_condition(x, mask[:1], encode))  # one mask serves a batch


def test_known_pixels_are_kept_exactly():
    """Outside of the hole the result is the input, bit for bit, however far the decoder is off."""
    x, mask = pictures(), left_half()
    result = fill(x, torch.full_like(x, 3.0), mask)
    assert torch.equal(result[..., 8:], x[..., 8:])
    assert (result[..., :8] == 1).all()


@pytest.mark.parametrize("mask, message", [
    (torch.zeros(1, 1, 8, 8), "16 x 16, a mask of 8 x 8"),
    (torch.full((1, 1, 16, 16), 0.5), "values from 0.5 to 0.5"),
    (2 * left_half(1) - 1, "values from -1 to 1"),
])
def test_masks_that_do_not_fit_are_refused(mask, message):
    """A mask of another size, a soft one, and one that is in [-1, 1] already."""
    for call in (lambda: masked(pictures(), mask), lambda: inpainting_condition(pictures(), mask, torch.clone),
                 lambda: fill(pictures(), pictures(), mask)):
        with pytest.raises(ValueError, match=message):
            call()
