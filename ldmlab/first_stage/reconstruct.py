"""Encode pictures to the mode of the posterior, and decode it."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ldmlab.first_stage.autoencoder import FirstStage


@torch.inference_mode()
def latents_of(first_stage: FirstStage, x: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n c h w"]:
    """Mode of the posterior over z (KL), or z (VQ), of pictures in [-1, 1]; on the CPU, not scaled."""
    return first_stage.most_probable_latent(x.to(device_of(first_stage))).cpu()


@torch.inference_mode()
def reconstruct(first_stage: FirstStage, x: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n 3 H W"]:
    """Reconstruct pictures in [-1, 1] through `latents_of`, clamped to [-1, 1]; on the CPU."""
    return first_stage.decode(latents_of(first_stage, x).to(device_of(first_stage))).clamp(-1, 1).cpu()


def device_of(module: nn.Module) -> torch.device:
    """Device of a module's parameters; the CPU where it has none."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))
