"""Training the classifier p_phi(y | z_t, t) on cached latents, at every noise level [LDM v2, App. C, D.4]."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from ldmlab.diffusion.classifier import NoisyClassifier
from ldmlab.diffusion.schedules import Schedule
from ldmlab.diffusion.training import LatentModule


class ClassifierModule(LatentModule):
    """Cross-entropy E[-log p_phi(y | z_t, t)] over random z_0, t and eps, on the denoiser's own latents [ADM, Sec. 4].

    `scale_factor` and `schedule` are those of the diffusion model that the classifier is to guide.
    """

    def __init__(
        self,
        classifier: NoisyClassifier,
        schedule: Schedule,
        *,
        scale_factor: Sequence[float] = (1.0,),
        lr: float = 1e-4,
        warmup_steps: int = 0,
        weight_decay: float = 0.01,
        ema_decay: float = 0.9999,
    ):
        super().__init__({"classifier": classifier}, schedule, classifier.config.in_channels, scale_factor=scale_factor,
                         lr=lr, warmup_steps=warmup_steps, weight_decay=weight_decay, ema_decay=ema_decay)
        self.classifier = classifier

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        z0, y = self.z0_from_moments(batch["moments"]), batch["label"]
        t = torch.randint(self.schedule.T, (len(z0),), device=z0.device)
        logits = self.logits(z0, t, torch.randn_like(z0))
        return {"loss": F.cross_entropy(logits, y), "accuracy": (logits.argmax(1) == y).float().mean()}

    def logits(
        self, z0: Float[Tensor, "b c h w"], t: Int[Tensor, " b"], eps: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b k"]:
        """What the classifier makes of z_t, in float32 also under autocast."""
        return self.classifier(self.schedule.q_sample(z0, t, eps), t).float()


@torch.no_grad()
def accuracy_by_noise(
    module: ClassifierModule, latents: Dataset, times: Sequence[int], *, batch_size: int = 128, seed: int = 0
) -> list[tuple[int, float]]:
    """(t, share of pictures whose most probable class is their own) for each of `times`.

    `latents` as in training, without the mirror images. z_0 and eps come from `seed` and are the same at every t, so
    that the curve shows the noise level alone. The weights are the module's own; for their average, call this within
    `module.ema.applied_to(module.trained)`. ValueError for a time that the schedule lacks.
    """
    if not times or not 0 <= min(times) <= max(times) < module.schedule.T:
        raise ValueError(f"times are steps in [0, {module.schedule.T - 1}], got {list(times)}")
    device, n, correct = module.device, len(latents) // 2, dict.fromkeys(times, 0)
    training = module.classifier.training
    module.classifier.eval()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            for start in range(0, n, batch_size):
                batch = latents.__getitems__(list(range(start, min(start + batch_size, n))))
                z0, y = module.z0_from_moments(batch["moments"].to(device)), batch["label"].to(device)
                eps = torch.randn_like(z0)
                for t in correct:
                    logits = module.logits(z0, torch.full_like(y, t, dtype=torch.long), eps)
                    correct[t] += (logits.argmax(1) == y).sum().item()
    finally:
        module.classifier.train(training)
    return [(t, correct[t] / n) for t in correct]
