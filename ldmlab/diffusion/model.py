"""A trained latent diffusion model: first stage, denoiser, schedule and condition, and how to sample from them."""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ldmlab.diffusion.conditioning.spatial import SpatialConditioner
from ldmlab.diffusion.conditioning.tokens import Conditioner, conditioned
from ldmlab.diffusion.guidance import classifier_free
from ldmlab.diffusion.samplers import SAMPLERS, EpsModel, SampleNoise
from ldmlab.diffusion.schedules import Schedule
from ldmlab.diffusion.unet.acceleration import accelerate
from ldmlab.diffusion.unet.config import DenoiserConfig
from ldmlab.first_stage.autoencoder import FirstStage, IdentityAutoencoder
from ldmlab.first_stage.latents import LatentStats

Guided = Callable[[EpsModel, slice], EpsModel]


@dataclass
class LatentDiffusion:
    """First stage, latent scale, denoiser and condition that belong together; all in eval mode on `device`.

    `size` is the side in pixels of the training pictures. `conditioner` is None for an unconditional model.
    `around_batch(batch_size)` makes a context that a batch of samples is drawn in, such as one that sets torch's
    threads; not where a guide takes gradients, which another number of threads would round otherwise.
    """

    first_stage: FirstStage
    stats: LatentStats
    denoiser: nn.Module
    schedule: Schedule
    conditioner: Conditioner | SpatialConditioner | None
    size: int
    device: torch.device
    around_batch: Callable[[int], AbstractContextManager[Any]] = nullcontext

    @property
    def trained(self) -> nn.ModuleDict:
        """The modules that diffusion training trains and its files hold: the denoiser and, if there is one, tau."""
        tau: dict[str, nn.Module] = {} if self.conditioner is None else {"tau": self.conditioner}
        return nn.ModuleDict({"denoiser": self.denoiser} | tau)

    @property
    def denoiser_config(self) -> DenoiserConfig:
        """The shape of the denoiser."""
        return cast(DenoiserConfig, self.denoiser.config)

    def accelerated(
        self, *, dtype: torch.dtype | None = None, compile: bool = False, cuda_graphs: bool = False,
        backend: str | Callable[..., Any] = "inductor",
    ) -> "LatentDiffusion":
        """A copy that samples faster, by the options of `accelerate`; its samples are not bit-identical.

        Denoiser and decoder are accelerated copies; the decoder, which is called once a batch, without CUDA graphs.
        Every batch size is compiled anew, so choose a `batch_size` that divides the number of pictures.
        """
        options: dict[str, Any] = {"dtype": dtype, "compile": compile, "backend": backend}
        first_stage = copy.deepcopy(self.first_stage)
        if not isinstance(first_stage, IdentityAutoencoder):
            first_stage.decoder = accelerate(cast(nn.Module, first_stage.decoder), **options)
        denoiser = accelerate(self.denoiser, cuda_graphs=cuda_graphs, **options)
        return replace(self, first_stage=first_stage, denoiser=denoiser)

    def eps_model(self, y: Shaped[Tensor, "b ..."] | None, guidance_scale: float | int = 1.0) -> EpsModel:
        """eps_hat(z_t, t) under conditions `y`, encoded by `Conditioner.read`; with classifier-free guidance unless 1.

        ValueError for guidance of a model that was trained only with its condition.
        """
        if y is None or self.conditioner is None or guidance_scale == 1:
            return conditioned(self.denoiser, self.conditioner, y)
        tau = self._droppable(self.conditioner, f"guidance_scale = {guidance_scale:g}")
        return classifier_free(self.denoiser, tau(y), tau.null(len(y)), guidance_scale)

    def null_condition(self, n: int) -> Shaped[Tensor, "n ..."]:
        """`n` null conditions, with which a conditional model samples unconditionally.

        ValueError for a model that was trained only with its condition.
        """
        null = torch.tensor(0)
        if self.conditioner is not None:
            null = self._droppable(self.conditioner, "an unconditional sample").null_condition.cpu()
        return null.expand(n, *null.shape)

    @staticmethod
    def _droppable(conditioner: Conditioner | SpatialConditioner, wanted: str) -> Conditioner:
        """The conditioner, if its condition was dropped in training; else ValueError."""
        if isinstance(conditioner, SpatialConditioner):
            raise ValueError(f"a model of kind {conditioner.kind} was never trained without its condition, so it has "
                             f"neither guidance nor unconditional samples; got {wanted}")
        return conditioner

    def latent_shape(self, y: Shaped[Tensor, "n ..."]) -> tuple[int, int, int]:
        """(c, h, w) of z for the pictures of conditions `y`; ValueError where the denoiser cannot halve its sides.

        Pictures are of the model's `size`, or of that of conditions aligned with them.
        """
        H, W = self.size, self.size
        if isinstance(self.conditioner, SpatialConditioner):
            H, W = self.conditioner.picture_size(y)
        f, multiple = self.first_stage.f, self.first_stage.f * 2 ** (len(self.denoiser_config.widths) - 1)
        if H % multiple or W % multiple:
            raise ValueError(f"this model makes pictures with sides that are multiples of {multiple}, got {H} x {W}; "
                             f"pad them first")
        return self.denoiser_config.out_channels, H // f, W // f

    def decode(self, z0: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """Scaled latents -> pictures (f times the sides), clamped to [-1, 1]."""
        return self.first_stage.decode(self.stats.unscale(z0)).clamp(-1, 1)

    @staticmethod
    def _not_finite(what: str, maker: str, start: int) -> FloatingPointError:
        return FloatingPointError(f"{what} from {maker} are not finite in the batch that begins with sample {start}: "
                                  "try a lower `guidance_scale`, or train with another `seed`")

    def sample(
        self, y: Shaped[Tensor, "n ..."], *, num_steps: int, sampler: str = "ddim", eta: float | int = 0.0,
        guidance_scale: float | int = 1.0, seed: int = 0, indices: Sequence[int] | None = None,
        batch_size: int = 128, guided: Guided | None = None, progress: Callable[[int], None] | None = None,
    ) -> Float[Tensor, "n 3 H W"]:
        """One picture in [-1, 1] per condition of `y`, by a sampler of `SAMPLERS`, on the CPU.

        An unconditional model uses only the length of `y`. Pictures have the model's `size`, or that of conditions
        aligned with them; if it is larger than in training, sampling is convolutional [LDM v2, Sec. 4.3.2]. `eta` in
        [0, 1] is DDIM's. `guidance_scale` is that of classifier-free guidance, 1 without.

        Sample i draws its noise from (`seed`, i) alone (`SampleNoise`), so it depends neither on `batch_size`, but for
        rounding, nor on the other samples, and its starting noise is the same for all samplers. Samples have the
        numbers `indices`, one per condition, by default 0, 1, 2, ... `guided(eps_model, rows)` may return a further
        guided eps_model for the pictures of the slice `rows`, with gradients if needed. `progress` is called with the
        number of pictures done. ValueError for an unknown sampler, for `eta` with another sampler than DDIM, and for
        another number of `indices` than of conditions; FloatingPointError for latents or pictures that are not finite.

        >>> from ldmlab.diffusion.schedules import scaled_linear
        >>> from ldmlab.diffusion.unet.unet import UNet
        >>> from ldmlab.first_stage.autoencoder import AutoencoderConfig, build_autoencoder
        >>> first_stage = build_autoencoder(AutoencoderConfig(f=1, z_channels=3, reg="none", resolution=8)).eval()
        >>> denoiser = UNet(DenoiserConfig(3, 3, widths=(32,), num_res_blocks=1, num_heads=1)).eval()
        >>> stats = LatentStats("none", mean=(0.0,), std=(1.0,), std_error=(0.0,), num_images=0)
        >>> model = LatentDiffusion(first_stage, stats, denoiser, scaled_linear(), None, 8, torch.device("cpu"))
        >>> model.sample(torch.zeros(4), num_steps=2).shape
        torch.Size([4, 3, 8, 8])
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
        indices = range(len(y)) if indices is None else indices
        if len(indices) != len(y):
            raise ValueError(f"samples have one number per condition; got {len(indices)} indices, {len(y)} conditions")
        shape, pictures = self.latent_shape(y), []
        # Tensors of inference mode can never be differentiated, so it is off where `guided` may take gradients.
        with torch.no_grad(), torch.inference_mode(guided is None):
            for start in range(0, len(y), batch_size):
                rows = slice(start, start + batch_size)
                eps_model = self.eps_model(y[rows].to(self.device), guidance_scale)
                if guided is not None:
                    eps_model = guided(eps_model, rows)
                noise = SampleNoise(seed, indices[rows])
                with self.around_batch(len(y[rows])) if guided is None else nullcontext():
                    z0 = draw(eps_model, noise.draw(shape, self.device), self.schedule, num_steps, generator=noise)
                    if not z0.isfinite().all():
                        raise self._not_finite("latents", f"{sampler}, {num_steps} steps, {guidance_scale = :g}", start)
                    pictures.append(self.decode(z0).float().cpu())
                if not pictures[-1].isfinite().all():
                    raise self._not_finite("pictures", "the decoder of the first stage", start)
                if progress is not None:
                    progress(sum(map(len, pictures)))
        return torch.cat(pictures)
