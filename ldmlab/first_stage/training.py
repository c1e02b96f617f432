"""Training a first stage: one forward pass for autoencoder and discriminator, or the released two; a watchdog."""

import pytorch_lightning as pl
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ldmlab.data.images import to_float
from ldmlab.first_stage.losses import FirstStageLoss

WATCHDOG_MARGIN_DB = 1.0


class FirstStageModule(pl.LightningModule):
    """Autoencoder and discriminator, each with its optimizer [LDM v2, Eq. 25, App. G].

    Deviation: the discriminator learns from the reconstruction that the autoencoder learned from. With `exact` it gets
    another one, as in the released code: made after the autoencoder's update, from a fresh sample of the posterior, at
    the cost of a second forward pass. While the discriminator is not active, both are the same.

    Deviation: the learning rate may be warmed up and, from `decay_from` of the run on, fall linearly to `final_lr` of
    its value; the released models keep it constant (`warmup_steps=0, final_lr=1`).
    """

    automatic_optimization = False

    def __init__(
        self,
        autoencoder: torch.nn.Module,
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
        opt_ae, opt_disc = self.optimizers()
        x = to_float(batch["image"])
        if self.autoencoder.reg == "vq":
            self._tend_codebook(x)
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

        # Discriminator: the same reconstructions or, as released, new ones, cut off from the autoencoder.
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

    def _set_lr(self, optimizer, lr: float) -> None:
        """The learning rate as a function of our own step count: nothing to restore on resume."""
        factor = min(1.0, (self.step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        past = (self.step / self.num_steps - self.decay_from) / (1 - self.decay_from)
        factor *= 1 - (1 - self.final_lr) * max(0.0, past)
        for group in optimizer.param_groups:
            group["lr"] = lr * factor

    @torch.no_grad()
    def _tend_codebook(self, x: Tensor) -> None:
        """Deviation: codes start on latents of the first batch, and unused ones are moved onto latents now and then."""
        quantizer = self.autoencoder.quantizer
        if self.step == 0:
            quantizer.initialize(self.autoencoder.to_latent(self.autoencoder.encoder(x)))
            quantizer.reset_usage()
        # Not in the last fifth of the run, so that the decoder sees a settled codebook.
        elif self.revive_every and self.step % self.revive_every == 0 and self.step < 0.8 * self.num_steps:
            quantizer.revive_dead_codes(self.autoencoder.to_latent(self.autoencoder.encoder(x)))
            quantizer.reset_usage()

    @torch.inference_mode()
    def validate(self, images: UInt8[Tensor, "n 3 H W"], batch_size: int = 128) -> dict[str, float]:
        """PSNR (dB, mean over pictures) of reconstructions from the mean latent, clamped to [-1, 1]."""
        training = self.autoencoder.training
        self.autoencoder.eval()
        psnr = [self._psnr(to_float(part.to(self.device))) for part in images.split(batch_size)]
        self.autoencoder.train(training)
        return {"val_psnr": float(torch.cat(psnr).mean())}

    def _psnr(self, x: Float[Tensor, "b 3 H W"]) -> Float[Tensor, " b"]:
        x_rec = self.autoencoder.decode(self.autoencoder.most_probable_latent(x)).clamp(-1, 1)
        return 10 * torch.log10(4 / (x - x_rec).square().flatten(1).mean(1))

    def watch(self, psnr: float) -> str | None:
        """Damp a discriminator that ruins reconstruction: halve its weight, and say so in the sentence returned.

        Ruin is a validation PSNR more than WATCHDOG_MARGIN_DB below the best one so far while the adversary plays.
        """
        sentence = None
        if self.loss.adversary_active(self.step) and psnr < self.best_psnr - WATCHDOG_MARGIN_DB:
            self.loss.disc_weight /= 2
            sentence = (f"step {self.step}: validation PSNR {psnr:.2f} dB is more than {WATCHDOG_MARGIN_DB:g} dB below "
                        f"its best, {self.best_psnr:.2f} dB; discriminator weight halved to {self.loss.disc_weight:g}")
            self.best_psnr = psnr  # judge the damped discriminator from here
        self.best_psnr = max(self.best_psnr, psnr)
        return sentence

    def configure_optimizers(self):
        """Adam with beta = (0.5, 0.9), as released."""
        fused = self.device.type in ("cuda", "cpu")
        make = {"betas": (0.5, 0.9), "fused": fused}
        return (torch.optim.Adam(self.autoencoder.parameters(), lr=self.lr, **make),
                torch.optim.Adam(self.loss.discriminator.parameters(), lr=self.disc_lr, **make))

    def training_state(self) -> dict:
        """All that continues the run: weights, optimizers, our step count, the watchdog's memory."""
        return {
            "autoencoder": self.autoencoder.state_dict(), "discriminator": self.loss.discriminator.state_dict(),
            "optimizers": [opt.state_dict() for opt in self.optimizers(use_pl_optimizer=False)],
            "step": self.step, "best_psnr": self.best_psnr, "disc_weight": self.loss.disc_weight,
        }

    def load_training_state(self, state: dict) -> None:
        """Take up everything but the optimizers now, and those once training starts."""
        self.autoencoder.load_state_dict(state["autoencoder"])
        self.loss.discriminator.load_state_dict(state["discriminator"])
        self.step, self.best_psnr, self.loss.disc_weight = state["step"], state["best_psnr"], state["disc_weight"]
        self._optimizer_states = state["optimizers"]

    def on_train_start(self) -> None:
        states, self._optimizer_states = getattr(self, "_optimizer_states", None), None
        for optimizer, state in zip(self.optimizers(use_pl_optimizer=False), states or (), strict=False):
            optimizer.load_state_dict(state)
