"""A large picture through a run's first stage, whole and in tiles, side by side; and the committed benchmark."""

import time
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ldmlab.data.images import to_float, to_uint8
from ldmlab.data.user_pictures import pad_to_multiple
from ldmlab.evaluation.reconstruction import psnr
from ldmlab.experiments.beyond_training_size import pictures_of
from ldmlab.first_stage.reconstruct import reconstruct
from ldmlab.first_stage.tiling import Tiled
from ldmlab.study.runs.run import Run


@dataclass
class Compared:
    """A picture, its reconstructions in one piece and in tiles, in [-1, 1], and what they took."""

    x: Float[Tensor, "1 3 H W"]
    whole: Float[Tensor, "1 3 H W"]
    tiled: Float[Tensor, "1 3 H W"]
    seconds: tuple[float, float]
    first_stage: Tiled

    @property
    def difference(self) -> Float[Tensor, "H W"]:
        """Greatest difference of the two over channels, in levels of 8 bits."""
        return (self.whole - self.tiled).abs().amax((0, 1)) * 127.5

    def summary(self) -> str:
        """The numbers in words."""
        h, w = self.x.shape[2:]
        d = self.difference
        return (f"{h} x {w} pixels in {self.first_stage.num_tiles(h, w)} tiles of {self.first_stage.tile} px, "
                f"{self.first_stage.overlap} px shared\n"
                f"difference of tiled and whole: {d.square().mean().sqrt():.2f} levels of 255 (RMS), {d.max():.0f} at "
                f"most\nPSNR against the picture: whole {psnr(self.x, self.whole).item():.2f} dB, tiled "
                f"{psnr(self.x, self.tiled).item():.2f} dB\nseconds: whole {self.seconds[0]:.1f}, tiled "
                f"{self.seconds[1]:.1f}")


def large_picture(run: Run) -> Float[Tensor, "1 3 H W"]:
    """A validation picture, many times as large as those of training."""
    side = max(run.spec.budget.tiled_side, 2 * run.spec.data.size)
    return to_float(pictures_of(run, side, num=4).images([3]))


def compare(run: Run, x: Float[Tensor, "1 3 H W"]) -> Compared:
    """x -> z -> x_rec in one piece and in tiles."""
    tiled = Tiled(run.first_stage.model)
    made, seconds = [], []
    for model in (run.first_stage.model, tiled):
        began = time.perf_counter()
        made.append(to_float(to_uint8(reconstruct(model, x))))
        seconds.append(time.perf_counter() - began)
    return Compared(x, made[0], made[1], (seconds[0], seconds[1]), tiled)




def through_tiles(run: Run, picture: Float[Tensor, "3 h w"]) -> dict[str, Tensor]:
    """A picture of one's own and its reconstruction in tiles; sides that f does not divide are padded and cropped."""
    padded, padding = pad_to_multiple(picture[None], run.spec.f)
    tiled = Tiled(run.first_stage.model)
    print("; ".join(filter(None, (str(padding), f"{tiled.num_tiles(*padded.shape[2:])} tiles"))), flush=True)
    x_rec = padding.crop(to_float(to_uint8(reconstruct(tiled, padded))))
    return {"given": picture[None], f"{run.first_stage.name}, {psnr(picture[None], x_rec).item():.1f} dB": x_rec}


