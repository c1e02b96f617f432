"""Sample i depends on (seed, i) alone: noise to the bit, pictures but for the rounding of other batch sizes."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ldmlab.diffusion.conditioning.tokens import ClassEmbedder
from ldmlab.diffusion.model import LatentDiffusion
from ldmlab.diffusion.samplers import SAMPLERS, SampleNoise, ddim, ddpm, noise_like
from ldmlab.diffusion.schedules import scaled_linear
from ldmlab.diffusion.trajectory import denoising_path
from ldmlab.diffusion.unet.config import DenoiserConfig
from ldmlab.diffusion.unet.unet import UNet
from ldmlab.first_stage.autoencoder import AutoencoderConfig, build_autoencoder
from ldmlab.first_stage.latents import LatentStats

WAYS = [(name, 0.0) for name in SAMPLERS] + [("ddim", 0.3), ("ddim", 1.0)]
LABELS = torch.arange(6) % 3
KNOWN = [[0.059911035001277924, 0.015559634193778038], [-0.2006753534078598, -1.124338984489441]]


class Exact(nn.Module):
    """A denoiser of products and sums by entry, which rounds alike in any batch."""

    config = DenoiserConfig(3, 3, widths=(32,), num_res_blocks=1, num_heads=1, context_dim=1)

    def forward(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return z * (0.5 + t[:, None, None, None] / 2000) + 0.1 * context[..., None]


def model_of(denoiser: nn.Module) -> LatentDiffusion:
    """A class-conditional model of 8 px."""
    first_stage = build_autoencoder(AutoencoderConfig(f=1, z_channels=3, reg="none", resolution=8)).eval()
    tau = ClassEmbedder(3, 1, p_drop=0.1).eval().requires_grad_(False)
    tau.embedding.weight[:] = torch.tensor([[-1.0], [0.0], [1.0], [0.5]])
    stats = LatentStats("none", mean=(0.0,), std=(1.0,), std_error=(0.0,), num_images=0)
    return LatentDiffusion(first_stage, stats, denoiser, scaled_linear(), tau, 8, torch.device("cpu"))


MODEL = model_of(Exact())


def test_noise_of_a_sample_is_the_same_in_any_batch():
    """Equal to the bit, step after step, of any dtype; other seeds and other samples have other noise."""
    z = torch.empty(4, 3, 8, 8)
    together, alone = SampleNoise(7, range(4)), SampleNoise(7, [3])
    for _ in range(3):
        assert torch.equal(together(z)[3:], alone(z[3:]))
    first = SampleNoise(7, range(4))(z)
    assert torch.equal(SampleNoise(7, range(4))(z.double()), first.double())
    others = [SampleNoise(8, range(4))(z), SampleNoise(7, range(1, 5))(z), together(z)]
    for other in others:
        assert not torch.isclose(first, other).flatten(1).all(1).any()
    assert torch.equal(others[1][:3], first[1:]), "seeds and numbers are not added up"


def test_noise_is_standard_normal_and_stays():
    """Independent, of mean 0 and variance 1; and the same numbers with every version of numpy."""
    rows = SampleNoise(0, range(500)).draw((200,)).double()
    assert abs(rows.mean()) < 4 / 1e5**0.5 and abs(rows.var() - 1) < 4 * (2 / 1e5) ** 0.5
    correlation = torch.corrcoef(rows[:40]) - torch.eye(40)
    assert correlation.abs().max() < 5 / 200**0.5
    assert SampleNoise(0, [0, 3]).draw((2,)).tolist() == KNOWN
    SampleNoise(-1, [2**63 + 1])  # any whole numbers are keys


def test_a_batch_of_another_size_is_refused():
    """Noise for two samples is not stretched over three."""
    with pytest.raises(ValueError, match="2 samples, one per index; got 3"):
        SampleNoise(0, range(2))(torch.empty(3, 4))
    with pytest.raises(ValueError, match="generator=None"):
        noise_like(torch.empty(3, 4), None)


@pytest.mark.parametrize(("sampler", "eta"), WAYS)
def test_a_picture_is_the_same_in_any_batch(sampler, eta):
    """Number 3 alone is number 3 of six, in batches of 2 and 4, guided by its class."""
    options = {"num_steps": 4, "sampler": sampler, "eta": eta, "seed": 5, "guidance_scale": 1.5}
    alone = MODEL.sample(LABELS[3:4], indices=[3], **options)
    for batch_size in (2, 4, 6):
        assert torch.equal(MODEL.sample(LABELS, batch_size=batch_size, **options)[3:4], alone)
    for other in (MODEL.sample(LABELS[3:4], indices=[4], **options),
                  MODEL.sample(LABELS[3:4], indices=[3], **{**options, "seed": 6})):
        assert (other - alone).abs().max() > 0.01


def test_a_unet_rounds_otherwise_in_other_batches_and_no_more():
    """Pictures of a network with convolutions and attention."""
    torch.manual_seed(0)
    denoiser = UNet(Exact.config).eval().requires_grad_(False)
    for parameter in denoiser.parameters():  # the last layer starts at zero
        parameter.add_(0.02 * torch.randn_like(parameter))
    model, options = model_of(denoiser), {"num_steps": 2, "eta": 1.0}
    alone = model.sample(LABELS[3:4], indices=[3], **options)
    torch.testing.assert_close(model.sample(LABELS[:4], batch_size=2, **options)[3:4], alone, atol=1e-5, rtol=0)


def test_number_of_samples_and_guides_change_nothing():
    """Among more samples, of a larger size, and guided further, a picture stays the same."""
    options = {"num_steps": 3, "eta": 1.0, "seed": 5}
    for larger in (MODEL, replace(MODEL, size=16)):
        few, many = (larger.sample(LABELS[:n], batch_size=4, **options) for n in (4, 6))
        assert torch.equal(many[:4], few)
    shift = torch.linspace(-0.2, 0.2, 6)[:, None, None, None]
    guided = lambda eps_model, rows: lambda z, t: eps_model(z, t) + shift[rows]  # noqa: E731
    by_two, by_six = (MODEL.sample(LABELS, batch_size=n, guided=guided, **options) for n in (2, 6))
    assert torch.equal(by_two, by_six)
    with pytest.raises(ValueError, match="got 2 indices, 6 conditions"):
        MODEL.sample(LABELS, indices=[0, 1], **options)


def test_samplers_draw_by_sample():
    """DDPM, and DDIM that repaints known pixels: to the bit, with a model that has no rounding of its own."""
    schedule, z = scaled_linear(20), torch.zeros(4, 1, 4, 4, dtype=torch.float64)
    known, mask = torch.ones_like(z), (torch.arange(4) < 2).double()

    def halved(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return z / 2

    def samples(rows: slice) -> list[torch.Tensor]:
        noise = SampleNoise(0, range(4)[rows])
        return [ddpm(halved, noise(z[rows]), schedule, generator=noise),
                ddim(halved, noise(z[rows]), schedule, 5, eta=0.3, generator=noise, known=known[rows], mask=mask)]

    for together, alone in zip(samples(slice(4)), samples(slice(3, 4)), strict=True):
        assert torch.equal(together[3:], alone)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_path_ends_at_the_sample(eta):
    """Of the same seed; with another `step_seed` it starts at the same noise and ends elsewhere if eta > 0."""
    ends = [denoising_path(MODEL, LABELS, num_steps=3, eta=eta, seed=2, step_seed=step_seed).pictures(-1)[0]
            for step_seed in (None, 2, 9)]
    assert torch.equal(ends[0], MODEL.sample(LABELS, num_steps=3, eta=eta, seed=2))
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2]) == (eta == 0)
