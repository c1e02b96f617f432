"""Guidance in figures: success by measure with its baselines, and what it costs in diversity [LDM v2, Tab. 3, 10]."""

from collections.abc import Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ldmlab.experiments.guidance import MEASURES, METHODS, curve_name
from ldmlab.figures.curves import fig_lines
from ldmlab.figures.style import (
    ACCENT,
    GREY,
    INK,
    SECOND,
    ink,
    label_ends,
    line_style,
    log_axis,
    mark_smoke,
    small_print,
    span,
    styled,
)
from ldmlab.paper import numbers as paper
from ldmlab.study.records.compare import Series, check_comparable, commits, data_name, grouped, ranged
from ldmlab.study.records.record import Record

_CEILING = "#5b8c5a"
_WAY_TINTS = {"": ACCENT, "classifier": SECOND, "classifier_alone": "#7d5a96"}
_TICKS = (1, 1.5, 3, 5, 10)


def _scale_axis(ax: Axes) -> None:
    log_axis(ax.xaxis)
    ax.set_xticks(_TICKS, [f"{s:g}" for s in _TICKS])
    ax.set_xlim(0.9, 11.2)
    ax.set_xlabel("guidance scale s")


def _band(ax: Axes, record: Record, name: str, tint: str, **look) -> None:
    """A curve of one record, with the interval over its samples."""
    x, y = np.array(record.curves[name]).T
    ax.plot(x, y, color=tint, **look)
    if f"{name}_low" in record.curves:
        ends = [np.array(record.curves[f"{name}{end}"]).T[1] for end in ("_low", "_high")]
        ax.fill_between(x, *ends, color=tint, alpha=0.15, lw=0)


@styled
def fig_success(record: Record) -> Figure:
    """Each measure of success of one run against the guidance scale, between its baselines and the judge's ceiling."""
    kind = record.protocol["condition"]
    measures = {m: name for m, name in MEASURES[kind].items() if curve_name(m) in record.curves}
    if not measures:
        raise ValueError(f"{record.file_name} has no measure of success: the judge knows scenes alone")
    ways = [way for way in METHODS if curve_name(next(iter(measures)), way) in record.curves]
    fig, axes = plt.subplots(1, len(measures), figsize=(max(4.6, 2.35 * len(measures)), 2.9), squeeze=False,
                             layout="constrained")
    for ax, (measure, name) in zip(axes[0], measures.items(), strict=True):
        for way in ways:
            _band(ax, record, curve_name(measure, way), _WAY_TINTS[way], marker="o", ms=4, label=METHODS[way].name)
        _band(ax, record, curve_name(f"{measure}_shuffled"), GREY, marker="x", ms=4, lw=1,
              label="asked of another sample")
        untold, ceiling = record.value(f"{measure}_untold"), record.value(f"{measure}_reconstructions")
        ax.axhline(untold, color=INK, lw=1, ls=(0, (1, 1.5)), label="the model is not told")
        ax.axhline(ceiling, color=_CEILING, lw=1.1, ls=(0, (4, 1.6)), label="the judge on reconstructions")
        ax.set(title=name, ylim=(0, 1.02))
        _scale_axis(ax)
    axes[0, 0].set_ylabel("share, judged  (higher is better)" if kind != "layout" else "judged  (higher is better)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper left", ncols=3 if len(measures) > 1 else 2, fontsize=7.2)
    params, score = record.params, record.metrics[next(iter(measures))]
    small_print(
        fig,
        f"{record.name} on {data_name(record)} at {params['size']} px, tier {params['tier']}, seed {params['seed']}; "
        f"{record.protocol['guidance_n']} samples a point from equal noise, {record.protocol['num_steps']} DDIM steps, "
        f"eta {record.protocol['eta']:g}, EMA; conditions: {record.protocol['labels']}. Judge "
        f"{score['weights_hash'][:8]}; bands: 95 % intervals over samples. git {commits([record])}.")
    mark_smoke(fig, [record])
    return fig


@styled
def fig_trade(records: Sequence[Record]) -> Figure:
    """What guidance buys and what it costs, over all runs: success, FD-lab, and recall against precision [Tab. 10]."""
    check_comparable(records, "fd_lab_by_guidance")
    kind = records[0].protocol["condition"]
    chief = next(iter(MEASURES[kind]))
    fig, (success, fd, pr) = plt.subplots(1, 3, figsize=(10.2, 3.3), layout="constrained")
    judged = [s for s in grouped(records) if all(curve_name(chief) in run.curves for run in s.runs)]
    log_axis(fd.yaxis)  # scales and limits first: names are placed on what is there
    span(fd, [y for s in grouped(records) for y in s.curve(curve_name("fd_lab"))[1]])
    success.set(title=f"(a)  {MEASURES[kind][chief]}", ylabel="judged  (higher is better)", ylim=(0, 1.02))
    fd.set(title="(b)  distance to the training pictures", ylabel="FD-lab  (lower is better)")
    for ax, name, series in ((success, chief, judged), (fd, "fd_lab", grouped(records))):
        _over_f(ax, series, curve_name(name))
    for s in grouped(records):
        x, precision, *_ = s.curve(curve_name("precision"))
        recall = s.curve(curve_name("recall"))[1]
        pr.plot(precision, recall, **{**line_style(s), "ms": 4})
        for i in (0, len(x) - 1):
            pr.annotate(f"{s.name}, s = {x[i]:g}" if i == 0 else f"s = {x[i]:g}", (precision[i], recall[i]), (5, -10),
                        textcoords="offset points", fontsize=7, color=ink(s.f))
    _paper_trade(pr)
    pr.set(title="(c)  fidelity and diversity", xlabel="precision", ylabel="recall", xlim=(0, 1.05), ylim=(0, 1))
    params, protocol = records[0].params, records[0].protocol
    seeds = ranged(sorted(len(s.runs) for s in grouped(records)))
    rising = not all(s.flat for s in grouped(records))
    flat = " † the first stage's validation PSNR was still rising when its training ended." if rising else ""
    small_print(
        fig,
        f"Ours: {data_name(records[0])} at {params['size']} px, tier {params['tier']}; classifier-free guidance, "
        f"{protocol['guidance_n']} samples a point, {protocol['num_steps']} DDIM steps, eta {protocol['eta']:g}; "
        f"conditions: {protocol['labels']}; seeds an f: {seeds}. Precision and recall on "
        f"features of fd-lab, k = 3, against {protocol['precision_recall_reference']}.{flat} "
        f"git {commits(records)}. Paper (grey): ImageNet at 256 px, on features of Inception, Tab. 10: of its points, "
        f"only which way they go compares with ours.")
    mark_smoke(fig, records)
    return fig


def _over_f(ax: Axes, series: Sequence[Series], name: str) -> None:
    ends = []
    for s in series:
        x, mean, low, high = s.curve(name)
        if len(s.runs) == 1 and all(f"{name}{end}" in s.runs[0].curves for end in ("_low", "_high")):
            low, high = s.curve(f"{name}_low")[1], s.curve(f"{name}_high")[1]
        ax.plot(x, mean, **{**line_style(s), "ms": 4})
        ax.fill_between(x, low, high, color=line_style(s)["color"], alpha=0.15, lw=0)
        ends.append((x[-1], mean[-1], s.name, ink(s.f)))
    _scale_axis(ax)
    ax.set_xlim(0.9, 22)
    label_ends(ax, ends)


# Rows of Tab. 10, unguided first; the second of LDM-8 is guided by a classifier.
_PAPER_PATHS = {"LDM-4": ("LDM-4", "LDM-4-G scale 1.25", "LDM-4-G scale 1.5"), "LDM-8": ("LDM-8", "LDM-8-G")}


def _paper_trade(ax: Axes) -> None:
    rows = paper.table("Tab. 10")
    for model, names in _PAPER_PATHS.items():
        path = [(rows[f"ImageNet / {name}"]["precision"], rows[f"ImageNet / {name}"]["recall"]) for name in names]
        ax.plot(*zip(*path, strict=True), color=GREY, marker="D", ms=3.5, lw=1)
        ax.annotate(f"paper, {model}", path[-1], (4, -3), textcoords="offset points", fontsize=7, color=GREY, va="top")


def fig_classifier(record: Record) -> Figure:
    """How often the classifier of noisy latents names the class, against t: where its gradient can know anything."""
    return fig_lines({"validation": record.curves["classifier_accuracy_by_t"]}, x="t", y="accuracy",
                     caption=f"Classifier on {record.name}'s latents, {data_name(record)} at {record.params['size']} "
                             f"px, tier {record.params['tier']}; validation pictures, one noise each.")
