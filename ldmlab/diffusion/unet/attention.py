"""Attention in the denoiser: self-attention over positions, and transformer blocks that attend to a condition."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ldmlab.diffusion.unet.blocks import GroupNorm, zeroed

# Up to this many queries times keys, the two matrix products are faster on a CPU than its fused kernel, forward and
# backward: by a quarter in float32, 1.1 to 9 times in bfloat16, where the bound is set by memory.
FEW, FEW_BF16 = 160**2, 1024**2


# From this many multiplications on, the convolution in `Linear` is faster, if oneDNN is available.
LARGE = 2**24 if torch.backends.mkldnn.is_available() else float("inf")


class Linear(nn.Linear):
    """A linear map of tokens; on a CPU in float32, a large one is computed as a 1 x 1 convolution, the same sum.

    oneDNN computes it 1.3 to 1.9 times as fast, forward and backward, as MKL the matrix product on AMD's processors.
    """

    def forward(self, x: Float[Tensor, "b n c_in"]) -> Float[Tensor, "b n c_out"]:
        """The map of each token."""
        large = x.shape[0] * x.shape[1] * self.weight.numel() >= LARGE
        if not (large and x.is_cpu and x.dtype == torch.float32) or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        pixels = x.unsqueeze(1).permute(0, 3, 1, 2)  # (b, c_in, 1, n): a row of pixels, channels last as tokens lie
        return F.conv2d(pixels, self.weight[..., None, None], self.bias).permute(0, 2, 3, 1).squeeze(1)


def attend(
    q: Float[Tensor, "b heads n d"], k: Float[Tensor, "b heads m d"], v: Float[Tensor, "b heads m d"]
) -> Float[Tensor, "b heads n d"]:
    """softmax(Q K^T / sqrt(d)) V [LDM v2, Sec. 3.3], by two products or a fused kernel; the softmax sums in float32."""
    if q.is_cpu and q.shape[2] * k.shape[2] <= (FEW_BF16 if q.dtype == torch.bfloat16 else FEW):
        return (q @ (k * k.shape[3] ** -0.5).mT).softmax(3) @ v
    # Fused kernels need contiguous channels; without, the CPU's kernel builds the matrix of all pairs.
    q, k, v = (a if a.stride(3) == 1 else a.contiguous() for a in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v)


class SelfAttention(nn.Module):
    """Multi-head self-attention over all positions, added to its input, for models without a context."""

    def __init__(self, channels: int, num_heads: int, norm_groups: int = 32):
        super().__init__()
        self.num_heads = num_heads
        self.norm = GroupNorm(norm_groups, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """`x` plus what its positions attend to."""
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x).flatten(2))  # (b, 3 c, n), n = h w: q, k, v of a head side by side, as released
        heads = qkv.view(b, self.num_heads, 3, c // self.num_heads, h * w).transpose(3, 4)
        attended = attend(*heads.unbind(2))  # (b, heads, n, c / heads)
        return x + self.proj_out(attended.transpose(2, 3).reshape(b, c, h * w)).view(b, c, h, w)


class KeysValues(NamedTuple):
    """Keys and values of a context in each cross-attention of a denoiser, by `CrossAttention.place`; the same at all t.

    Each entry is K and V (b, heads, m, head_dim), or for a single token its output for any x, (b, 1, dim).
    """

    projections: tuple[tuple[Tensor, ...], ...]


class CrossAttention(nn.Module):
    """`attend` with Q from `x`, K and V from `context`, or from `x` itself [LDM v2, Sec. 3.3].

    `place`, set by the denoiser, is the index of its own entry in `KeysValues`.
    """

    def __init__(self, dim: int, context_dim: int, num_heads: int, head_dim: int):
        super().__init__()
        inner = num_heads * head_dim
        self.num_heads, self.place = num_heads, 0
        self.to_q = Linear(dim, inner, bias=False)
        self.to_k = Linear(context_dim, inner, bias=False)
        self.to_v = Linear(context_dim, inner, bias=False)
        self.out = Linear(inner, dim)

    def forward(
        self, x: Float[Tensor, "b n dim"], context: Float[Tensor, "b m d"] | KeysValues | None = None
    ) -> Float[Tensor, "b n dim"]:
        """The output for each token of `x`; the context is tokens, or their projections."""
        if isinstance(context, KeysValues):
            projected = context.projections[self.place]
        else:
            projected = self.project(x if context is None else context)
        if len(projected) == 1:
            return projected[0].expand(-1, x.shape[1], -1)
        n = x.shape[1]
        if projected[0].shape[2] == 1:
            x = x[:, :1]  # a softmax over one token is 1, the same at all positions; Q and K have gradients of zero
        attended = attend(self._heads(self.to_q(x)), *projected)  # (b, heads, n or 1, head_dim)
        return self.out(attended.transpose(1, 2).flatten(2)).expand(-1, n, -1)

    def project(self, context: Float[Tensor, "b m d"]) -> tuple[Tensor, ...]:
        """The part of the computation that depends on `context` alone, as in `KeysValues`."""
        if context.shape[1] == 1 and not torch.is_grad_enabled():
            return (self.out(self.to_v(context)),)
        return self._heads(self.to_k(context)), self._heads(self.to_v(context))

    def _heads(self, a: Float[Tensor, "b n inner"]) -> Float[Tensor, "b heads n head_dim"]:
        return a.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """Two linear maps with a gated GELU between them, of `mult` times the width [GLU Variants, Eq. 6]."""

    def __init__(self, dim: int, mult: int = 4):
        super().__init__()
        self.proj_in = Linear(dim, 2 * mult * dim)
        self.out = Linear(mult * dim, dim)

    def forward(self, x: Float[Tensor, "b n dim"]) -> Float[Tensor, "b n dim"]:
        """The map of each token."""
        value, gate = self.proj_in(x).chunk(2, 2)
        return self.out(value * F.gelu(gate))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the context, feed-forward, each on a normalised input and added.

    Deviation: [LDM v2, Tab. 16] has the feed-forward before the cross-attention; this is the released order.
    """

    def __init__(self, dim: int, context_dim: int, num_heads: int, head_dim: int):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.self_attention = CrossAttention(dim, dim, num_heads, head_dim)
        self.cross_attention = CrossAttention(dim, context_dim, num_heads, head_dim)
        self.feed_forward = FeedForward(dim)

    def forward(
        self, x: Float[Tensor, "b n dim"], context: Float[Tensor, "b m d"] | KeysValues | None = None
    ) -> Float[Tensor, "b n dim"]:
        """The tokens after the three sub-layers."""
        x = x + self.self_attention(self.norm1(x))
        x = x + self.cross_attention(self.norm2(x), context)
        return x + self.feed_forward(self.norm3(x))


class SpatialTransformer(nn.Module):
    """`depth` transformer blocks with all positions as tokens, added to the input [LDM v2, App. E.2.1, Tab. 16]."""

    def __init__(
        self, channels: int, context_dim: int, num_heads: int, head_dim: int, depth: int = 1, norm_groups: int = 32
    ):
        super().__init__()
        inner = num_heads * head_dim
        self.norm = GroupNorm(norm_groups, channels, eps=1e-6)  # the other normalisations have 1e-5
        self.proj_in = nn.Conv2d(channels, inner, 1)
        self.blocks = nn.ModuleList(TransformerBlock(inner, context_dim, num_heads, head_dim) for _ in range(depth))
        self.proj_out = zeroed(nn.Conv2d(inner, channels, 1))

    def forward(
        self, x: Float[Tensor, "b c h w"], context: Float[Tensor, "b m d"] | KeysValues | None = None
    ) -> Float[Tensor, "b c h w"]:
        """`x` plus the output of the blocks, whose cross-attention attends to `context`."""
        h = self.proj_in(self.norm(x))  # (b, inner, h, w)
        size, tokens = h.shape[2:], h.flatten(2).transpose(1, 2)  # (b, h w, inner)
        for block in self.blocks:
            tokens = block(tokens, context)
        return x + self.proj_out(tokens.transpose(1, 2).unflatten(2, size))
