"""The same training runs by four clocks: what "equally long" means decides which f looks best [LDM v2, Fig. 6, 17]."""

from collections.abc import Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from ldmlab.figures.style import label_ends, mark_smoke, small_print, span, styled
from ldmlab.figures.tradeoff import protocol_of, quality_lines
from ldmlab.paper import numbers as paper
from ldmlab.study.records.compare import Series, check_comparable, grouped, spec_of, timed_alike
from ldmlab.study.records.record import Record


@styled
def fig_clocks(records: Sequence[Record]) -> Figure:
    """FD-lab against pictures seen, the paper's steps, all seconds, and floating-point operations of training.

    ValueError for records that cannot be compared.
    """
    check_comparable(records)
    series = grouped(records)
    here, alike = timed_alike(records)
    timed = grouped(alike)
    fig, axes = plt.subplots(2, 2, figsize=(9.6, 6.6), layout="constrained")
    fig.get_layout_engine().set(w_pad=0.09, h_pad=0.06, wspace=0.05, hspace=0.05)
    clocks = [
        (axes[0, 0], "(a)  at equal pictures seen", "pictures seen by the denoiser", series, pictures_seen),
        (axes[0, 1], "(b)  at the paper's equal steps  [cf. Fig. 6]",
         "pictures seen / the paper's batch size at this f", series, paper_steps),
        (axes[1, 0], "(c)  at equal time, first stage included  [cf. Fig. 17]", "training time of both stages [s]",
         timed, all_seconds),
        (axes[1, 1], "(d)  at equal computation  [cf. Fig. 17]", "computation of the denoiser's training [GFLOP]",
         [s for s in series if len(s.values("flops"))], training_gflop),
    ]
    for ax, title, label, shown, clock in clocks:
        ends = quality_lines(ax, shown, clock)
        ax.set(title=title, xlabel=label, ylabel="FD-lab of samples  (lower is better)")
        span(ax, [y for s in series for y in (*s.curve("fd_lab")[2], *s.curve("fd_lab")[3])])
        label_ends(ax, ends)
    small_print(
        fig, protocol_of(records) + f" Timed on {here}.",
        "(a) is (a) of the figure above, stretched: all batches here are equal. (b) divides by the batch sizes of "
        f"Tab. 13, {', '.join(str(paper_batch(f)) for f in sorted({s.f for s in series}))}, so that a step is one of "
        "the paper's, where equal steps hide a 16-fold difference in pictures seen. (d) takes a training step for "
        "three forward passes; the encoder, the decoder and the first stage's training are left out.")
    mark_smoke(fig, records)
    return fig




def paper_batch(f: int) -> int:
    """The paper's batch size at this f, class-conditional ImageNet [LDM v2, Tab. 13]."""
    return paper.table("Tab. 13")[f"LDM-{f}"]["batch_size"]


def pictures_seen(s: Series, steps: np.ndarray) -> np.ndarray:
    """Pictures seen after each of `steps`."""
    return steps * spec_of(s).diffusion.batch_size


def paper_steps(s: Series, steps: np.ndarray) -> np.ndarray:
    """The steps in which the paper's batches would have shown as many pictures."""
    return pictures_seen(s, steps) / paper_batch(s.f)


def all_seconds(s: Series, steps: np.ndarray) -> np.ndarray:
    """Training seconds of both stages, mean over the seeds: a curve begins when its first stage is ready."""
    diffusion = np.mean([np.interp(steps, *np.array(run.curves["train_s"]).T) for run in s.runs], axis=0)
    return diffusion + s.values("first_stage_train_s").mean()


def training_gflop(s: Series, steps: np.ndarray) -> np.ndarray:
    """10^9 floating-point operations: forward and backward, the latter counted as two forward passes."""
    return 3 * s.values("flops").mean() * pictures_seen(s, steps) / 1e9
