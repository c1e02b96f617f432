"""Notebook 16_evaluation: bias, resizing, feature extractors, optimized pixels, memorisation, an exactly solvable case.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ldmlab.experiments.evaluation import CODE, DRAWS, FIELD, JPEG, KERNELS, LARGE
from ldmlab.figures.style import (
    ACCENT,
    GREY,
    INK,
    NAME,
    SECOND,
    TINTS,
    log_axis,
    mark_smoke,
    small_print,
    styled,
)
from ldmlab.study.records.compare import commits, data_name
from ldmlab.study.records.record import Record

SETS = {"real": ("real pictures outside the reference", ACCENT), "samples": ("samples of the model", SECOND)}
MOCK_GENERATORS = {"unseen": ("perfect: unseen real pictures", ACCENT), "model": ("trained model", SECOND),
                   "half": ("half model, half copies", TINTS[3]), "copier": ("copies of training pictures", INK)}
ERRORS = {"sampler": ("exact eps: sampler error", ACCENT), "model": ("estimated eps: + model error", SECOND),
          "first_stage": ("reduced latent: + first-stage error", TINTS[3])}


def about(record: Record) -> str:
    """Data, model, tier, seed and commit of a record, in words for the small print."""
    p = record.params
    return (f"{data_name(record)} at {p['size']} px; {record.name}, tier {p['tier']}, seed {p['seed']}. "
            f"git {commits([record])}.")


def low_high(metric: Mapping[str, Any]) -> tuple[float, float]:
    """The ends of a metric's interval; its value twice where it has none."""
    interval = metric.get("interval") or {"low": metric["value"], "high": metric["value"]}
    return interval["low"], interval["high"]


def _bar(metric: Mapping) -> np.ndarray:
    """An interval as error bars around the metric's value."""
    low, high = low_high(metric)
    return np.array([[metric["value"] - low], [high - metric["value"]]])


@styled
def fig_sample_size(record: Record) -> Figure:
    """FD-lab over 1 / N with its extrapolation FD∞ to infinite N, beside KD-EffNet, which is unbiased at any N."""
    fig, (fd, kid) = plt.subplots(1, 2, figsize=(9.4, 3.5), layout="constrained")
    for key, (label, tint) in SETS.items():
        n, mean = np.array(record.curves[f"fd_lab_by_n_{key}"]).T
        reach = np.array(record.curves[f"fd_lab_reach_{key}"])[:, 1]
        parts = np.array(record.curves[f"fd_lab_part_{key}"]).T
        fd.errorbar(1 / n, mean, yerr=reach, color=tint, marker="o", ls="none", capsize=3, label=label)
        fd.plot(1 / parts[0], parts[1], "_", color=tint, ms=9, alpha=0.6, mew=0.9)
        if len(n) > 1:
            x = np.array([0, 1.05 / n.min()])
            fd.plot(x, np.polyval(np.polyfit(1 / n, mean, 1), x), color=tint, lw=0.9, ls=(0, (4, 1.6)))
        if infinity := record.metrics.get(f"fd_lab_infinity_{key}"):
            fd.errorbar(0, infinity["value"], yerr=_bar(infinity), color=tint, marker="*", ms=10, capsize=3,
                        clip_on=False, zorder=4)
        kid.plot(*np.array(record.curves[f"kd_effnet_by_n_{key}"]).T, color=tint, marker="o", label=label)
    ticks = sorted({int(n) for key in SETS for n, _ in record.curves[f"fd_lab_by_n_{key}"]})
    fd.set_xticks([0, *(1 / n for n in ticks)], ["∞", *map(str, ticks)])
    fd.set(title="(a)  Fréchet distance: bias of about b / N", xlabel="number of pictures N, spaced as 1 / N",
           ylabel="FD-lab  (lower is better)", ylim=(min(0, *fd.get_ylim()), None))
    kid.set(title="(b)  kernel distance: unbiased at any N", xlabel="number of pictures N", ylabel="KD-EffNet")
    kid.axhline(0, color=GREY, lw=0.8)
    log_axis(kid.xaxis)
    for ax in (fd, kid):
        ax.legend(loc="best")
    metric = record.metrics["fd_lab_real"]
    starred = ("stars: FD∞ with its interval" if "fd_lab_infinity_real" in record.metrics
               else "too few pictures for FD∞")
    small_print(fig, f"{about(record)} Against n = {metric['n_real']} training pictures with features of "
                f"{metric['extractor']} ({metric['weights_hash'][:8]}). Dashes: disjoint subsets of N pictures; dots: "
                f"their means; bars: 95 % bootstrap interval of one subset; dashed: linear fit in 1 / N; {starred}.")
    mark_smoke(fig, [record])
    return fig


@styled
def fig_resize(record: Record) -> Figure:
    """Distance between two differently resized versions of the same pictures, for each feature extractor available."""
    keys = [key for key in ("kd_effnet", "kid") if f"{key}_resize {JPEG}" in record.metrics]
    names = [*list(KERNELS)[1:], JPEG]
    fig, axes = plt.subplots(1, len(keys), figsize=(2.2 + 2.9 * len(keys), 2.7), layout="constrained", sharey=True,
                             squeeze=False)
    for ax, key, tint in zip(axes[0], keys, TINTS, strict=False):
        metrics = [record.metrics[f"{key}_resize {name}"] for name in names]
        for y, metric in enumerate(metrics):
            ax.errorbar(metric["value"], y, xerr=_bar(metric), color=tint, marker="o", capsize=3)
        if key == "kd_effnet":
            value = record.value("kd_effnet_samples")
            ax.axvline(value, color=GREY, lw=0.9, ls=(0, (4, 1.6)))
            ax.annotate("the model's samples", (value, 1.0), (3, -2), xycoords=("data", "axes fraction"),
                        textcoords="offset points", fontsize=7, color=GREY, rotation=90, va="top")
        ax.set(xlabel=f"{metrics[0]['name']}  (0: no difference)")
        ax.set_xlim(min(0, ax.get_xlim()[0]), None)
    axes[0][0].set_yticks(range(len(names)), names)
    axes[0][0].invert_yaxis()
    metric = record.metrics[f"kd_effnet_resize {JPEG}"]
    without = "" if "kid" in keys else " No KID: the weights of Inception are not at hand."
    small_print(fig, f"{about(record)} n = {metric['n_fake']} validation pictures, resized from "
                f"{LARGE * record.params['size']} to {record.params['size']} px, against the same pictures resized "
                f"by bicubic interpolation with antialiasing. Bars: 95 % intervals over both sets.{without}")
    mark_smoke(fig, [record])
    return fig


@styled
def fig_optimized_pixels(record: Record) -> Figure:
    """Distances of pictures whose pixels minimize a perceptual loss, relative to their start, over gradient steps."""
    fig, ax = plt.subplots(figsize=(5.6, 3.1), layout="constrained")
    psnr = [db for _, db in record.curves["game_psnr"]]
    curves = {"loss, PSIM-lab": record.curves["game_loss"], "KD-EffNet": record.curves["game_kd_effnet"],
              "mean squared error": [[step, 10 ** (-db / 10)] for (step, _), db in
                                     zip(record.curves["game_loss"], psnr, strict=True)]}
    for tint, (name, points) in zip((SECOND, ACCENT, GREY), curves.items(), strict=True):
        step, value = np.array(points).T
        ax.plot(step, value / value[0], color=tint, marker="o", label=name)
    ax.set(xlabel="gradient steps on the pixels", ylabel="relative to the start")
    log_axis(ax.yaxis)
    ax.legend(loc="best")
    small_print(fig, f"{about(record)} n = {record.protocol['game_n']} validation pictures with noise of standard "
                "deviation 0.4, optimized towards the clean pictures; KD-EffNet against those.")
    mark_smoke(fig, [record])
    return fig


@styled
def fig_copies(record: Record) -> Figure:
    """Four mock generators, two of which copy training pictures: distances to the training set, and two scores."""
    fig, (near, scores) = plt.subplots(1, 2, figsize=(9.4, 3.5), layout="constrained")
    near.axvline(1, color=GREY, lw=0.8)
    for name, (label, tint) in MOCK_GENERATORS.items():
        share, ratio = np.array(record.curves[f"nearness_{name}"]).T
        near.plot(ratio, share, color=tint, label=label)
        fd, memory = (record.metrics[f"{key}_{name}"] for key in ("planted_kd_effnet", "memorisation"))
        scores.errorbar(memory["value"], fd["value"], xerr=_bar(memory), yerr=_bar(fd), color=tint, marker="o",
                        capsize=3)
        left = memory["value"] > 0.75  # and higher up, since its score equals that of unseen pictures
        scores.annotate(label, (memory["value"], fd["value"]), (-6, 18) if left else (6, 6), textcoords="offset points",
                        color=tint, ha="right" if left else "left", **NAME)
    near.set(title="(a)  distance to the training set", ylabel="share of pictures", xlim=(-0.03, 2),
             xlabel="nearest-neighbour distance, relative to unseen pictures")
    near.legend(loc="upper left", bbox_to_anchor=(0.03, 1.0), fontsize=7)
    scores.axvline(0.5, color=GREY, lw=0.8)
    scores.set(title="(b)  two scores", xlabel="memorisation  (0.5: as for unseen pictures)",
               ylabel="KD-EffNet  (lower is better)", xlim=(0, 1.03))
    scores.axhline(0, color=GREY, lw=0.8)
    metric = record.metrics["planted_kd_effnet_model"]
    small_print(fig, f"{about(record)} n = {metric['n_fake']} pictures per generator; nearest neighbours among "
                f"{record.metrics['memorisation_model']['n_real']} training pictures in the features of "
                f"{metric['extractor']} ({metric['weights_hash'][:8]}); KD-EffNet against {metric['n_real']} of them. "
                "Bars: 95 % intervals.")
    mark_smoke(fig, [record])
    return fig


@styled
def fig_solvable(record: Record) -> Figure:
    """Exact Fréchet distances over DDIM steps for Gaussian data: error of the sampler, + model, + first stage."""
    fig, ax = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    for name, (label, tint) in ERRORS.items():
        ax.plot(*np.array(record.curves[f"world_{name}"]).T, color=tint, marker="o", label=label)
        if name != "sampler":
            _floor(ax, record.value(f"world_{name}"), tint)
    log_axis(ax.xaxis)
    log_axis(ax.yaxis)
    ax.set(xlabel="DDIM steps", ylabel="Fréchet distance to the data distribution")
    ax.legend(loc="best")
    small_print(fig, f"Gaussian random field of {FIELD} x {FIELD} pixels of unit variance, power as 1 / k²; "
                f"schedule of LDM, T = 1000, eta 0. The model uses mean and covariance of {DRAWS} samples; the latent "
                f"has {CODE} of {FIELD**2} dimensions. Exact distributions, no sampling. Dashed: with a perfect "
                "sampler.")
    return fig


def _floor(ax: Axes, value: float, tint: str) -> None:
    ax.axhline(value, color=tint, lw=0.9, ls=(0, (4, 1.6)))
