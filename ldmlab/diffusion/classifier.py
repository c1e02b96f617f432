"""The classifier p_phi(y | z_t, t) on noisy latents, for classifier guidance [LDM v2, App. C, D.4]."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from ldmlab.diffusion.conditioning.spatial import BatchDataset
from ldmlab.diffusion.schedules import Schedule
from ldmlab.diffusion.training import LatentModule
from ldmlab.diffusion.unet.blocks import GroupNorm, timestep_embedding, zeroed
from ldmlab.diffusion.unet.config import DenoiserConfig, build_ends, plan
from ldmlab.diffusion.unet.unet import Stage

POOLS = ("adaptive", "attention", "spatial", "spatial_v2")
_SPATIAL_WIDTH = 2048  # hidden units of the spatial pools


class AttentionPool(nn.Module):
    """Attention pooling: one query, the mean over positions, attends to all positions and itself [CLIP, Sec. 2.4].

    Every position has a learned embedding, so it takes latents of one `side` only.
    """

    def __init__(self, side: int, channels: int, num_heads: int, out_channels: int):
        super().__init__()
        self.num_heads = num_heads
        self.position = nn.Parameter(torch.randn(channels, side**2 + 1) / channels**0.5)  # the query comes first
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.out = nn.Conv1d(channels, out_channels, 1)

    def forward(self, h: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Features at all positions -> `out_channels` numbers an item."""
        tokens = h.flatten(2)
        tokens = torch.cat([tokens.mean(2, keepdim=True), tokens], 2) + self.position  # (b, c, 1 + h w)
        qkv = self.qkv(tokens).unflatten(1, (3, self.num_heads, -1))  # q, k, v before heads, as released
        q, k, v = qkv.transpose(3, 4).unbind(1)  # (b, heads, 1 + h w, c / heads)
        attended = F.scaled_dot_product_attention(q[:, :, :1], k, v)
        return self.out(attended.reshape(len(h), -1, 1)).flatten(1)


class NoisyClassifier(nn.Module):
    """log p_phi(y | z_t, t) up to a constant: down stages and middle of the denoiser's UNet, pooled [ADM, Sec. 4].

    `config.out_channels` is the number of classes. `pool` "adaptive" is a mean over positions and a linear layer;
    "attention", that of the released classifier, needs the latent's `side` and heads of `num_head_channels`; "spatial"
    and "spatial_v2", which no model uses, are two layers on the means of every stage. ValueError for another pool, and
    for a config or side that it cannot take. [LDM v2] does not state the size of its classifier; by Tab. 10, LDM-8-G
    has 506M - 395M = 111M parameters more than LDM-8.
    """

    def __init__(self, config: DenoiserConfig, pool: str = "attention", side: int | None = None):
        super().__init__()
        if config.context_dim is not None or config.num_classes is not None:
            raise ValueError(f"a classifier takes no condition, got {config.context_dim=}, {config.num_classes=}")
        layout = plan(config)
        self.config, self.pool, self.side = config, pool, side
        self.spatial = pool.startswith("spatial")
        self.time_embed = build_ends(config)[0]  # the denoiser's
        self.down = nn.ModuleList(Stage(block.build(config) for block in stage) for stage in layout.down)
        self.middle = Stage(block.build(config) for block in layout.middle)
        widths = [stage[-1].c_out for stage in (*layout.down, layout.middle)]
        self.head = nn.Sequential(*self._head(sum(widths) if self.spatial else widths[-1]))

    def _head(self, channels: int) -> list[nn.Module]:
        num_classes, groups, hidden = self.config.out_channels, self.config.norm_groups, _SPATIAL_WIDTH
        match self.pool:
            case "adaptive":
                last = zeroed(nn.Conv2d(channels, num_classes, 1))
                return [GroupNorm(groups, channels), nn.SiLU(), nn.AdaptiveAvgPool2d(1), last, nn.Flatten()]
            case "attention":
                m = 2 ** (len(self.config.widths) - 1)
                if self.config.num_head_channels is None or not self.side or self.side % m:
                    raise ValueError(f"attention pooling needs num_head_channels and a side divisible by {m}, "
                                     f"got {self.config.num_head_channels=}, side={self.side}")
                pool = AttentionPool(self.side // m, channels, self.config.heads(channels), num_classes)
                return [GroupNorm(groups, channels), nn.SiLU(), pool]
            case "spatial":
                return [nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)]
            case "spatial_v2":
                norm = GroupNorm(32, hidden)
                return [nn.Linear(channels, hidden), norm, nn.SiLU(), nn.Linear(hidden, num_classes)]
        raise ValueError(f"pool is one of {', '.join(POOLS)}; got {self.pool!r}")

    def forward(self, z_t: Float[Tensor, "b c h w"], t: Shaped[Tensor, " b"]) -> Float[Tensor, "b k"]:
        """Logits of the classes; `t`, in [0, T - 1], may be fractional."""
        self._check(z_t)
        emb = self.time_embed(timestep_embedding(t, self.config.widths[0]))
        h = z_t
        means: list[Tensor] = []
        for stage in (*self.down, self.middle):
            h = stage(h, emb, None)
            if self.spatial:
                means.append(h.mean((2, 3)))
        return self.head(torch.cat(means, 1) if self.spatial else h)

    def _check(self, z_t: Tensor) -> None:
        config, m = self.config, 2 ** (len(self.config.widths) - 1)
        if z_t.shape[1] != config.in_channels or z_t.shape[2] % m or z_t.shape[3] % m:
            raise ValueError(f"this classifier takes (b, {config.in_channels}, h, w) with h and w divisible by {m}, "
                             f"got {tuple(z_t.shape)}")
        if self.pool == "attention" and z_t.shape[2:] != (self.side, self.side):
            raise ValueError(f"attention pooling has embeddings for latents of {self.side} x {self.side}, "
                             f"got {tuple(z_t.shape)}; the adaptive pool takes any size")


class ClassifierModule(LatentModule):
    """Trains a classifier on E[-log p_phi(y | z_t, t)] over random z_0, t and eps [ADM, Sec. 4].

    `scale_factor` and `schedule` are those of the diffusion model that the classifier will guide.
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
        """Cross-entropy and accuracy on a batch of cached moments and their labels."""
        z0, y = self.z0_from_moments(batch["moments"]), batch["label"]
        t = torch.randint(self.schedule.T, (len(z0),), device=z0.device)
        logits = self.logits(z0, t, torch.randn_like(z0))
        return {"loss": F.cross_entropy(logits, y), "accuracy": (logits.argmax(1) == y).float().mean()}

    def logits(
        self, z0: Float[Tensor, "b c h w"], t: Int[Tensor, " b"], eps: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b k"]:
        """The classifier's logits for z_t, in float32 also under autocast."""
        return self.classifier(self.schedule.q_sample(z0, t, eps), t).float()


@torch.no_grad()
def accuracy_by_noise(
    module: ClassifierModule, latents: BatchDataset, times: Sequence[int], *, batch_size: int = 128, seed: int = 0
) -> list[tuple[int, float]]:
    """(t, accuracy: the share of pictures that are classified correctly) for each of `times`.

    `latents` as in training; their mirror images are left out. z_0 and eps come from `seed` and are the same at every
    t, so only the noise level varies along the curve. The weights are the module's own; for their average, call this
    within `module.ema.applied_to(module.trained)`. ValueError for times outside of the schedule.
    """
    if not times or not 0 <= min(times) <= max(times) < module.schedule.T:
        raise ValueError(f"times are steps in [0, {module.schedule.T - 1}], got {list(times)}")
    device, n = module.device, len(latents) // 2
    correct = dict.fromkeys(times, 0)
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
                    correct[t] += int((logits.argmax(1) == y).sum())
    finally:
        module.classifier.train(training)
    return [(t, correct[t] / n) for t in correct]
