"""Latent statistics, their standard error, and the cache of encoded moments."""

import json

import numpy as np
import pytest
import torch

from ldmlab.data.images import open_dataset, to_float
from ldmlab.first_stage.autoencoder import build_autoencoder
from ldmlab.first_stage.latents import LatentStats, MirroredImages, encode_dataset, latent_stats, weights_hash
from ldmlab.first_stage.networks import AutoencoderConfig


@pytest.fixture(scope="module")
def first_stage():
    torch.manual_seed(0)
    config = AutoencoderConfig(f=4, z_channels=3, ch=8, ch_mult=(1, 1, 1), num_res_blocks=1, resolution=32,
                               norm_groups=4)
    return build_autoencoder(config).eval()


@pytest.fixture(scope="module")
def images():
    return open_dataset("scenes", size=32, num=12)


def test_statistics_are_those_of_app_g():
    """std over all entries of the batch, unbiased, as released: scale_factor is its inverse and cancels it."""
    z = 3 * torch.randn(50, 4, 8, 8, generator=torch.Generator().manual_seed(0)) + 1
    stats = latent_stats(z)
    assert stats.std[0] == pytest.approx(float(z.double().std()), rel=1e-9)
    assert stats.scale_factor[0] * stats.std[0] == pytest.approx(1)
    torch.testing.assert_close(stats.unscale(stats.scale(z)), z)


def test_channel_mode_scales_each_channel_to_unit_deviation():
    """Per-channel statistics make every channel's deviation 1; "none" leaves the latent alone."""
    z = torch.randn(40, 3, 4, 4) * torch.tensor([0.1, 1.0, 10.0])[:, None, None]
    scaled = latent_stats(z, "channel").scale(z)
    torch.testing.assert_close(scaled.movedim(1, 0).flatten(1).std(1), torch.ones(3), rtol=1e-5, atol=0)
    assert torch.equal(latent_stats(z, "none").scale(z), z)


def test_standard_error_covers_the_spread_of_the_estimate():
    """Over many data sets the estimated standard error is the spread of std, although pictures differ in contrast."""
    generator = torch.Generator().manual_seed(1)
    stds, errors = [], []
    for _ in range(300):
        contrast = 0.5 + torch.rand(64, 1, 1, 1, generator=generator)
        stats = latent_stats(contrast * torch.randn(64, 2, 4, 4, generator=generator))
        stds.append(stats.std[0])
        errors.append(stats.std_error[0])
    assert np.mean(errors) == pytest.approx(np.std(stds), rel=0.15)


def test_statistics_survive_json_and_refuse_nonsense():
    """What a checkpoint stores comes back equal; unknown modes and single pictures are named."""
    stats = latent_stats(torch.randn(4, 2, 2, 2), "channel")
    assert LatentStats.from_json(json.loads(json.dumps(stats.to_json()))) == stats
    with pytest.raises(ValueError, match="none, first_batch, dataset, channel; got 'batch'"):
        latent_stats(torch.randn(4, 2, 2, 2), "batch")
    with pytest.raises(ValueError, match="at least 2 pictures"):
        latent_stats(torch.randn(1, 2, 2, 2))


def test_cache_holds_the_moments_of_both_mirror_images(first_stage, images, tmp_path):
    """Index i is picture i and i + n its mirror image, as encoding on the spot would give, to float16."""
    latents = encode_dataset(first_stage, images, tmp_path, batch_size=5)
    assert len(latents) == 24 and latents.first_stage == weights_hash(first_stage)
    x = to_float(images.images([3, 7]))
    with torch.inference_mode():
        want = torch.cat([first_stage.moments(x[:1]), first_stage.moments(x[1:].flip(3))])
    batch = latents.__getitems__([3, 12 + 7])
    torch.testing.assert_close(batch["moments"], want, rtol=2e-3, atol=2e-3)
    assert batch["label"].tolist() == images.labels([3, 7]).tolist()


def test_interrupted_encoding_continues_and_is_not_done_twice(first_stage, images, tmp_path, monkeypatch):
    """Stopped half-way, the next call encodes the rest; a finished cache is only opened."""
    calls = []
    real = type(first_stage).moments

    def counted(self, x):
        calls.append(len(x))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, x)

    monkeypatch.setattr("ldmlab.first_stage.rows_file.BLOCK", 8)
    monkeypatch.setattr(type(first_stage), "moments", counted)
    with pytest.raises(KeyboardInterrupt):
        encode_dataset(first_stage, images, tmp_path, batch_size=8)
    calls.extend([0] * 4)  # no further interrupt
    resumed = encode_dataset(first_stage, images, tmp_path, batch_size=8)
    assert calls[-2:] == [1, 8], "one picture for the shape, and only the last third is encoded"
    assert list(tmp_path.glob("latents-*/.*.part")) == []
    monkeypatch.setattr(type(first_stage), "moments", real)
    fresh = encode_dataset(first_stage, images, tmp_path / "fresh", batch_size=8)
    np.testing.assert_array_equal(resumed.moments, fresh.moments)
    monkeypatch.setattr(type(first_stage), "moments", lambda *_: pytest.fail("encoded again"))
    assert len(encode_dataset(first_stage, images, tmp_path)) == 24


def test_cache_is_keyed_by_weights_and_data(first_stage, images, tmp_path):
    """Another first stage or other pictures never meet a cache that is not theirs."""
    encode_dataset(first_stage, images, tmp_path)
    torch.manual_seed(1)
    encode_dataset(build_autoencoder(first_stage.config).eval(), images, tmp_path)
    encode_dataset(first_stage, open_dataset("scenes", size=32, num=11), tmp_path)
    assert len(list(tmp_path.glob("latents-*"))) == 3


def test_mirrored_images_flip_left_and_right(images):
    """The mirror image is the picture flipped along its width, with the same label."""
    batch = MirroredImages(images).__getitems__([2, 14])
    assert torch.equal(batch["image"][0].flip(2), batch["image"][1]) and batch["label"][0] == batch["label"][1]
