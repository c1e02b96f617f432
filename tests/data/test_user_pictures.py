"""Pictures of one's own: opened as they are seen, masks that are masks, padding that comes off again."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from ldmlab.data.user_pictures import decode_bytes, find_pairs, open_mask, open_picture, pad_to_multiple

from .test_images import encoded, picture, write_tar


def disc(size: int = 64, radius: int = 20) -> Image.Image:
    """A white disc on black, its border smoothed as by a painting program."""
    large = Image.new("L", (4 * size, 4 * size))
    middle, r = 2 * size, 4 * radius
    ImageDraw.Draw(large).ellipse((middle - r, middle - r, middle + r, middle + r), fill=255)
    return large.resize((size, size), Image.Resampling.BICUBIC)


def test_a_picture_keeps_its_size_and_is_upright(tmp_path):
    """From a file and from the bytes of an upload: black is -1, white 1, rotated as its EXIF says."""
    image = Image.new("RGB", (48, 20))
    image.paste((255, 255, 255), (0, 0, 48, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    image.save(tmp_path / "a.png", exif=exif)
    x = open_picture(tmp_path / "a.png")
    assert x.shape == (3, 48, 20) and (x[:, :, 10:] == 1).all() and (x[:, :, :10] == -1).all()
    raw = (tmp_path / "a.png").read_bytes()
    assert torch.equal(x, decode_bytes(memoryview(raw))) and torch.equal(x, open_picture(raw))


def test_transparency_is_white():
    """Of a picture without a background, the background is white."""
    assert (decode_bytes(encoded(Image.new("RGBA", (9, 9), (0, 0, 0, 0)))) == 1).all()


def test_what_is_no_picture_is_refused(tmp_path):
    """With its name and the reason."""
    (tmp_path / "notes.png").write_text("hello")
    (tmp_path / "torn.png").write_bytes(encoded(picture(0, 64, 64))[:3000])
    reasons = {"notes.png": "is not a picture", "torn.png": "is damaged", "x.png": "cannot be read: No such"}
    for name, reason in reasons.items():
        with pytest.raises(ValueError, match=f"{name} {reason}"):
            open_picture(tmp_path / name)
    with pytest.raises(ValueError, match="the upload is not a picture"):
        decode_bytes(b"hello")


@pytest.mark.parametrize("kind", ["L", "RGB", "1", "P", "JPEG", "RGBA"])
def test_masks_of_every_kind(kind):
    """White is the hole, in grey, colour, a bitmap or a palette, smoothed or compressed."""
    image = disc()
    raw = encoded(image, "JPEG", quality=70) if kind == "JPEG" else encoded(image.convert(kind))
    mask = open_mask(raw, (64, 64))
    expected = torch.from_numpy(np.asarray(image) >= 128)[None].float()
    assert mask.shape == (1, 64, 64) and set(mask.unique().tolist()) == {0, 1}
    assert (mask - expected).abs().mean() < 0.01


def grey(low: int, high: int) -> Image.Image:
    return Image.fromarray(np.tile(np.linspace(low, high, 64), (64, 1)).astype(np.uint8))


WRONG_MASKS = {
    "a ramp": (grey(0, 255), "is not binary"),
    "a photograph": (picture(0, 64, 64).convert("L"), "is not binary: .* levels from 3"),
    "half grey": (disc().point(lambda v: v // 255 * 130), "is not binary: .* to 130"),
    "all black": (grey(0, 0), "has no hole: its levels go up to 0"),
    "ones for holes": (disc().point(lambda v: v // 128), "has no hole: its levels go up to 1, and a hole is white"),
    "colours": (picture(0, 64, 64), "has colours"),
    "painted in alpha": (Image.new("RGBA", (64, 64), (0, 0, 0, 0)), "is transparent in places"),
    "another size": (disc(60), "is 60 x 60, its picture 64 x 64"),
}


@pytest.mark.parametrize("what", WRONG_MASKS)
def test_what_is_no_mask_is_refused(what):
    """With what it holds and what is accepted."""
    image, message = WRONG_MASKS[what]
    with pytest.raises(ValueError, match=f"mask the upload {message}"):
        open_mask(encoded(image), (64, 64))


def test_pairs_of_a_folder_a_tar_and_a_picture(tmp_path):
    """Each picture with its mask or None, the same from all three."""
    names = {"a.png": picture(0, 64, 64), "a_mask.png": disc(), "b.png": picture(1, 64, 64), "sub/c.png": picture(2)}
    folder = tmp_path / "own"
    (folder / "sub").mkdir(parents=True)
    for name, image in names.items():
        image.save(folder / name)
    tar = write_tar(tmp_path / "own.tar", {name: encoded(image) for name, image in names.items()})
    for path in (folder, tar):
        pairs = find_pairs(path)
        found = [(p.name, m and m.name) for p, m in pairs]
        assert found == [("a.png", "a_mask.png"), ("b.png", None), ("sub/c.png", None)]
        x = open_picture(pairs[0][0])
        assert torch.equal(x, open_picture(encoded(names["a.png"])))
        assert open_mask(pairs[0][1], x.shape[1:]).mean() > 0.2
    for name, mask in (("a.png", "a_mask.png"), ("b.png", None)):
        ((one, its_mask),) = find_pairs(folder / name)
        assert (one.name, its_mask and its_mask.name) == (name, mask)


def test_pairs_that_are_none(tmp_path):
    """Nothing there, nothing in it, and a mask whose picture is missing."""
    with pytest.raises(ValueError, match="does not exist; give a picture, a folder"):
        find_pairs(tmp_path / "x.png")
    with pytest.raises(ValueError, match="holds no picture"):
        find_pairs(tmp_path)
    picture(0).save(tmp_path / "a.png")
    disc().save(tmp_path / "b_mask.png")
    with pytest.raises(ValueError, match=r"b_mask.png .* masks without a picture"):
        find_pairs(tmp_path)


@pytest.mark.parametrize("size", [(33, 50), (32, 48), (16, 31)])
def test_padding_comes_off_again(size):
    """Sides become multiples, the picture is unmoved, its continuation is its mirror image; said where it is done."""
    x = torch.rand(2, 3, *size) * 2 - 1
    padded, padding = pad_to_multiple(x, 16)
    h, w = padded.shape[2:]
    assert h % 16 == w % 16 == 0 and 0 <= h - size[0] < 16 and 0 <= w - size[1] < 16
    assert torch.equal(padding.crop(padded), x)
    assert torch.equal(padded[..., : size[0], size[1] :], x[..., -(w - size[1]) - 1 : -1].flip(-1)[..., : w - size[1]])
    assert str(padding) == ("" if size == (32, 48) else f"padded from {size[0]} x {size[1]} to {h} x {w}, cropped back")
    enlarged = padded.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert torch.equal(padding.crop(enlarged), x.repeat_interleave(4, 2).repeat_interleave(4, 3))


def test_padding_of_a_single_picture_or_mask():
    """With or without a batch, of any number of channels."""
    padded, padding = pad_to_multiple(torch.ones(1, 20, 20), 8)
    assert padded.shape == (1, 24, 24) and (padded == 1).all() and padding.crop(padded).shape == (1, 20, 20)


def test_what_cannot_be_padded_or_cropped():
    """A picture smaller than the stride; a result of another size than what was padded."""
    with pytest.raises(ValueError, match=r"15 x 40 is smaller than the model's stride: sides are 16 or more"):
        pad_to_multiple(torch.zeros(1, 3, 15, 40), 16)
    _, padding = pad_to_multiple(torch.zeros(1, 3, 20, 40), 16)
    with pytest.raises(ValueError, match="cannot crop 20 x 40: the padded size is 32 x 48"):
        padding.crop(torch.zeros(1, 3, 20, 40))
