"""Training a latent diffusion model: the objective, its training step, and regression on pictures as a baseline."""

from collections.abc import Sequence
from itertools import repeat
from typing import Any, cast

import pytorch_lightning as pl
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from ldmlab.data.images import to_float
from ldmlab.diffusion.conditioning.spatial import SpatialConditioner
from ldmlab.diffusion.conditioning.tokens import Conditioner, conditioned
from ldmlab.diffusion.ema import EMA
from ldmlab.diffusion.samplers import EpsModel
from ldmlab.diffusion.schedules import Schedule
from ldmlab.diffusion.unet.unet import UNet


class LatentModule(pl.LightningModule):
    """Base of all training on cached latents: scaled samples of z, AdamW with warm-up, EMA, resumption.

    `trained` are the modules that learn, on latents of `latent_channels`. `scale_factor` (1,) or (c,) multiplies z, and
    is that of the first stage's `LatentStats`.
    """

    clip_norm = 1.0
    scale: Tensor

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
        self._optimizer_state: dict[str, Any] | None = None  # of a run to continue, until its training starts
        self.trained = nn.ModuleDict(trained)
        self.ema = EMA(self.trained, decay=ema_decay)

    def on_fit_start(self) -> None:
        """Move schedule and averages, which are no modules, to the device of the weights."""
        self.schedule = self.schedule.to(self.device)
        self.ema.to(self.device)

    def z0_from_moments(self, moments: Float[Tensor, "b c2 h w"]) -> Float[Tensor, "b c h w"]:
        """A fresh sample of each cached posterior, scaled; moments (b, 2c, h, w) are its mean and log-variance.

        Moments of c channels are latents already (VQ, or no first stage). ValueError for other channels.
        """
        c = self.latent_channels
        if moments.shape[1] == 2 * c:
            mean, logvar = moments.chunk(2, 1)
            moments = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        elif moments.shape[1] != c:
            raise ValueError(f"this model takes {c} channels, so moments have {c} or {2 * c}; got {moments.shape[1]}")
        return moments * self.scale

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW with an absolute learning rate, not scaled by batch size or number of GPUs as in the released code."""
        fused = self.device.type in ("cuda", "cpu")
        parameters = self.trained.parameters()
        return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay, fused=fused)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Set the learning rate by linear warm-up over our own step count; update the weights, then their EMA."""
        ramp = min(1.0, (self.ema.num_updates + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        for group in optimizer.param_groups:
            group["lr"] = self.lr * ramp
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.ema.update(self.trained)

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | int | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm over all parameters that train.

        Lightning's own clipping raises for a fused optimizer, which is needed only in float16, where gradients are
        scaled; so it is called there alone, and not under bfloat16.
        """
        if self.trainer.precision == "16-mixed":
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val is not None:
            nn.utils.clip_grad_norm_(self.trained.parameters(), gradient_clip_val)

    def training_state(self) -> dict[str, Any]:
        """The state that continues a run: weights, EMA, optimizer; tensors and numbers only."""
        return {"model": self.trained.state_dict(), "ema": self.ema.state_dict(),
                "optimizer": self._optimizer().state_dict()}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Load weights and EMA now, and the optimizer's state when training starts."""
        self.trained.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self._optimizer_state = state["optimizer"]

    def on_train_start(self) -> None:
        """Load the optimizer's state, if a run is continued."""
        if self._optimizer_state is not None:
            self._optimizer().load_state_dict(self._optimizer_state)
            self._optimizer_state = None

    def _optimizer(self) -> torch.optim.Optimizer:
        return cast(torch.optim.Optimizer, self.optimizers(use_pl_optimizer=False))


def denoising_error(
    eps_hat: Float[Tensor, "b *dims"], eps: Float[Tensor, "b *dims"], kind: str = "l2"
) -> Float[Tensor, " b"]:
    """|| eps - eps_hat ||^2 for "l2", || eps - eps_hat ||_1 for "l1", per item and averaged over its entries.

    The mean of the former over x, eps and t is the objective of a diffusion model [LDM v2, Eq. 1].
    """
    match kind:
        case "l2":
            error = (eps_hat - eps).square()
        case "l1":
            error = (eps_hat - eps).abs()
        case _:
            raise ValueError(f'the norm of the objective is "l1" or "l2", got {kind!r}')
    return error.flatten(1).mean(1)


def weighted_objective(
    error: Float[Tensor, " b"], t: Int[Tensor, " b"], schedule: Schedule, *,
    logvar: Float[Tensor, " T"] | None = None, vlb_weight: float = 0.0,
) -> Float[Tensor, ""]:
    """The released objective, from errors at steps `t`: by default their plain mean.

    With `logvar`, a learned log-variance for each step, an error counts as error / exp(logvar_t) + logvar_t. To the
    mean of these, `vlb_weight` times the mean of the errors weighted as in the variational bound [DDPM, Eq. 12] is
    added. No released configuration uses either.
    """
    simple = error if logvar is None else error / logvar[t].exp() + logvar[t]
    if vlb_weight == 0:
        return simple.mean()
    bound = schedule.vlb_weights.to(error.device, error.dtype)[t] * error
    return simple.mean() + vlb_weight * bound.mean()


def diffusion_loss(
    eps_model: EpsModel, z0: Float[Tensor, "b *dims"], t: Int[Tensor, " b"], eps: Float[Tensor, "b *dims"],
    schedule: Schedule, kind: str = "l2",
) -> Float[Tensor, ""]:
    """L_LDM = E || eps - eps_theta(z_t, t) ||^2, of one draw of z_0, t and eps an item [LDM v2, Eq. 2].

    >>> from ldmlab.diffusion.schedules import scaled_linear
    >>> z0, eps, t = torch.zeros(2, 4), torch.ones(2, 4), torch.tensor([3, 700])
    >>> diffusion_loss(lambda z_t, t: torch.zeros_like(z_t), z0, t, eps, scaled_linear())
    tensor(1.)
    """
    z_t = schedule.q_sample(z0, t, eps)
    eps_hat = eps_model(z_t, t)
    return weighted_objective(denoising_error(eps_hat, eps, kind), t, schedule)


class DiffusionModule(LatentModule):
    """Trains a denoiser, and a conditioner tau_theta with it, on cached latents.

    `scale_factor` (1,) or (c,) multiplies z; it and the first stage belong together. `loss` is the norm, "l2" or "l1".
    A step processes its batch in `accumulate` parts, one after the other, whose gradients add up to those of the whole
    batch: it needs the memory of one part, and is the same step but for rounding and for what is dropped at random.
    ValueError for `accumulate` < 1.
    """

    def __init__(
        self,
        denoiser: UNet,
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
            raise ValueError(f"accumulate is the number of parts of a batch, at least 1; got {accumulate}")
        if channels_last:
            denoiser.to(memory_format=torch.channels_last)
        trained: dict[str, nn.Module] = {"denoiser": denoiser} | ({"tau": conditioner} if conditioner else {})
        super().__init__(trained, schedule, denoiser.config.out_channels, scale_factor=scale_factor, lr=lr,
                         warmup_steps=warmup_steps, weight_decay=weight_decay, ema_decay=ema_decay)
        self.denoiser, self.conditioner, self.loss, self.accumulate = denoiser, conditioner, loss, accumulate

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """The loss on a batch: a fresh z_0 of each posterior, t uniform over the steps, eps standard normal."""
        z0 = self.z0_from_moments(batch["moments"])
        t = torch.randint(self.schedule.T, (len(z0),), device=z0.device)
        eps = torch.randn_like(z0)
        y = None if self.conditioner is None else self.conditioner.condition(batch)
        self.trained.zero_grad()
        return {"loss": self._accumulated_loss(z0, y, t, eps)}

    def eps_loss(
        self, z0: Float[Tensor, "b c h w"], y: Shaped[Tensor, "b ..."] | None, t: Int[Tensor, " b"],
        eps: Float[Tensor, "b c h w"],
    ) -> Float[Tensor, ""]:
        """L_LDM = E || eps - eps_theta(z_t, t, tau_theta(y)) ||^2 [LDM v2, Eq. 3].

        In training mode the conditioner drops the condition of random items, for classifier-free guidance.
        """
        eps_model = conditioned(self.denoiser, self.conditioner, y)
        return diffusion_loss(eps_model, z0, t, eps, self.schedule, self.loss)

    def _accumulated_loss(self, z0: Tensor, y: Tensor | None, t: Tensor, eps: Tensor) -> Tensor:
        """`eps_loss` of a batch, of which all parts but the last are differentiated here; Lightning does the last."""
        *others, last = zip(*(repeat(None) if v is None else v.chunk(self.accumulate) for v in (z0, y, t, eps)),
                            strict=False)
        done = torch.zeros((), device=z0.device)
        for part in others:
            loss = len(part[0]) / len(z0) * self.eps_loss(*part)
            with torch.autocast(z0.device.type, enabled=False):
                self.trainer.strategy.backward(loss, None)
            done += loss.detach()
        return done + len(last[0]) / len(z0) * self.eps_loss(*last)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Do nothing: Lightning would zero gradients after the loss, when parts of a batch already have theirs."""


def regress(
    net: UNet, conditioner: SpatialConditioner, y: Shaped[Tensor, "b ..."]
) -> Float[Tensor, "b 3 H W"]:
    """x_hat of pixels, not clamped: the picture in the first three channels of the condition plus the net's output."""
    c = conditioner(y)
    return c[:, :3] + net(c, torch.zeros(len(c), device=c.device, dtype=torch.long))


class RegressionModule(LatentModule):
    """Trains a UNet on E || x - x_hat(y) ||^2 over pictures, which maximises PSNR.

    `conditioner` works at f = 1, so its first three channels are a picture: the enlarged, or the masked one.
    """

    def __init__(self, net: UNet, conditioner: SpatialConditioner, schedule: Schedule, **options: Any):
        super().__init__({"net": net}, schedule, 3, scale_factor=(1.0,), **options)
        self.net, self.conditioner = net, conditioner

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """The loss on a batch of pictures `image`, (b, 3, H, W) uint8, with the condition made from them."""
        x = to_float(batch["image"])
        return {"loss": F.mse_loss(regress(self.net, self.conditioner, self.conditioner.condition(batch)).float(), x)}
