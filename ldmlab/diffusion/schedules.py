"""Noise schedules: beta_t, alpha_bar_t and what follows from them in closed form [LDM v2, App. B].

In the notation of [LDM v2, App. B], alpha_bar_t is alpha_t^2, 1 - alpha_bar_t is sigma_t^2 and beta_t is
sigma_{t|t-1}^2.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ldmlab.diffusion.prediction import noised, z0_from_eps_ddpm


@dataclass(frozen=True, eq=False)
class Schedule:
    """beta_t and alpha_bar_t = prod_{s<=t} (1 - beta_s) for t = 0..T-1, in float64: alpha_bar is a long product.

    Results take the dtype of the latents. After `to(device)` nothing here waits for that device.
    """

    beta: Float[Tensor, " T"]
    alpha_bar: Float[Tensor, " T"]

    @classmethod
    def from_beta(cls, beta: Float[Tensor, " T"]) -> "Schedule":
        """The schedule of given beta_t, each in (0, 1), else ValueError.

        1 - beta_t is alpha_{t|t-1}^2 = alpha_bar_t / alpha_bar_{t-1}, so alpha_bar is their product [LDM v2, Eq. 6].
        """
        if len(beta) == 0 or not 0 < beta.min() <= beta.max() < 1:
            raise ValueError(f"beta_t must lie in (0, 1), got {len(beta)} values: {beta}")
        beta = beta.double()
        return cls(beta, (1 - beta).cumprod(0))

    @property
    def T(self) -> int:
        """The number of steps."""
        return len(self.beta)

    def to(self, device: torch.device | str) -> "Schedule":
        """The same schedule with its tables on `device`; float32 on mps, which has no float64."""
        dtype = torch.float32 if torch.device(device).type == "mps" else torch.float64
        return Schedule(self.beta.to(device, dtype), self.alpha_bar.to(device, dtype))

    @property
    def alpha_bar_prev(self) -> Float[Tensor, " T"]:
        """alpha_bar_{t-1}, with 1 before the first step."""
        return torch.cat([self.alpha_bar.new_ones(1), self.alpha_bar[:-1]])

    @property
    def log_snr(self) -> Float[Tensor, " T"]:
        """log SNR(t) = log alpha_bar_t / (1 - alpha_bar_t) [LDM v2, App. B]."""
        return self.alpha_bar.log() - (-self.alpha_bar).log1p()

    def alpha_bar_at(self, t: Shaped[Tensor, " n"]) -> Float[Tensor, " n"]:
        """alpha_bar at times t in [0, T - 1], on their device; at a fractional t, log SNR is interpolated linearly."""
        log_snr = self.to(t.device).log_snr
        t = t.to(log_snr.dtype)
        below = t.floor().long().clamp(max=self.T - 1)
        above = (below + 1).clamp(max=self.T - 1)
        return log_snr[below].lerp(log_snr[above], t - below).sigmoid()

    def crossing(self, std: float | int = 1.0, log_snr: float | int = 0.0) -> int:
        """The first t at which latents of standard deviation `std` have a log SNR below `log_snr`; T if there is none.

        SNR(t) = std^2 alpha_bar_t / (1 - alpha_bar_t); by default, where the noise outweighs a latent of unit variance.
        """
        if not std > 0:
            raise ValueError(f"std is a standard deviation, so it must be positive; got {std}")
        return int((self.log_snr + 2 * math.log(std) >= log_snr).sum())

    def step_at(self, log_snr: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The steps whose log SNR is nearest to the given ones; beyond either end, the first or the last step."""
        return (self.log_snr - log_snr.to(self.alpha_bar)[:, None]).abs().argmin(1)

    @property
    def posterior_variance(self) -> Float[Tensor, " T"]:
        """sigma_{t|t-1}^2 sigma_{t-1}^2 / sigma_t^2, the variance of q(z_{t-1} | z_t, z_0) [LDM v2, Eq. 11].

        It is beta_tilde_t in [DDPM, Eq. 7], and 0 at t = 0.
        """
        return self.beta * (1 - self.alpha_bar_prev) / (1 - self.alpha_bar)

    @property
    def posterior_coefficients(self) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"]]:
        """Weights of z_0 and of z_t in `posterior_mean`, one a step."""
        of_z0 = self.beta * self.alpha_bar_prev.sqrt() / (1 - self.alpha_bar)
        of_z_t = (1 - self.alpha_bar_prev) * (1 - self.beta).sqrt() / (1 - self.alpha_bar)
        return of_z0, of_z_t

    @property
    def vlb_weights(self) -> Float[Tensor, " T"]:
        """Weights of || eps - eps_hat ||^2 in the variational bound [DDPM, Eq. 12].

        (SNR(t-1) - SNR(t)) / 2 is the weight of || z_0 - z0_hat ||^2, which is || eps - eps_hat ||^2 times
        sigma_t^2 / alpha_t^2 [LDM v2, Eq. 15]. The first weight is infinite; as released, the second replaces it.
        """
        variance = self.posterior_variance
        variance[0] = torch.nan
        weights = self.beta**2 / (2 * variance * (1 - self.beta) * (1 - self.alpha_bar))
        weights[0] = weights[1]
        return weights

    def q_sample(
        self, z0: Float[Tensor, "b *dims"], t: Int[Tensor, " b"], eps: Float[Tensor, "b *dims"]
    ) -> Float[Tensor, "b *dims"]:
        """A draw of q(z_t | z_0) = N(alpha_t z_0, sigma_t^2), `eps` being standard normal noise [LDM v2, Eq. 4]."""
        return noised(z0, eps, self._alpha_bar(t, z0))

    def predict_z0(
        self, z_t: Float[Tensor, "b *dims"], t: Int[Tensor, " b"], eps_hat: Float[Tensor, "b *dims"]
    ) -> Float[Tensor, "b *dims"]:
        """z0_hat, of which `z_t` is a noisy version if `eps_hat` is the noise: `q_sample` solved for z_0."""
        return z0_from_eps_ddpm(z_t, eps_hat, self._alpha_bar(t, z_t))

    def posterior_mean(
        self, z0: Float[Tensor, "b *dims"], z_t: Float[Tensor, "b *dims"], t: Int[Tensor, " b"]
    ) -> Float[Tensor, "b *dims"]:
        """Mean of q(z_{t-1} | z_t, z_0), with z0_hat for z_0 that of the model's step [LDM v2, Eq. 12].

        alpha_{t|t-1} sigma_{t-1}^2 / sigma_t^2 z_t + alpha_{t-1} sigma_{t|t-1}^2 / sigma_t^2 z_0.
        """
        of_z0, of_z_t = self.posterior_coefficients
        return _at(of_z0, t, z_t) * z0 + _at(of_z_t, t, z_t) * z_t

    def _alpha_bar(self, t: Tensor, like: Tensor) -> Tensor:
        """alpha_bar at steps `t`, on the device of `like`, in the precision of the table."""
        return self.alpha_bar.to(like.device)[t]


def _at(table: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """Entries `t` of a table in the device and dtype of `like`, shaped to multiply it."""
    return table.to(like.device)[t].to(like.dtype).view(-1, *[1] * (like.ndim - 1))


def _ramp(T: int, start: float, end: float) -> Float[Tensor, " T"]:
    if T < 1 or not 0 < start <= end < 1:
        raise ValueError(f"a schedule needs T >= 1 and 0 < start <= end < 1, got T={T}, start={start}, end={end}")
    return torch.linspace(start, end, T, dtype=torch.float64)


def scaled_linear(T: int = 1000, start: float = 0.0015, end: float = 0.0195) -> Schedule:
    """sqrt(beta_t) linear in t, from `start` to `end` in beta; "linear" in the released configurations.

    The defaults are those of the released LDM-4 models. ValueError unless T >= 1 and 0 < start <= end < 1.

    >>> schedule = scaled_linear()
    >>> schedule.T, round(schedule.alpha_bar[-1].item(), 6)
    (1000, 0.000142)
    >>> schedule.crossing()  # the first step at which the noise outweighs the signal
    255
    """
    return Schedule.from_beta(_ramp(T, start**0.5, end**0.5) ** 2)


def linear(T: int = 1000, start: float = 1e-4, end: float = 2e-2) -> Schedule:
    """beta_t linear in t [DDPM, Sec. 4]; "sqrt_linear" in the released code."""
    return Schedule.from_beta(_ramp(T, start, end))


def sqrt(T: int = 1000, start: float = 1e-4, end: float = 2e-2) -> Schedule:
    """beta_t the square root of a linear ramp; "sqrt" in the released code."""
    return Schedule.from_beta(_ramp(T, start, end).sqrt())


def cosine(T: int = 1000, s: float = 0.008) -> Schedule:
    """alpha_bar_t a squared cosine of t, beta_t at most 0.999 [Improved DDPM, Eq. 17]."""
    if T < 1 or s < 0:
        raise ValueError(f"a cosine schedule needs T >= 1 and s >= 0, got T={T}, s={s}")
    u = (torch.arange(T + 1, dtype=torch.float64) / T + s) / (1 + s)
    alpha_bar = (u * math.pi / 2).cos() ** 2
    return Schedule.from_beta((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(0, 0.999))
