"""Notebook 04_tradeoff: what the first stage lost, and what the denoiser has not learned [LDM v2, Sec. 4.1]."""

from collections.abc import Sequence
from math import log2
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ldmlab.figures.style import (
    ACCENT,
    GREY,
    INK,
    LINES,
    NAME,
    SECOND,
    f_axis,
    mark_smoke,
    rounded,
    seed_range,
    small_print,
    styled,
)
from ldmlab.study.records.compare import Series, check_comparable, commits, data_name, grouped
from ldmlab.study.records.record import Record

SAMPLERS = {"": "eta = 0", "_eta1": "eta = 1"}  # suffix of a metric -> how its samples were made
CURVES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "kd_effnet": ("samples to true pictures", INK, {"marker": "o", "ms": 6}),
    "rkd_effnet": ("reconstructions to true pictures: lost by the first stage", SECOND, {"marker": "_", "ms": 12,
                                                                                         "mew": 2.4}),
    "kd_effnet_to_reconstructions": ("samples to reconstructions: not learned by the denoiser", ACCENT, {
        "marker": "^", "ms": 6}),
}


@styled
def fig_decomposition(records: Sequence[Record]) -> Figure:
    """Three kernel distances over f, a panel for each sampler; ValueError for records that are not comparable.

    They do not add up: a squared distance between means in feature space is no sum of its parts.
    """
    check_comparable(records)
    series = grouped(records)
    shown = {key: label for key, label in SAMPLERS.items() if any(len(s.values(f"kd_effnet{key}")) for s in series)}
    fig, axes = plt.subplots(1, max(1, len(shown)), figsize=(4.9 * max(1, len(shown)), 3.7), layout="constrained",
                             sharey=True, squeeze=False)
    for i, (ax, (key, label)) in enumerate(zip(axes[0], shown.items(), strict=False)):
        _draw(ax, series, key)
        ax.axhline(0, color=GREY, lw=0.8)
        ax.set(title=f"({'ab'[i]})  samples with {label}")
        f_axis(ax, [s.f for s in series])
    axes[0][0].set_ylabel("KD-EffNet  (lower is better)")
    handles = [Line2D([], [], color=tint, **look, lw=1.2, label=label) for label, tint, look in CURVES.values()]
    axes[0][-1].legend(handles=handles, loc="best", fontsize=7)
    small_print(fig, *_print(records, series))
    mark_smoke(fig, records)
    return fig


def _draw(ax: Axes, series: Sequence[Series], sampler: str) -> None:
    for name, (_, tint, look) in CURVES.items():
        metric = name if name == "rkd_effnet" else f"{name}{sampler}"
        for reg, shift in (("kl", 0.0), ("vq", 0.16)):
            row = [s for s in series if s.reg == reg or (s.reg == "none" and reg == "kl")]
            points = [(log2(s.f) + shift, values) for s in row if len(values := s.values(metric))]
            ax.plot([x for x, _ in points], [v.mean() for _, v in points], color=tint, ls=LINES[reg], lw=1.2)
            for x, values in points:
                ax.errorbar(x, values.mean(), yerr=seed_range(values), color=tint, ls="none", elinewidth=1, **look)
                if name == "kd_effnet" and reg == "kl":
                    ax.annotate(rounded(values.mean()), (x, values.mean()), (0, 8), textcoords="offset points",
                                ha="center", **{**NAME, "fontsize": 7.2}, color=tint)
    ax.margins(y=0.12)


def _print(records: Sequence[Record], series: Sequence[Series]) -> list[str]:
    record, score = records[0], records[0].metrics["kd_effnet"]
    seeds = {len(s.runs) for s in series}
    bars = " Bars: range over seeds." if max(seeds) > 1 else " One seed, so the variation over seeds is not shown."
    kinds = " Dashed: VQ." if any(s.reg == "vq" for s in series) else ""
    return [f"KD-EffNet: kernel distance times 1000 on features of {score['extractor']} "
            f"({score.get('weights_hash', '')[:8]}), n = {score['n_fake']} against {score['n_real']} training "
            f"pictures, true ones or reconstructed.{bars}{kinds} At f = 1 there is no first stage. Data "
            f"{data_name(record)} at {record.params['size']} px, tier {record.params['tier']}. git {commits(records)}.",
            "[LDM v2, Sec. 4.1] argues it in words: little compression leaves most to the diffusion model, too much "
            "limits what can be reached."]
