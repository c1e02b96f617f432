"""The report as pictures: which records there are, and the ledger of claims as intervals around their thresholds."""

from collections import Counter
from collections.abc import Sequence
from math import exp, inf

from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from ldmlab.claims.claims import CONTRADICTED, SUPPORTED, UNDERPOWERED, Verdict, frame
from ldmlab.figures.style import ACCENT, GREY, INK, PALE, SECOND, colour, log_axis, small_print, styled
from ldmlab.study.config.notebooks import FS, NOTEBOOKS
from ldmlab.study.records.record import Record

VERDICTS = {SUPPORTED: (ACCENT, "o"), CONTRADICTED: (SECOND, "s"), UNDERPOWERED: (GREY, "D")}
WIDEST = 30.0  # factors beyond are drawn as arrows


@styled
def fig_coverage(records: Sequence[Record], about: str) -> Figure:
    """Number of records by notebook, f and regularizer; framed where the study wants more than there are."""
    columns = [("kl", f) for f in FS] + [("vq", f) for f in FS[1:]]
    names = sorted({name for name, row in NOTEBOOKS.items() if row.wanted} | {record.notebook for record in records})
    there = Counter((r.notebook, r.params["f"], "vq" if r.params.get("reg") == "vq" else "kl") for r in records)
    fig, ax = plt.subplots(figsize=(7.6, 0.9 + 0.3 * len(names)), layout="constrained")
    for y, name in enumerate(names):
        row = NOTEBOOKS[name]
        wanted = {("kl" if reg == "none" else reg, f) for f, reg in row.wanted}
        for x, (reg, f) in enumerate(columns):
            num, needs = there[name, f, reg], row.seeds if (reg, f) in wanted else 0
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
                "claims rest on.")
    return fig


@styled
def fig_ledger(verdicts: Sequence[Verdict], about: str) -> Figure:
    """Every claim's effect over its threshold with its interval: right of 1 it is supported, left of 1 contradicted.

    Effects that are differences, not factors, are given in words.
    """
    rows = frame(verdicts)
    fig, ax = plt.subplots(figsize=(9.6, 1.0 + 0.26 * len(verdicts)), layout="constrained")
    ax.axvline(1, color=INK, lw=0.9)
    log_axis(ax.xaxis)
    ax.set_xlim(1 / WIDEST, WIDEST)
    for y, v in enumerate(verdicts):
        tint, mark = VERDICTS[v.verdict]
        row = rows.loc[v.claim.id]
        if v.effect is None:
            said = "no records"
        else:
            said = f"{row['effect']}  ({row['interval']})"
            if v.claim.parts[0].quantity.ratio:
                scale = exp(v.claim.threshold)
                low, high = (_within(end / scale) for end in v.interval or (v.effect, v.effect))
                ax.plot([low, high], [y, y], color=tint, lw=1.6, solid_capstyle="butt")
                ax.plot(_within(v.effect / scale), y, mark, color=tint, ms=5)
                for end, arrow in ((low, "<"), (high, ">")):
                    if end in (1 / WIDEST, WIDEST):
                        ax.plot(end, y, arrow, color=tint, ms=5, clip_on=False)
            else:
                said += f", threshold {row['threshold']}"
        ax.annotate(said, (1.015, y), xycoords=("axes fraction", "data"), fontsize=6.8, color=tint, va="center",
                    annotation_clip=False)
    ax.set_yticks(range(len(verdicts)), [v.claim.id for v in verdicts], fontsize=7.5)
    ax.set(ylim=(len(verdicts) - 0.4, -0.6), xlabel="effect over the threshold of the claim, as a factor")
    counts = Counter(v.verdict for v in verdicts)
    ax.legend(handles=[Line2D([], [], color=tint, marker=mark, ms=5, lw=1.6, label=f"{verdict}: {counts[verdict]}")
                       for verdict, (tint, mark) in VERDICTS.items()], loc="lower center", ncols=3,
              bbox_to_anchor=(0.5, 1.0))
    small_print(fig, f"{about} Right: the effect with its 95 % interval, of the part that decides; x is a factor. "
                "Where a claim has several parts, all of them count, or any, as the claim says.")
    return fig


def _within(factor: float) -> float:
    """On the axis."""
    return min(max(factor, 1 / WIDEST), WIDEST) if factor < inf else WIDEST
