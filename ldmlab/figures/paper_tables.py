"""Notebooks 03_diffusion and 20_report: reconstruction and guidance beside the paper's tables [LDM v2, Tab. 8, 10]."""

from collections.abc import Sequence
from math import log2

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ldmlab.figures.style import (
    ACCENT,
    LINES,
    MARKS,
    SECOND,
    colour,
    f_axis,
    label_ends,
    line_style,
    log_axis,
    log_axis_if_positive,
    mark_smoke,
    seed_range,
    set_layout,
    set_log_limits,
    small_print,
    styled,
    text_colour,
)
from ldmlab.paper import numbers as paper
from ldmlab.study.records.compare import Series, check_comparable, commits, data_name, format_range, grouped
from ldmlab.study.records.record import Record


def blank_missing(frame: pd.DataFrame) -> pd.DataFrame:
    """A copy of a table for display, with empty strings for missing values."""
    return frame.astype(object).where(frame.notna(), "")


@styled
def fig_reconstruction(records: Sequence[Record]) -> Figure:
    """Reconstruction by first stages against f: ours (open) beside the paper's (filled) [LDM v2, Tab. 8].

    PSNR has a common panel; R-FID and rKD-EffNet are different scales with separate ones. ValueError for records that
    are not comparable.
    """
    measured = [record for record in records if record.params["reg"] != "none" and "rkd_effnet" in record.metrics]
    check_comparable(measured, "rkd_effnet")
    series = grouped(measured)
    fig, (psnr, r_fid, rfd) = plt.subplots(1, 3, figsize=(10.4, 3.3), layout="constrained")
    set_layout(fig, wspace=0.04)
    for reg, tint in (("kl", ACCENT), ("vq", SECOND)):
        look = {"color": tint, "ls": LINES[reg], "marker": MARKS[reg]}
        rows, main = [row for row in paper.tab8() if row.reg == reg and not row.note], paper.first_stages(reg)
        ours = [s for s in series if s.reg == reg]
        for ax, name in ((psnr, "psnr"), (r_fid, "r_fid")):
            _by_f(ax, [(row.f, getattr(row, name)) for row in main], look | {"label": f"{reg.upper()}, paper"})
            _by_f(ax, [(row.f, getattr(row, name)) for row in rows], look | {"ls": "none", "ms": 3.5})
        for ax, name in ((psnr, "psnr"), (rfd, "rkd_effnet")):
            found = [(s, v) for s in ours if len(v := s.values(name))]
            _by_f(ax, [(s.f, v.mean()) for s, v in found],
                  look | {"mfc": "white", "mew": 1.3, "ms": 6.5, "lw": 1.2, "label": f"{reg.upper()}, ours"})
            for s, v in found:
                ax.errorbar(log2(s.f), v.mean(), yerr=seed_range(v), color=tint, lw=1)
                if not s.flat:
                    ax.annotate("†", (log2(s.f), v.mean()), (6, 3), textcoords="offset points", color=tint)
    psnr.set(title="(a)  PSNR", ylabel="PSNR [dB]  (higher is better)")
    r_fid.set(title="(b)  the paper's R-FID", ylabel="R-FID, Inception  (lower is better)")
    rfd.set(title="(c)  our rKD-EffNet", ylabel="rKD-EffNet  (lower is better)")
    log_axis(r_fid.yaxis)
    if log_axis_if_positive(rfd.yaxis, seen := [v for s in series for v in s.values("rkd_effnet")]):
        set_log_limits(rfd, seen)
    for ax in (psnr, r_fid, rfd):
        f_axis(ax, (2, 4, 8, 16, 32))
        ax.legend(loc="best")
    _reconstruction_print(fig, measured, series)
    mark_smoke(fig, records)
    return fig


def _by_f(ax: Axes, points: list[tuple[int, float]], look: dict) -> None:
    if points:
        ax.plot([log2(f) for f, _ in points], [value for _, value in points], **look)


def _reconstruction_print(fig: Figure, records: Sequence[Record], series: list[Series]) -> None:
    score, params = records[0].metrics["rkd_effnet"], records[0].params
    flat = all(s.flat for s in series)
    small_print(
        fig,
        f"Ours: {data_name(records[0])} at {params['size']} px, tier {params['tier']}; {score['n_fake']} validation "
        f"pictures, decoded from the most probable latent; rKD-EffNet with features of {score['extractor']} "
        f"({score.get('weights_hash', '')[:8]}); seeds per f: {format_range(sorted(len(s.runs) for s in series))}. "
        f"git {commits(records)}.{'' if flat else ' †: validation PSNR was still rising when training ended.'}",
        "Paper: trained on OpenImages, measured on ImageNet-val at 256 px; small markers: other rows of the same f "
        "(fewer channels or codes).")


@styled
def fig_guidance(records: Sequence[Record]) -> Figure:
    """Quality against the guidance scale: the paper's FID (filled) and our KD-EffNet (open) [LDM v2, Tab. 10].

    ValueError for records that are not comparable.
    """
    measured = [record for record in records if "kd_effnet_by_guidance" in record.curves]
    check_comparable(measured, "kd_effnet_by_guidance")
    fig, (theirs, ours) = plt.subplots(1, 2, figsize=(8.0, 3.1), layout="constrained")
    scales, fid = zip(*((scale, fid) for scale, fid, _ in paper.TAB10_GUIDANCE), strict=True)
    theirs.plot(scales, fid, color=colour(4), marker="o")
    ends = []
    for s in grouped(measured):
        scale, mean, low, high = s.curve("kd_effnet_by_guidance")
        ours.plot(scale, mean, **{**line_style(s), "mfc": "white"})
        ours.fill_between(scale, low, high, color=colour(s.f), alpha=0.16, lw=0)
        ends.append((scale[-1], mean[-1], s.name, text_colour(s.f)))
    if log_axis_if_positive(ours.yaxis, seen := [y for s in grouped(measured)
                                            for y in s.curve("kd_effnet_by_guidance")[2]]):
        set_log_limits(ours, seen)
    for ax in (theirs, ours):
        ax.set_xlabel("guidance scale s  (1 is off)")
        low, high = ax.get_xlim()
        ax.set_xlim(low, high + 0.22 * (high - low))
    theirs.set(title="(a)  paper, ImageNet at 256 px", ylabel="FID  (lower is better)", ylim=(0, None))
    label_ends(theirs, [(scales[-1], fid[-1], "LDM-4", text_colour(4))])
    label_ends(ours, ends)
    ours.set(title="(b)  ours", ylabel="KD-EffNet of samples  (lower is better)")
    params, protocol = measured[0].params, measured[0].protocol
    small_print(fig, f"Ours: {data_name(measured[0])} at {params['size']} px, tier {params['tier']}; n = "
                f"{protocol['guidance_n']} samples per point, {protocol['num_steps']} DDIM steps, eta "
                f"{protocol['eta']:g}. git {commits(measured)}. Paper: 250 DDIM steps, 50k samples.")
    mark_smoke(fig, records)
    return fig
