"""Notebook 07_sampling: quality against throughput, samplers compared, orders of convergence [LDM v2, Fig. 7, Tab. 18].
"""

from collections.abc import Mapping, Sequence
from math import ceil
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ldmlab.diffusion.samplers import SAMPLERS
from ldmlab.experiments.sampling import (
    BY_STEPS,
    NAMES,
    ORDER_RANGE,
    calls,
    curve_name,
    order,
    pareto_front,
    variant_key,
    variants,
)
from ldmlab.figures.style import (
    GREY,
    INK,
    TINTS,
    label_ends,
    line_style,
    log_axis,
    log_axis_if_positive,
    mark_smoke,
    set_layout,
    set_log_limits,
    small_print,
    styled,
    text_colour,
)
from ldmlab.paper import numbers as paper
from ldmlab.study.records.compare import (
    Series,
    check_comparable,
    commits,
    data_name,
    device_of,
    format_range,
    grouped,
    timed_alike,
)
from ldmlab.study.records.record import Record

# In the order of `variants`; from the first again where there are more.
_MARKERS = "oPXsD"
_TINTS = (TINTS[0], TINTS[4], TINTS[1], TINTS[2], TINTS[3])


@styled
def fig_steps(records: Sequence[Record]) -> Figure:
    """KD-EffNet against throughput and against DDIM steps, eta 0 and 1, a line per f [LDM v2, Fig. 7].

    Bars are intervals over samples where there is one seed, and the range of the seeds elsewhere. ValueError for
    records that are not comparable, and for those of earlier versions, which have FD-lab.
    """
    check_comparable(records)
    here, timed = timed_alike(records)
    fig, (speed, steps, noisy) = plt.subplots(1, 3, figsize=(13.2, 4.1), layout="constrained")
    set_layout(fig, w_pad=0.08, wspace=0.04)
    _by_speed(speed, grouped(timed))
    _by_steps(steps, grouped(records), "ddim")
    _by_steps(noisy, grouped(records), "ddpm")
    seen = [y for record in records for name in NAMES.values() for end in ("_low", "", "_high")
            for _, y in record.curves[name + end]]
    for ax in (speed, steps, noisy):
        ax.set_ylabel("KD-EffNet of samples  (lower is better)")
        log_axis(ax.xaxis)
        if log_axis_if_positive(ax.yaxis, seen):
            set_log_limits(ax, seen, margin=1.15)
        else:
            ax.set_ylim(min(seen) - 0.05 * (max(seen) - min(seen)), max(seen) + 0.05 * (max(seen) - min(seen)))
    speed.set(title="(a)  quality and throughput  [cf. Fig. 7]", xlabel="throughput, decoding included [images/s]")
    steps.set(title="(b)  the same runs by number of steps", xlabel="DDIM steps, eta 0")
    noisy.set(title="(c)  with noise at each step", xlabel="DDIM steps, eta 1")
    for ax in (speed, steps, noisy):
        low, high = ax.get_xlim()
        ax.set_xlim(low, high * (high / low) ** 0.16)  # room for the names
    label_ends(speed, [_end(s, throughput=True) for s in grouped(timed)])
    for ax, key in ((steps, "ddim"), (noisy, "ddpm")):
        label_ends(ax, [_end(s, throughput=False, key=key) for s in grouped(records)])
    left_out = len(records) - len(timed)
    first = records[0].protocol
    small_print(fig, _protocol(records), f"(a) eta 0. Timed on {here}, batches of {first.get('timed_batch')}, median "
                f"of {first.get('timed_repeats')}. Along a line from left to right: {_listed(records)} steps. Grey "
                "line and rings: Pareto front, the points that no other point exceeds in both speed and quality; where "
                "intervals overlap, membership may be due to chance."
                + (f" {left_out} record(s) timed on another device left out." if left_out else ""))
    mark_smoke(fig, records)
    return fig


def _points(s: Series, throughput: bool, key: str = "ddim") -> tuple[np.ndarray, ...]:
    """x, KD-EffNet, its lower and its upper end, by growing number of steps."""
    name = curve_name(key)
    steps, mean, low, high = s.curve(name)
    if len(s.runs) == 1:
        low, high = s.curve(f"{name}_low")[1], s.curve(f"{name}_high")[1]
    if not throughput:
        return steps, mean, low, high
    rates = dict(zip(*s.curve("images_per_s")[:2], strict=True))
    kept = [i for i, num_steps in enumerate(steps) if num_steps in rates]
    x = np.array([rates[num_steps] for num_steps in steps[kept]])
    return x, mean[kept], low[kept], high[kept]


def _end(s: Series, throughput: bool, key: str = "ddim") -> tuple:
    """Position, text and colour of a line's label at its right end: the fewest steps if x is throughput."""
    x, mean, *_ = _points(s, throughput, key)
    return float(x.max()), float(mean[x.argmax()]), s.name, text_colour(s.f)


def _line(ax: Axes, s: Series, points: tuple[np.ndarray, ...]) -> None:
    x, mean, low, high = points
    ax.errorbar(x, mean, yerr=np.maximum([mean - low, high - mean], 0), **line_style(s), ms=5, lw=1.4, elinewidth=0.9)


def _by_speed(ax: Axes, series: list[Series]) -> None:
    pairs: list[tuple[float, float]] = []
    for s in series:
        points = _points(s, throughput=True)
        _line(ax, s, points)
        pairs += zip(*points[:2], strict=True)
    front = np.array([pairs[i] for i in pareto_front(pairs)])
    ax.plot(*front.T, color=GREY, lw=5, alpha=0.28, zorder=1, solid_capstyle="round")
    ax.plot(*front.T, ls="none", marker="o", ms=11, mfc="none", mec=INK, mew=1.0, zorder=4)
    ax.legend(loc="upper left", handles=[
        Line2D([], [], color=GREY, lw=5, alpha=0.4, marker="o", ms=10, mfc="none", mec=INK, label="Pareto front")])


def _by_steps(ax: Axes, series: list[Series], key: str) -> None:
    for s in series:
        _line(ax, s, _points(s, False, key))


@styled
def fig_samplers(records: Sequence[Record]) -> Figure:
    """KD-EffNet of several samplers against the number of denoiser calls, all from the same noise; a panel per f.

    Bars are intervals over samples where there is one seed, and the range of the seeds elsewhere. ValueError for
    records that are not comparable.
    """
    check_comparable(records)
    series = grouped(records)
    columns = min(3, len(series))
    rows = ceil(len(series) / columns)
    size = (5.6, 3.7) if columns == 1 else (3.5 * columns, 3.0 * rows + 0.3)
    fig, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for ax, s in zip(axes.flat, series, strict=False):
        _samplers(ax, s)
    for ax in axes.flat[len(series):]:
        ax.axis("off")
    for ax in axes[:, 0]:
        ax.set_ylabel("KD-EffNet  (lower is better)")
    handles = [Line2D([], [], **_look(key), ms=5, label=variant.name) for key, variant in variants().items()]
    if columns == 1:
        axes[0, 0].legend(handles=handles, loc="best", fontsize=7)
    else:
        fig.legend(handles=handles, loc="outside upper left", ncols=len(handles), fontsize=7.4)
    small_print(fig, _protocol(records), "All samplers start from the same noise. PLMS calls the denoiser once more "
                "than it has steps. DDPM with fewer than T steps is ancestral sampling on a subsequence of the time "
                "steps, that is DDIM with eta = 1. DDIM and PLMS start T / steps below T, DPM-Solver++ at t = T - 1.")
    mark_smoke(fig, records)
    return fig


def _look(key: str) -> dict[str, Any]:
    """Colour and marker of one of `variants`."""
    i = list(variants()).index(key)
    return {"color": _TINTS[i % len(_TINTS)], "marker": _MARKERS[i % len(_MARKERS)]}


def _samplers(ax: Axes, s: Series) -> None:
    """Draw one f and regularizer; points at equal numbers of calls are offset slightly."""
    seen: list[float] = []
    for i, key in enumerate(variants()):
        name = curve_name(key)
        if not all(name in run.curves for run in s.runs):
            continue
        steps, mean, low, high = s.curve(name)
        if len(s.runs) == 1:
            low, high = s.curve(f"{name}_low")[1], s.curve(f"{name}_high")[1]
        shared = [j for j, num_steps in enumerate(steps) if _is_compared(s, int(num_steps))]
        x = np.array([calls((key, int(steps[j]))) for j in shared]) * 1.018 ** (i - 2)
        bars = np.maximum([(mean - low)[shared], (high - mean)[shared]], 0)
        ax.errorbar(x, mean[shared], yerr=bars, **_look(key), ms=4.6, lw=1.2, elinewidth=0.9)
        seen += [*mean[shared], *low[shared]]
    log_axis(ax.xaxis)
    log_axis_if_positive(ax.yaxis, seen)
    ax.set_title(s.name)
    ax.set_xlabel("calls of the denoiser")


def _is_compared(s: Series, num_steps: int) -> bool:
    """Whether other samplers than DDIM, eta 0 and 1, were scored at this number of steps."""
    others = [curve_name(key) for key in variants() if key not in NAMES]
    return any(num_steps == steps for run in s.runs for name in others for steps, _ in run.curves.get(name, ()))


@styled
def fig_convergence(curves: Mapping[str, Sequence[tuple[int, float]]], caption: str = "") -> Figure:
    """Distance to the exact ODE solution over the number of steps, with fitted orders of convergence.

    `curves` are [steps, error] by sampler, for the exact denoiser of a Gaussian random field.
    """
    fig, ax = plt.subplots(figsize=(5.8, 3.7), layout="constrained")
    low, high = ORDER_RANGE
    for name, curve in curves.items():
        look, row = _look(variant_key(name)), SAMPLERS[name]
        x, y = np.array(curve, dtype=float).T
        k = order(curve)
        ax.plot(x, y, ls="none", **look, ms=5,
                label=f"{row.title}{', eta 0' if row.takes_eta else ''}: error ~ steps$^{{-{k:.2f}}}$")
        at = (x >= low) & (x <= high)
        level = np.exp(np.log(y[at]).mean() + k * np.log(x[at]).mean())
        ax.plot(x[at], level * x[at] ** -k, color=look["color"], lw=1.2)
        ax.plot(x, y, color=look["color"], lw=0.8, alpha=0.35)
    log_axis(ax.xaxis)
    ax.set(xlabel="steps", ylabel="RMS error per entry, against the exact solution", yscale="log")
    ax.legend(loc="lower left")
    small_print(fig, f"Gaussian random field of 8 x 8, one noise sample, float64, optimal denoiser in closed form; T = "
                f"1000. Lines: fits over {low} to {high} steps.", caption)
    return fig


def _listed(records: Sequence[Record]) -> str:
    """All numbers of steps that were both timed and scored, in descending order."""
    found = {steps for r in records for steps, _ in r.curves[BY_STEPS]} & {steps for r in records
                                                                    for steps, _ in r.curves["images_per_s"]}
    return ", ".join(map(str, sorted(found, reverse=True)))


def _protocol(records: Sequence[Record]) -> str:
    """Score, data, tier, seeds and gaps of the records, in words for the small print."""
    record = records[0]
    score, params = record.metrics["kd_effnet"], record.params
    seeds = sorted({len(s.runs) for s in grouped(records)})
    level = score.get("interval", {}).get("level", 0.95)
    bars = f"bars: {level:.0%} intervals over samples for one seed, else the range over seeds"
    skipped = sum(any("left out:" in event for event in r.events) for r in records)
    gaps = (f" {skipped} of {len(records)} records lack the numbers of steps that exceeded the time budget."
            if skipped else "")
    return (f"KD-EffNet: kernel distance times 1000 on {score['extractor']} ({score.get('weights_hash', '')[:8]}), n = "
            f"{score['n_fake']} samples against {score['n_real']} training pictures; EMA weights, no guidance. Data "
            f"{data_name(record)} at {params['size']} px, tier {params['tier']}; {format_range(seeds)} "
            f"seed{'s' if seeds[-1] > 1 else ''} per line, {bars}. git {commits(records)}.{gaps}")


def paper_rates(records: Sequence[Record]) -> pd.DataFrame:
    """Throughput of the unguided LDMs of Tab. 18 in images/s and picture steps/s, with our runs below.

    A picture step is one denoiser call for one picture, including its share of the decoder's time.
    """
    rows = []
    for name, row in paper.table("Tab. 18").items():
        data, _, model = name.partition(" / ")
        if model.startswith("LDM-") and "-G" not in model:
            rows.append({"whose": "paper", "data": data, "model": model, "steps": row["sampling_steps"],
                         "images/s": row["images_per_s"], "FID": row["fid"],
                         "picture steps/s": row["sampling_steps"] * row["images_per_s"]})
    for s in grouped(records):
        rates = [steps * value for run in s.runs for steps, value in run.curves["images_per_s"]]
        rows.append({"whose": f"ours, {device_of(s.runs[0])}", "data": data_name(s.runs[0]), "model": s.name,
                     "picture steps/s": round(median(rates))})
    return pd.DataFrame(rows).set_index(["whose", "data", "model"])
