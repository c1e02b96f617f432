"""A trained latent diffusion model in one piece: noise in, pictures out."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ldmlab.diffusion.conditioning.spatial import SpatialConditioner
from ldmlab.diffusion.conditioning.tokens import Conditioner, conditioned
from ldmlab.diffusion.guidance import classifier_free
from ldmlab.diffusion.samplers import SAMPLERS, EpsModel
from ldmlab.diffusion.schedules import Schedule
from ldmlab.diffusion.unet.acceleration import accelerate
from ldmlab.first_stage.latents import LatentStats

Guided = Callable[[EpsModel, slice], EpsModel]


@dataclass
class LatentDiffusion:
    """First stage, latent scale, denoiser and condition that belong together; all in eval mode on `device`."""

    first_stage: nn.Module
    stats: LatentStats
    denoiser: nn.Module
    schedule: Schedule
    conditioner: Conditioner | SpatialConditioner | None
    size: int
    device: torch.device

    @property
    def trained(self) -> nn.ModuleDict:
        """What diffusion training trains, and a file of it holds: the denoiser and, if there is one, tau."""
        tau = {} if self.conditioner is None else {"tau": self.conditioner}
        return nn.ModuleDict({"denoiser": self.denoiser} | tau)

    def accelerated(
        self, *, dtype: torch.dtype | None = None, compile: bool = False, cuda_graphs: bool = False,
        backend: str | Callable[..., Any] = "inductor",
    ) -> "LatentDiffusion":
        """A model that samples faster and not to the bit alike, as `accelerate` says; this one stays as it is.

        Denoiser and decoder are accelerated copies, the decoder, which is called once a batch, without CUDA graphs. To
        be compiled once, take a `batch_size` that divides the number of pictures.
        """
        options = {"dtype": dtype, "compile": compile, "backend": backend}
        first_stage = copy.deepcopy(self.first_stage)
        if isinstance(getattr(first_stage, "decoder", None), nn.Module):
            first_stage.decoder = accelerate(first_stage.decoder, **options)
        denoiser = accelerate(self.denoiser, cuda_graphs=cuda_graphs, **options)
        return replace(self, first_stage=first_stage, denoiser=denoiser)

    def eps_model(self, y: Shaped[Tensor, "b ..."] | None, guidance_scale: float | int = 1.0) -> EpsModel:
        """eps_hat(z_t, t) under conditions `y`, as the conditioner read them, guided if `guidance_scale` is not 1."""
        if self.conditioner is None or guidance_scale == 1:
            return conditioned(self.denoiser, self.conditioner, y)
        self._check_tokens(f"guidance_scale = {guidance_scale:g}")
        return classifier_free(self.denoiser, self.conditioner(y), self.conditioner.null(len(y)), guidance_scale)

    def null_condition(self, n: int) -> Shaped[Tensor, "n ..."]:
        """`n` null conditions, with which a conditional model samples unconditionally."""
        self._check_tokens("an unconditional sample")
        null = torch.tensor(0) if self.conditioner is None else self.conditioner.null_condition.cpu()
        return null.expand(n, *null.shape)

    def _check_tokens(self, wanted: str) -> None:
        if self.conditioner is not None and self.conditioner.enters == "channels":
            raise ValueError(f"a model of kind {self.conditioner.kind} was never trained without its condition, so it "
                             f"has no guidance and no unconditional samples; asked was {wanted}")

    def latent_shape(self, y: Shaped[Tensor, "n ..."]) -> tuple[int, int, int]:
        """(c, h, w) of z for the pictures that `y` asks for; ValueError where the denoiser cannot halve its sides."""
        size = (self.size, self.size)
        if self.conditioner is not None and self.conditioner.enters == "channels":
            size = self.conditioner.picture_size(y)
        multiple = self.first_stage.f * 2 ** (len(self.denoiser.config.widths) - 1)
        if any(side % multiple for side in size):
            raise ValueError(f"this model makes pictures with sides that are multiples of {multiple}, asked were "
                             f"{size[0]} x {size[1]}; pad them first")
        return self.denoiser.config.out_channels, *(side // self.first_stage.f for side in size)

    def decode(self, z0: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """Scaled latents -> pictures, clamped to [-1, 1]."""
        return self.first_stage.decode(self.stats.unscale(z0)).clamp(-1, 1)

    def sample(
        self, y: Shaped[Tensor, "n ..."], *, num_steps: int, sampler: str = "ddim", eta: float | int = 0.0,
        guidance_scale: float | int = 1.0, seed: int = 0, batch_size: int = 128, guided: Guided | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Float[Tensor, "n 3 H W"]:
        """One picture per condition of `y` (ignored by a model without any) by a sampler of `SAMPLERS`, on the CPU.

        Pictures have the model's `size`, or where the condition is aligned with them, the size that it asks for: larger
        than in training, they are sampled convolutionally [LDM v2, Sec. 4.3.2].

        All starting noise comes from `seed` before the first batch, so all samplers begin alike, and those that draw no
        more give pictures that do not depend on `batch_size` but for rounding. `guided(eps_model, rows)` may steer the
        model further for the pictures of the slice `rows`, by gradients if it wants. `progress` is called with the
        number of pictures done. ValueError for an unknown sampler, and for an `eta` where there is none to choose.
        """
        if sampler not in SAMPLERS:
            raise ValueError(f"sampler is one of {', '.join(SAMPLERS)}; got {sampler!r}")
        if self.conditioner is not None:
            self.conditioner.check(y)
        row = SAMPLERS[sampler]
        if eta and not row.takes_eta:
            choices = ", ".join(name for name, other in SAMPLERS.items() if other.takes_eta)
            raise ValueError(f"eta is the noise of the steps of {choices}; got eta = {eta} with sampler {sampler!r}")
        draw = partial(row.draw, eta=eta) if row.takes_eta else row.draw
        generator = torch.Generator().manual_seed(seed)
        z_T = torch.randn(len(y), *self.latent_shape(y), generator=generator)
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
