"""Guidance, classifier-free, by a classifier and by a picture: how many calls, and what comes out where it is known."""

import pytest
import torch

from ldmlab.diffusion import schedules
from ldmlab.diffusion.guidance import classifier_free, classifier_guided, image_guided
from ldmlab.diffusion.guiders import gaussian_guider, identity
from ldmlab.diffusion.samplers import ddim, dpm_solver_pp
from ldmlab.diffusion.solvable import Gaussian, GaussianMixture, optimal_eps_model


def recording_denoiser():
    calls = []

    def denoiser(z_t, t, context):
        calls.append((len(z_t), context))
        return z_t * 0 + context.mean((1, 2)).view(-1, 1, 1, 1)

    return denoiser, calls


Z, T = torch.zeros(2, 1, 2, 2), torch.tensor([3, 3])
CONTEXT, NULL = torch.full((2, 1, 4), 2.0), torch.full((2, 1, 4), 1.0)


def test_scale_one_makes_one_call_on_the_batch_itself():
    """Without guidance the null condition costs nothing."""
    denoiser, calls = recording_denoiser()
    assert (classifier_free(denoiser, CONTEXT, NULL, 1.0)(Z, T) == 2).all()
    assert [n for n, _ in calls] == [2]


@pytest.mark.parametrize("scale, expected", [(3.0, 4.0), (0.0, 1.0), (1.5, 2.5)])
def test_guidance_extrapolates_from_null_to_condition(scale, expected):
    """eps_null + s (eps_cond - eps_null), from one call on [null, condition]."""
    denoiser, calls = recording_denoiser()
    assert (classifier_free(denoiser, CONTEXT, NULL, scale)(Z, T) == expected).all()
    [(n, context)] = calls
    assert n == 4 and torch.equal(context, torch.cat([NULL, CONTEXT]))


def test_one_null_context_serves_the_batch():
    """A single null token stands for every item."""
    denoiser, calls = recording_denoiser()
    assert (classifier_free(denoiser, CONTEXT, NULL[:1], 2)(Z, T) == 3).all()
    assert torch.equal(calls[0][1], torch.cat([NULL, CONTEXT]))


# --- In the solvable world -------------------------------------------------------------------------------------------
SCHEDULE = schedules.scaled_linear()
LEFT = Gaussian.from_covariance(torch.tensor([-1.5, 0.5]), torch.tensor([[0.5, 0.3], [0.3, 0.4]]))
RIGHT = Gaussian.from_covariance(torch.tensor([1.0, -0.5]), 0.2 * torch.eye(2))
MIXTURE = GaussianMixture(torch.tensor([0.7, 0.3]), (LEFT, RIGHT))


def exact_classifier(z_t, t):
    """log p(z_t, k), so that its softmax is the probability of each component."""
    ab = SCHEDULE.alpha_bar_at(t)
    components = zip(MIXTURE.weights, MIXTURE.components, strict=True)
    return torch.stack([w.log() + component.log_prob(z_t, ab) for w, component in components], 1)


def noise(b=2000):
    return torch.randn(b, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def guided_samples(y, scale, sampler=ddim, num_steps=40):
    eps_model = classifier_guided(optimal_eps_model(MIXTURE, SCHEDULE), exact_classifier, y, SCHEDULE, scale)
    return sampler(eps_model, noise(len(y)), SCHEDULE, num_steps)


@pytest.mark.parametrize("t", [torch.tensor([0, 300, 999]), torch.tensor([0.25, 431.7, 998.5])])
def test_the_exact_classifier_turns_the_mixture_into_a_component(t):
    """By Bayes' rule, at scale 1 the guided eps is the optimal one of the chosen component, at any t, whole or not."""
    z_t, y = noise(3), torch.tensor([1, 0, 1])
    guided = classifier_guided(optimal_eps_model(MIXTURE, SCHEDULE), exact_classifier, y, SCHEDULE, 1)(z_t, t)
    of_components = [optimal_eps_model(component, SCHEDULE)(z_t, t) for component in MIXTURE.components]
    torch.testing.assert_close(guided, torch.stack(of_components)[y, torch.arange(3)])


@pytest.mark.parametrize("sampler", [ddim, dpm_solver_pp])
def test_classifier_guidance_samples_the_chosen_component(sampler):
    """Samples have the component's mean and covariance, of which the mixture without guidance has neither."""
    for k, component in enumerate(MIXTURE.components):
        z = guided_samples(torch.full((2000,), k), 1.0, sampler)
        torch.testing.assert_close(z.mean(0), component.mean, atol=0.05, rtol=0)
        torch.testing.assert_close(z.T.cov(), component.covariance, atol=0.05, rtol=0)


def test_a_larger_scale_moves_further_from_the_other_class():
    """The mean log-probability of the chosen class rises with the scale, and its spread falls."""
    y = torch.zeros(1000, dtype=torch.long)
    sure, spread = [], []
    for scale in (0.0, 0.5, 1.0, 3.0, 10.0):
        z = guided_samples(y, scale)
        sure.append(exact_classifier(z, torch.zeros(len(z))).log_softmax(1)[:, 0].mean().item())
        spread.append(z.var(0).sum().item())
    assert sure == sorted(sure) and sure[-1] > sure[0] + 0.1
    assert spread == sorted(spread, reverse=True)


def test_labels_of_no_class_are_refused():
    """Labels outside the classifier's classes, and of another number than the latents, are named."""
    plain = optimal_eps_model(MIXTURE, SCHEDULE)
    for y, message in (([0, 2], r"labels are 0..1, .* got 0 to 2"), ([0], "1 labels for 2 latents")):
        with pytest.raises(ValueError, match=message):
            classifier_guided(plain, exact_classifier, torch.tensor(y), SCHEDULE, 1.0)(noise(2), torch.tensor([5, 5]))


FIRST = torch.tensor([[1.0, 0.0]], dtype=torch.float64)  # T of a guider: the first of two numbers


def towards(y, scale, law=LEFT, **options):
    guider = gaussian_guider(identity, y, lambda z: z @ FIRST.T, chunk=1000)
    return image_guided(optimal_eps_model(law, SCHEDULE), guider, SCHEDULE, scale, **options)


@pytest.mark.parametrize("t", [torch.tensor([2, 300]), torch.tensor([17.3, 640.5])])
def test_image_guidance_is_the_gradient_of_the_distance(t):
    """What guidance adds is s sqrt(1 - alpha_bar_t) times the finite difference of d(z0_hat(z_t)) by z_t."""
    plain, y, h, scale = optimal_eps_model(MIXTURE, SCHEDULE), torch.tensor([[2.0]]), 1e-5, 1.5
    z_t, ab = noise(2), SCHEDULE.alpha_bar_at(t)[:, None]

    def distance(z):
        z0_hat = (z - (1 - ab).sqrt() * plain(z, t)) / ab.sqrt()
        return 0.5 * (y - z0_hat[:, :1]).square().sum(1)

    steps = h * torch.eye(2, dtype=torch.float64)
    gradient = torch.stack([(distance(z_t + step) - distance(z_t - step)) / (2 * h) for step in steps], 1)
    guided = towards(y, scale, MIXTURE)(z_t, t)
    torch.testing.assert_close(guided - plain(z_t, t), scale * (1 - ab).sqrt() * gradient, rtol=1e-6, atol=1e-8)


def test_the_short_cut_is_exact_for_white_latents():
    """Without the backward pass through the denoiser: equal where the data are N(0, I), and not where they are not."""
    t, z_t, y = torch.tensor([2, 300, 999]), noise(3), torch.tensor([[0.5]])
    white = Gaussian.from_covariance(torch.zeros(2), torch.eye(2))
    exact, short = (towards(y, 2.0, white, through_denoiser=through)(z_t, t) for through in (True, False))
    torch.testing.assert_close(short, exact)
    exact, short = (towards(y, 2.0, LEFT, through_denoiser=through)(z_t, t) for through in (True, False))
    assert ((short - exact).abs() > 1e-3).any()


@pytest.mark.parametrize("through_denoiser", [True, False])
def test_image_guidance_pulls_towards_the_target(through_denoiser):
    """T(z_0) moves towards y with every larger scale; what T does not see follows by its correlation with what it does.

    Past scale 3 the mean overshoots y, as documented, so only up to 1 is nearer also better.
    """
    y, scales = torch.tensor([[0.5]]), (0.0, 0.3, 1.0, 3.0)
    samples = [ddim(towards(y, scale, through_denoiser=through_denoiser), noise(200), SCHEDULE, 40) for scale in scales]
    seen, unseen = zip(*[z.mean(0).tolist() for z in samples], strict=True)
    assert list(seen) == sorted(seen) and list(unseen) == sorted(unseen)
    misses = [(z[:, 0] - y[0]).abs().mean().item() for z in samples[:3]]
    assert misses == sorted(misses, reverse=True) and misses[-1] < 0.6 * misses[0]


def test_no_guidance_is_the_plain_model_called_once_a_step():
    """At scale 0 neither classifier nor guider is asked, and the samples are those of the model alone."""
    plain, calls = optimal_eps_model(MIXTURE, SCHEDULE), []

    def counted(z_t, t):
        calls.append(t)
        return plain(z_t, t)

    def never(*_):
        raise AssertionError("asked without guidance")

    y, alone = torch.zeros(4, dtype=torch.long), ddim(plain, noise(4), SCHEDULE, 10)
    for eps_model in (classifier_guided(counted, never, y, SCHEDULE, 0), image_guided(counted, never, SCHEDULE, 0)):
        calls.clear()
        assert torch.equal(ddim(eps_model, noise(4), SCHEDULE, 10), alone) and len(calls) == 10


def test_guidance_calls_the_model_once_a_step():
    """Guided as well: the gradient uses the answer that is already there."""
    calls = []

    def counted(z_t, t):
        calls.append(t)
        return optimal_eps_model(LEFT, SCHEDULE)(z_t, t)

    guider = gaussian_guider(identity, torch.zeros(1, 2))
    ddim(image_guided(counted, guider, SCHEDULE, 1.0), noise(4), SCHEDULE, 10)
    ddim(classifier_guided(counted, exact_classifier, torch.zeros(4).long(), SCHEDULE, 1.0), noise(4), SCHEDULE, 10)
    assert len(calls) == 20


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_work_where_the_caller_has_switched_them_off(mode):
    """Made and used within no_grad or inference_mode, float32 and all, guidance gives what it gives outside."""
    t, z_t = torch.tensor([5, 700]), noise(2).float()
    layers = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.SiLU(), torch.nn.Linear(8, 2))

    def both():
        y, target = torch.tensor([0, 1]), torch.ones(2, 2)
        by_class = classifier_guided(lambda z, t: layers(z), lambda z, t: layers(z), y, SCHEDULE, 2.0)
        by_image = image_guided(lambda z, t: layers(z), gaussian_guider(layers, target), SCHEDULE, 2.0)
        # Copies made here are inference tensors, as those in a sampler are.
        return torch.stack([eps_model(z_t.clone(), t.clone()) for eps_model in (by_class, by_image)]).detach()

    expected = both()
    assert expected.dtype == torch.float32
    with mode():
        inside = both()
    torch.testing.assert_close(inside, expected, rtol=0, atol=0)


def test_a_guider_that_is_no_distance_is_refused():
    """One number for the whole batch would mix the items' gradients."""
    eps_model = image_guided(optimal_eps_model(LEFT, SCHEDULE), lambda z: z.sum(), SCHEDULE, 1.0)
    with pytest.raises(ValueError, match=r"one distance an item, so shape \(2,\); got \(\)"):
        eps_model(noise(2), torch.tensor([5, 5]))
