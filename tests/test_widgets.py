"""Sliders where somebody can move them, a still picture where nobody can."""

import pytest
import torch

from ldmlab import widgets
from ldmlab.diffusion.model import LatentDiffusion
from ldmlab.diffusion.schedules import scaled_linear
from ldmlab.first_stage.autoencoder import build_autoencoder
from ldmlab.first_stage.latents import LatentStats
from ldmlab.first_stage.networks import AutoencoderConfig
from ldmlab.study.snr import ScaleView
from ldmlab.study.views import picture_grid


@pytest.fixture
def pictures():
    """Four pictures in [-1, 1]."""
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def front_end(monkeypatch):
    """As in JupyterLab."""
    monkeypatch.setattr(widgets, "has_front_end", lambda: True)


def test_without_a_front_end_all_values_stand_in_one_picture(pictures):
    """papermill's output shows what a slider would, and holds no widget that nobody can draw."""
    still = widgets.compare_reconstructions(pictures, {f: widgets.shrink(pictures, f) for f in (2, 8)})
    labels = {text.get_text() for ax in still.axes for text in ax.texts}
    assert {"x", "f = 2", "f = 8"} <= labels


def test_moving_the_slider_changes_the_picture(pictures, front_end):
    """The one thing a slider is for."""
    box = widgets.compare_reconstructions(pictures, {f: widgets.shrink(pictures, f) for f in (2, 8, 16)})
    control, picture = box.children
    before = bytes(picture.value)
    control.value = 2
    assert picture.value != before and bytes(picture.value).startswith(b"\x89PNG")
    control.value = 8
    assert picture.value == before


def test_each_value_is_drawn_once(front_end, pictures):
    """Going back and forth does not sample again."""
    drawn = []

    def frame(value):
        drawn.append(value)
        return picture_grid({"x": pictures})

    control, _ = widgets.slider(frame, ["a", "b"], "name", still=lambda: picture_grid({"x": pictures})).children
    for value in ("b", "a", "b", "a"):
        control.value = value
    assert drawn == ["a", "b"]


def test_shrinking_keeps_size_and_range_and_loses_detail(pictures):
    """What is left at f is a picture of the same size, flatter the larger f."""
    spread = [widgets.shrink(pictures, f).std() for f in (2, 4, 8, 16)]
    assert widgets.shrink(pictures, 8).shape == pictures.shape and widgets.shrink(pictures, 8).abs().max() <= 1
    assert all(a > b for a, b in zip(spread, spread[1:], strict=False))


def test_a_slider_without_values_is_an_error():
    """An empty slider would be a widget that cannot be moved."""
    with pytest.raises(ValueError, match="no values"):
        widgets.slider(lambda value: None, [], "f", still=lambda: None)


class NoNoise(torch.nn.Module):
    """A denoiser that sees no noise anywhere."""

    def forward(self, z_t, t):
        return 0 * z_t


@pytest.fixture
def scales():
    """Two pictures as their own latents, of standard deviation 4 as they come."""
    stage = build_autoencoder(AutoencoderConfig(f=1, z_channels=3, reg="none", resolution=16))
    stats = LatentStats("none", (0.0,), (1.0,), (0.01,), 8)
    model = LatentDiffusion(stage, stats, NoNoise(), scaled_linear(), None, 16, torch.device("cpu"))
    z0 = 0.3 * torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    share = {band: [[0, 1.0], [999, 0.0]] for band in ("layout", "texture")}
    return ScaleView(model, z0, torch.zeros(2, dtype=torch.long), 4.0, share)


def test_the_scale_slider_starts_at_the_latent_s_own_scale_and_offers_the_rescaled_one(scales, front_end):
    """1 and the first stage's own standard deviation are always among the choices; moving changes the picture."""
    control, picture = widgets.try_scale(scales, stds=(10.0,)).children
    assert control.value == "4" and [name for name, _ in control.options] == ["1", "4", "10"]
    before = bytes(picture.value)
    control.value = "1"
    assert picture.value != before and bytes(picture.value).startswith(b"\x89PNG")


def test_without_a_front_end_all_scales_stand_in_one_picture(scales):
    """A row of guesses for each scale, named."""
    still = widgets.try_scale(scales, stds=(10.0,))
    texts = {text.get_text() for part in still.subfigs for ax in part.axes for text in ax.texts}
    assert {"std 1", "std 4", "std 10"} <= texts
