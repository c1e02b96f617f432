"""Training on cached latents: fresh samples of z_0, AdamW with warm-up, EMA and resumption."""

from collections.abc import Sequence
from typing import Any, cast

import pytorch_lightning as pl
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ldmlab.diffusion.ema import EMA
from ldmlab.diffusion.schedules import Schedule


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
