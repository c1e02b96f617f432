"""Encode and decode large pictures in overlapping tiles, with bounded memory [LDM v2, Sec. 4.3.2, App. D.1].

A tile is processed as a picture of its own: zero padding at its border, GroupNorm statistics and attention within it.
The results therefore differ from tile to tile; overlapping tiles that are blended hide the seams. A tile of the
training size is closer to the training data than a larger picture, and the cost of attention, which is quadratic in the
number of positions, stays bounded.
"""

import math
from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ldmlab.first_stage.autoencoder import FirstStage
from ldmlab.first_stage.regularizers import DiagonalGaussian
from ldmlab.progress import Progress

_PIXELS_PER_BATCH = 256 * 256  # one tile of a released model, many of a small one


class Span(NamedTuple):
    """A tile along one side: `start` and `stop` in latent cells, and the blending weight of each output position."""

    start: int
    stop: int
    weight: Float[Tensor, " n"]

    def at(self, scale: int) -> slice:
        """The tile as a slice of positions, `scale` per cell."""
        return slice(self.start * scale, self.stop * scale)


def spans(size: int, tile: int, overlap: int, scale: int) -> list[Span]:
    """Tiles of `tile` cells along a side of `size` latent cells, evenly spaced, that overlap by `overlap` or more.

    The output has `scale` positions per cell. Weights fall towards a tile's border as sin^2, almost to 0, and those of
    all tiles at a position sum to 1; at the border of the picture there is one tile, with weight 1. Deviation: the
    released code weighs by the distance to the border, clamped to 0.01..0.5.

    >>> [(span.start, span.stop) for span in spans(size=32, tile=16, overlap=4, scale=1)]
    [(0, 16), (8, 24), (16, 32)]
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


class Tiled(FirstStage):
    """A first stage whose `encode`, `moments` and `decode` process pictures of any size in tiles; not for training.

    Pictures no larger than a tile are processed whole. KL: means and log-variances of tiles are blended. VQ: z is
    blended before quantization, which happens in `decode`. Other attributes (`sample_latent`, `quantizer`) are those
    of the first stage. Results are on the device of the input, tiles on that of the first stage, whose memory does not
    grow with the picture unless gradients are computed.

    >>> from ldmlab.first_stage.autoencoder import build_autoencoder
    >>> from ldmlab.first_stage.networks import AutoencoderConfig
    >>> config = AutoencoderConfig(f=4, z_channels=3, reg="vq", ch=32, ch_mult=(1, 1, 1), resolution=32, num_codes=64)
    >>> tiled = Tiled(build_autoencoder(config).eval(), tile=32, overlap=8)
    >>> tiled.num_tiles(32, 48), tiled.encode(torch.zeros(1, 3, 32, 48)).shape
    (2, torch.Size([1, 3, 8, 12]))
    """

    first_stage: FirstStage

    def __init__(
        self,
        first_stage: FirstStage,
        tile: int | None = None,
        overlap: int | None = None,
        progress: Progress | None = None,
    ):
        """`tile` and `overlap` are in pixels and multiples of f; the default tile is the training size.

        The default overlap is a quarter of the tile or 8 latent cells, whichever is larger, but at most three quarters
        of the tile. `progress` is called with (done, total) tiles where there are several.
        Raises ValueError for sides that f does not divide, and for an overlap outside 0..tile - f.
        """
        super().__init__(first_stage.config)
        self.first_stage, self.progress = first_stage, progress
        f = first_stage.f
        self.tile = first_stage.config.resolution if tile is None else tile
        self.overlap = min(max(8 * f, self.tile // 4), self.tile * 3 // 4) // f * f if overlap is None else overlap
        if self.tile < f or self.tile % f or self.overlap % f:
            raise ValueError(f"tile and overlap must be pixels divisible by f = {f}; "
                             f"got tile={self.tile}, overlap={self.overlap}")
        if not 0 <= self.overlap < self.tile:
            raise ValueError(f"overlap must be at least 0 and less than tile={self.tile}, got {self.overlap}")

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("first_stage"), name)

    def num_tiles(self, height: int, width: int) -> int:
        """Number of tiles of a picture of `height` x `width` pixels; 1 if it is processed whole."""
        if self.reg == "none":
            return 1
        tile, overlap, f = self.tile // self.f, self.overlap // self.f, self.f
        return math.prod(len(spans(side // f, tile, overlap, 1)) for side in (height, width))

    def encode(self, x: Float[Tensor, "b c_x H W"]) -> "DiagonalGaussian | Float[Tensor, 'b c h w']":
        """As the first stage: the posterior over z (KL), or z before quantization (VQ)."""
        moments = self.moments(x)
        return DiagonalGaussian(moments) if self.reg == "kl" else moments

    def most_probable_latent(self, x: Float[Tensor, "b c_x H W"]) -> Float[Tensor, "b c h w"]:
        """As the first stage's: KL gives the mode of the posterior over z, VQ gives z, not yet quantized."""
        z = self.encode(x)
        return z.mode() if isinstance(z, DiagonalGaussian) else z

    def moments(self, x: Float[Tensor, "b c_x H W"]) -> Float[Tensor, "b c_m h w"]:
        """As the first stage: mean and log-variance, concatenated (KL), or z (VQ)."""
        self.check_pictures(x)
        return self._blend(self.first_stage.moments, x, self.f, 1)

    def sample_latent(
        self, moments: Float[Tensor, "b c_m h w"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b c h w"]:
        """As the first stage."""
        return self.first_stage.sample_latent(moments, generator)

    def decode(self, z: Float[Tensor, "b c h w"], **options: bool) -> Float[Tensor, "b c_x H W"]:
        """Decode z to x_rec, near [-1, 1] but not clamped; `options` are the first stage's (VQ: `quantize`)."""
        self.check_latents(z)
        return self._blend(lambda tiles: self.first_stage.decode(tiles, **options), z, 1, self.f)

    def _blend(self, function: Callable[[Tensor], Tensor], a: Tensor, scale_in: int, scale_out: int) -> Tensor:
        """Blend `function` of the tiles of `a`; a latent cell is `scale_in` wide in `a`, `scale_out` in the result."""
        device = next((p.device for p in self.parameters()), a.device)
        b, (h, w) = len(a), (side // scale_in for side in a.shape[2:])
        if self.num_tiles(h * self.f, w * self.f) == 1:
            return function(a.to(device)).to(a.device)
        tile, overlap = self.tile // self.f, self.overlap // self.f
        rows, columns = (spans(side, tile, overlap, scale_out) for side in (h, w))
        jobs: list[tuple[int, Span, Span]] = list(product(range(b), rows, columns))
        out: Tensor | None = None
        area = (rows[0].stop - rows[0].start) * (columns[0].stop - columns[0].start) * self.f**2
        per_batch = max(1, _PIXELS_PER_BATCH // area)
        for done in range(0, len(jobs), per_batch):
            batch = jobs[done : done + per_batch]
            tiles = torch.stack([a[i, :, row.at(scale_in), column.at(scale_in)] for i, row, column in batch])
            results = function(tiles.to(device)).to(a)
            if out is None:
                out = a.new_zeros(b, results.shape[1], h * scale_out, w * scale_out)
            for (i, row, column), result in zip(batch, results, strict=True):
                weight = (row.weight[:, None] * column.weight).to(result)
                out[i, :, row.at(scale_out), column.at(scale_out)] += result * weight
            if self.progress is not None:
                self.progress(done + len(batch), len(jobs))
        assert out is not None  # there is a tile or more
        return out
