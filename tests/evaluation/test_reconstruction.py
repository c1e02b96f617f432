"""Scores of a first stage: definitions, units, streaming."""

import math

import pytest
import torch

from ldmlab.data.images import open_dataset, quantize_8bit, to_float
from ldmlab.data.scenes.scene import render_scene
from ldmlab.evaluation.reconstruction import psnr, reconstruction_scores, ssim
from ldmlab.perception.lab_networks import feature_net
from ldmlab.perception.losses import LpipsLoss, perceptual_loss
from ldmlab.perception.pictures import check_range_of_set
from ldmlab.perception.trunks import TRUNKS
from ldmlab.tensor_files import save_tensors


class Scenes:
    """What `reconstruction_scores` needs of an ImageSet."""

    fingerprint, split, protocol = "scenes of a test", "validation", {"resize": "none"}

    def __init__(self, n: int):
        self.pictures = torch.stack([render_scene(0, "validation", i, 32).image for i in range(n)])

    def __len__(self):
        return len(self.pictures)

    def images(self, indices):
        return self.pictures[list(indices)]


@pytest.fixture(scope="module")
def scenes():
    return Scenes(50)


def scores(reconstruct, data, batch_size=64):
    return reconstruction_scores(
        reconstruct, data, feature_net("fd-lab"), perceptual_loss("student"), batch_size=batch_size, allow_few=True
    )


def test_psnr_by_hand():
    """An error of 0.2 everywhere, peak-to-peak 2: 20 dB; one value a picture; equal pictures give infinity."""
    x = torch.zeros(2, 3, 16, 16)
    y = x.clone()
    y[0] += 0.2
    value = psnr(x, y)
    assert math.isclose(value[0], 20, rel_tol=1e-6) and value[1] == math.inf


def test_ssim_range():
    """1 for equal pictures, near -1 for the negative of noise, one value a picture, too small ones refused."""
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    y = x.clone()
    y[1] = -x[1]
    value = ssim(x, y)
    torch.testing.assert_close(value[[0, 2]], torch.ones(2))
    assert value[1] < -0.8
    with pytest.raises(ValueError, match="11"):
        ssim(x[..., :8, :8], x[..., :8, :8])
    assert ssim(x[:1], y[:1]).shape == (1,)


def test_worse_reconstructions_score_worse(scenes):
    """All four scores move the right way; names, units, n and protocol are there."""
    mild, strong = (scores(lambda x, a=a: x * (1 - a) + a * x.mean((2, 3), keepdim=True), scenes) for a in (0.1, 0.5))
    assert mild["psnr"].value > strong["psnr"].value and mild["ssim"].value > strong["ssim"].value
    assert mild["perceptual"].value < strong["perceptual"].value and mild["rfd"].value < strong["rfd"].value
    assert {key: (s.name, s.unit) for key, s in mild.items()} == {
        "psnr": ("PSNR", "dB"),
        "ssim": ("SSIM", "1"),
        "perceptual": ("PSIM-lab", "1"),
        "rfd": ("rFD-lab", "1"),
    }
    assert all(s.n_real == s.n_fake == 50 and s.protocol["split"] == "validation" for s in mild.values())
    assert mild["rfd"].extractor == "fd-lab" and mild["rfd"].protocol["resize"] == "none"


def test_scores_carry_their_intervals(scenes):
    """Means by their standard error; rFD by drawing pairs again, when asked for."""
    result = scores(lambda x: x * 0.9, scenes)
    for key in ("psnr", "ssim", "perceptual"):
        low, high = result[key].interval.low, result[key].interval.high
        assert low < result[key].value < high and math.isclose(low + high, 2 * result[key].value)
    assert result["rfd"].interval is None
    options = {"num_resamples": 20, "allow_few": True}
    networks = feature_net("fd-lab"), perceptual_loss("student")
    rfd = reconstruction_scores(lambda x: x * 0.9, scenes, *networks, **options)
    assert rfd["rfd"].interval.low < rfd["rfd"].value < rfd["rfd"].interval.high


def test_too_few_pictures_are_refused_before_any_work(scenes):
    """50 pictures for 128 features: no rFD, and nothing is reconstructed first."""
    with pytest.raises(ValueError, match="129"):
        reconstruction_scores(pytest.fail, scenes, feature_net("fd-lab"), perceptual_loss("student"))


def test_identity_is_perfect(scenes):
    """Pixel space, f = 1: infinite PSNR, which JSON cannot say, and no distance."""
    result = scores(lambda x: x, scenes)
    assert result["psnr"].value == math.inf and result["psnr"].as_dict()["value"] is None
    assert result["psnr"].interval is None
    assert result["perceptual"].value == 0 and result["rfd"].value < 1e-6


def test_batches_do_not_matter(scenes):
    """Streaming in sevens gives what one batch gives."""
    one, many = (scores(lambda x: x.roll(1, 3), scenes, batch_size) for batch_size in (50, 7))
    for key in one:
        assert math.isclose(one[key].value, many[key].value, rel_tol=1e-4), key


def test_reconstructions_are_clamped(scenes):
    """A decoder that overshoots is scored by the picture one would see."""
    result = scores(lambda x: x * 100, scenes)
    seen = scores(lambda x: (x * 100).clamp(-1, 1), scenes)
    assert result["psnr"].value == seen["psnr"].value
    assert to_float(scenes.images([0])).abs().max() <= 1


def test_what_trained_is_named_and_alexnet_scores_beside(tmp_path):
    """The network of the training loss is marked, and LPIPS of AlexNet is a score of its own, with its hash."""
    generator = torch.Generator().manual_seed(0)
    made = {name: torch.randn(shape, generator=generator) * 0.05 for name, shape in TRUNKS["alex"].shapes.items()}
    alex = LpipsLoss("alex", save_tensors(tmp_path / "made.safetensors", made, {}))
    data = open_dataset("scenes", size=32, split="validation", num=4, seed=0)
    networks = feature_net("fd-lab"), perceptual_loss("student")
    found = reconstruction_scores(lambda x: x / 2, data, *networks, lpips=alex, trained_on=True, allow_few=True)
    assert found["perceptual"].name == "PSIM-lab (trained on)"
    score = found["lpips_alex"]
    assert (score.name, score.extractor, score.weights_hash) == ("LPIPS-Alex", "LPIPS-Alex", alex.weights_hash)
    x = to_float(data.images(range(4)))
    with torch.inference_mode():
        assert score.value == pytest.approx(alex(x, quantize_8bit(x / 2)).mean().item(), rel=1e-5)


def test_reconstructions_in_another_range_are_refused():
    """[0, 1] passes as [-1, 1] and flatters LPIPS; a bright batch, a grey or white collapse are nobody's mistake."""
    data = open_dataset("scenes", size=32, split="validation", num=4, seed=0)
    networks = feature_net("fd-lab"), perceptual_loss("student")
    with pytest.raises(ValueError, match=r"y must lie in \[-1, 1\].*2 \* x - 1"):
        reconstruction_scores(lambda x: (x + 1) / 2, data, *networks, allow_few=True)
    for collapsed in (0.0, 1.0):
        reconstruction_scores(lambda x, to=collapsed: torch.full_like(x, to), data, *networks, allow_few=True)
    x = to_float(data.images(range(4)))
    check_range_of_set(x, x)
    with pytest.raises(ValueError, match="x must lie in"):
        check_range_of_set((x + 1) / 2, x)
