"""The most probable latents of pictures, and the pictures decoded from them."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


@torch.inference_mode()
def latents_of(first_stage: nn.Module, x: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n c h w"]:
    """The most probable z of pictures in [-1, 1], on the CPU, not yet scaled."""
    return first_stage.most_probable_latent(x.to(_device(first_stage))).cpu()


@torch.inference_mode()
def reconstruct(first_stage: nn.Module, x: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n 3 H W"]:
    """x -> z -> x_rec through the most probable z, clamped, on the CPU."""
    return first_stage.decode(latents_of(first_stage, x).to(_device(first_stage))).clamp(-1, 1).cpu()


def _device(module: nn.Module) -> torch.device:
    return next((p.device for p in module.parameters()), torch.device("cpu"))
