"""Taking a trained model apart: its latents, its reconstructions, noise put in, the sampler's way from noise."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ldmlab.data.images import ImageSet
from ldmlab.diffusion.model import LatentDiffusion
from ldmlab.diffusion.samplers import ddim
from ldmlab.diffusion.schedules import Schedule
from ldmlab.first_stage.latents import LatentStats
from ldmlab.first_stage.regularizers import codebook_usage
from ldmlab.study.conditions import sample_labels
from ldmlab.study.session import Run


def about(run: Run) -> str:
    """What pictures and which run a figure shows, for its small print."""
    data, spec = run.pictures.train, run.spec
    return f"{data.name} at {data.size} px; {spec.name} on {spec.first_stage.name}, tier {spec.tier}, seed {spec.seed}."


def label_names(images: ImageSet, labels: Sequence[int] | Int[Tensor, " n"]) -> list[str]:
    """The classes' names; none where the data has no classes."""
    return [images.classes[int(label)] for label in labels] if images.classes else []


def labels_named(images: ImageSet, names: str) -> Int[Tensor, " n"]:
    """The labels of classes named in "car, boat"; of all where nothing is named. ValueError with the nearest names."""
    known = {name.lower(): label for label, name in enumerate(images.classes or ())}
    found = []
    for name in filter(None, (part.strip().lower() for part in names.split(","))):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or list(known)[:12]
            raise ValueError(f"{images.name} has no class {name!r}; there are {len(known)}, such as {', '.join(near)}")
        found.append(known[name])
    return torch.tensor(found or list(known.values()), dtype=torch.long)


def first_labels(run: Run, n: int) -> Int[Tensor, " n"]:
    """`n` labels that go through the classes in turn; zeros where the data has none."""
    return sample_labels(run.pictures.train.num_classes, n)


@torch.inference_mode()
def latents_of(first_stage: nn.Module, x: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n c h w"]:
    """The most probable z of pictures in [-1, 1], on the CPU, not yet scaled."""
    z = first_stage.encode(x.to(_device(first_stage)))
    return (z.mode() if first_stage.reg == "kl" else z).cpu()


@torch.inference_mode()
def reconstruct(first_stage: nn.Module, x: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n 3 H W"]:
    """x -> z -> x_rec through the most probable z, clamped, on the CPU."""
    return first_stage.decode(latents_of(first_stage, x).to(_device(first_stage))).clamp(-1, 1).cpu()


def _device(module: nn.Module) -> torch.device:
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def sampled_latents(run: Run, num: int, seed: int = 0) -> Float[Tensor, "n c h w"]:
    """z of the first `num` training pictures, drawn from their cached posteriors, not yet scaled."""
    num = min(num, len(run.pictures.train))
    moments = run.latents.__getitems__(list(range(num)))["moments"]
    return run.first_stage.model.sample_latent(moments, torch.Generator().manual_seed(seed))


@torch.inference_mode()
def regularizer_report(first_stage: nn.Module, x: Float[Tensor, "n 3 H W"]) -> dict[str, float]:
    """What the regularizer did to the latents of `x`: width of the posterior and KL, or how many codes are used."""
    moments = first_stage.moments(x.to(_device(first_stage)))
    if first_stage.reg == "kl":
        posterior = first_stage.encode(x.to(_device(first_stage)))
        return {"latent std": float(posterior.mean.std()), "posterior std (mean)": float(posterior.std.mean()),
                "KL [nats per picture]": float(posterior.kl().mean())}
    if first_stage.reg == "vq":
        codes = first_stage.quantizer.nearest(moments).flatten()
        usage = codebook_usage(torch.bincount(codes, minlength=first_stage.config.num_codes))
        return {"latent std": float(moments.std()), "codes": first_stage.config.num_codes,
                "codes used": int(usage.num_used), "perplexity": float(usage.perplexity)}
    return {"latent std": float(moments.std())}


@torch.inference_mode()
def noised(
    first_stage: nn.Module, stats: LatentStats, schedule: Schedule, x: Float[Tensor, "1 3 H W"], ts: Sequence[int],
    seed: int = 0,
) -> Float[Tensor, "n 3 H W"]:
    """One picture's z_t at several t, all with the same noise, as the decoder sees them."""
    z0 = stats.scale(latents_of(first_stage, x)).expand(len(ts), -1, -1, -1)
    eps = torch.randn(z0.shape[1:], generator=torch.Generator().manual_seed(seed)).expand_as(z0)
    z_t = schedule.to("cpu").q_sample(z0, torch.tensor(list(ts)), eps)
    return first_stage.decode(stats.unscale(z_t).to(_device(first_stage))).clamp(-1, 1).cpu()


@dataclass
class Path:
    """A sampler's way from noise: at each step t, z after it and the z_0 it believed in."""

    t: list[int]
    z_t: list[Tensor]
    z0_hat: list[Tensor]
    model: LatentDiffusion

    def __len__(self) -> int:
        return len(self.t)

    def pictures(self, i: int) -> tuple[Tensor, Tensor]:
        """z and z0_hat of step `i`, decoded."""
        return self.model.decode(self.z_t[i]).cpu(), self.model.decode(self.z0_hat[i]).cpu()

    def picked(self, num: int) -> list[int]:
        """Indices of `num` evenly spaced steps, the last among them."""
        return sorted({round(i) for i in np.linspace(0, len(self) - 1, min(num, len(self)))})


@torch.inference_mode()
def denoising_path(
    model: LatentDiffusion, y: Int[Tensor, " n"], *, num_steps: int, eta: float = 0.0, guidance_scale: float = 1.0,
    seed: int = 0, step_seed: int | None = None,
) -> Path:
    """DDIM from the noise of `seed`, every step kept; the same pictures as `model.sample` gives.

    Noise that steps add at eta > 0 comes from `step_seed`, by default that of `model.sample`.
    """
    path = Path([], [], [], model)

    def keep(i: int, t: int, z: Tensor, z0_hat: Tensor) -> None:
        path.t.append(t)
        path.z_t.append(z)
        path.z0_hat.append(z0_hat)

    side = model.size // model.first_stage.f
    shape = (len(y), model.denoiser.config.out_channels, side, side)
    z_T = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(model.device)
    eps_model = model.eps_model(y.to(model.device), guidance_scale)
    generator = torch.Generator(model.device).manual_seed(seed + 1 if step_seed is None else step_seed)
    ddim(eps_model, z_T, model.schedule, num_steps, eta=eta, generator=generator, on_step=keep)
    return path
