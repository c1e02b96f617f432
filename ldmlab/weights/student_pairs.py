"""Pairs of pictures from which the student of LPIPS learns: sources of pictures, kinds of distortion, labels.

TRAINED kinds make training pairs; HELD_OUT kinds are kept for the validation alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from lpips import normalize_tensor
from torch import Tensor
from torch.nn import functional as F

from ldmlab.data.images import open_dataset, to_float
from ldmlab.data.scenes.scene import render_scene
from ldmlab.evaluation.distortions import degrade
from ldmlab.evaluation.ranking.families import with_random_phases
from ldmlab.perception.losses import LpipsLoss

GROUP = 8  # pictures that are distorted together, by one kind and strength

Random = torch.Generator
Distortion = Callable[[Tensor, float, Random], Tensor]  # (pictures (n, 3, h, w), strength in [0, 1], generator)


def _uniform(generator: Random, low: float = 0.0, high: float = 1.0, size: Sequence[int] = ()) -> Tensor:
    return low + (high - low) * torch.rand(size, generator=generator)


def _one_of(generator: Random, choices: Sequence[int]) -> int:
    return choices[int(torch.randint(len(choices), (), generator=generator))]


def _degraded(kind: str, low: float, high: float, x: Tensor, t: float, generator: Random) -> Tensor:
    seed = int(torch.randint(2**31, (), generator=generator))
    return degrade(x, kind, low * (high / low) ** t, seed)


def _resample(x: Tensor, t: float, generator: Random) -> Tensor:
    side = max(2, round(x.shape[2] * 0.9 * 0.15**t))
    up = ("nearest", "bilinear", "bicubic")[_one_of(generator, range(3))]
    return F.interpolate(F.interpolate(x, (side, side), mode="bilinear", antialias=True), x.shape[2:], mode=up)


def _colour(x: Tensor, t: float, generator: Random) -> Tensor:
    amount = 0.02 * 30**t
    gain, offset = (_uniform(generator, -amount, amount, (len(x), 3, 1, 1)) for _ in range(2))
    common = _uniform(generator, -amount, amount, (len(x), 1, 1, 1))
    grey = x.mean(1, keepdim=True)
    return (grey + (x - grey) * (1 + 2 * common)) * (1 + gain) + 0.5 * offset


def _shift(x: Tensor, t: float, generator: Random) -> Tensor:
    pixels = 0.1 * 40**t
    angle = _uniform(generator, 0.0, 2 * torch.pi, (len(x),))
    theta = torch.eye(2, 3).repeat(len(x), 1, 1)
    theta[:, :, 2] = 2 * pixels / x.shape[2] * torch.stack([angle.cos(), angle.sin()], 1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bicubic", padding_mode="reflection", align_corners=False)


def _shuffle(x: Tensor, t: float, generator: Random) -> Tensor:
    seed = int(torch.randint(2**31, (), generator=generator))
    y = degrade(x, "shuffle", (2, 4, 8, 16)[_one_of(generator, range(4))], seed)
    return x + t * (y - x)


def _mix(x: Tensor, t: float, generator: Random) -> Tensor:
    return x + 0.03 * 33**t * (x.roll(1, 0) - x)


def _quantise(x: Tensor, t: float, generator: Random) -> Tensor:
    levels = round(24 * (2 / 24) ** t)
    return ((x + 1) / 2 * (levels - 1)).round() / (levels - 1) * 2 - 1


def _pattern(x: Tensor, t: float, generator: Random) -> Tensor:
    """A checkerboard, lines or a lattice of dots, in one colour or grey, that repeats every 2, 4 or 8 pixels."""
    period, kind = _one_of(generator, (2, 2, 4, 8)), _one_of(generator, range(3))
    i = torch.arange(x.shape[2])
    rows, columns = torch.meshgrid((i % period < period / 2).float(), (i % period < period / 2).float(), indexing="ij")
    dots = ((i % period == 0)[:, None] & (i % period == 0)[None]).float() * period**2 / 4
    pattern = ((rows - columns).abs(), rows, dots)[kind]
    colour = _uniform(generator, -1.0, 1.0, (len(x), 3, 1, 1)) if _one_of(generator, range(2)) else torch.ones(1)
    return x + 0.01 * 40**t * (pattern - pattern.mean()) * 2 * colour


def _sharpen(x: Tensor, t: float, generator: Random) -> Tensor:
    return x + 0.1 * 20**t * (x - degrade(x, "blur", 1.0))


TRAINED: dict[str, Distortion] = {
    "blur": partial(_degraded, "blur", 0.25, 4.0),
    "noise": partial(_degraded, "noise", 0.01, 0.8),
    "jpeg": partial(_degraded, "jpeg", 95.0, 3.0),
    "resample": _resample,
    "colour": _colour,
    "shift": _shift,
    "shuffle": _shuffle,
    "mix": _mix,
    "quantise": _quantise,
    "pattern": _pattern,
    "sharpen": _sharpen,
}


def _warp(x: Tensor, t: float, generator: Random) -> Tensor:
    """Smooth random displacement, up to some pixels."""
    coarse = torch.randn(len(x), 2, 4, 4, generator=generator) * 0.15 * 20**t * 2 / x.shape[2]
    field = F.interpolate(coarse, x.shape[2:], mode="bicubic").permute(0, 2, 3, 1)
    grid = F.affine_grid(torch.eye(2, 3).repeat(len(x), 1, 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid + field, mode="bilinear", padding_mode="reflection", align_corners=False)


def _salt(x: Tensor, t: float, generator: Random) -> Tensor:
    drawn = _uniform(generator, size=(len(x), 1, *x.shape[2:]))
    share = 0.002 * 100**t
    return torch.where(drawn < share / 2, -1.0, torch.where(drawn > 1 - share / 2, 1.0, x))


def _motion(x: Tensor, t: float, generator: Random) -> Tensor:
    length = 2 + round(9 * t)
    kernel = torch.ones(3, 1, 1, length) / length
    y = F.conv2d(F.pad(x, (length // 2, (length - 1) // 2, 0, 0), mode="reflect"), kernel, groups=3)
    return y


def _phases(x: Tensor, t: float, generator: Random) -> Tensor:
    """Phases of the spectrum turned at random by up to `t` half turns; the same for all channels."""
    return with_random_phases(x, t, generator)


def _median(x: Tensor, t: float, generator: Random) -> Tensor:
    k = (3, 5, 7)[min(2, int(3 * t))]
    windows = F.pad(x, [k // 2] * 4, mode="reflect").unfold(2, k, 1).unfold(3, k, 1)
    return windows.flatten(4).median(4).values


def _grating(x: Tensor, t: float, generator: Random) -> Tensor:
    i = torch.arange(x.shape[2]).float()
    frequency = _uniform(generator, 0.03, 0.5, (len(x), 2, 1, 1)) * 2 * torch.pi
    wave = (frequency[:, 0] * i[:, None] + frequency[:, 1] * i).sin()
    return x + 0.02 * 25**t * wave[:, None]


def _occlude(x: Tensor, t: float, generator: Random) -> Tensor:
    side = max(2, round(x.shape[2] * (0.1 + 0.6 * t)))
    top, left = (_one_of(generator, range(x.shape[2] - side + 1)) for _ in range(2))
    y = x.clone()
    y[:, :, top : top + side, left : left + side] = 0
    return y


def _clouds(x: Tensor, t: float, generator: Random) -> Tensor:
    coarse = torch.randn(len(x), 3, _one_of(generator, (4, 8)), 8, generator=generator)
    return x + 0.02 * 30**t * F.interpolate(coarse, x.shape[2:], mode="bicubic")


HELD_OUT: dict[str, Distortion] = {
    "warp": _warp,
    "salt and pepper": _salt,
    "motion blur": _motion,
    "random phases": _phases,
    "median": _median,
    "grating": _grating,
    "occlusion": _occlude,
    "clouds": _clouds,
}


def distort(
    x: Float[Tensor, "n 3 h w"], kinds: dict[str, Distortion], generator: Random, *, two: float = 0.0
) -> tuple[Float[Tensor, "n 3 h w"], list[str]]:
    """Distort pictures in groups of GROUP, each by a random kind and strength; a share `two` by two kinds in turn.

    Returns the distorted pictures, in [-1, 1], and the (first) kind of each.
    """
    names, parts, of = list(kinds), [], []
    for part in x.split(GROUP):
        chosen = [_one_of(generator, range(len(names))) for _ in range(1 + (float(_uniform(generator)) < two))]
        y = part
        for i in chosen:
            y = kinds[names[i]](y, float(_uniform(generator)), generator).clamp(-1, 1)
        parts.append(y)
        of += [names[chosen[0]]] * len(part)
    return torch.cat(parts), of


def scene_pictures(seed: int, split: str, num: int, size: int) -> Float[Tensor, "n 3 s s"]:
    """The first `num` pictures of a split of `scenes`, in [-1, 1]."""
    return to_float(torch.stack([render_scene(seed, split, i, size).image for i in range(num)]))


def photographs(
    source: str, size: int, num: int, generator: Random, *, held_out: bool
) -> Float[Tensor, "n 3 s s"] | None:
    """`num` random square crops of at least `size` px, resized to it, from `source`, given as PATH@SIDE.

    Its pictures are read at SIDE px; None where that is less than `size`. A random tenth of the pictures, the same at
    any `size`, is held out: it is used if `held_out`, and the others otherwise.
    """
    path, _, side = source.rpartition("@")
    if not path or not side.isdigit():
        raise ValueError(f"pictures are given as PATH@SIDE, with SIDE in pixels, got {source!r}")
    if int(side) < size:
        return None
    data = open_dataset(path, size=int(side))
    order = torch.randperm(len(data), generator=Random().manual_seed(0))
    kept = order[: len(order) // 10] if held_out else order[len(order) // 10 :]
    chosen = kept[torch.randint(len(kept), (num,), generator=generator)].tolist()
    crops = []
    for picture in to_float(data.images(chosen)):
        crop = _one_of(generator, range(size, int(side) + 1))
        top, left = (_one_of(generator, range(int(side) - crop + 1)) for _ in range(2))
        part = picture[None, :, top : top + crop, left : left + crop]
        crops.append(F.interpolate(part, (size, size), mode="bicubic", antialias=True).clamp(-1, 1))
    return torch.cat(crops)


@dataclass(frozen=True)
class Pairs:
    """Pairs of pictures with what LPIPS says of them: the distance at each position of each layer, and the gradient."""

    x: Tensor  # (n, 3, s, s)
    y: Tensor  # (n, 3, s, s)
    maps: list[Tensor]  # (n, s', s') by layer; LPIPS is the sum of their means
    gradient: Tensor  # (n, 3, s, s), of LPIPS by y

    @property
    def distance(self) -> Tensor:
        """LPIPS of each pair, (n,)."""
        return mean_distance(self.maps)

    def __getitem__(self, chosen: Tensor) -> "Pairs":
        return Pairs(self.x[chosen], self.y[chosen], [m[chosen] for m in self.maps], self.gradient[chosen])

    def mirrored(self) -> "Pairs":
        """The pairs, left and right exchanged."""
        return Pairs(self.x.flip(3), self.y.flip(3), [m.flip(2) for m in self.maps], self.gradient.flip(3))


def mean_distance(maps: list[Tensor]) -> Tensor:
    """Sum over layers of the mean over positions, (n,)."""
    return torch.stack([m.mean((1, 2)) for m in maps]).sum(0)


def joined(parts: list[Pairs]) -> Pairs:
    """One set of pairs from several of one size."""
    maps = [torch.cat(layer) for layer in zip(*(p.maps for p in parts), strict=True)]
    x, y, gradient = (torch.cat([getattr(p, name) for p in parts]) for name in ("x", "y", "gradient"))
    return Pairs(x, y, maps, gradient)


def label(teacher: LpipsLoss, x: Tensor, y: Tensor) -> Pairs:
    """Pairs with what the teacher says of them."""
    model, parts = teacher.model, []
    for a, b in zip(x.split(32), y.split(32), strict=True):
        b = b.clone().requires_grad_()
        features = zip(*(model.net(model.scaling_layer(p)) for p in (a, b)), model.lins, strict=True)
        maps = [lin((normalize_tensor(p) - normalize_tensor(q)).square())[:, 0] for p, q, lin in features]
        (gradient,) = torch.autograd.grad(mean_distance(maps).sum(), b)
        parts.append(Pairs(a, b.detach(), [m.detach() for m in maps], gradient))
    return joined(parts)
