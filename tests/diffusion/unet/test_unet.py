"""The UNet: shapes, gradient, conditions, and what its configuration refuses."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ldmlab.diffusion.unet.blocks import GroupNorm
from ldmlab.diffusion.unet.unet import DenoiserConfig, UNet

PLAIN = DenoiserConfig(
    in_channels=3, out_channels=2, widths=(8, 16), num_res_blocks=1, attention_at=(1, 2), num_heads=2, norm_groups=4
)
CONFIGS = {
    "plain": PLAIN,
    "context": replace(PLAIN, context_dim=6, transformer_depth=2),
    "classes": replace(PLAIN, num_classes=5),
    "film, resblock resampling": replace(PLAIN, use_scale_shift_norm=True, resblock_updown=True),
    "head channels": replace(PLAIN, num_heads=None, num_head_channels=4, attention_at=()),
    "one level": replace(PLAIN, widths=(8,), attention_at=(1,)),
}


def randomized(config: DenoiserConfig, **options) -> UNet:
    """A UNet whose zero-initialised layers are awake, as after training."""
    torch.manual_seed(0)
    model = UNet(config, **options)
    for name, p in model.named_parameters():
        if p.ndim > 1 or not name.endswith("weight"):
            nn.init.normal_(p, std=0.2)
    return model


def inputs(config: DenoiserConfig, b: int = 2) -> dict:
    given = {"z_t": torch.randn(b, config.in_channels, 4, 6), "t": torch.arange(b) * 300}
    if config.context_dim is not None:
        given["context"] = torch.randn(b, 3, config.context_dim)
    if config.num_classes is not None:
        given["y"] = torch.arange(b)
    return given


@pytest.mark.parametrize("name", CONFIGS)
def test_gradient_reaches_every_parameter(name):
    """Nothing is built that the output does not depend on; the output has the latent's size."""
    config = CONFIGS[name]
    model = randomized(config)
    out = model(**inputs(config))
    assert out.shape == (2, config.out_channels, 4, 6)
    out.square().mean().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


@pytest.mark.parametrize("name", CONFIGS)
def test_a_fresh_unet_predicts_zero(name):
    """The last convolution and every residual branch start at zero, as released."""
    assert not UNet(CONFIGS[name])(**inputs(CONFIGS[name])).any()


def test_every_condition_is_heard():
    """Time, context and class each change the answer, and each item of a batch hears only its own."""
    config = replace(PLAIN, context_dim=6, num_classes=5)
    model, given = randomized(config).eval(), inputs(config)
    with torch.no_grad():
        out = model(**given)
        for name in ("t", "context", "y"):
            changed = given[name].clone()
            changed[0] += 1
            other = model(**{**given, name: changed})
            assert not torch.allclose(other[0], out[0], rtol=1e-3) and torch.allclose(other[1], out[1])


def test_one_token_context_needs_no_softmax():
    """In inference a context of one token skips queries and keys; the answer is the same as in training."""
    config = CONFIGS["context"]
    model, given = randomized(config), inputs(config)
    given["context"] = given["context"][:, :1]
    with torch.no_grad():
        short = model(**given)
    torch.testing.assert_close(short, model(**given).detach())


def test_checkpointed_activations_change_nothing():
    """Recomputing saves memory; output and gradients are the same."""
    config = CONFIGS["context"]
    given, gradients = inputs(config), []
    for option in (False, True):
        model = randomized(config, checkpoint_activations=option)
        out = model(**given)
        out.square().mean().backward()
        gradients.append([out.detach(), *(p.grad for p in model.parameters())])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_group_norm_is_float32_under_autocast():
    """In bf16 a mean of 100 would swallow a deviation of 0.1; computed in float32 the result is right."""
    x = (100 + torch.randn(2, 8, 16, 16)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = GroupNorm(4, 8)(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), nn.functional.group_norm(x.float(), 4), rtol=0, atol=0.02)


def test_channels_last_and_autocast_agree_with_plain():
    """The two ways to run faster give the same answer, bf16 to its precision."""
    config = CONFIGS["context"]
    model, given = randomized(config).eval(), inputs(config)
    with torch.no_grad():
        out = model(**given)
        with torch.autocast("cpu", torch.bfloat16):
            assert (model(**given).float() - out).abs().max() < 0.05 * out.abs().max()
        model = model.to(memory_format=torch.channels_last)
        given["z_t"] = given["z_t"].to(memory_format=torch.channels_last)
        torch.testing.assert_close(model(**given), out)


@pytest.mark.parametrize("change, message", [
    (dict(widths=()), "positive"),
    (dict(widths=(8, 18)), "norm_groups=4"),
    (dict(num_heads=None), "either num_heads or num_head_channels"),
    (dict(num_head_channels=4), "either num_heads or num_head_channels"),
    (dict(num_heads=3), "num_heads=3"),
    (dict(num_heads=None, num_head_channels=5), "num_head_channels=5"),
    (dict(num_res_blocks=0), "positive"),
    (dict(attention_at=(1, 4)), r"\(1, 2\).*got \(1, 4\)"),
])
def test_impossible_configs_are_refused(change, message):
    """A config that could not be built says so when it is written, not deep in a constructor."""
    with pytest.raises(ValueError, match=message):
        replace(PLAIN, **change)


@pytest.mark.parametrize("change, message", [
    (dict(z_t=torch.zeros(2, 4, 4, 4)), r"\(b, 3, h, w\)"),
    (dict(z_t=torch.zeros(2, 3, 5, 4)), "divisible by 2"),
    (dict(context=None), "context_dim=6"),
    (dict(y=torch.zeros(2, dtype=torch.long)), "num_classes=None"),
])
def test_inputs_that_do_not_fit_are_refused(change, message):
    """Wrong channels, sizes that cannot be halved, a missing or an unasked condition: named, with what was given."""
    config = CONFIGS["context"]
    with pytest.raises(ValueError, match=message):
        UNet(config)(**{**inputs(config), **change})
