"""Sliders where somebody can move them, a still picture where nobody can."""

import pytest
import torch

from ldmlab.diffusion.model import LatentDiffusion
from ldmlab.diffusion.schedules import scaled_linear
from ldmlab.experiments.latent_scale import ScaleView
from ldmlab.figures.pictures import picture_grid
from ldmlab.first_stage.autoencoder import build_autoencoder
from ldmlab.first_stage.latents import LatentStats
from ldmlab.first_stage.networks import AutoencoderConfig
from ldmlab.widgets import sliders
from ldmlab.widgets.box_drawing import BoxDrawing


@pytest.fixture
def pictures():
    """Four pictures in [-1, 1]."""
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def front_end(monkeypatch):
    """As in JupyterLab."""
    monkeypatch.setattr(sliders, "has_front_end", lambda: True)


def test_without_a_front_end_all_values_stand_in_one_picture(pictures):
    """papermill's output shows what a slider would, and holds no widget that nobody can draw."""
    still = sliders.compare_reconstructions(pictures, {f: sliders.shrink(pictures, f) for f in (2, 8)})
    labels = {text.get_text() for ax in still.axes for text in ax.texts}
    assert {"x", "f = 2", "f = 8"} <= labels


def test_moving_the_slider_changes_the_picture(pictures, front_end):
    """The one thing a slider is for."""
    box = sliders.compare_reconstructions(pictures, {f: sliders.shrink(pictures, f) for f in (2, 8, 16)})
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

    control, _ = sliders.slider(frame, ["a", "b"], "name", still=lambda: picture_grid({"x": pictures})).children
    for value in ("b", "a", "b", "a"):
        control.value = value
    assert drawn == ["a", "b"]


def test_shrinking_keeps_size_and_range_and_loses_detail(pictures):
    """What is left at f is a picture of the same size, flatter the larger f."""
    spread = [sliders.shrink(pictures, f).std() for f in (2, 4, 8, 16)]
    assert sliders.shrink(pictures, 8).shape == pictures.shape and sliders.shrink(pictures, 8).abs().max() <= 1
    assert all(a > b for a, b in zip(spread, spread[1:], strict=False))


def test_a_slider_without_values_is_an_error():
    """An empty slider would be a widget that cannot be moved."""
    with pytest.raises(ValueError, match="no values"):
        sliders.slider(lambda value: None, [], "f", still=lambda: None)


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
    control, picture = sliders.try_scale(scales, stds=(10.0,)).children
    assert control.value == "4" and [name for name, _ in control.options] == ["1", "4", "10"]
    before = bytes(picture.value)
    control.value = "1"
    assert picture.value != before and bytes(picture.value).startswith(b"\x89PNG")


def test_without_a_front_end_all_scales_stand_in_one_picture(scales):
    """A row of guesses for each scale, named."""
    still = sliders.try_scale(scales, stds=(10.0,))
    texts = {text.get_text() for part in still.subfigs for ax in part.axes for text in ax.texts}
    assert {"std 1", "std 4", "std 10"} <= texts


# Captions and boxes
@pytest.fixture(scope="module")
def told():
    """A maker of small models that are told a caption or a layout."""
    from ldmlab.data.scenes.scene import LABELS
    from ldmlab.diffusion.conditioning.boxes import BoxTokenizer
    from ldmlab.diffusion.conditioning.captions import SCENES_VOCABULARY, CaptionTokenizer
    from ldmlab.diffusion.conditioning.tokens import LayoutEmbedder, TextEmbedder
    from ldmlab.diffusion.conditioning.transformer import TokenTransformer
    from ldmlab.diffusion.unet.unet import DenoiserConfig, UNet

    def make(kind: str) -> LatentDiffusion:
        torch.manual_seed(0)
        first_stage = build_autoencoder(AutoencoderConfig(f=1, z_channels=3, reg="none", resolution=32))
        unet = UNet(DenoiserConfig(3, 3, (8, 16), num_res_blocks=1, num_heads=1, norm_groups=8, context_dim=8))
        torch.nn.init.normal_(unet.head_conv.weight)
        if kind == "text":
            tokenizer = CaptionTokenizer(SCENES_VOCABULARY, 12, closed=True)
            tau = TextEmbedder(tokenizer, TokenTransformer(len(tokenizer), 12, 8, 1, 1, 8))
        else:
            tokenizer = BoxTokenizer(len(LABELS), 1025, 3)
            tau = LayoutEmbedder(tokenizer, TokenTransformer(1025, tokenizer.length, 8, 1, 1, 8))
        stats = LatentStats("none", (0.0,), (1.0,), (0.0,), 0)
        return LatentDiffusion(first_stage, stats, unet.eval(), scaled_linear(), tau.eval(), 32, torch.device("cpu"))

    return make


def words(fig) -> str:
    """All text of a figure."""
    return " ".join(text.get_text() for text in fig.findobj(lambda artist: hasattr(artist, "get_text")))


def test_a_caption_is_drawn_and_what_it_does_to_the_model_is_said(told):
    """Without a front end too: unknown words, an empty caption, signs that a figure could take for mathematics."""
    draw = lambda caption: words(sliders.try_captions(told("text"), caption, num_steps=1, n=2))  # noqa: E731
    assert "never seen “zebra”" in draw("a zebra for $5 and $6")
    assert "drawn without a condition" in draw("")
    assert "cut off" in draw("red " * 200)


def test_typing_a_caption_draws_it(told, front_end):
    """Enter in the text box is enough; the button and the slider draw again."""
    box = sliders.try_captions(told("text"), "a red car", num_steps=1, n=1)
    text, (scale, button), picture = box.children[0], box.children[1].children, box.children[3]
    seen = {bytes(picture.value)}
    text.value = "a blue boat"
    seen.add(bytes(picture.value))
    scale.value = 8.0
    seen.add(bytes(picture.value))
    button.click()
    seen.add(bytes(picture.value))
    assert len(seen) == 3 and not button.disabled


def test_boxes_are_drawn_with_the_mouse(front_end):
    """A drag in any direction is a box of the chosen thing; a click is none; undo and clear take boxes back."""
    drawing = BoxDrawing(["car", "sun"], [("car", 0.1, 0.1, 0.2, 0.2)])
    side = drawing.SIDE
    drawing.name.value = "sun"
    drawing.press(0.75 * side, 0.5 * side)
    drawing.move(0.6 * side, 0.3 * side)
    drawing.release(0.5 * side, 0.25 * side)
    assert drawing.boxes[1] == ("sun", 0.5, 0.25, 0.75, 0.5)
    drawing.press(10, 10)
    drawing.release(11, 11)
    drawing.move(90, 90)  # without the button
    assert len(drawing.boxes) == 2
    _, undo, clear = drawing.controls.children
    undo.click()
    assert drawing.boxes == [("car", 0.1, 0.1, 0.2, 0.2)]
    clear.click()
    assert drawing.boxes == []


def test_a_layout_is_drawn_and_a_wrong_one_is_told_in_its_place(told, front_end):
    """A box beyond the edge is cut and said; no box at all is a picture without a condition; nothing raises."""
    box = sliders.try_layouts(told("layout"), [("car", 0.5, 0.5, 1.2, 0.9)], ["car", "sun"], num_steps=1, n=2)
    canvas, (_, button), said, picture = box.children[0], box.children[1].children, box.children[2], box.children[3]
    before = bytes(picture.value)
    assert before.startswith(b"\x89PNG") and said.value == ""
    canvas.children[0].children[2].click()  # clear
    button.click()
    assert bytes(picture.value) != before and not button.disabled
    broken = sliders.try_layouts(told("layout"), [("zebra", 0.1, 0.1, 0.5, 0.5)], ["car", "sun"], num_steps=1, n=2)
    assert "zebra" in broken.children[2].value


def test_without_a_front_end_a_layout_is_a_still_picture(told):
    """Boxes with their names, samples below, and what was changed in the small print."""
    still = sliders.try_layouts(told("layout"), [("car", 0.5, 0.5, 1.2, 0.9)], ["car", "sun"], num_steps=1, n=2)
    assert "car" in words(still) and "cut to the picture" in words(still).replace("\n", " ")
