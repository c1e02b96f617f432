"""The classifier on noisy latents: its pools, what it refuses, its training, and that it can guide."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ldmlab.diffusion.classifier import POOLS, ClassifierModule, NoisyClassifier, accuracy_by_noise
from ldmlab.diffusion.guidance import classifier_guided
from ldmlab.diffusion.schedules import scaled_linear
from ldmlab.diffusion.unet.config import DenoiserConfig
from ldmlab.study.training.loop import fit

CONFIG = DenoiserConfig(in_channels=2, out_channels=3, widths=(8, 16), num_res_blocks=1, attention_at=(2,),
                        num_head_channels=8, norm_groups=4)


def randomized(pool, config=CONFIG):
    """A classifier whose zero-initialised layers are awake, as after training."""
    torch.manual_seed(0)
    model = NoisyClassifier(config, pool, side=4)
    for name, p in model.named_parameters():
        if p.ndim > 1 or not name.endswith("weight"):
            nn.init.normal_(p, std=0.2)
    return model


@pytest.mark.parametrize("options", [{}, {"use_scale_shift_norm": True, "resblock_updown": True}])
@pytest.mark.parametrize("pool", POOLS)
def test_gradient_reaches_every_parameter(pool, options):
    """Each pool gives one logit a class, at whole and fractional t, and has no part that they do not depend on."""
    model = randomized(pool, replace(CONFIG, **options))
    z_t = torch.randn(4, 2, 4, 4)
    logits = model(z_t, torch.tensor([0.0, 1.5, 400.0, 999.0]))
    assert logits.shape == (4, 3)
    assert torch.equal(model(z_t, torch.tensor([0, 3, 400, 999]))[2:], logits[2:])
    logits.square().mean().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


@pytest.mark.parametrize("pool", ["adaptive", "spatial_v2"])
def test_other_sizes_than_in_training(pool):
    """Means over positions take latents of any size, as larger pictures sampled convolutionally have."""
    model = randomized(pool)
    z_t = torch.randn(2, 2, 8, 12)
    assert model(z_t, torch.tensor([5, 5])).shape == (2, 3)


def test_a_fresh_classifier_knows_nothing():
    """With the adaptive pool all classes begin equally likely: the last layer starts at zero, as released."""
    assert not NoisyClassifier(CONFIG, "adaptive")(torch.randn(2, 2, 4, 4), torch.tensor([5, 5])).any()


@pytest.mark.parametrize("options, message", [
    ({"pool": "max"}, "pool is one of adaptive, attention, spatial, spatial_v2; got 'max'"),
    ({"pool": "attention", "side": None}, "side divisible by 2, got .*side=None"),
    ({"pool": "attention", "side": 5}, "side divisible by 2, got .*side=5"),
    ({"config": replace(CONFIG, num_head_channels=None, num_heads=2)}, "needs num_head_channels"),
    ({"config": replace(CONFIG, context_dim=4)}, "takes no condition, got .*context_dim=4"),
    ({"config": replace(CONFIG, num_classes=4)}, "takes no condition, got .*num_classes=4"),
])
def test_what_cannot_be_built_is_refused(options, message):
    """The message says what was given and what is accepted."""
    with pytest.raises(ValueError, match=message):
        NoisyClassifier(**{"config": CONFIG, "side": 4} | options)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 2, 5, 4), (2, 2, 8, 8)])
def test_latents_of_other_shapes_are_refused(shape):
    """Other channels, sides that the levels cannot halve, and positions that the attention pool has never seen."""
    with pytest.raises(ValueError, match=f"got \\({', '.join(map(str, shape))}\\)"):
        NoisyClassifier(CONFIG, "attention", side=4)(torch.randn(shape), torch.tensor([5, 5]))


def test_guidance_by_it_leads_uphill():
    """A small step against what guidance adds to eps_hat makes the wanted class more likely."""
    model, z_t, t, y = randomized("attention"), torch.randn(4, 2, 4, 4), torch.full((4,), 300), torch.arange(4) % 3
    added = classifier_guided(lambda z, t: 0 * z, model, y, scaled_linear(), 1.0)(z_t, t)

    @torch.no_grad()
    def log_p(z):
        return model(z, t).log_softmax(1)[torch.arange(4), y]

    assert (log_p(z_t - 1e-2 * added / added.abs().amax((1, 2, 3), keepdim=True)) > log_p(z_t)).all()


# --- Training --------------------------------------------------------------------------------------------------------
class TwoKinds(torch.utils.data.Dataset):
    """Moments of 32 latents and their mirror images; the first channel's sign tells the class."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(64) % 2
        mean = 0.5 * torch.randn(64, 2, 4, 4, generator=generator)
        mean[:, 0] += (2.0 * self.labels - 1)[:, None, None]
        self.moments = torch.cat([mean, torch.full_like(mean, -4.0)], 1)

    def __len__(self):
        return 64

    def __getitems__(self, indices):
        return {"moments": self.moments[indices], "label": self.labels[indices]}


def small_module(**options):
    torch.manual_seed(0)
    model = NoisyClassifier(replace(CONFIG, out_channels=2, dropout=0.1), "attention", side=4)
    return ClassifierModule(model, scaled_linear(), lr=3e-3, **options)


def train(module, folder, steps):
    return fit(module, TwoKinds(), num_steps=steps, batch_size=16, seed=0, run_dir=folder, label="classifier",
               device=torch.device("cpu"), log_every=1)


def test_resumed_training_is_the_uninterrupted_one(tmp_path):
    """Stopped and continued by new objects: the same losses, accuracies, weights and averages."""
    whole, resumed = small_module(warmup_steps=3), small_module(warmup_steps=3)
    curve = train(whole, tmp_path / "whole", 6)
    train(small_module(warmup_steps=3), tmp_path / "parts", 2)
    again = train(resumed, tmp_path / "parts", 6)
    for name in ("loss", "accuracy"):
        assert curve[name].tolist() == again[name].tolist()
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    for name, shadow in whole.ema.shadow.items():
        assert torch.equal(shadow, resumed.ema.shadow[name])


def test_it_learns_what_the_noise_leaves(tmp_path):
    """Trained, it tells nearly every clean latent; at t = T - 1, where nothing is left of it, about one in two."""
    module = small_module()
    train(module, tmp_path, 60)
    curve = accuracy_by_noise(module, TwoKinds(), [0, 400, 999], batch_size=24)
    assert [t for t, _ in curve] == [0, 400, 999]
    assert curve[0][1] > 0.9 and curve[1][1] > 0.8 and 0.25 < curve[2][1] < 0.8
    assert curve == accuracy_by_noise(module, TwoKinds(), [0, 400, 999], batch_size=24), "a function of the seed"
    with pytest.raises(ValueError, match=r"steps in \[0, 999\], got \[1000\]"):
        accuracy_by_noise(module, TwoKinds(), [1000])


def test_latents_of_another_first_stage_are_refused():
    """Moments whose channels this classifier cannot take are named."""
    with pytest.raises(ValueError, match="moments have 2 or 4; got 3"):
        small_module().z0_from_moments(torch.randn(1, 3, 4, 4))
