"""The denoiser eps_theta(z_t, t, tau(y)): a time-conditional UNet with attention [LDM v2, Sec. 3.2, App. E.2.1]."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .attention import SpatialTransformer
from .blocks import ResBlock, timestep_embedding
from .layout import DenoiserConfig, build_ends, plan
from .sizing import count_params, describe, match_widths

__all__ = ["DenoiserConfig", "UNet", "count_params", "describe", "match_widths"]


class Stage(nn.ModuleList):
    """Blocks in sequence, each given what it asks for besides the picture."""

    def forward(self, h: Tensor, emb: Tensor, context: Tensor | None) -> Tensor:
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

    def forward(
        self, z_t: Float[Tensor, "b c_in h w"], t: Shaped[Tensor, " b"],
        context: Float[Tensor, "b n d"] | None = None, y: Shaped[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b c_out h w"]:
        self._check(z_t, context, y)
        emb = self.time_embed(timestep_embedding(t, self.config.widths[0]))  # (b, 4 widths[0])
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

    def _run(self, stage: Stage, h: Tensor, emb: Tensor, context: Tensor | None) -> Tensor:
        if self.checkpoint_activations and torch.is_grad_enabled():
            return checkpoint(stage, h, emb, context, use_reentrant=False)
        return stage(h, emb, context)

    def _check(self, z_t: Tensor, context: Tensor | None, y: Tensor | None) -> None:
        config, m = self.config, 2 ** (len(self.config.widths) - 1)
        if z_t.shape[1] != config.in_channels or z_t.shape[2] % m or z_t.shape[3] % m:
            raise ValueError(f"this UNet takes (b, {config.in_channels}, h, w) with h and w divisible by {m}, "
                             f"got {tuple(z_t.shape)}")
        if (context is None) != (config.context_dim is None):
            given = None if context is None else tuple(context.shape)
            raise ValueError(f"this UNet has context_dim={config.context_dim}, got a context of shape {given}")
        if (y is None) != (config.num_classes is None):
            raise ValueError(f"this UNet has num_classes={config.num_classes}, got labels y={y}")
