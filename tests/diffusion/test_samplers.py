"""Samplers against what is known in closed form."""

import pytest
import torch

from ldmlab.diffusion import schedules
from ldmlab.diffusion.samplers import SAMPLERS, ddim, ddim_step, ddim_timesteps, ddpm, dpm_solver_pp, plms

SCHEDULE = schedules.scaled_linear()


def gaussian_eps_model(schedule, mean, std):
    """The exact noise prediction for z_0 ~ N(mean, std^2)."""

    def eps_model(z_t, t):
        ab = schedule.alpha_bar[t].view(-1, 1).to(z_t.dtype)
        z0_hat = mean + std**2 * ab.sqrt() / (std**2 * ab + 1 - ab) * (z_t - ab.sqrt() * mean)
        return (z_t - ab.sqrt() * z0_hat) / (1 - ab).sqrt()

    return eps_model


def test_ddim_step_recovers_the_forward_process():
    """With the true eps, one step from t lands exactly on q_sample at s."""
    ab = SCHEDULE.alpha_bar
    z0, eps = torch.randn(2, 2, 4, 8, 8, dtype=torch.float64)
    z_t, z_s = (SCHEDULE.q_sample(z0, torch.tensor([i, i]), eps) for i in (500, 400))
    torch.testing.assert_close(ddim_step(z_t, eps, ab[500], ab[400]), z_s)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 9, 27, 36, 37, 101, 250, 333, 500, 501, 999, 1000])
def test_any_number_of_ddim_steps_is_exactly_that(num_steps):
    """Where the released rule visits too many steps or leaves the schedule, ours does neither; elsewhere they agree."""
    steps = ddim_timesteps(num_steps)
    assert len(steps) == num_steps and 0 <= steps[-1] and steps[0] <= 999
    assert all(t > s for t, s in zip(steps, steps[1:], strict=False))
    if 1000 % num_steps == 0 and num_steps < 1000:
        assert steps == ddim_timesteps(num_steps, rule="compvis")


def test_every_number_of_steps_samples():
    """A whole run from each corner: as many calls as asked, and finite results, at eta 0 and 1."""
    for num_steps in (1, 3, 37, 333, 501, 1000):
        for eta in (0.0, 1.0):
            calls = []

            def eps_model(z_t, t, calls=calls):
                calls.append(int(t[0]))
                return z_t / 2

            z_T, generator = torch.randn(2, 3), torch.Generator().manual_seed(0)
            assert ddim(eps_model, z_T, SCHEDULE, num_steps, eta=eta, generator=generator).isfinite().all()
            assert calls == ddim_timesteps(num_steps)


def test_released_rule_says_where_it_fails():
    """The released rule is there for parity: 7 gives 8 steps, and 3 leaves the schedule, which is said."""
    assert len(ddim_timesteps(7, rule="compvis")) == 8
    with pytest.raises(ValueError, match="1000"):
        ddim_timesteps(3, rule="compvis")


@pytest.mark.parametrize("bad", [0, 1001, -5])
def test_impossible_step_counts_are_refused(bad):
    """A number of steps outside 1..T names both."""
    with pytest.raises(ValueError, match=rf"\[1, 1000\], got {bad}"):
        ddim_timesteps(bad)


def test_unknown_rule_and_eta_are_refused():
    """What is accepted is listed."""
    with pytest.raises(ValueError, match="uniform, compvis"):
        ddim_timesteps(10, rule="leading")
    with pytest.raises(ValueError, match="eta"):
        ddim(lambda z, t: z, torch.zeros(1, 1), SCHEDULE, 10, eta=1.5)


def test_ddpm_recovers_a_gaussian():
    """Ancestral sampling with the exact denoiser gives the mean and the variance of the data."""
    schedule, generator = schedules.scaled_linear(400, 0.001, 0.1), torch.Generator().manual_seed(1)
    z_T = torch.randn(10_000, 1, generator=generator)
    z = ddpm(gaussian_eps_model(schedule, 1.5, 0.5), z_T, schedule, generator=generator)
    assert z.mean().item() == pytest.approx(1.5, abs=0.02)
    assert z.std().item() == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_recovers_a_gaussian(eta):
    """The same from DDIM in fewer steps, deterministic or not."""
    generator = torch.Generator().manual_seed(1)
    z_T = torch.randn(10_000, 1, generator=generator)
    z = ddim(gaussian_eps_model(SCHEDULE, 1.5, 0.5), z_T, SCHEDULE, 250, eta=eta, generator=generator)
    assert z.mean().item() == pytest.approx(1.5, abs=0.02)
    assert z.std().item() == pytest.approx(0.5, rel=0.05)  # finite steps at eta = 1 make it a little narrow


def test_ddpm_clips_what_it_predicts():
    """With clip, z0_hat stays in [-1, 1] at every step; the callback sees T of them."""
    seen = []
    schedule, generator = schedules.scaled_linear(20, 0.05, 0.3), torch.Generator().manual_seed(0)
    ddpm(lambda z, t: 3 * z, torch.randn(4, 2), schedule, generator=generator, clip=True,
         on_step=lambda i, t, z, z0_hat: seen.append(z0_hat))
    assert len(seen) == 20 and max(z0_hat.abs().max() for z0_hat in seen) <= 1


def test_deterministic_ddim_needs_no_noise_and_eta_does():
    """At eta 0 nothing is drawn, so no generator is asked for; at eta > 0 the global one is not touched silently."""
    z_T = torch.randn(1, 2)
    state = torch.get_rng_state()
    ddim(lambda z, t: z / 2, z_T, SCHEDULE, 5)
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ValueError, match="Generator"):
        ddim(lambda z, t: z / 2, z_T, SCHEDULE, 5, eta=1.0)


def test_known_region_is_held():
    """Where the mask is 1, the result is what is known but for the noise left at the last step."""
    known, mask = torch.full((2, 1, 4, 4), 0.7), torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    eps_model, generator = gaussian_eps_model(SCHEDULE, 0.0, 1.0), torch.Generator().manual_seed(0)

    def flat(z, t):
        return eps_model(z.flatten(1), t).view_as(z)

    z = ddim(flat, torch.randn(2, 1, 4, 4), SCHEDULE, 50, generator=generator, known=known, mask=mask)
    assert (z[..., :2] - 0.7).abs().max() < 0.5 and (z[..., 2:] - 0.7).abs().max() > 0.5
    with pytest.raises(ValueError, match="together"):
        ddim(flat, known, SCHEDULE, 5, known=known)


def test_bfloat16_answers_are_taken_up_in_float32():
    """A denoiser under autocast answers in bf16; the latent between steps stays float32."""
    z = ddim(lambda z, t: (z / 2).bfloat16(), torch.randn(1, 2), SCHEDULE, 5)
    assert z.dtype == torch.float32


@pytest.mark.parametrize("name", ["ddim", "plms", "dpm-solver++"])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 7, 37, 333, 501, 999, 1000])
def test_constant_noise_is_followed_exactly(name, num_steps):
    """If the model always answers the true eps, any number of steps lands on the forward process at the last level."""
    z0, eps = torch.randn(2, 3, 4, dtype=torch.float64)
    asked = []

    def eps_model(z_t, t):
        asked.append(t[0].item())
        return eps

    def alpha_bar(t):
        lower = min(int(t), 998)
        log_snr = SCHEDULE.log_snr[lower].lerp(SCHEDULE.log_snr[lower + 1], t - lower)
        return log_snr.sigmoid()

    ab_T = alpha_bar(999.0 if name == "dpm-solver++" else ddim_timesteps(num_steps)[0])
    z = SAMPLERS[name].draw(eps_model, ab_T.sqrt() * z0 + (1 - ab_T).sqrt() * eps, SCHEDULE, num_steps)
    to_the_end = num_steps == 1000 and name != "dpm-solver++"
    ab_0 = torch.ones(()) if to_the_end else SCHEDULE.alpha_bar[0]
    torch.testing.assert_close(z, ab_0.sqrt() * z0 + (1 - ab_0).sqrt() * eps)
    assert len(asked) == num_steps + (name == "plms") and all(0 <= t <= 999 for t in asked)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_are_called_alike(name):
    """One signature for all: float32 in and out, a callback per step, the number of steps checked before any call."""
    seen, z_T = [], torch.randn(2, 3)
    z = SAMPLERS[name].draw(lambda z, t: z / 2, z_T, SCHEDULE, 7, generator=torch.Generator().manual_seed(0),
                       on_step=lambda i, t, z, z0_hat: seen.append((i, t, z)))
    assert [i for i, _, _ in seen] == list(range(7)) and torch.equal(seen[-1][2], z)
    assert all(t > s for (_, t, _), (_, s, _) in zip(seen, seen[1:], strict=False))
    assert z.dtype == torch.float32 and z.isfinite().all()
    with pytest.raises(ValueError, match=r"\[1, 1000\], got 0"):
        SAMPLERS[name].draw(lambda z, t: z, z_T, SCHEDULE, 0)


def test_dpm_solver_steps_are_even_in_log_snr():
    """The times asked for are those at which lambda, half the log SNR, has made equal steps from T - 1 to 0."""
    asked = []
    dpm_solver_pp(lambda z, t: asked.append(t[0].item()) or z / 2, torch.randn(1, 2, dtype=torch.float64), SCHEDULE, 4)
    lower = torch.tensor(asked).long().clamp(max=998)
    weight = torch.tensor(asked, dtype=torch.float64) - lower
    log_snr = SCHEDULE.log_snr[lower].lerp(SCHEDULE.log_snr[lower + 1], weight)
    torch.testing.assert_close(log_snr.diff(), ((SCHEDULE.log_snr[0] - SCHEDULE.log_snr[-1]) / 4).expand(3))
    assert asked[0] == 999


def test_plms_weighs_what_it_remembers():
    """Noise that grows by steps of one shows the weights of Adams-Bashforth in each step's answer: 1/2, then +1/2."""
    calls = []

    def eps_model(z_t, t):
        calls.append(float(len(calls)))
        return torch.full_like(z_t, calls[-1])

    answers = []

    def on_step(i, t, z, z0_hat):
        ab = SCHEDULE.alpha_bar[t]
        answers.append(((before[0] - ab.sqrt() * z0_hat) / (1 - ab).sqrt()).item())
        before[0] = z

    before = [torch.zeros(1, 1, dtype=torch.float64)]
    plms(eps_model, before[0], SCHEDULE, 5, on_step=on_step)
    # Prompts for 0 and 1 in the first step, 2, 3, 4, 5 in the others; the first step keeps the 0 and not the mean.
    expected = [0.5, 1.5 * 2 - 0.5 * 0, (23 * 3 - 16 * 2) / 12, (55 * 4 - 59 * 3 + 37 * 2) / 24,
                (55 * 5 - 59 * 4 + 37 * 3 - 9 * 2) / 24]
    assert answers == pytest.approx(expected)
