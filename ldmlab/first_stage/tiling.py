"""Large pictures through a first stage, in overlapping tiles and bounded memory [LDM v2, Sec. 4.3.2, App. D.1].

Encoder and decoder see a tile as a picture of its own, so three things change near its border and inside it: zeros lie
outside, GroupNorm takes its statistics from the tile, and attention looks no further. All three differ from tile to
tile; tiles that overlap and fade into each other hide it. On pictures larger than those of training a tile is nearer to
what the first stage has learned than the whole picture is, and attention costs the square of what it looks at.
"""

import math
from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ldmlab.first_stage.regularizers import DiagonalGaussian

_PIXELS_AT_ONCE = 256 * 256  # one tile of a released model, many of a small one


class Span(NamedTuple):
    """A tile along one side, from `start` to `stop` in latent cells, and the weight of each position of its output."""

    start: int
    stop: int
    weight: Float[Tensor, " n"]

    def at(self, scale: int) -> slice:
        """The same where a cell is `scale` positions wide."""
        return slice(self.start * scale, self.stop * scale)


def spans(size: int, tile: int, overlap: int, scale: int) -> list[Span]:
    """Tiles along a side of `size` latent cells, evenly spread, neighbours sharing `overlap` cells or more.

    A cell gives `scale` positions of output. The weights of all tiles at a position sum to 1; each tile's fall towards
    its border as sin^2, almost to 0, so that what lies next to a border hardly counts. The borders of the picture have
    one tile and its full weight. Deviation: the released code weighs by the distance to the border, kept in 0.01..0.5.
    """
    tile = min(tile, size)
    num = math.ceil((size - overlap) / (tile - overlap)) if tile < size else 1
    starts = [round(i * (size - tile) / max(1, num - 1)) for i in range(num)]
    position = torch.arange(tile * scale, dtype=torch.float64) + 0.5
    to_border = torch.minimum(position, tile * scale - position)
    fade = (torch.pi / 2 * (to_border / max(0.5, overlap * scale)).clamp(max=1)).sin().square()
    total = torch.zeros(size * scale, dtype=torch.float64)
    parts = [slice(start * scale, (start + tile) * scale) for start in starts]
    for part in parts:
        total[part] += fade
    return [Span(s, s + tile, (fade / total[part]).float()) for s, part in zip(starts, parts, strict=True)]


class Tiled(nn.Module):
    """A first stage that encodes and decodes pictures of any size, in tiles; not for training.

    A picture no larger than a tile goes through as it is. KL: means and log-variances fade from tile to tile. VQ: z
    fades before it is quantized, and is quantized in `decode`. All else (`f`, `reg`, `sample_latent`, `quantizer`) is
    the first stage's own. The result is where the picture is, tiles go where the first stage is: memory there does not
    grow with the picture, unless gradients are asked for.
    """

    def __init__(
        self,
        first_stage: nn.Module,
        tile: int | None = None,
        overlap: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ):
        """`tile` and `overlap` in pixels, multiples of f; by default the training size, and see below.

        The default overlap is a quarter of the tile, or 8 latent cells if that is more, but at most three quarters: a
        tile of one cell has none. `progress(done, total)` hears of tiles, where there are several.
        ValueError for sides that f does not divide, and for an overlap that is not in 0..tile - f.
        """
        super().__init__()
        self.first_stage, self.progress = first_stage, progress
        f = first_stage.f
        self.tile = first_stage.config.resolution if tile is None else tile
        self.overlap = min(max(8 * f, self.tile // 4), self.tile * 3 // 4) // f * f if overlap is None else overlap
        if self.tile < f or self.tile % f or self.overlap % f:
            raise ValueError(f"tile and overlap are in pixels and divisible by f = {f}; "
                             f"got tile={self.tile}, overlap={self.overlap}")
        if not 0 <= self.overlap < self.tile:
            raise ValueError(f"overlap must be at least 0 and less than tile={self.tile}, got {self.overlap}")

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("first_stage"), name)

    def num_tiles(self, height: int, width: int) -> int:
        """How many tiles a picture of `height` x `width` pixels takes; 1: it goes through as it is."""
        if self.reg == "none":
            return 1
        tile, overlap, f = self.tile // self.f, self.overlap // self.f, self.f
        return math.prod(len(spans(side // f, tile, overlap, 1)) for side in (height, width))

    def encode(self, x: Float[Tensor, "b c_x H W"]) -> DiagonalGaussian | Float[Tensor, "b c h w"]:
        """As the first stage's: KL gives the posterior over z, VQ gives z, not yet quantized."""
        moments = self.moments(x)
        return DiagonalGaussian(moments) if self.reg == "kl" else moments

    def most_probable_latent(self, x: Float[Tensor, "b c_x H W"]) -> Float[Tensor, "b c h w"]:
        """As the first stage's: KL gives the mode of the posterior over z, VQ gives z, not yet quantized."""
        z = self.encode(x)
        return z.mode() if self.reg == "kl" else z

    def moments(self, x: Float[Tensor, "b c_x H W"]) -> Float[Tensor, "b c_m h w"]:
        """As the first stage's: KL gives mean and log-variance side by side, VQ gives z."""
        self.check_pictures(x)
        return self._blend(self.first_stage.moments, x, self.f, 1)

    def decode(self, z: Float[Tensor, "b c h w"], **options: bool) -> Float[Tensor, "b c_x H W"]:
        """x_rec, near [-1, 1] but not clamped; `options` are the first stage's (VQ: `quantize`)."""
        self.check_latents(z)
        return self._blend(lambda tiles: self.first_stage.decode(tiles, **options), z, 1, self.f)

    def _blend(self, function: Callable[[Tensor], Tensor], a: Tensor, scale_in: int, scale_out: int) -> Tensor:
        """`function` of each tile of `a`, faded together; a latent cell is `scale_in` wide there, `scale_out` after."""
        device = next((p.device for p in self.parameters()), a.device)
        b, (h, w) = len(a), (side // scale_in for side in a.shape[2:])
        if self.num_tiles(h * self.f, w * self.f) == 1:
            return function(a.to(device)).to(a.device)
        tile, overlap = self.tile // self.f, self.overlap // self.f
        rows, columns = (spans(side, tile, overlap, scale_out) for side in (h, w))
        jobs, out = list(product(range(b), rows, columns)), None
        area = (rows[0].stop - rows[0].start) * (columns[0].stop - columns[0].start) * self.f**2
        at_once = max(1, _PIXELS_AT_ONCE // area)
        for done in range(0, len(jobs), at_once):
            batch = jobs[done : done + at_once]
            tiles = torch.stack([a[i, :, row.at(scale_in), column.at(scale_in)] for i, row, column in batch])
            results = function(tiles.to(device)).to(a)
            if out is None:
                out = a.new_zeros(b, results.shape[1], h * scale_out, w * scale_out)
            for (i, row, column), result in zip(batch, results, strict=True):
                weight = (row.weight[:, None] * column.weight).to(result)
                out[i, :, row.at(scale_out), column.at(scale_out)] += result * weight
            if self.progress is not None:
                self.progress(done + len(batch), len(jobs))
        return out
