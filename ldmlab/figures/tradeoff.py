"""Notebook 04_tradeoff: sample quality against downsampling factor, training and speed [LDM v2, Fig. 6, 7, 17]."""

from collections.abc import Callable, Sequence
from math import log2
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ldmlab.figures.style import (
    GREY,
    INK,
    LINES,
    NAME,
    EndLabel,
    colour,
    f_axis,
    label_ends,
    line_style,
    log_axis,
    mark_smoke,
    rounded,
    seed_range,
    set_layout,
    set_log_limits,
    small_print,
    styled,
    text_colour,
)
from ldmlab.paper import numbers as paper
from ldmlab.study.records.compare import (
    Series,
    check_comparable,
    commits,
    data_name,
    format_range,
    grouped,
    throughput,
    timed_alike,
)
from ldmlab.study.records.record import Record


@styled
def fig_tradeoff(records: Sequence[Record]) -> Figure:
    """KD-EffNet against steps, seconds, throughput and f, with rKD-EffNet [LDM v2, Fig. 6, 7, 17; Tab. 8].

    ValueError for no records, and for records that are not comparable. Records of tier smoke get a watermark.

    >>> from ldmlab.study.records.record import load_records
    >>> records = load_records("04_tradeoff", data="scenes", tier="laptop", size=32, f=8, reg="kl", seed=0)
    >>> fig = fig_tradeoff(records) if records else None
    """
    check_comparable(records)
    series = grouped(records)
    here, alike = timed_alike(records)
    timed = grouped(alike)
    fig, axes = plt.subplots(2, 2, figsize=(9.6, 6.9), layout="constrained")
    set_layout(fig, w_pad=0.09, h_pad=0.06, wspace=0.05, hspace=0.05)
    (by_step, by_time), (by_speed, by_f) = axes

    step_ends = quality_lines(by_step, series, lambda s, steps: steps)
    time_ends = quality_lines(by_time, timed, _seconds_at)
    _quality_by_speed(by_speed, timed)
    _quality_by_f(by_f, series)

    by_step.set(title="(a)  at equal steps  [cf. Fig. 6]", xlabel="training step")
    by_time.set(title="(b)  at equal training time  [cf. Fig. 17]", xlabel="training time of the diffusion model [s]")
    by_speed.set(title="(c)  quality and speed  [cf. Fig. 7]", xlabel="throughput, decoding included [images/s]")
    by_f.set(title="(d)  the limit set by the first stage  [cf. Tab. 8]", ylabel="KD-EffNet  (lower is better)")
    seen = [y for s in series for y in (*s.curve("kd_effnet")[2], *s.curve("kd_effnet")[3], *s.values("kd_effnet"))
            if y > 0] or [1.0]
    for ax in (by_step, by_time, by_speed):
        ax.set_ylabel("KD-EffNet of samples  (lower is better)")
        set_log_limits(ax, seen)
    label_ends(by_step, step_ends)
    label_ends(by_time, time_ends)
    _tradeoff_print(fig, records, series, timed, here)
    mark_smoke(fig, records)
    return fig


def quality_lines(
    ax: Axes, series: Sequence[Series], x_of: Callable[[Series, np.ndarray], np.ndarray]
) -> list[EndLabel]:
    """Draw KD-EffNet over `x_of(series, steps)`, a line per series with the range of its seeds; returns the end labels.

    The labels are for `style.label_ends`.
    """
    ends: list[EndLabel] = []
    for s in series:
        steps, mean, low, high = s.curve("kd_effnet")
        if not len(steps):
            continue
        x = x_of(s, steps)
        ax.plot(x, mean, **line_style(s))
        if len(s.runs) > 1:
            ax.fill_between(x, low, high, color=colour(s.f), alpha=0.16, lw=0)
        ends.append((x[-1], mean[-1], s.name, text_colour(s.f)))
    log_axis(ax.xaxis)
    log_axis(ax.yaxis)
    if ends:
        left, right = ax.get_xlim()
        ax.set_xlim(left, right * (right / left) ** 0.14)  # room for the labels
    return ends


def _seconds_at(s: Series, steps: np.ndarray) -> np.ndarray:
    """Seconds of training at the given steps, mean over the seeds."""
    return np.mean([np.interp(steps, *np.array(run.curves["train_s"]).T) for run in s.runs], axis=0)


def _quality_by_speed(ax: Axes, series: list[Series]) -> None:
    """Final KD-EffNet against images per second at the scored number of DDIM steps."""
    for s in series:
        fd, speed = s.values("kd_effnet"), np.array([v for run in s.runs if (v := throughput(run)) is not None])
        if len(fd) and len(speed):
            x, y = speed.mean(), fd.mean()
            ax.errorbar(x, y, yerr=seed_range(fd), xerr=seed_range(speed), **line_style(s) | {"ls": "none"}, ms=8,
                        elinewidth=1)
            if s.reg != "vq" or not any(other.f == s.f and other.reg == "kl" for other in series):  # else crowded
                beside = (0, -15 if log2(s.f) % 2 else 8)  # below and above in turn
                ax.annotate(s.name, (x, y), beside, textcoords="offset points", color=text_colour(s.f), ha="center",
                            **NAME)
    log_axis(ax.xaxis)
    log_axis(ax.yaxis)
    ax.margins(x=0.13)


def _quality_by_f(ax: Axes, series: list[Series]) -> None:
    """Final KD-EffNet of samples, and the rKD-EffNet of reconstructions under it."""
    seen = []
    for reg, shift, named in (("kl", 0.0, True), ("vq", 0.14, not any(s.reg == "kl" for s in series))):
        row = [s for s in series if s.reg == reg or (s.reg == "none" and reg == "kl")]
        looks: dict[str, tuple[str, dict[str, Any]]] = {
            "rkd_effnet": (GREY, {"marker": "_", "ms": 13, "mew": 2.4}), "kd_effnet": (INK, {"ms": 8})}
        for metric, (line, look) in looks.items():
            points = [(log2(s.f) + shift, v.mean(), v, s) for s in row if len(v := s.values(metric)) and v.mean() > 0]
            seen += [y for _, y, _, _ in points]
            ax.plot([x for x, *_ in points], [y for _, y, *_ in points], color=line, ls=LINES[reg], lw=1.2, zorder=2)
            for x, y, values, s in points:
                ax.errorbar(x, y, yerr=seed_range(values), **{**line_style(s), "ls": "none", **look}, elinewidth=1)
                other = s.values("kd_effnet" if metric == "rkd_effnet" else "rkd_effnet")
                if named:
                    below = len(other) and (y, metric == "kd_effnet") < (other.mean(), metric == "rkd_effnet")
                    ax.annotate(rounded(y), (x, y), (0, -14 if below else 8), textcoords="offset points", ha="center",
                                **{**NAME, "fontsize": 7.2, "fontweight": "normal"}, color=text_colour(s.f))
    log_axis(ax.yaxis)
    if seen:
        set_log_limits(ax, seen, margin=1.9)
    f_axis(ax, [s.f for s in series])
    ax.legend(loc="best", handles=[
        Line2D([], [], color=INK, lw=1.2, marker="o", ms=7, label="samples, at the end of training"),
        Line2D([], [], color=GREY, lw=1.2, marker="_", ms=11, mew=2.4, label="reconstructions by the first stage")])


def _tradeoff_print(fig: Figure, records: Sequence[Record], series: list[Series], timed: list[Series],
                    here: str) -> None:
    seeds = sorted({len(s.runs) for s in series})
    how = ": mean and range" if seeds[-1] > 1 else ", so the variation over seeds is not shown"
    sentences = [f"{protocol_of(records)} {format_range(seeds)} seed{'s' if seeds[-1] > 1 else ''} per f{how}. "
                 f"{_sizes(records)} Timed on {here}. git {commits(records)}."]
    first = sorted(v for s in timed for v in s.values("first_stage_train_s") if v)
    if first:
        sentences.append(f"(b) excludes the training of the first stages, {format_range([round(v) for v in first])} s.")
    if any(s.reg == "none" for s in series):
        sentences.append("LDM-1 works on pixels and has no first stage.")
    if any(s.reg == "vq" for s in series):
        sentences.append("Circles and solid lines: KL; squares and dashed lines: VQ.")
    left_out = len(records) - sum(len(s.runs) for s in timed)
    if left_out:
        sentences.append(f"(b), (c): {left_out} record{'s' if left_out > 1 else ''} timed on another device left out.")
    if not all(s.flat for s in series):
        sentences.append("† and hollow markers: the first stage still improved in the second half of its training (by "
                         "0.3 dB PSNR or more), so that part of its loss is due to short training, not to compression.")
    small_print(fig, " ".join(sentences),
                "The paper (ImageNet, 256 px, FID of 5k samples with Inception features) plots its values in Fig. 6, "
                "7, 17 and does not tabulate them; its text gives a gap of "
                f"{paper.FID_GAP_LDM1_LDM8:g} in FID between LDM-1 and LDM-8 after 2M steps.")


def protocol_of(records: Sequence[Record]) -> str:
    """Score, sampler, data and tier of comparable records, in words for the small print."""
    record = records[0]
    score, params = record.metrics["kd_effnet"], record.params
    return (f"KD-EffNet: kernel distance times 1000 on {score['extractor']} ({score.get('weights_hash', '')[:8]}), n = "
            f"{score['n_fake']} samples against {score['n_real']} training pictures; DDIM, "
            f"{record.protocol.get('num_steps')} steps ({record.protocol.get('milestone_steps')} over training), "
            f"eta {record.protocol.get('eta', 0):g}, EMA weights. Data "
            f"{data_name(record)} at {params['size']} px, tier {params['tier']}.")


def _sizes(records: Sequence[Record]) -> str:
    sizes = sorted(r.metrics["num_params"]["value"] for r in records if "num_params" in r.metrics)
    if not sizes:
        return ""
    shown = sorted({f"{size / 1e6:.2f}" for size in (sizes[0], sizes[-1])})
    return f"Denoisers of {' to '.join(shown)} M parameters."
