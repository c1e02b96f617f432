"""Training a latent diffusion model: the objective of Eq. 2/3 on cached latents, with EMA."""

from collections.abc import Sequence
from itertools import repeat

import pytorch_lightning as pl
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from ldmlab.data.images import to_float
from ldmlab.diffusion.conditioning.spatial import SpatialConditioner
from ldmlab.diffusion.conditioning.tokens import Conditioner, conditioned
from ldmlab.diffusion.ema import EMA
from ldmlab.diffusion.schedules import Schedule
from ldmlab.diffusion.unet.unet import UNet


class LatentModule(pl.LightningModule):
    """What all training on cached latents shares: fresh samples of z, scaled; AdamW with warm-up; EMA; resumption.

    `trained` are the modules that learn, on latents of `latent_channels`; `scale_factor` (1,) or (c,) multiplies z.
    """

    clip_norm = 1.0

    def __init__(
        self,
        trained: dict[str, nn.Module],
        schedule: Schedule,
        latent_channels: int,
        *,
        scale_factor: Sequence[float],
        lr: float,
        warmup_steps: int,
        weight_decay: float,
        ema_decay: float,
    ):
        super().__init__()
        self.schedule, self.latent_channels = schedule, latent_channels
        self.register_buffer("scale", torch.tensor(scale_factor, dtype=torch.float32)[:, None, None], persistent=False)
        self.lr, self.warmup_steps, self.weight_decay = lr, warmup_steps, weight_decay
        self.trained = nn.ModuleDict(trained)
        self.ema = EMA(self.trained, decay=ema_decay)

    def on_fit_start(self) -> None:
        self.schedule = self.schedule.to(self.device)
        self.ema.to(self.device)

    def z0_from_moments(self, moments: Float[Tensor, "b c2 h w"]) -> Float[Tensor, "b c h w"]:
        """A fresh, scaled sample of each cached posterior; moments of c channels are latents already."""
        c = self.latent_channels
        if moments.shape[1] == 2 * c:
            mean, logvar = moments.chunk(2, 1)
            moments = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        elif moments.shape[1] != c:
            raise ValueError(f"this model takes {c} channels, so moments have {c} or {2 * c}; got {moments.shape[1]}")
        return moments * self.scale

    def configure_optimizers(self):
        """AdamW with an absolute learning rate: no hidden factor of batch size or number of GPUs."""
        fused = self.device.type in ("cuda", "cpu")
        parameters = self.trained.parameters()
        return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay, fused=fused)

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        """Linear warm-up by our own step count, the update, then EMA."""
        ramp = min(1.0, (self.ema.num_updates + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        for group in optimizer.param_groups:
            group["lr"] = self.lr * ramp
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.ema.update(self.trained)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """By the norm over all that trains; float16, which scales gradients, is left to Lightning to refuse.

        Lightning's own clipping refuses a fused optimizer under bfloat16 as well, where nothing is scaled.
        """
        if self.trainer.precision == "16-mixed":
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val is not None:
            nn.utils.clip_grad_norm_(self.trained.parameters(), gradient_clip_val)

    def training_state(self) -> dict:
        """All that continues the run: weights, EMA, optimizer; tensors and numbers only."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        return {"model": self.trained.state_dict(), "ema": self.ema.state_dict(), "optimizer": optimizer.state_dict()}

    def load_training_state(self, state: dict) -> None:
        """Take up weights and EMA now and the optimizer's state once training starts."""
        self.trained.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self._optimizer_state = state["optimizer"]

    def on_train_start(self) -> None:
        if getattr(self, "_optimizer_state", None) is not None:
            self.optimizers(use_pl_optimizer=False).load_state_dict(self._optimizer_state)
            self._optimizer_state = None


class DiffusionModule(LatentModule):
    """L_LDM = E || eps - eps_theta(z_t, t, tau(y)) ||^2 over random z_0, t and eps [LDM v2, Eq. 2, 3].

    `scale_factor` (1,) or (c,) multiplies z; `first_stage` and it belong together, so both are checked and saved.
    A step takes its batch in `accumulate` parts, one after the other, whose gradients add up to those of the whole: the
    memory of one part, and the same step but for rounding and for what is dropped at random.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        schedule: Schedule,
        conditioner: Conditioner | SpatialConditioner | None = None,
        *,
        scale_factor: Sequence[float] = (1.0,),
        loss: str = "l2",
        lr: float = 1e-4,
        warmup_steps: int = 0,
        weight_decay: float = 0.01,
        ema_decay: float = 0.9999,
        channels_last: bool = False,
        accumulate: int = 1,
    ):
        if accumulate < 1:
            raise ValueError(f"accumulate counts the parts of a batch, from 1 on; got {accumulate}")
        if channels_last:
            denoiser.to(memory_format=torch.channels_last)  # before the averages are made in its likeness
        trained = {"denoiser": denoiser} | ({"tau": conditioner} if conditioner else {})
        super().__init__(trained, schedule, denoiser.config.out_channels, scale_factor=scale_factor, lr=lr,
                         warmup_steps=warmup_steps, weight_decay=weight_decay, ema_decay=ema_decay)
        self.denoiser, self.conditioner, self.loss, self.accumulate = denoiser, conditioner, loss, accumulate

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        z0 = self.z0_from_moments(batch["moments"])
        t = torch.randint(self.schedule.T, (len(z0),), device=z0.device)
        eps = torch.randn_like(z0)
        y = None if self.conditioner is None else self.conditioner.condition(batch)
        *others, last = zip(*(repeat(None) if v is None else v.chunk(self.accumulate) for v in (z0, y, t, eps)),
                            strict=False)
        self.trained.zero_grad()
        done = torch.zeros((), device=z0.device)
        for part in others:
            loss = len(part[0]) / len(z0) * self.eps_loss(*part)
            with torch.autocast(z0.device.type, enabled=False):
                self.trainer.strategy.backward(loss, None)
            done += loss.detach()
        return {"loss": done + len(last[0]) / len(z0) * self.eps_loss(*last)}

    def optimizer_zero_grad(self, epoch, batch_idx, optimizer) -> None:
        """Not here, between the loss and its backward pass: `training_step` does it, before a batch's first part."""

    def eps_loss(
        self, z0: Float[Tensor, "b c h w"], y: Shaped[Tensor, "b ..."] | None, t: Int[Tensor, " b"],
        eps: Float[Tensor, "b c h w"],
    ) -> Float[Tensor, ""]:
        """|| eps - eps_hat || of the objective, with the condition dropped at random for guidance."""
        eps_hat = conditioned(self.denoiser, self.conditioner, y)(self.schedule.q_sample(z0, t, eps), t)
        return weighted_objective(denoising_error(eps_hat, eps, self.loss), t, self.schedule)


def regress(
    net: UNet, conditioner: SpatialConditioner, y: Shaped[Tensor, "b ..."]
) -> Float[Tensor, "b 3 H W"]:
    """x_hat of pixels, not clamped: what the condition shows of the picture, plus what the net finds missing."""
    c = conditioner(y)
    return c[:, :3] + net(c, torch.zeros(len(c), device=c.device, dtype=torch.long))


class RegressionModule(LatentModule):
    """E || x - x_hat(y) ||^2 over pictures: PSNR is what it is trained for.

    `conditioner` works at f = 1, so its first three channels are a picture: the enlarged, or the masked one.
    """

    def __init__(self, net: UNet, conditioner: SpatialConditioner, schedule: Schedule, **options):
        super().__init__({"net": net}, schedule, 3, scale_factor=(1.0,), **options)
        self.net, self.conditioner = net, conditioner

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        x = to_float(batch["image"])
        return {"loss": F.mse_loss(regress(self.net, self.conditioner, self.conditioner.condition(batch)).float(), x)}


def denoising_error(
    eps_hat: Float[Tensor, "b *dims"], eps: Float[Tensor, "b *dims"], kind: str = "l2"
) -> Float[Tensor, " b"]:
    """|| eps - eps_hat || per item, squared for "l2", absolute for "l1", averaged over its entries."""
    match kind:
        case "l2":
            error = (eps_hat - eps).square()
        case "l1":
            error = (eps_hat - eps).abs()
        case _:
            raise ValueError(f'the objective\'s norm is "l1" or "l2", got {kind!r}')
    return error.flatten(1).mean(1)


def weighted_objective(
    error: Float[Tensor, " b"], t: Int[Tensor, " b"], schedule: Schedule, *,
    logvar: Float[Tensor, " T"] | None = None, vlb_weight: float = 0.0,
) -> Float[Tensor, ""]:
    """The released objective: mean error, or with `logvar`, of error / exp(logvar_t) + logvar_t, plus the bound's.

    The second term, `vlb_weight` times the weights of the variational bound [DDPM, Eq. 12], is 0 in every released
    configuration, as is `logvar`: then this is the plain mean of Eq. 2.
    """
    simple = error if logvar is None else error / logvar[t].exp() + logvar[t]
    if vlb_weight == 0:
        return simple.mean()
    bound = schedule.vlb_weights.to(error.device, error.dtype)[t] * error
    return simple.mean() + vlb_weight * bound.mean()
