"""Guiders: distances of decoded pictures from a target, their gradients through any decoder, and what they hold."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from ldmlab.diffusion import schedules
from ldmlab.diffusion.guidance import image_guided
from ldmlab.diffusion.guiders import downsample, gaussian_guider, guiding_decoder, perceptual_guider
from ldmlab.diffusion.samplers import ddim
from ldmlab.first_stage.autoencoder import build_autoencoder
from ldmlab.first_stage.latents import LatentStats
from ldmlab.first_stage.networks import AutoencoderConfig
from ldmlab.perception.files import freeze
from ldmlab.perception.losses import perceptual_loss

STATS = LatentStats("first_batch", (0.0,), (2.0,), (0.1,), 8)  # z = 2 z_0
Z0 = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def first_stage(reg, **more):
    torch.manual_seed(0)
    sizes = {"ch": 8, "ch_mult": (1, 1), "num_res_blocks": 1, "norm_groups": 4, "resolution": 16, "num_codes": 16}
    model = freeze(build_autoencoder(AutoencoderConfig(**{"f": 2, "z_channels": 3, "reg": reg} | sizes | more)))
    if reg == "vq":
        torch.nn.init.normal_(model.quantizer.codebook)
    return model


def gradient(guider, z0):
    z0 = z0.clone().requires_grad_()
    return torch.autograd.grad(guider(z0).sum(), z0)[0]


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_chunks_change_neither_distance_nor_gradient(chunk):
    """Half the squared error of each item and its gradient, as if all were decoded at once; never more than `chunk`."""
    D, T, seen = guiding_decoder(first_stage("kl"), STATS), downsample(4), []
    y = torch.randn(6, 3, 4, 4)

    def decode(z0):
        seen.append(len(z0))
        return D(z0)

    guider = gaussian_guider(decode, y, T, chunk=chunk)
    z0 = Z0.clone().requires_grad_()
    expected = 0.5 * (y - T(D(z0))).square().sum((1, 2, 3))
    torch.testing.assert_close(guider(Z0), expected.detach())
    torch.testing.assert_close(gradient(guider, Z0), torch.autograd.grad(expected.sum(), z0)[0])
    assert max(seen) == min(chunk, 6) and sum(seen) == 12


def peak_of_activations(guider, z0):
    """Entries that autograd keeps for the backward pass: the most at any time, and after the forward pass."""
    alive, peak = 0, 0

    class Kept:
        def __init__(self, tensor):
            nonlocal alive, peak
            self.tensor = tensor
            alive += tensor.numel()
            peak = max(peak, alive)

        def __del__(self):
            nonlocal alive
            alive -= self.tensor.numel()

    z0 = z0.clone().requires_grad_()
    with saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        distance = guider(z0).sum()
        left = alive
        torch.autograd.grad(distance, z0)
    return peak, left


def test_memory_is_that_of_one_chunk():
    """Six items in chunks of two hold the activations of two items; what waits for the backward pass is z_0's size."""
    decode, y = guiding_decoder(first_stage("kl"), STATS), torch.zeros(1, 3, 16, 16)
    of_one = peak_of_activations(gaussian_guider(decode, y, chunk=2), Z0[:2])[0]
    peak, left = peak_of_activations(gaussian_guider(decode, y, chunk=2), Z0)
    whole = peak_of_activations(gaussian_guider(decode, y, chunk=6), Z0)[0]
    assert left == Z0.numel()
    assert peak <= 1.1 * of_one < 0.5 * whole


def test_items_weighted_apart_keep_their_gradients():
    """The gradient of a weighted sum of distances is the weighted gradient, item by item."""
    guider = gaussian_guider(guiding_decoder(first_stage("kl"), STATS), torch.zeros(1, 3, 16, 16), chunk=4)
    weights, z0 = torch.arange(6.0), Z0.clone().requires_grad_()
    weighted = torch.autograd.grad((weights * guider(z0)).sum(), z0)[0]
    torch.testing.assert_close(weighted, weights[:, None, None, None] * gradient(guider, Z0))


def test_gradient_goes_straight_through_the_quantizer():
    """A VQ decoder shows the nearest codes, and z_0 gets the gradient of the codes, in units of z_0."""
    model, y = first_stage("vq"), torch.zeros(1, 3, 16, 16)
    decode = guiding_decoder(model, STATS)
    torch.testing.assert_close(decode(Z0), model.decode(2 * Z0))
    codes = model.quantizer.embed(model.quantizer.nearest(2 * Z0)).requires_grad_()
    at_codes = 0.5 * model.decode(codes, quantize=False).square().sum()
    expected = 2 * torch.autograd.grad(at_codes, codes)[0]
    got = gradient(gaussian_guider(decode, y), Z0)
    assert got.any()
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reg", ["kl", "vq"])
def test_guided_sampling_through_a_first_stage(reg):
    """In a sampler and in inference mode, guidance brings the small picture nearer to its target than none does."""
    schedule, decode, T = schedules.scaled_linear(), guiding_decoder(first_stage(reg), STATS), downsample(2)

    def of_white_latents(z_t, t):
        return (1 - schedule.alpha_bar_at(t)).sqrt().float()[:, None, None, None] * z_t

    with torch.inference_mode():
        guider = gaussian_guider(decode, T(decode(0.5 * Z0[:1])), T)
        guided = [image_guided(of_white_latents, guider, schedule, scale) for scale in (0.0, 1.0)]
        plain, nearer = (guider(ddim(eps_model, Z0[1:3], schedule, 20)).mean().item() for eps_model in guided)
    assert nearer < 0.8 * plain


def test_perceptual_guider_is_the_loss_and_leads_to_the_target():
    """The distance is net(y, D(z_0)), zero at the target; steps against its gradient come nearer."""
    net, model = perceptual_loss("student"), first_stage("none", f=1)
    y = torch.rand(1, 3, 16, 16) * 2 - 1
    guider = perceptual_guider(guiding_decoder(model, LatentStats("none", (0.0,), (1.0,), (0.1,), 8)), y, net)
    assert guider(y).abs().max() < 1e-6
    z0 = torch.rand(2, 3, 16, 16) - 0.5
    torch.testing.assert_close(guider(z0), net(y.expand(2, -1, -1, -1), z0))
    step = gradient(guider, z0)
    moved = z0 - 0.1 * step / step.abs().amax((1, 2, 3), keepdim=True)
    assert (guider(moved) < guider(z0)).all()


def test_downsampling_is_antialiased():
    """A flat picture stays as it is, also at its border; a checkerboard becomes its mean instead of stripes."""
    flat = torch.full((1, 3, 16, 16), 0.3)
    torch.testing.assert_close(downsample(4)(flat), flat[..., :4, :4])
    board = (-1.0) ** torch.arange(16)[:, None] * (-1.0) ** torch.arange(16)
    assert downsample(4)(board.expand(1, 3, 16, 16)).abs().max() < 0.05


def test_what_does_not_fit_is_refused():
    """Targets of another size or number, factors that do not divide, and no chunk at all: each says what was given."""
    decode = guiding_decoder(first_stage("kl"), STATS)
    with pytest.raises(ValueError, match=r"T\(D\(z0\)\) has shape \(3, 4, 4\) an item, the target \(3, 16, 16\)"):
        gaussian_guider(decode, torch.zeros(1, 3, 16, 16), downsample(4))(Z0)
    with pytest.raises(ValueError, match="got 2 targets for 6 latents"):
        gaussian_guider(decode, torch.zeros(2, 3, 16, 16))(Z0)
    with pytest.raises(ValueError, match="divisible by 3, got 16 x 16"):
        gaussian_guider(decode, torch.zeros(1, 3, 5, 5), downsample(3))(Z0)
    with pytest.raises(ValueError, match="at least 1; got 0"):
        gaussian_guider(decode, torch.zeros(1, 3, 16, 16), chunk=0)
    with pytest.raises(ValueError, match="positive whole number, got 0"):
        downsample(0)
