"""The variational bound and progressive coding, against closed forms."""

import math

import pytest
import torch
from scipy.stats import norm

from ldmlab.diffusion import schedules
from ldmlab.diffusion.likelihood import (
    bound_times,
    gaussian_decoder,
    pixel_decoder,
    prior_kl,
    rate_distortion,
    variational_bound,
)
from ldmlab.diffusion.solvable import optimal_eps_model, random_field

SCHEDULE = schedules.scaled_linear()
FIELD = random_field(8)
EPS_MODEL = optimal_eps_model(FIELD, SCHEDULE)


def gaussian_kl(mean_q, mean_p, variance_q, variance_p=None):
    """KL between two normal laws with diagonal covariance, summed over entries."""
    variance_p = variance_q if variance_p is None else variance_p
    ratio = variance_q / variance_p
    return 0.5 * (ratio - 1 - ratio.log() + (mean_q - mean_p).square() / variance_p).flatten(1).sum(1)


def data(n: int) -> torch.Tensor:
    return FIELD.sample(n, torch.Generator().manual_seed(0))


def residual_variances(t):
    """Variances of z0 that remain once z_t is known, along the eigenvectors: nothing can predict better."""
    ab = SCHEDULE.alpha_bar[t]
    return FIELD.variances * (1 - ab) / (ab * FIELD.variances + 1 - ab)


def test_each_step_is_the_kl_of_its_two_normals():
    """L_{t-1} of a given z0 and z_t is KL(q(z_{t-1}|z_t,z0) || p(z_{t-1}|z_t)), written out with means and variance."""
    z0, seen = data(3), {}

    def watched(z_t, t):
        seen[int(t[0])] = (z_t, t, EPS_MODEL(z_t, t) + 0.1)
        return seen[int(t[0])][2]

    bound = variational_bound(watched, z0, SCHEDULE, generator=torch.Generator().manual_seed(0), num_times=40)
    checked = [t for t in bound_times(40) if t > 0]
    for t in checked:
        z_t, at, eps_hat = seen[t]
        q = SCHEDULE.posterior_mean(z0, z_t, at)
        p = SCHEDULE.posterior_mean(SCHEDULE.predict_z0(z_t, at, eps_hat), z_t, at)
        torch.testing.assert_close(bound.steps[:, t], gaussian_kl(q, p, SCHEDULE.posterior_variance[t]))
    ab = SCHEDULE.alpha_bar[-1]
    torch.testing.assert_close(bound.prior, gaussian_kl(ab.sqrt() * z0, 0 * z0, 1 - ab, torch.ones(())))
    assert len(checked) == 39 and set(seen) == {0, *checked}


def test_steps_of_the_best_denoiser_have_their_closed_form():
    """In the mean over data, L_{t-1} = (SNR(t-1) - SNR(t)) / 2 times the variance that z_t leaves [LDM v2, Eq. 13]."""
    bound = variational_bound(EPS_MODEL, data(256), SCHEDULE, generator=torch.Generator().manual_seed(1), num_times=50)
    snr, steps = SCHEDULE.log_snr.exp(), bound.steps.mean(0)
    for t in (1, 10, 41, 100, 400, 800):
        expected = 0.5 * (snr[t - 1] - snr[t]) * residual_variances(t).sum()
        assert steps[t].item() == pytest.approx(expected.item(), rel=0.1)  # one draw of 256 x 64 normals
    whole = sum(0.5 * (snr[t - 1] - snr[t]) * residual_variances(t).sum() for t in range(1, 1000))
    assert steps[1:].sum().item() == pytest.approx(whole.item(), rel=0.01)
    beta, left = SCHEDULE.beta[0], residual_variances(0)
    assert steps[0].item() == pytest.approx((0.5 * (left / beta + (2 * math.pi * beta).log()).sum()).item(), rel=0.02)


def test_bound_approaches_the_true_likelihood():
    """With the best denoiser, the bound is 0.29 nats per entry above -log p at T = 1000, and 0.07 at about 4 T."""
    z0 = data(256)
    times = torch.arange(0, 999.01, 0.25, dtype=torch.float64)
    lower = times.long().clamp(max=998)
    alpha_bar = SCHEDULE.log_snr[lower].lerp(SCHEDULE.log_snr[lower + 1], times - lower).sigmoid()
    finer = schedules.Schedule.from_beta(1 - alpha_bar / torch.cat([torch.ones(1), alpha_bar[:-1]]))
    for schedule, gap in ((SCHEDULE, 0.288), (finer, 0.07)):
        bound = variational_bound(optimal_eps_model(FIELD, schedule), z0, schedule,
                                  generator=torch.Generator().manual_seed(0), num_times=100)
        above = (bound.nats + FIELD.log_prob(z0)) / 64
        assert above.mean().item() == pytest.approx(gap, abs=0.02)
        assert bound.nats.mean().item() / 64 > FIELD.entropy / 64
    torch.testing.assert_close(bound.bits_per_dim, bound.nats / 64 / math.log(2))


def test_worse_denoisers_have_worse_bounds():
    """Scaling the best answer up or down raises the bound; so does knowing nothing."""
    z0, nats = data(64), []
    for scale in (1.0, 0.8, 1.2, 0.0):
        bound = variational_bound(lambda z, t, scale=scale: scale * EPS_MODEL(z, t), z0, SCHEDULE,
                                  generator=torch.Generator().manual_seed(0), num_times=30)
        nats.append(bound.nats.mean().item())
    assert nats[0] < min(nats[1:]) and nats[3] == max(nats)


def test_few_times_estimate_the_bound_of_all():
    """25 calls give the T-step bound of all 200 calls within 2 %, most of it the randomness of the draws."""
    schedule = schedules.scaled_linear(200, 0.0015, 0.1)
    eps_model, z0 = optimal_eps_model(FIELD, schedule), data(512)
    few, all_times = (variational_bound(eps_model, z0, schedule, generator=torch.Generator().manual_seed(0),
                                        num_times=n).steps[:, 1:].sum(1).mean() for n in (25, None))
    assert few.item() == pytest.approx(all_times.item(), rel=0.02)


@pytest.mark.parametrize("num_times, T", [(2, 1000), (3, 7), (7, 7), (40, 1000), (999, 1000), (1000, 1000)])
def test_times_are_distinct_and_reach_both_ends(num_times, T):
    """Exactly as many as asked, rising, from 0 to T - 1."""
    times = bound_times(num_times, T)
    assert len(times) == num_times and times[0] == 0 and times[-1] == T - 1
    assert all(s < t for s, t in zip(times, times[1:], strict=False))


@pytest.mark.parametrize("scale", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("mean, variance", [(0.0, 1e-4), (0.3, 1e-6), (-1.2, 0.5), (1.0, 1e-2)])
def test_pixel_decoder_is_a_probability(mean, variance, scale):
    """Over the 256 levels the masses sum to 1 and are differences of the normal distribution; far tails stay finite."""
    levels = torch.linspace(-1, 1, 256, dtype=torch.float64)[:, None]
    nats = pixel_decoder(scale * levels, torch.full_like(levels, scale * mean), variance * scale**2, scale)
    assert nats.isfinite().all() and nats.neg().exp().sum().item() == pytest.approx(1)
    edges = torch.cat([torch.tensor([-math.inf]), (levels[1:, 0] + levels[:-1, 0]) / 2, torch.tensor([math.inf])])
    mass = torch.from_numpy(norm.cdf(edges, mean, variance**0.5)).diff()
    near = mass > 1e-9
    torch.testing.assert_close(nats.neg().exp()[near], mass[near], rtol=1e-5, atol=0)


def test_bits_of_eight_bit_pictures():
    """Of uniformly random pixels no model can give fewer than 8 bits per dimension, and the bound does not."""
    levels = torch.randint(0, 256, (4, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    x = levels / 127.5 - 1
    bound = variational_bound(lambda z, t: z * (1 - SCHEDULE.alpha_bar[t[0]]).sqrt().float(), x, SCHEDULE,
                              generator=torch.Generator().manual_seed(0), num_times=50, decoder=pixel_decoder)
    assert 8 < bound.bits_per_dim.mean() < 10
    assert bound.steps.shape == (4, 1000) and bound.num_dims == 192


def test_progressive_coding_of_a_field():
    """Rate rises from L_T to the whole bound but L_0; distortion falls as the variance that z_t leaves."""
    z0 = data(128)
    calls = []

    def decode(z):
        calls.append(len(z))
        return z.expand(-1, 3, -1, -1)

    curve = rate_distortion(EPS_MODEL, z0, decode(z0), decode, SCHEDULE, generator=torch.Generator().manual_seed(0),
                            num_times=40)
    bound = variational_bound(EPS_MODEL, z0, SCHEDULE, generator=torch.Generator().manual_seed(0), num_times=40)
    torch.testing.assert_close(curve.rate[:, 0], bound.prior / math.log(2) / 64)  # one channel on 64 pixels
    torch.testing.assert_close(curve.rate[:, -1], (bound.nats - bound.steps[:, 0]) / math.log(2) / 64)
    assert (curve.rate.diff(dim=1) > 0).all() and (curve.rmse.mean(0).diff() < 2).all()
    assert curve.times.tolist() == bound_times(40)[::-1] and len(calls) == 41
    expected = torch.stack([127.5 * residual_variances(t).mean().sqrt() for t in curve.times.tolist()])
    torch.testing.assert_close(curve.rmse.square().mean(0).sqrt(), expected, rtol=0.1, atol=0)
    torch.testing.assert_close(curve.psnr, 10 * (255**2 / curve.rmse.square()).log10())


def test_what_cannot_be_measured_is_refused():
    """Errors say what was given and what is accepted."""
    generator = torch.Generator()
    for bad in (1, 1001):
        with pytest.raises(ValueError, match=rf"\[2, 1000\], got {bad}"):
            variational_bound(EPS_MODEL, data(2), SCHEDULE, generator=generator, num_times=bad)
    with pytest.raises(ValueError, match="256 levels"):
        pixel_decoder(torch.full((1, 2), 0.001), torch.zeros(1, 2), 0.1)
    with pytest.raises(ValueError, match="3 pictures and 2 latents"):
        rate_distortion(EPS_MODEL, data(2), torch.zeros(3, 3, 8, 8), lambda z: z, SCHEDULE, generator=generator)


def test_prior_and_gaussian_decoder_in_float32():
    """Latents are float32: the terms keep it, and a perfect guess costs the entropy of nothing but its variance."""
    z0 = torch.randn(2, 4, 3, 3)
    assert prior_kl(z0, SCHEDULE).dtype == gaussian_decoder(z0, z0, 0.01).dtype == torch.float32
    torch.testing.assert_close(gaussian_decoder(z0, z0, 0.01), torch.full((2,), 18 * math.log(2 * math.pi * 0.01)))
