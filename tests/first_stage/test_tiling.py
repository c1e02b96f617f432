"""Tiles: nothing changes for small pictures, seams fade, local networks are met exactly, bad sizes are named."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ldmlab.first_stage.autoencoder import build_autoencoder
from ldmlab.first_stage.networks import AutoencoderConfig
from ldmlab.first_stage.tiling import Tiled, spans


def model(f: int = 4, reg: str = "kl", local: bool = False) -> nn.Module:
    """A first stage of a few thousand parameters; `local` ones have neither GroupNorm's statistics nor attention."""
    torch.manual_seed(0)
    config = AutoencoderConfig(f=f, z_channels=3, reg=reg, ch=8, ch_mult=(1,) * f.bit_length(), num_res_blocks=1,
                               norm_groups=4, resolution=32, num_codes=16, mid_attn=not local)
    first_stage = build_autoencoder(config)
    if local:
        for module in [m for m in first_stage.modules() if any(isinstance(c, nn.GroupNorm) for c in m.children())]:
            for name, child in list(module.named_children()):
                if isinstance(child, nn.GroupNorm):
                    setattr(module, name, nn.Identity())
    return first_stage.eval().requires_grad_(False)


def picture(height: int, width: int, n: int = 1) -> torch.Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(("size", "tile", "overlap", "scale"), [
    (64, 16, 4, 1), (65, 16, 8, 4), (17, 16, 4, 8), (33, 4, 1, 2), (40, 8, 0, 1), (40, 8, 7, 2), (5, 8, 4, 2)])
def test_tiles_cover_a_side_and_their_weights_sum_to_one(size, tile, overlap, scale):
    """Whatever the sizes: no cell is left out, neighbours share what was asked, and no brightness is won or lost."""
    found = spans(size, tile, overlap, scale)
    total = torch.zeros(size * scale)
    for span in found:
        total[span.at(scale)] += span.weight
    torch.testing.assert_close(total, torch.ones(size * scale))
    assert found[0].start == 0 and found[-1].stop == size
    assert all(b.start > a.start and a.stop - b.start >= overlap for a, b in zip(found, found[1:], strict=False))


def test_a_tile_fades_out_smoothly():
    """No step in a tile's weight: its border, where zeros were padded, hardly counts; the middle counts in full."""
    weight = spans(80, 32, 8, 4)[1].weight
    assert weight[0] < 0.01 and weight[-1] < 0.01 and weight[len(weight) // 2] == 1
    assert weight.diff().abs().max() < 1.1 * torch.pi / 2 / 32  # the steepest slope of sin^2 over 32 pixels


@pytest.mark.parametrize(("f", "reg"), [(4, "kl"), (4, "vq"), (1, "none")])
def test_small_pictures_pass_through_untouched(f, reg):
    """Up to the tile's size the results are the first stage's own, bit for bit; at f = 1 they are at any size."""
    first_stage = model(f, reg)
    tiled, side = Tiled(first_stage, tile=32), 96 if reg == "none" else 32
    x = picture(side, side - 4, n=2)
    assert tiled.num_tiles(*x.shape[2:]) == 1
    assert torch.equal(tiled.moments(x), first_stage.moments(x))
    z = first_stage.sample_latent(first_stage.moments(x), torch.Generator().manual_seed(1))
    assert torch.equal(tiled.sample_latent(tiled.moments(x), torch.Generator().manual_seed(1)), z)
    assert torch.equal(tiled.decode(z), first_stage.decode(z))


@pytest.mark.parametrize("reg", ["kl", "vq"])
def test_local_networks_are_met_exactly_inside_tiles(reg):
    """Without GroupNorm and attention only zeros at borders differ: where one tile counts alone, far from them, none.

    This pins where tiles are cut and put, to the pixel, in both directions, on a picture that is not square.
    """
    first_stage = model(2, reg, local=True)
    tiled = Tiled(first_stage, tile=64, overlap=32)
    x = picture(64, 96)  # two tiles: columns 0..64 and 32..96
    z, z_tiled = first_stage.moments(x), tiled.moments(x)
    assert z_tiled.shape == z.shape and tiled.num_tiles(64, 96) == 2
    for part in (z, z_tiled):
        assert part.std() > 0.01
    torch.testing.assert_close(z_tiled[..., :16], z[..., :16])
    torch.testing.assert_close(z_tiled[..., -16:], z[..., -16:])
    z = first_stage.sample_latent(z, torch.Generator().manual_seed(1))
    x_rec, x_tiled = first_stage.decode(z), tiled.decode(z)
    torch.testing.assert_close(x_tiled[..., :32], x_rec[..., :32])
    torch.testing.assert_close(x_tiled[..., -32:], x_rec[..., -32:])


def test_overlap_removes_the_seam():
    """The zeros around a tile show where tiles meet without an overlap; with one, a tenth of that is left or less."""
    first_stage = model(4, local=True)
    z = torch.ones(1, 3, 8, 24)
    whole = first_stage.decode(z)
    worst = [float((Tiled(first_stage, 32, overlap).decode(z) - whole).abs().max()) for overlap in (0, 16)]
    assert worst[1] < 0.1 * worst[0], worst


def test_posteriors_and_codes_keep_their_kinds():
    """A large picture gives the posterior of KL, and of VQ a z that is still to be quantized, or already is."""
    x = picture(64, 48, n=2)
    posterior = Tiled(model(4), tile=32).encode(x)
    assert posterior.mean.shape == (2, 3, 16, 12) and posterior.kl().shape == (2,)
    vq = Tiled(model(4, "vq"), tile=32)
    z = vq.encode(x)
    z_q = vq.quantizer.embed(vq.quantizer.nearest(z))
    assert z.shape == (2, 3, 16, 12) and not torch.equal(z, z_q)
    torch.testing.assert_close(vq.decode(z), vq.decode(z_q, quantize=False))


def test_batches_of_tiles_do_not_matter():
    """Each picture of a batch is tiled for itself: alone it gives the same."""
    tiled, x = Tiled(model(4), tile=32), picture(64, 96, n=2)
    torch.testing.assert_close(tiled.moments(x)[1:], tiled.moments(x[1:]))


def test_the_first_stage_never_sees_more_than_a_tile():
    """Bounded memory: no input larger than a tile, and no more pixels at once than 256 x 256, reach the networks."""
    first_stage, seen, told = model(4), [], []
    first_stage.decoder.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    tiled = Tiled(first_stage, tile=64, overlap=32, progress=lambda done, total: told.append((done, total)))
    tiled.decode(torch.zeros(1, 3, 128, 64))
    assert all(shape[2:] == (16, 16) and shape[0] * 64 * 64 <= 256 * 256 for shape in seen)
    num = tiled.num_tiles(512, 256)
    assert sum(shape[0] for shape in seen) == num and told[-1] == (num, num)


def test_gradients_pass_through_tiles():
    """Guidance by a picture differentiates the decoder, tiled or not: every latent cell counts."""
    z = torch.randn(1, 3, 8, 16).requires_grad_()
    Tiled(model(4), tile=32).decode(z).square().sum().backward()
    assert (z.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize(("f", "resolution", "overlap"), [(4, 32, 24), (32, 32, 0), (8, 256, 64), (2, 256, 64)])
def test_defaults_follow_the_training_size(f, resolution, overlap):
    """The tile is the training size; the overlap a quarter of it, 8 cells at least, three quarters at most."""
    tiled = Tiled(build_autoencoder(replace(model(f).config, resolution=resolution)))
    assert (tiled.tile, tiled.overlap) == (resolution, overlap)


@pytest.mark.parametrize(("tile", "overlap", "message"), [
    (30, 8, "divisible by f = 4"), (32, 6, "divisible by f = 4"), (0, 0, "divisible"), (32, 32, "less than tile=32"),
    (32, -4, "at least 0")])
def test_impossible_tiles_are_refused(tile, overlap, message):
    """Sizes that f does not divide, and tiles that would not advance, are named."""
    with pytest.raises(ValueError, match=message):
        Tiled(model(4), tile=tile, overlap=overlap)


def test_pictures_that_do_not_fit_are_refused():
    """Large pictures are checked as small ones are: sides, channels, range."""
    tiled = Tiled(model(4), tile=32)
    with pytest.raises(ValueError, match="divisible by f = 4"):
        tiled.encode(picture(66, 64))
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        tiled.encode(picture(64, 64) * 3)
    with pytest.raises(ValueError, match="latents must be"):
        tiled.decode(torch.zeros(1, 4, 64, 64))
