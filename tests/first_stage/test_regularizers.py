"""The KL posterior against torch's own distributions; the quantizer's search, gradients and codebook care."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ldmlab.first_stage import regularizers
from ldmlab.first_stage.regularizers import DiagonalGaussian, VectorQuantizer, codebook_usage


def latents(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_gaussian_agrees_with_torch():
    """KL to the standard normal and to another Gaussian, and the likelihood, summed over each picture."""
    p, q = DiagonalGaussian(latents(2, 6, 4, 5)), DiagonalGaussian(latents(2, 6, 4, 5, seed=1))
    normal_p, normal_q = (Normal(d.mean, d.std) for d in (p, q))
    z = latents(2, 3, 4, 5, seed=2)
    torch.testing.assert_close(p.kl(), kl_divergence(normal_p, Normal(0.0, 1.0)).sum((1, 2, 3)))
    torch.testing.assert_close(p.kl(q), kl_divergence(normal_p, normal_q).sum((1, 2, 3)))
    torch.testing.assert_close(p.nll(z), -normal_p.log_prob(z).sum((1, 2, 3)))


def test_gaussian_samples_have_its_moments():
    """z is mean + std * eps, with unit-variance eps of the generator's."""
    moments = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, 200, 200)
    z = DiagonalGaussian(moments).sample(torch.Generator().manual_seed(0))
    assert abs(z.mean() - 2.0) < 0.01 and abs(z.std() - torch.tensor(-0.5).exp()) < 0.01


def test_gaussian_is_bounded_and_cacheable():
    """An encoder run wild gives finite numbers, and cached moments give the same posterior again."""
    posterior = DiagonalGaussian(torch.tensor([1.0, 1e4, 0.0, -1e4]).view(2, 2, 1, 1))
    assert posterior.kl().isfinite().all() and posterior.logvar.flatten().tolist() == [20.0, -30.0]
    assert torch.equal(DiagonalGaussian(posterior.moments).std, posterior.std)
    with pytest.raises(ValueError, match="even number"):
        DiagonalGaussian(torch.zeros(1, 3, 2, 2))


@pytest.mark.parametrize("limit", [2**24, 50])
def test_nearest_is_the_nearest(monkeypatch, limit):
    """The search in slices finds what comparing all pairs finds, whatever the slice."""
    monkeypatch.setattr(regularizers, "_MAX_DISTANCES", limit)
    torch.manual_seed(0)
    quantizer, z = VectorQuantizer(20, 3), latents(2, 3, 5, 7)
    torch.nn.init.normal_(quantizer.codebook)
    flat = z.movedim(1, -1).reshape(-1, 3)
    assert torch.equal(quantizer.nearest(z).flatten(), torch.cdist(flat, quantizer.codebook).argmin(1))


def test_gradients_go_where_vq_vae_sends_them():
    """The decoder's gradient passes straight to z; the loss pulls z to its code by beta, the code to z by one."""
    torch.manual_seed(0)
    quantizer, z = VectorQuantizer(8, 3, commitment=0.25), latents(2, 3, 4, 4).requires_grad_()
    out, upstream = quantizer(z), latents(2, 3, 4, 4, seed=1)
    straight, none = torch.autograd.grad(
        out.z_q, [z, quantizer.codebook], upstream, allow_unused=True, retain_graph=True
    )
    assert torch.equal(straight, upstream) and none is None

    dz, dcodes = torch.autograd.grad(out.loss, [z, quantizer.codebook])
    gap = (z - quantizer.embed(out.indices)).detach()
    torch.testing.assert_close(dz, 0.25 * 2 * gap / gap.numel())
    pull = torch.zeros_like(dcodes).index_add_(0, out.indices.flatten(), -2 * gap.movedim(1, -1).reshape(-1, 3))
    torch.testing.assert_close(dcodes, pull / gap.numel())


def test_legacy_moves_beta_to_the_codebook():
    """The released placement has the same value, beta times the codebook's gradient and 1/beta times the encoder's."""
    torch.manual_seed(0)
    z = latents(2, 3, 4, 4).requires_grad_()
    ours = VectorQuantizer(8, 3, commitment=0.25)
    released = VectorQuantizer(8, 3, commitment=0.25, legacy=True)
    released.load_state_dict(ours.state_dict())
    losses = [quantizer(z).loss for quantizer in (ours, released)]
    (dz, de), (dz_legacy, de_legacy) = (
        torch.autograd.grad(loss, [z, quantizer.codebook])
        for loss, quantizer in zip(losses, (ours, released), strict=True)
    )
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(dz_legacy, 4 * dz)
    torch.testing.assert_close(de_legacy, de / 4)


def test_usage_counts_training_only():
    """Perplexity is 1 when one code serves all and n when n codes share evenly; evaluation leaves the counts alone."""
    assert codebook_usage(torch.tensor([8, 0, 0])).perplexity == pytest.approx(1.0)
    assert codebook_usage(torch.tensor([5, 5, 5, 0])).perplexity == pytest.approx(3.0)
    quantizer, z = VectorQuantizer(8, 3), latents(2, 3, 4, 4)
    quantizer.eval()(z)
    assert quantizer.counts.sum() == 0
    out = quantizer.train()(z)
    assert quantizer.counts.sum() == out.counts.sum() == 2 * 4 * 4
    assert quantizer.usage().num_used == len(out.indices.unique())
    quantizer.reset_usage()
    assert quantizer.counts.sum() == 0


def test_initialize_spreads_codes_over_the_latents():
    """Every code becomes a latent vector, no vector twice; the generator decides which, so runs repeat."""
    quantizer, z = VectorQuantizer(10, 3), 5.0 + latents(2, 3, 4, 4)
    quantizer.initialize(z, torch.Generator().manual_seed(3))
    first = quantizer.codebook.detach().clone()
    vectors = z.movedim(1, -1).reshape(-1, 3)
    assert all((vectors == code).all(1).any() for code in first) and len(first.unique(dim=0)) == 10
    quantizer.initialize(z, torch.Generator().manual_seed(3))
    assert torch.equal(first, quantizer.codebook)
    with pytest.raises(ValueError, match="channels"):
        quantizer.initialize(latents(1, 4, 2, 2))


def test_only_dead_codes_are_revived():
    """Codes in use stay where they are; unused ones move onto latents and are used afterwards."""
    quantizer, z = VectorQuantizer(6, 2), latents(4, 2, 8, 8)
    with torch.no_grad():
        quantizer.codebook.copy_(torch.tensor([[0.0, 0.0]] + [[100.0, 100.0]] * 5))
    assert quantizer.revive_dead_codes(z) == 0  # nothing counted yet
    quantizer(z)
    assert quantizer.revive_dead_codes(z, torch.Generator().manual_seed(0)) == 5
    assert torch.equal(quantizer.codebook[0], torch.zeros(2)) and quantizer.codebook.abs().max() < 10
    quantizer.reset_usage()
    quantizer(z)
    assert quantizer.usage().num_used == 6


def test_weights_without_counts_load():
    """Released weights know no usage counts; loading them strictly starts the count at zero."""
    quantizer = VectorQuantizer(4, 2)
    quantizer(latents(1, 2, 2, 2))
    quantizer.load_state_dict({"codebook": torch.ones(4, 2)}, strict=True)
    assert quantizer.counts.sum() == 0 and (quantizer.codebook == 1).all()
