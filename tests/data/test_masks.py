"""Inpainting masks: repeatable, of the asked coverage, and each kind wider than the one before."""

import pytest
import torch
from scipy.ndimage import distance_transform_edt

from ldmlab.data.masks import KINDS, LAMA_COVERED, coverage, inpainting_masks

GOLDEN_COVERAGES = [[0.1902, 0.1467, 0.1355], [0.1865, 0.3242, 0.2205], [0.4937, 0.2583, 0.301]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_is_a_function_of_its_seed(kind):
    """Mask i is the same in every call and company; another seed or index is another mask."""
    masks = inpainting_masks(6, 64, kind, seed=3)
    assert torch.equal(masks, inpainting_masks(6, 64, kind, seed=3))
    assert torch.equal(masks[:2], inpainting_masks(2, 64, kind, seed=3))
    assert len({mask.numpy().tobytes() for mask in (*masks, *inpainting_masks(6, 64, kind, seed=4))}) == 12


def test_the_masks_have_not_changed():
    """Scores are comparable only on the same masks: their coverages, but for how Pillow rounds at the edges."""
    found = [coverage(inpainting_masks(3, 64, kind, seed=0)).tolist() for kind in KINDS]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(GOLDEN_COVERAGES), atol=0.01, rtol=0)


@pytest.mark.parametrize("size", [32, 45, (64, 33), 128, 512])
@pytest.mark.parametrize("kind", KINDS)
def test_any_size(kind, size):
    """Binary, of the asked size, within the kind's range, never all hole or without any."""
    masks = inpainting_masks(4, size, kind)
    assert masks.shape == (4, 1, *((size, size) if isinstance(size, int) else size))
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    low, high = KINDS[kind].covered
    assert ((coverage(masks) > 0) & (low <= coverage(masks)) & (coverage(masks) <= high + 1e-6)).all()


def test_kinds_cover_more_and_more():
    """Ends of the ranges, means and medians are in the order thin, medium, thick."""
    shares = [coverage(inpainting_masks(60, 48, kind)) for kind in ("thin", "medium", "thick")]
    for statistic in (torch.amin, torch.amax, torch.mean, torch.median):
        values = [statistic(share).item() for share in shares]
        assert values == sorted(values) and len(set(values)) == 3, (statistic, values)


def test_kinds_are_wider_and_wider():
    """With one limit on coverage for all, as in LaMa, a pixel of the hole is farther from what is known."""
    depths = []
    for kind in ("thin", "medium", "thick"):
        masks = inpainting_masks(40, 128, kind, covered=LAMA_COVERED)[:, 0].numpy()
        depths.append(sum(distance_transform_edt(mask)[mask == 1].mean() for mask in masks) / len(masks))
    assert 2 * depths[0] < depths[1] and 1.5 * depths[1] < depths[2], depths


def test_coverage_can_be_asked_for():
    """The stratum of Tab. 7; what a kind cannot give is said, not searched for without end."""
    share = coverage(inpainting_masks(5, 64, "thick", covered=(0.4, 0.5)))
    assert ((share >= 0.4) & (share <= 0.5)).all()
    with pytest.raises(ValueError, match="none of 1000 thin masks of 32 x 32 covers 98% to 100%"):
        inpainting_masks(1, 32, "thin", covered=(0.98, 1))


def test_coverage_counts_the_hole():
    """A quarter is a quarter."""
    mask = torch.zeros(2, 1, 8, 8)
    mask[1, :, :4, :4] = 1
    assert coverage(mask).tolist() == [0.0, 0.25]


@pytest.mark.parametrize("arguments, message", [
    ({"kind": "wide"}, "thin, medium, thick; got 'wide'"), ({"n": 0}, "n=0"), ({"seed": -1}, "seed=-1"),
    ({"size": 4}, "got 4 x 4"), ({"size": (64, 10_000)}, "got 64 x 10000"), ({"covered": (0.5, 0.4)}, "within 0 to 1"),
    ({"covered": (0, 40)}, "within 0 to 1"),
])
def test_bad_input_is_refused(arguments, message):
    """Each message names what was given and what is accepted."""
    with pytest.raises(ValueError, match=message):
        inpainting_masks(**{"n": 1, "size": 32, **arguments})
