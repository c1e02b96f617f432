"""Notebook 17_user_study: preference shares beside the paper's, strengths, answers needed [LDM v2, Tab. 4]."""

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ldmlab.evaluation.preference import questions_needed
from ldmlab.figures.style import ACCENT, GREY, INK, SECOND, log_axis, mark_smoke, small_print, styled
from ldmlab.paper import numbers as paper
from ldmlab.study.records.compare import commits, data_name
from ldmlab.study.records.record import Record

_WHO = {"simulated": ("simulated raters", ACCENT), "human": ("people", SECOND)}


def tab4() -> dict[str, tuple[float, float]]:
    """Tab. 4 as {row: (share preferred to the ground truth, share preferred to the other method)}."""
    return {row: (v["percent_vs_ground_truth"] / 100, v["percent_preferred"] / 100)
            for row, v in paper.table("Tab. 4").items()}


@styled
def fig_user_study(record: Record) -> Figure:
    """Preference shares of both tasks and Bradley-Terry strengths of one record, with the paper's shares below ours.

    The paper states no intervals.
    """
    fig, axes = plt.subplots(1, 3, figsize=(11.0, 3.9), layout="constrained")
    for ax, prefix, title, column in ((axes[0], "vs_truth_", "(a)  task 1: preferred to the real picture", 0),
                                      (axes[1], "prefer_", "(b)  task 2: first preferred to second", 1)):
        rows = _rows(record, prefix)
        named = [name.replace("_", " ") for name in rows]
        for y, name in enumerate(rows):
            _shares(ax, record, prefix + name, y)
        for y, (name, shares) in enumerate(tab4().items(), len(rows) + 1):
            ax.plot(shares[column], y, "D", ms=4.5, mfc="white", mec=INK)
            named.append(name)
        ax.axvline(0.5, color=GREY, lw=0.9, ls=(0, (4, 1.6)))
        ax.set_yticks([*range(len(rows)), *range(len(rows) + 1, len(named) + 1)], named)
        ax.set(xlim=(0, 1), xlabel="share of answers", title=title)
        ax.invert_yaxis()
    _strengths(axes[2], record)
    for label, tint in (_WHO[who] for who in _WHO if f"raters_{who}" in record.protocol):
        axes[0].plot([], [], "o-", color=tint, label=f"{label}, 95 %")
    axes[0].plot([], [], "|", color=INK, ms=9, mew=1.4, label="known preference")
    axes[0].plot([], [], ".", color=GREY, ms=3, label="one rater")
    axes[0].plot([], [], "D", ms=4.5, mfc="white", mec=INK, ls="", label="paper, Tab. 4")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=5, fontsize=7.2)
    p = record.protocol
    people = (f"{p['raters_human']} people included, {p['excluded_human']} excluded" if "raters_human" in p
              else "no answers by people yet")
    small_print(
        fig,
        f"{record.name} on {data_name(record)} at {record.params['size']} px, tier {record.params['tier']}, seed "
        f"{record.params['seed']}; {p['num_pictures']} validation pictures, downsampled by {p['factor']}. "
        f"{p['raters_simulated']} simulated raters included, {p['excluded_simulated']} excluded, "
        f"{p['simulated_questions']} questions each, utility: {p['simulated_by']['utility']}; {people}. Intervals "
        f"account for raters and pictures as random. The paper's rows are other methods at 256 px, and it states no "
        f"number of answers. git {commits([record])}.")
    mark_smoke(fig, [record])
    return fig


def _rows(record: Record, prefix: str) -> list[str]:
    names = [key.removeprefix(prefix).rpartition("_")[0] for key in record.metrics if key.startswith(prefix)]
    return list(dict.fromkeys(names))


def _present(record: Record, name: str) -> list[tuple[float, str, dict, str]]:
    """(offset, colour, metric, its key) for each kind of rater that has the metric `name`."""
    found = [(who, f"{name}_{who}") for who in _WHO if f"{name}_{who}" in record.metrics]
    return [((i - (len(found) - 1) / 2) * 0.4, _WHO[who][1], record.metrics[key], key)
            for i, (who, key) in enumerate(found)]


def _shares(ax: Axes, record: Record, name: str, y: int) -> None:
    for offset, tint, entry, key in _present(record, name):
        raters = [share for _, share in record.curves.get(f"{key}_by_rater", ())]
        ax.plot(raters, np.full(len(raters), y + offset - 0.16), ".", color=tint, ms=3, alpha=0.4)
        _interval(ax, entry, y + offset, tint)
        if "known" in entry:
            ax.plot(entry["known"], y + offset, "|", color=INK, ms=9, mew=1.4, zorder=4)


def _interval(ax: Axes, entry: dict, y: float, tint: str) -> None:
    ax.plot([entry["interval"]["low"], entry["interval"]["high"]], [y, y], color=tint, lw=1.8)
    ax.plot(entry["value"], y, "o", color=tint, ms=5)


def _strengths(ax: Axes, record: Record) -> None:
    rows = _rows(record, "strength_")
    best = lambda name: -_present(record, f"strength_{name}")[0][2]["value"]  # noqa: E731
    rows.sort(key=best)
    for y, name in enumerate(rows):
        for offset, tint, entry, _ in _present(record, f"strength_{name}"):
            _interval(ax, entry, y + offset, tint)
    ax.set_yticks(range(len(rows)), [name.replace("_", " ") for name in rows])
    ax.set(title="(c)  Bradley-Terry strengths", xlabel="logits, mean 0", ylim=(len(rows) - 0.4, -0.6))
    if not rows:
        ax.text(0.5, 0.5, "no finite strengths:\nmore answers needed", transform=ax.transAxes, ha="center",
                color=GREY)


@styled
def fig_questions_needed(record: Record) -> Figure:
    """Number of answers needed to distinguish a preference from 0.5, over the preference; the paper's are marked."""
    fig, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    shares = np.round(np.arange(0.53, 0.96, 0.01), 2)
    effects = [m["design_effect"] for key, m in record.metrics.items() if key.endswith("_simulated") and "known" in m]
    effect = float(np.median(effects)) if effects else 1.0
    for power, line in ((0.8, "-"), (0.9, (0, (4, 1.6)))):
        ax.plot(shares, [questions_needed(float(p), power) for p in shares], color=ACCENT, ls=line,
                label=f"power {100 * power:.0f} %, independent answers")
    ax.plot(shares, [questions_needed(float(p), 0.8, design_effect=effect) for p in shares], color=SECOND,
            label=f"power 80 %, design effect {effect:.1f} of simulated raters")
    for y, (row, (_, share)) in zip((0, -40, 0, -16), tab4().items(), strict=True):
        if share > 0.5:
            n = questions_needed(share)
            ax.plot(share, n, "D", ms=5, mfc="white", mec=INK, zorder=4)
            ax.annotate(f"{row}: {n}", (share, n), (-12, y), textcoords="offset points", fontsize=7, ha="right",
                        arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.6})
    log_axis(ax.yaxis)
    ax.set(xlabel="preference to distinguish from 0.5", ylabel="answers needed")
    ax.legend()
    small_print(fig, "Exact two-sided binomial test at 5 %; the smallest number from which on the power is reached. "
                     "Diamonds: preferences of Tab. 4, task 2, taken as exact; the paper states no number of answers.")
    mark_smoke(fig, [record])
    return fig
