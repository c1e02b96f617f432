"""Sliders over the functions of the library; where nobody can move one (papermill, a script), a still picture."""

import io
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from torch import Tensor

from ldmlab.study.figures_snr import fig_scales
from ldmlab.study.looks import Path
from ldmlab.study.progress import has_front_end
from ldmlab.study.snr import ScaleView
from ldmlab.study.views import fig_path, picture_grid

if TYPE_CHECKING:
    from ipywidgets import Widget

    from ldmlab.diffusion.model import LatentDiffusion

_STILLS = 5  # values of a slider that its still picture shows


def slider(
    frame: Callable[[Hashable], Figure], values: Sequence[Hashable], name: str, *, start: Hashable | None = None,
    still: Callable[[], Figure],
) -> "Widget | Figure":
    """A slider over `values` that shows `frame(value)`, each drawn once; without a front end, `still()`."""
    if not values:
        raise ValueError(f"the slider {name!r} has no values")
    if not has_front_end():
        return still()
    import ipywidgets

    @lru_cache(maxsize=256)
    def png(value: Hashable) -> bytes:
        buffer = io.BytesIO()
        frame(value).savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()

    start = values[0] if start is None else start
    control = ipywidgets.SelectionSlider(
        options=[(str(value), value) for value in values], value=start, description=name, continuous_update=False,
        style={"description_width": "initial"}, layout={"width": "480px"})
    # A plain picture has its own size: the widget's would stretch it.
    picture = ipywidgets.Image(value=png(start), format="png", layout={"max_width": "100%", "align_self": "flex-start"})

    def show(change: Mapping) -> None:
        picture.value = png(change["new"])

    control.observe(show, "value")
    return ipywidgets.VBox([control, picture])


def compare_reconstructions(
    x: Float[Tensor, "n 3 h w"], x_rec: Mapping[int, Float[Tensor, "n 3 h w"]], caption: str = ""
) -> "Widget | Figure":
    """Pictures over their reconstructions, with a slider over f."""
    fs = sorted(x_rec)

    def frame(f: int) -> Figure:
        return picture_grid({"x": x, f"f = {f}": x_rec[f]}, caption=caption)

    return slider(frame, fs, "f", start=fs[len(fs) // 2],
                  still=lambda: picture_grid({"x": x, **{f"f = {f}": x_rec[f] for f in fs}}, caption=caption))


def watch_denoising(path: Path, caption: str = "") -> "Widget | Figure":
    """Samples on their way from noise, with a slider over the steps of the sampler."""

    def frame(label: str) -> Figure:
        z, z0 = path.pictures(labels.index(label))
        return picture_grid({r"$z_t$, decoded": z, r"$\hat z_0$, decoded": z0}, caption=caption)

    labels = [f"{i + 1} of {len(path)}, t = {t}" for i, t in enumerate(path.t)]
    return slider(frame, labels, "step", start=labels[len(labels) // 2], still=lambda: fig_path(path, caption=caption))


def try_guidance(
    model: "LatentDiffusion", y: Int[Tensor, " n"], *, num_steps: int, names: Sequence[str] = (), seed: int = 0,
    scales: Sequence[float] = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0), caption: str = "",
) -> "Widget | Figure":
    """Samples of the same noise under different guidance scales; 1 is no guidance, 0 ignores the condition."""

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
    """Samples of the same noise by different numbers of DDIM steps."""

    @lru_cache(maxsize=64)
    def samples(num_steps: int) -> Tensor:
        return model.sample(y, num_steps=num_steps, eta=eta, guidance_scale=guidance_scale, seed=seed)

    def rows(chosen: Sequence[int]) -> Figure:
        return picture_grid({f"{n} step{'s' if n > 1 else ''}": samples(n) for n in chosen}, caption=caption)

    return slider(lambda n: rows([n]), list(steps), "DDIM steps", start=steps[len(steps) // 2],
                  still=lambda: rows(steps[:_STILLS]))


def shrink(x: Float[Tensor, "n 3 h w"], f: int) -> Float[Tensor, "n 3 h w"]:
    """Pictures of 1/f the size, enlarged again: what f costs without a first stage."""
    small = torch.nn.functional.interpolate(x, scale_factor=1 / f, mode="bicubic", antialias=True)
    return torch.nn.functional.interpolate(small, size=x.shape[2:], mode="bicubic").clamp(-1, 1)


def try_scale(
    view: ScaleView, stds: Sequence[float] = (0.3, 0.5, 2.0, 3.0, 5.49, 10.0), caption: str = ""
) -> "Widget | Figure":
    """Log SNR and one step of denoising at several t, with a slider over the latent's standard deviation.

    Where it is 1 the latent is rescaled; the latent's own one is always among the choices.
    """
    values = {f"{std:.3g}": float(std) for std in sorted({*stds, 1.0, view.std})}
    still = sorted({stds[0], 1.0, view.std, stds[-1]})
    return slider(lambda name: fig_scales(view, [values[name]], caption=caption), list(values), "std of z",
                  start=f"{view.std:.3g}", still=lambda: fig_scales(view, still, caption=caption))
