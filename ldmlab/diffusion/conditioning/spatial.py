"""Conditions aligned with the picture, concatenated to the channels of z_t [LDM v2, Sec. 3.3].

A kind of condition is one class here, as for token conditions in `tokens`, and one row of
`study.config.conditions.KINDS`. The class makes the condition from a training batch and resizes it to the latent.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from ldmlab.data.degradation import DEGRADATIONS, FACTORS, degrade
from ldmlab.data.images import to_float
from ldmlab.data.masks import KINDS, inpainting_masks
from ldmlab.diffusion.conditioning.spatial_ops import SpatialRescaler, inpainting_condition, one_hot

MASK_BANK_PIXELS = 1 << 25  # masks drawn before training: as many as have this many pixels together, at most MASK_BANK
MASK_BANK = 1536


@runtime_checkable
class BatchDataset(Protocol):
    """A data set that is read in batches."""

    def __len__(self) -> int: ...

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]: ...


@runtime_checkable
class LatentDataset(BatchDataset, Protocol):
    """Cached latents and those of the mirror images, such as `first_stage.latents.Latents`."""

    @property
    def first_stage(self) -> str:
        """Hash of the first stage's weights."""

    @property
    def is_decoded(self) -> bool:
        """Whether a batch needs no picture to be decoded."""


class SpatialConditioner(nn.Module, ABC):
    """A condition with spatial structure -> (b, `channels`, h, w), concatenated to z_t.

    It has no null condition and is never dropped in training: the paper guides no model of this kind.
    """

    kind: str
    injected_as = "channels"  # concatenated to z_t

    def __init__(self, f: int, channels: int):
        super().__init__()
        self.f, self.channels = f, channels

    @abstractmethod
    def condition(
        self, batch: Mapping[str, Tensor], generator: torch.Generator | None = None
    ) -> Shaped[Tensor, "b ..."]:
        """y of a batch of pictures `image` (b, 3, H, W) uint8; random parts are drawn from `generator`."""

    @abstractmethod
    def picture_size(self, y: Shaped[Tensor, "b ..."]) -> tuple[int, int]:
        """(H, W) in pixels of the pictures that belong to `y`."""

    @abstractmethod
    def encode(self, y: Shaped[Tensor, "b ..."]) -> Float[Tensor, "b d h w"]:
        """The condition at the size of the latent, (b, channels, H/f, W/f)."""

    def check(self, y: Shaped[Tensor, "b ..."]) -> None:
        """ValueError for conditions that cannot be encoded; called once for a batch of samples, not in training."""
        h, w = self.picture_size(y)
        if h % self.f or w % self.f or min(h, w) < self.f:
            raise ValueError(f"pictures have sides that are multiples of f = {self.f}, got {h} x {w}; pad them first")

    def forward(self, y: Shaped[Tensor, "b ..."]) -> Float[Tensor, "b d h w"]:
        """The same as `encode`."""
        return self.encode(y)


class LowResolution(SpatialConditioner):
    """Super-resolution: the picture smaller by `factor` [LDM v2, Sec. 4.4]. y is (b, 3, H/factor, W/factor), [-1, 1].

    In the paper `factor` is f, so y has the latent's size. A larger y is rearranged by pixel unshuffling, without loss;
    a smaller one is enlarged bicubically, as in pixel-space models [SR3]. ValueError for an unknown factor or
    degradation.
    """

    kind = "low_resolution"

    def __init__(self, f: int, factor: int, degradation: str = "bicubic"):
        if factor not in FACTORS or degradation not in DEGRADATIONS:
            raise ValueError(f"factor is one of {', '.join(map(str, FACTORS))} and degradation one of "
                             f"{', '.join(DEGRADATIONS)}; got {factor}, {degradation!r}")
        super().__init__(f, self.num_channels(f, factor))
        self.factor, self.degradation = factor, degradation

    @staticmethod
    def num_channels(f: int, factor: int) -> int:
        """The channels of the condition: 3, or 3 (f / factor)^2 where y is larger than the latent."""
        return 3 * max(1, f // factor) ** 2

    def condition(
        self, batch: Mapping[str, Tensor], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b 3 h2 w2"]:
        """The pictures, degraded by `degradation` and smaller by `factor`, in [-1, 1]."""
        seed = int(torch.randint(2**31, (), generator=generator))
        return to_float(degrade(batch["image"], self.factor, self.degradation, seed))

    def picture_size(self, y: Shaped[Tensor, "b ..."]) -> tuple[int, int]:
        return y.shape[2] * self.factor, y.shape[3] * self.factor

    def check(self, y: Shaped[Tensor, "b ..."]) -> None:
        if y.ndim != 4 or y.shape[1] != 3:
            raise ValueError(f"low-resolution pictures are (b, 3, h, w), got {tuple(y.shape)}")
        super().check(y)

    def encode(self, y: Float[Tensor, "b 3 h2 w2"]) -> Float[Tensor, "b d h w"]:
        if self.f > self.factor:
            return F.pixel_unshuffle(y, self.f // self.factor)
        return y if self.f == self.factor else F.interpolate(y, scale_factor=self.factor // self.f, mode="bicubic")


@lru_cache(maxsize=4)
def _mask_bank(h: int, w: int) -> Float[Tensor, "n 1 h w"]:
    """Masks of all kinds in equal shares; drawn once a process, which takes seconds, and not to be changed."""
    n = max(1, min(MASK_BANK, MASK_BANK_PIXELS // (h * w)) // len(KINDS))
    return torch.cat([inpainting_masks(n, (h, w), kind, seed=0) for kind in KINDS])


class MaskedPicture(SpatialConditioner):
    """Inpainting: the picture, and a mask that is 1 in its hole [LDM v2, Sec. 4.5]. y is (b, 4, H, W), the mask last.

    `encode_picture` is the first stage's, pictures -> scaled latents of `latent_channels`; it is not trained. Training
    masks are of all kinds of `data.masks` in equal shares; a bank of them is drawn once and sampled from.
    """

    kind = "mask"

    def __init__(self, f: int, latent_channels: int, encode_picture: Callable[[Tensor], Tensor]):
        super().__init__(f, latent_channels + 1)
        self.encode_picture = encode_picture

    def condition(
        self, batch: Mapping[str, Tensor], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b 4 H W"]:
        """The pictures in [-1, 1], whole, with a random mask each."""
        x = to_float(batch["image"])
        bank = _mask_bank(*x.shape[2:])
        chosen = torch.randint(len(bank), (len(x),), generator=generator)
        return torch.cat([x, bank[chosen].to(x)], 1)

    def picture_size(self, y: Shaped[Tensor, "b ..."]) -> tuple[int, int]:
        return y.shape[2], y.shape[3]

    def check(self, y: Shaped[Tensor, "b ..."]) -> None:
        if y.ndim != 4 or y.shape[1] != 4:
            raise ValueError(f"pictures with their masks are (b, 4, H, W), got {tuple(y.shape)}")
        super().check(y)

    def encode(self, y: Float[Tensor, "b 4 H W"]) -> Float[Tensor, "b d h w"]:
        with torch.no_grad():
            return inpainting_condition(y[:, :3], y[:, 3:], self.encode_picture)


class LabelMap(SpatialConditioner):
    """Semantic synthesis: a label map [LDM v2, Sec. 4.3.2]. y is (b, H, W), labels 0 to num_labels - 1.

    A rescaler that is trained with the denoiser halves the map log2(f) times and maps its labels to `channels`.
    """

    kind = "labels"

    def __init__(self, f: int, num_labels: int, channels: int):
        super().__init__(f, channels)
        self.num_labels = num_labels
        self.rescaler = SpatialRescaler(f.bit_length() - 1, num_labels, channels)

    def condition(
        self, batch: Mapping[str, Tensor], generator: torch.Generator | None = None
    ) -> Int[Tensor, "b H W"]:
        """The label maps."""
        return batch["map"].long()

    def picture_size(self, y: Shaped[Tensor, "b ..."]) -> tuple[int, int]:
        return y.shape[1], y.shape[2]

    def check(self, y: Shaped[Tensor, "b ..."]) -> None:
        if y.ndim != 3:
            raise ValueError(f"label maps are (b, H, W), got {tuple(y.shape)}")
        if y.numel() and not 0 <= y.min() <= y.max() < self.num_labels:
            raise ValueError(f"labels are 0 to {self.num_labels - 1}; got {y.min().item()} to {y.max().item()}")
        super().check(y)

    def encode(self, y: Int[Tensor, "b H W"]) -> Float[Tensor, "b d h w"]:
        return self.rescaler(one_hot(y, self.num_labels))


class WithPictures(Dataset[dict[str, Tensor]]):
    """Latents with the pictures that they are of, and with `maps` their label maps; index i + n is mirrored.

    `pictures` are `MirroredImages`, in the order of the latents; ValueError unless there are as many.
    """

    def __init__(self, latents: LatentDataset, pictures: Any, maps: bool = False):
        if len(pictures) != len(latents):
            raise ValueError(f"there must be one picture a latent, mirror images included; got {len(latents)} latents "
                             f"and {len(pictures)} pictures")
        self.latents, self.pictures, self.maps = latents, pictures, maps
        self.first_stage, self.is_decoded = latents.first_stage, latents.is_decoded and pictures.is_decoded

    def __len__(self) -> int:
        return len(self.latents)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """A batch: that of the latents, `image` (b, 3, H, W) uint8 and, with `maps`, `map` (b, H, W)."""
        batch = self.latents.__getitems__(indices) | {"image": self.pictures.__getitems__(indices)["image"]}
        if self.maps:
            n = len(self.pictures.images)
            maps = self.pictures.images.maps([i % n for i in indices])
            mirrored = torch.tensor([i >= n for i in indices])[:, None, None]
            batch["map"] = torch.where(mirrored, maps.flip(2), maps)
        return batch
