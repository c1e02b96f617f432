"""Convolutional blocks of the denoiser: normalisation, time embedding, residual block, resampling [ADM, App. A]."""

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F


def timestep_embedding(t: Shaped[Tensor, " b"], dim: int, max_period: float = 10_000) -> Float[Tensor, "b dim"]:
    """Cosines, then sines of t at dim // 2 frequencies from 1 down to 1 / max_period; an odd `dim` ends in a zero.

    >>> timestep_embedding(torch.tensor([0]), 4)
    tensor([[1., 1., 0., 0.]])
    """
    half = dim // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t[:, None].float() * frequencies  # (b, half)
    return F.pad(torch.cat([angles.cos(), angles.sin()], 1), (0, dim % 2))


class GroupNorm(nn.GroupNorm):
    """Group normalisation computed in float32 for any input dtype, as released: bfloat16 loses the variance."""

    def forward(self, x: Float[Tensor, "b c *dims"]) -> Float[Tensor, "b c *dims"]:
        """`x` normalised, in its dtype."""
        if x.is_cpu:  # its kernel accepts narrow dtypes and sums in float32
            return super().forward(x)
        return F.group_norm(x.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps).to(x.dtype)


def zeroed(module: nn.Module) -> nn.Module:
    """The module with its parameters set to zero, so that its residual branch initially adds 0."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class ResBlock(nn.Module):
    """Residual block whose time embedding is added between the convolutions, or with `scale_shift` scales and shifts.

    `resample` "down" or "up" halves or doubles the size on both branches, after the first activation; None keeps it.
    """

    def __init__(
        self, c_in: int, c_out: int, emb_dim: int, *,
        norm_groups: int = 32, dropout: float = 0.0, scale_shift: bool = False, resample: str | None = None,
    ):
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.norm_in = GroupNorm(norm_groups, c_in)
        self.conv_in = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.emb_proj = nn.Linear(emb_dim, (2 if scale_shift else 1) * c_out)
        self.norm_out = GroupNorm(norm_groups, c_out)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = zeroed(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Float[Tensor, "b c_in h w"], emb: Float[Tensor, "b d"]) -> Float[Tensor, "b c_out h2 w2"]:
        """Feature maps and embeddings of t -> feature maps, at half or twice the size with `resample`."""
        h = F.silu(self.norm_in(x))
        if self.resample is not None:
            h, x = _resize(h, self.resample), _resize(x, self.resample)  # (b, c_in, h2, w2)
        h = self.conv_in(h)  # (b, c_out, h2, w2)
        emb = self.emb_proj(F.silu(emb))[:, :, None, None]
        if self.scale_shift:
            scale, shift = emb.chunk(2, 1)
            h = self.norm_out(h) * (1 + scale) + shift
        else:
            h = self.norm_out(h + emb)
        return self.skip(x) + self.conv_out(self.dropout(F.silu(h)))


def _resize(x: Tensor, resample: str) -> Tensor:
    return F.avg_pool2d(x, 2) if resample == "down" else F.interpolate(x, scale_factor=2, mode="nearest")


class Downsample(nn.Module):
    """Halves the size by a convolution of stride 2, padded on all sides (the first stage's pads right and bottom)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.conv(x)


class Upsample(nn.Module):
    """Doubles the size by nearest neighbours, then applies a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.conv(_resize(x, "up"))
