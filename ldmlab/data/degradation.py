"""Degradations for super-resolution: bicubic downsampling, and BSR in its light variant [LDM v2, Sec. 4.4, App. D.6].

BSR (BSRGAN) applies blur, resizing, noise and JPEG in random order, so that a model learns no single degradation.
"""

import io
import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

FACTORS = (2, 4, 8)
DEGRADATIONS = ("bicubic", "bsr")
QUALITY = (80, 95)  # range of the JPEG quality
NOISE = (1, 2)  # range of the standard deviation, in grey levels (0 to 255)
INTERPOLATIONS = ("bilinear", "bicubic", "area")
Pixels = np.ndarray  # (h, w, 3), float64 in [0, 1]


class Step(NamedTuple):
    """One step of a degradation: its name, and the picture after it."""

    name: str
    picture: UInt8[Tensor, "3 h w"]


def degrade(
    images: UInt8[Tensor, "n 3 h w"], factor: int, degradation: str = "bicubic", seed: int = 0
) -> UInt8[Tensor, "n 3 h2 w2"]:
    """Degrade uint8 pictures to sides of 1/`factor` by "bicubic" or "bsr", rounded to 8 bits.

    BSR draws picture i with the seed (`seed`, i). Raises ValueError for an unknown `degradation` and for sizes and
    factors that `bicubic` or `bsr` do not accept.

    >>> images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    >>> degrade(images, factor=4, degradation="bsr", seed=0).shape
    torch.Size([2, 3, 16, 16])
    """
    if degradation not in DEGRADATIONS:
        raise ValueError(f"degradation is one of {', '.join(DEGRADATIONS)}; got {degradation!r}")
    if degradation == "bicubic":
        return (bicubic(images.float() / 127.5 - 1, factor) + 1).mul(127.5).round().to(torch.uint8)
    return torch.stack([bsr(picture.cpu(), factor, (seed, i))[-1].picture for i, picture in enumerate(images)])


def bicubic(x: Float[Tensor, "n c h w"], factor: int) -> Float[Tensor, "n c h2 w2"]:
    """Downsample pictures in [-1, 1] by `factor`, antialiased; ValueError unless the factor divides both sides."""
    _check_factor(factor, x.shape[2:])
    small = F.interpolate(x, (x.shape[2] // factor, x.shape[3] // factor), mode="bicubic", antialias=True)
    return small.clamp(-1, 1)  # bicubic weights overshoot at edges


def bsr(picture: UInt8[Tensor, "3 h w"], factor: int, seed: int | tuple[int, ...] = 0) -> list[Step]:
    """Degrade a picture to sides of 1/`factor`; returns every step, the result last [BSRGAN; LDM v2, App. D.6].

    At factor 4 the picture is first halved with probability 1/4. Then follow in random order: blur; downsampling by a
    factor of 1 to 2 `factor`, or blur and striding by `factor`; somewhere after it, resizing to the final size;
    Gaussian noise; JPEG with probability 0.9. The last step is JPEG. As in the released "light" variant there is no
    camera noise.

    Deviation: blur kernels have odd sizes only, so that they do not shift the picture; resizing is torch's and JPEG
    Pillow's; halving is never antialiased (released: in half of the cases); noise correlated between channels has the
    same variance as other noise (released: less). The strength of the degradation matches the released code, single
    pixels do not.

    Raises ValueError unless both sides are multiples of `factor` and at least 8 times as long.

    >>> steps = bsr(torch.zeros(3, 64, 64, dtype=torch.uint8), factor=2, seed=0)
    >>> steps[0].name, steps[-1].name, steps[-1].picture.shape
    ('original', 'last jpeg', torch.Size([3, 32, 32]))
    """
    _check_factor(factor, picture.shape[1:])
    if min(picture.shape[1:]) < 8 * factor:
        raise ValueError(f"BSR takes pictures of 8 x factor = {8 * factor} pixels or more, got {_size(picture)}")
    rng, x = np.random.default_rng(seed), picture.permute(1, 2, 0).numpy() / 255
    h, w = (side // factor for side in picture.shape[1:])
    steps = [Step("original", picture)]

    def done(name: str, x: Pixels) -> Pixels:
        steps.append(Step(name, torch.from_numpy(np.rint(x * 255).astype(np.uint8)).permute(2, 0, 1).contiguous()))
        return x

    if factor == 4 and rng.random() < 0.25:
        factor, x = 2, done("halve", _resize(rng, x, (2 * h, 2 * w)))
    order = rng.permutation(["blur", "shrink", "resize", "noise", "jpeg"]).tolist()
    i, j = order.index("shrink"), order.index("resize")
    order[min(i, j)], order[max(i, j)] = "shrink", "resize"
    for name in order:
        match name:
            case "blur":
                x = done(name, _blur(rng, x, factor))
            case "shrink" if rng.random() < 0.8:
                by = rng.uniform(1, 2 * factor)
                x = done(name, _resize(rng, x, tuple(max(1, int(side / by)) for side in x.shape[:2])))
            case "shrink":
                x = done("stride", _stride(rng, x, factor))
            case "resize":
                x = done(name, _resize(rng, x, (h, w)))
            case "noise":
                x = done(name, _noise(rng, x))
            case "jpeg" if rng.random() < 0.9:
                x = done(name, _jpeg(rng, x))
    done("last jpeg", _jpeg(rng, x))
    return steps


def _check_factor(factor: int, size: torch.Size) -> None:
    if factor not in FACTORS:
        raise ValueError(f"factor is one of {', '.join(map(str, FACTORS))}; got {factor}")
    if size[0] % factor or size[1] % factor:
        raise ValueError(f"sides must be multiples of factor={factor}, got {size[0]} x {size[1]}")


def _size(picture: Tensor) -> str:
    return " x ".join(map(str, picture.shape[1:]))


def _blur(rng: np.random.Generator, x: Pixels, factor: int) -> Pixels:
    """Gaussian blur, anisotropic with probability 1/2; narrow, as in the light variant."""
    radius = int(rng.integers(2, 7, endpoint=True))
    if rng.random() < 0.5:
        angle, variances = rng.uniform(0, math.pi), rng.uniform(0, (4 + factor) / 4, 2)
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    else:
        turn, variances = np.eye(2), np.repeat(rng.uniform(0, (2 + 0.2 * factor) / 4) ** 2, 2)
    covariance = turn @ np.diag(variances.clip(1e-3)) @ turn.T
    return _filter(x, _gaussian(radius, covariance))


def _gaussian(radius: int, covariance: np.ndarray, centre: float = 0.0) -> np.ndarray:
    side = np.arange(-radius, radius + 1)
    grid = np.stack(np.meshgrid(side, side, indexing="ij"), -1) - centre
    exponent = -0.5 * np.einsum("hwi,ij,hwj->hw", grid, np.linalg.inv(covariance), grid)
    kernel = np.exp(exponent - exponent.max())
    return kernel / kernel.sum()


def _filter(x: Pixels, kernel: np.ndarray) -> Pixels:
    from scipy.ndimage import correlate  # a second of CPU, for BSR alone

    return correlate(x, kernel[..., None], mode="mirror").clip(0, 1)


def _stride(rng: np.random.Generator, x: Pixels, factor: int) -> Pixels:
    """Blur, then take every `factor`-th pixel; the kernel is centred on the block of pixels that one pixel replaces."""
    sigma = rng.uniform(0.1, 0.6 * factor)
    return _filter(x, _gaussian(12, sigma**2 * np.eye(2), (factor - 1) / 2))[::factor, ::factor]


def _resize(rng: np.random.Generator, x: Pixels, size: tuple[int, ...]) -> Pixels:
    """Resize by a random interpolation without antialiasing; bilinear in place of area where it enlarges."""
    mode = INTERPOLATIONS[rng.integers(3)]
    if mode == "area" and size[0] > x.shape[0]:
        mode = "bilinear"
    y = F.interpolate(torch.from_numpy(np.ascontiguousarray(x.transpose(2, 0, 1)))[None], size, mode=mode)
    return y[0].permute(1, 2, 0).numpy().clip(0, 1)


def _noise(rng: np.random.Generator, x: Pixels) -> Pixels:
    """Gaussian noise: independent by channel (probability 0.4), equal in all channels (0.4), or correlated (0.2)."""
    sigma, kind = rng.integers(*NOISE, endpoint=True) / 255, rng.random()
    if kind < 0.4:
        noise = rng.standard_normal(x.shape)
    elif kind < 0.8:
        noise = rng.standard_normal((*x.shape[:2], 1))
    else:
        mix = rng.standard_normal((3, 3))
        noise = rng.standard_normal(x.shape) @ (mix / np.linalg.norm(mix, axis=0))  # each channel of variance 1
    return (x + sigma * noise).clip(0, 1)


def _jpeg(rng: np.random.Generator, x: Pixels) -> Pixels:
    buffer = io.BytesIO()
    picture = Image.fromarray(np.rint(x * 255).astype(np.uint8))
    picture.save(buffer, "JPEG", quality=int(rng.integers(*QUALITY, endpoint=True)))
    return np.array(Image.open(buffer)) / 255
