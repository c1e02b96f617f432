"""Super-resolution, inpainting and semantic synthesis in figures, the paper's tables beside ours [Tab. 5, 6, 7]."""

from collections.abc import Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ldmlab.experiments import inpainting_speed, semantic_synthesis, super_resolution
from ldmlab.experiments.restoration import MEASURES
from ldmlab.figures.style import ACCENT, GREY, INK, SECOND, log_axis, mark_smoke, small_print, styled
from ldmlab.paper import numbers as paper
from ldmlab.study.config.budgets import budget_of
from ldmlab.study.records.compare import check_comparable, commits, data_name
from ldmlab.study.records.record import Record

_TINTS = {
    "bicubic": GREY, "masked": GREY, "regression": SECOND, "pixels": "#c08a2d", "ldm": ACCENT, "samples": ACCENT,
    "guided": "#7d5a96", "others": GREY, "reconstructions": "#5b8c5a", "truth": INK,
}
_NEAR = {"xytext": (6, 4), "textcoords": "offset points", "fontsize": 7.4}
_BESIDE = {  # where a name stands, so that neighbours keep apart
    "ldm": {"xytext": (-7, -9), "ha": "right"}, "guided": {"xytext": (-7, 6), "ha": "right"},
    "reconstructions": {"xytext": (4, -12), "ha": "center"}, "regression": {"xytext": (7, 6)},
}
_FAR_DB = 5.0  # methods this much below bicubic would squeeze all others together; they are told in words


def _shown(record: Record, method: str) -> str:
    """What a method is called in figures: the run's own model by its name."""
    return record.name if method in ("ldm", "samples") else method


def _value(record: Record, metric: str) -> tuple[float, float, float] | None:
    """(value, low, high) of a metric; equal ones where it has no interval."""
    entry = record.metrics.get(metric)
    if entry is None or entry["value"] is None:
        return None
    ends = entry.get("interval") or {"low": entry["value"], "high": entry["value"]}
    return entry["value"], ends["low"], ends["high"]


def _bars(points: Sequence[tuple[float, float, float]]) -> np.ndarray:
    """Values with their ends as what `errorbar` takes."""
    value, low, high = np.array(points).T
    return np.stack([np.maximum(value - low, 0), np.maximum(high - value, 0)])


def _about(records: Sequence[Record], *sentences: str) -> tuple[str, ...]:
    first = records[0]
    params, protocol = first.params, first.protocol
    seeds = sorted({record.params["seed"] for record in records})
    return (f"{data_name(first)} at {params['size']} px, tier {params['tier']}, seeds {', '.join(map(str, seeds))}; "
            f"{protocol['n']} {protocol['targets']}, {protocol['num_steps']} DDIM steps, eta {protocol['eta']:g}, EMA; "
            f"bars and bands: 95 % intervals over pictures.", *sentences, f"git {commits(records)}.")


@styled
def fig_super_resolution(records: Sequence[Record]) -> Figure:
    """Distance to the true picture against distance to all pictures, for every method; the paper's Tab. 5 beside.

    Where the pictures are too few for FD-lab, KID-lab stands in, and the axis says so.
    """
    check_comparable(records, "psnr_bicubic")
    fd = "fd_lab" if all("fd_lab_bicubic" in record.metrics for record in records) else "kid_lab"
    fig, (plane, pairs, theirs) = plt.subplots(1, 3, figsize=(10.4, 3.5), layout="constrained")
    far, floor = [], records[0].value("psnr_bicubic") - _FAR_DB
    for record in records:
        for method in super_resolution.METHODS:
            own = method in ("ldm", "guided", "reconstructions")  # the others do not depend on f
            if record is not records[0] and not own:
                continue
            if record.metrics.get(f"psnr_{method}", {"value": floor})["value"] < floor:
                far.append(f"{_shown(record, method)} at {record.value(f'psnr_{method}'):.1f} dB, "
                           f"{MEASURES[fd]} {record.value(f'{fd}_{method}'):.0f}")
                continue
            for ax, x, y in ((plane, "psnr", fd), (pairs, "psnr", "pd_referee")):
                at = [_value(record, f"{m}_{method}") for m in (x, y)]
                if None not in at:
                    ax.errorbar(at[0][0], at[1][0], xerr=_bars(at[:1]), yerr=_bars(at[1:]), color=_TINTS[method],
                                marker="o", ms=5, lw=1)
                    look = _NEAR | _BESIDE.get(method, {})
                    ax.annotate(_shown(record, method), (at[0][0], at[1][0]), color=_TINTS[method], **look)
    for ax, y, title in ((plane, fd, "(a)  near the picture, or near all pictures"),
                         (pairs, "pd_referee", "(b)  two ways to be near the picture")):
        ax.set(title=title, xlabel="PSNR [dB]  (higher is better)", ylabel=f"{MEASURES[y]}  (lower is better)")
        ax.margins(x=0.28, y=0.1)
    log_axis(plane.yaxis)
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
    outside = f" Outside of (a) and (b): {'; '.join(far)}." if far else ""
    small_print(fig, *_about(records, f"Shrunk by {protocol['factor']}, {protocol['degradation']}. PD-referee: "
                             f"distance of pairs on a network that trained nothing here.{outside}"))
    mark_smoke(fig, records)
    return fig


@styled
def fig_inpainting(records: Sequence[Record]) -> Figure:
    """Distance to the true picture by how much is missing; to all pictures, on both sets of masks; Tab. 6 of speed."""
    check_comparable(records, "psnr_masked_all")
    fig, (by_coverage, sets, speed) = plt.subplots(1, 3, figsize=(10.4, 3.5), layout="constrained",
                                                   gridspec_kw={"width_ratios": (1.1, 1, 1.25)})
    first = records[0]
    for method in ("regression", "ldm", "reconstructions"):
        name = f"pd_referee_by_coverage_{method}"
        if name in first.curves:
            x, y = np.array(first.curves[name]).T
            by_coverage.plot(100 * x, y, color=_TINTS[method], marker="o", ms=4, label=_shown(first, method))
            if len(first.curves.get(f"{name}_low", ())) == len(x):
                ends = [np.array(first.curves[f"{name}{end}"]).T[1] for end in ("_low", "_high")]
                by_coverage.fill_between(100 * x, *ends, color=_TINTS[method], alpha=0.15, lw=0)
    by_coverage.set(title="(a)  near the picture", xlabel="missing [% of the picture]",
                    ylabel="PD-referee  (lower is better)", ylim=(0, None))
    by_coverage.legend(loc="upper left")
    _two_sets(sets, records)
    _speed(speed, first)
    several = {name: first.metrics.get(f"pd_referee_{name}_of_{budget_of(first.params['tier']).repeats}")
               for name in ("first", "nearest")}
    told = ("" if None in several.values() else
            f" Several samples of a hard hole, PD-referee: the first {several['first']['value']:.3f}, the nearest of "
            f"{budget_of(first.params['tier']).repeats} {several['nearest']['value']:.3f}.")
    small_print(fig, *_about(records, f"Masks: {first.protocol['masks_all']}; hard: {first.protocol['masks_hard']}; "
                             f"known pixels kept.{told} (c): untrained models timed in turn, "
                             f"{first.protocol['timed_rounds']} rounds, batch {first.protocol['timed_batch']}; bars "
                             f"range over rounds. Paper: one A100, 256 and 512 px."))
    mark_smoke(fig, records)
    return fig


def _two_sets(ax: Axes, records: Sequence[Record]) -> None:
    fd = "fd_lab" if "fd_lab_ldm_all" in records[0].metrics else "kid_lab"
    rows = [(records[0], method) for method in ("regression", "reconstructions")]
    rows[1:1] = [(record, "ldm") for record in sorted(records, key=_row_name)]
    rows = [(record, method) for record, method in rows if f"{fd}_{method}_all" in record.metrics]
    for i, (record, method) in enumerate(rows):
        for which, fill in (("all", _TINTS[method]), ("hard", "white")):
            at = _value(record, f"{fd}_{method}_{which}")
            ax.errorbar(at[0], i, xerr=_bars([at]), color=_TINTS[method], marker="o", mfc=fill, ms=5.5, lw=1)
    ax.set_yticks(range(len(rows)), [_row_name(r) if m == "ldm" else m for r, m in rows], fontsize=7.4)
    ax.set(title="(b)  near all pictures", xlabel=f"{MEASURES[fd]}: all masks (filled), hard (open)", xlim=(0, None))
    ax.invert_yaxis()


def _row_name(record: Record) -> str:
    plain = "" if record.params.get("attention", True) else " no attention"
    reg = "" if record.params["reg"] == "none" else f" {record.params['reg'].upper()}"
    return f"{record.name}{reg}{plain}, seed {record.params['seed']}"


def _speed(ax: Axes, record: Record) -> None:
    """How many times as fast as LDM-1 each row of Tab. 6 is, here and in the paper."""
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
    ax.plot([], [], marker="o", mfc="white", mec=GREY, ls="", label="the paper's")
    ax.axvline(1, color=INK, lw=0.8)
    ax.set_yticks(range(len(rows)), [row.replace(" no", "\nno") for row in rows], fontsize=7.4)
    ax.set(title="(c)  times as fast as LDM-1", xlabel="speed-up over LDM-1", xlim=(0, None),
           ylim=(len(rows) - 0.2, -0.55))
    ax.legend(fontsize=6.6, loc="lower right", ncols=2, handletextpad=0.2, columnspacing=0.8)


@styled
def fig_semantic(record: Record) -> Figure:
    """Whether samples show what their maps say, between another's map and pictures that are right."""
    measures = {m: name for m, name in semantic_synthesis.MEASURES.items() if f"{m}_samples" in record.metrics}
    if not measures:
        raise ValueError(f"{record.file_name} has no measure of success: the judge knows scenes alone")
    fig, axes = plt.subplots(1, len(measures), figsize=(4.4 * len(measures), 2.2), sharey=True, layout="constrained")
    for ax, (measure, name) in zip(axes, measures.items(), strict=True):
        for i, method in enumerate(semantic_synthesis.METHODS):
            at = _value(record, f"{measure}_{method}")
            ax.barh(i, at[0], color=_TINTS[method], height=0.62)
            ax.errorbar(at[0], i, xerr=_bars([at]), color=INK, lw=1)
            ax.annotate(f"{at[0]:.2f}", (at[0], i), (6, 0), textcoords="offset points", va="center", fontsize=7.6)
        ax.set(title=name, xlim=(0, 1.08))
        ax.set_yticks(range(len(semantic_synthesis.METHODS)), list(semantic_synthesis.METHODS.values()))
        ax.grid(False, axis="y")
    axes[0].invert_yaxis()
    judge = record.metrics["pixels_samples"]["weights_hash"][:8]
    small_print(fig, *_about([record], f"{record.name}; judged at 32 px by judge {judge}."))
    mark_smoke(fig, [record])
    return fig


@styled
def fig_beyond(record: Record) -> Figure:
    """Distance to real pictures of the same size, over that size: samples of each task, and what the decoder adds."""
    names = {"super_resolution": ("super-resolution", ACCENT), "inpainting": ("inpainting", SECOND),
             "semantic": ("semantic synthesis", "#7d5a96"), "reconstructions": ("first stage alone", "#5b8c5a"),
             "real": ("other real pictures", GREY)}
    fig, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for key, (name, tint) in names.items():
        curve = f"fd_lab_by_size_{key}"
        if curve in record.curves:
            x, y = np.array(record.curves[curve]).T
            ax.plot(x, y, color=tint, marker="o", ms=4, label=name)
            if f"{curve}_low" in record.curves:
                ends = [np.array(record.curves[f"{curve}{end}"]).T[1] for end in ("_low", "_high")]
                ax.fill_between(x, *ends, color=tint, alpha=0.15, lw=0)
    log_axis(ax.yaxis)
    ax.set_xticks(x, [f"{side:g}" for side in x])
    ax.set(xlabel="side of the picture [px]", ylabel="FD-lab  (lower is better)",
           title=f"{record.name}, trained at {record.params['size']} px")
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    small_print(fig, *_about([record], "Reference: training pictures rendered or resized to each size; values of two "
                             "sizes do not compare, lines at one size do."))
    mark_smoke(fig, [record])
    return fig
