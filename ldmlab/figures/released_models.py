"""Notebook 19_released_models: our scores of released models relative to the paper's [LDM v2, Tab. 1, 2, 3, 5, 8]."""

from collections.abc import Sequence

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from ldmlab.experiments.released.targets import MEAN_TOLERANCE, TOLERANCE, compare
from ldmlab.figures.style import ACCENT, GREY, PALE, SECOND, log_axis, mark_smoke, small_print, styled
from ldmlab.study.records.compare import commits
from ldmlab.study.records.record import Record

_LOOK = {"within": (ACCENT, ACCENT), "off": (SECOND, SECOND), "not comparable": (GREY, "white")}
_SHOWN = {"fid": "FID", "inception_score": "IS", "r_fid": "rFID", "r_is": "r-IS", "r_psnr": "PSNR", "r_psim": "PSIM",
          "r_ssim": "SSIM", "psnr": "PSNR", "ssim": "SSIM", "precision": "precision", "recall": "recall"}


def table(record: Record) -> pd.DataFrame:
    """The paper's numbers for the record's model, ours beside them, with verdict and reason, one per row."""
    rows = [{"table": c.table, "row": c.row, "metric": _SHOWN[c.metric], "paper": c.paper,
             "ours": "" if c.ours is None else f"{c.ours:.4g}", "verdict": c.verdict, "why": c.why}
            for c in compare(record)]
    return pd.DataFrame(rows)


@styled
def fig_released(records: Sequence[Record]) -> Figure:
    """Ratio of ours to the paper's value for every measured score; open grey markers where they are not comparable."""
    points = [(record.name, c, c.ours / c.paper) for record in sorted(records, key=lambda r: r.name)
              for c in compare(record) if c.same and c.ours is not None and c.ours > 0]
    fig, ax = plt.subplots(figsize=(6.4, 0.9 + 0.24 * max(1, len(points))), layout="constrained")
    ax.axvspan(1 - TOLERANCE, 1 + TOLERANCE, color=PALE)
    for y, (_, c, ratio) in enumerate(points):
        edge, face = _LOOK[c.verdict]
        ax.plot(ratio, y, "o", mec=edge, mfc=face, mew=1.2)
    names = [f"{name}, {_SHOWN[c.metric]} ({c.table})" for name, c, _ in points]
    ax.set_yticks(range(len(names)), names)
    ratios = [ratio for *_, ratio in points] or [1.0]
    ax.set(xlabel="ours / paper", ylim=(len(points) - 0.4, -0.6))
    log_axis(ax.xaxis)
    ax.set_xlim(min(0.5, min(ratios) / 1.3), max(2.0, max(ratios) * 1.3))
    small_print(fig, f"Filled: within tolerance (blue) or off (red). Open: not comparable, see the table. Band: "
                     f"{100 * TOLERANCE:g} %, the difference between two pipelines in App. E.3.1 (the tolerance is "
                     f"{100 * MEAN_TOLERANCE:g} % for means over pictures). git {commits(records)}.")
    mark_smoke(fig, records)
    return fig
