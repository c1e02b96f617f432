"""The denoiser eps_theta(z_t, t, tau(y)): a time-conditional UNet with attention [LDM v2, Sec. 3.2, App. E.2.1]."""

from collections.abc import Callable

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
    """Blocks in sequence, each given what it asks for besides the picture."""

    def forward(self, h: Tensor, emb: Tensor, context: Tensor | KeysValues | None) -> Tensor:
        for block in self:
            if isinstance(block, ResBlock):
                h = block(h, emb)
            elif isinstance(block, SpatialTransformer):
                h = block(h, context)
            else:
                h = block(h)
        return h


class UNet(nn.Module):
    """eps_theta: noisy latents, time steps and perhaps a condition -> the noise in them.

    The context is tokens, or `KeysValues` of them from `project`, which a sampler's many calls can share.
    `checkpoint_activations` recomputes each stage in the backward pass: less memory, about a third more work.
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
        """The keys and values of `context` in every cross-attention, for calls under the same autocast as this one."""
        self._check_context(context)
        return KeysValues(tuple(attention.project(context) for attention in self._cross_attentions()))

    def forward(
        self, z_t: Float[Tensor, "b c_in h w"], t: Shaped[Tensor, " b"],
        context: Float[Tensor, "b n d"] | KeysValues | None = None, y: Shaped[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b c_out h w"]:
        self._check(z_t, context, y)
        angles = timestep_embedding(t, self.config.widths[0]).to(self.head_conv.weight.dtype)  # computed in float32
        emb = self.time_embed(angles)  # (b, 4 widths[0])
        if y is not None:
            emb = emb + self.label_embed(y)
        h, kept = z_t, []
        for stage in self.down:
            h = self._run(stage, h, emb, context)
            kept.append(h)
        h = self._run(self.middle, h, emb, context)
        for stage in self.up:
            h = self._run(stage, torch.cat([h, kept.pop()], 1), emb, context)
        return self.head_conv(F.silu(self.head_norm(h)))

    def _run(self, stage: Stage, h: Tensor, emb: Tensor, context: Tensor | KeysValues | None) -> Tensor:
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

    Calls without gradients share keys and values: a denoiser that can `project` does so at the first, once a sample
    instead of once a step, and they keep their memory meanwhile. Calls with gradients, as guides make, are given the
    context itself. Not to be kept while the denoiser learns.
    """
    if not hasattr(denoiser, "project"):
        return lambda z_t, t: denoiser(z_t, t, context)
    projected: dict[torch.dtype | None, KeysValues] = {}  # by what autocast makes of them

    def eps_model(z_t: Tensor, t: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return denoiser(z_t, t, context)
        device = context.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        if dtype not in projected:
            projected[dtype] = denoiser.project(context)
        return denoiser(z_t, t, projected[dtype])

    return eps_model
