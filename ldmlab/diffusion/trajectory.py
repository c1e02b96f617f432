"""The trajectory of a sampler from noise to picture: z_t and z0_hat at every step."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ldmlab.diffusion.model import LatentDiffusion
from ldmlab.diffusion.samplers import SampleNoise, ddim


@dataclass
class Path:
    """The steps of a sampler, noise first: t of each, z after it, and its estimate z0_hat, all (n, c, h, w)."""

    t: list[int]
    z_t: list[Tensor]
    z0_hat: list[Tensor]
    model: LatentDiffusion

    def __len__(self) -> int:
        return len(self.t)

    def pictures(self, i: int) -> tuple[Tensor, Tensor]:
        """z and z0_hat of step `i`, decoded: two batches (n, 3, H, W) in [-1, 1], on the CPU."""
        return self.model.decode(self.z_t[i]).cpu(), self.model.decode(self.z0_hat[i]).cpu()

    def picked(self, num: int) -> list[int]:
        """Indices of `num` evenly spaced steps, the last among them."""
        return sorted({round(i) for i in np.linspace(0, len(self) - 1, min(num, len(self)))})


@torch.inference_mode()
def denoising_path(
    model: LatentDiffusion, y: Int[Tensor, " n"], *, num_steps: int, eta: float = 0.0, guidance_scale: float = 1.0,
    seed: int = 0, step_seed: int | None = None,
) -> Path:
    """DDIM from the noise of `seed` with every step recorded; it ends at the pictures of `model.sample`.

    The noise that is added at eta > 0 comes from `step_seed`, by default that of `model.sample`.
    """
    path = Path([], [], [], model)

    def keep(i: int, t: int | float, z: Tensor, z0_hat: Tensor) -> None:
        path.t.append(int(t))
        path.z_t.append(z)
        path.z0_hat.append(z0_hat)

    side = model.size // model.first_stage.f
    noise = SampleNoise(seed, range(len(y)))
    z_T = noise.draw((model.denoiser_config.out_channels, side, side), model.device)
    if step_seed is not None:
        noise = SampleNoise(step_seed, range(len(y)))
        noise(z_T)  # where its samples would start
    eps_model = model.eps_model(y.to(model.device), guidance_scale)
    ddim(eps_model, z_T, model.schedule, num_steps, eta=eta, generator=noise, on_step=keep)
    return path
