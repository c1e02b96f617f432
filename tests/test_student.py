"""PSIM-lab, the student of LPIPS: it ranks as its teacher does, at a twentieth of the cost, and its training runs."""

import json

import pytest
import torch
from scipy.stats import spearmanr

from ldmlab.data.images import to_float
from ldmlab.data.scenes.scene import render_scene
from ldmlab.evaluation.distortions import degrade
from ldmlab.perception.files import WEIGHTS
from ldmlab.perception.losses import distance_maps, feature_distance, perceptual_loss
from ldmlab.weights.student_pairs import HELD_OUT, TRAINED, Pairs, distort, joined, photographs
from ldmlab.weights.train_student import mistakes, new_student

DEGRADED = (("blur", 0.5), ("blur", 1.0), ("blur", 2.0), ("noise", 0.05), ("noise", 0.2), ("noise", 0.5), ("jpeg", 60),
            ("jpeg", 15), ("shuffle", 2), ("shuffle", 8))
# Of both pictures of scenes(2), by DEGRADED: LPIPS with VGG16, as the package lpips computes it, and PSIM-lab.
LPIPS = [0.0172, 0.0198, 0.1394, 0.2227, 0.2822, 0.5021, 0.1177, 0.0269, 0.3340, 0.3880, 0.5247, 0.6052, 0.1293, 0.1516,
         0.1922, 0.3275, 0.4029, 0.3952, 0.5145, 0.6369]
STUDENT = [0.0189, 0.0160, 0.1750, 0.2354, 0.4139, 0.4970, 0.1231, 0.0211, 0.5003, 0.3326, 0.6633, 0.5118, 0.1391,
           0.2024, 0.2328, 0.3259, 0.4827, 0.2810, 0.7385, 0.6201]
CARD = json.loads((WEIGHTS / "psim-lab.json").read_text())


def scenes(n: int, size: int = 32) -> torch.Tensor:
    return to_float(torch.stack([render_scene(5, "validation", i, size).image for i in range(n)]))


def test_the_maps_sum_up_to_the_distance():
    """What the training compares by position is what the loss returns."""
    net, x = perceptual_loss("student").net, scenes(3)
    y = x.roll(1, 0)
    maps = distance_maps(net, x, y)
    assert [m.shape[1] for m in maps] == [32, 16, 8, 4, 2] and all((m >= 0).all() for m in maps)
    torch.testing.assert_close(torch.stack([m.mean((1, 2)) for m in maps]).sum(0), feature_distance(net, x, y))
    torch.testing.assert_close(feature_distance(net, x, y), feature_distance(net, y, x))


def test_the_student_ranks_as_lpips_does():
    """The shipped file gives the values it was shipped with, and orders degradations as stored values of LPIPS do."""
    loss, x = perceptual_loss("student"), scenes(2)
    found = torch.cat([loss(x, degrade(x, kind, strength)) for kind, strength in DEGRADED])
    torch.testing.assert_close(found, torch.tensor(STUDENT), atol=2e-3, rtol=0)
    assert spearmanr(found, LPIPS).statistic > 0.94


def test_the_card_states_what_was_measured():
    """Agreement with the teacher on held-out pictures and kinds, and the cost, whose ratio of operations is exact."""
    assert CARD["version"] == 2 and (WEIGHTS / "psim-lab.safetensors").stat().st_size < 2e6
    measured = CARD["spearman_with_lpips"]
    assert set(measured["all sources, 32px"]) == {"all", *HELD_OUT}
    assert measured["all sources, 32px"]["all"] > 0.94 and measured["all sources, 64px"]["all"] > 0.95
    assert CARD["cost_at_32px"]["lpips_multiplications"] > 20
    assert (perceptual_loss("student").net.channel_weights >= 0).all()


@pytest.mark.parametrize("kinds", [TRAINED, HELD_OUT], ids=["trained", "held out"])
def test_distortions_keep_shape_and_range(kinds):
    """Every kind changes the pictures at full strength, keeps their shape, and stays finite at both ends."""
    x, generator = scenes(8), torch.Generator().manual_seed(0)
    for name, distortion in kinds.items():
        for t in (0.0, 1.0):
            y = distortion(x, t, generator)
            assert y.shape == x.shape and y.isfinite().all(), name
        assert (y - x).abs().mean() > 0.005, name


def test_no_kind_is_trained_and_held_out():
    """The validation's kinds are new to the student; a seed gives the same pairs again."""
    assert not TRAINED.keys() & HELD_OUT.keys()
    x = scenes(16)
    (a, of), (b, _) = (distort(x, TRAINED, torch.Generator().manual_seed(3), two=0.5) for _ in range(2))
    assert torch.equal(a, b) and a.abs().max() <= 1 and len(of) == 16


def test_pictures_are_given_with_their_side():
    """A path without @SIDE is refused; pictures read below the wanted size are not enlarged."""
    generator = torch.Generator()
    with pytest.raises(ValueError, match="PATH@SIDE"):
        photographs("folder", 32, 1, generator, held_out=False)
    assert photographs("folder@32", 64, 1, generator, held_out=False) is None


def test_a_perfect_student_makes_no_mistakes():
    """All three errors vanish against itself, and a step along their gradient is possible."""
    torch.manual_seed(0)
    net, x = new_student(None), scenes(2)
    y = x.roll(1, 0).requires_grad_()
    maps = distance_maps(net, x, y)
    (gradient,) = torch.autograd.grad(feature_distance(net, x, y).sum(), y)
    pairs = Pairs(x, y.detach(), [m.detach() for m in maps], gradient)
    errors = mistakes(net, joined([pairs, pairs]), [m.mean().item() for m in maps], gradient=True)
    assert all(error.abs() < 1e-5 for error in errors)
    wrong = Pairs(x, y.detach(), [1.5 * m.detach() for m in maps], gradient.flip(2))
    sum(mistakes(net, wrong.mirrored(), [1.0] * 5, gradient=True)).backward()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters() if p.ndim == 4)
