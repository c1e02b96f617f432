"""Notebook 05_rate_distortion: distortion against bits per pixel of first stages, files and diffusion models.

All rates are in bits per pixel of the picture, so that any f, latents and image files share one axis [LDM v2, Fig. 2].
"""

from collections.abc import Sequence
from math import log2

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ldmlab.evaluation.rate import CODECS, at_rate
from ldmlab.experiments.rate_distortion import FREE_DB, points, working_point
from ldmlab.figures.style import (
    GREY,
    INK,
    LINES,
    MARKS,
    NAME,
    label_ends,
    line_style,
    log_axis,
    log_axis_if_positive,
    mark_smoke,
    seed_range,
    set_layout,
    small_print,
    styled,
    text_colour,
)
from ldmlab.paper import numbers as paper
from ldmlab.study.records.compare import Series, check_comparable, commits, data_name, format_range, grouped
from ldmlab.study.records.record import Record

FILE_LINES = {"jpeg": "-", "webp": (0, (1.2, 1.4))}
FILE_NAMES = {"jpeg": "JPEG", "webp": "WebP"}
LEAST_RATE = 1e-3  # bits per pixel: lower limit of the axis of (d)
TITLES = {"psnr": "pixels", "perceptual": "features of the loss", "rkd_effnet": "features independent of the loss"}
DISTORTIONS = {"psnr": "PSNR [dB]  (higher is better)", "perceptual": "{name}  (lower is better)",
               "rkd_effnet": "rKD-EffNet  (lower is better)"}


def stage_name(reg: str, f: int) -> str:
    """Name of a first stage as in Tab. 8, e.g. KL-f8 or VQ-f4; "pixels" at f = 1."""
    return "pixels" if f == 1 else f"{reg.upper()}-f{f}"


@styled
def fig_rate_distortion(records: Sequence[Record]) -> Figure:
    """Distortion against rate for first stages and image files, and for diffusion models [LDM v2, Fig. 2, Tab. 8].

    Rates are bits per pixel of an entropy code. ValueError for no records, and for records that are not comparable.
    Records of tier smoke get a watermark.
    """
    check_comparable(records, "rkd_effnet")
    check_comparable(records, "perceptual")
    series = grouped(records)
    fig, axes = plt.subplots(2, 2, figsize=(9.6, 7.2), layout="constrained")
    set_layout(fig, w_pad=0.09, h_pad=0.06, wspace=0.05, hspace=0.05)
    for ax, (what, label), letter in zip(axes.flat, DISTORTIONS.items(), "abc", strict=False):
        name = records[0].metrics["perceptual"].get("name", "perceptual distance")
        _files(ax, records[0], what)
        for s in series:
            _first_stage(ax, s, what)
        log_axis(ax.xaxis)
        if what == "perceptual":
            log_axis(ax.yaxis)
        elif what == "rkd_effnet":
            log_axis_if_positive(ax.yaxis, [y for line in ax.get_lines() for y in line.get_ydata()])
        ax.set(title=f"({letter})  {TITLES[what]}", xlabel="rate [bits per pixel of the picture]",
               ylabel=label.format(name=name))
        ax.margins(x=0.08, y=0.13)  # room for names under the marks
    axes.flat[0].legend(loc="upper left", handles=_legend())
    _progressive(axes.flat[3], series)
    _print(fig, records, series)
    mark_smoke(fig, records)
    return fig


def _files(ax: Axes, record: Record, what: str) -> None:
    """Draw the image files of one record; comparable records have the same pictures, so the same files."""
    for codec in CODECS:
        for rate, width, tint in (("bpp", 1.5, INK), ("file_bpp", 0.9, GREY)):
            line = _drawable(points(record, codec, what, rate), what)
            if len(line):
                ax.plot(*line.T, ls=FILE_LINES[codec], marker=None, zorder=1.5, lw=width, color=tint)


def _first_stage(ax: Axes, s: Series, what: str) -> None:
    """Draw one f and regularizer: its curve over the quantization step, and its working point with name and bars."""
    if not all(f"latent_{what}" in run.curves for run in s.runs):
        return  # f = 1 has no latent to code
    _, rate, *_ = s.curve("latent_bpp")
    _, value, low, high = s.curve(f"latent_{what}")
    line = _drawable(np.stack([rate, value], 1), what)
    ax.plot(*line[np.argsort(line[:, 0])].T, **{**line_style(s), "marker": None}, lw=1.3)
    if len(s.runs) > 1:
        order = np.argsort(rate)
        ax.fill_between(rate[order], low[order], high[order], color=line_style(s)["color"], alpha=0.16, lw=0)
    marks = [working_point(run) for run in s.runs]
    x, y = (np.array([mark[name] for mark in marks]) for name in ("bpp", what))
    if x.mean() > 0 and (what != "perceptual" or y.mean() > 0):
        error = seed_range(x) or 2 * marks[0]["bpp_se"]
        ax.errorbar(x.mean(), y.mean(), xerr=error, yerr=seed_range(y), ms=7, elinewidth=1,
                    **line_style(s) | {"ls": "none"})
        ax.annotate(stage_name(s.reg, s.f) + ("" if s.flat else "†"), (x.mean(), y.mean()),
                    (0, 8 if s.reg == "kl" else -15), textcoords="offset points", ha="center", color=text_colour(s.f),
                    **{**NAME, "fontsize": 7.2})


def _drawable(line: Sequence[Sequence[float]] | np.ndarray, what: str) -> np.ndarray:
    """The points of a line that can be shown on its axes, of which that of `perceptual` is logarithmic, (n, 2)."""
    line = np.array(line, dtype=float).reshape(-1, 2)
    return line[(line[:, 0] > 0) & ((line[:, 1] > 0) | (what != "perceptual"))]


def _legend() -> list[Line2D]:
    line = lambda label, **look: Line2D([], [], label=label, **{"color": INK, "lw": 1.3, **look})  # noqa: E731
    return [line("KL, by rounding step", ls=LINES["kl"], marker=MARKS["kl"], ms=6),
            line("VQ", ls="none", marker=MARKS["vq"], ms=6),
            line("JPEG, payload", ls=FILE_LINES["jpeg"]), line("WebP, payload", ls=FILE_LINES["webp"]),
            line("whole files", color=GREY, lw=0.9)]


def _progressive(ax: Axes, series: list[Series]) -> None:
    """Draw diffusion models as progressive coders: RMSE of the decoded picture after the bits received so far."""
    ends = []
    for s in series:
        _, rate, *_ = s.curve("progressive_bpp")
        _, rmse, low, high = s.curve("progressive_rmse")
        if len(s.runs) == 1:
            error = 2 * s.curve("progressive_rmse_se")[1]
            low, high = rmse - error, rmse + error
        ax.plot(rate, rmse, **{**line_style(s), "marker": None}, lw=1.3)
        ax.fill_between(rate, low, high, color=line_style(s)["color"], alpha=0.16, lw=0)
        ends.append((rate[0], rmse[0], s.name, text_colour(s.f)))  # t = 0: all bits received
    log_axis(ax.xaxis, (1.0,))
    ax.set(title="(d)  the diffusion models as coders  [cf. Fig. 2]", xlabel="rate [bits per pixel of the picture]",
           ylabel="RMSE of the picture, 0 to 255")
    if ends:
        log_axis(ax.yaxis)  # models differ at their ends
        left, right = ax.get_xlim()
        left = max(left, LEAST_RATE)
        ax.set_xlim(left, right * (right / left) ** 0.16)  # room for the labels
    label_ends(ax, ends)


def _print(fig: Figure, records: Sequence[Record], series: list[Series]) -> None:
    record, score = records[0], records[0].metrics["rkd_effnet"]
    protocol, params = record.protocol, record.params
    seeds = sorted({len(s.runs) for s in series})
    sentences = [f"n = {protocol['num_val']} validation pictures, {data_name(record)} at {params['size']} px, tier "
            f"{params['tier']}; {format_range(seeds)} seed{'s' if seeds[-1] > 1 else ''} per model"
            f"{', bars and bands: their range' if seeds[-1] > 1 else ''}; horizontal bars: two standard errors over "
            f"pictures for one seed. rKD-EffNet: kernel distance times 1000 on {score['extractor']} "
            f"({score.get('weights_hash', '')[:8]}) of {protocol.get('rkd_num')} of them to {score['n_real']} training "
            f"pictures, 0 or below where they are as near as those to each other. git {commits(records)}.",
            f"Latents: length of an ideal arithmetic code with one table per channel and position, estimated on "
            f"{protocol['tables_from']} training pictures. Marker on a KL line: the coarsest quantization step that "
            f"costs less than {FREE_DB:g} dB. Files: Pillow {protocol['pillow']}; payload excludes headers, which do "
            f"not depend on the picture (for JPEG also the standard Huffman tables); thin grey: whole files.",
            f"(d): progressive coding of {protocol.get('progressive_num', 0)} pictures, z0_hat decoded, "
            f"{protocol.get('progressive_times', 0)} times; bands: range over seeds, or two standard errors.",
            "The network of (b) is part of the first stages' loss, which biases (b) in their favour; that of (c) is "
            "not."]
    if any(not s.flat for s in series):
        sentences.append("† and hollow markers: the first stage still improved in the second half of its training.")
    sentences.append("The paper plots Fig. 2, without a table, for a pixel diffusion model on another data set.")
    small_print(fig, *sentences)


def equal_rate_table(records: Sequence[Record]) -> pd.DataFrame:
    """PSNR and rKD-EffNet of each first stage at its coded rate, and of JPEG and WebP interpolated to the same rate.

    Cells are empty outside the range of the files. File rates exclude headers, as in
    `ldmlab.evaluation.rate.file_codec`.
    """
    rows = []
    for record in sorted(records, key=lambda r: (r.params["f"], r.params["reg"], r.params["seed"])):
        if not (mark := working_point(record)):
            continue
        row = {"model": stage_name(record.params["reg"], record.params["f"]), "seed": record.params["seed"],
               "bpp": mark["bpp"]}
        for what, name in (("psnr", "PSNR [dB]"), ("rkd_effnet", "rKD-EffNet")):
            row[name] = mark.get(what)
            row |= {f"{name}, {FILE_NAMES[codec]}": at_rate(points(record, codec, what), mark["bpp"])
                    for codec in CODECS}
        rows.append(row)
    return pd.DataFrame(rows).round(3)


def tab8_rates(records: Sequence[Record]) -> pd.DataFrame:
    """Tab. 8 with the rate it implies, beside ours: bits per pixel at fixed code length, log2 |Z| / f^2, and coded.

    The paper measures no rates, and its table implies none for KL models.
    """
    ours = {(r.params["reg"], r.params["f"]): r for r in records if r.params["seed"] == records[0].params["seed"]}
    rows = []
    for reg in ("kl", "vq"):
        for theirs in paper.first_stages(reg):
            row = {"model": stage_name(reg, theirs.f), "paper: |Z|": theirs.num_codes, "paper: c": theirs.c,
                   "paper: bpp": log2(theirs.num_codes) / theirs.f**2 if theirs.num_codes else None,
                   "paper: PSNR [dB]": theirs.psnr, "paper: R-FID": theirs.r_fid}
            record = ours.get((reg, theirs.f))
            if record and (mark := working_point(record)):
                fixed = record.metrics.get("fixed_bpp", {}).get("value")
                row |= {"ours: bpp, fixed length": fixed, "ours: bpp, coded": mark["bpp"],
                        "ours: PSNR [dB]": mark["psnr"], "ours: rKD-EffNet": mark.get("rkd_effnet")}
            rows.append(row)
    return pd.DataFrame(rows).set_index("model").round(3)
