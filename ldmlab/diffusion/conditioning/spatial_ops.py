"""Operations for conditions that are concatenated to the channels of z_t [LDM v2, Sec. 3.3, 4.3.2, 4.5].

A denoiser of z_t (b, c, h, w) and a condition (b, d, h, w) has `in_channels` c + d and takes `torch.cat([z_t, c], 1)`,
the noisy latent first, as released.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

METHODS = ("nearest", "bilinear", "bicubic", "area")


class SpatialRescaler(nn.Module):
    """Label maps at the size of the picture -> channels at the size of z_t [LDM v2, Sec. 4.3.2].

    Resizes `num_stages` times by `factor`, then maps `in_channels` to `out_channels` by a 1x1 convolution, without bias
    as released; if `out_channels` is None, it only resizes. The released landscape models have 2 stages, 182 -> 3. As
    released, there is no antialiasing: halving by "bilinear" is a mean over 2 x 2 pixels, which needs none. ValueError
    for negative stages, channels below 1, a factor outside (0, 1] or an unknown method.
    """

    def __init__(
        self, num_stages: int, in_channels: int, out_channels: int | None = None, *, method: str = "bilinear",
        factor: float | int = 0.5, bias: bool = False,
    ):
        super().__init__()
        if num_stages < 0 or in_channels < 1 or (out_channels is not None and out_channels < 1):
            raise ValueError(f"need num_stages >= 0 and positive channels, got {num_stages=}, {in_channels=}, "
                             f"{out_channels=}")
        if method not in METHODS:
            raise ValueError(f"method is one of {', '.join(METHODS)}; got {method!r}")
        if not 0 < factor <= 1:
            raise ValueError(f"factor must be in (0, 1], got {factor}")
        self.num_stages, self.in_channels, self.method, self.factor = num_stages, in_channels, method, factor
        self.channel_mapper = None if out_channels is None else nn.Conv2d(in_channels, out_channels, 1, bias=bias)

    def forward(self, y: Float[Tensor, "b d_in H W"]) -> Float[Tensor, "b d h w"]:
        """One-hot maps (see `one_hot`) -> the condition; ValueError for other channels, and for maps too small."""
        if y.shape[1] != self.in_channels:
            raise ValueError(f"this rescaler takes {self.in_channels} channels, got {y.shape[1]}")
        for _ in range(self.num_stages):
            if min(y.shape[2:]) * self.factor < 1:
                raise ValueError(f"maps are too small for {self.num_stages} stages of {self.factor}: "
                                 f"{y.shape[2]} x {y.shape[3]} before the last")
            y = F.interpolate(y, scale_factor=self.factor, mode=self.method)
        return y if self.channel_mapper is None else self.channel_mapper(y)


def one_hot(labels: Int[Tensor, "b h w"], num_labels: int) -> Float[Tensor, "b num_labels h w"]:
    """One channel a label, 1 where the map has that label, else 0; ValueError for labels not in 0..num_labels - 1."""
    if labels.numel() and not 0 <= labels.min() <= labels.max() < num_labels:
        raise ValueError(f"labels are 0 to {num_labels - 1}; got {labels.min().item()} to {labels.max().item()}")
    return F.one_hot(labels.long(), num_labels).movedim(-1, 1).float()


def masked(x: Float[Tensor, "b c H W"], mask: Float[Tensor, "#b 1 H2 W2"]) -> Float[Tensor, "b c H W"]:
    """Pictures in [-1, 1] whose holes, where `mask` is 1, are -1: black, as released [LDM v2, Sec. 4.5]."""
    return torch.where(_hole(x, mask), -1.0, x)


def inpainting_condition(
    x: Float[Tensor, "b c_x H W"], mask: Float[Tensor, "#b 1 H2 W2"], encode: Callable[[Tensor], Tensor],
) -> Float[Tensor, "b d h w"]:
    """The condition of an inpainting model: the latent of the masked picture, then the mask [LDM v2, Sec. 4.5].

    `encode` is the first stage's, pictures -> z (b, c, h, w), scaled if the model's z is. The mask, mapped to [-1, 1]
    with 1 in the hole, is resized to the latent by nearest neighbours, so d = c + 1. As released, one pixel stands for
    f x f, so holes thinner than f pixels may be lost. ValueError for masks of another size, or not binary.
    """
    z = encode(masked(x, mask))
    small = F.interpolate(2 * mask.to(z) - 1, size=z.shape[2:], mode="nearest")
    return torch.cat([z, small.expand(len(z), -1, -1, -1)], 1)


def fill(
    x: Float[Tensor, "b c H W"], filled: Float[Tensor, "b c H W"], mask: Float[Tensor, "#b 1 H2 W2"]
) -> Float[Tensor, "b c H W"]:
    """`filled`, clamped to [-1, 1], where `mask` is 1; elsewhere the known pixels `x` [LDM v2, Sec. 4.5]."""
    return torch.where(_hole(x, mask), filled.clamp(-1, 1), x)


def _hole(x: Tensor, mask: Tensor) -> Bool[Tensor, "b 1 H W"]:
    """Where the mask is 1; ValueError unless it has the size of the pictures and is binary."""
    if mask.shape[2:] != x.shape[2:]:
        raise ValueError(f"a mask has the size of its picture: pictures of {x.shape[2]} x {x.shape[3]}, "
                         f"a mask of {mask.shape[2]} x {mask.shape[3]}")
    hole = mask == 1
    if not (hole | (mask == 0)).all():
        raise ValueError(f"a mask is 1 in the hole and 0 elsewhere; got values from {mask.min().item():g} to "
                         f"{mask.max().item():g}")
    return hole.to(x.device)
