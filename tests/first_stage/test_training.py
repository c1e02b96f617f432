"""Training a first stage: what each optimizer may touch, the learning rate, the watchdog."""

import pytest
import torch

from ldmlab.data.images import open_dataset, to_float
from ldmlab.first_stage.autoencoder import build_autoencoder
from ldmlab.first_stage.latents import MirroredImages
from ldmlab.first_stage.losses import FirstStageLoss, PatchDiscriminator, adaptive_weight, hinge_loss
from ldmlab.first_stage.networks import AutoencoderConfig
from ldmlab.first_stage.training import FirstStageModule
from ldmlab.study.training.callbacks import step_seed
from ldmlab.study.training.loop import StepSampler, fit


def small_module(reg="kl", disc_start=0, **options):
    torch.manual_seed(0)
    config = AutoencoderConfig(f=4, z_channels=3, reg=reg, ch=8, ch_mult=(1, 1), patch=2, num_res_blocks=1,
                               resolution=32, norm_groups=4, num_codes=16)
    loss = FirstStageLoss(lambda x, y: (x - y).square().mean((1, 2, 3)), PatchDiscriminator(1, 8),
                          disc_start=disc_start, reduction="sum", reg_weight=1e-6)
    return FirstStageModule(build_autoencoder(config), loss, **{"lr": 1e-3, "num_steps": 6} | options)


def train(module, folder, steps=6, **options):
    data = MirroredImages(open_dataset("scenes", size=32, num=16))
    return fit(module, data, num_steps=steps, batch_size=8, seed=0, run_dir=folder, label="ae",
               device=torch.device("cpu"), log_every=1, **options)


def parameters(module):
    return [p.detach().clone() for p in module.parameters()]


@pytest.mark.parametrize("reg", ["kl", "vq"])
def test_both_players_learn_and_steps_are_counted_once(reg, tmp_path):
    """Six batches are six steps, although two optimizers step each time; both networks move."""
    module = small_module(reg)
    before = parameters(module.autoencoder), parameters(module.loss.discriminator)
    curve = train(module, tmp_path)
    assert module.step == 6 and curve.steps("loss").tolist() == [1, 2, 3, 4, 5, 6]
    for old, new in zip(before, (module.autoencoder, module.loss.discriminator), strict=True):
        moved = [not torch.equal(a, b) for a, b in zip(old, new.parameters(), strict=True)]
        assert sum(moved) >= len(moved) - 2, "all but keys' biases, which attention does not notice"


def test_before_its_start_the_discriminator_stays_as_it_is(tmp_path):
    """Until disc_start only the autoencoder learns."""
    module = small_module(disc_start=6)
    before = parameters(module.loss.discriminator)
    train(module, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(before, module.loss.discriminator.parameters(), strict=True))


@pytest.mark.parametrize("reg", ["kl", "vq"])
def test_resumed_training_is_the_uninterrupted_one(reg, tmp_path):
    """Stopped after three steps and continued by new objects: the same losses and weights, both optimizers."""
    whole = small_module(reg, revive_every=2)
    curve = train(whole, tmp_path / "whole")
    train(small_module(reg, revive_every=2), tmp_path / "parts", steps=3)
    resumed = small_module(reg, revive_every=2)
    again = train(resumed, tmp_path / "parts")
    assert curve["loss"].tolist() == again["loss"].tolist()
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_learning_rate_warms_up_holds_and_decays():
    """The rate is a function of our own step count: warm-up to lr, then from decay_from on down to final_lr of it."""
    module = small_module(num_steps=100, warmup_steps=10, decay_from=0.5, final_lr=0.01)

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])

    def rate(step):
        module.step = step
        module._set_lr(optimizer, 1.0)
        return optimizer.param_groups[0]["lr"]

    assert [rate(0), rate(9), rate(50)] == pytest.approx([0.1, 1.0, 1.0])
    assert rate(75) == pytest.approx(0.505) and rate(100) == pytest.approx(0.01)


def test_watchdog_damps_a_discriminator_that_ruins_reconstruction():
    """PSNR more than the margin below its best halves the weight and is told; less, or no adversary, does not."""
    module = small_module()
    weight = module.loss.disc_weight
    assert module.watch(20.0) is None and module.watch(19.5) is None
    sentence = module.watch(18.0)
    assert "18.00 dB" in sentence and "20.00 dB" in sentence and module.loss.disc_weight == weight / 2
    assert module.watch(18.0) is None, "the damped discriminator is judged from where it stands"
    idle = small_module(disc_start=100)
    idle.watch(20.0)
    assert idle.watch(10.0) is None and idle.loss.disc_weight == weight


def test_validation_leaves_training_mode_and_gradients_alone():
    """Measuring PSNR changes nothing that training would notice."""
    module = small_module()
    module.autoencoder.train()
    result = module.validate(open_dataset("scenes", size=32, num=4).images(range(4)))
    assert 0 < result["val_psnr"] < 60 and module.autoencoder.training
    assert all(p.grad is None for p in module.parameters())


def train_as_released(module, steps):
    """The released code's step, written down once more: two forward passes, one backward from loss to first layer."""
    data, autoencoder, loss = MirroredImages(open_dataset("scenes", size=32, num=16)), module.autoencoder, module.loss
    opt_ae, opt_disc = (torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.5, 0.9))
                        for net in (autoencoder, loss.discriminator))
    for step, indices in enumerate(StepSampler(16, 8, seed=0, start=0, stop=steps)):
        torch.manual_seed(step_seed(0, step))
        x = to_float(data.__getitems__(indices)["image"])
        out = autoencoder(x)
        nll = ((x - out.x_rec).abs() + loss.perceptual(x, out.x_rec).view(-1, 1, 1, 1)).sum() / len(x)
        g = -loss.discriminator(out.x_rec).mean()
        weight = adaptive_weight(*(torch.autograd.grad(term, autoencoder.last_layer, retain_graph=True)[0]
                                   for term in (nll, g)))
        opt_ae.zero_grad()
        (nll + weight * g + 1e-6 * out.reg_loss).backward()
        opt_ae.step()
        x_rec = autoencoder(x).x_rec.detach()
        opt_disc.zero_grad()
        hinge_loss(loss.discriminator(x), loss.discriminator(x_rec)).backward()
        opt_disc.step()
    return module


def distance(a, b):
    """Largest difference of two networks' weights but for keys' biases, whose gradients are rounding alone."""
    pairs = zip(a.named_parameters(), b.parameters(), strict=True)
    return max(float((p - q).detach().abs().max()) for (name, p), q in pairs if not name.endswith("attention.k.bias"))


def test_exact_mode_follows_the_released_schedule(tmp_path):
    """Both networks move as by the released code's two forward passes; with one, the discriminator goes another way."""
    released, exact, reuse = train_as_released(small_module(), 3), small_module(exact=True), small_module()
    train(exact, tmp_path / "exact", steps=3)
    train(reuse, tmp_path / "reuse", steps=3)
    assert distance(exact.autoencoder, released.autoencoder) < 1e-5
    assert distance(exact.loss.discriminator, released.loss.discriminator) < 1e-5
    assert distance(reuse.loss.discriminator, released.loss.discriminator) > 1e-4


def test_before_the_discriminator_starts_both_modes_are_one(tmp_path):
    """Then a second forward pass would serve nothing, and there is none."""
    modes = [small_module(disc_start=3, exact=exact) for exact in (True, False)]
    for i, module in enumerate(modes):
        train(module, tmp_path / str(i), steps=3)
    for a, b in zip(*(module.parameters() for module in modes), strict=True):
        assert torch.equal(a, b)
