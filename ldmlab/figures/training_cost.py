"""Notebook 04_tradeoff: the same training runs against four measures of training cost [LDM v2, Fig. 6, 17]."""

from collections.abc import Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from ldmlab.figures.style import label_ends, mark_smoke, set_layout, set_log_limits, small_print, styled
from ldmlab.figures.tradeoff import protocol_of, quality_lines
from ldmlab.paper import numbers as paper
from ldmlab.study.records.compare import Series, check_comparable, grouped, spec_of, timed_alike
from ldmlab.study.records.record import Record


@styled
def fig_training_cost(records: Sequence[Record]) -> Figure:
    """KD-EffNet against pictures seen, equivalent steps of the paper, training time of both stages, and operations.

    ValueError for no records, and for records that are not comparable.
    """
    check_comparable(records)
    series = grouped(records)
    here, alike = timed_alike(records)
    timed = grouped(alike)
    fig, axes = plt.subplots(2, 2, figsize=(9.6, 6.6), layout="constrained")
    set_layout(fig, w_pad=0.09, h_pad=0.06, wspace=0.05, hspace=0.05)
    panels = [
        (axes[0, 0], "(a)  at equal pictures seen", "pictures seen by the denoiser", series, pictures_seen),
        (axes[0, 1], "(b)  at equal steps of the paper  [cf. Fig. 6]",
         "pictures seen / the paper's batch size at this f", series, paper_steps),
        (axes[1, 0], "(c)  at equal time, first stage included  [cf. Fig. 17]", "training time of both stages [s]",
         timed, all_seconds),
        (axes[1, 1], "(d)  at equal compute  [cf. Fig. 17]", "compute of the denoiser's training [GFLOP]",
         [s for s in series if len(s.values("flops"))], training_gflop),
    ]
    for ax, title, label, shown, cost in panels:
        ends = quality_lines(ax, shown, cost)
        ax.set(title=title, xlabel=label, ylabel="KD-EffNet of samples  (lower is better)")
        set_log_limits(ax, [y for s in series for y in (*s.curve("kd_effnet")[2], *s.curve("kd_effnet")[3])
                            if y > 0] or [1.0])
        label_ends(ax, ends)
    small_print(
        fig, protocol_of(records) + f" Timed on {here}.",
        "(a) shows the lines of fig_tradeoff (a), rescaled: all batch sizes here are equal. (b) divides by the batch "
        f"sizes of Tab. 13, {', '.join(str(paper_batch(f)) for f in sorted({s.f for s in series}))}: in the paper, "
        "equal steps differ by up to 16 times in pictures seen. (d) counts a training step as three forward passes, "
        "without encoder, decoder and the first stage's training.")
    mark_smoke(fig, records)
    return fig


def paper_batch(f: int) -> int:
    """The paper's batch size at this f for class-conditional ImageNet [LDM v2, Tab. 13]."""
    return int(paper.table("Tab. 13")[f"LDM-{f}"]["batch_size"])


def pictures_seen(s: Series, steps: np.ndarray) -> np.ndarray:
    """Pictures seen by the denoiser after each of `steps` training steps."""
    return steps * spec_of(s).diffusion.batch_size


def paper_steps(s: Series, steps: np.ndarray) -> np.ndarray:
    """Steps after which a training with the paper's batch size has seen as many pictures as ours after `steps`."""
    return pictures_seen(s, steps) / paper_batch(s.f)


def all_seconds(s: Series, steps: np.ndarray) -> np.ndarray:
    """Seconds of training of the first stage and of the denoiser up to `steps`, mean over the seeds."""
    diffusion = np.mean([np.interp(steps, *np.array(run.curves["train_s"]).T) for run in s.runs], axis=0)
    return diffusion + s.values("first_stage_train_s").mean()


def training_gflop(s: Series, steps: np.ndarray) -> np.ndarray:
    """GFLOP of the denoiser's training up to `steps`; a backward pass counts as two forward passes."""
    return 3 * s.values("flops").mean() * pictures_seen(s, steps) / 1e9
