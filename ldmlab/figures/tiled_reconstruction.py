"""Notebook 01_autoencoders: reconstruction in tiles beside that in one piece, and the memory it saves."""

import json

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from ldmlab.data.images import to_uint8
from ldmlab.experiments.tiled_reconstruction import Compared
from ldmlab.figures.paper_tables import blank_missing
from ldmlab.figures.style import ACCENT, small_print, styled
from ldmlab.first_stage.tiling import spans
from ldmlab.study.config.paths import results_dir

AMPLIFIED = 8  # factor of the difference map


@styled
def fig_tiling(compared: Compared, about: str = "") -> Figure:
    """A picture, its reconstructions in one piece and in tiles, and their amplified difference with tile borders."""
    fig, axes = plt.subplots(1, 4, figsize=(10.4, 2.95), layout="constrained")
    pictures = {"picture": compared.x, "in one piece": compared.whole, "in tiles": compared.tiled}
    for ax, (name, picture) in zip(axes, pictures.items(), strict=False):
        ax.imshow(to_uint8(picture[0]).permute(1, 2, 0).numpy(), interpolation="antialiased")
        ax.set_title(name)
    axes[3].imshow((compared.difference * AMPLIFIED).clamp(max=255).numpy(), cmap="gray_r", vmin=0, vmax=255)
    axes[3].set_title(f"difference, × {AMPLIFIED}; tiles")
    stage, f = compared.first_stage, compared.first_stage.f
    if stage.reg != "none":
        for side, line in ((compared.x.shape[2], axes[3].axhline), (compared.x.shape[3], axes[3].axvline)):
            for span in spans(side // f, stage.tile // f, stage.overlap // f, 1)[1:]:
                line(span.start * f, color=ACCENT, lw=0.35)
    for ax in axes:
        ax.axis("off")
    small_print(fig, about)
    return fig


def benchmark_table() -> pd.DataFrame:
    """Measurements of `benchmarks/tiling.py`: memory [MiB], PSNR [dB] and seams by model, size and tile.

    Empty, with a printed hint, if the benchmark was not run.
    """
    path = results_dir() / "benchmarks" / "tiling.json"
    if not path.exists():
        print(f"no measurement at {path}: run `python benchmarks/tiling.py` to make one")
        return pd.DataFrame()
    columns = {"model": "model", "side": "side [px]", "tile": "tile [px]", "overlap": "overlap [px]", "tiles": "tiles",
               "peak_mib": "peak [MiB]", "imported_mib": "of which before [MiB]", "psnr_db": "PSNR [dB]",
               "difference_rms_levels": "RMS difference to one piece [levels]", "seam": "seam"}
    frame = pd.DataFrame(json.loads(path.read_text()))
    return blank_missing(frame[[name for name in columns if name in frame]].rename(columns=columns).round(1))
