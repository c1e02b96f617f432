"""The figures that are drawn from records, by name: what each shows and which records it takes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from ldmlab.figures import (
    guidance,
    image_guiding,
    paper_tables,
    rate_distortion,
    restoration,
    sampling,
    snr_rescaling,
    tradeoff,
    training_cost,
)
from ldmlab.study.records.record import Record


class Drawing(NamedTuple):
    """A figure drawn from records: the paper's figure or table, a notebook, and the metric that has to be comparable.

    With `per_f`, all records of one drawing have the same f.
    """

    shows: str
    notebook: str
    metric: str
    draw: Callable[[Sequence[Record]], Figure]
    per_f: bool = False


DRAWINGS: dict[str, Drawing] = {
    "tradeoff": Drawing("Fig. 6, 7, 17; Tab. 8", "04_tradeoff", "fd_lab", tradeoff.fig_tradeoff),
    "clocks": Drawing("Fig. 6, 17 by other measures of cost", "04_tradeoff", "fd_lab", training_cost.fig_training_cost),
    "reconstruction": Drawing("Tab. 8", "04_tradeoff", "rfd_lab", paper_tables.fig_reconstruction),
    "guidance": Drawing("Tab. 10", "03_diffusion", "fd_lab_by_guidance", paper_tables.fig_guidance, per_f=True),
    "rate_distortion": Drawing("Fig. 2", "05_rate_distortion", "rfd_lab", rate_distortion.fig_rate_distortion),
    "sampling": Drawing("Fig. 7", "07_sampling", "fd_lab", sampling.fig_steps),
    "samplers": Drawing("samplers side by side", "07_sampling", "fd_lab", sampling.fig_samplers),
    "rescaling": Drawing("Fig. 15", "06_snr_rescaling", "fd_lab_2x_kl_rescaled", snr_rescaling.fig_rescaling,
                         per_f=True),
    "guidance_class": Drawing("Tab. 3, 10", "08_class_conditional", "fd_lab_by_guidance",
                              guidance.fig_guidance_tradeoff),
    "guidance_text": Drawing("Tab. 2", "09_text_to_image", "fd_lab_by_guidance", guidance.fig_guidance_tradeoff),
    "guidance_layout": Drawing("Tab. 9", "10_layout_to_image", "fd_lab_by_guidance", guidance.fig_guidance_tradeoff),
    "image_guiding": Drawing("Fig. 14", "14_image_guiding", "psnr_unguided",
                             lambda records: image_guiding.fig_image_guiding(records[0]), per_f=True),
    "super_resolution": Drawing("Tab. 5, 11", "12_super_resolution", "psnr_bicubic",
                                restoration.fig_super_resolution),
    "inpainting": Drawing("Tab. 6, 7", "13_inpainting", "psnr_masked_all", restoration.fig_inpainting),
    "beyond": Drawing("Fig. 13, 21 to 25", "15_beyond_training_size", "fd_lab_by_size_real",
                      lambda records: restoration.fig_beyond(records[0]), per_f=True),
}
