"""Training of a first stage: the step of autoencoder and discriminator, and a watchdog of the adversarial term."""

import pytorch_lightning as pl
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ldmlab.data.images import to_float
from ldmlab.first_stage.autoencoder import AutoencoderKL, AutoencoderVQ
from ldmlab.first_stage.losses import FirstStageLoss

WATCHDOG_MARGIN_DB = 1.0  # of PSNR, see `FirstStageModule.watch`


class FirstStageModule(pl.LightningModule):
    """Autoencoder and discriminator, each with its optimizer [LDM v2, Eq. 25, App. G].

    Deviation: the discriminator is trained on the reconstructions of the autoencoder's step. With `exact` it gets new
    ones, as in the released code: computed after the autoencoder's update, from new samples of the posterior, at the
    cost of a second forward pass. The two are equal until the discriminator is active.

    Deviation: the learning rate may be warmed up over `warmup_steps` and, from the share `decay_from` of the run on,
    decay linearly to `final_lr` of its value; the released models keep it constant (`warmup_steps=0, final_lr=1`).
    """

    automatic_optimization = False

    def __init__(
        self,
        autoencoder: AutoencoderKL | AutoencoderVQ,
        loss: FirstStageLoss,
        *,
        lr: float,
        num_steps: int,
        disc_lr: float | None = None,
        warmup_steps: int = 0,
        decay_from: float = 0.5,
        final_lr: float = 1.0,
        clip_norm: float | None = None,
        revive_every: int = 0,
        exact: bool = False,
    ):
        super().__init__()
        self.autoencoder, self.loss = autoencoder, loss
        self.lr, self.disc_lr, self.num_steps = lr, disc_lr or lr, num_steps
        self.warmup_steps, self.decay_from, self.final_lr = warmup_steps, decay_from, final_lr
        self.clip_norm, self.revive_every, self.exact = clip_norm, revive_every, exact
        self.step = 0  # finished steps; Lightning's own count adds up both optimizers
        self.best_psnr = float("-inf")

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Update autoencoder and (once active) discriminator on `batch["image"]`, uint8; returns values to log."""
        opt_ae, opt_disc = self._optimizers()
        x = to_float(batch["image"])
        if isinstance(self.autoencoder, AutoencoderVQ):
            self._update_codebook(self.autoencoder, x)
        out = self.autoencoder(x)

        # Autoencoder: reconstruction, perceptual and adversarial terms, regularizer.
        self._set_lr(opt_ae, self.lr)
        terms = self.loss.generator_terms(x, out.x_rec, out.reg_loss, self.autoencoder.last_layer, self.step)
        opt_ae.zero_grad()
        self.manual_backward(terms.loss)
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.autoencoder.parameters(), self.clip_norm)
        opt_ae.step()
        logged = {"loss": terms.loss.detach(), "l1": terms.l1, "perceptual": terms.perceptual, **out.info}

        # Discriminator: the same reconstructions or, as released, new ones, detached from the autoencoder.
        if self.loss.adversary_active(self.step):
            self._set_lr(opt_disc, self.disc_lr)
            with torch.no_grad():
                x_rec = self.autoencoder(x).x_rec if self.exact else out.x_rec
            disc_loss, real, fake = self.loss.discriminator_loss(x, x_rec)
            opt_disc.zero_grad()
            self.manual_backward(disc_loss)
            opt_disc.step()
            logged |= {"disc_loss": disc_loss.detach(), "logits_real": real, "logits_fake": fake,
                       "adversarial_weight": terms.adversarial_weight}
        self.step += 1
        return logged

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        """Those of autoencoder and discriminator, wrapped by Lightning."""
        return list(self.optimizers())

    def _set_lr(self, optimizer: torch.optim.Optimizer, lr: float) -> None:
        """Set the learning rate as a function of the step, so that a resumed run has no scheduler to restore."""
        factor = min(1.0, (self.step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        past = (self.step / self.num_steps - self.decay_from) / (1 - self.decay_from)
        factor *= 1 - (1 - self.final_lr) * max(0.0, past)
        for group in optimizer.param_groups:
            group["lr"] = lr * factor

    @torch.no_grad()
    def _update_codebook(self, autoencoder: AutoencoderVQ, x: Tensor) -> None:
        """Deviation: codes start as latents; unused ones are reset to latents every `revive_every` steps."""
        quantizer = autoencoder.quantizer
        if self.step == 0:
            quantizer.initialize(autoencoder.to_latent(autoencoder.encoder(x)))
            quantizer.reset_usage()
        # Not in the last fifth of the run, so that the decoder is trained on a settled codebook.
        elif self.revive_every and self.step % self.revive_every == 0 and self.step < 0.8 * self.num_steps:
            quantizer.revive_dead_codes(autoencoder.to_latent(autoencoder.encoder(x)))
            quantizer.reset_usage()

    @torch.inference_mode()
    def validate(self, images: UInt8[Tensor, "n 3 H W"], batch_size: int = 128) -> dict[str, float]:
        """PSNR (dB, mean over pictures) of reconstructions from the mode of the posterior, clamped to [-1, 1]."""
        training = self.autoencoder.training
        self.autoencoder.eval()
        psnr = [self._psnr(to_float(part.to(self.device))) for part in images.split(batch_size)]
        self.autoencoder.train(training)
        return {"val_psnr": float(torch.cat(psnr).mean())}

    def _psnr(self, x: Float[Tensor, "b 3 H W"]) -> Float[Tensor, " b"]:
        x_rec = self.autoencoder.decode(self.autoencoder.most_probable_latent(x)).clamp(-1, 1)
        return 10 * torch.log10(4 / (x - x_rec).square().flatten(1).mean(1))

    def watch(self, psnr: float) -> str | None:
        """Halve the discriminator's weight where validation `psnr` (dB) has dropped; returns a message if so.

        That is, where it is more than WATCHDOG_MARGIN_DB below the best so far while the discriminator is active.
        """
        message = None
        if self.loss.adversary_active(self.step) and psnr < self.best_psnr - WATCHDOG_MARGIN_DB:
            self.loss.disc_weight /= 2
            message = (f"step {self.step}: validation PSNR {psnr:.2f} dB is more than {WATCHDOG_MARGIN_DB:g} dB below "
                       f"its best, {self.best_psnr:.2f} dB; discriminator weight halved to {self.loss.disc_weight:g}")
            self.best_psnr = psnr  # the reference for the halved weight
        self.best_psnr = max(self.best_psnr, psnr)
        return message

    def configure_optimizers(self) -> tuple[torch.optim.Adam, torch.optim.Adam]:
        """Adam with beta = (0.5, 0.9) for autoencoder and discriminator, as released."""
        betas, fused = (0.5, 0.9), self.device.type in ("cuda", "cpu")
        return (torch.optim.Adam(self.autoencoder.parameters(), lr=self.lr, betas=betas, fused=fused),
                torch.optim.Adam(self.loss.discriminator.parameters(), lr=self.disc_lr, betas=betas, fused=fused))

    def training_state(self) -> dict:
        """State to resume from: weights, optimizers, step count, and the watchdog's values."""
        return {
            "autoencoder": self.autoencoder.state_dict(), "discriminator": self.loss.discriminator.state_dict(),
            "optimizers": [opt.state_dict() for opt in self._plain_optimizers()],
            "step": self.step, "best_psnr": self.best_psnr, "disc_weight": self.loss.disc_weight,
        }

    def load_training_state(self, state: dict) -> None:
        """Restore everything but the optimizers, which are restored once training starts."""
        self.autoencoder.load_state_dict(state["autoencoder"])
        self.loss.discriminator.load_state_dict(state["discriminator"])
        self.step, self.best_psnr, self.loss.disc_weight = state["step"], state["best_psnr"], state["disc_weight"]
        self._optimizer_states = state["optimizers"]

    def _plain_optimizers(self) -> list[torch.optim.Optimizer]:
        optimizers = self.optimizers(use_pl_optimizer=False)
        return optimizers if isinstance(optimizers, list) else [optimizers]

    def on_train_start(self) -> None:
        """Restore the optimizers of `load_training_state`."""
        states, self._optimizer_states = getattr(self, "_optimizer_states", None), None
        for optimizer, state in zip(self._plain_optimizers(), states or (), strict=False):
            optimizer.load_state_dict(state)
