"""Notebooks 11 to 13 and 15: semantic synthesis, super-resolution, inpainting, larger sizes [LDM v2, Tab. 5 to 7]."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ldmlab.experiments import inpainting_speed, semantic_synthesis, super_resolution
from ldmlab.experiments.restoration import MEASURES, PAIRS
from ldmlab.figures.style import (
    ACCENT,
    GREY,
    INK,
    SECOND,
    log_axis,
    log_axis_if_positive,
    mark_smoke,
    small_print,
    styled,
)
from ldmlab.paper import numbers as paper
from ldmlab.study.config.budgets import budget_of
from ldmlab.study.records.compare import check_comparable, commits, data_name
from ldmlab.study.records.record import Record

_TINTS = {
    "bicubic": GREY, "masked": GREY, "regression": SECOND, "pixels": "#c08a2d", "ldm": ACCENT, "samples": ACCENT,
    "guided": "#7d5a96", "others": GREY, "reconstructions": "#5b8c5a", "truth": INK,
}
_NEAR: dict[str, Any] = {"xytext": (6, 4), "textcoords": "offset points", "fontsize": 7.4}
_BESIDE: dict[str, dict[str, Any]] = {  # label offsets that keep neighbours apart
    "ldm": {"xytext": (-7, -9), "ha": "right"}, "guided": {"xytext": (-7, 6), "ha": "right"},
    "reconstructions": {"xytext": (4, -12), "ha": "center"}, "regression": {"xytext": (7, 6)},
}
_FAR_DB = 5.0  # methods this far below bicubic are listed in the small print instead of plotted


def _shown(record: Record, method: str) -> str:
    """Name of a method in figures: the run's own model by the record's name."""
    return record.name if method in ("ldm", "samples") else method


def _value(record: Record, metric: str) -> tuple[float, float, float] | None:
    """(value, low, high) of a metric, three times the value where it has no interval; None if it is absent."""
    entry = record.metrics.get(metric)
    if entry is None or entry["value"] is None:
        return None
    ends = entry.get("interval") or {"low": entry["value"], "high": entry["value"]}
    return entry["value"], ends["low"], ends["high"]


def _bars(points: Sequence[tuple[float, float, float]]) -> np.ndarray:
    """(value, low, high) of points as error bars, (2, n), as `errorbar` takes them."""
    value, low, high = np.array(points).T
    return np.stack([np.maximum(value - low, 0), np.maximum(high - value, 0)])


def _about(records: Sequence[Record], *sentences: str) -> tuple[str, ...]:
    first = records[0]
    params, protocol = first.params, first.protocol
    seeds = sorted({record.params["seed"] for record in records})
    return (f"{data_name(first)} at {params['size']} px, tier {params['tier']}, seeds {', '.join(map(str, seeds))}; "
            f"{protocol['n']} {protocol['targets']}, {protocol['num_steps']} DDIM steps, eta {protocol['eta']:g}, EMA; "
            f"bars and bands: 95 % intervals over pictures.", *sentences, f"git {commits(records)}.")


def _pair_measure(records: Sequence[Record], end: str) -> str:
    """The first of `restoration.PAIRS` that all records have, as `<measure><end>`."""
    return next(name for name in PAIRS if all(f"{name}{end}" in record.metrics for record in records))


def _with_direction(measure: str) -> str:
    return f"{MEASURES[measure]}  ({'higher' if PAIRS.get(measure, 1) < 0 else 'lower'} is better)"


@styled
def fig_super_resolution(records: Sequence[Record]) -> Figure:
    """Notebook 12: KD-EffNet and LPIPS against PSNR for every method, beside FID against PSNR of the paper's Tab. 5.

    SSIM replaces LPIPS unless all records have it. ValueError for records that are not comparable, or of another score.
    """
    check_comparable(records, "kd_effnet_bicubic")
    pair = _pair_measure(records, "_bicubic")
    seen: list[float] = []
    fig, (plane, pairs, theirs) = plt.subplots(1, 3, figsize=(10.4, 3.5), layout="constrained")
    far, floor = [], records[0].value("psnr_bicubic") - _FAR_DB
    for record in records:
        for method in super_resolution.METHODS:
            own = method in ("ldm", "guided", "reconstructions")  # the others do not depend on f
            if record is not records[0] and not own:
                continue
            if record.metrics.get(f"psnr_{method}", {"value": floor})["value"] < floor:
                far.append(f"{_shown(record, method)} at {record.value(f'psnr_{method}'):.1f} dB, "
                           f"KD-EffNet {record.value(f'kd_effnet_{method}'):.0f}")
                continue
            for ax, x, y in ((plane, "psnr", "kd_effnet"), (pairs, "psnr", pair)):
                at_x, at_y = _value(record, f"{x}_{method}"), _value(record, f"{y}_{method}")
                if at_x is not None and at_y is not None:
                    seen += at_y if ax is plane else ()
                    ax.errorbar(at_x[0], at_y[0], xerr=_bars([at_x]), yerr=_bars([at_y]), color=_TINTS[method],
                                marker="o", ms=5, lw=1)
                    look = _NEAR | _BESIDE.get(method, {})
                    ax.annotate(_shown(record, method), (at_x[0], at_y[0]), color=_TINTS[method], **look)
    for ax, y, title in ((plane, "kd_effnet", "(a)  distortion and realism"),
                         (pairs, pair, "(b)  two measures of distortion")):
        ax.set(title=title, xlabel="PSNR [dB]  (higher is better)", ylabel=_with_direction(y))
        ax.margins(x=0.28, y=0.1)
    log_axis_if_positive(plane.yaxis, seen)
    rows = paper.table("Tab. 5")
    for method, name in super_resolution.PAPER.items():
        row = rows[name]
        fid = row.get("fid", row.get("fid_val"))
        theirs.plot(row["psnr"], fid, marker="D", ms=4.5, color=_TINTS[method])
        theirs.annotate({"regression": "Image Regression", "pixels": "SR3", "ldm": "LDM-4", "guided": "LDM-4 guided"}[
            method], (row["psnr"], fid), color=_TINTS[method], **_NEAR)
    theirs.set(title="(c)  the paper: Tab. 5", xlabel="PSNR [dB]", ylabel="FID, ImageNet, ×4")
    theirs.margins(x=0.3, y=0.12)
    log_axis(theirs.yaxis)
    protocol = records[0].protocol
    outside = f" Outside the range of (a) and (b): {'; '.join(far)}." if far else ""
    small_print(fig, *_about(records, f"Downsampled by {protocol['factor']}, {protocol['degradation']}.{outside}"))
    mark_smoke(fig, records)
    return fig


@styled
def fig_inpainting(records: Sequence[Record]) -> Figure:
    """Notebook 13: LPIPS or SSIM by mask size, KD-EffNet on both sets of masks, speed beside the paper's Tab. 6.

    ValueError for records that are not comparable, or of another score.
    """
    check_comparable(records, "kd_effnet_masked_all")
    fig, (by_coverage, sets, speed) = plt.subplots(1, 3, figsize=(10.4, 3.5), layout="constrained",
                                                   gridspec_kw={"width_ratios": (1.1, 1, 1.25)})
    first, pair = records[0], _pair_measure(records[:1], "_masked_all")
    for method in ("regression", "ldm", "reconstructions"):
        name = f"{pair}_by_coverage_{method}"
        if name in first.curves:
            x, y = np.array(first.curves[name]).T
            by_coverage.plot(100 * x, y, color=_TINTS[method], marker="o", ms=4, label=_shown(first, method))
            if len(first.curves.get(f"{name}_low", ())) == len(x):
                ends = [np.array(first.curves[f"{name}{end}"]).T[1] for end in ("_low", "_high")]
                by_coverage.fill_between(100 * x, *ends, color=_TINTS[method], alpha=0.15, lw=0)
    by_coverage.set(title="(a)  against the true picture", xlabel="missing [% of the picture]",
                    ylabel=_with_direction(pair))
    if PAIRS[pair] > 0:
        by_coverage.set_ylim(0, None)
    by_coverage.legend(loc="best")
    _two_sets(sets, records)
    _speed(speed, first)
    several = budget_of(first.params["tier"]).repeats
    of_first, of_nearest = (_value(first, f"{pair}_{name}_of_{several}") for name in ("first", "nearest"))
    nearest = ("" if of_first is None or of_nearest is None else
               f" Several samples per hard mask, {MEASURES[pair]}: first sample {of_first[0]:.3f}, nearest of "
               f"{several} {of_nearest[0]:.3f}.")
    small_print(fig, *_about(records, f"Masks: {first.protocol['masks_all']}; hard: {first.protocol['masks_hard']}; "
                             f"known pixels kept.{nearest} (c): untrained models timed in turn, "
                             f"{first.protocol['timed_rounds']} rounds, batch {first.protocol['timed_batch']}; bars: "
                             f"range over rounds. Paper: one A100, 256 and 512 px."))
    mark_smoke(fig, records)
    return fig


def _two_sets(ax: Axes, records: Sequence[Record]) -> None:
    rows = [(records[0], method) for method in ("regression", "reconstructions")]
    rows[1:1] = [(record, "ldm") for record in sorted(records, key=_row_name)]
    rows = [(record, method) for record, method in rows if f"kd_effnet_{method}_all" in record.metrics]
    seen = [0.0]
    for i, (record, method) in enumerate(rows):
        for which, fill in (("all", _TINTS[method]), ("hard", "white")):
            if (at := _value(record, f"kd_effnet_{method}_{which}")) is not None:
                seen += at
                ax.errorbar(at[0], i, xerr=_bars([at]), color=_TINTS[method], marker="o", mfc=fill, ms=5.5, lw=1)
    ax.set_yticks(range(len(rows)), [_row_name(r) if m == "ldm" else m for r, m in rows], fontsize=7.4)
    ax.set(title="(b)  distance to real pictures", xlabel="KD-EffNet: all masks (filled), hard (open)",
           xlim=(None if min(seen) < 0 else 0, None))
    ax.invert_yaxis()


def _row_name(record: Record) -> str:
    plain = "" if record.params.get("attention", True) else " no attention"
    reg = "" if record.params["reg"] == "none" else f" {record.params['reg'].upper()}"
    return f"{record.name}{reg}{plain}, seed {record.params['seed']}"


def _speed(ax: Axes, record: Record) -> None:
    """Draw the speed-up over LDM-1 of each row of Tab. 6, ours and the paper's."""
    theirs = paper.table("Tab. 6")
    columns = {"train": "train_images_per_s", "small": "images_per_s", "large": "images_per_s_512"}
    marks = {"train": ("s", SECOND), "small": ("o", ACCENT), "large": ("^", "#7d5a96")}
    rows = [row for row in inpainting_speed.ROWS if row != "LDM-1"]
    for i, row in enumerate(rows):
        for j, (name, column) in enumerate(columns.items()):
            at, y = _value(record, f"{name}_speedup_{row}"), i + 0.22 * (j - 1)
            mark, tint = marks[name]
            if at is not None:
                ax.errorbar(at[0], y, xerr=_bars([at]), color=tint, marker=mark, ms=5, lw=1)
            ax.plot(theirs[row][column] / theirs["LDM-1"][column], y, marker=mark, ms=5, mfc="white", mec=GREY, ls="")
            if i == 0:
                ax.plot([], [], color=tint, marker=mark, ls="", label=inpainting_speed.PASSES[name])
    ax.plot([], [], marker="o", mfc="white", mec=GREY, ls="", label="paper")
    ax.axvline(1, color=INK, lw=0.8)
    ax.set_yticks(range(len(rows)), [row.replace(" no", "\nno") for row in rows], fontsize=7.4)
    ax.set(title="(c)  speed [cf. Tab. 6]", xlabel="speed-up over LDM-1", xlim=(0, None),
           ylim=(len(rows) - 0.2, -0.55))
    ax.legend(fontsize=6.6, loc="lower right", ncols=2, handletextpad=0.2, columnspacing=0.8)


@styled
def fig_semantic(record: Record) -> Figure:
    """Notebook 11: agreement of samples with their label maps, beside other maps and reconstructions as baselines.

    ValueError if the record has no such measure.
    """
    measures = {m: name for m, name in semantic_synthesis.MEASURES.items() if f"{m}_samples" in record.metrics}
    if not measures:
        raise ValueError(f"{record.file_name} has no measure of agreement with label maps; they exist for data scenes "
                         f"only, got {data_name(record)}")
    fig, axes = plt.subplots(1, len(measures), figsize=(4.4 * len(measures), 2.2), sharey=True, layout="constrained")
    for ax, (measure, name) in zip(axes, measures.items(), strict=True):
        for i, method in enumerate(semantic_synthesis.METHODS):
            if (at := _value(record, f"{measure}_{method}")) is None:
                continue
            ax.barh(i, at[0], color=_TINTS[method], height=0.62)
            ax.errorbar(at[0], i, xerr=_bars([at]), color=INK, lw=1)
            ax.annotate(f"{at[0]:.2f}", (at[0], i), (6, 0), textcoords="offset points", va="center", fontsize=7.6)
        ax.set(title=name, xlim=(0, 1.08))
        ax.set_yticks(range(len(semantic_synthesis.METHODS)), list(semantic_synthesis.METHODS.values()))
        ax.grid(False, axis="y")
    axes[0].invert_yaxis()
    weights = record.metrics["pixels_samples"]["weights_hash"][:8]
    small_print(fig, *_about([record], f"{record.name}; labels at 32 px by the scene classifier {weights}."))
    mark_smoke(fig, [record])
    return fig


@styled
def fig_beyond(record: Record) -> Figure:
    """Notebook 15: KD-EffNet against real pictures of the same size over that size, by task, and of reconstructions.

    ValueError for records of earlier versions, which have FD-lab.
    """
    check_comparable([record], "kd_effnet_by_size_real")
    names = {"super_resolution": ("super-resolution", ACCENT), "inpainting": ("inpainting", SECOND),
             "semantic": ("semantic synthesis", "#7d5a96"), "reconstructions": ("first stage alone", "#5b8c5a"),
             "real": ("other real pictures", GREY)}
    fig, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    seen: list[float] = []
    for key, (name, tint) in names.items():
        curve = f"kd_effnet_by_size_{key}"
        if curve in record.curves:
            x, y = np.array(record.curves[curve]).T
            ax.plot(x, y, color=tint, marker="o", ms=4, label=name)
            if f"{curve}_low" in record.curves:
                ends = [np.array(record.curves[f"{curve}{end}"]).T[1] for end in ("_low", "_high")]
                ax.fill_between(x, *ends, color=tint, alpha=0.15, lw=0)
                seen += ends[0].tolist()
            seen += y.tolist()
    log_axis_if_positive(ax.yaxis, seen)
    ax.set_xticks(x, [f"{side:g}" for side in x])
    ax.set(xlabel="side of the picture [px]", ylabel="KD-EffNet  (lower is better)",
           title=f"{record.name}, trained at {record.params['size']} px")
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    small_print(fig, *_about([record], "KD-EffNet: kernel distance times 1000; reference: training pictures "
                             "rendered or resized to each size; values are comparable at one size only."))
    mark_smoke(fig, [record])
    return fig
