"""The solvable world: its laws and best denoisers against definitions, and the samplers against its laws."""

import math

import pytest
import torch
from scipy.stats import multivariate_normal

from ldmlab.diffusion import schedules
from ldmlab.diffusion.samplers import SAMPLERS, ddim, ddpm
from ldmlab.diffusion.solvable import (
    Gaussian,
    GaussianMixture,
    convergence,
    optimal_eps_model,
    random_field,
    sampled_law,
)

SCHEDULE = schedules.scaled_linear()


def correlated() -> Gaussian:
    root = torch.tensor([[1.0, 0.3, 0.0], [0.0, 0.6, -0.4], [0.2, 0.0, 0.5]], dtype=torch.float64)
    return Gaussian.from_covariance(torch.tensor([0.5, -1.0, 2.0]), root @ root.T)


def mixture() -> GaussianMixture:
    far = Gaussian.from_covariance(torch.tensor([-2.0, 1.0, 0.0]), 0.3 * torch.eye(3))
    return GaussianMixture(torch.tensor([0.7, 0.3]), (correlated(), far))


def test_gaussian_against_scipy():
    """Density and entropy are scipy's; draws have the mean and the covariance; its eigenbasis keeps the covariance."""
    data = correlated()
    reference = multivariate_normal(data.mean, data.covariance)
    z = data.sample(20_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(data.log_prob(z), torch.from_numpy(reference.logpdf(z)))
    assert data.entropy == pytest.approx(reference.entropy())
    torch.testing.assert_close(z.mean(0), data.mean, atol=0.03, rtol=0)
    torch.testing.assert_close(z.T.cov(), data.covariance, atol=0.05, rtol=0)


@pytest.mark.parametrize("data", [correlated(), mixture()], ids=["gaussian", "mixture"])
def test_optimal_eps_is_the_score(data):
    """eps* = -sqrt(1 - alpha_bar_t) grad log p(z_t), the gradient taken by autograd, at a t of its own per item."""
    t = torch.tensor([0, 30, 500, 999])
    ab = SCHEDULE.alpha_bar[t]
    z_t = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    (score,) = torch.autograd.grad(data.log_prob(z_t, ab).sum(), z_t)
    eps = optimal_eps_model(data, SCHEDULE)(z_t.detach(), t)
    torch.testing.assert_close(eps, -(1 - ab).sqrt()[:, None] * score)


def test_no_other_guess_of_the_noise_is_better():
    """The mean squared error of eps* on the mixture is below that of eps* moved a little, either way."""
    data, generator = mixture(), torch.Generator().manual_seed(0)
    z0 = data.sample(20_000, generator)
    eps = torch.randn(z0.shape, generator=generator, dtype=torch.float64)
    t = torch.full((len(z0),), 400)
    eps_hat = optimal_eps_model(data, SCHEDULE)(SCHEDULE.q_sample(z0, t, eps), t)
    errors = [(eps - scale * eps_hat).square().mean() for scale in (0.95, 1.0, 1.05)]
    assert errors[1] < min(errors[0], errors[2])


def test_mixture_is_sampled_and_normalised():
    """Draws fall to the components by their weights; a density in one dimension integrates to 1, at any noise level."""
    data = mixture()
    z = data.sample(10_000, torch.Generator().manual_seed(0))
    mean = sum(w * c.mean for w, c in zip(data.weights, data.components, strict=True))
    torch.testing.assert_close(z.mean(0), mean.double(), atol=0.05, rtol=0)
    one = [Gaussian.from_covariance(torch.tensor([m]), torch.tensor([[0.2]])) for m in (-1.0, 2.0)]
    line = GaussianMixture(torch.tensor([0.4, 0.6]), tuple(one))
    grid = torch.linspace(-9, 9, 4001, dtype=torch.float64)[:, None]
    for ab in (1.0, 0.5):
        assert torch.trapezoid(line.log_prob(grid, ab).exp(), grid[:, 0]).item() == pytest.approx(1, abs=1e-6)


def test_random_field_has_its_spectrum():
    """Unit variance at every pixel; the same covariance after any shift; power |k|^-exponent, seen by an FFT."""
    size, exponent = 8, 3.0
    field = random_field(size, exponent)
    covariance = field.covariance.view(size, size, size, size)
    torch.testing.assert_close(field.covariance.diagonal(), torch.ones(64, dtype=torch.float64))
    torch.testing.assert_close(covariance, covariance.roll((1, 3, 1, 3), (0, 1, 2, 3)))
    power = torch.fft.fft2(covariance[0, 0]).real
    assert (power[0, 1] / power[0, 3]).item() == pytest.approx(3**exponent)
    assert field.mean.shape == (1, size, size)
    torch.testing.assert_close(field.basis.T @ field.basis, torch.eye(64, dtype=torch.float64))


@pytest.mark.parametrize("name, miss", [("ddim", 0.0042), ("ddpm", 0.0079)])
def test_true_eps_recovers_the_covariance_within_one_percent(name, miss):
    """1000 steps of DDIM (eta 0) and of DDPM on the random field, exactly; the rest is finite T's stated bias."""
    field = random_field(8)
    law = sampled_law(SAMPLERS[name].draw, field, SCHEDULE, 1000)
    error = ((law.covariance - field.covariance).norm() / field.covariance.norm()).item()
    assert error < 0.01 and error == pytest.approx(miss, rel=0.02)


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_bias_of_the_covariance_goes_with_one_over_T(name):
    """The same noise in twice as many steps halves what the covariance misses: the bias is finite T's, no mistake."""
    field, errors = random_field(4), []
    for T in (100, 200):
        alpha_bar = SCHEDULE.alpha_bar[1000 // T - 1 :: 1000 // T]
        beta = 1 - alpha_bar / torch.cat([torch.ones(1), alpha_bar[:-1]])
        law = sampled_law(SAMPLERS[name].draw, field, schedules.Schedule.from_beta(beta), T)
        errors.append((law.covariance - field.covariance).norm().item())
    assert 0.4 < errors[1] / errors[0] < 0.6


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampled_law_is_that_of_samples(name):
    """The exact law agrees with many samples of a correlated Gaussian, in 20 steps, whose bias is far from small."""
    data, generator = correlated(), torch.Generator().manual_seed(0)
    law = sampled_law(SAMPLERS[name].draw, data, SCHEDULE, 20)
    z_T = torch.randn(40_000, 3, generator=generator, dtype=torch.float64)
    z = SAMPLERS[name].draw(optimal_eps_model(data, SCHEDULE), z_T, SCHEDULE, 20, generator=generator)
    torch.testing.assert_close(z.mean(0), law.mean, atol=0.02, rtol=0)
    torch.testing.assert_close(z.T.cov(), law.covariance, atol=0.03, rtol=0)


def test_flow_carries_the_law_along():
    """The exact path maps z_t's law at any t onto that at s, and many steps of DDIM follow it."""
    data = correlated()
    ab_t, ab_s = SCHEDULE.alpha_bar[[999, 0]].tolist()
    z_T = torch.randn(16, 3, dtype=torch.float64)
    z = data.flow(z_T, ab_t, ab_s)
    jacobian = torch.stack([data.flow(row[None], ab_t, ab_s)[0] - data.flow(torch.zeros(1, 3).double(), ab_t, ab_s)[0]
                            for row in torch.eye(3, dtype=torch.float64)], 1)
    at_t, at_s = (ab * data.covariance + (1 - ab) * torch.eye(3) for ab in (ab_t, ab_s))
    torch.testing.assert_close(jacobian @ at_t @ jacobian.T, at_s)
    torch.testing.assert_close(ddim(optimal_eps_model(data, SCHEDULE), z_T, SCHEDULE, 500), z, atol=0.02, rtol=0)


def slope(curve: list[tuple[int, float]]) -> float:
    """Least-squares slope of -log error against log steps: the order of convergence."""
    log_steps, log_errors = (torch.tensor(column, dtype=torch.float64).log() for column in zip(*curve, strict=True))
    log_steps -= log_steps.mean()
    return -(log_steps @ log_errors / log_steps.square().sum()).item()


def test_orders_of_convergence():
    """As steps double, the error of DDIM halves and that of DPM-Solver++(2M) falls to a quarter; PLMS is in between."""
    field = random_field(8)
    z_T = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    steps = (20, 40, 80, 160)
    curves = {name: convergence(SAMPLERS[name].draw, field, SCHEDULE, steps, z_T) for name in ("ddim", "dpm-solver++")}
    assert slope(curves["ddim"]) == pytest.approx(1, abs=0.1)
    assert slope(curves["dpm-solver++"]) == pytest.approx(2, abs=0.1)
    assert all(second[1] < first[1] / 5 for first, second in zip(*curves.values(), strict=True))
    (plms,) = convergence(SAMPLERS["plms"].draw, field, SCHEDULE, [20], z_T)
    assert plms[0] == 20 and plms[1] < curves["ddim"][0][1] / 5


def test_principal_keeps_the_largest_variances():
    """The best linear code of k numbers loses exactly the variance that it does not keep."""
    field = random_field(8)
    kept = field.principal(10)
    assert kept.variances.count_nonzero() == 10
    lost = field.variances.sum() - kept.variances.sum()
    assert lost.item() == pytest.approx(field.variances.sort().values[:54].sum().item())
    assert kept.entropy == -math.inf
    assert optimal_eps_model(kept, SCHEDULE)(torch.randn(2, 1, 8, 8), torch.tensor([0, 999])).isfinite().all()


def test_impossible_worlds_are_refused():
    """Each message says what was given."""
    with pytest.raises(ValueError, match="negative eigenvalues"):
        Gaussian.from_covariance(torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(ValueError, match="2 x 2"):
        Gaussian.from_covariance(torch.zeros(2), torch.eye(3))
    with pytest.raises(ValueError, match="sum 1"):
        GaussianMixture(torch.tensor([0.7, 0.7]), (correlated(), correlated()))
    with pytest.raises(ValueError, match="size=1"):
        random_field(1)
    with pytest.raises(ValueError, match="k must be"):
        random_field(2).principal(5)
    with pytest.raises(ValueError, match=r"\[1, 999\]"):
        convergence(ddim, correlated(), SCHEDULE, [1000], torch.zeros(1, 3))


def test_ddpm_at_all_steps_is_ddim_at_eta_one():
    """SAMPLERS takes DDPM to be DDIM at eta = 1: at T steps the two agree, noise for noise."""
    schedule = schedules.scaled_linear(50, 0.02, 0.2)
    eps_model = optimal_eps_model(correlated(), schedule)
    z_T = torch.randn(4, 3, dtype=torch.float64)
    ancestral = ddpm(eps_model, z_T, schedule, generator=torch.Generator().manual_seed(1))
    strided = SAMPLERS["ddpm"].draw(eps_model, z_T, schedule, 50, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(strided, ancestral)
