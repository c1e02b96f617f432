"""Samplers: pure functions from noise z_T to latents z_0, given eps_model(z_t, t) -> eps_hat and a schedule.

Notation: alpha_bar here is alpha in [DDIM] and alpha^2 in [LDM v2, App. B]; t counts 0..T-1.
Noise comes from `generator`, a torch.Generator or a function that returns noise like its argument, as
`torch.randn_like` does: `SampleNoise`, or recorded noise that is replayed.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ldmlab.diffusion.prediction import noised, z0_from_eps
from ldmlab.diffusion.schedules import Schedule

EpsModel = Callable[[Tensor, Tensor], Tensor]
Noise = torch.Generator | Callable[[Tensor], Tensor] | None
OnStep = Callable[[int, int | float, Tensor, Tensor], None]
Sampler = Callable[..., Tensor]  # (eps_model, z_T, schedule, num_steps, *, generator, on_step) -> z_0

NOISE = "Philox, key (seed, sample)"  # how noise is drawn: records state it, and scores of other noise do not compare
DDIM_RULES = ("uniform", "compvis", "compvis-quad")


class SampleNoise:
    """Standard normal noise for the samples with the numbers `indices` under one seed.

    Sample i draws from a Philox stream with the key (seed, i) [Salmon et al., SC 2011], first the noise that it starts
    from, then that of each step: it is the same in any batch and among any number of samples. Values are drawn in
    float32 on the CPU and then moved, so that they are equal to the bit on every device.

    An instance is a `Noise` of the samplers. ValueError for a tensor of another number of samples than `indices`.

    >>> three = SampleNoise(0, [3])(torch.empty(1, 2, 2))
    >>> torch.equal(three[0], SampleNoise(0, range(8))(torch.empty(8, 2, 2))[3])
    True
    """

    def __init__(self, seed: int, indices: Iterable[int]) -> None:
        self._streams = [np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, i % 2**64], np.uint64)))
                         for i in indices]

    def __call__(self, z: Float[Tensor, "b *dims"]) -> Float[Tensor, "b *dims"]:
        """The next noise of each sample, of the shape, dtype and device of `z`, whose values are not read."""
        if len(z) != len(self._streams):
            raise ValueError(f"noise is for {len(self._streams)} samples, one per index; got {len(z)}")
        return self.draw(tuple(z.shape[1:]), z.device).to(z.dtype)

    def draw(self, shape: Sequence[int], device: torch.device | str = "cpu") -> Float[Tensor, "b *dims"]:
        """The next noise of each sample, of `shape` without the batch, float32."""
        # From pinned memory the copy does not wait for the step that the GPU still computes.
        noise = torch.empty(len(self._streams), *shape, pin_memory=torch.device(device).type == "cuda")
        for stream, row in zip(self._streams, noise.numpy(), strict=True):
            stream.standard_normal(dtype=np.float32, out=row)
        return noise.to(device, non_blocking=True)


def noise_like(z: Tensor, generator: Noise) -> Tensor:
    """Standard normal noise of the shape, dtype and device of `z`; ValueError without a generator.

    A torch.Generator draws one tensor for the whole batch, in float32 on its own device.
    """
    if generator is None:
        raise ValueError("this sampler draws noise, got generator=None; pass SampleNoise or a torch.Generator")
    if not isinstance(generator, torch.Generator):
        return generator(z)
    return torch.randn(z.shape, generator=generator, device=generator.device, dtype=torch.float32).to(z)


def ddim_timesteps(num_steps: int, T: int = 1000, rule: str = "uniform") -> list[int]:
    """The time steps that DDIM visits, in decreasing order.

    "uniform" gives `num_steps` distinct ones in [0, T-1] for any 1 <= num_steps <= T, floor(i T / num_steps) + 1; at
    num_steps = T it takes every step, 0 included. "compvis-quad" is the released quadratic spacing, with its repeated
    steps. ValueError for an unknown rule, and for `num_steps` out of range.
    Deviation: the released rule, "compvis", has the stride T // num_steps. Where num_steps divides T the two agree;
    elsewhere the released one visits more than `num_steps` steps, or index T, which does not exist: then ValueError.

    >>> ddim_timesteps(4)
    [751, 501, 251, 1]
    """
    if not 1 <= num_steps <= T:
        raise ValueError(f"num_steps must be in [1, {T}], got {num_steps}")
    match rule:
        case "uniform":
            steps = [i * T // num_steps + (num_steps < T) for i in range(num_steps)]
        case "compvis":
            steps = [t + 1 for t in range(0, T, T // num_steps)]
        case "compvis-quad":
            root = math.sqrt(0.8 * T)
            steps = [int((root * i / max(1, num_steps - 1)) ** 2) + 1 for i in range(num_steps)]
        case _:
            raise ValueError(f"rule is one of {', '.join(DDIM_RULES)}; got {rule!r}")
    if steps[-1] >= T:
        raise ValueError(f'rule {rule!r} reaches step {steps[-1]} of 0..{T - 1} for {num_steps} steps; "uniform" works')
    return steps[::-1]


def ddim_alpha_bars(schedule: Schedule, timesteps: list[int]) -> list[tuple[float, float]]:
    """(alpha_bar_t, alpha_bar_s) of each DDIM step t -> s, as Python floats: no step waits for the device.

    As released, the last step ends at alpha_bar_0, not at 1. Deviation: from t = 0, which the released rule never
    visits, it ends at 1.
    """
    alpha_bar = schedule.alpha_bar.tolist()
    at_t = [alpha_bar[t] for t in timesteps]
    last = alpha_bar[0] if timesteps[-1] > 0 else 1.0
    return list(zip(at_t, [*at_t[1:], last], strict=True))


def ddim_sigma(ab_t: float | Tensor, ab_s: float | Tensor, eta: float | int) -> float | Tensor:
    """Standard deviation of the noise that a step t -> s adds; eta = 1 is that of DDPM's posterior [DDIM, Eq. 16].

    The factor 1 - ab_t / ab_s is sigma_{t|s}^2, the variance of z_t given z_s [LDM v2, Eq. 7].
    """
    return eta * ((1 - ab_s) / (1 - ab_t) * (1 - ab_t / ab_s)) ** 0.5


def ddim_step(
    z_t: Float[Tensor, "*dims"], eps_hat: Float[Tensor, "*dims"], ab_t: float | Tensor, ab_s: float | int | Tensor,
    eta: float | int = 0.0, generator: Noise = None,
) -> Float[Tensor, "*dims"]:
    """One DDIM step t -> s < t, given alpha_bar at both [DDIM, Eq. 12].

    z_s = sqrt(ab_s) z0_hat + sqrt(1 - ab_s - sigma^2) eps_hat + sigma * noise. With eta = 0 no noise is drawn.
    """
    ab_t, ab_s = float(ab_t), float(ab_s)
    sigma = float(ddim_sigma(ab_t, ab_s, eta))
    z0_hat = z0_from_eps(z_t, eps_hat, ab_t)  # "predicted x_0"
    z_s = math.sqrt(ab_s) * z0_hat + math.sqrt(1 - ab_s - sigma**2) * eps_hat  # and "direction pointing to x_t"
    return z_s + sigma * noise_like(z_t, generator) if eta > 0 else z_s


@torch.no_grad()
def ddim(
    eps_model: EpsModel, z_T: Float[Tensor, "b *dims"], schedule: Schedule, num_steps: int, *,
    eta: float | int = 0.0, generator: Noise = None, rule: str = "uniform",
    known: Float[Tensor, "b *dims"] | None = None, mask: Float[Tensor, "..."] | None = None,
    on_step: OnStep | None = None,
) -> Float[Tensor, "b *dims"]:
    """DDIM sampling in `num_steps` calls of the model (with the rule "compvis", perhaps more): z_T -> z_0.

    `eta` in [0, 1] scales the noise of each step, drawn from `generator`; 0 is deterministic. Where `mask` is 1, the
    sample is replaced by `known`, noised to the level of each step, before the model is called; as released, it is not
    replaced once more in the result. `on_step(i, t, z, z0_hat)` is called after each step. ValueError for `eta` or
    `num_steps` out of range, and for only one of `known` and `mask`.

    >>> from ldmlab.diffusion.schedules import scaled_linear
    >>> eps_model = lambda z_t, t: z_t  # z_t is all noise
    >>> ddim(eps_model, torch.randn(2, 3, 8, 8), scaled_linear(), num_steps=10).shape
    torch.Size([2, 3, 8, 8])
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta}")
    if (known is None) != (mask is None):
        raise ValueError("known and mask belong together; got only one of them")
    timesteps, z = ddim_timesteps(num_steps, schedule.T, rule), z_T
    for i, (t, (ab_t, ab_s)) in enumerate(zip(timesteps, ddim_alpha_bars(schedule, timesteps), strict=True)):
        if known is not None and mask is not None:
            z = mask * noised(known, noise_like(z, generator), ab_t) + (1 - mask) * z
        z_t, eps_hat = z, _eps_hat(eps_model, z, t)
        z = ddim_step(z_t, eps_hat, ab_t, ab_s, eta, generator)
        if on_step is not None:
            on_step(i, t, z, z0_from_eps(z_t, eps_hat, ab_t))
    return z


@torch.no_grad()
def ddpm(
    eps_model: EpsModel, z_T: Float[Tensor, "b *dims"], schedule: Schedule, *,
    generator: Noise = None, clip: bool = False, on_step: OnStep | None = None,
) -> Float[Tensor, "b *dims"]:
    """Ancestral sampling through all T steps, with the posterior's variance [DDPM, Alg. 2].

    Each step draws from q(z_{t-1} | z_t, z_0) with z0_hat in place of z_0 [LDM v2, Eq. 10], the last one without noise.
    `clip` clamps z0_hat to [-1, 1], which is right for pictures and, as released, not done for latents.
    `on_step(i, t, z, z0_hat)` is called after each step.
    """
    sigma, z = schedule.posterior_variance.sqrt().tolist(), z_T
    for i, t in enumerate(reversed(range(schedule.T))):
        at = torch.full((len(z),), t, device=z.device)
        z0_hat = schedule.predict_z0(z, at, _eps_hat(eps_model, z, t))
        if clip:
            z0_hat = z0_hat.clamp(-1, 1)
        z = schedule.posterior_mean(z0_hat, z, at)
        if t > 0:
            z = z + sigma[t] * noise_like(z, generator)
        if on_step is not None:
            on_step(i, t, z, z0_hat)
    return z


# Weights of eps_hat at this step and at those before it, the newest first: orders 1 to 4; the last is [PNDM, Eq. 12].
ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@torch.no_grad()
def plms(
    eps_model: EpsModel, z_T: Float[Tensor, "b *dims"], schedule: Schedule, num_steps: int, *,
    generator: Noise = None, rule: str = "uniform", on_step: OnStep | None = None,
) -> Float[Tensor, "b *dims"]:
    """Pseudo linear multistep sampling in `num_steps` + 1 calls of the model, as released [PNDM, Alg. 2].

    Deterministic DDIM steps, each with a weighted mean of eps_hat over up to four steps, Adams-Bashforth of order 2, 3
    and, from the fourth step on, 4: (55 e_t - 59 e_{t+1} + 37 e_{t+2} - 9 e_{t+3}) / 24 [PNDM, Eq. 12]. The first step
    has no predecessor and takes the mean of eps_hat at its two ends. Deviation: [PNDM] starts with three steps of four
    calls each. `on_step(i, t, z, z0_hat)` is called after each step. Without noise, so `generator` is not used.
    """
    timesteps, z = ddim_timesteps(num_steps, schedule.T, rule), z_T
    recent: deque[Tensor] = deque(maxlen=len(ADAMS_BASHFORTH))
    for i, (t, (ab_t, ab_s)) in enumerate(zip(timesteps, ddim_alpha_bars(schedule, timesteps), strict=True)):
        recent.appendleft(_eps_hat(eps_model, z, t))
        if i == 0:
            s = timesteps[min(1, num_steps - 1)]  # as released: with one step, both calls are at t
            eps_hat = (recent[0] + _eps_hat(eps_model, ddim_step(z, recent[0], ab_t, ab_s), s)) / 2
        else:
            weights = ADAMS_BASHFORTH[len(recent) - 1]
            eps_hat = sum((weight * past for weight, past in zip(weights, recent, strict=True)), torch.zeros_like(z))
        z_t, z = z, ddim_step(z, eps_hat, ab_t, ab_s)
        if on_step is not None:
            on_step(i, t, z, z0_from_eps(z_t, eps_hat, ab_t))
    return z


@torch.no_grad()
def dpm_solver_pp(
    eps_model: EpsModel, z_T: Float[Tensor, "b *dims"], schedule: Schedule, num_steps: int, *,
    generator: Noise = None, on_step: OnStep | None = None,
) -> Float[Tensor, "b *dims"]:
    """DPM-Solver++(2M): second order in `num_steps` calls of the model, predicting z_0 [DPM-Solver++, Alg. 2].

    Step i takes z from lambda_{i-1} to lambda_i = lambda_{i-1} + h by the two lines of that algorithm's loop:
    D_i = (1 + 1 / (2 r_i)) z0_hat_{i-1} - 1 / (2 r_i) z0_hat_{i-2}, z_i = sigma_i / sigma_{i-1} z_{i-1} -
    alpha_i (e^-h - 1) D_i. The steps are equal in lambda = log(sqrt(alpha_bar) / sqrt(1 - alpha_bar)), half the log
    SNR, from t = T - 1 to 0, so r_i = 1. In between, t is fractional: log SNR is interpolated linearly, and a denoiser
    embeds any t. `on_step(i, t, z, z0_hat)` is called after each step. Without noise, so `generator` is not used.
    """
    if not 1 <= num_steps <= schedule.T:
        raise ValueError(f"num_steps must be in [1, {schedule.T}], got {num_steps}")
    table = 0.5 * schedule.log_snr.cpu().numpy()  # falls with t
    lambdas = np.linspace(table[-1], table[0], num_steps + 1)
    times = np.interp(lambdas, table[::-1], np.arange(schedule.T)[::-1]).tolist()
    alphas, sigmas = ((1 / np.sqrt(1 + np.exp(sign * lambdas))).tolist() for sign in (-2, 2))
    h, z = float(lambdas[1] - lambdas[0]), z_T
    z0_before: Tensor | None = None
    for i, t in enumerate(times[:-1]):
        z0_hat = z0_from_eps(z, _eps_hat(eps_model, z, t), alphas[i] ** 2)
        # The first step has no predecessor and is one of first order, which is DDIM's at eta = 0.
        D = z0_hat if z0_before is None else 1.5 * z0_hat - 0.5 * z0_before
        z = sigmas[i + 1] / sigmas[i] * z - alphas[i + 1] * math.expm1(-h) * D
        z0_before = z0_hat
        if on_step is not None:
            on_step(i, t, z, z0_hat)
    return z


@dataclass(frozen=True)
class SamplerRow:
    """A sampler by its name: all are called alike, and the deterministic ones leave `generator` alone."""

    draw: Sampler
    title: str  # in figures
    num_calls: Callable[[int], int] = lambda num_steps: num_steps  # of the denoiser, from the number of steps
    deterministic: bool = True  # at eta = 0, where it takes eta
    takes_eta: bool = False


# Fewer steps of DDPM than T are DDIM at eta = 1: the posterior's variance between the steps that remain. At T steps the
# two are the same, noise for noise.
SAMPLERS: dict[str, SamplerRow] = {
    "ddim":         SamplerRow(ddim, "DDIM", takes_eta=True),
    "ddpm":         SamplerRow(partial(ddim, eta=1.0), "strided DDPM = DDIM, eta 1", deterministic=False),
    "plms":         SamplerRow(plms, "PLMS", num_calls=lambda num_steps: num_steps + 1),
    "dpm-solver++": SamplerRow(dpm_solver_pp, "DPM-Solver++(2M)"),
}


def _eps_hat(eps_model: EpsModel, z: Tensor, t: int | float) -> Tensor:
    """eps_hat in the dtype of `z`: under autocast the model returns bfloat16, in which a step would lose precision."""
    dtype = torch.long if isinstance(t, int) else torch.promote_types(z.dtype, torch.float32)
    return eps_model(z, torch.full((len(z),), t, dtype=dtype, device=z.device)).to(z.dtype)
