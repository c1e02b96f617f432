"""What a student looks at besides the study's own figures: pictures, curves, schedules, latents."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib import pyplot as plt
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from torch import Tensor

from ldmlab.data.annotations import Box
from ldmlab.data.images import to_uint8
from ldmlab.diffusion.schedules import Schedule
from ldmlab.study.looks import Path
from ldmlab.study.style import ACCENT, GREY, INK, NAME, SECOND, f_axis, log_axis, small_print, styled

_LATENT_LIMIT = 3.0  # standard deviations at the ends of the colour scale
TINTS = (ACCENT, SECOND, "#7a8b3c", "#7d5a96", "#c08a2d", GREY)


@styled
def picture_grid(
    rows: Mapping[str, Float[Tensor, "n 3 h w"] | Sequence[Tensor]], *, columns: Sequence[str] = (), caption: str = "",
    cell: float = 0.92,
) -> Figure:
    """Pictures in [-1, 1], a named row a batch or a list of pictures; rows may differ in length, pictures in size.

    `cell` is a picture's side in inches.
    """
    if not rows:
        raise ValueError("a grid needs at least one row of pictures")
    wide = max(map(len, rows.values()))
    margin = 0.12 + 0.066 * max(map(len, rows))
    fig, axes = plt.subplots(len(rows), wide, figsize=(wide * cell + margin, len(rows) * cell + 0.22 * bool(columns)),
                             squeeze=False, layout="constrained")
    fig.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        for ax in line:
            ax.axis("off")
        for ax, picture in zip(line, pictures, strict=False):
            ax.imshow(to_uint8(picture.cpu().clamp(-1, 1)).permute(1, 2, 0).numpy(), interpolation="nearest")
        line[0].text(-0.08, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=8)
    for ax, title in zip(axes[0], columns, strict=False):
        ax.set_title(title, loc="center", fontsize=7.8, pad=3)
    if caption:
        small_print(fig, caption)
    return fig


@styled
def wide_rows(rows: Mapping[str, Float[Tensor, "n 3 h w"]], *, caption: str = "") -> Figure:
    """Wide pictures in [-1, 1], one above the other, groups by name."""
    pictures = [(name if i == 0 else "", p) for name, group in rows.items() for i, p in enumerate(group)]
    fig, axes = plt.subplots(len(pictures), 1, figsize=(7.2, 1.35 * len(pictures)), squeeze=False, layout="constrained")
    fig.get_layout_engine().set(w_pad=0.02, h_pad=0.02, hspace=0)
    for ax, (name, picture) in zip(axes[:, 0], pictures, strict=True):
        ax.axis("off")
        ax.imshow(to_uint8(picture.cpu().clamp(-1, 1)).permute(1, 2, 0).numpy(), interpolation="nearest")
        ax.text(-0.02, 0.5, name, transform=ax.transAxes, ha="right", va="center", fontsize=8)
    if caption:
        small_print(fig, caption)
    return fig


def coloured(maps: Int[Tensor, "n h w"], num_labels: int) -> Float[Tensor, "n 3 h w"]:
    """Label maps as pictures in [-1, 1]: a colour a label, neighbours in number far apart in hue."""
    k = np.arange(num_labels)
    hue, value = (k * 0.618034) % 1, np.where(k % 3 == 2, 0.6, 0.92)  # the golden ratio never comes back to a hue
    palette = torch.from_numpy(hsv_to_rgb(np.stack([hue, 0.35 + 0.4 * (k % 2), value], 1))).float()
    return 2 * palette[maps].movedim(-1, 1) - 1


@styled
def layout_grid(
    layouts: Sequence[Sequence[Box]], rows: Mapping[str, Float[Tensor, "n 3 h w"]], *, caption: str = "",
    cell: float = 1.15,
) -> Figure:
    """Layouts, a column each, drawn with their names; below them rows of pictures in [-1, 1] with the same boxes."""
    wide, names = len(layouts), ["layout", *rows]
    margin = 0.12 + 0.066 * max(map(len, names))
    fig, axes = plt.subplots(1 + len(rows), wide, figsize=(wide * cell + margin, (1 + len(rows)) * cell),
                             squeeze=False, layout="constrained")
    fig.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
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


def _draw_boxes(ax, boxes: Sequence[Box], named: bool) -> None:
    for tint, box in zip(itertools.cycle(TINTS), boxes, strict=False):
        ax.add_patch(Rectangle((box.x0, box.y0), box.x1 - box.x0, box.y1 - box.y0, fill=False, ec=tint if named else
                               "white", lw=1.1 if named else 0.7))
        if named:
            ax.text(box.x0 + 0.02, box.y0 + 0.02, box.name, fontsize=6, color=tint, va="top", clip_on=True)


@styled
def fig_lines(
    curves: Mapping[str, Sequence[Sequence[float | int]]], *, x: str, y: str, log_x: bool = False, log_y: bool = False,
    caption: str = "", marks: Mapping[str, float] | None = None, legend: bool = False,
) -> Figure:
    """Named curves of [x, y] points, each named at its end or in a legend; `marks` are named places on the x axis."""
    fig, ax = plt.subplots(figsize=(6.0, 3.1), layout="constrained")
    curves = {name: np.array(points, dtype=float) for name, points in curves.items() if len(points)}
    for tint, (name, points) in zip(TINTS, curves.items(), strict=False):
        ax.plot(*points.T, color=tint, marker="o" if len(points) <= 25 else None, ms=3.5, label=name)
        if not legend:
            ax.annotate(name, points[-1], (6, 0), textcoords="offset points", va="center", color=tint,
                        annotation_clip=False, **NAME)
    ax.set(xlabel=x, ylabel=y)
    if log_x:
        log_axis(ax.xaxis)
    if log_y:
        log_axis(ax.yaxis)
    for name, place in (marks or {}).items() if curves else ():
        ax.axvline(place, color=GREY, lw=0.9, ls=(0, (4, 1.6)))
        ax.annotate(name, (place, 0.03), (4, 0), xycoords=("data", "axes fraction"), textcoords="offset points",
                    color=GREY, fontsize=7.8)
    if not curves:
        ax.text(0.5, 0.5, "no curve: nothing was trained", transform=ax.transAxes, ha="center", color=GREY)
    elif legend:
        ax.legend(loc="best")
    if caption:
        small_print(fig, caption)
    return fig


@styled
def fig_schedule(schedules: Mapping[str, Schedule], caption: str = "") -> Figure:
    """Weights of signal and noise over t, and the log-SNR with the step at which both are equally strong."""
    fig, (weights, snr) = plt.subplots(1, 2, figsize=(8.6, 3.1), layout="constrained")
    for tint, (name, schedule) in zip(TINTS, schedules.items(), strict=False):
        t, alpha_bar = np.arange(schedule.T), schedule.alpha_bar.cpu().numpy()
        weights.plot(t, alpha_bar**0.5, color=tint, label=name)
        weights.plot(t, (1 - alpha_bar) ** 0.5, color=tint, ls=(0, (4, 1.6)))
        log_snr = schedule.log_snr.cpu().numpy()
        equal = int(np.abs(log_snr).argmin())
        snr.plot(t, log_snr, color=tint, label=f"{name}; SNR = 1 at t = {equal}")
        snr.plot(equal, 0, "o", color=tint, ms=4.5)
    snr.axhline(0, color=GREY, lw=0.8)
    weights.set(title="(a)  what is left of the latent, and the noise", xlabel="t", ylabel="weight")
    weights.legend(loc="center right", handles=[
        Line2D([], [], color=INK, label=r"$\sqrt{\bar\alpha_t}$ of $z_0$"),
        Line2D([], [], color=INK, ls=(0, (4, 1.6)), label=r"$\sqrt{1-\bar\alpha_t}$ of $\epsilon$")])
    snr.set(title="(b)  signal-to-noise ratio", xlabel="t", ylabel=r"$\log\,\mathrm{SNR}(t)$")
    snr.legend(loc="lower left")
    if caption:
        small_print(fig, caption)
    return fig


@styled
def fig_latents(
    x: Float[Tensor, "n 3 H W"], z: Float[Tensor, "n c h w"], *, everything: Float[Tensor, "m c h w"] | None = None,
    caption: str = "", shown: int = 6,
) -> Figure:
    """Pictures beside the channels of their latents, and how entries are distributed by channel.

    `everything` are more latents for the distribution; without it, it is that of `z`.
    """
    rows, c = min(shown, len(x)), z.shape[1]
    channels = min(c, 8)
    fig = plt.figure(figsize=(0.74 * (1 + channels) + 3.6, max(2.5, 0.74 * rows)), layout="constrained")
    left, right = fig.subfigures(1, 2, width_ratios=[0.74 * (1 + channels), 3.6])
    fig.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    z = z.float().cpu()
    many = z if everything is None else everything.float().cpu()
    limit = _LATENT_LIMIT * float(many.std())
    grid = left.subplots(rows, 1 + channels, squeeze=False)
    for line, picture, latent in zip(grid, to_uint8(x.cpu()), z, strict=False):
        line[0].imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
        for ax, channel in zip(line[1:], latent, strict=False):
            ax.imshow(channel.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        for ax in line:
            ax.axis("off")
    for i, ax in enumerate(left.axes[: 1 + channels]):
        ax.set_title("x" if i == 0 else f"z, {i} of {c}", loc="center", fontsize=7.5, pad=3)
    bins = min(81, max(13, round(2 * (many[:, 0].numel()) ** (1 / 3))))
    ax, edges = right.subplots(), np.linspace(-1.6 * limit, 1.6 * limit, bins)
    middle = (edges[1:] + edges[:-1]) / 2
    for i in range(c):
        density, _ = np.histogram(many[:, i].numpy(), edges, density=True)
        ax.plot(middle, density, color=plt.colormaps["viridis"](0.1 + 0.75 * i / max(1, c - 1)), lw=1.2)
    ax.plot(middle, np.exp(-(middle**2) / 2) / (2 * np.pi) ** 0.5, color=INK, lw=1, ls=(0, (4, 1.6)))
    ax.set(title="entries by channel; dashed: N(0, 1)", xlabel="value", yticks=[])
    ax.spines["left"].set_visible(False)
    ax.grid(axis="y", visible=False)
    if caption:
        small_print(fig, caption)
    return fig


@styled
def fig_scales(stats: Mapping[str, Mapping[int, tuple[float, float]]], caption: str = "") -> Figure:
    """Standard deviations of latents, {regularizer: {f: (std, standard error)}}; diffusion wants 1."""
    fig, ax = plt.subplots(figsize=(5.2, 3.0), layout="constrained")
    for tint, (name, points) in zip(TINTS, stats.items(), strict=False):
        fs = sorted(points)
        std, error = np.array([points[f] for f in fs]).T
        ax.errorbar(np.log2(fs), std, yerr=2 * error, color=tint, marker="o", capsize=3, label=name)
    ax.axhline(1, color=GREY, lw=0.9, ls=(0, (4, 1.6)))
    ax.set_ylabel("standard deviation of z")
    f_axis(ax, {f for points in stats.values() for f in points})
    ax.legend(loc="best")
    if caption:
        small_print(fig, caption)
    return fig


def fig_path(path: Path, num: int = 9, picture: int = 0, caption: str = "") -> Figure:
    """One picture's way from noise: z_t as the decoder sees it, over the z0_hat of the same step."""
    steps = [(i, *path.pictures(i)) for i in path.picked(num)]
    rows = {r"$z_t$, decoded": torch.stack([z[picture] for _, z, _ in steps]),
            r"$\hat z_0$, decoded": torch.stack([z0[picture] for _, _, z0 in steps])}
    return picture_grid(rows, columns=[f"t = {path.t[i]}" for i, _, _ in steps], caption=caption)
