"""The paper's equations and the functions that compute them: cited once each, and equal on random input."""

import inspect
import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ldmlab
from ldmlab.diffusion import schedules
from ldmlab.diffusion.conditioning.tokens import ClassEmbedder
from ldmlab.diffusion.unet.unet import DenoiserConfig, UNet
from ldmlab.first_stage.losses import FirstStageLoss, PatchDiscriminator
from ldmlab.paper.equations import EQUATIONS

PACKAGE = Path(ldmlab.__file__).parent
SCHEDULE = schedules.linear(12, 0.01, 0.3)
# App. B, t = 1..T there and 0..T-1 here; x_0 is noiseless.
ALPHA, SIGMA = SCHEDULE.alpha_bar.sqrt(), (1 - SCHEDULE.alpha_bar).sqrt()
SNR = ALPHA**2 / SIGMA**2
T_ALL = torch.arange(1, SCHEDULE.T)  # the steps t -> t - 1


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def column(table):
    return table.view(-1, 1)


def transition(t, s):
    """(alpha_{t|s}, sigma_{t|s}^2)."""
    alpha = ALPHA[t] / ALPHA[s]
    return alpha, SIGMA[t] ** 2 - alpha**2 * SIGMA[s] ** 2


def posterior(x_0, x_t, t, s):
    """Mean and variance of q(x_s | x_t, x_0), by Bayes' rule from q(x_t | x_s) and q(x_s | x_0)."""
    alpha, variance = transition(t, s)
    precision = column(alpha**2 / variance + 1 / SIGMA[s] ** 2)
    mean = (column(alpha / variance) * x_t + column(ALPHA[s] / SIGMA[s] ** 2) * x_0) / precision
    return mean, 1 / precision


def gaussian_kl(mean1, variance1, mean2, variance2):
    """KL(N(mean1, variance1) || N(mean2, variance2)), summed over the entries of each item."""
    ratio = variance1 / variance2
    return 0.5 * (ratio - 1 - ratio.log() + (mean1 - mean2) ** 2 / variance2).expand_as(mean1).flatten(1).sum(1)


def equation_1(denoising_error):
    eps, eps_hat = normal(5, 3, 4, seed=1), normal(5, 3, 4, seed=2)
    return denoising_error(eps_hat, eps).mean(), ((eps - eps_hat) ** 2).sum() / eps.numel()


def equation_2(diffusion_loss):
    z0, eps, t = normal(5, 4, seed=1), normal(5, 4, seed=2), torch.tensor([0, 3, 5, 7, 11])
    eps_theta = lambda z_t, t: z_t.sin() + column(t)  # noqa: E731
    z_t = column(ALPHA[t]) * z0 + column(SIGMA[t]) * eps
    return diffusion_loss(eps_theta, z0, t, eps, SCHEDULE), ((eps - z_t.sin() - column(t)) ** 2).mean()


def equation_3(eps_loss):
    from ldmlab.diffusion.training import DiffusionModule

    unet = UNet(DenoiserConfig(2, 2, (8,), num_res_blocks=1, attention_at=(1,), num_heads=2, context_dim=6,
                               norm_groups=4)).double()
    tau = ClassEmbedder(3, 6).double()
    nn.init.normal_(unet.head_conv.weight)
    z0, eps = normal(4, 2, 4, 4, seed=1), normal(4, 2, 4, 4, seed=2)
    t, y = torch.tensor([0, 3, 7, 11]), torch.tensor([0, 1, 2, 1])
    z_t = ALPHA[t].view(-1, 1, 1, 1) * z0 + SIGMA[t].view(-1, 1, 1, 1) * eps
    expected = ((eps - unet(z_t, t, tau.embedding.weight[y][:, None])) ** 2).mean()
    return eps_loss(DiffusionModule(unet, SCHEDULE, tau), z0, y, t, eps), expected


def equation_4(q_sample):
    x_0, eps, t = normal(12, 4, seed=1), normal(12, 4, seed=2), torch.arange(12)
    return q_sample(SCHEDULE, x_0, t, eps), column(ALPHA) * x_0 + column(SIGMA) * eps


def equation_6(from_beta):
    beta = torch.rand(9, dtype=torch.float64) * 0.5
    schedule = from_beta(beta)
    return schedule.alpha_bar[1:].sqrt() / schedule.alpha_bar[:-1].sqrt(), (1 - beta[1:]).sqrt()


def equation_7(ddim_sigma):
    t, s = torch.tensor([11, 6, 3]), torch.tensor([4, 5, 0])
    return (ddim_sigma(ALPHA[t] ** 2, ALPHA[s] ** 2, 1.0) ** 2 * SIGMA[t] ** 2 / SIGMA[s] ** 2, transition(t, s)[1])


def equation_9(variational_bound):
    """Each term as a KL of Gaussians, at the same noise; the last, -log p(x_0 | x_1), with the variance beta_1."""
    x_0 = normal(3, 4, seed=1)
    eps_theta = lambda x, t: x.tanh() + column(t) / 20  # noqa: E731
    bound = variational_bound(eps_theta, x_0, SCHEDULE, generator=torch.Generator().manual_seed(7))
    generator, expected = torch.Generator().manual_seed(7), gaussian_kl(
        ALPHA[-1] * x_0, SIGMA[-1] ** 2, torch.zeros_like(x_0), torch.ones(()))
    for t in range(SCHEDULE.T):
        at = torch.full((3,), t)
        x_t = ALPHA[t] * x_0 + SIGMA[t] * torch.randn(x_0.shape, generator=generator).double()
        x_theta = (x_t - SIGMA[t] * eps_theta(x_t, at)) / ALPHA[t]
        if t == 0:
            expected = expected - torch.distributions.Normal(x_theta, SCHEDULE.beta[0].sqrt()).log_prob(x_0).sum(1)
        else:
            expected = expected + gaussian_kl(*posterior(x_0, x_t, at, at - 1), *posterior(x_theta, x_t, at, at - 1))
    return bound.nats, expected


def equation_10(ddpm):
    x, eps_theta = normal(2, 5, seed=1), lambda x, t: (x + column(t) / 20).sin()
    noise = normal(SCHEDULE.T, 2, 5, seed=2)
    draws = iter(noise)
    ours = ddpm(eps_theta, x, SCHEDULE, generator=lambda like: next(draws))
    for i, t in enumerate(reversed(range(SCHEDULE.T))):
        at = torch.full((2,), t)
        x_theta = (x - SIGMA[t] * eps_theta(x, at)) / ALPHA[t]
        mean, variance = posterior(x_theta, x, at, at - 1) if t > 0 else (x_theta, 0)
        x = mean + variance**0.5 * noise[i]
    return ours, x


def equation_11(posterior_variance):
    variance = transition(T_ALL, T_ALL - 1)[1] * SIGMA[:-1] ** 2 / SIGMA[1:] ** 2
    return posterior_variance.fget(SCHEDULE)[1:], variance


def equation_12(posterior_mean):
    x_theta, x_t = normal(11, 4, seed=1), normal(11, 4, seed=2)
    alpha, variance = transition(T_ALL, T_ALL - 1)
    expected = (column(alpha * SIGMA[:-1] ** 2 / SIGMA[1:] ** 2) * x_t
                + column(ALPHA[:-1] * variance / SIGMA[1:] ** 2) * x_theta)
    return posterior_mean(SCHEDULE, x_theta, x_t, T_ALL), expected


def equation_13(step_kl):
    """Both sides of the equation, the left one as a KL of Gaussians."""
    x_0, eps, eps_theta = normal(12, 4, seed=1), normal(12, 4, seed=2), normal(12, 4, seed=3)
    x_t = column(ALPHA) * x_0 + column(SIGMA) * eps
    x_theta = (x_t - column(SIGMA) * eps_theta) / column(ALPHA)
    ours = step_kl(list(range(12)), list(((eps - eps_theta) ** 2).sum(1)[:, None]), SCHEDULE)[0, 1:]
    right = 0.5 * (SNR[:-1] - SNR[1:]) * ((x_0 - x_theta) ** 2).sum(1)[1:]
    q, p = (posterior(guess[1:], x_t[1:], T_ALL, T_ALL - 1) for guess in (x_0, x_theta))
    left = gaussian_kl(*q, *p)
    torch.testing.assert_close(left, right)
    return ours, right


def equation_14(eps_from_z0):
    x_t, x_theta = normal(12, 4, seed=1), normal(12, 4, seed=2)
    return eps_from_z0(x_t, x_theta, ALPHA**2), (x_t - column(ALPHA) * x_theta) / column(SIGMA)


def equation_15(vlb_weights):
    """The weight of || eps - eps_theta ||^2 times it, and that of || x_0 - x_theta ||^2 times it."""
    x_0, eps, eps_theta = normal(12, 4, seed=1), normal(12, 4, seed=2), normal(12, 4, seed=3)
    x_theta = (column(ALPHA) * x_0 + column(SIGMA) * (eps - eps_theta)) / column(ALPHA)
    ours = vlb_weights.fget(SCHEDULE) * ((eps - eps_theta) ** 2).sum(1)
    return ours[1:], (0.5 * (SNR[:-1] - SNR[1:])) * ((x_0 - x_theta) ** 2).sum(1)[1:]


def equation_16(classifier_guided):
    z_t, t, y = normal(3, 4, seed=1), torch.tensor([0, 5, 11]), torch.tensor([0, 1, 1])
    weights, s = normal(4, 2, seed=2), 2.5
    guided = classifier_guided(lambda z, t: z.tanh(), lambda z, t: z @ weights, y, SCHEDULE, s)
    gradient = (F.one_hot(y, 2) - (z_t @ weights).softmax(1)) @ weights.T  # of log softmax(z W)_y
    return guided(z_t, t), z_t.tanh() - s * column((1 - ALPHA[t] ** 2).sqrt()) * gradient


def equation_17(gaussian_guider):
    z0_hat, y, T, D = normal(3, 2, 4, seed=1), normal(3, 2, 2, seed=2), lambda x: x[..., ::2], lambda z: z**3
    return gaussian_guider(D, y, T)(z0_hat), -(-0.5 * torch.linalg.vector_norm(y - T(D(z0_hat)), dim=(1, 2)) ** 2)


def layer_norm(module, x):
    x = x - x.mean(2, keepdim=True)
    return x / (x.square().mean(2, keepdim=True) + module.eps).sqrt() * module.weight + module.bias


def attention(module, x):
    """Multi-head self-attention, a head at a time."""
    q, k, v = x @ module.to_q.weight.T, x @ module.to_k.weight.T, x @ module.to_v.weight.T
    heads = [(q_h @ k_h.mT / math.sqrt(q_h.shape[2])).softmax(2) @ v_h
             for q_h, k_h, v_h in zip(*(a.chunk(module.num_heads, 2) for a in (q, k, v)), strict=True)]
    return torch.cat(heads, 2) @ module.out.weight.T + module.out.bias


def equations_18_to_23(transformer):
    """The outputs of all lines, as the module computes them and as the paper writes them."""
    tau = transformer(vocab_size=10, max_length=8, dim=6, num_layers=2, num_heads=2, head_dim=4).double()
    for parameter in tau.parameters():
        nn.init.normal_(parameter)
    y, ours, lines = torch.tensor([[1, 4, 2, 4], [9, 0, 0, 3]]), [], []
    keep = lambda module, inputs, output: ours.append(output)  # noqa: E731
    tau.layers.register_forward_pre_hook(lambda module, inputs: ours.append(inputs[0]))
    for layer in tau.layers:
        layer.norm.register_forward_hook(keep)
        layer.register_forward_hook(keep)
    ours_last = tau(y)

    zeta = tau.token_embedding.weight[y] + tau.position_embedding.weight[:4]
    lines.append(zeta)  # 18
    for attend, mlp in zip(tau.layers[::2], tau.layers[1::2], strict=True):
        zeta_1 = layer_norm(attend.norm, zeta)  # 19
        zeta_2 = attention(attend.inner, zeta_1) + zeta  # 20
        zeta_3 = layer_norm(mlp.norm, zeta_2)  # 21
        zeta = mlp.inner(zeta_3) + zeta_2  # 22
        lines += [zeta_1, zeta_2, zeta_3, zeta]
    return [*ours, ours_last], [*lines, layer_norm(tau.norm, zeta)]  # 23


def transformer_line(number):
    def check(transformer):
        ours, lines = equations_18_to_23(transformer)
        which = {18: [0], 19: [1, 5], 20: [2, 6], 21: [3, 7], 22: [4, 8], 23: [9]}[number]
        return torch.stack([ours[i] for i in which]), torch.stack([lines[i] for i in which])

    return check


def equation_25(generator_terms):
    """Its three terms for the autoencoder, lambda included, and their gradient; the losses compute in float32."""
    decoder, discriminator = nn.Conv2d(3, 3, 3, padding=1), PatchDiscriminator(1, 4)
    distance = lambda x, y: (x - y).square().mean((1, 2, 3))  # noqa: E731
    loss = FirstStageLoss(distance, discriminator, disc_start=0, reduction="mean", reg_weight=0.3, disc_weight=0.7)
    x, z = normal(2, 3, 8, 8, seed=1).float(), normal(2, 3, 8, 8, seed=2).float()

    x_rec = decoder(z)
    l_reg = decoder.bias.square().sum()
    l_rec = ((x - x_rec).abs() + distance(x, x_rec).view(-1, 1, 1, 1)).mean()
    l_adv = discriminator(x_rec).mean()
    norms = [torch.autograd.grad(term, decoder.weight, retain_graph=True)[0].norm() for term in (l_rec, l_adv)]
    whole = l_rec - 0.7 * norms[0] / (norms[1] + 1e-4) * l_adv + 0.3 * l_reg
    expected = torch.autograd.grad(whole, decoder.weight)[0]

    ours = generator_terms(loss, x, decoder(z), decoder.bias.square().sum(), decoder.weight, 0).loss
    gradient = torch.autograd.grad(ours, decoder.weight)[0]
    return torch.cat([ours[None], gradient.flatten()]), torch.cat([whole[None], expected.flatten()])


CHECKS = {number: globals().get(f"equation_{number}") for number in EQUATIONS}
CHECKS |= {number: transformer_line(number) for number in range(18, 24)}
WITH_CODE = [number for number, equation in EQUATIONS.items() if equation.function]


def test_every_numbered_equation_has_a_function_or_a_reason():
    """1 to 25, each once; the one or the other."""
    assert list(EQUATIONS) == list(range(1, 26))
    for equation in EQUATIONS.values():
        assert bool(equation.function) != bool(equation.reason), equation
    with pytest.raises(ValueError, match="Eq. 24 has no code"):
        EQUATIONS[24].load()


@pytest.mark.parametrize("number", WITH_CODE)
def test_the_function_is_the_equation(number):
    """The function gives what the equation, written out here independently, gives on random float64 input."""
    ours, expected = CHECKS[number](EQUATIONS[number].load())
    rtol, atol = (1e-6, 1e-9) if ours.dtype == torch.float64 else (1e-4, 1e-5)
    torch.testing.assert_close(ours.detach(), expected.detach(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("number", WITH_CODE)
def test_a_search_for_the_number_finds_the_function(number):
    """Its source cites the equation by itself, and a search of the package has at most five hits."""
    cited = re.compile(rf"LDM v2,[^\];]*Eq\. {number}\b")
    code = EQUATIONS[number].load()
    code = code.fget if isinstance(code, property) else code
    assert re.search(rf"\[LDM v2, Eq\. {number}\]", inspect.getsource(code)), f"{code} does not cite Eq. {number}"
    hits = [path for path in PACKAGE.rglob("*.py") for line in path.read_text().splitlines() if cited.search(line)]
    assert len(hits) <= 5, hits


def test_equations_are_cited_one_by_one():
    """Never "Eq. 2, 3" or "Eq. 2/3", which no search for the second number finds."""
    several = re.compile(r"LDM v2,[^\];]*Eqs?\. \d+ ?(,|/|-|and|to) ?(Eq\. )?\d")
    hits = [f"{path.name}: {line.strip()}" for path in PACKAGE.rglob("*.py") for line in path.read_text().splitlines()
            if several.search(line)]
    assert not hits
