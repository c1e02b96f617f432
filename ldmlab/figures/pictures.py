"""Grids of pictures, label maps, layouts and sampling trajectories, used by all notebooks."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from ldmlab.data.annotations.annotation import Box
from ldmlab.data.images import to_uint8
from ldmlab.diffusion.trajectory import Path
from ldmlab.figures.style import TINTS, set_layout, small_print, styled


@styled
def picture_grid(
    rows: Mapping[str, Float[Tensor, "n 3 h w"] | Sequence[Tensor]], *, columns: Sequence[str] = (), caption: str = "",
    cell: float = 0.92,
) -> Figure:
    """A grid of pictures in [-1, 1] with one named row per batch; rows may differ in length, pictures in size.

    `columns` are titles of the columns, `cell` is the side of a picture in inches. ValueError without rows.

    >>> x = torch.zeros(3, 3, 16, 16)
    >>> fig = picture_grid({"x": x, "inverted": -x}, columns=["a", "b", "c"], caption="Three grey pictures.")
    >>> len(fig.axes)
    6
    """
    if not rows:
        raise ValueError("a grid needs at least one row of pictures")
    wide = max(map(len, rows.values()))
    margin = 0.12 + 0.066 * max(map(len, rows))
    fig, axes = plt.subplots(len(rows), wide, figsize=(wide * cell + margin, len(rows) * cell + 0.22 * bool(columns)),
                             squeeze=False, layout="constrained")
    set_layout(fig, w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        for ax in line:
            ax.axis("off")
        for ax, picture in zip(line, pictures, strict=False):
            ax.imshow(to_uint8(picture.cpu().clamp(-1, 1)).permute(1, 2, 0).numpy(), interpolation="nearest")
        line[0].text(-0.08, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=8)
    for ax, title in zip(axes[0], columns, strict=False):
        ax.set_title(title, loc="center", fontsize=7.8, pad=3, parse_math=False)  # often names of classes
    if caption:
        small_print(fig, caption)
    return fig


@styled
def wide_rows(rows: Mapping[str, Float[Tensor, "n 3 h w"]], *, caption: str = "") -> Figure:
    """Wide pictures in [-1, 1], one below the other, in named groups."""
    pictures = [(name if i == 0 else "", p) for name, group in rows.items() for i, p in enumerate(group)]
    fig, axes = plt.subplots(len(pictures), 1, figsize=(7.2, 1.35 * len(pictures)), squeeze=False, layout="constrained")
    set_layout(fig, w_pad=0.02, h_pad=0.02, hspace=0)
    for ax, (name, picture) in zip(axes[:, 0], pictures, strict=True):
        ax.axis("off")
        ax.imshow(to_uint8(picture.cpu().clamp(-1, 1)).permute(1, 2, 0).numpy(), interpolation="nearest")
        ax.text(-0.02, 0.5, name, transform=ax.transAxes, ha="right", va="center", fontsize=8)
    if caption:
        small_print(fig, caption)
    return fig


def coloured(maps: Int[Tensor, "n h w"], num_labels: int) -> Float[Tensor, "n 3 h w"]:
    """Label maps as pictures in [-1, 1]: one colour per label, with distant hues for consecutive labels."""
    k = np.arange(num_labels)
    hue, value = (k * 0.618034) % 1, np.where(k % 3 == 2, 0.6, 0.92)  # steps of the golden ratio never repeat a hue
    palette = torch.from_numpy(hsv_to_rgb(np.stack([hue, 0.35 + 0.4 * (k % 2), value], 1))).float()
    return 2 * palette[maps].movedim(-1, 1) - 1


@styled
def layout_grid(
    layouts: Sequence[Sequence[Box]], rows: Mapping[str, Float[Tensor, "n 3 h w"]], *, caption: str = "",
    cell: float = 1.15,
) -> Figure:
    """Layouts with object names, one per column; below them rows of pictures in [-1, 1] with the same boxes."""
    wide, names = len(layouts), ["layout", *rows]
    margin = 0.12 + 0.066 * max(map(len, names))
    fig, axes = plt.subplots(1 + len(rows), wide, figsize=(wide * cell + margin, (1 + len(rows)) * cell),
                             squeeze=False, layout="constrained")
    set_layout(fig, w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for line, name in zip(axes, names, strict=True):
        for ax, boxes, picture in zip(line, layouts, rows.get(name, layouts), strict=True):
            if name == "layout":
                ax.set_facecolor("#f4f4f2")
            else:
                ax.imshow(to_uint8(picture.float().cpu().clamp(-1, 1)).permute(1, 2, 0).numpy(), extent=(0, 1, 1, 0),
                          interpolation="nearest")
            _draw_boxes(ax, boxes, named=name == "layout")
            ax.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[], aspect="equal")
            ax.spines[:].set_visible(False)
            ax.grid(False)
        line[0].text(-0.08, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=8)
    if caption:
        small_print(fig, caption)
    return fig


def _draw_boxes(ax: Axes, boxes: Sequence[Box], named: bool) -> None:
    for tint, box in zip(itertools.cycle(TINTS), boxes, strict=False):
        ax.add_patch(Rectangle((box.x0, box.y0), box.x1 - box.x0, box.y1 - box.y0, fill=False, ec=tint if named else
                               "white", lw=1.1 if named else 0.7))
        if named:
            ax.text(box.x0 + 0.02, box.y0 + 0.02, box.name, fontsize=6, color=tint, va="top", clip_on=True,
                    parse_math=False)


def fig_path(path: Path, num: int = 9, picture: int = 0, caption: str = "") -> Figure:
    """The trajectory of one sample at `num` steps: z_t decoded, above z0_hat of the same step decoded."""
    steps = [(i, *path.pictures(i)) for i in path.picked(num)]
    rows = {r"$z_t$, decoded": torch.stack([z[picture] for _, z, _ in steps]),
            r"$\hat z_0$, decoded": torch.stack([z0[picture] for _, _, z0 in steps])}
    return picture_grid(rows, columns=[f"t = {path.t[i]}" for i, _, _ in steps], caption=caption)
