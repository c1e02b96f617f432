"""Noise schedules: their closed forms agree with each other."""

import pytest
import torch

from ldmlab.diffusion import schedules

SCHEDULES = {
    "scaled_linear": schedules.scaled_linear(),
    "linear": schedules.linear(),
    "sqrt": schedules.sqrt(100),
    "cosine": schedules.cosine(),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_signal_fades_monotonically(name):
    """Every schedule is float64 and loses signal at each step; log_snr is that ratio's logarithm, finite throughout."""
    schedule = SCHEDULES[name]
    assert schedule.alpha_bar.dtype == torch.float64 and len(schedule.beta) == schedule.T
    assert (schedule.log_snr.diff() < 0).all() and schedule.log_snr.isfinite().all()
    torch.testing.assert_close(schedule.log_snr.sigmoid(), schedule.alpha_bar)


def test_scaled_linear_has_the_released_ends():
    """What the configurations call linear starts and ends at the stated betas and is linear in their roots."""
    beta = schedules.scaled_linear(1000, 0.0015, 0.0195).beta
    torch.testing.assert_close(beta[[0, -1]], torch.tensor([0.0015, 0.0195], dtype=torch.float64))
    torch.testing.assert_close(beta.sqrt().diff(n=2), torch.zeros(998, dtype=torch.float64), atol=1e-12, rtol=0)


def test_one_noising_step_after_another_is_q_sample():
    """alpha_bar is the product of the steps: t steps of q(z_t | z_{t-1}) have the mean and variance of q_sample."""
    schedule = schedules.scaled_linear(50, 0.01, 0.2)
    mean, variance = 1.0, 0.0
    for beta in schedule.beta.tolist():
        mean, variance = mean * (1 - beta) ** 0.5, variance * (1 - beta) + beta
    last = schedule.alpha_bar[-1].item()
    assert (mean, variance) == (pytest.approx(last**0.5), pytest.approx(1 - last))


def test_predict_z0_inverts_q_sample():
    """Given the true noise, z_0 comes back at every t, in the dtype of the latents."""
    schedule = schedules.scaled_linear()
    z0, eps = torch.randn(2, 5, 4, 8, 8, dtype=torch.float64)
    t = torch.tensor([0, 1, 500, 998, 999])
    torch.testing.assert_close(schedule.predict_z0(schedule.q_sample(z0, t, eps), t, eps), z0)
    assert schedule.q_sample(z0.float(), t, eps.float()).dtype == torch.float32


def test_posterior_is_bayes_rule():
    """q(z_{t-1} | z_t, z_0) from its formula equals the product of the two Gaussians that it comes from."""
    schedule, t = schedules.scaled_linear(), 700
    beta, prev = schedule.beta[t], schedule.alpha_bar[t - 1]
    z0, z_t = torch.tensor([0.3], dtype=torch.float64), torch.tensor([-1.1], dtype=torch.float64)
    precision = 1 / (1 - prev) + (1 - beta) / beta
    mean = (prev.sqrt() * z0 / (1 - prev) + (1 - beta).sqrt() * z_t / beta) / precision
    torch.testing.assert_close(schedule.posterior_mean(z0, z_t, torch.tensor([t])), mean)
    torch.testing.assert_close(schedule.posterior_variance[t], 1 / precision)
    assert schedule.posterior_variance[0] == 0


@pytest.mark.parametrize("make", [
    lambda: schedules.scaled_linear(0), lambda: schedules.linear(10, 0.5, 0.1), lambda: schedules.sqrt(10, -1.0, 0.1),
    lambda: schedules.linear(10, 0.1, 1.0), lambda: schedules.cosine(10, -1.0), lambda: schedules.cosine(0),
])
def test_impossible_schedules_are_refused(make):
    """Betas outside (0, 1), no steps, reversed ends: an error, not a schedule of NaN."""
    with pytest.raises(ValueError, match="got"):
        make()
