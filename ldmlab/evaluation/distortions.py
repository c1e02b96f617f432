"""Degradations of pictures at a chosen strength."""

import io

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ldmlab.data.images import quantize_8bit, to_float, to_uint8

KINDS = ("blur", "noise", "jpeg", "shuffle")


def degrade(x: Float[Tensor, "n 3 h w"], kind: str, strength: float | int, seed: int = 0) -> Float[Tensor, "n 3 h w"]:
    """Degrade pictures in [-1, 1] by one of `KINDS`, rounded to 8 bits.

    `blur`: Gaussian, `strength` its standard deviation in pixels. `noise`: Gaussian, standard deviation in units of
    [-1, 1]. `jpeg`: quality 1 to 95, lower is worse. `shuffle`: cut into `strength` blocks per side, which must
    divide the picture, in random order. Raises ValueError for other kinds and for blocks that do not divide.
    """
    generator = torch.Generator().manual_seed(seed)
    if kind == "blur":
        from torchvision.transforms.functional import gaussian_blur

        radius = min(int(np.ceil(3 * strength)), min(x.shape[2:]) - 1)
        y = gaussian_blur(x, [2 * radius + 1] * 2, [float(strength)] * 2)
    elif kind == "noise":
        y = x + strength * torch.randn(x.shape, generator=generator)
    elif kind == "jpeg":
        y = to_float(torch.stack([_jpeg(picture, int(strength)) for picture in to_uint8(x)]))
    elif kind == "shuffle":
        y = _shuffle(x, int(strength), generator)
    else:
        raise ValueError(f"no degradation {kind!r}; accepted are {', '.join(KINDS)}")
    return quantize_8bit(y)


def _jpeg(picture: Tensor, quality: int) -> Tensor:
    # Pictures from JPEG files, coded again on the same 8 px grid, have their coefficients rounded twice, which sharpens
    # them at some qualities; on a shifted grid, lower quality is always worse.
    shift, buffer = 3, io.BytesIO()
    padded = np.pad(picture.permute(1, 2, 0).numpy(), ((shift, 0), (shift, 0), (0, 0)), mode="reflect")
    Image.fromarray(padded).save(buffer, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(buffer))[shift:, shift:]).permute(2, 0, 1)


def _shuffle(x: Tensor, blocks: int, generator: torch.Generator) -> Tensor:
    n, c, h, w = x.shape
    if blocks < 1 or h % blocks or w % blocks:
        raise ValueError(f"pictures of {h} x {w} cannot be cut into {blocks} blocks per side")
    tiles = x.reshape(n, c, blocks, h // blocks, blocks, w // blocks).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    order = torch.rand(n, blocks * blocks, generator=generator).argsort(1)
    tiles = tiles[torch.arange(n)[:, None], order].unflatten(1, (blocks, blocks))
    return tiles.permute(0, 3, 1, 4, 2, 5).reshape(n, c, h, w)
