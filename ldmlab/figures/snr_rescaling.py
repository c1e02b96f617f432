"""Notebook 06_snr_rescaling: log SNR and latent scale, sampling beyond the training size [LDM v2, Fig. 15]."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from ldmlab.data.images import to_uint8
from ldmlab.diffusion.schedules import Schedule, scaled_linear
from ldmlab.experiments.latent_scale import BANDS, RELEASED_BETAS, RELEASED_STD, ScaleView
from ldmlab.experiments.snr_rescaling import TITLES, VARIANTS
from ldmlab.figures.style import (
    ACCENT,
    GREY,
    INK,
    SECOND,
    TINTS,
    format_number,
    log_axis,
    log_axis_if_positive,
    mark_smoke,
    seed_range,
    set_layout,
    small_print,
    styled,
)
from ldmlab.study.records.compare import check_comparable, commits, data_name
from ldmlab.study.records.record import Record
from ldmlab.study.runs.run_scoring import ETAS

VARIANT_TINTS = dict(zip(VARIANTS, (SECOND, ACCENT, TINTS[2], TINTS[3]), strict=True))
DASHED = (0, (4, 1.6))
BAND_LINES = dict(zip(BANDS, ("-", DASHED), strict=True))
VIEWS = {  # marker, face, name
    "1x": ("o", "white", "training size"), "2x": ("s", None, "twice the size, crops of the training size"),
    "2x_whole": ("D", None, "twice the size, downsampled"),
}


@styled
def fig_log_snr(stds: Mapping[str, float], schedule: Schedule, caption: str = "") -> Figure:
    """log SNR over t of (a) the released schedules, (b) `schedule` with latents of the standard deviations `stds`."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.4, 3.5), layout="constrained", sharey=True)
    for tint, (name, (start, end)) in zip(TINTS, RELEASED_BETAS.items(), strict=False):
        released = scaled_linear(1000, start, end)
        _log_snr_line(left, released, 1.0, tint, "-", f"{start:g}, {end:g}: {name}")
        _log_snr_line(left, released, RELEASED_STD, tint, DASHED)
    for tint, (name, std) in zip((*VARIANT_TINTS.values(), *TINTS), stds.items(), strict=False):
        at = schedule.crossing(std)
        where = f"t = {at}" if at < schedule.T else "no t"
        _log_snr_line(right, schedule, std, tint, "-", f"{name}, std {std:.2f}; SNR = 1 at {where}")
    left.set(title=r"(a)  released $\beta_1, \beta_T$; dashed: KL-f8, not rescaled, std 5.49",
             ylabel=r"$\log\,\mathrm{SNR}(t)$")
    right.set(title="(b)  the latents of this run")
    for ax in (left, right):
        ax.axhline(0, color=GREY, lw=0.8)
        ax.set(xlabel="t")
        ax.legend(loc="lower left", fontsize=7)
    if caption:
        small_print(fig, caption)
    return fig


def _log_snr_line(ax: Axes, schedule: Schedule, std: float, tint: str, line: Any, label: str | None = None) -> None:
    curve = schedule.log_snr.cpu().numpy() + 2 * np.log(std)
    ax.plot(curve, color=tint, ls=line, lw=1.3, label=label)
    at = schedule.crossing(std)
    if at < schedule.T:
        ax.plot(at, curve[at], "o", color=tint, ms=3.6)


@styled
def fig_rescaling(records: Sequence[Record]) -> Figure:
    """Effect of rescaling the latent [cf. LDM v2, Fig. 15]: KD-EffNet at 1x and 2x the training size under two
    samplers, power spectrum of samples, and the t at which layout and texture are determined.

    Bars are intervals over samples for one record, the range over seeds for several. ValueError for records that are
    not comparable, and for those of earlier versions, which have FD-lab.
    """
    check_comparable(records, "kd_effnet_2x_kl_rescaled")
    fig, axes = plt.subplots(2, 2, figsize=(9.6, 7.2), layout="constrained")
    set_layout(fig, w_pad=0.07, h_pad=0.06, wspace=0.04, hspace=0.04)
    (deterministic, ancestral), (waves, times) = axes
    ends = [_scores(ax, records, suffix) for ax, (_, suffix) in zip((deterministic, ancestral), ETAS, strict=True)]
    _score_axes((deterministic, ancestral), [y for part in ends for y in part])
    _waves(waves, records)
    _times(times, records)
    small_print(fig, *_rescaling_print(records))
    mark_smoke(fig, records)
    return fig


def _rescaling_print(records: Sequence[Record]) -> tuple[str, ...]:
    first, seeds = records[0], len(records)
    params, metric, large = first.params, first.metrics["kd_effnet_2x_kl_rescaled"], first.protocol.get("large_size")
    intervals = "1 seed: 95 % intervals over pictures" if seeds == 1 else f"{seeds} seeds: means and ranges"
    real = first.metrics["kd_effnet_2x_real"]
    return (
        f"LDM-{params['f']}, data {data_name(first)}, trained at {params['size']} px, also sampled at {large} px; tier "
        f"{params['tier']}; {intervals}. DDIM, {first.protocol.get('num_steps')} steps, EMA weights. git "
        f"{commits(records)}.",
        f"(a), (b) KD-EffNet: kernel distance times 1000 on {metric['extractor']} ({metric['weights_hash'][:8]}), n = "
        f"{metric['n_fake']} against {metric['n_real']} training pictures. Grey: real pictures of {large} px, n = "
        f"{real['n_fake']}.",
        f"(c) Samples of eta 0. Cosine transform of brightness, n = {metric['n_fake']}; shaded: 95 % bootstrap "
        f"intervals over pictures{'' if seeds == 1 else ' of the first seed'}; dashed: side of a training picture.",
        f"(d) From the share of variance explained by one denoising step, over "
        f"{first.metrics['layout_t_kl_none']['n']} validation pictures of {params['size']} px. Layout: wavelengths of "
        "at least half a picture; texture: less than a quarter.",
    )


def _point(records: Sequence[Record], name: str) -> tuple[float, list[list[float]] | None]:
    """A metric and its error bars: interval over samples for one record, range over seeds for several."""
    values = np.array([record.value(name) for record in records])
    mean, over_samples = values.mean(), records[0].metrics[name].get("interval")
    if len(records) > 1:
        return mean, seed_range(values)
    return mean, over_samples and [[mean - over_samples["low"]], [over_samples["high"] - mean]]


def _scores(ax: Axes, records: Sequence[Record], suffix: str) -> list[float]:
    """Draw the distances under one sampler; returns them with the ends of their bars."""
    seen: list[float] = []
    for i, key in enumerate(VARIANTS):
        for shift, (view, (marker, face, _)) in zip((-0.22, 0.0, 0.22), VIEWS.items(), strict=True):
            y, bars = _point(records, f"kd_effnet_{view}_{key}{suffix}")
            seen += [y, y - bars[0][0]] if bars else [y]
            ax.errorbar(i + shift, y, yerr=bars, marker=marker, color=VARIANT_TINTS[key], mfc=face, ms=6.5, capsize=2.5,
                        lw=1.2, ls="none")
    for view, line in (("2x", ":"), ("2x_whole", DASHED)):
        seen.append(records[0].value(f"kd_effnet_{view}_real"))
        ax.axhline(seen[-1], color=GREY, lw=1, ls=line)
    ax.set_xticks(range(len(VARIANTS)), [title.replace(", ", ",\n") for title in TITLES.values()])
    ax.set(ylabel="KD-EffNet  (lower is better)", xlim=(-0.5, len(VARIANTS) - 0.5))
    ax.grid(axis="x", visible=False)
    return seen


def _score_axes(axes: Sequence[Axes], seen: Sequence[float]) -> None:
    """Titles of (a) and (b), one scale for both, and the legend in (a)."""
    limits = []
    for ax, letter, (eta, _) in zip(axes, "ab", ETAS, strict=True):
        logarithmic = log_axis_if_positive(ax.yaxis, seen)
        ax.set_title(f"({letter})  distance to training pictures, eta {eta:g}")
        limits.append(ax.get_ylim())
    low, high = min(low for low, _ in limits), max(high for _, high in limits)
    top = high * (high / low) ** 0.5 if logarithmic else high + 0.5 * (high - low)  # room for the legend
    for ax in axes:
        ax.set_ylim(low, top)
    marks = [Line2D([], [], color=INK, marker=marker, mfc=face, ls="none", label=text)
             for marker, face, text in VIEWS.values()]
    real = [Line2D([], [], color=GREY, lw=1, ls=":", label="real, crops"),
            Line2D([], [], color=GREY, lw=1, ls=DASHED, label="real, downsampled")]
    axes[0].legend(handles=marks + real, loc="upper right", fontsize=6.8, labelspacing=0.3)


def _waves(ax: Axes, records: Sequence[Record]) -> None:
    for key, tint in VARIANT_TINTS.items():
        curves = [np.array(record.curves[f"spectrum_2x_{key}"]) for record in records]
        ax.plot(curves[0][:, 0], np.mean([curve[:, 1] for curve in curves], 0), color=tint, label=TITLES[key],
                lw=2.8 if key == "kl_none" else 1.4)  # wider, to be visible under the next where the two agree
        low, high = (np.array(records[0].curves[f"spectrum_2x_{key}_{end}"])[:, 1] for end in ("low", "high"))
        ax.fill_between(curves[0][:, 0], low, high, color=tint, alpha=0.16, lw=0)
    ax.axhline(1, color=GREY, lw=0.9)
    ax.axvline(records[0].params["size"], color=GREY, lw=0.9, ls=DASHED)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_number(value)))
    log_axis(ax.yaxis)
    ax.invert_xaxis()
    ax.set(title="(c)  power spectrum of samples at 2x", xlabel="wavelength [px]  (long to short)",
           ylabel="power relative to real pictures")
    ax.legend(loc="best")


def _times(ax: Axes, records: Sequence[Record]) -> None:
    for row, key in enumerate(reversed(VARIANTS)):
        for band, shift in zip(BANDS, (0.13, -0.13), strict=True):
            t, bars = _point(records, f"{band}_t_{key}")
            ax.errorbar(t, row + shift, xerr=bars, color=VARIANT_TINTS[key], marker="o" if band == "layout" else "^",
                        mfc=None if band == "layout" else "white", capsize=2.5, ms=6.5, ls="none", lw=1.2)
        if key == "kl_none":
            for band, shift in zip(BANDS, (0.13, -0.13), strict=True):
                ax.plot(_point(records, f"{band}_t_kl_none_predicted")[0], row + shift, "x", color=INK, ms=6, zorder=4)
    ax.set_yticks(range(len(VARIANTS)), [TITLES[key] for key in reversed(VARIANTS)])
    ax.set(title="(d)  t at which half the variance is explained", xlabel="t", xlim=(0, 1000),
           ylim=(-0.6, len(VARIANTS) + 0.3))
    ax.grid(axis="y", visible=False)
    ax.legend(loc="upper left", ncols=3, fontsize=6.8, columnspacing=1, handletextpad=0.2, handles=[
        Line2D([], [], color=INK, marker="o", ls="none", label="layout"),
        Line2D([], [], color=INK, marker="^", mfc="white", ls="none", label="texture"),
        Line2D([], [], color=INK, marker="x", ls="none", label="predicted from rescaled")])


@styled
def fig_latent_scales(view: ScaleView, stds: Sequence[float], *, num_t: int = 8, caption: str = "") -> Figure:
    """log SNR, share of variance explained by x0_hat, and x0_hat over t, for latents of standard deviations `stds`.

    With one standard deviation all pictures of the view are shown, with several the first picture of each.
    """
    T = view.schedule.T
    ts = [round(t) for t in np.linspace(0, T - 1, num_t + 1)[1:]]
    rows = [(std, i) for std in stds for i in range(len(view.z0) if len(stds) == 1 else 1)]
    shown = {std: [to_uint8(x) for x in view.pictures(std, ts)] for std in stds}
    fig = plt.figure(figsize=(10.6, max(3.2, 0.86 * len(rows) + 0.4)), layout="constrained")
    left, right = fig.subfigures(1, 2, width_ratios=[3.4, 7.2])  # type: ignore[misc]  # an array for two columns
    snr, share = left.subplots(2, 1, sharex=True)
    base = view.schedule.log_snr.numpy()
    tints = [ACCENT] if len(stds) == 1 else colormaps["viridis"](np.linspace(0, 0.85, len(stds)))
    if 1.0 not in stds:
        snr.plot(base, color=GREY, lw=1, ls=DASHED)
    for tint, std in zip(tints, stds, strict=True):
        snr.plot(base + 2 * np.log(std), color=tint, label=f"std {std:.3g}")
        for band in BANDS:
            share.plot(view.shares(std, band), color=tint, ls=BAND_LINES[band], lw=1.3)
    snr.axhline(0, color=GREY, lw=0.8)
    snr.set(ylabel=r"$\log\,\mathrm{SNR}$", ylim=(base[-1] - 2.5, base[0] + 5.5))
    snr.legend(loc="upper right", ncols=2 if len(stds) > 3 else 1, fontsize=7)
    share.axhline(0.5, color=GREY, lw=0.8)
    share.set(xlabel="t", ylabel=r"explained by $\hat x_0$", ylim=(-0.05, 1.05), xlim=(0, T - 1))
    share.legend(loc="lower left", fontsize=7, handles=[Line2D([], [], color=INK, lw=1.3, ls=line, label=band)
                                                       for band, line in BAND_LINES.items()])
    grid = right.subplots(len(rows), num_t, squeeze=False)
    set_layout(fig, w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for line, (std, i) in zip(grid, rows, strict=True):
        for ax, x in zip(line, shown[std], strict=True):
            ax.imshow(x[i].permute(1, 2, 0).numpy(), interpolation="nearest")
            ax.axis("off")
        if len(stds) > 1:
            line[0].text(-0.08, 0.5, f"std {std:.3g}", transform=line[0].transAxes, ha="right", va="center", fontsize=7)
    for ax, t in zip(grid[0], ts, strict=True):
        ax.set_title(f"t = {t}", loc="center", fontsize=7.8, pad=3)
    small_print(fig, caption, "Right: x0_hat, the model's one-step estimate of the picture from z_t. Explained: share "
                "of the variance over validation pictures, for wavelengths of at least half a picture (layout) and of "
                "less than a quarter (texture). Every scale uses the model of rescaled latents, at the step of equal "
                "SNR.", "" if 1.0 in stds else "Dashed in log SNR: standard deviation 1.")
    return fig
