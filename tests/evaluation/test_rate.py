"""True bits: entropies, codes that could be decoded, latents as symbols, files without their headers."""

import io
import math

import pytest
import torch
from PIL import Image

from ldmlab.data.images import to_float
from ldmlab.data.scenes.scene import render_scene
from ldmlab.evaluation.rate import (
    CODECS,
    WEBP_CONTAINER,
    LatentCoder,
    PosteriorCoder,
    SymbolCode,
    UniformQuantizer,
    at_rate,
    count_symbols,
    entropy,
    file_codec,
    jpeg_scan,
    posterior_stats,
    webp_payload,
)
from ldmlab.evaluation.reconstruction import psnr
from ldmlab.first_stage.autoencoder import build_autoencoder
from ldmlab.first_stage.networks import AutoencoderConfig
from ldmlab.first_stage.regularizers import DiagonalGaussian


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(p: torch.Tensor, n: int, places: int, seed: int = 0) -> torch.Tensor:
    """Symbols (n, 1, places) of a source."""
    return torch.multinomial(p, n * places, replacement=True, generator=generator(seed)).view(n, 1, places)


def true_entropy(p: torch.Tensor) -> float:
    return float(-(p * p.log2()).sum())


@pytest.fixture(scope="module")
def scenes() -> torch.Tensor:
    return to_float(torch.stack([render_scene(0, "validation", i, 32).image for i in range(8)]))


def autoencoder(reg: str, **changes):
    torch.manual_seed(0)
    config = {"f": 4, "z_channels": 3, "reg": reg, "ch": 8, "ch_mult": (1,), "num_res_blocks": 1, "resolution": 32,
              "patch": 4, "norm_groups": 4, "mid_attn": False, "num_codes": 16, **changes}
    model = build_autoencoder(AutoencoderConfig(**config)).eval().requires_grad_(False)
    if reg == "vq":
        model.quantizer.codebook.normal_(generator=generator(1))
    return model


# Entropy
def test_entropy_by_hand():
    """Equal shares give log2 of their number, certainty gives 0; groups are averaged."""
    assert entropy(torch.tensor([5, 5, 5, 5])).bits == pytest.approx(2)
    assert entropy(torch.tensor([0, 9, 0])) == (0.0, 0.0)
    assert entropy(torch.tensor([[1, 1, 0, 0], [3, 3, 3, 3]])).bits == pytest.approx(1.5)


@pytest.mark.parametrize("n", [1, 3, 50, 5000])
def test_entropy_is_never_above_the_logarithm_of_the_alphabet(n):
    """The bound that a codebook sets, for any data."""
    for seed in range(20):
        counts = torch.bincount(torch.randint(512, (n,), generator=generator(seed)), minlength=512)
        assert 0 <= entropy(counts).bits <= min(math.log2(512), math.log2(n)) + 1e-9


def test_entropy_of_few_symbols_is_too_low_by_about_the_stated_bias():
    """The reader is told which way the number errs, and how far."""
    p = torch.full((64,), 1 / 64)
    measured = [entropy(torch.bincount(draw(p, 400, 1, seed).flatten(), minlength=64)) for seed in range(50)]
    short = 6 - sum(m.bits for m in measured) / 50
    assert short > 0.05 and short == pytest.approx(sum(m.bias for m in measured) / 50, rel=0.1)


def test_an_entropy_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one symbol"):
        entropy(torch.tensor([[1, 2], [0, 0]]))


# Codes
@pytest.mark.parametrize("by_place", [True, False])
def test_tables_are_probabilities_and_leave_no_symbol_out(by_place):
    """A code length is honest only if the code exists: shares sum to 1 [Kraft], and unseen symbols can be sent."""
    counts = count_symbols([draw(torch.tensor([0.7, 0.3, 0.0, 0.0]), 50, 6)], 4)
    code = SymbolCode.learn(counts, by_place)
    torch.testing.assert_close((2 ** -code.cost).sum(-1), torch.ones(1, 6, dtype=torch.double))
    assert code.cost.isfinite().all() and code.cost[..., 3].min() > 4


def test_code_length_and_empirical_entropy_hold_the_true_entropy_between_them():
    """One errs upward, the other downward, so that together they say how well the rate is known."""
    p = torch.softmax(torch.randn(32, generator=generator(7)), 0)
    below = [entropy(count_symbols([draw(p, 100, 16, seed)], 32).sum(1)).bits for seed in range(20)]
    code = SymbolCode.learn(count_symbols([draw(p, 400, 16, 99)], 32), False)
    expected = float((p * code.cost[0, 0]).sum())
    assert true_entropy(p) - 0.05 < sum(below) / 20 < true_entropy(p) < expected < true_entropy(p) + 0.01
    val = draw(p, 2000, 16, 2)
    assert code.bits(val).shape == (2000,) and code.bits(val).mean().item() / 16 == pytest.approx(expected, rel=0.01)


def test_what_differs_by_place_is_cheaper_with_tables_by_place():
    """And where places do not differ, tables by place cost next to nothing more, even learned from little."""
    split = torch.arange(16).view(1, 1, 16).expand(300, -1, -1) % 4
    counts = count_symbols([split], 4)
    by_place, by_channel = (SymbolCode.learn(counts, b).bits(split).mean() / 16 for b in (True, False))
    assert by_channel == pytest.approx(2, abs=1e-3) and by_place < 0.1
    p = torch.softmax(torch.randn(64, generator=generator(3)), 0)
    counts, val = count_symbols([draw(p, 40, 16, 4)], 64), draw(p, 500, 16, 5)
    by_place, by_channel = (SymbolCode.learn(counts, b).bits(val).mean() for b in (True, False))
    assert by_place < 1.15 * by_channel


def test_counting_does_not_depend_on_batches_and_refuses_foreign_symbols():
    """Streaming over a training set, and a codebook that does not fit."""
    symbols = torch.randint(5, (30, 2, 4), generator=generator())
    counts = count_symbols([symbols], 5)
    assert torch.equal(counts, count_symbols(symbols.split(7), 5)) and counts.shape == (2, 4, 5)
    assert counts[1, 3, 2] == (symbols[:, 1, 3] == 2).sum()
    with pytest.raises(ValueError, match="0 to 3"):
        count_symbols([symbols], 4)
    with pytest.raises(ValueError, match="no symbols"):
        count_symbols([], 4)


# Latents
def test_the_unit_step_makes_an_error_as_large_as_the_posteriors_noise():
    """What "relative to the posterior" means: rounding at step 1 has the posterior's standard deviation."""
    std = torch.tensor([0.01, 0.2])
    mean = 3 * torch.randn(200, 2, 8, 8, generator=generator())
    logvar = (2 * std.log())[:, None, None].expand_as(mean)
    stats = posterior_stats(torch.cat([mean, logvar], 1).split(60))
    torch.testing.assert_close(stats.noise.sqrt().float(), std)
    torch.testing.assert_close(stats.var.float(), mean.var((0, 2, 3), correction=0))
    quantizer = UniformQuantizer.learn(mean.split(60), stats.step.float())
    error = quantizer.values(quantizer.symbols(mean), 8) - mean
    torch.testing.assert_close(error.std((0, 2, 3)), std, rtol=0.05, atol=0)
    assert (error.abs().amax((0, 2, 3)) <= 0.5001 * quantizer.step).all()


def test_latents_beyond_the_training_range_are_held_to_it():
    """No symbol without a place in the tables; the distortion, not the bits, pays for it."""
    quantizer = UniformQuantizer.learn([torch.tensor([-1.0, 2.0]).view(2, 1, 1, 1)], torch.tensor([0.5]))
    z = torch.tensor([-9.0, 0.6, 9.0]).view(3, 1, 1, 1)
    symbols = quantizer.symbols(z)
    assert quantizer.num_symbols == 7 and symbols.flatten().tolist() == [0, 3, 6]
    assert quantizer.values(symbols, 1).flatten().tolist() == [-1.0, 0.5, 2.0]


def test_vq_sends_its_codes(scenes):
    """Through numbers of codes and back gives the model's own reconstruction, at no more than log2 |Z| of entropy."""
    model = autoencoder("vq")
    coder = LatentCoder.learn(model, lambda: [model.moments(scenes)])
    coded = coder(scenes)
    torch.testing.assert_close(coded.x_rec, model.decode(model.encode(scenes)).clamp(-1, 1))
    symbols = coder.symbols(scenes)
    assert symbols.shape == (8, 1, 64) and coder.num_symbols == 16
    assert entropy(count_symbols([symbols], 16).sum(1)).bits <= 4
    torch.testing.assert_close(coded.bits, coder.by_place.bits(symbols))


def test_kl_latents_cost_less_and_lose_more_at_coarser_steps(scenes):
    """The dial of the whole study: rate falls and distortion rises along it; fine steps change nothing."""
    model = autoencoder("kl")
    batches = lambda: [model.moments(scenes)]  # noqa: E731
    rec = model.decode(model.encode(scenes).mode()).clamp(-1, 1)
    unit = posterior_stats(batches()).mean.abs().float().clamp(min=0.05) / 50
    coded = [LatentCoder.learn(model, batches, step * unit)(scenes) for step in (1, 16, 128)]
    rates, errors = [c.bits.mean() for c in coded], [(c.x_rec - rec).square().mean() for c in coded]
    assert rates[0] > rates[1] > rates[2] and errors[0] < errors[1] < errors[2]
    assert psnr(rec, coded[0].x_rec).mean() > 40
    with pytest.raises(ValueError, match="a step is for KL"):
        LatentCoder.learn(model, batches)


def test_relative_entropy_by_hand(scenes):
    """KL in bits: to the standard normal as in the loss, and to the prior that fits; the latter is cheaper."""
    model = autoencoder("kl")
    batches = [model.moments(scenes)]
    standard = PosteriorCoder(model, None, generator())(scenes)
    q = DiagonalGaussian(batches[0])
    normal = torch.distributions.Normal
    by_hand = torch.distributions.kl_divergence(normal(q.mean, q.std), normal(0.0, 1.0)).sum((1, 2, 3)) / math.log(2)
    torch.testing.assert_close(standard.bits.float(), by_hand)
    fitted = PosteriorCoder(model, posterior_stats(batches).prior, generator())(scenes)
    assert fitted.bits.mean() < standard.bits.mean()
    torch.testing.assert_close(fitted.x_rec, standard.x_rec)


# Files
@pytest.mark.parametrize("codec", CODECS)
def test_files_are_what_pillow_reads_and_better_at_higher_quality(codec, scenes):
    """Bits and distortion of one and the same file, both in order of quality."""
    coded = [file_codec(scenes, codec, quality) for quality in (5, 40, 95)]
    rates, quality = [c.bits.mean() for c in coded], [psnr(scenes, c.x_rec).mean() for c in coded]
    assert rates[0] < rates[1] < rates[2] and quality[0] < quality[1] < quality[2]
    assert all((c.bits < c.file_bits).all() and c.x_rec.shape == scenes.shape for c in coded)


def saved(picture: torch.Tensor, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(((picture + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()).save(buffer, kind, **options)
    return buffer.getvalue()


def test_what_is_left_out_of_a_file_does_not_depend_on_the_picture(scenes):
    """The overhead is a constant of the format, so that leaving it out hides no bit of any picture."""
    jpeg = [saved(x, "JPEG", quality=50, subsampling="4:2:0") for x in scenes]
    assert len({len(data) - jpeg_scan(data) for data in jpeg}) == 1
    cut = len(jpeg[0]) - jpeg_scan(jpeg[0]) - 2
    assert len({data[:cut] for data in jpeg}) == 1, "the headers are the same bytes"
    webp = [saved(x, "WEBP", quality=50) for x in scenes]
    assert {len(data) - webp_payload(data) - WEBP_CONTAINER for data in webp} <= {0, 1}  # padded to even length


def test_a_flat_picture_costs_next_to_nothing():
    """A mistaken header would show here: grey has a few bits a block, and what WebP says ahead of them."""
    grey = torch.zeros(1, 3, 32, 32)
    assert file_codec(grey, "jpeg", 50).bits.item() <= 24 * 8
    assert file_codec(grey, "webp", 50).bits.item() <= 30 * 8


def test_wrong_files_and_settings_are_refused(scenes):
    with pytest.raises(ValueError, match="not a JPEG"):
        jpeg_scan(b"RIFF....")
    with pytest.raises(ValueError, match="not a lossy WebP"):
        webp_payload(saved(scenes[0], "WEBP", lossless=True))
    with pytest.raises(ValueError, match="one of jpeg, webp"):
        file_codec(scenes, "png", 5)
    with pytest.raises(ValueError, match="0 to 100"):
        file_codec(scenes, "jpeg", 101)
    with pytest.raises(ValueError, match=r"in \[-1, 1\]"):
        file_codec(2 * scenes, "jpeg", 50)


def test_values_at_equal_rate_are_interpolated_and_never_extrapolated():
    """Halfway in log rate is halfway between values; beyond what was measured there is no answer."""
    line = [[4.0, 30.0], [1.0, 20.0], [0.0, 5.0]]
    assert at_rate(line, 2) == pytest.approx(25)
    assert at_rate(line, 1) == 20 and at_rate(line, 0.5) is None and at_rate(line, 5) is None and at_rate([], 1) is None
