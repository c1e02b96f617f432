"""The scale of a latent as a matter of time: log SNR, and at which t layout and texture settle [LDM v2, App. D.1, G].

A latent of standard deviation s at step t is as noisy as one of standard deviation 1 at the step t' with
SNR(t') = s^2 SNR(t); up to a factor the two are the same. So a scale is a shift along the schedule.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.fft import dctn
from torch import Tensor

from ldmlab.data.images import to_float
from ldmlab.diffusion.model import LatentDiffusion
from ldmlab.diffusion.samplers import SampleNoise
from ldmlab.diffusion.schedules import Schedule, scaled_linear
from ldmlab.first_stage.reconstruct import latents_of
from ldmlab.study.runs.run import Run

# beta_1 and beta_T of the released configurations, linear in sqrt(beta), T = 1000.
RELEASED_BETAS = {
    "CelebA-HQ, FFHQ, Bedrooms, ImageNet": (0.0015, 0.0195), "Churches, super-resolution": (0.0015, 0.0155),
    "layout, semantic, inpainting": (0.0015, 0.0205), "text-to-image": (0.00085, 0.012),
}
RELEASED_STD = 1 / 0.18215  # of KL-f8's latent: the released text-to-image model multiplies it by 0.18215
BANDS = ("layout", "texture")
_NUM_PICTURES, _NUM_POINTS, _BATCH = 256, 25, 64


def schedule_rows(stds: Mapping[str, float]) -> list[dict[str, float | int | str]]:
    """For each released schedule: what is left of a unit latent at T, and where noise outweighs latents of `stds`."""
    rows = []
    for name, (start, end) in RELEASED_BETAS.items():
        schedule = scaled_linear(1000, start, end)
        row: dict[str, float | int | str] = {
            "models": name, "beta_1": start, "beta_T": end,
            "sqrt(alpha_bar_T)": float(schedule.alpha_bar[-1].sqrt()), "log SNR_T": float(schedule.log_snr[-1])}
        rows.append(row | {f"t at SNR = 1, {latent}": schedule.crossing(std) for latent, std in stds.items()})
    return rows


def cosines(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal cosine transform of each channel, and |k| of its entries; a wave of |k| is 2 * side / |k| long."""
    side = np.arange(x.shape[-1])
    return dctn(x.double().numpy(), axes=(-2, -1), norm="ortho"), np.hypot(side[:, None], side[None])


@torch.inference_mode()
def one_step(
    model: LatentDiffusion, z0: Float[Tensor, "n c h w"], y: Int[Tensor, " n"], t: int, seed: int = 0
) -> Float[Tensor, "n 3 H W"]:
    """z_0 noised to `t`, and the model's prediction of it, decoded: its x0_hat."""
    noise, pictures = SampleNoise(seed, range(len(z0)))(z0), []
    for z, eps, labels in zip(*(part.to(model.device).split(_BATCH) for part in (z0, noise, y)), strict=True):
        steps = torch.full((len(z),), t, device=model.device)
        z_t = model.schedule.q_sample(z, steps, eps)
        z0_hat = model.schedule.predict_z0(z_t, steps, model.eps_model(labels)(z_t, steps))
        pictures.append(model.decode(z0_hat).float().cpu())
    return torch.cat(pictures)


@dataclass
class Settled:
    """How much of the variance of pictures x0_hat explains at each t, by band: errors (num t, n), variances (n)."""

    t: list[int]
    error: dict[str, np.ndarray]
    variance: dict[str, np.ndarray]

    def share(self, band: str, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """1 - error / variance at each t, over the pictures `rows`."""
        return 1 - self.error[band][:, rows].sum(1) / self.variance[band][rows].sum()

    def half(self, band: str, T: int, rows: np.ndarray | slice = slice(None)) -> float:
        """The t from which on less than half is explained; T if there is none."""
        share = self.share(band, rows)
        below = np.flatnonzero(share < 0.5)
        if not len(below):
            return float(T)
        i = below[0]
        return float(np.interp(0.5, share[[i, i - 1]], [self.t[i], self.t[i - 1]])) if i else float(self.t[0])


def settled(run: Run, num_points: int = _NUM_POINTS) -> Settled:
    """By step t, how much of the layout and of the texture of validation pictures x0_hat has.

    Layout: waves of at least half a picture; texture: of less than a quarter. The truth is the decoded z_0, so that
    only the diffusion model is looked at.
    """
    model, (z0, y) = run.diffusion.model, validation_latents(run, _NUM_PICTURES)
    with torch.inference_mode():
        truth, k = cosines(torch.cat([model.decode(z.to(model.device)).float().cpu() for z in z0.split(_BATCH)]))
    bands = {"layout": (k > 0) & (k <= 4), "texture": k > 8}

    def power(values: np.ndarray) -> dict[str, np.ndarray]:
        return {band: np.square(values[..., at]).sum((1, 2)) for band, at in bands.items()}

    steps = [round(t) for t in np.linspace(0, model.schedule.T - 1, num_points)]
    errors = [power(cosines(one_step(model, z0, y, t, run.spec.seed))[0] - truth) for t in steps]
    return Settled(steps, {band: np.stack([error[band] for error in errors]) for band in bands},
                   power(truth - truth.mean(0)))


def validation_latents(run: Run, num: int) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, " n"]]:
    """The diffusion model's z_0 of `num` validation pictures, as `ImageSet.subset` draws them, and their labels.

    Labels are 0 where there are none.
    """
    chosen = run.pictures.val.subset(num)
    z = torch.cat([latents_of(run.first_stage.model, to_float(run.pictures.val.images(chosen[i:i + _BATCH])))
                   for i in range(0, len(chosen), _BATCH)])
    return run.first_stage.stats.scale(z), run.pictures.val.labels(chosen).clamp(min=0)


@dataclass
class ScaleView:
    """What one step of denoising sees at any scale of the latent, through one model on latents of standard deviation 1.

    `share` says how much of layout and of texture that model's x0_hat explains, as [t, share].
    """

    model: LatentDiffusion
    z0: Float[Tensor, "n c h w"]
    y: Int[Tensor, " n"]
    std: float  # of this first stage's latent as it comes
    share: Mapping[str, Sequence[Sequence[float | int]]]

    @classmethod
    def of(cls, run: Run, share: Mapping[str, Sequence[Sequence[float | int]]], num: int = 3) -> "ScaleView":
        """The first validation pictures, seen by the model of a run whose latents are rescaled."""
        return cls(run.diffusion.model, *validation_latents(run, num), run.first_stage.stats.std[0], share)

    @property
    def schedule(self) -> Schedule:
        """The model's, on the CPU."""
        return self.model.schedule.to("cpu")

    def same_noise(self, std: float | int, t: Sequence[int]) -> list[int]:
        """The t' at which a latent of standard deviation 1 is as noisy as one of `std` at each of `t`."""
        return self.schedule.step_at(self.schedule.log_snr[list(t)] + 2 * log(std)).tolist()

    def pictures(self, std: float | int, t: Sequence[int]) -> list[Float[Tensor, "n 3 H W"]]:
        """x0_hat at each of `t` for latents of standard deviation `std`."""
        return [one_step(self.model, self.z0, self.y, step) for step in self.same_noise(std, t)]

    def shares(self, std: float | int, band: str) -> np.ndarray:
        """How much of a band x0_hat explains at t = 0..T-1, for latents of standard deviation `std`."""
        t, share = np.array(self.share[band], dtype=float).T[:, ::-1]  # so that log SNR rises
        log_snr = self.schedule.log_snr.numpy()
        return np.interp(log_snr + 2 * log(std), log_snr[t.astype(int)], share)
