"""Notebook 16_evaluation: which orders each metric keeps."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from ldmlab.experiments.metric_ranking import PREFIX
from ldmlab.figures.style import ACCENT, GREY, INK, SECOND, mark_smoke, set_layout, small_print, styled
from ldmlab.study.records.compare import commits, data_name
from ldmlab.study.records.record import Record

LOOKS = {1: (ACCENT, "kept"), 0: ("#e9dcb8", "undecided"), -1: (SECOND, "broken")}
COMPARED = ("kd_effnet", "fd_lab", "fd_referee")
SHOWN = ("blurred, then no structure", "reconstructed, then no structure", "shuffled patches")


def orders_of(record: Record) -> dict[str, dict[str, Mapping[str, Any]]]:
    """{metric: {family: entry}} of a record's orders."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, entry in record.metrics.items():
        if name.startswith(PREFIX):
            metric, _, family = name.removeprefix(PREFIX).partition(", ")
            found.setdefault(metric, {})[family] = entry
    return found


@styled
def fig_ranking(record: Record) -> Figure:
    """A tile for each metric and family: whether the order is kept; ValueError for a record without orders."""
    if not (orders := orders_of(record)):
        raise ValueError(f"{record.file_name} has no orders of pictures; run 16_evaluation again")
    fig = draw_orders(orders, _about(record))
    mark_smoke(fig, [record])
    return fig


@styled
def draw_orders(orders: Mapping[str, Mapping[str, Mapping[str, Any]]], about: str) -> Figure:
    """Tiles of `orders_of`; small ones are orders that a metric does not claim to see. `about` says of what pictures.
    """
    families = list(dict.fromkeys(family for row in orders.values() for family in row))
    fig, ax = plt.subplots(figsize=(3.0 + 0.5 * len(families), 1.9 + 0.3 * len(orders)), layout="constrained")
    for y, row in enumerate(orders.values()):
        for x, family in enumerate(families):
            if family in row:
                side = 0.86 if row[family]["claims"] else 0.34
                ax.add_patch(Rectangle((x - side / 2, y - side / 2), side, side, color=LOOKS[row[family]["value"]][0]))
    names = [next(iter(row.values())) for row in orders.values()]
    ax.set_yticks(range(len(orders)), [f"{n['name']}{'  (trains)' if n['trains'] else ''}" for n in names])
    ax.set_xticks(range(len(families)), families, rotation=40, ha="left", rotation_mode="anchor")
    ax.xaxis.tick_top()
    ax.set(xlim=(-0.6, len(families) - 0.4), ylim=(len(orders) - 0.4, -0.6))
    ax.grid(False)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.tick_params(length=0)
    ax.legend(handles=[Patch(color=tint, label=label) for tint, label in LOOKS.values()], ncols=3,
              loc="upper left", bbox_to_anchor=(0, -0.02))
    small_print(fig, about, "Kept: at every step the worse level is called worse, at 95 %; broken: at one step it is "
                "called better. Small tiles: the metric does not claim to see what the family loses. Metrics of pairs "
                "need the true picture, so they apply to distorted pictures only.")
    return fig


@styled
def fig_structure(record: Record) -> Figure:
    """Distances of pictures with and without structure, relative to the largest of each family, by three networks."""
    orders = orders_of(record)
    shown = [family for family in SHOWN if all(family in orders.get(metric, {}) for metric in COMPARED)]
    fig, axes = plt.subplots(1, max(1, len(shown)), figsize=(9.6, 2.7), layout="constrained", squeeze=False)
    set_layout(fig, wspace=0.06)
    for ax, family in zip(axes[0], shown, strict=False):
        levels = orders[COMPARED[0]][family]["levels"]
        for i, (metric, tint) in enumerate(zip(COMPARED, (ACCENT, SECOND, GREY), strict=True)):
            values = np.array(orders[metric][family]["values"])
            ax.barh(np.arange(len(levels)) + 0.26 * (i - 1), values / values.max(), 0.24, color=tint,
                    label=orders[metric][family]["name"])
        ax.set_yticks(range(len(levels)), levels)
        ax.invert_yaxis()
        ax.axvline(0, color=INK, lw=0.7)
        ax.set(title=family, xlabel="distance, relative to the largest")
    if shown:
        fig.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
    small_print(fig, _about(record), "Downwards, pictures get worse by construction: bars must get longer.")
    mark_smoke(fig, [record])
    return fig


def _about(record: Record) -> str:
    p, protocol = record.params, record.protocol
    return (f"{data_name(record)} at {p['size']} px, tier {p['tier']}: n = {protocol['ranked_n']} validation pictures "
            f"at each level against {protocol['ranked_n_train']} training pictures. git {commits([record])}.")
