"""Which gradient reaches whom [LDM v2, Eq. 25], by behaviour: the parts that trainers elsewhere get wrong."""

import pytest
import torch

from ldmlab.first_stage.autoencoder import AutoencoderConfig, build_autoencoder
from ldmlab.first_stage.losses import ActNorm, FirstStageLoss, PatchDiscriminator, adaptive_weight, hinge_loss
from ldmlab.perception.lab_networks import feature_net
from ldmlab.perception.losses import PsimLoss


class Distance(torch.nn.Module):
    """A perceptual distance with weights of its own: mean squared difference of random features."""

    def __init__(self):
        super().__init__()
        self.features = torch.nn.Conv2d(3, 4, 3).requires_grad_(False)

    def forward(self, x, y):
        return (self.features(x) - self.features(y)).square().mean((1, 2, 3))


def stage(reg: str = "kl", **more):
    """A small first stage, its loss, and pictures."""
    torch.manual_seed(0)
    sizes = dict(ch=8, ch_mult=(1, 2), num_res_blocks=1, norm_groups=4, resolution=16, num_codes=16, patch=2)
    model = build_autoencoder(AutoencoderConfig(f=4, z_channels=3, reg=reg, **sizes))
    settings = dict(disc_start=0, reduction="sum" if reg == "kl" else "mean", reg_weight=1e-3, disc_weight=0.5)
    loss = FirstStageLoss(Distance(), PatchDiscriminator(2, 8), **(settings | more))
    return model, loss, torch.rand(2, 3, 16, 16) * 2 - 1


def generator_terms(model, loss, x, step: int = 0):
    out = model(x, torch.Generator().manual_seed(1))
    return loss.generator_terms(x, out.x_rec, out.reg_loss, model.last_layer, step)


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("reg", ["kl", "vq"])
def test_one_backward_is_equation_25(reg):
    """Value and gradient of the loss cut at the picture equal those of Eq. 25 written out and differentiated whole."""
    model, loss, x = stage(reg)
    terms = generator_terms(model, loss, x)
    terms.loss.backward()
    ours = gradients(model)

    model.zero_grad()
    out = model(x, torch.Generator().manual_seed(1))
    rec = (x - out.x_rec).abs() + loss.perceptual(x, out.x_rec).view(-1, 1, 1, 1)
    nll = rec.sum() / len(x) if reg == "kl" else rec.mean()
    g = -loss.discriminator(out.x_rec).mean()
    nll_grad, g_grad = (torch.autograd.grad(term, model.last_layer, retain_graph=True)[0] for term in (nll, g))
    weight = 0.5 * nll_grad.norm() / (g_grad.norm() + 1e-4)
    whole = nll + weight.detach() * g + 1e-3 * out.reg_loss
    whole.backward()

    torch.testing.assert_close(terms.loss, whole)
    torch.testing.assert_close(terms.adversarial_weight, weight)
    got, want = (torch.cat([grad.flatten() for grad in found.values()]) for found in (ours, gradients(model)))
    assert (got - want).norm() < 1e-5 * want.norm()


def test_perceptual_term_reaches_the_encoder():
    """A heavier perceptual term changes the gradient of the encoder's first layer by the term's own gradient."""
    model, loss, x = stage(disc_start=10)
    first_layer = model.encoder.conv_in.weight
    found = []
    for weight in (0.0, 1.0):
        loss.perceptual_weight = weight
        found.append(torch.autograd.grad(generator_terms(model, loss, x).loss, first_layer)[0])
    out = model(x, torch.Generator().manual_seed(1))
    term = loss.perceptual(x, out.x_rec).sum() / len(x) * x[0].numel()  # the sum form counts it at every entry
    (alone,) = torch.autograd.grad(term, first_layer)
    assert alone.abs().max() > 0
    torch.testing.assert_close(found[1] - found[0], alone, atol=1e-4 * float(alone.abs().max()), rtol=1e-3)


def test_adversarial_term_reaches_the_encoder():
    """The discriminator's opinion, once it plays, changes what the encoder learns."""
    model, loss, x = stage(disc_start=10)
    before, after = (
        torch.autograd.grad(generator_terms(model, loss, x, step).loss, model.encoder.conv_in.weight)[0]
        for step in (9, 10)
    )
    assert (before - after).abs().max() > 1e-3 * before.abs().max()


def test_generator_leaves_nothing_on_discriminator_and_perceptual_net():
    """After the autoencoder's backward pass no one else has a gradient, not even to be zeroed."""
    model, loss, x = stage()
    generator_terms(model, loss, x).loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert all(p.grad is None for p in loss.parameters())


def test_discriminator_leaves_nothing_on_the_autoencoder():
    """The discriminator's backward pass fills its own gradients, and stops at the reconstruction."""
    model, loss, x = stage()
    d_loss, real, fake = loss.discriminator_loss(x, model(x).x_rec)
    d_loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.discriminator.parameters())
    assert all(p.grad is None for p in model.parameters())
    assert not real.requires_grad and not fake.requires_grad


def test_both_updates_from_one_forward_pass():
    """The generator's backward frees its graph; the discriminator can still use the same reconstruction."""
    model, loss, x = stage()
    out = model(x)
    loss.generator_terms(x, out.x_rec, out.reg_loss, model.last_layer, 0).loss.backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.1 * p.grad
    before = gradients(model)
    loss.discriminator_loss(x, out.x_rec)[0].backward()
    assert all(torch.equal(before[name], grad) for name, grad in gradients(model).items())


def test_before_its_start_the_discriminator_is_not_there():
    """Neither its weight nor its BatchNorm averages move before `disc_start`, and a weight of 0 switches it off."""
    model, loss, x = stage(disc_start=5)
    terms = generator_terms(model, loss, x, step=4)
    assert terms.adversarial == terms.adversarial_weight == 0
    assert all(m.num_batches_tracked == 0 for m in loss.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert not loss.adversary_active(4) and loss.adversary_active(5)
    loss.disc_weight = 0.0
    assert not loss.adversary_active(5)


def test_validation_needs_no_graph():
    """Under no_grad the terms come out with the adversarial weight at 0."""
    model, loss, x = stage()
    with torch.no_grad():
        terms = generator_terms(model.eval(), loss.eval(), x)
    assert terms.adversarial_weight == 0
    torch.testing.assert_close(terms.loss, terms.nll + 1e-3 * terms.reg)


def test_sum_and_mean_differ_by_the_number_of_entries():
    """The released sum form is the mean form times c*h*w, so that one reg_weight means different things in the two."""
    model, loss, x = stage()
    x_rec = model(x).x_rec
    summed = loss.reconstruction_terms(x, x_rec)[0]
    loss.reduction = "mean"
    torch.testing.assert_close(summed, loss.reconstruction_terms(x, x_rec)[0] * x[0].numel())
    with pytest.raises(ValueError, match="'sum' or 'mean'"):
        stage(reduction="max")


def test_bfloat16_reconstructions_train():
    """Under autocast x_rec comes in bfloat16; losses are taken in float32 and the gradients arrive finite."""
    model, loss, x = stage()
    with torch.autocast("cpu", torch.bfloat16):
        terms = generator_terms(model, loss, x)
    assert terms.loss.dtype == torch.float32
    terms.loss.backward()
    assert all(grad.isfinite().all() for grad in gradients(model).values())


def test_adaptive_weight_balances_and_is_bounded():
    """lambda is the ratio of the gradients' norms, 1e4 at most, and carries no gradient of its own."""
    a, b = torch.full((3, 4), 2.0, requires_grad=True), torch.full((3, 4), 0.5)
    weight = adaptive_weight(a, b)
    assert weight == pytest.approx(4.0, rel=1e-3) and not weight.requires_grad
    assert adaptive_weight(1e9 * b, b) == 1e4
    assert adaptive_weight(b, 0.0 * b) < 1e5


def test_hinge_loss_stops_at_the_margin():
    """Patches beyond +-1 on the right side cost nothing, undecided ones cost 1."""
    assert hinge_loss(torch.tensor([2.0]), torch.tensor([-3.0])) == 0.0
    assert hinge_loss(torch.zeros(4), torch.zeros(4)) == 1.0


@pytest.mark.parametrize(("num_layers", "side"), [(1, 14), (2, 6), (3, 2)])
def test_discriminator_judges_patches(num_layers, side):
    """A map of logits, one a patch; every strided layer halves it, two unstrided ones take a pixel each."""
    assert PatchDiscriminator(num_layers, 8)(torch.rand(2, 3, 32, 32)).shape == (2, 1, side, side)


def test_discriminator_has_biases_only_where_they_do_something():
    """BatchNorm cancels the bias before it; ActNorm does not."""
    for norm, middle in (("batch", False), ("actnorm", True)):
        convs = [m for m in PatchDiscriminator(2, 8, norm).modules() if isinstance(m, torch.nn.Conv2d)]
        assert [conv.bias is not None for conv in convs] == [True, middle, middle, True]
    with pytest.raises(ValueError, match="'batch' or 'actnorm'"):
        PatchDiscriminator(norm="layer")


def test_actnorm_takes_its_scale_from_the_first_training_batch():
    """Zero mean and unit variance a channel on the first batch in training, and never adjusted after."""
    norm, h = ActNorm(4), 3.0 + 2.0 * torch.randn(8, 4, 5, 5)
    assert torch.equal(norm.eval()(h), h)
    out = norm.train()(h)
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std((0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)
    assert torch.equal(norm(10 * h), norm.scale * (10 * h + norm.loc)) and norm.initialized == 1


def test_target_features_have_no_graph(monkeypatch):
    """The perceptual loss follows the reconstruction's features back and keeps nothing of the picture's."""
    psim, seen = PsimLoss(feature_net("psim-lab")), []
    maps_of = psim.net.stage_maps

    def watched(x):
        seen.append(maps_of(x))
        return seen[-1]

    monkeypatch.setattr(psim.net, "stage_maps", watched)
    x, x_rec = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32, requires_grad=True)
    psim(x, x_rec).sum().backward()
    target, other = seen
    assert x_rec.grad.abs().sum() > 0 and all(m.requires_grad for m in other)
    assert not any(m.requires_grad for m in target)


def test_actnorm_looks_once_whether_it_is_initialized():
    """Reading that flag makes a GPU wait; one that came with weights is believed, and they stay."""
    norm = ActNorm(3)
    norm.load_state_dict({"loc": torch.ones(1, 3, 1, 1), "scale": 2 * torch.ones(1, 3, 1, 1),
                          "initialized": torch.tensor(1, dtype=torch.uint8)})
    h = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(norm(h), 2 * (h + 1))
    norm.initialized = None  # looking again would now raise
    torch.testing.assert_close(norm(h), 2 * (h + 1))
