"""Training a latent diffusion model: the objective, its training step, and regression on pictures as a baseline."""

from collections.abc import Sequence
from itertools import repeat
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from ldmlab.data.images import to_float
from ldmlab.diffusion.conditioning.spatial import SpatialConditioner
from ldmlab.diffusion.conditioning.tokens import Conditioner, conditioned
from ldmlab.diffusion.latent_module import LatentModule
from ldmlab.diffusion.samplers import EpsModel
from ldmlab.diffusion.schedules import Schedule
from ldmlab.diffusion.unet.unet import UNet


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
