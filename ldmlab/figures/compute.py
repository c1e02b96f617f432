"""Compute as pictures: where operations go, quality and cost in Tab. 18, what a machine attains, estimates tried."""

from collections.abc import Mapping
from math import log2

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ldmlab.experiments.compute.machine import Measured
from ldmlab.figures.style import ACCENT, GREY, INK, NAME, PALE, SECOND, colour, log_axis, small_print, styled
from ldmlab.paper import numbers as paper
from ldmlab.study.config.budgets import is_smoke

PARTS = {"encode": SECOND, "denoiser": ACCENT, "decode": "#c9a227"}
WORK = {"online": "(a)  training, every picture encoded anew", "cached": "(b)  training, latents cached",
        "sampling": "(c)  sampling, {} DDIM steps"}
# Where the names of Tab. 18 stand, so that none covers another: points to the right and up, alignment.
_LABELS: dict[str, tuple[float, float, str]] = {
    "LSUN-Churches / StyleGAN2": (6, 4, "left"), "LSUN-Churches / LDM-8": (6, 4, "left"),
    "LSUN-Bedrooms / ADM": (-2, -11, "center"), "LSUN-Bedrooms / LDM-4": (6, -4, "left"),
    "CelebA-HQ / LDM-4": (2, 7, "center"), "FFHQ / StyleGAN2": (0, -12, "center"), "FFHQ / LDM-4": (6, 3, "left"),
    "ImageNet / BigGAN-deep": (-10, 7, "center"), "ImageNet / ADM": (-4, 7, "center"),
    "ImageNet / ADM-G 25 steps": (-6, 3, "right"), "ImageNet / ADM-G 250 steps": (-6, -9, "right"),
    "ImageNet / ADM-G, ADM-U": (6, -9, "left"), "ImageNet / LDM-8-G": (6, 3, "left"),
    "ImageNet / LDM-8": (6, 3, "left"),
    "ImageNet / LDM-4": (0, 7, "center"), "ImageNet / LDM-4-G scale 1.25": (-6, 4, "right"),
    "ImageNet / LDM-4-G scale 1.5": (-6, -8, "right"),
}
_SETS = {"LSUN-Churches": "Churches", "LSUN-Bedrooms": "Bedrooms", "CelebA-HQ": "CelebA-HQ", "FFHQ": "FFHQ"}
FAMILIES = {"LDM": (ACCENT, "o"), "ADM": (SECOND, "s"), "GAN": (GREY, "D")}


@styled
def fig_parts(parts: Mapping[str, pd.DataFrame], num_steps: int = 200) -> Figure:
    """Shares of encoder, denoiser and decoder in the operations of one picture, by f; the sum above each bar.

    `parts` as of `compute.parts`: in ImageNet's training and sampling [LDM v2, Tab. 13].
    """
    fig, axes = plt.subplots(1, 3, figsize=(10.2, 3.3), layout="constrained", sharey=True)
    for ax, (work, title) in zip(axes, WORK.items(), strict=True):
        frame = parts[work]
        total, bottom = frame.sum(axis=1), 0.0
        for part, tint in PARTS.items():
            share = 100 * frame[part] / total
            ax.bar(range(len(frame)), share, bottom=bottom, color=tint, width=0.72, label=part)
            bottom = bottom + share
        for x, value in enumerate(total):
            ax.text(x, 102, _flop(value), ha="center", fontsize=7, color=INK)
        ax.set_xticks(range(len(frame)), [str(f) for f in frame.index])
        ax.set(title=title.format(num_steps), xlabel="downsampling factor f", ylim=(0, 112))
        ax.grid(False)
    axes[0].set(ylabel="share of operations [%]")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
    small_print(fig, "Operations of one picture of 256 px, counted; above the bars their sum, G: 10^9, T: 10^12. "
                "A training step is three forward passes of the denoiser. LDM-1 to LDM-32 of Tab. 13 with VQ first "
                "stages; those of f = 2 and 32 were not released, and their widths are assumed. In (b), every picture "
                "of ImageNet and its mirror image is encoded once, shared out over 2M steps at the paper's batch.")
    return fig


def _flop(value: float) -> str:
    scale, letter = (1e12, "T") if value >= 1e12 else (1e9, "G")
    return f"{value / scale:.3g} {letter}"


@styled
def fig_tab18() -> Figure:
    """FID against the cost of training, from the paper's own table [LDM v2, Tab. 18]."""
    fig, axes = plt.subplots(1, 2, figsize=(10.2, 3.9), layout="constrained")
    for name, row in paper.table("Tab. 18").items():
        if "fid" not in row:
            continue
        data, _, model = name.partition(" / ")
        ax = axes[int(data == "ImageNet")]
        tint, mark = FAMILIES[family(model)]
        days = [float(end) for end in str(row["total_v100_days"]).split("-")]
        middle = (days[0] * days[-1]) ** 0.5  # a range, on a logarithmic axis
        if len(days) > 1:
            ax.plot(days, [row["fid"]] * 2, color=tint, lw=1.2)
        ax.plot(middle, row["fid"], marker=mark, color=tint, mec="white", mew=0.6, ms=7)
        dx, dy, side = _LABELS[name]
        shown = model if data == "ImageNet" else f"{model}, {_SETS[data]}"
        ax.annotate(shown, (middle, row["fid"]), (dx, dy), textcoords="offset points", ha=side,
                    color=tint, **{**NAME, "fontsize": 7.2})
    for ax, title, xlim, ylim in ((axes[0], "(a)  without a condition", (8, 400), (1.2, 5.8)),
                                  (axes[1], "(b)  ImageNet, told the class", (45, 1500), (2.4, 22))):
        log_axis(ax.xaxis)
        ax.set(title=title, xlim=xlim, ylim=ylim, xlabel="training, classifier included [V100-days]")
    log_axis(axes[1].yaxis)
    axes[0].set_ylabel("FID  (lower is better)")
    axes[1].legend(handles=[Line2D([], [], ls="none", marker=mark, color=tint, label=name)
                            for name, (tint, mark) in FAMILIES.items()], loc="upper right")
    small_print(fig, "[LDM v2, Tab. 18], total cost. V100-days of LDMs are days of an A100 times 2.2, those of others "
                "from their own papers; first stages have rows of their own, 29 (VQGAN-f4) and 66 (VQGAN-f8). Data "
                "sets differ within (a): compare within a set. BigGAN-deep is given as a range. FID as printed.")
    return fig


def family(model: str) -> str:
    """LDM, ADM or GAN: who a model of Tab. 18 belongs to."""
    return next((name for name in ("LDM", "ADM") if model.startswith(name)), "GAN")


@styled
def fig_attained(measured: Measured) -> Figure:
    """Operations per second of each timed job on this machine, under its measured peaks."""
    jobs = measured.jobs
    fig, ax = plt.subplots(figsize=(8.4, 0.9 + 0.27 * len(jobs)), layout="constrained")
    tints = {"fp32": ACCENT, "bf16": SECOND}
    for y, rate in enumerate(jobs.values()):
        tint = tints[rate.precision]
        ax.barh(y, rate.value / 1e9, color=tint, height=0.66, alpha=0.85)
        ax.plot([rate.low / 1e9, rate.high / 1e9], [y, y], color=INK, lw=1.1)
        share = measured.share(rate)
        ax.annotate(f"{share:.0%}" if share >= 0.1 else f"{share:.1%}", (rate.high / 1e9, y), (5, 0),
                    textcoords="offset points", va="center", fontsize=7.5, zorder=5, path_effects=NAME["path_effects"])
    for name, peak in measured.peaks.items():
        ax.axvline(peak.value / 1e9, color=tints[name], lw=1.3, ls=(0, (4, 2)))
        ax.annotate(f"peak, {name}", (peak.value / 1e9, len(jobs) - 0.45), (-3, 0), textcoords="offset points",
                    ha="right", va="center", color=tints[name], **{**NAME, "fontsize": 7.2})
    ax.set_yticks(range(len(jobs)), list(jobs))
    log_axis(ax.xaxis)
    top = max(peak.value for peak in measured.peaks.values())
    ax.set(xlabel="attained [GFLOP/s]", xlim=(0.5 * min(rate.low for rate in jobs.values()) / 1e9, 1.6 * top / 1e9),
           ylim=(len(jobs) - 0.1, -0.6))
    ax.grid(False, axis="y")
    small_print(fig, f"Measured on {measured.device}; memory {measured.bandwidth.value / 1e9:.3g} GB/s. Tier "
                f"{measured.tier}, batches as in training. Percentages: of the peak in the same precision (fastest "
                "call of large matrix products and convolutions). Lines: slowest and fastest call. First stages count "
                "the autoencoder alone and are timed with the perceptual loss, without a discriminator.")
    _rehearsal(fig, measured)
    return fig


@styled
def fig_compared(frame: pd.DataFrame, measured: Measured) -> Figure:
    """Recorded seconds of training over estimated ones; `frame` as of `forecasts.compared`. ValueError if it is empty.
    """
    if frame.empty:
        raise ValueError("nothing to compare: results/ holds no record of a training at this tier and of this data")
    fig, axes = plt.subplots(1, 2, figsize=(8.4, 3.9), layout="constrained")
    for ax, part, title in zip(axes, ("denoiser", "first stage"), ("(a)  denoisers", "(b)  first stages"), strict=True):
        rows = frame[frame["part"] == part]
        ends = [*rows["recorded [s]"], *rows["from"], *rows["to"]] or [1.0]
        low, high = 0.7 * min(ends), 1.4 * max(ends)
        ax.plot([low, high], [low, high], color=GREY, lw=1)
        ax.fill_between([low, high], [low / 2, high / 2], [2 * low, 2 * high], color=PALE, alpha=0.6, lw=0)
        for _, row in rows.iterrows():
            f = int(row["model"].split()[0].removeprefix("LDM-"))
            here = row["device"] == measured.device
            ax.plot([row["from"], row["to"]], [row["recorded [s]"]] * 2, color=colour(f), lw=1, alpha=0.6)
            ax.plot(row["estimated [s]"], row["recorded [s]"], marker="o", ms=5.5, color=colour(f),
                    mfc=colour(f) if here else "white")
        for axis in (ax.xaxis, ax.yaxis):
            log_axis(axis)
        ax.set(title=title, xlabel="estimated for this machine [s]", xlim=(low, high), ylim=(low, high))
        ax.set_aspect("equal")
    axes[0].set_ylabel("recorded [s]")
    fs = sorted({int(model.split()[0].removeprefix("LDM-")) for model in frame["model"]}, key=log2)
    fig.legend(handles=[Line2D([], [], ls="none", marker="o", color=colour(f), label=f"f = {f}") for f in fs],
               loc="outside right upper")
    small_print(fig, f"{len(frame)} recorded trainings, tier {measured.tier}; estimates from this minute's measurement "
                f"on {measured.device}. Filled: recorded on a device of that name; open: on another. Grey: within a "
                "factor of two. Estimated is the time of steps at the rate measured now; other work on the machine, "
                "then or now, is in neither.")
    _rehearsal(fig, measured)
    return fig


def _rehearsal(fig: Figure, measured: Measured) -> None:
    if is_smoke(measured.tier):
        fig.text(0.5, 0.54, "smoke tier: a rehearsal", fontsize=26, color="#b0463c", alpha=0.25, ha="center",
                 va="center", rotation=12, fontweight="bold")
