"""Encoder, decoder and the three first stages: sizes, checks, what is random and what is not."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ldmlab.first_stage.autoencoder import AutoencoderKL, AutoencoderVQ, build_autoencoder
from ldmlab.first_stage.losses import PatchDiscriminator
from ldmlab.first_stage.networks import Attention, AutoencoderConfig, Encoder


def small(f: int, reg: str = "kl", patch: int = 1, **more) -> AutoencoderConfig:
    """A first stage of a few thousand parameters."""
    levels = (f // patch).bit_length()
    sizes = dict(ch=8, ch_mult=(1,) * levels, num_res_blocks=1, norm_groups=4, resolution=32, num_codes=16)
    return AutoencoderConfig(f=f, z_channels=3, reg="none" if f == 1 else reg, patch=patch, **(sizes | more))


def pictures(n: int = 2, size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("reg", ["kl", "vq"])
@pytest.mark.parametrize(("f", "patch"), [(1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (32, 1), (2, 2), (4, 2), (8, 4)])
def test_f_divides_the_sides_there_and_back(f, patch, reg):
    """Every f of the study, with and without patches: z is f times smaller, x_rec as large as x, moments cacheable."""
    torch.manual_seed(0)
    model = build_autoencoder(small(f, reg, patch))
    x = pictures()
    moments = model.moments(x)
    c = 6 if model.reg == "kl" else 3
    assert moments.shape == (2, c, 32 // f, 32 // f)
    z = model.sample_latent(moments, torch.Generator().manual_seed(1))
    assert z.shape == (2, model.z_channels, 32 // f, 32 // f)
    assert model.decode(z).shape == x.shape
    out = model(x)
    assert out.x_rec.shape == x.shape and out.z.shape == z.shape and out.reg_loss.shape == ()


def test_identity_changes_nothing():
    """f = 1 is the pixel-space model: z is x, bit for bit, and nothing is regularized."""
    model, x = build_autoencoder(small(1)), pictures()
    assert torch.equal(model.decode(model.encode(x)), x)
    assert torch.equal(model(x).x_rec, x) and model(x).reg_loss == 0
    assert not list(model.parameters())


# The released first stages of Tab. 8: config, then the number of parameters in all, of the encoder, of the decoder.
RELEASED = {
    "KL-f4": (dict(f=4, z_channels=3, ch_mult=(1, 2, 4)), 55312063, 22351238, 32960771),
    "KL-f8": (dict(f=8, z_channels=4, ch_mult=(1, 2, 4, 4)), 83653863, 34163592, 49490179),
    "KL-f16": (
        dict(f=16, z_channels=16, ch_mult=(1, 1, 2, 2, 4), attn_resolutions=(16,)),
        69610963,
        28265760,
        41343875,
    ),
    "KL-f32": (
        dict(f=32, z_channels=64, ch_mult=(1, 1, 2, 2, 4, 4), attn_resolutions=(16, 8)),
        103880131,
        42614656,
        61244803,
    ),
    "VQ-f4": (dict(reg="vq", f=4, z_channels=3, ch_mult=(1, 2, 4)), 55322782, 22337411, 32960771),
    "VQ-f4, no attention": (
        dict(reg="vq", f=4, z_channels=3, ch_mult=(1, 2, 4), mid_attn=False),
        53219486,
        21285763,
        31909123,
    ),
    "VQ-f8": (
        dict(reg="vq", f=8, z_channels=4, ch_mult=(1, 2, 2, 4), attn_resolutions=(32,), num_codes=16384),
        67717295,
        27397764,
        40253955,
    ),
    "VQ-f8, 256 codes": (
        dict(reg="vq", f=8, z_channels=4, ch_mult=(1, 2, 2, 4), attn_resolutions=(32,), num_codes=256),
        67652783,
        27397764,
        40253955,
    ),
    "VQ-f16": (
        dict(reg="vq", f=16, z_channels=8, ch_mult=(1, 1, 2, 2, 4), attn_resolutions=(16,), num_codes=16384),
        69593371,
        28155144,
        41307011,
    ),
}


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", RELEASED)
def test_released_sizes(name):
    """With the released settings the models have the released number of parameters, and Tab. 8's latent size."""
    settings, whole, encoder, decoder = RELEASED[name]
    with torch.device("meta"):
        model = build_autoencoder(AutoencoderConfig(**settings))
        h = model.encoder(torch.empty(1, 3, 256, 256))
    assert (count(model), count(model.encoder), count(model.decoder)) == (whole, encoder, decoder)
    side = 256 // settings["f"]
    assert h.shape == (1, settings["z_channels"] * (2 if model.reg == "kl" else 1), side, side)


def test_released_discriminator_sizes():
    """The patch discriminators of the released models, with three strided layers and with two."""
    assert count(PatchDiscriminator(3)) == 2765633
    assert count(PatchDiscriminator(2)) == 663361


def test_attention_follows_the_configured_resolution():
    """Where attention sits is part of the weights: it must not depend on the size of the picture that comes."""
    encoder = Encoder(small(8, attn_resolutions=(16, 4)))
    attends = [any(isinstance(a, Attention) for a in level.attentions) for level in encoder.levels]
    assert attends == [False, True, False, True]
    assert isinstance(encoder.mid.attention, Attention)
    assert not isinstance(Encoder(small(8, mid_attn=False)).mid.attention, Attention)


class LargestResult(TorchDispatchMode):
    """Remembers how many entries the largest tensor had that any operation gave."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [part for part in tree_leaves(result) if isinstance(part, torch.Tensor)]
        self.entries = max([self.entries, *(part.numel() for part in tensors)])
        return result


@pytest.mark.parametrize("side", [4, 16])
def test_attention_is_the_formula_whichever_way_it_is_computed(side):
    """With few positions and with many, softmax(q k^T / sqrt(c)) v; with many, nothing has n x n entries."""
    torch.manual_seed(0)
    attention, x = Attention(8, norm_groups=4), torch.randn(2, 8, side, side)
    h = attention.norm(x)
    q, k, v = (conv(h).flatten(2).mT for conv in (attention.q, attention.k, attention.v))
    out = (q @ k.mT / 8**0.5).softmax(-1) @ v
    with LargestResult() as largest:
        result = attention(x)
    torch.testing.assert_close(result, x + attention.out(out.mT.reshape(x.shape)), rtol=0, atol=1e-5)
    if side == 16:
        assert largest.entries < 256**2


def test_kl_training_samples_and_caching_does_not():
    """The same generator gives the same z, another one another; moments are the same each time."""
    torch.manual_seed(0)
    model, x = AutoencoderKL(small(4)).eval(), pictures()
    first, again, other = (model(x, torch.Generator().manual_seed(seed)).z for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(model.moments(x), model.moments(x))
    assert torch.equal(model.sample_latent(model.moments(x), torch.Generator().manual_seed(1)), first)


def test_vq_decoder_absorbs_the_quantizer():
    """z leaves the encoder unquantized, and decoding it is decoding its nearest codes."""
    torch.manual_seed(0)
    model, x = AutoencoderVQ(small(4, "vq")).eval(), pictures()
    z = model.encode(x)
    codes = model.quantizer.embed(model.quantizer.nearest(z))
    assert not torch.allclose(z, codes)
    assert torch.equal(model.decode(z), model.decode(codes, quantize=False))
    torch.testing.assert_close(model(x).x_rec, model.decode(z))
    assert torch.equal(model(x).z, z)


@pytest.mark.parametrize("reg", ["kl", "vq"])
def test_reconstruction_trains_every_weight(reg):
    """No part of the first stage is left out of the gradient of reconstruction and regularizer."""
    torch.manual_seed(0)
    model = build_autoencoder(small(4, reg, patch=2, attn_resolutions=(8,)))
    out = model(pictures())
    (out.x_rec.square().mean() + out.reg_loss).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] in (
        [],
        # softmax does not see what all keys share
        [name for name, _ in model.named_parameters() if name.endswith("k.bias")],
    )


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (dict(f=3), "f must be one of"),
        (dict(f=64, ch_mult=(1,) * 7), "f must be one of"),
        (dict(f=8, ch_mult=(1, 2)), "ch_mult"),
        (dict(f=1), "goes with f = 1 only"),
        (dict(f=8, reg="none"), "reg='none'"),
        (dict(f=8, reg="gan"), "'kl', 'vq' or 'none'"),
        (dict(f=8, ch=20), "norm_groups=32"),
        (dict(f=8, resolution=36), "resolution"),
        (dict(f=1, reg="none", z_channels=4), "z_channels"),
    ],
)
def test_impossible_configs_say_why(settings, named):
    """A config that cannot be built is refused at once, naming the value given and what is accepted."""
    with pytest.raises(ValueError, match=named):
        AutoencoderConfig(**({"z_channels": 4} | settings))


def test_config_from_json_lists():
    """A config read back from a record equals the one written."""
    assert AutoencoderConfig(f=8, z_channels=4, ch_mult=[1, 2, 4, 4]) == AutoencoderConfig(f=8, z_channels=4)


@pytest.mark.parametrize("reg", ["kl", "vq", "none"])
def test_bad_pictures_and_latents_say_what_they_are(reg):
    """Sides not divisible by f, other channels, integers, values in [0, 255]: refused at the public boundary."""
    model = build_autoencoder(small(1 if reg == "none" else 8, reg))
    wrong = {
        "values in": pictures() * 127.5 + 127.5,
        r"\(b, 3, H, W\)": pictures()[:, :1],
        "floats": torch.zeros(1, 3, 32, 32, dtype=torch.uint8),
    }
    if reg != "none":
        wrong["divisible by f = 8, got 36 x 36"] = pictures(size=36)
    for named, x in wrong.items():
        with pytest.raises((ValueError, TypeError), match=named if named != "floats" else None):
            model.encode(x)
    with pytest.raises(ValueError, match=r"latents must be \(b, 3, h, w\)"):
        model.decode(torch.zeros(1, 4, 4, 4))
