"""The denoiser eps_theta(z_t, t, tau(y)): a time-conditional UNet with attention [LDM v2, Sec. 3.2, App. E.2.1]."""

from collections.abc import Callable
from typing import cast

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ldmlab.diffusion.unet.attention import CrossAttention, KeysValues, SpatialTransformer, TransformerBlock
from ldmlab.diffusion.unet.blocks import ResBlock, timestep_embedding
from ldmlab.diffusion.unet.config import DenoiserConfig, build_ends, plan
from ldmlab.diffusion.unet.width_matching import count_params, describe, match_widths

__all__ = ["DenoiserConfig", "UNet", "count_params", "describe", "match_widths", "with_context"]


class Stage(nn.ModuleList):
    """Blocks in sequence; residual blocks get the embedding of t, transformers the context."""

    def forward(self, h: Tensor, emb: Tensor, context: Tensor | KeysValues | None) -> Tensor:
        """Feature maps (b, c, h, w), embeddings of t (b, d) and the context -> feature maps."""
        for block in self:
            if isinstance(block, ResBlock):
                h = block(h, emb)
            elif isinstance(block, SpatialTransformer):
                h = block(h, context)
            else:
                h = block(h)
        return h


class UNet(nn.Module):
    """eps_theta: noisy latents z_t, time steps t, perhaps a context or labels -> the noise in them, eps_hat.

    The context is tokens (b, n, d), or their `KeysValues` from `project`, which the calls of a sampler can share.
    `checkpoint_activations` recomputes each stage in the backward pass: less memory for about a third more computation.
    ValueError for inputs that do not fit the config.

    >>> unet = UNet(DenoiserConfig(in_channels=3, out_channels=3, widths=(32, 64), num_heads=2)).eval()
    >>> unet(torch.randn(2, 3, 16, 16), torch.tensor([0, 999])).shape
    torch.Size([2, 3, 16, 16])
    """

    def __init__(self, config: DenoiserConfig, checkpoint_activations: bool = False):
        super().__init__()
        self.config, self.checkpoint_activations = config, checkpoint_activations
        self.time_embed, self.label_embed, self.head_norm, self.head_conv = build_ends(config)
        layout = plan(config)
        self.down = nn.ModuleList(Stage(block.build(config) for block in stage) for stage in layout.down)
        self.middle = Stage(block.build(config) for block in layout.middle)
        self.up = nn.ModuleList(Stage(block.build(config) for block in stage) for stage in layout.up)
        for place, attention in enumerate(self._cross_attentions()):
            attention.place = place

    def _cross_attentions(self) -> list[CrossAttention]:
        return [module.cross_attention for module in self.modules() if isinstance(module, TransformerBlock)]

    def project(self, context: Float[Tensor, "b n d"]) -> KeysValues:
        """The keys and values of `context` in every cross-attention, valid under the same autocast as this call."""
        self._check_context(context)
        return KeysValues(tuple(attention.project(context) for attention in self._cross_attentions()))

    def forward(
        self, z_t: Float[Tensor, "b c_in h w"], t: Shaped[Tensor, " b"],
        context: Float[Tensor, "b n d"] | KeysValues | None = None, y: Shaped[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b c_out h w"]:
        """eps_hat; `t` in [0, T - 1] may be fractional, `context` and `y` are given if the config has them."""
        self._check(z_t, context, y)
        angles = timestep_embedding(t, self.config.widths[0]).to(self._dtype)  # computed in float32
        emb = self.time_embed(angles)  # (b, 4 widths[0])
        if self.label_embed is not None:
            emb = emb + self.label_embed(y)
        h = z_t
        skips: list[Tensor] = []
        for stage in self.down:
            h = self._run(stage, h, emb, context)
            skips.append(h)
        h = self._run(self.middle, h, emb, context)
        for stage in self.up:
            h = self._run(stage, torch.cat([h, skips.pop()], 1), emb, context)
        return self.head_conv(F.silu(self.head_norm(h)))

    @property
    def _dtype(self) -> torch.dtype:
        return cast(nn.Conv2d, self.head_conv).weight.dtype

    def _run(self, stage: nn.Module, h: Tensor, emb: Tensor, context: Tensor | KeysValues | None) -> Tensor:
        if self.checkpoint_activations and torch.is_grad_enabled():
            return checkpoint(stage, h, emb, context, use_reentrant=False)
        return stage(h, emb, context)

    def _check(self, z_t: Tensor, context: Tensor | KeysValues | None, y: Tensor | None) -> None:
        config, m = self.config, 2 ** (len(self.config.widths) - 1)
        if z_t.shape[1] != config.in_channels or z_t.shape[2] % m or z_t.shape[3] % m:
            raise ValueError(f"this UNet takes (b, {config.in_channels}, h, w) with h and w divisible by {m}, "
                             f"got {tuple(z_t.shape)}")
        self._check_context(context)
        b = len(context.projections[0][0]) if isinstance(context, KeysValues) else len(z_t)
        if b != len(z_t):
            raise ValueError(f"these keys and values are of a batch of {b}, got {len(z_t)} latents")
        if (y is None) != (config.num_classes is None):
            raise ValueError(f"this UNet has num_classes={config.num_classes}, got labels y={y}")

    def _check_context(self, context: Tensor | KeysValues | None) -> None:
        if (context is None) != (self.config.context_dim is None):
            given = tuple(context.shape) if isinstance(context, Tensor) else context
            raise ValueError(f"this UNet has context_dim={self.config.context_dim}, got a context of shape {given}")


def with_context(
    denoiser: Callable[..., Tensor], context: Float[Tensor, "b n d"]
) -> Callable[[Tensor, Tensor], Tensor]:
    """denoiser(z_t, t, context) as a function of (z_t, t), for the many calls of a sampler.

    Calls without gradients share keys and values: a denoiser with a method `project` computes them at the first call,
    once a sample instead of once a step, and they stay in memory. Calls with gradients, as in guidance, get the context
    itself. The function is not valid after the weights of the denoiser change.
    """
    if not hasattr(denoiser, "project"):
        return lambda z_t, t: denoiser(z_t, t, context)
    projected: dict[torch.dtype | None, KeysValues] = {}  # by the dtype of autocast

    def eps_model(z_t: Tensor, t: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return denoiser(z_t, t, context)
        device = context.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        if dtype not in projected:
            projected[dtype] = denoiser.project(context)
        return denoiser(z_t, t, projected[dtype])

    return eps_model
