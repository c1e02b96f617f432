"""Style shared by all figures: fonts, grid, one colour per f, non-overlapping line labels, captions in small print."""

import textwrap
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from math import floor, log2, log10
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ldmlab.study.config.budgets import is_smoke
from ldmlab.study.records.compare import Series
from ldmlab.study.records.record import Record

INK, GREY, PALE = "#22262b", "#6b7280", "#e7e8ea"
ACCENT, SECOND = "#2f6f8f", "#b5543c"  # where colour does not stand for f
TINTS = (ACCENT, SECOND, "#7a8b3c", "#7d5a96", "#c08a2d", GREY)  # for curves that are not one per f
SMALL = 6.4  # font size of the small print, in points
LINES = {"kl": "-", "none": "-", "vq": (0, (4, 1.6))}  # by regularizer
MARKS = {"kl": "o", "none": "o", "vq": "s"}
NAME: dict[str, Any] = {  # of labels beside lines
    "fontsize": 7.8, "fontweight": "bold", "path_effects": [withStroke(linewidth=2.2, foreground="white")]}


EndLabel = tuple[float, float, str, tuple[float, ...]]  # x, y, text, colour

_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 8.5, "text.color": INK, "axes.labelcolor": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY, "axes.linewidth": 0.7,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": PALE, "grid.linewidth": 0.7,
    "axes.titlesize": 9, "axes.titlelocation": "left", "axes.titlepad": 7,
    "xtick.color": GREY, "ytick.color": GREY, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "xtick.labelsize": 8, "ytick.labelsize": 8, "xtick.major.width": 0.7, "ytick.major.width": 0.7,
    "xtick.minor.size": 0, "ytick.minor.size": 0, "xtick.major.size": 3, "ytick.major.size": 3,
    "lines.linewidth": 1.7, "lines.markersize": 5, "legend.frameon": False, "legend.fontsize": 8,
    "figure.dpi": 120, "savefig.dpi": 200, "figure.facecolor": "white", "savefig.facecolor": "white",
}


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Decorate a function that returns a figure: it is drawn in this style, and closed so that a cell shows it once."""

    @wraps(draw)
    def drawn(*args: Any, **kwargs: Any) -> Figure:
        with rc_context(_RC):
            fig = draw(*args, **kwargs)
            fig.draw_without_rendering()  # ticks are created lazily, and would otherwise take the caller's style
            plt.close(fig)
        return fig

    return drawn


def colour(f: int) -> tuple[float, float, float, float]:
    """RGBA colour of a downsampling factor, the same in every figure: from dark (f = 1) to light (f = 32)."""
    return colormaps["plasma"](0.04 + 0.78 * log2(f) / 5)


def line_style(s: Series) -> dict[str, Any]:
    """Keywords of `Axes.plot` for a series: colour, line and marker, hollow if its first stage was still improving."""
    tint = colour(s.f)
    return {"color": tint, "ls": LINES[s.reg], "marker": MARKS[s.reg], "mec": tint,
            "mfc": tint if s.flat else "white", "mew": 1.3}


def text_colour(f: int) -> tuple[float, float, float]:
    """The colour of a downsampling factor, darkened for text, as RGB."""
    red, green, blue, _ = colour(f)
    return 0.86 * red, 0.86 * green, 0.86 * blue


def log_axis(axis: XAxis | YAxis, subs: Iterable[float] = (1, 2, 5)) -> None:
    """Make an axis logarithmic, with plain numbers at `subs` times the powers of ten."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=tuple(subs), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_number(value)))
    axis.set_minor_formatter(NullFormatter())


def log_axis_if_positive(axis: XAxis | YAxis, values: Iterable[float]) -> bool:
    """Make an axis logarithmic if there are `values` and all are positive, as kernel distances need not be.

    Returns whether it is.
    """
    values = list(values)
    positive = bool(values and min(values) > 0)
    if positive:
        log_axis(axis)
    return positive


def format_number(value: float) -> str:
    """Format a number for an axis: 12000 -> 12k, 0.05 -> 0.05, 3.14159 -> 3.14."""
    return f"{value / 1000:g}k" if value >= 10_000 else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def rounded(value: float) -> str:
    """Format a positive number with two significant digits, the precision of a distance over some hundred pictures."""
    return f"{value:.{max(0, 1 - floor(log10(value)))}f}" if value > 0 else f"{value:g}"


def set_log_limits(ax: Axes, values: Iterable[float], at_least: float = 6.0, margin: float = 1.3) -> None:
    """Set the limits of a logarithmic y axis around positive `values`, with a factor `margin` to either side.

    The axis spans a factor of `at_least` or more, so that noise does not fill it.
    """
    low, high = min(values) / margin, max(values) * margin
    widen = max(1.0, (at_least / (high / low)) ** 0.5)
    ax.set_ylim(low / widen, high * widen)


def f_axis(ax: Axes, fs: Iterable[int]) -> None:
    """Make the x axis one of downsampling factors, evenly spaced: positions are log2(f)."""
    fs = sorted(set(fs))
    ax.set_xticks([log2(f) for f in fs], [str(f) for f in fs])
    ax.set_xlim(log2(fs[0]) - 0.4, log2(fs[-1]) + 0.4)
    ax.set_xlabel("downsampling factor f")


def label_ends(ax: Axes, labels: Sequence[EndLabel], gap: float = 0.055) -> None:
    """Label lines at their right ends, given as (x, y, text, colour); labels closer than `gap` are moved apart.

    `gap` is in units of the axes' height.
    """
    if not labels:
        return
    ax.get_figure(root=True).draw_without_rendering()  # type: ignore[union-attr]  # axes belong to a figure
    to_axes = ax.transData + ax.transAxes.inverted()
    placed = sorted(((*to_axes.transform((x, y)), text, tint) for x, y, text, tint in labels), key=lambda item: item[1])
    heights = [item[1] for item in placed]
    for _ in range(50):  # relax: push neighbours apart until none overlap
        for i in range(len(heights) - 1):
            short = gap - (heights[i + 1] - heights[i])
            if short > 1e-4:
                heights[i] -= short / 2
                heights[i + 1] += short / 2
    least = 0.01  # no label below the axes
    for i, height in enumerate(heights):
        heights[i] = max(height, least)
        least = heights[i] + gap
    for (x, _, text, tint), height in zip(placed, heights, strict=True):
        ax.text(x + 0.022, height, text, transform=ax.transAxes, color=tint, va="center", **NAME)


def set_layout(fig: Figure, **pads: float | int) -> None:
    """Set `w_pad`, `h_pad`, `wspace` or `hspace` of a figure's constrained layout."""
    fig.get_layout_engine().set(**pads)  # type: ignore[union-attr]  # all figures have constrained layout


def small_print(fig: Figure, *sentences: str) -> None:
    """Add sentences in small type below the axes; the figure grows by their height. Empty sentences are skipped."""
    width, height = fig.get_size_inches()
    columns = int(width * 72 / (SMALL * 0.56))
    lines = [line for sentence in sentences if sentence for line in textwrap.wrap(sentence, columns)]
    room = (len(lines) * SMALL * 1.42 + 9) / 72
    fig.set_size_inches(width, height + room)
    rect = (0, room / (height + room), 1, height / (height + room))
    fig.get_layout_engine().set(rect=rect)  # type: ignore[union-attr, call-arg]  # all have constrained layout
    fig.text(0.008, 0.006, "\n".join(lines), fontsize=SMALL, color=GREY, va="bottom", ha="left", linespacing=1.35,
             parse_math=False)  # a name of data may hold two $


def seed_range(values: np.ndarray) -> list[list[float]] | None:
    """The range of several seeds as error bars around their mean, (2, 1) as `errorbar` takes it; None for one seed."""
    if len(values) < 2:
        return None
    return [[values.mean() - values.min()], [values.max() - values.mean()]]


def mark_smoke(fig: Figure, records: Sequence[Record]) -> None:
    """Write a watermark across the figure if any record is of tier smoke, whose numbers are no results."""
    if any(is_smoke(record.params["tier"]) for record in records):
        smoke_watermark(fig)


def smoke_watermark(fig: Figure) -> None:
    """Write across a figure that it is for testing only."""
    fig.text(0.5, 0.54, "smoke tier: for testing only, not evidence", fontsize=22, color="#b0463c", alpha=0.25,
             ha="center", va="center", rotation=min(18, 3 * fig.get_figheight()), fontweight="bold")
