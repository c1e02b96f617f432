"""Hostile and foreign pictures: bounded memory, no hanging, one rule of levels, and errors that name the file."""

import os
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from made_files import encoded, lay_out, picture
from PIL import Image, features

from ldmlab.data import decode as decoding
from ldmlab.data import formats
from ldmlab.data.annotations.frames import Frame
from ldmlab.data.annotations.label_maps import map_labels
from ldmlab.data.decode import center_crop, decode, open_rgb
from ldmlab.data.formats import decoded_bytes, open_picture_file, readable_suffixes, unreadable_suffixes
from ldmlab.data.images import open_dataset
from ldmlab.data.user_pictures import open_mask, open_picture

GOOD, GREY = encoded(picture()), encoded(picture().convert("L"))


def png(width: int, height: int, depth: int, colour: int, rows: list[bytes], transparent: bytes = b"") -> bytes:
    """A PNG of any depth, also with fewer rows than its header states."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    clear = chunk(b"tRNS", transparent) if transparent else b""
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + clear + pixels + chunk(b"IEND", b"")


# --- Bounds
TOO_LARGE = {"16-bit": (13_000, 16, 0), "with alpha": (13_000, 8, 6), "two of alpha": (12_000, 16, 6)}


@pytest.mark.parametrize("what", TOO_LARGE)
def test_a_picture_over_the_bound_is_refused_by_its_header(what, tmp_path):
    """File, size, limit and cure are named, and no pixel is decoded: the file has none."""
    side, depth, colour = TOO_LARGE[what]
    raw = png(side, side, depth, colour, [])
    for call in (lambda: decode(raw, 256, name="a.png"), lambda: open_rgb(raw, "a.png"),
                 lambda: map_labels(raw, "a.png") if colour == 0 else decode(raw, 8, name="a.png")):
        with pytest.raises(ValueError, match=rf"a.png is too large: {side} x {side} pixels of PNG.* limit is "
                                             r"1,073,741,824; make it smaller"):
            call()


def test_what_a_bomb_says_is_refused(tmp_path):
    """Beyond Pillow's own bound, too, the file is named."""
    with pytest.raises(ValueError, match="a.png is too large: .*make it smaller"):
        decode(png(60_000, 60_000, 1, 0, []), 256, name="a.png")


COSTS = {  # bytes a pixel at the peak of decoding, as measured
    "RGB": (encoded(picture(0, 100, 100)), 4), "RGBA": (encoded(picture(0, 100, 100).convert("RGBA")), 8),
    "L": (encoded(picture(0, 100, 100).convert("L")), 5),
    "16-bit": (encoded(Image.fromarray(np.zeros((100, 100), np.uint16))), 8),
    "WebP": (encoded(picture(0, 100, 100), "WEBP"), 16),
    "progressive": (encoded(picture(0, 100, 100), "JPEG", progressive=True), 10),
    "one strip": (encoded(picture(0, 100, 100), "TIFF", compression="tiff_lzw", strip_size=1 << 20), 7),
}


@pytest.mark.parametrize("what", COSTS)
def test_memory_is_counted_by_what_decoding_takes(what, monkeypatch):
    """By mode and format; a byte below that the picture is refused."""
    raw, cost = COSTS[what]
    assert decoded_bytes(open_picture_file(raw, "x")) == cost * 100 * 100
    monkeypatch.setattr(formats, "MAX_DECODED_BYTES", cost * 100 * 100 - 1)
    with pytest.raises(ValueError, match="too large"):
        open_rgb(raw, "x")


def test_a_jpeg_over_the_bound_is_decoded_at_half_its_scale(monkeypatch):
    """Where that leaves both sides at the size that is asked for."""
    x, y = np.meshgrid(np.arange(400), np.arange(300))
    raw = encoded(Image.fromarray(np.stack([x * 0.6, y * 0.8, (x + y) * 0.3], 2).astype(np.uint8)), "JPEG", quality=95)
    whole = decode(raw, 64).astype(int)
    monkeypatch.setattr(formats, "MAX_DECODED_BYTES", 4 * 400 * 300)
    assert np.abs(decode(raw, 64) - whole).max() <= 6
    with pytest.raises(ValueError, match="too large"):
        decode(raw, 200)


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (3, 6500), (6500, 3)])
def test_extreme_pictures_are_cropped_before_they_are_enlarged(size, monkeypatch):
    """Nothing larger than the square is made of them; levels are those of the whole picture, enlarged."""
    made, resize = [], Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, to, *rest: made.append(to) or resize(self, to, *rest))
    along = (-1, 1) if size[1] > size[0] else (1, -1)
    ramp = np.broadcast_to(np.linspace(0, 255, max(size)).reshape(along), size[::-1])
    for decoder in ("pil", "torch"):
        x = decode(encoded(Image.fromarray(ramp.astype(np.uint8))), 64, decoder)
        assert max(w * h for w, h in made) <= 64 * 64
        assert x.shape == (3, 64, 64) and np.abs(x.astype(int) - 128).max() <= 3


@pytest.mark.parametrize("aspect", [1, 1.4, 3, 12, 31.9])
def test_other_pictures_keep_their_pixels(aspect, monkeypatch):
    """Up to 32 times as long as wide they are resized, then cropped; the way of longer ones gives nearly the same."""
    for k, (width, height) in enumerate(((round(40 * aspect), 40), (40, round(40 * aspect)))):
        image = picture(k, width, height)
        for size in (24, 64):
            scale = size / 40
            whole = image.resize((max(size, round(width * scale)), max(size, round(height * scale))), 3)
            left, top = (whole.width - size) // 2, (whole.height - size) // 2
            expected = np.asarray(whole.crop((left, top, left + size, top + size))).transpose(2, 0, 1)
            np.testing.assert_array_equal(decode(encoded(image), size), expected)
            x, y = np.meshgrid(np.linspace(0, 9, width), np.linspace(0, 9, height))
            smooth = Image.fromarray((127 + 60 * np.sin(x) + 60 * np.cos(y)).astype(np.uint8))
            expected = center_crop(smooth, size).astype(int)
            with monkeypatch.context() as patched:
                patched.setattr(decoding, "EXTREME", 0.5)
                assert np.abs(center_crop(smooth, size) - expected).max() <= 1


@pytest.mark.parametrize("kind", ["FIFO", "device", "folder", "missing"])
def test_what_is_no_file_neither_hangs_nor_ends_a_set(kind, tmp_path):
    """A FIFO, an endless device, a folder, a dangling link: named, and the other pictures are read."""
    root = lay_out(tmp_path / "set", {f"{k}.png": GOOD for k in range(9)})
    path = root / "x.png"
    make = {"FIFO": lambda: os.mkfifo(path), "device": lambda: path.symlink_to("/dev/zero"),
            "folder": lambda: path.mkdir(), "missing": lambda: path.symlink_to("nowhere")}
    make[kind]()
    with pytest.raises(ValueError, match="x.png (is no regular file|cannot be read)"):
        open_picture(path)
    with pytest.raises((ValueError, OSError)):
        Frame.of_file(str(path), 0, 100)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        data = [open_dataset(root, size=8, split=split) for split in ("train", "validation")]
        assert sum(map(len, data)) == 9 and all(len(d.annotations()) == len(d) for d in data)
    named = [name for d in data for name in d.skipped]
    assert not named or named[0].startswith("x.png (") and any("x.png" in str(w.message) for w in said)


def test_a_file_of_endless_length_is_not_read(tmp_path):
    """A sparse file of a terabyte takes no memory."""
    with open(tmp_path / "x.png", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match=r"x.png has 1,099,511,627,776 bytes, and the limit .*536,870,912; make it"):
        open_picture(tmp_path / "x.png")


# --- Errors
@pytest.mark.parametrize("error", [RuntimeError, SyntaxError, TypeError, struct.error, OSError, EOFError, IndexError,
                                   KeyError, ZeroDivisionError, RecursionError, OverflowError, AttributeError])
@pytest.mark.parametrize("at", ["open", "load"])
def test_every_error_of_a_decoder_names_the_file(error, at, monkeypatch, tmp_path):
    """Whatever Pillow or a plug-in lets out."""
    def fail(*_, **__):
        raise error("as of <object at 0x7f00>")

    if at == "open":
        monkeypatch.setattr(Image, "open", fail)
    else:
        monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load_prepare", fail)
    (tmp_path / "a.png").write_bytes(GOOD)
    for call in (lambda: decode(GOOD, 8, name="a.png"), lambda: open_picture(tmp_path / "a.png"),
                 lambda: map_labels(GREY, "a.png"), lambda: open_mask(tmp_path / "a.png", (16, 20))):
        with pytest.raises(ValueError, match=r"a.png is damaged: '?as of <object>'?$"):
            call()


BROKEN = {
    "AVIF": b"\0\0\0\x1cftypavif" + b"\0" * 100, "HEIC": b"\0\0\0\x18ftypheic" + b"0" * 200,
    "HTML": b"<html>404</html>",
    "nothing": b"", "one byte": b"\x89", "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "WebP": encoded(picture(), "WEBP")[:60], "TIFF": b"II*\0\x08\0\0\0\xff\xff", "PNG": GOOD[:40],
    "git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_no_picture_is_named(what):
    """In words that say what it is, where that is known; other programs are never run to find out."""
    reason = "is of the format HEIC|is damaged" if what == "HEIC" else "is (not a picture|damaged)"
    for call in (lambda: decode(BROKEN[what], 8, name="a b.jpg"), lambda: open_rgb(BROKEN[what], "a b.jpg")):
        with pytest.raises(ValueError, match=f"^a b.jpg ({reason})"):
            call()


# --- EXIF
def with_orientation(kind: int, value: bytes, count: int = 1) -> bytes:
    """A JPEG of 24 x 16 whose orientation has this type."""
    entry = struct.pack("<HHHI", 1, 0x112, kind, count) + value
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + entry + struct.pack("<I", 0)
    base = encoded(picture(0, 24, 16), "JPEG")
    return base[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + base[2:]


ORIENTATIONS = {  # EXIF type, value -> orientation
    "6": (3, struct.pack("<HH", 6, 0), 6), "text": (2, b"6\0\0\0", 1), "bytes": (1, b"\x06\0\0\0", 1),
    "undefined": (7, b"\x06\0\0\0", 1), "0": (3, struct.pack("<HH", 0, 0), 1), "9": (3, struct.pack("<HH", 9, 0), 1),
    "float": (11, struct.pack("<f", 6.0), 6), "half": (11, struct.pack("<f", 6.5), 1),
    "rational beyond the end": (5, struct.pack("<I", 9999), 1), "signed": (8, struct.pack("<hh", -6, 0), 1),
}


@pytest.mark.parametrize("what", ORIENTATIONS)
@pytest.mark.filterwarnings("ignore")
def test_orientations_of_any_type(what, tmp_path):
    """What is no orientation is upright; pixels, header and annotations agree."""
    kind, value, orientation = ORIENTATIONS[what]
    raw = with_orientation(kind, value)
    (tmp_path / "x.jpg").write_bytes(raw)
    assert Frame.of_file(str(tmp_path / "x.jpg"), 0, len(raw)) == Frame(24, 16, orientation)
    assert open_rgb(raw, "x").size == Frame(24, 16, orientation).upright
    lay_out(tmp_path, {"y.jpg": raw, "z.jpg": raw})
    assert all(len(d.annotations()) == len(d) for d in (open_dataset(tmp_path, size=8, split=s)
                                                         for s in ("train", "validation")))


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "WEBP", "JPEG"])
def test_headers_and_pixels_agree_on_what_is_upright(kind, tmp_path):
    """Also for TIFF, whose header Pillow turns by itself."""
    exif = Image.Exif()
    exif[0x0112] = 8
    raw = encoded(picture(0, 24, 16), kind, exif=exif)
    (tmp_path / "x").write_bytes(raw)
    assert Frame.of_file(str(tmp_path / "x"), 0, len(raw)) == Frame(24, 16, 8) and open_rgb(raw, "x").size == (16, 24)


# --- Levels
def floats(*levels: float) -> bytes:
    return encoded(Image.fromarray(np.resize(np.array(levels, np.float32), (4, 4))), "TIFF")


LEVELS = {
    "0 to 1": (floats(0, 0.5, 1), [0, 128, 255]), "dark": (floats(0, 0.001), [0, 0]),
    "overshoot": (floats(0, 0.5, 1.02), [0, 128, 255]), "undershoot": (floats(-0.05, 0.5), [0, 128]),
    "16-bit, dark": (encoded(Image.fromarray(np.full((4, 4), 200, np.uint16))), [1]),
    "16-bit TIFF": (encoded(Image.fromarray(np.full((4, 4), 65535, np.uint16)), "TIFF"), [255]),
    "16-bit PGM, dark": (encoded(Image.fromarray(np.full((4, 4), 200, np.uint16)), "PPM"), [1]),
}


@pytest.mark.parametrize("what", LEVELS)
def test_levels_have_one_rule_for_a_set(what):
    """They do not depend on the highest level of a file."""
    raw, expected = LEVELS[what]
    assert decode(raw, 4)[0].ravel()[: len(expected)].tolist() == expected


REFUSED = {
    "0 to 255": (floats(0, 255), "floats from 0 to 255"), "0 to 65535": (floats(0, 65535), "floats from 0 to 6.55"),
    "-1 to 1": (floats(-1, 1), "floats from -1 to 1"), "NaN": (floats(0, np.nan), "floats from nan to nan"),
    "inf": (floats(0, np.inf), "floats from 0 to inf"), "1.2": (floats(0, 1.2), "floats from 0 to 1.2"),
    "32-bit": (encoded(Image.fromarray(np.full((4, 4), 300, np.int32)), "TIFF"), "integers of 32 bits"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_levels_outside_of_the_rule_are_refused(what, tmp_path):
    """By file, with what was found and the cure, also where the whole set is so."""
    raw, said = REFUSED[what]
    with pytest.raises(ValueError, match=rf"a.tif has {said}.*save"):
        decode(raw, 4, name="a.tif")
    root = lay_out(tmp_path, {f"{k}.tif": raw for k in range(9)})
    with pytest.raises(ValueError, match=rf"\.tif \(has {said}.*repair the files, or remove them"):
        len(open_dataset(root, size=4))


CLEAR = {  # two pixels, of which the first is transparent
    "grey, 16 bits": png(2, 1, 16, 0, [struct.pack(">2H", 1000, 2000)], struct.pack(">H", 1000)),
    "grey, 8 bits": png(2, 1, 8, 0, [bytes([10, 8])], struct.pack(">H", 10)),
    "grey, 4 bits": png(2, 1, 4, 0, [bytes([0x30])], struct.pack(">H", 3)),
    "colour, 8 bits": png(2, 1, 8, 2, [bytes([9, 8, 7, 0, 0, 0])], struct.pack(">3H", 9, 8, 7)),
    "colour, 16 bits": png(2, 1, 16, 2, [struct.pack(">6H", 3000, 8, 7, 0, 0, 0)], struct.pack(">3H", 3000, 8, 7)),
}


@pytest.mark.parametrize("what", CLEAR)
def test_transparent_colours_of_every_depth(what):
    """The background shows where the file says so, and only there; as a mask it is refused."""
    first, second = np.asarray(open_rgb(CLEAR[what], "x"))[0].tolist()
    assert first == [255, 255, 255] and max(second) < 12
    with pytest.raises(ValueError, match="mask the upload is transparent in places"):
        open_mask(CLEAR[what], (1, 2))


# --- Label maps
def test_lossy_label_maps_are_refused_by_content():
    """A JPEG called .png would give labels that nobody drew."""
    labels = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    lossy = {"JPEG": encoded(labels, "JPEG"), "TIFF with JPEG inside": encoded(labels, "TIFF", compression="jpeg")}
    if features.check("jpg_2000"):
        lossy["JPEG2000"] = encoded(labels, "JPEG2000")
    for what, raw in lossy.items():
        with pytest.raises(ValueError, match=f"label map a.png is {what} in content, .*save maps as PNG"):
            map_labels(raw, "a.png")
    for kind in ("PNG", "BMP", "GIF", "TIFF", "PPM"):
        assert np.array_equal(map_labels(encoded(labels, kind), "a.png"), np.asarray(labels)), kind


def test_labels_of_few_bits_are_not_stretched():
    """Label 3 of a PNG of 4 bits is 3, and not 51."""
    assert map_labels(png(2, 1, 4, 0, [bytes([0x3F])]), "x").tolist() == [[3, 15]]
    assert map_labels(png(2, 1, 2, 0, [bytes([0b11010000])]), "x").tolist() == [[3, 1]]
    assert map_labels(png(2, 1, 1, 0, [bytes([0b10000000])]), "x").tolist() == [[1, 0]]


# --- Formats
def test_formats_are_asked_of_pillow(monkeypatch):
    """Each known suffix is readable, or has a cure; what is readable is read, under any name."""
    known = {s for suffixes in formats.SUFFIXES.values() for s in suffixes}
    assert set(readable_suffixes()) | set(unreadable_suffixes()) == known
    assert {".jpg", ".png", ".gif", ".bmp", ".tif", ".ppm"} <= set(readable_suffixes())
    for suffix, kind in ((".avif", "AVIF"), (".jp2", "JPEG2000"), (".webp", "WEBP")):
        if suffix in readable_suffixes():
            assert np.abs(decode(encoded(picture(0, 32, 32), kind), 8).astype(int)).max() > 0
    monkeypatch.setattr(formats, "_formats", lambda: ("PNG",))
    assert unreadable_suffixes()[".heic"] == "`pip install pillow-heif`" and ".jp2" in unreadable_suffixes()
    with pytest.raises(ValueError, match="x is of the format HEIC, .* `pip install pillow-heif`"):
        decode(b"\0\0\0\x18ftypheic" + b"0" * 200, 8, name="x")


def test_the_pixels_of_a_set_do_not_depend_on_the_door(tmp_path):
    """A set and `open_picture` convert alike."""
    lay_out(tmp_path, {f"{k}.png": CLEAR["grey, 16 bits"] for k in range(2)})
    x = open_dataset(tmp_path, size=1)[0]["image"]
    assert torch.equal(x.float() / 127.5 - 1, open_picture(tmp_path / "0.png")[:, :, :1]) or x.min() > 0
