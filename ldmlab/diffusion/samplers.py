"""Samplers: pure functions from noise to latents, given eps_model(z_t, t) -> eps_hat and a schedule.

Notation: alpha_bar here is alpha in [DDIM] and alpha^2 in [LDM v2, App. B]; t counts 0..T-1.
Noise comes from `generator`, a torch.Generator or, for a recorded tape, a function like `torch.randn_like`.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ldmlab.diffusion.schedules import Schedule

EpsModel = Callable[[Tensor, Tensor], Tensor]
Noise = torch.Generator | Callable[[Tensor], Tensor] | None
OnStep = Callable[[int, int | float, Tensor, Tensor], None]
Sampler = Callable[..., Tensor]  # (eps_model, z_T, schedule, num_steps, *, generator, on_step) -> z_0

DDIM_RULES = ("uniform", "compvis", "compvis-quad")


def ddim_timesteps(num_steps: int, T: int = 1000, rule: str = "uniform") -> list[int]:
    """The time steps that DDIM visits, in decreasing order.

    "uniform" gives `num_steps` distinct ones in [0, T-1] for any 1 <= num_steps <= T, floor(i T / num_steps) + 1.
    Deviation: the released rule, "compvis", has the stride T // num_steps. Where num_steps divides T the two agree;
    elsewhere the released one visits more steps than asked, or the index T, which does not exist: then ValueError here.
    At num_steps = T, "uniform" takes every step, 0 included. "compvis-quad" is the released quadratic spacing, with its
    repeated steps.
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
    """Standard deviation of the noise that a step t -> s adds; eta = 1 is that of DDPM's posterior [DDIM, Eq. 16]."""
    return eta * ((1 - ab_s) / (1 - ab_t) * (1 - ab_t / ab_s)) ** 0.5


def ddim_step(
    z_t: Float[Tensor, "*dims"], eps_hat: Float[Tensor, "*dims"], ab_t: float | Tensor, ab_s: float | int | Tensor,
    eta: float | int = 0.0, generator: Noise = None,
) -> Float[Tensor, "*dims"]:
    """One DDIM step t -> s < t, given alpha_bar at both [DDIM, Eq. 12]; eta = 0 draws no noise."""
    ab_t, ab_s = float(ab_t), float(ab_s)
    sigma = ddim_sigma(ab_t, ab_s, eta)
    z0_hat = _z0_hat(z_t, eps_hat, ab_t)
    z_s = math.sqrt(ab_s) * z0_hat + math.sqrt(1 - ab_s - sigma**2) * eps_hat
    return z_s + sigma * _noise(z_t, generator) if eta > 0 else z_s


@torch.no_grad()
def ddim(
    eps_model: EpsModel, z_T: Float[Tensor, "b *dims"], schedule: Schedule, num_steps: int, *,
    eta: float | int = 0.0, generator: Noise = None, rule: str = "uniform",
    known: Float[Tensor, "b *dims"] | None = None, mask: Float[Tensor, "..."] | None = None,
    on_step: OnStep | None = None,
) -> Float[Tensor, "b *dims"]:
    """DDIM sampling [DDIM, Eq. 12] in `num_steps` calls of the model (with the rule "compvis", perhaps more).

    Where `mask` is 1, the sample is held to `known`, noised to the level of each step before the model sees it; as
    released, the result itself is not put together once more. `on_step(i, t, z, z0_hat)` is called after each step.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta}")
    if (known is None) != (mask is None):
        raise ValueError("known and mask belong together; got only one of them")
    timesteps, z = ddim_timesteps(num_steps, schedule.T, rule), z_T
    for i, (t, (ab_t, ab_s)) in enumerate(zip(timesteps, ddim_alpha_bars(schedule, timesteps), strict=True)):
        if known is not None:
            noised = math.sqrt(ab_t) * known + math.sqrt(1 - ab_t) * _noise(z, generator)
            z = mask * noised + (1 - mask) * z
        z_t, eps_hat = z, _eps_hat(eps_model, z, t)
        z = ddim_step(z_t, eps_hat, ab_t, ab_s, eta, generator)
        if on_step is not None:
            on_step(i, t, z, _z0_hat(z_t, eps_hat, ab_t))
    return z


@torch.no_grad()
def ddpm(
    eps_model: EpsModel, z_T: Float[Tensor, "b *dims"], schedule: Schedule, *,
    generator: Noise = None, clip: bool = False, on_step: OnStep | None = None,
) -> Float[Tensor, "b *dims"]:
    """Ancestral sampling through all T steps, with the posterior's variance [DDPM, Alg. 2, Eq. 7].

    `clip` holds z0_hat to [-1, 1], which is right for pictures and, as released, not done for latents.
    `on_step(i, t, z, z0_hat)` is called after each step. No noise is drawn for the last one.
    """
    rsqrt, ratio = schedule.alpha_bar.rsqrt().tolist(), (1 / schedule.alpha_bar - 1).sqrt().tolist()
    of_z0, of_z_t = (table.tolist() for table in schedule.posterior_coefficients)
    sigma, z = schedule.posterior_variance.sqrt().tolist(), z_T
    for i, t in enumerate(reversed(range(schedule.T))):
        z0_hat = rsqrt[t] * z - ratio[t] * _eps_hat(eps_model, z, t)
        if clip:
            z0_hat = z0_hat.clamp(-1, 1)
        z = of_z0[t] * z0_hat + of_z_t[t] * z
        if t > 0:
            z = z + sigma[t] * _noise(z, generator)
        if on_step is not None:
            on_step(i, t, z, z0_hat)
    return z


# Weights of eps_hat at this step and at those before it, the newest first: orders 1 to 4.
ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@torch.no_grad()
def plms(
    eps_model: EpsModel, z_T: Float[Tensor, "b *dims"], schedule: Schedule, num_steps: int, *,
    generator: Noise = None, rule: str = "uniform", on_step: OnStep | None = None,
) -> Float[Tensor, "b *dims"]:
    """Pseudo linear multistep sampling in `num_steps` + 1 calls of the model, as released [PNDM, Alg. 2].

    Deterministic DDIM steps, each with a mean of eps_hat over up to four steps (Adams-Bashforth of order 2, 3, 4). The
    first has nothing to look back on and takes the mean of both its ends. Deviation: [PNDM] starts with three steps of
    four calls each. `on_step(i, t, z, z0_hat)` is called after each step.
    """
    timesteps, z, recent = ddim_timesteps(num_steps, schedule.T, rule), z_T, deque(maxlen=len(ADAMS_BASHFORTH))
    for i, (t, (ab_t, ab_s)) in enumerate(zip(timesteps, ddim_alpha_bars(schedule, timesteps), strict=True)):
        recent.appendleft(_eps_hat(eps_model, z, t))
        if i == 0:
            s = timesteps[min(1, num_steps - 1)]  # as released: a first step that is the last asks for t twice
            eps_hat = (recent[0] + _eps_hat(eps_model, ddim_step(z, recent[0], ab_t, ab_s), s)) / 2
        else:
            weights = ADAMS_BASHFORTH[len(recent) - 1]
            eps_hat = sum(weight * past for weight, past in zip(weights, recent, strict=True))
        z_t, z = z, ddim_step(z, eps_hat, ab_t, ab_s)
        if on_step is not None:
            on_step(i, t, z, _z0_hat(z_t, eps_hat, ab_t))
    return z


@torch.no_grad()
def dpm_solver_pp(
    eps_model: EpsModel, z_T: Float[Tensor, "b *dims"], schedule: Schedule, num_steps: int, *,
    generator: Noise = None, on_step: OnStep | None = None,
) -> Float[Tensor, "b *dims"]:
    """DPM-Solver++(2M): second order in `num_steps` calls of the model, predicting z_0 [DPM-Solver++, Alg. 2].

    The steps are equal in lambda = log(sqrt(alpha_bar) / sqrt(1 - alpha_bar)), half the log SNR, from t = T - 1 to 0.
    In between the model is asked at fractional t, at which log SNR is interpolated linearly: a denoiser embeds any t.
    `on_step(i, t, z, z0_hat)` is called after each step, with that fractional t.
    """
    if not 1 <= num_steps <= schedule.T:
        raise ValueError(f"num_steps must be in [1, {schedule.T}], got {num_steps}")
    table = 0.5 * schedule.log_snr.cpu().numpy()  # falls with t
    lambdas = np.linspace(table[-1], table[0], num_steps + 1)
    times = np.interp(lambdas, table[::-1], np.arange(schedule.T)[::-1]).tolist()
    alphas, sigmas = ((1 / np.sqrt(1 + np.exp(sign * lambdas))).tolist() for sign in (-2, 2))
    h, z, z0_before = float(lambdas[1] - lambdas[0]), z_T, None
    for i, t in enumerate(times[:-1]):
        z0_hat = _z0_hat(z, _eps_hat(eps_model, z, t), alphas[i] ** 2)
        # With equal steps r = 1, so D = (1 + 1/2) z0_hat - 1/2 z0_before; the first step is one of first order.
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


def _z0_hat(z_t: Tensor, eps_hat: Tensor, ab_t: float) -> Tensor:
    return (z_t - math.sqrt(1 - ab_t) * eps_hat) / math.sqrt(ab_t)


def _eps_hat(eps_model: EpsModel, z: Tensor, t: int | float) -> Tensor:
    """The model's answer in the dtype of `z`: autocast hands out bf16, in which a step would round."""
    dtype = torch.long if isinstance(t, int) else torch.promote_types(z.dtype, torch.float32)
    return eps_model(z, torch.full((len(z),), t, dtype=dtype, device=z.device)).to(z.dtype)


def _noise(z: Tensor, generator: Noise) -> Tensor:
    """Standard normal noise like `z`, drawn on the generator's own device, so that a CPU seed means one sample."""
    if generator is None:
        raise ValueError("this sampler draws noise: give it a torch.Generator")
    if not isinstance(generator, torch.Generator):
        return generator(z)
    return torch.randn(z.shape, generator=generator, device=generator.device, dtype=torch.float32).to(z)
