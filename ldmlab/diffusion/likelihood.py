"""The likelihood of a diffusion model: its variational bound term by term, and progressive coding [LDM v2, App. B].

A step t -> t - 1 costs KL(q(z_{t-1} | z_t, z_0) || p(z_{t-1} | z_t)) = w_t || eps - eps_hat ||^2, p having the
posterior's own variance. Time counts 0..T-1, so L_0 is measured at a z_t with t = 0, the least noisy one, which is z_1
in the papers; the data themselves are `z0`.

Expectations over eps take one draw a time step. The model need not be called at all T of them: || eps - eps_hat ||^2
changes slowly with t and w_t is known, so errors at `num_times` times, denser near t = 0, are interpolated linearly. On
a Gaussian field, 50 times miss the 1000-step bound by under 0.003 nats per entry. A bound with fewer *steps* would be a
different and much looser one.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from scipy.interpolate import make_interp_spline
from torch import Tensor

from ldmlab.diffusion.samplers import EpsModel, Noise, noise_like
from ldmlab.diffusion.schedules import Schedule

Decoder = Callable[[Tensor, Tensor, float], Tensor]


@dataclass(frozen=True, eq=False)
class Bound:
    """-log p(z0) <= L_T + sum_t L_{t-1} + L_0 in nats, per item [DDPM, Eq. 5].

    `prior` is L_T. `steps` has L_0, the reconstruction term, at index 0, and at t > 0 the step t -> t - 1.
    """

    prior: Float[Tensor, " b"]
    steps: Float[Tensor, "b T"]
    num_dims: int

    @property
    def nats(self) -> Float[Tensor, " b"]:
        """The whole bound of each item."""
        return self.prior + self.steps.sum(1)

    @property
    def bits_per_dim(self) -> Float[Tensor, " b"]:
        """The bound in bits per entry of z0; with `gaussian_decoder` relative to a unit of z, so it may be negative."""
        return self.nats / (self.num_dims * math.log(2))


@dataclass(frozen=True, eq=False)
class RateDistortion:
    """Rate and distortion of progressive coding, by picture and time, from noise (first) to t = 0 [DDPM, Sec. 4.3].

    `rate` in bits per pixel of the picture: L_T and the steps down to z_t. `rmse` of the decoded z0_hat(z_t), in levels
    of 0 to 255. [LDM v2, Fig. 2] and [DDPM, Fig. 5] count bits per dimension: a third of these.
    """

    times: Int[Tensor, " s"]
    rate: Float[Tensor, "b s"]
    rmse: Float[Tensor, "b s"]

    @property
    def psnr(self) -> Float[Tensor, "b s"]:
        """Peak signal-to-noise ratio in dB; inf for a perfect picture."""
        return 20 * (255 / self.rmse).log10()


def bound_times(num_times: int, T: int = 1000) -> list[int]:
    """`num_times` distinct times from 0 to T - 1, spaced quadratically; ValueError unless it is in [2, T].

    >>> bound_times(5)
    [0, 62, 250, 562, 999]
    """
    if not 2 <= num_times <= T:
        raise ValueError(f"num_times must be in [2, {T}], got {num_times}")
    return [max(i, round((T - 1) * (i / (num_times - 1)) ** 2)) for i in range(num_times)]


def prior_kl(z0: Float[Tensor, "b *dims"], schedule: Schedule) -> Float[Tensor, " b"]:
    """L_T = KL(q(z_T | z0) || N(0, I)) in nats: the first term of the bound."""
    ab = schedule.alpha_bar[-1].item()
    return 0.5 * (ab * z0.square() - ab - math.log1p(-ab)).flatten(1).sum(1)


def gaussian_decoder(
    z0: Float[Tensor, "b *dims"], z0_hat: Float[Tensor, "b *dims"], variance: float
) -> Float[Tensor, " b"]:
    """L_0 = -log N(z0; z0_hat, variance) in nats: for latents, a density."""
    return 0.5 * ((z0 - z0_hat).square() / variance + math.log(2 * math.pi * variance)).flatten(1).sum(1)


def pixel_decoder(
    z0: Float[Tensor, "b *dims"], z0_hat: Float[Tensor, "b *dims"], variance: float, scale: float | int = 1.0
) -> Float[Tensor, " b"]:
    """L_0 in nats for 8-bit pixels: minus the log of the normal mass of each pixel's bin [DDPM, Eq. 13].

    The outermost bins extend to infinity. For models on pixels, f = 1: z0 is `scale` times a picture of the 256 levels
    -1, -1 + 2/255, ..., 1, else ValueError.
    """
    level = (z0.double() / scale + 1) * 127.5
    if (level - level.round()).abs().max() > 0.01 or level.min() < -0.01 or level.max() > 255.01:
        raise ValueError("pixel_decoder takes `scale` times pictures of 256 levels in [-1, 1]; "
                         f"got values from {z0.min():.4g} to {z0.max():.4g} with scale={scale}")
    level, mean = level.round(), (z0_hat.double() / scale + 1).mul(127.5)
    std = math.sqrt(variance) / scale * 127.5
    below = torch.where(level == 0, -math.inf, (level - 0.5 - mean) / std)
    above = torch.where(level == 255, math.inf, (level + 0.5 - mean) / std)
    # A bin in the upper tail is mirrored to the lower one, where the logarithm of the mass does not cancel.
    below, above = (torch.where(below > 0, a, b) for a, b in ((-above, below), (-below, above)))
    log_above, log_below = torch.special.log_ndtr(above), torch.special.log_ndtr(below)
    mass = log_above + torch.log1p(-(log_below - log_above).exp())
    return -mass.flatten(1).sum(1).to(z0.dtype)


@torch.no_grad()
def variational_bound(
    eps_model: EpsModel, z0: Float[Tensor, "b *dims"], schedule: Schedule, *,
    generator: Noise, num_times: int | None = None, decoder: Decoder = gaussian_decoder,
) -> Bound:
    """The bound on -log p(z0), term by term, in `num_times` calls of the model (default: all T) [LDM v2, Eq. 9].

    `decoder(z0, z0_hat, variance)` is L_0 in nats, its variance beta_1, as the posterior's would be 0 there. Deviation:
    the released code of [DDPM] takes beta_tilde_2, half of that, which is looser. Finite T has a cost: on a Gaussian
    field with the optimal denoiser, the bound with `scaled_linear` is 0.29 nats per entry above -log p(z0), and a
    quarter of that with four times T.
    """
    times = bound_times(num_times or schedule.T, schedule.T)
    errors: list[Tensor] = []
    l_0 = torch.empty(0)
    for t, z0_hat, error in _denoise(eps_model, z0, schedule, times, generator):
        errors.append(error)
        if t == 0:
            l_0 = decoder(z0, z0_hat, schedule.beta[0].item())
    steps = step_kl(times, errors, schedule)
    steps[:, 0] = l_0.to(steps)
    return Bound(prior_kl(z0, schedule).to(steps), steps, z0[0].numel())


@torch.no_grad()
def rate_distortion(
    eps_model: EpsModel, z0: Float[Tensor, "b *dims"], x: Float[Tensor, "n c h w"],
    decode: Callable[[Tensor], Tensor], schedule: Schedule, *,
    generator: Noise, num_times: int | None = None,
) -> RateDistortion:
    """Progressive coding of pictures `x` in [-1, 1], whose latents are z0, with pictures `decode(z0_hat)` at each time.

    The rate of z_t is that of L_T and of all steps down to t; its picture is the decoded z0_hat [DDPM, Alg. 4].
    ValueError unless there are as many pictures as latents.
    """
    if len(x) != len(z0):
        raise ValueError(f"x are the pictures of the latents z0; got {len(x)} pictures and {len(z0)} latents")
    times = bound_times(num_times or schedule.T, schedule.T)
    errors: list[Tensor] = []
    rmse: list[Tensor] = []
    for _, z0_hat, error in _denoise(eps_model, z0, schedule, times, generator):
        errors.append(error)
        rmse.append(127.5 * (decode(z0_hat) - x).square().flatten(1).mean(1).sqrt())
    steps = step_kl(times, errors, schedule)
    # The steps that led down to t are those at times above t.
    nats = prior_kl(z0, schedule).to(steps)[:, None] + steps.flip(1).cumsum(1).flip(1) - steps
    bits = nats[:, times] / (math.log(2) * x.shape[2] * x.shape[3])
    return RateDistortion(torch.tensor(times).flip(0), bits.flip(1), torch.stack(rmse, 1).cpu().flip(1))


def _denoise(
    eps_model: EpsModel, z0: Tensor, schedule: Schedule, times: list[int], generator: Noise
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(t, z0_hat, || eps - eps_hat ||^2 per item), at a fresh z_t each time."""
    for t in times:
        eps = noise_like(z0, generator)
        at = torch.full((len(z0),), t, device=z0.device)
        z_t = schedule.q_sample(z0, at, eps)
        eps_hat = eps_model(z_t, at).to(z0.dtype)  # bfloat16 under autocast
        yield t, schedule.predict_z0(z_t, at, eps_hat), (eps - eps_hat).square().flatten(1).sum(1)


def step_kl(
    times: list[int], errors: list[Float[Tensor, " b"]], schedule: Schedule
) -> Float[Tensor, "b T"]:
    """KL(q(z_{t-1} | z_t, z_0) || p(z_{t-1} | z_t)) in nats at all T times, float64 on the CPU [LDM v2, Eq. 13].

    `errors` are || eps - eps_hat ||^2 at `times`, which begin at 0 and end at T - 1; in between they are interpolated.
    The entry at t = 0, where there is no such step, is meaningless.
    """
    measured = torch.stack(errors, 1).double().cpu().numpy()
    error = make_interp_spline(times, measured, k=1, axis=1)(range(schedule.T))
    return schedule.vlb_weights.double().cpu() * torch.from_numpy(error)
