"""Sliders over functions of the library; without a front end (papermill, scripts) they return a static figure."""

import html
import io
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from torch import Tensor

from ldmlab.diffusion.conditioning.boxes import check_boxes
from ldmlab.diffusion.trajectory import Path
from ldmlab.experiments.latent_scale import ScaleView
from ldmlab.figures.pictures import fig_path, layout_grid, picture_grid
from ldmlab.figures.snr_rescaling import fig_latent_scales
from ldmlab.study.training.progress import has_front_end
from ldmlab.widgets.box_drawing import BoxDrawing

if TYPE_CHECKING:
    from ipywidgets import Widget

    from ldmlab.diffusion.model import LatentDiffusion

_STILLS = 5  # number of a slider's values in its static figure


def slider(
    frame: Callable[[Any], Figure], values: Sequence[Hashable], name: str, *, start: Hashable | None = None,
    still: Callable[[], Figure],
) -> "Widget | Figure":
    """A slider over `values` that shows `frame(value)`, cached; without a front end, the figure `still()`.

    ValueError without values.
    """
    if not values:
        raise ValueError(f"the slider {name!r} has no values")
    if not has_front_end():
        return still()
    import ipywidgets

    @lru_cache(maxsize=256)
    def png(value: Hashable) -> bytes:
        return as_png(frame(value))

    start = values[0] if start is None else start
    control = ipywidgets.SelectionSlider(
        options=[(str(value), value) for value in values], value=start, description=name, continuous_update=False,
        style={"description_width": "initial"}, layout={"width": "480px"})
    # flex-start keeps the picture's own size; the default would stretch it.
    picture = ipywidgets.Image(value=png(start), format="png", layout={"max_width": "100%", "align_self": "flex-start"})

    def show(change: Mapping) -> None:
        picture.value = png(change["new"])

    control.observe(show, "value")
    return ipywidgets.VBox([control, picture])


def as_png(fig: Figure) -> bytes:
    """Render a figure to the PNG bytes that an image widget takes."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def compare_reconstructions(
    x: Float[Tensor, "n 3 h w"], x_rec: Mapping[int, Float[Tensor, "n 3 h w"]], caption: str = ""
) -> "Widget | Figure":
    """Pictures in [-1, 1] above their reconstructions `x_rec` by f, with a slider over f."""
    fs = sorted(x_rec)

    def frame(f: int) -> Figure:
        return picture_grid({"x": x, f"f = {f}": x_rec[f]}, caption=caption)

    return slider(frame, fs, "f", start=fs[len(fs) // 2],
                  still=lambda: picture_grid({"x": x, **{f"f = {f}": x_rec[f] for f in fs}}, caption=caption))


def watch_denoising(path: Path, caption: str = "") -> "Widget | Figure":
    """z_t and z0_hat of a sampling trajectory, decoded, with a slider over the sampler's steps."""

    def frame(label: str) -> Figure:
        z, z0 = path.pictures(labels.index(label))
        return picture_grid({r"$z_t$, decoded": z, r"$\hat z_0$, decoded": z0}, caption=caption)

    labels = [f"{i + 1} of {len(path)}, t = {t}" for i, t in enumerate(path.t)]
    return slider(frame, labels, "step", start=labels[len(labels) // 2], still=lambda: fig_path(path, caption=caption))


def try_guidance(
    model: "LatentDiffusion", y: Int[Tensor, " n"], *, num_steps: int, names: Sequence[str] = (), seed: int = 0,
    scales: Sequence[float] = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0), caption: str = "",
) -> "Widget | Figure":
    """Samples from the same noise for class labels `y`, with a slider over the guidance scale.

    Scale 1 is no guidance, 0 is unconditional.
    """

    @lru_cache(maxsize=64)
    def samples(scale: float) -> Tensor:
        return model.sample(y, num_steps=num_steps, guidance_scale=scale, seed=seed)

    def rows(chosen: Sequence[float]) -> Figure:
        return picture_grid({f"s = {scale:g}": samples(scale) for scale in chosen}, columns=names, caption=caption)

    return slider(lambda scale: rows([scale]), list(scales), "guidance scale", start=1.0,
                  still=lambda: rows(scales[:_STILLS]))


def try_steps(
    model: "LatentDiffusion", y: Int[Tensor, " n"], *, steps: Sequence[int] = (1, 2, 5, 10, 20, 50, 100, 200),
    eta: float = 0.0, guidance_scale: float = 1.0, seed: int = 0, caption: str = "",
) -> "Widget | Figure":
    """Samples from the same noise for class labels `y`, with a slider over the number of DDIM steps."""

    @lru_cache(maxsize=64)
    def samples(num_steps: int) -> Tensor:
        return model.sample(y, num_steps=num_steps, eta=eta, guidance_scale=guidance_scale, seed=seed)

    def rows(chosen: Sequence[int]) -> Figure:
        return picture_grid({f"{n} step{'s' if n > 1 else ''}": samples(n) for n in chosen}, caption=caption)

    return slider(lambda n: rows([n]), list(steps), "DDIM steps", start=steps[len(steps) // 2],
                  still=lambda: rows(steps[:_STILLS]))


def try_captions(
    model: "LatentDiffusion", caption: str, *, num_steps: int, guidance_scale: float = 3.0, n: int = 8, seed: int = 0,
    about: str = "",
) -> "Widget | Figure":
    """A text box for a caption: `n` samples are shown, with notes on words outside the model's vocabulary."""
    conditioner: Any = model.conditioner
    tokenizer = conditioner.tokenizer

    def frame(caption: str, scale: float) -> Figure:
        y = tokenizer([caption] * n)
        samples = model.sample(y, num_steps=num_steps, guidance_scale=scale, seed=seed)
        notes = "".join(f" Note: {note}." for note in tokenizer.notes(caption))
        text = f"“{caption}”{notes} {about}"
        return picture_grid({f"s = {scale:g}": samples}, caption=text)

    if not has_front_end():
        return frame(caption, guidance_scale)
    import ipywidgets

    box = ipywidgets.Text(value=caption, description="caption", continuous_update=False, layout={"width": "640px"})
    return _drawn_again(lambda scale: frame(box.value, scale), box, guidance_scale)


def try_layouts(
    model: "LatentDiffusion", boxes: Sequence[tuple], names: Sequence[str], offered: Sequence[str] = (), *,
    num_steps: int, guidance_scale: float = 3.0, n: int = 6, seed: int = 0, about: str = "",
) -> "Widget | Figure":
    """A canvas to draw boxes on with the mouse, and a button to show `n` samples for them.

    `boxes` are the initial ones, (name, x0, y0, x1, y1) in fractions of the picture. `names` are the model's classes,
    of which `offered` (default: all) can be drawn.
    """
    conditioner: Any = model.conditioner
    tokenizer = conditioner.tokenizer

    def frame(boxes: Sequence[tuple], scale: float) -> Figure:
        fit, notes = check_boxes(boxes, names, tokenizer.max_objects)
        y = tokenizer.encode(fit)[None].expand(n, -1) if fit else model.null_condition(n)
        samples = model.sample(y, num_steps=num_steps, guidance_scale=scale, seed=seed)
        notes += [] if fit else ["there is no box: samples are unconditional"]
        return layout_grid([fit] * n, {f"s = {scale:g}": samples},
                           caption="".join(f"Note: {note}. " for note in notes) + about)

    if not has_front_end():
        return frame(boxes, guidance_scale)
    import ipywidgets

    drawing = BoxDrawing(offered or names, boxes)
    return _drawn_again(lambda scale: frame(drawing.boxes, scale), ipywidgets.VBox([drawing.controls, drawing.canvas]),
                        guidance_scale)


def _drawn_again(frame: Callable[[float], Figure], inputs: "Widget", guidance_scale: float) -> "Widget":
    """Input widgets with a slider for the guidance scale, a button and the picture; errors are shown as text."""
    import ipywidgets

    scale = ipywidgets.FloatSlider(value=guidance_scale, min=0.0, max=10.0, step=0.5, description="guidance scale",
                                   continuous_update=False, style={"description_width": "initial"})
    button = ipywidgets.Button(description="draw", button_style="primary")
    picture = ipywidgets.Image(format="png", layout={"max_width": "100%", "align_self": "flex-start"})
    message = ipywidgets.HTML()

    def show(_: object = None) -> None:
        button.disabled, message.value = True, "drawing …"
        try:
            picture.value, message.value = as_png(frame(scale.value)), ""
        except ValueError as error:
            message.value = html.escape(str(error))
        finally:
            button.disabled = False

    button.on_click(show)
    for control in (scale, inputs):
        if "value" in control.traits():
            control.observe(show, "value")
    show()
    return ipywidgets.VBox([inputs, ipywidgets.HBox([scale, button]), message, picture])


def shrink(x: Float[Tensor, "n 3 h w"], f: int) -> Float[Tensor, "n 3 h w"]:
    """Downsample pictures in [-1, 1] by f and upsample them again, both bicubic, as a baseline for first stages."""
    small = torch.nn.functional.interpolate(x, scale_factor=1 / f, mode="bicubic", antialias=True)
    return torch.nn.functional.interpolate(small, size=x.shape[2:], mode="bicubic").clamp(-1, 1)


def try_scale(
    view: ScaleView, stds: Sequence[float] = (0.3, 0.5, 2.0, 3.0, 5.49, 10.0), caption: str = ""
) -> "Widget | Figure":
    """log SNR and x0_hat at several t, with a slider over the latent's standard deviation.

    The choices are `stds`, 1 (rescaled) and the latent's own standard deviation.
    """
    values = {f"{std:.3g}": float(std) for std in sorted({*stds, 1.0, view.std})}
    still = sorted({stds[0], 1.0, view.std, stds[-1]})
    return slider(lambda name: fig_latent_scales(view, [values[name]], caption=caption), list(values), "std of z",
                  start=f"{view.std:.3g}", still=lambda: fig_latent_scales(view, still, caption=caption))
