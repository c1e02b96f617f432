"""Families of pictures in an order of quality that is known by construction, to test what a metric sees.

Each family starts with true pictures and gets worse from level to level: in quality (blur, noise, JPEG, resampling,
reconstruction, shuffled patches, random phases, a checkerboard), in variety (fewer classes, fewer distinct pictures),
or in novelty (copies of training pictures).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from ldmlab.data.images import quantize_8bit
from ldmlab.evaluation.distortions import degrade

PATCH = 8  # side in pixels of the patches of the linear autoencoder
Levels = dict[str, Float[Tensor, "n 3 h w"]]  # name -> pictures in [-1, 1], best first


@dataclass(frozen=True)
class Material:
    """What families are made of: n true pictures, m others that are the reference, and labels where there are any.

    `reconstructions` are reconstructed `true` pictures by name, best first, such as by the study's first stages.
    """

    true: Float[Tensor, "n 3 h w"]
    train: Float[Tensor, "m 3 h w"]
    labels: Int[Tensor, " n"] | None = None
    reconstructions: Mapping[str, Float[Tensor, "n 3 h w"]] = field(default_factory=dict)
    seed: int = 0

    @property
    def scale(self) -> float:
        """Lengths are those of 32 px times this."""
        return self.true.shape[-1] / 32


@dataclass(frozen=True)
class Family:
    """One family; `levels` makes those after the true pictures, none where the material lacks what it needs."""

    name: str
    loses: str  # "quality", "variety" or "novelty"
    levels: Callable[[Material], Levels]
    paired: bool = True  # picture i of each level was made from true picture i

    def make(self, material: Material) -> Levels:
        """All levels, the true pictures first, rounded to 8 bits; empty where the family cannot be made."""
        made = self.levels(material)
        return {"true": quantize_8bit(material.true)} | {k: quantize_8bit(x) for k, x in made.items()} if made else {}


def _generator(material: Material) -> torch.Generator:
    return torch.Generator().manual_seed(material.seed)


def _degraded(
    kind: str, strengths: Sequence[float | int], unit: str, scaled: bool = False
) -> Callable[[Material], Levels]:
    def levels(material: Material) -> Levels:
        factor = material.scale if scaled else 1
        return {f"{strength * factor:g}{unit}": degrade(material.true, kind, strength * factor, material.seed)
                for strength in strengths}
    return levels


def resampled(x: Float[Tensor, "n 3 h w"], factor: int) -> Float[Tensor, "n 3 h w"]:
    """Pictures made small by a factor and enlarged again, bicubic and antialiased."""
    small = F.interpolate(x, scale_factor=1 / factor, mode="bicubic", antialias=True)
    return F.interpolate(small, x.shape[2:], mode="bicubic", antialias=True)


def _resampled(material: Material) -> Levels:
    return {f"by {factor}": resampled(material.true, factor) for factor in (2, 4, 8)}


def linear_reconstructions(
    x: Float[Tensor, "n 3 h w"], train: Float[Tensor, "m 3 h w"], kept: tuple[int, ...]
) -> dict[int, Float[Tensor, "n 3 h w"]]:
    """Reconstructions by the best linear autoencoders of patches: principal components, fitted on `train`.

    With fewer components the squared error is larger, by construction.
    """
    flat, size = F.unfold(train, PATCH, stride=PATCH).transpose(1, 2).flatten(0, 1), x.shape[2:]
    mean = flat.mean(0)
    _, directions = torch.linalg.eigh(torch.cov(flat.T.double()))
    codes = (F.unfold(x, PATCH, stride=PATCH) - mean[:, None]).double()
    found = {}
    for k in kept:
        basis = directions[:, -k:]
        patches = (basis @ (basis.T @ codes)).float() + mean[:, None]
        found[k] = F.fold(patches, size, PATCH, stride=PATCH)
    return found


def _linear(material: Material) -> Levels:
    made = linear_reconstructions(material.true, material.train, (48, 16, 6, 3))
    return {f"{k} of {3 * PATCH**2}": x for k, x in made.items()}


def _shuffled(material: Material) -> Levels:
    side = material.true.shape[-1]
    return {f"{patch} px": degrade(material.true, "shuffle", side // patch, material.seed)
            for patch in (16, 8, 4) if side > patch}


def with_random_phases(
    x: Float[Tensor, "n 3 h w"], share: float, generator: torch.Generator
) -> Float[Tensor, "n 3 h w"]:
    """Pictures whose spectrum keeps its magnitude, with phases moved by `share` of a random angle, the same in colours.

    With `share` = 1 the phases are uniform: power spectrum and colours are left, and no object.
    """
    noise = torch.rand(len(x), 1, *x.shape[2:], generator=generator) - 0.5
    angle = torch.angle(torch.fft.rfft2(noise))  # those of a real picture, so that the result is real
    angle[..., 0, 0] = 0.0  # the mean colour stays
    return torch.fft.irfft2(torch.fft.rfft2(x) * torch.polar(torch.ones_like(angle), share * angle), s=x.shape[2:])


def _phases(material: Material) -> Levels:
    return {f"{share:.0%}": with_random_phases(material.true, share, _generator(material))
            for share in (0.1, 0.2, 0.4, 1.0)}


def with_spectral_noise(
    x: Float[Tensor, "n 3 h w"], sigma: float, generator: torch.Generator
) -> Float[Tensor, "n 3 h w"]:
    """Blurred pictures, to which noise with the spectrum of what the blur took away is added."""
    blurred = degrade(x, "blur", sigma)
    return blurred + with_random_phases(x - blurred, 1.0, generator)


def _spectral(material: Material) -> Levels:
    return {f"{sigma * material.scale:g} px": with_spectral_noise(material.true, sigma * material.scale,
                                                                  _generator(material)) for sigma in (0.5, 1.0, 2.0)}


def _no_structure(better: Callable[[Material], Levels], name: str) -> Callable[[Material], Levels]:
    """Pictures that can be recognised, then pictures without any structure."""
    def levels(material: Material) -> Levels:
        made = list(better(material).values())
        x = made[(len(made) - 1) // 2]  # the middle one: of the worst, little can be recognised
        return {name: x, "random phases": with_random_phases(material.true, 1.0, _generator(material))}
    return levels


def _checkerboard(material: Material) -> Levels:
    rows, columns = (torch.arange(side) for side in material.true.shape[2:])
    board = 1.0 - 2.0 * ((rows[:, None] + columns) % 2)
    return {f"{amplitude:.0%}": material.true + 2 * amplitude * board for amplitude in (0.01, 0.02, 0.05, 0.1)}


def _reconstructed(material: Material) -> Levels:
    return dict(material.reconstructions)


def _fewer_classes(material: Material) -> Levels:
    """As many pictures, of half of the classes, a quarter, and one; drawn with replacement."""
    if material.labels is None or len(classes := material.labels.unique()) < 4:
        return {}
    levels = {}
    for num in (len(classes) // 2, len(classes) // 4, 1):
        rows = torch.isin(material.labels, classes[:num]).nonzero()[:, 0]
        drawn = torch.randint(len(rows), (len(material.true),), generator=_generator(material))
        levels[f"{num} of {len(classes)}"] = material.true[rows[drawn]]
    return levels


def _fewer_distinct(material: Material) -> Levels:
    n = len(material.true)
    return {f"1/{part} distinct": material.true[torch.arange(n) % max(1, n // part)] for part in (4, 16, 64)}


def _copies(material: Material) -> Levels:
    """Half of the pictures, and all, are training pictures."""
    n = min(len(material.true), len(material.train))
    half = torch.cat([material.train[: n // 2], material.true[n // 2 :]])
    return {"half copies": half, "all copies": material.train[torch.arange(len(material.true)) % len(material.train)]}


FAMILIES: dict[str, Family] = {family.name: family for family in (
    Family("blur", "quality", _degraded("blur", (0.5, 1.0, 2.0), " px", scaled=True)),
    Family("noise", "quality", _degraded("noise", (0.05, 0.1, 0.2, 0.4), "")),
    Family("JPEG", "quality", _degraded("jpeg", (80, 40, 15, 5), "")),
    Family("resampling", "quality", _resampled),
    Family("linear autoencoder", "quality", _linear),
    Family("first stages", "quality", _reconstructed),
    Family("shuffled patches", "quality", _shuffled),
    Family("random phases", "quality", _phases),
    Family("blur + spectral noise", "quality", _spectral),
    Family("blurred, then no structure", "quality",
           _no_structure(_degraded("blur", (1.0,), "", scaled=True), "blurred")),
    Family("reconstructed, then no structure", "quality",
           _no_structure(lambda material: _reconstructed(material) or _linear(material), "reconstructed")),
    Family("checkerboard", "quality", _checkerboard),
    Family("fewer classes", "variety", _fewer_classes, paired=False),
    Family("fewer distinct pictures", "variety", _fewer_distinct, paired=False),
    Family("copies", "novelty", _copies, paired=False),
)}
