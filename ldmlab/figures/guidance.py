"""Notebooks 08 to 10: consistency with the condition, quality and diversity against the scale [LDM v2, Tab. 3, 10]."""

from collections.abc import Sequence
from typing import Any

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
    label_ends,
    line_style,
    log_axis,
    log_axis_if_positive,
    mark_smoke,
    set_log_limits,
    small_print,
    styled,
    text_colour,
)
from ldmlab.paper import numbers as paper
from ldmlab.study.records.compare import Series, check_comparable, commits, data_name, format_range, grouped
from ldmlab.study.records.record import Record

_CEILING = "#5b8c5a"
_METHOD_TINTS = {"": ACCENT, "classifier": SECOND, "classifier_alone": "#7d5a96"}
_TICKS = (1, 1.5, 3, 5, 10)


def _scale_axis(ax: Axes) -> None:
    log_axis(ax.xaxis)
    ax.set_xticks(_TICKS, [f"{s:g}" for s in _TICKS])
    ax.set_xlim(0.9, 11.2)
    ax.set_xlabel("guidance scale s")


def _band(ax: Axes, record: Record, name: str, tint: str, **look: Any) -> None:
    """Draw a curve of one record, with its interval over samples."""
    x, y = np.array(record.curves[name]).T
    ax.plot(x, y, color=tint, **look)
    if f"{name}_low" in record.curves:
        ends = [np.array(record.curves[f"{name}{end}"]).T[1] for end in ("_low", "_high")]
        ax.fill_between(x, *ends, color=tint, alpha=0.15, lw=0)


@styled
def fig_success(record: Record) -> Figure:
    """Consistency of one run's samples with their condition against the guidance scale, one panel per measure.

    Baselines are unconditional samples and shuffled conditions; reconstructions give the upper bound. ValueError if
    the record has no such measure.
    """
    kind = record.protocol["condition"]
    measures = {m: name for m, name in MEASURES[kind].items() if curve_name(m) in record.curves}
    if not measures:
        raise ValueError(f"{record.file_name} has no measure of consistency with the condition; they exist for data "
                         f"scenes only, got {data_name(record)}")
    methods = [method for method in METHODS if curve_name(next(iter(measures)), method) in record.curves]
    fig, axes = plt.subplots(1, len(measures), figsize=(max(4.6, 2.35 * len(measures)), 2.9), squeeze=False,
                             layout="constrained")
    for ax, (measure, name) in zip(axes[0], measures.items(), strict=True):
        for method in methods:
            _band(ax, record, curve_name(measure, method), _METHOD_TINTS[method], marker="o", ms=4,
                  label=METHODS[method].name)
        _band(ax, record, curve_name(f"{measure}_shuffled"), GREY, marker="x", ms=4, lw=1,
              label="condition of another sample")
        unconditional, ceiling = record.value(f"{measure}_untold"), record.value(f"{measure}_reconstructions")
        ax.axhline(unconditional, color=INK, lw=1, ls=(0, (1, 1.5)), label="unconditional")
        ax.axhline(ceiling, color=_CEILING, lw=1.1, ls=(0, (4, 1.6)), label="reconstructions of real pictures")
        ax.set(title=name, ylim=(0, 1.02))
        _scale_axis(ax)
    axes[0, 0].set_ylabel("share of samples  (higher is better)" if kind != "layout" else
                          "consistency  (higher is better)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper left", ncols=3 if len(measures) > 1 else 2, fontsize=7.2)
    params, score = record.params, record.metrics[next(iter(measures))]
    small_print(
        fig,
        f"{record.name} on {data_name(record)} at {params['size']} px, tier {params['tier']}, seed {params['seed']}; "
        f"{record.protocol['guidance_n']} samples per point from the same noise, "
        f"{record.protocol['num_steps']} DDIM steps, "
        f"eta {record.protocol['eta']:g}, EMA; conditions: {record.protocol['labels']}. Scored by "
        f"the scene classifier {score['weights_hash'][:8]}; bands: 95 % intervals over samples. "
        f"git {commits([record])}.")
    mark_smoke(fig, [record])
    return fig


@styled
def fig_guidance_tradeoff(records: Sequence[Record]) -> Figure:
    """Consistency and KD-EffNet over the guidance scale, and recall against precision, for all runs [LDM v2, Tab. 10].

    ValueError for records that are not comparable, or have another score.
    """
    check_comparable(records, "kd_effnet_by_guidance")
    kind = records[0].protocol["condition"]
    main = next(iter(MEASURES[kind]))
    fig, (success, kd, pr) = plt.subplots(1, 3, figsize=(10.2, 3.3), layout="constrained")
    scored = [s for s in grouped(records) if all(curve_name(main) in run.curves for run in s.runs)]
    seen = [y for r in records for end in ("", "_low") for _, y in r.curves.get(curve_name("kd_effnet") + end, ())]
    if log_axis_if_positive(kd.yaxis, seen):  # scales and limits first, since labels are placed by them
        set_log_limits(kd, seen)
    success.set(title=f"(a)  {MEASURES[kind][main]}", ylabel="consistency  (higher is better)", ylim=(0, 1.02))
    kd.set(title="(b)  distance to the training pictures", ylabel="KD-EffNet  (lower is better)")
    for ax, name, series in ((success, main, scored), (kd, "kd_effnet", grouped(records))):
        _over_f(ax, series, curve_name(name))
    for s in grouped(records):
        x, precision, *_ = s.curve(curve_name("precision"))
        recall = s.curve(curve_name("recall"))[1]
        pr.plot(precision, recall, **{**line_style(s), "ms": 4})
        for i in (0, len(x) - 1):
            pr.annotate(f"{s.name}, s = {x[i]:g}" if i == 0 else f"s = {x[i]:g}", (precision[i], recall[i]), (5, -10),
                        textcoords="offset points", fontsize=7, color=text_colour(s.f))
    _paper_trade(pr)
    pr.set(title="(c)  fidelity and diversity", xlabel="precision", ylabel="recall", xlim=(0, 1.05), ylim=(0, 1))
    params, protocol = records[0].params, records[0].protocol
    seeds = format_range(sorted(len(s.runs) for s in grouped(records)))
    rising = not all(s.flat for s in grouped(records))
    flat = " †: validation PSNR of the first stage was still rising when its training ended." if rising else ""
    small_print(
        fig,
        f"Ours: {data_name(records[0])} at {params['size']} px, tier {params['tier']}; classifier-free guidance, "
        f"{protocol['guidance_n']} samples per point, {protocol['num_steps']} DDIM steps, eta {protocol['eta']:g}; "
        f"conditions: {protocol['labels']}; seeds per f: {seeds}. Precision and recall with "
        f"features of EfficientNet-Lite0, k = 3, against {protocol['precision_recall_reference']}.{flat} "
        f"git {commits(records)}. Paper (grey): ImageNet at 256 px, features of Inception, Tab. 10; only the direction "
        f"of its lines is comparable with ours.")
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
        ends.append((x[-1], mean[-1], s.name, text_colour(s.f)))
    _scale_axis(ax)
    ax.set_xlim(0.9, 22)
    label_ends(ax, ends)


# Rows of Tab. 10, unguided first; the second row of LDM-8 uses classifier guidance.
_PAPER_PATHS = {"LDM-4": ("LDM-4", "LDM-4-G scale 1.25", "LDM-4-G scale 1.5"), "LDM-8": ("LDM-8", "LDM-8-G")}


def _paper_trade(ax: Axes) -> None:
    rows = paper.table("Tab. 10")
    for model, names in _PAPER_PATHS.items():
        path = [(rows[f"ImageNet / {name}"]["precision"], rows[f"ImageNet / {name}"]["recall"]) for name in names]
        ax.plot(*zip(*path, strict=True), color=GREY, marker="D", ms=3.5, lw=1)
        ax.annotate(f"paper, {model}", path[-1], (4, -3), textcoords="offset points", fontsize=7, color=GREY, va="top")


def fig_classifier(record: Record) -> Figure:
    """Validation accuracy of the classifier of noisy latents against t; its gradient is informative where it is high.
    """
    return fig_lines({"validation": record.curves["classifier_accuracy_by_t"]}, x="t", y="accuracy",
                     caption=f"Classifier on {record.name}'s latents, {data_name(record)} at {record.params['size']} "
                             f"px, tier {record.params['tier']}; validation pictures, one noise sample each.")
