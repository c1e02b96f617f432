"""Notebook 14_image_guiding: consistency with the target, PSNR and KD-EffNet by guidance scale [LDM v2, Fig. 14]."""

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ldmlab.experiments.image_guiding import GUIDERS
from ldmlab.figures.style import (
    ACCENT,
    GREY,
    INK,
    SECOND,
    log_axis,
    log_axis_if_positive,
    mark_smoke,
    small_print,
    styled,
)
from ldmlab.study.records.compare import check_comparable, commits, data_name
from ldmlab.study.records.record import Record

_TINTS = {"exact": "#7d5a96", "gaussian": ACCENT, "perceptual": SECOND}
_BASELINES = {  # in the record: its name in the legend, colour, line
    "reconstructions": ("first stage, of the true picture", "#5b8c5a", (0, (4, 1.6))),
    "bicubic": ("bicubic upsampling", GREY, (0, (6, 2, 1, 2))),
    "unguided": ("unguided", INK, (0, (1, 1.5))),
}


@styled
def fig_image_guiding(record: Record) -> Figure:
    """PSNR of the downsampled sample against its target, and PSNR and KD-EffNet of the sample, over the guidance scale.

    The scales of the two guiders differ in unit: the lower axis is the Gaussian's, the upper one the perceptual one's.
    ValueError for a record of another score.
    """
    check_comparable([record], "kd_effnet_unguided")
    fig, axes = plt.subplots(1, 3, figsize=(10.2, 3.4), layout="constrained")
    titles = {"psnr_small": ("(a)  consistency with the target", "PSNR of T(sample) against y [dB]"),
              "psnr": ("(b)  distance to the true picture", "PSNR of the sample [dB]"),
              "kd_effnet": ("(c)  distance to the data", "KD-EffNet of samples  (lower is better)")}
    for ax, (measure, (title, label)) in zip(axes, titles.items(), strict=True):
        _over_scales(ax, record, measure)
        ax.set_ylabel(label)
        ax.set_title(title, pad=12)
        for name, (legend, tint, line) in _BASELINES.items():
            value = record.metrics.get(f"{measure}_{name}", {}).get("value")
            if value is not None and not (measure == "psnr_small" and name == "bicubic"):
                ax.axhline(value, color=tint, lw=1, ls=line, label=legend)
    seen = [record.value(f"kd_effnet_{name}") for name in _BASELINES] + [
        y for name, curve in record.curves.items() if name.startswith("kd_effnet_by_guidance") for _, y in curve]
    log_axis_if_positive(axes[2].yaxis, seen)
    handles, labels = axes[1].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper left", ncols=5, fontsize=7.2)
    params, protocol = record.params, record.protocol
    small_print(
        fig,
        f"{record.name} on {data_name(record)} at {params['size']} px, tier {params['tier']}, seed {params['seed']}, "
        f"unconditional; y: {protocol['guided_n']} {protocol['targets']}, downsampled by {protocol['factor']}; "
        f"{protocol['num_steps']} DDIM steps, eta {protocol['eta']:g}, EMA; bands: 95 % intervals over pictures. "
        f"git {commits([record])}.")
    mark_smoke(fig, [record])
    return fig


def _over_scales(ax: Axes, record: Record, measure: str) -> None:
    for key, kind in GUIDERS.items():
        here = ax if kind.distance == "gaussian" else ax.twiny()
        name = f"{measure}_by_guidance_{key}"
        if name not in record.curves:
            continue  # every scale diverged
        x, y = np.array(record.curves[name]).T
        here.plot(x, y, color=_TINTS[key], marker="o", ms=4)
        ax.plot([], [], color=_TINTS[key], marker="o", ms=4, label=kind.name)
        if f"{name}_low" in record.curves:
            low, high = (np.array(record.curves[f"{name}{end}"]).T[1] for end in ("_low", "_high"))
            here.fill_between(x, low, high, color=_TINTS[key], alpha=0.15, lw=0)
        log_axis(here.xaxis, (1.0, 3.0) if here is not ax else (1.0,))
        here.set_xlabel(f"scale s, {kind.distance}", color=_TINTS[key], fontsize=7.6)
        here.tick_params(axis="x", labelcolor=_TINTS[key], labelsize=7)
        if here is not ax:
            here.spines["top"].set_visible(True)
            here.grid(False)
