"""A trained latent diffusion model in one piece: noise in, pictures out."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ldmlab.diffusion.conditioning import ClassEmbedder
from ldmlab.diffusion.guidance import classifier_free
from ldmlab.diffusion.samplers import SAMPLERS, ddim
from ldmlab.diffusion.schedules import Schedule
from ldmlab.first_stage.latents import LatentStats


@dataclass
class LatentDiffusion:
    """First stage, latent scale, denoiser and condition that belong together; all in eval mode on `device`."""

    first_stage: nn.Module
    stats: LatentStats
    denoiser: nn.Module
    schedule: Schedule
    class_embedder: ClassEmbedder | None
    size: int
    device: torch.device

    @property
    def trained(self) -> nn.ModuleDict:
        """What diffusion training trains, and a file of it holds: the denoiser and, if there is one, tau."""
        tau = {} if self.class_embedder is None else {"tau": self.class_embedder}
        return nn.ModuleDict({"denoiser": self.denoiser} | tau)

    def eps_model(self, y: Int[Tensor, " b"] | None, guidance_scale: float = 1.0) -> Callable[[Tensor, Tensor], Tensor]:
        """eps_hat(z_t, t) under labels `y`, guided if `guidance_scale` is not 1."""
        if self.class_embedder is None:
            return self.denoiser
        return classifier_free(self.denoiser, self.class_embedder(y), self.class_embedder.null(len(y)), guidance_scale)

    def decode(self, z0: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """Scaled latents -> pictures, clamped to [-1, 1]."""
        return self.first_stage.decode(self.stats.unscale(z0)).clamp(-1, 1)

    @torch.inference_mode()
    def sample(
        self, y: Int[Tensor, " n"], *, num_steps: int, sampler: str = "ddim", eta: float = 0.0,
        guidance_scale: float = 1.0, seed: int = 0, batch_size: int = 128,
        progress: Callable[[int], None] | None = None,
    ) -> Float[Tensor, "n 3 H W"]:
        """One picture per label of `y` (ignored without a class condition) by a sampler of `SAMPLERS`, on the CPU.

        All starting noise comes from `seed` before the first batch, so all samplers begin alike, and those that draw no
        more give pictures that do not depend on `batch_size` but for rounding. `progress` is called with the number of
        pictures done. ValueError for an unknown sampler, and for an `eta` where there is none to choose.
        """
        if sampler not in SAMPLERS:
            raise ValueError(f"sampler is one of {', '.join(SAMPLERS)}; got {sampler!r}")
        if eta and sampler != "ddim":
            raise ValueError(f"eta is the noise of DDIM's steps; got eta = {eta} with sampler {sampler!r}")
        draw = partial(ddim, eta=eta) if sampler == "ddim" else SAMPLERS[sampler]
        c, side = self.denoiser.config.in_channels, self.size // self.first_stage.f
        generator = torch.Generator().manual_seed(seed)
        z_T = torch.randn(len(y), c, side, side, generator=generator)
        later = torch.Generator(self.device).manual_seed(seed + 1)
        pictures = []
        for labels, z in zip(y.split(batch_size), z_T.split(batch_size), strict=True):
            eps_model = self.eps_model(labels.to(self.device), guidance_scale)
            z0 = draw(eps_model, z.to(self.device), self.schedule, num_steps, generator=later)
            pictures.append(self.decode(z0).float().cpu())
            if progress is not None:
                progress(sum(map(len, pictures)))
        return torch.cat(pictures)
