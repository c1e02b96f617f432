"""Training a diffusion model: the objective, the latents it sees, EMA and exact resumption."""

import pytest
import torch

from ldmlab.diffusion.conditioning.tokens import ClassEmbedder
from ldmlab.diffusion.schedules import scaled_linear
from ldmlab.diffusion.training import DiffusionModule
from ldmlab.diffusion.unet.unet import DenoiserConfig, UNet
from ldmlab.study.training.loop import fit


class RandomMoments(torch.utils.data.Dataset):
    """Sixteen latents and their mirror images."""

    def __init__(self):
        self.values = torch.randn(32, 4, 4, 4, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return 32

    def __getitems__(self, indices):
        return {"moments": self.values[indices], "label": torch.tensor(indices) % 3}


def small_module(drop=0.2, **options):
    torch.manual_seed(0)
    config = DenoiserConfig(2, 2, (8, 16), num_res_blocks=1, attention_at=(2,), num_heads=1, context_dim=8,
                            norm_groups=4, dropout=drop / 2)
    return DiffusionModule(UNet(config), scaled_linear(), ClassEmbedder(3, 8, p_drop=drop), **{"lr": 1e-3} | options)


def train(module, folder, steps=8, **options):
    return fit(module, RandomMoments(), num_steps=steps, batch_size=8, seed=0, run_dir=folder, label="ldm",
               device=torch.device("cpu"), log_every=1, **options)


def test_resumed_training_is_the_uninterrupted_one(tmp_path):
    """Stopped and continued by new objects: the same losses, weights and averages, dropout and noise included."""
    whole, resumed = small_module(warmup_steps=4), small_module(warmup_steps=4)
    curve = train(whole, tmp_path / "whole")
    train(small_module(warmup_steps=4), tmp_path / "parts", steps=3)
    again = train(resumed, tmp_path / "parts")
    assert curve["loss"].tolist() == again["loss"].tolist()
    assert resumed.ema.num_updates == 8
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    for name, shadow in whole.ema.shadow.items():
        assert torch.equal(shadow, resumed.ema.shadow[name])


def test_every_step_samples_the_posterior_anew():
    """Cached moments are not cached samples: two draws differ by about the posterior's deviation."""
    module = small_module()
    moments = torch.cat([torch.zeros(64, 2, 4, 4), torch.full((64, 2, 4, 4), -2.0)], 1)
    first, second = module.z0_from_moments(moments), module.z0_from_moments(moments)
    assert not torch.equal(first, second)
    assert float(first.std()) == pytest.approx(torch.tensor(-1.0).exp().item(), rel=0.05)


def test_latents_are_scaled():
    """z is multiplied by scale_factor, one for all or one a channel; latents without a variance pass as they are."""
    z = torch.randn(2, 2, 4, 4)
    torch.testing.assert_close(small_module(scale_factor=(0.5,)).z0_from_moments(z), z / 2)
    per_channel = small_module(scale_factor=(1.0, 3.0)).z0_from_moments(z)
    torch.testing.assert_close(per_channel[:, 1], 3 * z[:, 1])


def test_moments_of_another_shape_are_refused():
    """Latents that this denoiser cannot take are named."""
    with pytest.raises(ValueError, match="moments have 2 or 4; got 3"):
        small_module().z0_from_moments(torch.randn(1, 3, 4, 4))


def test_a_perfect_denoiser_has_no_loss():
    """With the true noise as its answer the objective is 0, l1 and l2; otherwise it is the mean error."""
    z0, eps, t = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.tensor([0, 500, 999])
    for loss, error in (("l2", 4.0), ("l1", 2.0)):
        module = small_module(loss=loss)
        module.denoiser.forward = lambda z_t, t, context: eps
        assert module.eps_loss(z0, t % 3, t, eps) == 0
        module.denoiser.forward = lambda z_t, t, context: eps + 2
        assert module.eps_loss(z0, t % 3, t, eps) == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize("parts", [3, 4])
def test_a_batch_in_parts_gives_the_step_of_the_whole(parts, tmp_path):
    """Same noise: same losses, same clipped gradients, same weights and averages, also if the parts are not equal."""
    whole, split = small_module(drop=0.0, lr=1e-4), small_module(drop=0.0, lr=1e-4, accumulate=parts)
    curves = [train(module, tmp_path / str(i), steps=2) for i, module in enumerate((whole, split))]
    assert curves[0]["loss"].tolist() == pytest.approx(curves[1]["loss"].tolist(), rel=1e-6)
    for a, b in zip(whole.parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)
    assert split.ema.num_updates == 2
    for name, shadow in whole.ema.shadow.items():
        torch.testing.assert_close(shadow, split.ema.shadow[name], rtol=0, atol=1e-6)


def test_parts_are_differentiated_one_by_one(tmp_path):
    """No more than one part is in the denoiser at a time, and every part is once in a step."""
    module, sizes, alive = small_module(accumulate=4), [], []
    forward = module.denoiser.forward

    def watched(z_t, t, context):
        sizes.append(len(z_t))
        alive.append(sum(p.grad is not None for p in module.parameters()) > 0)
        return forward(z_t, t, context)

    module.denoiser.forward = watched
    train(module, tmp_path, steps=2)
    assert sizes == [2] * 8
    assert alive == [False, True, True, True] * 2, "gradients of earlier parts are there already, none of the last step"


def test_a_batch_is_in_one_part_at_least():
    """Zero parts are no batch."""
    with pytest.raises(ValueError, match="at least 1; got 0"):
        small_module(accumulate=0)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_in_bf16_goes_through_the_backward_pass(accumulate, tmp_path, monkeypatch):
    """Under autocast every weight gets a finite gradient in its own precision, whatever the hardware prefers."""
    monkeypatch.setattr("ldmlab.study.training.device.usable_precision", lambda precision, device: precision)
    module = small_module(drop=0.0, accumulate=accumulate)
    plain = train(small_module(drop=0.0), tmp_path / "plain", steps=2)
    curve = train(module, tmp_path / "bf16", steps=2, precision="bf16-mixed")
    assert curve["loss"].tolist() == pytest.approx(plain["loss"].tolist(), rel=0.02)
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in module.parameters())
