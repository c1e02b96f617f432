"""Guidance: steering a sampler by how the condition changes the denoiser's answer."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


def classifier_free(
    denoiser: Callable[[Tensor, Tensor, Tensor], Tensor],
    context: Float[Tensor, "b n d"],
    null_context: Float[Tensor, "#b n d"],
    guidance_scale: float | int,
) -> Callable[[Tensor, Tensor], Tensor]:
    """eps_hat = eps(z_t, null) + s (eps(z_t, c) - eps(z_t, null)) as a function of (z_t, t) [CFG, Eq. 6].

    Here s = `guidance_scale` is 1 without guidance, then one call on the batch; otherwise one call on twice the batch,
    [null, c] as released. [CFG] counts from 0: its w is s - 1. One null context serves a whole batch.
    """
    if guidance_scale == 1:
        return lambda z_t, t: denoiser(z_t, t, context)
    both = torch.cat([null_context.expand_as(context), context])

    def eps_model(z_t: Float[Tensor, "b c h w"], t: Shaped[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        eps_null, eps_cond = denoiser(torch.cat([z_t, z_t]), torch.cat([t, t]), both).to(z_t.dtype).chunk(2)
        return eps_null + guidance_scale * (eps_cond - eps_null)

    return eps_model
