"""Samplers: pure functions from noise to latents, given eps_model(z_t, t) -> eps_hat and a schedule.

Notation: alpha_bar here is alpha in [DDIM] and alpha^2 in [LDM v2, App. B]; t counts 0..T-1.
Noise comes from `generator`, a torch.Generator or, for a recorded tape, a function like `torch.randn_like`.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from .schedules import Schedule

EpsModel = Callable[[Tensor, Tensor], Tensor]
Noise = torch.Generator | Callable[[Tensor], Tensor] | None
OnStep = Callable[[int, int, Tensor, Tensor], None]

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


def _z0_hat(z_t: Tensor, eps_hat: Tensor, ab_t: float) -> Tensor:
    return (z_t - math.sqrt(1 - ab_t) * eps_hat) / math.sqrt(ab_t)


def _eps_hat(eps_model: EpsModel, z: Tensor, t: int) -> Tensor:
    """The model's answer in the dtype of `z`: autocast hands out bf16, in which a step would round."""
    return eps_model(z, torch.full((len(z),), t, dtype=torch.long, device=z.device)).to(z.dtype)


def _noise(z: Tensor, generator: Noise) -> Tensor:
    """Standard normal noise like `z`, drawn on the generator's own device, so that a CPU seed means one sample."""
    if generator is None:
        raise ValueError("this sampler draws noise: give it a torch.Generator")
    if not isinstance(generator, torch.Generator):
        return generator(z)
    return torch.randn(z.shape, generator=generator, device=generator.device, dtype=torch.float32).to(z)
