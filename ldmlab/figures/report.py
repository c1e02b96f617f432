"""Notebook 20_report: which records exist, and the effect of each claim with its interval and threshold."""

from collections import Counter
from collections.abc import Sequence
from math import copysign, inf, log

from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from ldmlab.claims.claims import frame
from ldmlab.claims.judging import (
    CONTRADICTED,
    DEPENDS_ON_SAMPLER,
    DEPENDS_ON_SCORE,
    SUPPORTED,
    UNDERPOWERED,
    Verdict,
)
from ldmlab.figures.style import ACCENT, GREY, INK, PALE, SECOND, colour, small_print, styled
from ldmlab.study.config.notebooks import FS, NOTEBOOKS
from ldmlab.study.records.record import Record

VERDICTS = {SUPPORTED: (ACCENT, "o"), CONTRADICTED: (SECOND, "s"), DEPENDS_ON_SAMPLER: (INK, "^"),
            DEPENDS_ON_SCORE: (INK, "v"), UNDERPOWERED: (GREY, "D")}
WIDEST = 6.0  # end of the axis, in half-widths; effects beyond are drawn as arrows


@styled
def fig_coverage(records: Sequence[Record], about: str) -> Figure:
    """Number of records by notebook, f and regularizer; cells with fewer than the claims need are framed in red."""
    columns = [("kl", f) for f in FS] + [("vq", f) for f in FS[1:]]
    names = sorted({name for name, row in NOTEBOOKS.items() if row.wanted} | {record.notebook for record in records})
    counts = Counter((r.notebook, r.params["f"], "vq" if r.params.get("reg") == "vq" else "kl") for r in records)
    fig, ax = plt.subplots(figsize=(7.6, 0.9 + 0.3 * len(names)), layout="constrained")
    for y, name in enumerate(names):
        row = NOTEBOOKS[name]
        wanted = {("kl" if reg == "none" else reg, f) for f, reg in row.wanted}
        for x, (reg, f) in enumerate(columns):
            num, needs = counts[name, f, reg], row.seeds if (reg, f) in wanted else 0
            face = colour(f) if num else PALE
            ax.add_patch(Rectangle((x - 0.44, y - 0.4), 0.88, 0.8, facecolor=face, alpha=0.8 if num else 0.5,
                                   edgecolor=SECOND if num < needs else "none", lw=1.1))
            if num or needs:
                ax.text(x, y, str(num), ha="center", va="center", fontsize=7.5, color="white" if num else SECOND)
    ax.set_xticks(range(len(columns)), [f"{reg.upper() if f > 1 else ''} {f}".strip() for reg, f in columns])
    ax.set_yticks(range(len(names)), names)
    ax.set(xlim=(-0.6, len(columns) - 0.4), ylim=(len(names) - 0.4, -0.6), xlabel="downsampling factor f")
    ax.grid(False)
    small_print(fig, f"{about} Number of records (seeds and other parameters together). Framed in red: fewer than the "
                "claims need.")
    return fig


@styled
def fig_ledger(verdicts: Sequence[Verdict], about: str) -> Figure:
    """Effect minus threshold of every claim, in half-widths of its 95 % interval: above 1 supports, below -1 not.

    Before the correction for the number of claims, which the colours include; effects themselves are given as text.
    """
    rows = frame(verdicts)
    fig, ax = plt.subplots(figsize=(9.6, 1.0 + 0.26 * len(verdicts)), layout="constrained")
    ax.axvline(0, color=INK, lw=0.9)
    ax.axvspan(-1, 1, color=PALE, lw=0)
    for y, v in enumerate(verdicts):
        tint, mark = VERDICTS[v.verdict]
        row = rows.loc[v.claim.id]
        if v.effect is None or v.interval is None:
            text = "no records"
        else:
            text = f"{row['effect']}  ({row['interval']}), threshold {row['threshold']}"
            if v.raw != v.verdict:
                text += f"; uncorrected: {v.raw}"
            place = _place(v, str(row["effect"]).startswith("x"))
            inside = min(max(place, -WIDEST), WIDEST)
            ax.plot([max(place - 1, -WIDEST), min(place + 1, WIDEST)], [y, y], color=tint, lw=1.6,
                    solid_capstyle="butt")
            ax.plot(inside, y, mark if inside == place else "<" if place < 0 else ">", color=tint, ms=5, clip_on=False)
        ax.annotate(text, (1.015, y), xycoords=("axes fraction", "data"), fontsize=6.8, color=tint, va="center",
                    annotation_clip=False)
    ax.set_yticks(range(len(verdicts)), [v.claim.id for v in verdicts], fontsize=7.5)
    ax.set(xlim=(-WIDEST, WIDEST), ylim=(len(verdicts) - 0.4, -0.6),
           xlabel="effect minus threshold, in half-widths of its interval")
    counts = Counter(v.verdict for v in verdicts)
    ax.legend(handles=[Line2D([], [], color=tint, marker=mark, ms=5, lw=1.6, label=f"{verdict}: {counts[verdict]}")
                       for verdict, (tint, mark) in VERDICTS.items() if counts[verdict] or "depends" not in verdict],
              loc="lower center", ncols=5, bbox_to_anchor=(0.5, 1.0))
    small_print(fig, f"{about} Right: effect of the deciding part with its 95 % interval; x marks a factor. "
                "A claim of several parts requires all of them or any of them, as stated, under each score and sampler "
                "at hand. Colours: verdicts corrected for the number of claims (Holm).")
    return fig


def _place(v: Verdict, ratio: bool) -> float:
    """Effect minus threshold in half-widths of the interval, infinite for exact effects."""
    scale = log if ratio else float
    low, high = map(scale, v.interval or (1.0, 1.0))
    beyond = scale(v.effect or 1.0) - v.claim.threshold
    return beyond / ((high - low) / 2) if high > low else copysign(inf, beyond)
