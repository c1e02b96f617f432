"""Rate and distortion as figures and tables: first stages, files, diffusion models over bits a pixel [LDM v2, Fig. 2].

All rates are of the picture's pixels, so that f = 4 and f = 32, a latent and a file, stand on one axis.
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
    ink,
    label_ends,
    line_style,
    log_axis,
    mark_smoke,
    small_print,
    spread,
    styled,
)
from ldmlab.paper import numbers as paper
from ldmlab.study.records.compare import Series, check_comparable, commits, data_name, grouped, ranged
from ldmlab.study.records.record import Record

FILE_LINES = {"jpeg": "-", "webp": (0, (1.2, 1.4))}
FILE_NAMES = {"jpeg": "JPEG", "webp": "WebP"}
LEAST_RATE = 1e-3  # bits a pixel: where the axis of (d) begins at the latest
TITLES = {"psnr": "pixels", "perceptual": "features, of the loss", "rfd_lab": "features, independent of the loss"}
DISTORTIONS = {"psnr": "PSNR [dB]  (higher is better)", "perceptual": "{name}  (lower is better)",
               "rfd_lab": "rFD-lab  (lower is better)"}


def stage_name(reg: str, f: int) -> str:
    """KL-f8, VQ-f4, as in Tab. 8; pixels at f = 1."""
    return "pixels" if f == 1 else f"{reg.upper()}-f{f}"


@styled
def fig_rate_distortion(records: Sequence[Record]) -> Figure:
    """Distortion against true bits for first stages and files, and for diffusion models [LDM v2, Fig. 2, Tab. 8].

    ValueError for records that cannot be compared. Runs of tier smoke give a figure that says it is a rehearsal.
    """
    check_comparable(records, "rfd_lab")
    check_comparable(records, "perceptual")
    series = grouped(records)
    fig, axes = plt.subplots(2, 2, figsize=(9.6, 7.2), layout="constrained")
    fig.get_layout_engine().set(w_pad=0.09, h_pad=0.06, wspace=0.05, hspace=0.05)
    for ax, (what, label), letter in zip(axes.flat, DISTORTIONS.items(), "abc", strict=False):
        name = records[0].metrics["perceptual"].get("name", "perceptual distance")
        _files(ax, records[0], what)
        for s in series:
            _first_stage(ax, s, what)
        log_axis(ax.xaxis)
        if what != "psnr":
            log_axis(ax.yaxis)
        ax.set(title=f"({letter})  {TITLES[what]}", xlabel="rate [bits a pixel of the picture]",
               ylabel=label.format(name=name))
        ax.margins(x=0.08, y=0.13)  # room for names under the marks
    axes.flat[0].legend(loc="upper left", handles=_legend())
    _progressive(axes.flat[3], series)
    _print(fig, records, series)
    mark_smoke(fig, records)
    return fig


def _files(ax: Axes, record: Record, what: str) -> None:
    """The files of one record: all that compare hold the same pictures, so theirs are the same."""
    for codec in CODECS:
        for rate, look in (("bpp", {"lw": 1.5, "color": INK}), ("file_bpp", {"lw": 0.9, "color": GREY})):
            line = _drawable(points(record, codec, what, rate), what)
            if len(line):
                ax.plot(*line.T, ls=FILE_LINES[codec], marker=None, zorder=1.5, **look)


def _first_stage(ax: Axes, s: Series, what: str) -> None:
    """One f and regularizer, seeds together: its curve over the step, and its working point with name and intervals."""
    if not all(f"latent_{what}" in run.curves for run in s.runs):
        return  # nothing to write down at f = 1, and no rFD of too few pictures
    _, rate, *_ = s.curve("latent_bpp")
    _, value, low, high = s.curve(f"latent_{what}")
    line = _drawable(np.stack([rate, value], 1), what)
    ax.plot(*line[np.argsort(line[:, 0])].T, **{**line_style(s), "marker": None}, lw=1.3)
    if len(s.runs) > 1:
        order = np.argsort(rate)
        ax.fill_between(rate[order], low[order], high[order], color=line_style(s)["color"], alpha=0.16, lw=0)
    marks = [working_point(run) for run in s.runs]
    x, y = (np.array([mark[name] for mark in marks]) for name in ("bpp", what))
    if x.mean() > 0 and (what == "psnr" or y.mean() > 0):
        error = spread(x) or 2 * marks[0]["bpp_se"]
        ax.errorbar(x.mean(), y.mean(), xerr=error, yerr=spread(y), ms=7, elinewidth=1,
                    **line_style(s) | {"ls": "none"})
        ax.annotate(stage_name(s.reg, s.f) + ("" if s.flat else "†"), (x.mean(), y.mean()),
                    (0, 8 if s.reg == "kl" else -15), textcoords="offset points", ha="center", color=ink(s.f),
                    **{**NAME, "fontsize": 7.2})


def _drawable(line: Sequence[Sequence[float]] | np.ndarray, what: str) -> np.ndarray:
    """Without what a logarithmic axis cannot show."""
    line = np.array(line, dtype=float).reshape(-1, 2)
    return line[(line[:, 0] > 0) & ((line[:, 1] > 0) | (what == "psnr"))]


def _legend() -> list[Line2D]:
    line = lambda label, **look: Line2D([], [], label=label, **{"color": INK, "lw": 1.3, **look})  # noqa: E731
    return [line("KL, by rounding step", ls=LINES["kl"], marker=MARKS["kl"], ms=6),
            line("VQ", ls="none", marker=MARKS["vq"], ms=6),
            line("JPEG, payload", ls=FILE_LINES["jpeg"]), line("WebP, payload", ls=FILE_LINES["webp"]),
            line("whole files", color=GREY, lw=0.9)]


def _progressive(ax: Axes, series: list[Series]) -> None:
    """The trained diffusion models as progressive coders: error of the picture after the bits sent so far."""
    ends = []
    for s in series:
        _, rate, *_ = s.curve("progressive_bpp")
        _, rmse, low, high = s.curve("progressive_rmse")
        if len(s.runs) == 1:
            error = 2 * s.curve("progressive_rmse_se")[1]
            low, high = rmse - error, rmse + error
        ax.plot(rate, rmse, **{**line_style(s), "marker": None}, lw=1.3)
        ax.fill_between(rate, low, high, color=line_style(s)["color"], alpha=0.16, lw=0)
        ends.append((rate[0], rmse[0], s.name, ink(s.f)))  # t = 0: all is sent
    log_axis(ax.xaxis, (1.0,))
    ax.set(title="(d)  the diffusion models as coders  [cf. Fig. 2]", xlabel="rate [bits a pixel of the picture]",
           ylabel="RMSE of the picture, 0 to 255")
    if ends:
        log_axis(ax.yaxis)  # where models stop is what differs
        low, high = ax.get_xlim()
        low = max(low, LEAST_RATE)
        ax.set_xlim(low, high * (high / low) ** 0.16)  # room for the names
    label_ends(ax, ends)


def _print(fig: Figure, records: Sequence[Record], series: list[Series]) -> None:
    record, score = records[0], records[0].metrics.get("rfd_lab", {})
    protocol, params = record.protocol, record.params
    seeds = sorted({len(s.runs) for s in series})
    said = [f"n = {protocol['num_val']} validation pictures, {data_name(record)} at {params['size']} px, tier "
            f"{params['tier']}; {ranged(seeds)} seed{'s' if seeds[-1] > 1 else ''} a model"
            f"{', bars and bands: their range' if seeds[-1] > 1 else ''}; horizontal bars: two standard errors over "
            f"pictures where there is one seed. rFD-lab on features of {score.get('extractor')} "
            f"({score.get('weights_hash', '')[:8]}). git {commits(records)}.",
            f"Latents: length of an ideal arithmetic code with tables by channel and place, learned from "
            f"{protocol['tables_from']} training pictures. Marked on a KL line: the coarsest step that costs less than "
            f"{FREE_DB:g} dB. Files: Pillow {protocol['pillow']}; payload leaves out headers, which do not depend on "
            f"the picture (JPEG: its standard Huffman tables too); thin grey: whole files.",
            f"(d): progressive coding of {protocol.get('progressive_num', 0)} pictures, z0_hat decoded, "
            f"{protocol.get('progressive_times', 0)} times; bands: the range of the seeds, or two standard errors.",
            "The network of (b) was part of the first stages' loss, so (b) flatters them; that of (c) was not."]
    if any(not s.flat for s in series):
        said.append("† and hollow: the second half of its training still improved the first stage.")
    said.append("The paper's Fig. 2 is drawn, not tabulated, for a pixel diffusion model on another data set.")
    small_print(fig, *said)


def equal_rate_table(records: Sequence[Record]) -> pd.DataFrame:
    """Each first stage at its true bits, and both file formats at the same bits by interpolation; empty out of range.

    The bits of files leave out headers, as in `ldmlab.evaluation.rate.file_codec`.
    """
    rows = []
    for record in sorted(records, key=lambda r: (r.params["f"], r.params["reg"], r.params["seed"])):
        if not (mark := working_point(record)):
            continue
        row = {"model": stage_name(record.params["reg"], record.params["f"]), "seed": record.params["seed"],
               "bpp": mark["bpp"]}
        for what, name in (("psnr", "PSNR [dB]"), ("rfd_lab", "rFD-lab")):
            row[name] = mark.get(what)
            row |= {f"{name}, {FILE_NAMES[codec]}": at_rate(points(record, codec, what), mark["bpp"])
                    for codec in CODECS}
        rows.append(row)
    return pd.DataFrame(rows).round(3)


def tab8_rates(records: Sequence[Record]) -> pd.DataFrame:
    """Tab. 8 with the rate it implies, beside ours: bits a pixel at a fixed length of code, log2 |Z| / f^2, and true.

    The paper measures no bits; for its KL models not even a bound follows from the table.
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
                row |= {"ours: bpp, fixed length": fixed, "ours: bpp, true": mark["bpp"],
                        "ours: PSNR [dB]": mark["psnr"], "ours: rFD-lab": mark.get("rfd_lab")}
            rows.append(row)
    return pd.DataFrame(rows).set_index("model").round(3)
