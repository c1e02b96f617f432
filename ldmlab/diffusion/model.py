"""A trained latent diffusion model in one piece: noise in, pictures out."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ldmlab.diffusion.conditioning import Conditioner
from ldmlab.diffusion.guidance import classifier_free
from ldmlab.diffusion.samplers import SAMPLERS, EpsModel, ddim
from ldmlab.diffusion.schedules import Schedule
from ldmlab.first_stage.latents import LatentStats

Guided = Callable[[EpsModel, slice], EpsModel]


@dataclass
class LatentDiffusion:
    """First stage, latent scale, denoiser and condition that belong together; all in eval mode on `device`."""

    first_stage: nn.Module
    stats: LatentStats
    denoiser: nn.Module
    schedule: Schedule
    conditioner: Conditioner | None
    size: int
    device: torch.device

    @property
    def trained(self) -> nn.ModuleDict:
        """What diffusion training trains, and a file of it holds: the denoiser and, if there is one, tau."""
        tau = {} if self.conditioner is None else {"tau": self.conditioner}
        return nn.ModuleDict({"denoiser": self.denoiser} | tau)

    def eps_model(self, y: Int[Tensor, "b ..."] | None, guidance_scale: float | int = 1.0) -> EpsModel:
        """eps_hat(z_t, t) under conditions `y`, as the conditioner read them, guided if `guidance_scale` is not 1."""
        if self.conditioner is None:
            return self.denoiser
        context = self.conditioner(y)
        if guidance_scale == 1:
            return lambda z_t, t: self.denoiser(z_t, t, context)
        return classifier_free(self.denoiser, context, self.conditioner.null(len(y)), guidance_scale)

    def nothing(self, n: int) -> Int[Tensor, "n ..."]:
        """`n` conditions that say nothing: with them a conditional model samples unconditionally."""
        nothing = torch.tensor(0) if self.conditioner is None else self.conditioner.nothing.cpu()
        return nothing.expand(n, *nothing.shape)

    def decode(self, z0: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """Scaled latents -> pictures, clamped to [-1, 1]."""
        return self.first_stage.decode(self.stats.unscale(z0)).clamp(-1, 1)

    def sample(
        self, y: Int[Tensor, "n ..."], *, num_steps: int, sampler: str = "ddim", eta: float | int = 0.0,
        guidance_scale: float | int = 1.0, seed: int = 0, batch_size: int = 128, guided: Guided | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Float[Tensor, "n 3 H W"]:
        """One picture per condition of `y` (ignored by a model without any) by a sampler of `SAMPLERS`, on the CPU.

        All starting noise comes from `seed` before the first batch, so all samplers begin alike, and those that draw no
        more give pictures that do not depend on `batch_size` but for rounding. `guided(eps_model, rows)` may steer the
        model further for the pictures of the slice `rows`, by gradients if it wants. `progress` is called with the
        number of pictures done. ValueError for an unknown sampler, and for an `eta` where there is none to choose.
        """
        if sampler not in SAMPLERS:
            raise ValueError(f"sampler is one of {', '.join(SAMPLERS)}; got {sampler!r}")
        if self.conditioner is not None:
            self.conditioner.check(y)
        if eta and sampler != "ddim":
            raise ValueError(f"eta is the noise of DDIM's steps; got eta = {eta} with sampler {sampler!r}")
        draw = partial(ddim, eta=eta) if sampler == "ddim" else SAMPLERS[sampler]
        c, side = self.denoiser.config.in_channels, self.size // self.first_stage.f
        generator = torch.Generator().manual_seed(seed)
        z_T = torch.randn(len(y), c, side, side, generator=generator)
        later = torch.Generator(self.device).manual_seed(seed + 1)
        pictures = []
        # Tensors of inference mode can never be differentiated, not even by a guide that asks for gradients.
        with torch.no_grad(), torch.inference_mode(guided is None):
            for start in range(0, len(y), batch_size):
                rows = slice(start, start + batch_size)
                eps_model = self.eps_model(y[rows].to(self.device), guidance_scale)
                if guided is not None:
                    eps_model = guided(eps_model, rows)
                z0 = draw(eps_model, z_T[rows].to(self.device), self.schedule, num_steps, generator=later)
                pictures.append(self.decode(z0).float().cpu())
                if progress is not None:
                    progress(sum(map(len, pictures)))
        return torch.cat(pictures)
