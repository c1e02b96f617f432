"""What scores say and what they do not, as figures; each is drawn from one record of `evaluating`."""

from collections.abc import Mapping, Sequence

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
    line_style,
    log_axis,
    mark_smoke,
    plain,
    small_print,
    styled,
)
from ldmlab.study.records.compare import Series, commits, data_name
from ldmlab.study.records.record import Record

SETS = {"real": ("real pictures, not in the reference", ACCENT), "samples": ("samples of the model", SECOND)}
PLANTED = {"unseen": ("perfect: unseen pictures", ACCENT), "model": ("the trained model", SECOND),
           "half": ("half model, half copies", TINTS[3]), "copier": ("copier of training pictures", INK)}
ERRORS = {"sampler": ("true eps: the sampler alone", ACCENT), "model": ("learned eps: and the model", SECOND),
          "first_stage": ("in a smaller latent: and the first stage", TINTS[3])}


def about(record: Record) -> str:
    """What pictures and which run a figure rests on."""
    p = record.params
    return (f"{data_name(record)} at {p['size']} px; {record.name}, tier {p['tier']}, seed {p['seed']}. "
            f"git {commits([record])}.")


def low_high(metric: Mapping) -> tuple[float, float]:
    """A metric's interval; its value twice where it has none."""
    interval = metric.get("interval") or {"low": metric["value"], "high": metric["value"]}
    return interval["low"], interval["high"]


def _bar(metric: Mapping) -> np.ndarray:
    """An interval as error bars around the metric's value."""
    low, high = low_high(metric)
    return np.array([[metric["value"] - low], [high - metric["value"]]])


@styled
def fig_number(record: Record) -> Figure:
    """FD-lab over 1/N: two lines that meet the axis at FD∞; KID-lab beside it, which N does not bias."""
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
        kid.plot(*np.array(record.curves[f"kid_lab_by_n_{key}"]).T, color=tint, marker="o", label=label)
    ticks = sorted({int(n) for key in SETS for n, _ in record.curves[f"fd_lab_by_n_{key}"]})
    fd.set_xticks([0, *(1 / n for n in ticks)], ["∞", *map(str, ticks)])
    fd.set(title="(a)  Fréchet: too large by about b / N", xlabel="number of pictures N, spaced as 1 / N",
           ylabel="FD-lab  (lower is better)", ylim=(min(0, *fd.get_ylim()), None))
    kid.set(title="(b)  kernel: right on average at any N", xlabel="number of pictures N", ylabel="KID-lab")
    kid.axhline(0, color=GREY, lw=0.8)
    log_axis(kid.xaxis)
    for ax in (fd, kid):
        ax.legend(loc="best")
    metric = record.metrics["fd_lab_real"]
    starred = "stars: FD∞ with its interval" if "fd_lab_infinity_real" in record.metrics else "too few for an FD∞"
    small_print(fig, f"{about(record)} Against n = {metric['n_real']} training pictures under {metric['extractor']} "
                f"({metric['weights_hash'][:8]}). Dots: means over disjoint parts of N pictures, which are the dashes; "
                f"bars: the 95 % bootstrap interval of one part; dashed: a line in 1 / N; {starred}.")
    mark_smoke(fig, [record])
    return fig


@styled
def fig_resize(record: Record) -> Figure:
    """Distance between the same pictures made small in two ways, under each network at hand."""
    keys = [key for key in ("fd_lab", "fd_referee", "fid") if f"{key}_resize {JPEG}" in record.metrics]
    names = [*list(KERNELS)[1:], JPEG]
    fig, axes = plt.subplots(1, len(keys), figsize=(2.2 + 2.9 * len(keys), 2.7), layout="constrained", sharey=True,
                             squeeze=False)
    for ax, key, tint in zip(axes[0], keys, TINTS, strict=False):
        metrics = [record.metrics[f"{key}_resize {name}"] for name in names]
        for y, metric in enumerate(metrics):
            ax.errorbar(metric["value"], y, xerr=_bar(metric), color=tint, marker="o", capsize=3)
        for label, values in _yardsticks(record, key).items():
            ax.axvline(values, color=GREY, lw=0.9, ls=(0, (4, 1.6)))
            ax.annotate(label, (values, 1.0), (3, -2), xycoords=("data", "axes fraction"), textcoords="offset points",
                        fontsize=7, color=GREY, rotation=90, va="top")
        ax.set(xlabel=f"{metrics[0]['name']}  (0: no difference)")
        ax.set_xlim(0, None)
    axes[0][0].set_yticks(range(len(names)), names)
    axes[0][0].invert_yaxis()
    metric = record.metrics[f"fd_lab_resize {JPEG}"]
    without = "" if "fid" in keys else " No FID: Inception's weights are not at hand."
    small_print(fig, f"{about(record)} n = {metric['n_fake']} validation pictures, {LARGE * record.params['size']} px "
                f"made {record.params['size']} px, against themselves made small by bicubic with antialiasing. Bars: "
                f"95 % bootstrap intervals over pairs.{without}")
    mark_smoke(fig, [record])
    return fig


def _yardsticks(record: Record, key: str) -> dict[str, float]:
    """What a score of the trained model looks like on the same axis."""
    return {"the model's samples": record.value("fd_lab_samples")} if key == "fd_lab" else {}


@styled
def fig_extractors(record: Record, study: Sequence[Series]) -> Figure:
    """The two scoring networks against each other: spoiled pictures, and the models of the `study`."""
    fig, (spoiled, models) = plt.subplots(1, 2, figsize=(9.8, 3.7), layout="constrained")
    kinds = [name.removeprefix("fd_referee_") for name in record.curves if name.startswith("fd_referee_")]
    for kind, tint in zip(sorted(kinds), TINTS, strict=False):
        lab, referee = (np.array(record.curves[f"{key}_{kind}"]) for key in ("fd_lab", "fd_referee"))
        spoiled.plot(lab[:, 1], referee[:, 1], color=tint, marker="o", label=kind)
        for (strength, x), (_, y) in zip(lab, referee, strict=True):
            spoiled.annotate(plain(strength), (x, y), (4, -8), textcoords="offset points", fontsize=6.6, color=tint)
    spoiled.plot(record.value("fd_lab_floor"), record.value("fd_referee_floor"), "*", color=INK, ms=10,
                 label="left as they are")
    spoiled.set_title(f"(a)  spoiled pictures; rank correlation {record.value('rank_correlation'):.2f}")
    spoiled.legend(loc="lower right")
    for s in study:
        models.plot(s.values("fd_lab"), s.values("fd_referee"), **line_style(s) | {"ls": "none"}, label=s.name)
    models.set_title("(b)  models of the study")
    if study:
        models.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    for ax, some in ((spoiled, True), (models, bool(study))):
        if some:
            log_axis(ax.xaxis)
            log_axis(ax.yaxis)
            ax.margins(0.12)
        else:
            ax.text(0.5, 0.5, "no records of 04_tradeoff yet", transform=ax.transAxes, ha="center", color=GREY)
        ax.set(xlabel="FD-lab", ylabel="FD-referee")
    floor = record.metrics["fd_lab_floor"]
    small_print(fig, f"{about(record)} (a): n = {floor['n_fake']} validation pictures against {floor['n_real']} "
                "training pictures; numbers are strengths: blur and noise in standard deviations, JPEG quality, blocks "
                "a side. (b): one point a run. Two scales, so only the order can be compared.")
    mark_smoke(fig, [record])
    return fig


@styled
def fig_game(record: Record) -> Figure:
    """Pictures changed to please the network of the loss: what is left of each distance, over steps."""
    fig, ax = plt.subplots(figsize=(5.6, 3.1), layout="constrained")
    psnr = [db for _, db in record.curves["game_psnr"]]
    curves = {"the loss, PSIM-lab": record.curves["game_loss"], "FD-lab": record.curves["game_fd_lab"],
              "mean squared error": [[step, 10 ** (-db / 10)] for (step, _), db in
                                     zip(record.curves["game_loss"], psnr, strict=True)]}
    for tint, (name, points) in zip((SECOND, ACCENT, GREY), curves.items(), strict=True):
        step, value = np.array(points).T
        ax.plot(step, value / value[0], color=tint, marker="o", label=name)
    ax.set(xlabel="gradient steps on the pixels, down the loss", ylabel="share of the start")
    log_axis(ax.yaxis)
    ax.legend(loc="best")
    small_print(fig, f"{about(record)} n = {record.protocol['game_n']} validation pictures with noise of standard "
                "deviation 0.4, moved towards themselves without noise; FD-lab against those.")
    mark_smoke(fig, [record])
    return fig


@styled
def fig_copies(record: Record) -> Figure:
    """Four generators, one of them a copier: how near their pictures are to training pictures, and two scores of it."""
    fig, (near, scores) = plt.subplots(1, 2, figsize=(9.4, 3.5), layout="constrained")
    near.axvline(1, color=GREY, lw=0.8)
    for name, (label, tint) in PLANTED.items():
        share, ratio = np.array(record.curves[f"nearness_{name}"]).T
        near.plot(ratio, share, color=tint, label=label)
        fd, memory = (record.metrics[f"{key}_{name}"] for key in ("planted_fd_lab", "memorisation"))
        scores.errorbar(memory["value"], fd["value"], xerr=_bar(memory), yerr=_bar(fd), color=tint, marker="o",
                        capsize=3)
        left = memory["value"] > 0.75  # and higher, for its score is that of unseen pictures
        scores.annotate(label, (memory["value"], fd["value"]), (-6, 18) if left else (6, 6), textcoords="offset points",
                        color=tint, ha="right" if left else "left", **NAME)
    near.set(title="(a)  how near", ylabel="share of pictures", xlim=(-0.03, 2),
             xlabel="distance to the training set, in that of unseen pictures")
    near.legend(loc="upper left", bbox_to_anchor=(0.03, 1.0), fontsize=7)
    scores.axvline(0.5, color=GREY, lw=0.8)
    scores.set(title="(b)  what two scores say", xlabel="memorisation  (0.5: as new as unseen pictures)",
               ylabel="FD-lab  (lower is better)", xlim=(0, 1.03), ylim=(0, None))
    metric = record.metrics["planted_fd_lab_model"]
    small_print(fig, f"{about(record)} n = {metric['n_fake']} pictures a generator; nearest of "
                f"{record.metrics['memorisation_model']['n_real']} training pictures in the features of "
                f"{metric['extractor']} ({metric['weights_hash'][:8]}); FD-lab against {metric['n_real']} of them. "
                "Bars: 95 % intervals.")
    mark_smoke(fig, [record])
    return fig


@styled
def fig_world(record: Record) -> Figure:
    """The solvable world: three errors stacked, over the number of DDIM steps; nothing here is sampled."""
    fig, ax = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    for name, (label, tint) in ERRORS.items():
        ax.plot(*np.array(record.curves[f"world_{name}"]).T, color=tint, marker="o", label=label)
        if name != "sampler":
            _floor(ax, record.value(f"world_{name}"), tint)
    log_axis(ax.xaxis)
    log_axis(ax.yaxis)
    ax.set(xlabel="DDIM steps", ylabel="Fréchet distance to the true law")
    ax.legend(loc="best")
    small_print(fig, f"A Gaussian random field of {FIELD} x {FIELD} pixels of unit variance, power as 1 / k²; "
                f"schedule of LDM, T = 1000, eta 0. The model knows mean and covariance of {DRAWS} draws; the latent "
                f"keeps {CODE} of {FIELD**2} numbers. Exact laws, no samples. Dashed: what a perfect sampler would "
                "leave.")
    return fig


def _floor(ax: Axes, value: float, tint: str) -> None:
    ax.axhline(value, color=tint, lw=0.9, ls=(0, (4, 1.6)))
