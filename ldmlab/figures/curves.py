"""Line figures used by several notebooks: curves, noise schedules, distributions and scales of latents."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from ldmlab.data.images import to_uint8
from ldmlab.diffusion.schedules import Schedule
from ldmlab.figures.style import (
    GREY,
    INK,
    NAME,
    TINTS,
    f_axis,
    log_axis,
    log_axis_if_positive,
    set_layout,
    small_print,
    styled,
)

_LATENT_LIMIT = 3.0  # standard deviations at the ends of the colour scale


@styled
def fig_lines(
    curves: Mapping[str, Sequence[Sequence[float | int]]], *, x: str, y: str, log_x: bool = False, log_y: bool = False,
    caption: str = "", marks: Mapping[str, float] | None = None, legend: bool = False,
) -> Figure:
    """Named curves of [x, y] points, labelled at their ends or in a legend; `marks` are named positions on the x axis.

    Empty curves are skipped; a figure without any curve says so. With `log_y`, y is logarithmic if all y are positive.
    """
    fig, ax = plt.subplots(figsize=(6.0, 3.1), layout="constrained")
    lines = {name: np.array(points, dtype=float) for name, points in curves.items() if len(points)}
    for tint, (name, points) in zip(TINTS, lines.items(), strict=False):
        ax.plot(*points.T, color=tint, marker="o" if len(points) <= 25 else None, ms=3.5, label=name)
        if not legend:
            ax.annotate(name, points[-1], (6, 0), textcoords="offset points", va="center", color=tint,
                        annotation_clip=False, **NAME)
    ax.set(xlabel=x, ylabel=y)
    if log_x:
        log_axis(ax.xaxis)
    if log_y:
        log_axis_if_positive(ax.yaxis, [value for points in lines.values() for value in points[:, 1]])
    for name, place in (marks or {}).items() if lines else ():
        ax.axvline(place, color=GREY, lw=0.9, ls=(0, (4, 1.6)))
        ax.annotate(name, (place, 0.03), (4, 0), xycoords=("data", "axes fraction"), textcoords="offset points",
                    color=GREY, fontsize=7.8)
    if not lines:
        ax.text(0.5, 0.5, "no curves: nothing was trained", transform=ax.transAxes, ha="center", color=GREY)
    elif legend:
        ax.legend(loc="best")
    if caption:
        small_print(fig, caption)
    return fig


@styled
def fig_schedule(schedules: Mapping[str, Schedule], caption: str = "") -> Figure:
    """Weights of signal and noise over t, and log SNR with the t at which it crosses 0."""
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
    weights.set(title="(a)  weights of latent and noise", xlabel="t", ylabel="weight")
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
    """Pictures in [-1, 1] beside the channels of their latents, and the distribution of the entries by channel.

    At most `shown` pictures and 8 channels are drawn. The distribution is that of `everything`, or else of `z`.
    """
    rows, c = min(shown, len(x)), z.shape[1]
    channels = min(c, 8)
    fig = plt.figure(figsize=(0.74 * (1 + channels) + 3.6, max(2.5, 0.74 * rows)), layout="constrained")
    left, right = fig.subfigures(1, 2, width_ratios=[0.74 * (1 + channels), 3.6])  # type: ignore[misc]  # an array
    set_layout(fig, w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
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
    """Standard deviations of latents over f, from {regularizer: {f: (std, standard error)}}, beside the target 1."""
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
