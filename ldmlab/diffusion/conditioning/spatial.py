"""Conditions that are aligned with the picture and enter by channels: what a model sees beside z_t [LDM v2, Sec. 3.3].

A kind of condition is one class here and one row of `study.conditions.KINDS`, as in `conditioning`. Each says what it
takes of a training batch, and brings that to the size of the latent, where it is concatenated to z_t.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import lru_cache

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


class SpatialConditioner(nn.Module, ABC):
    """What is known of the picture, place by place -> `channels` beside those of z_t.

    There is nothing here that says "nothing": the paper guides no model of this kind, so none is dropped in training.
    """

    kind: str
    enters = "channels"

    def __init__(self, f: int, channels: int):
        super().__init__()
        self.f, self.channels = f, channels

    @abstractmethod
    def condition(
        self, batch: Mapping[str, Tensor], generator: torch.Generator | None = None
    ) -> Shaped[Tensor, "b ..."]:
        """y of a batch of pictures `image` (b, 3, H, W) uint8; what is random in it comes from `generator`."""

    @abstractmethod
    def picture_size(self, y: Shaped[Tensor, "b ..."]) -> tuple[int, int]:
        """(H, W) in pixels of the pictures that belong to `y`."""

    @abstractmethod
    def encode(self, y: Shaped[Tensor, "b ..."]) -> Float[Tensor, "b d h w"]:
        """The condition at the size of the latent, (b, channels, H/f, W/f)."""

    def check(self, y: Shaped[Tensor, "b ..."]) -> None:
        """ValueError for conditions that this cannot encode; called once a batch of samples, not in training."""
        h, w = self.picture_size(y)
        if h % self.f or w % self.f or min(h, w) < self.f:
            raise ValueError(f"pictures have sides that are multiples of f = {self.f}, got {h} x {w}; pad them first")

    def forward(self, y: Shaped[Tensor, "b ..."]) -> Float[Tensor, "b d h w"]:
        return self.encode(y)


class LowResolution(SpatialConditioner):
    """The picture, smaller by `factor`: super-resolution [LDM v2, Sec. 4.4]. y is (b, 3, H/factor, W/factor), [-1, 1].

    In the paper `factor` is f, and y has the latent's size as it is. Where y is larger, squares of its pixels become
    channels, so nothing is lost; where it is smaller, it is enlarged, bicubically as in pixel-space models [SR3].
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
        """3, or more where y is larger than the latent."""
        return 3 * max(1, f // factor) ** 2

    def condition(self, batch, generator=None) -> Float[Tensor, "b 3 h2 w2"]:
        """The pictures, spoiled by `degradation`."""
        seed = int(torch.randint(2**31, (), generator=generator))
        return to_float(degrade(batch["image"], self.factor, self.degradation, seed))

    def picture_size(self, y) -> tuple[int, int]:
        return y.shape[2] * self.factor, y.shape[3] * self.factor

    def check(self, y) -> None:
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
    """The picture with a hole, and where the hole is: inpainting [LDM v2, Sec. 4.5]. y is (b, 4, H, W), the mask last.

    `encode_picture` is the first stage's, pictures -> scaled latents of `latent_channels`; it learns nothing here.
    Training masks are of all kinds of `data.masks` in equal shares, drawn once and then taken at random.
    """

    kind = "mask"

    def __init__(self, f: int, latent_channels: int, encode_picture: Callable[[Tensor], Tensor]):
        super().__init__(f, latent_channels + 1)
        self.encode_picture = encode_picture

    def condition(self, batch, generator=None) -> Float[Tensor, "b 4 H W"]:
        """The pictures with a random mask each."""
        x = to_float(batch["image"])
        bank = _mask_bank(*x.shape[2:])
        chosen = torch.randint(len(bank), (len(x),), generator=generator)
        return torch.cat([x, bank[chosen].to(x)], 1)

    def picture_size(self, y) -> tuple[int, int]:
        return y.shape[2], y.shape[3]

    def check(self, y) -> None:
        if y.ndim != 4 or y.shape[1] != 4:
            raise ValueError(f"pictures with their masks are (b, 4, H, W), got {tuple(y.shape)}")
        super().check(y)

    def encode(self, y: Float[Tensor, "b 4 H W"]) -> Float[Tensor, "b d h w"]:
        with torch.no_grad():
            return inpainting_condition(y[:, :3], y[:, 3:], self.encode_picture)


class LabelMap(SpatialConditioner):
    """What stands where: semantic synthesis [LDM v2, Sec. 4.3.2]. y is (b, H, W), labels 0 to num_labels - 1.

    A rescaler that is trained with the denoiser halves the map log2(f) times and mixes its labels into `channels`.
    """

    kind = "labels"

    def __init__(self, f: int, num_labels: int, channels: int):
        super().__init__(f, channels)
        self.num_labels = num_labels
        self.rescaler = SpatialRescaler(f.bit_length() - 1, num_labels, channels)

    def condition(self, batch, generator=None) -> Int[Tensor, "b H W"]:
        """The label maps."""
        return batch["map"].long()

    def picture_size(self, y) -> tuple[int, int]:
        return y.shape[1], y.shape[2]

    def check(self, y) -> None:
        if y.ndim != 3:
            raise ValueError(f"label maps are (b, H, W), got {tuple(y.shape)}")
        if y.numel() and not 0 <= y.min() <= y.max() < self.num_labels:
            raise ValueError(f"labels are 0 to {self.num_labels - 1}; got {y.min().item()} to {y.max().item()}")
        super().check(y)

    def encode(self, y: Int[Tensor, "b H W"]) -> Float[Tensor, "b d h w"]:
        return self.rescaler(one_hot(y, self.num_labels))


class WithPictures(Dataset):
    """Latents with the pictures that they are of, and their label maps where asked for; mirrored alike.

    `pictures` are `MirroredImages`, in the order of the latents.
    """

    def __init__(self, latents: Dataset, pictures: Dataset, maps: bool = False):
        if len(pictures) != len(latents):
            raise ValueError(f"{len(latents)} latents, mirror images included, are not of {len(pictures)} pictures")
        self.latents, self.pictures, self.maps = latents, pictures, maps
        self.first_stage, self.is_kept = latents.first_stage, latents.is_kept and pictures.is_kept

    def __len__(self) -> int:
        return len(self.latents)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        batch = self.latents.__getitems__(indices) | {"image": self.pictures.__getitems__(indices)["image"]}
        if self.maps:
            n = len(self.pictures.images)
            maps = self.pictures.images.maps([i % n for i in indices])
            mirrored = torch.tensor([i >= n for i in indices])[:, None, None]
            batch["map"] = torch.where(mirrored, maps.flip(2), maps)
        return batch
