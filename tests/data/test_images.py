"""Every kind of source and of picture file gives the same pixels, and damaged files are reported."""

import json
import os
import pickle
import struct
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
import torch
from made_files import encoded, picture, write_tar
from PIL import Image

from ldmlab.data.dataset_names import check_data_name, expand_shards
from ldmlab.data.decode import decode
from ldmlab.data.images import check_range, open_dataset, to_float, to_uint8


@pytest.fixture
def folder(tmp_path):
    """Twenty-four pictures in two classes."""
    root = tmp_path / "pets"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for k in range(12):
            (root / name / f"{k:02}.png").write_bytes(encoded(picture(k + 100 * (name == "dog"))))
    return root


def all_images(data) -> torch.Tensor:
    return data.images(range(len(data)))


def test_folder_and_tar_are_the_same_data(folder, tmp_path):
    """A tar of a folder gives the folder's pictures, order, classes and split."""
    members = {f"pets/{p.relative_to(folder)}": p.read_bytes() for p in sorted(folder.rglob("*.png"))}
    tar = write_tar(tmp_path / "pets.tar", dict(reversed(members.items())))
    for split in ("train", "validation"):
        a, b = open_dataset(folder, size=16, split=split), open_dataset(tar, size=16, split=split)
        assert torch.equal(all_images(a), all_images(b)) and torch.equal(a.labels(), b.labels())
        assert a.classes == b.classes == ("cat", "dog") and a.num_classes == 2
        assert a.name == "pets" and a.split == split and a[0]["image"].shape == (3, 16, 16)


def test_held_out_pictures_are_not_trained_on(folder):
    """Without a validation folder, about a tenth of the names is held out, the same on every machine."""
    train, held = open_dataset(folder, size=16), open_dataset(folder, size=16, split="validation")
    seen = {x.numpy().tobytes() for x in all_images(train)}
    assert 1 <= len(held) <= 6 and len(train) + len(held) == 24
    assert not any(x.numpy().tobytes() in seen for x in all_images(held))
    with pytest.raises(ValueError, match="no test split; it has train, validation"):
        open_dataset(folder, size=16, split="test")


def test_split_folders_are_used_where_they_are(tmp_path):
    """train/, val/ and test/ are splits, not classes."""
    for k, name in enumerate(("train/a", "train/b", "val/a", "val/b", "test/a")):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "x.png").write_bytes(encoded(picture(k)))
    sizes = [len(open_dataset(tmp_path, size=16, split=s)) for s in ("train", "validation", "test")]
    assert sizes == [2, 2, 1]
    assert open_dataset(tmp_path, size=16, split="test").classes == ("a", "b")


def test_pictures_without_classes(tmp_path):
    """A flat folder has label -1 and no classes."""
    for k in range(3):
        (tmp_path / f"{k}.png").write_bytes(encoded(picture(k)))
    data = open_dataset(tmp_path, size=16)
    assert data.classes is None and data.num_classes == 0 and {data[i]["label"] for i in range(len(data))} == {-1}


def test_maps_and_masks_are_no_pictures(tmp_path):
    """Label maps beside `images/` and masks beside their picture are left out."""
    for name in ("images/a.png", "images/b.png", "segmentations/a.png", "images/b_mask.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded(picture(0)))
    assert sum(len(open_dataset(tmp_path, size=16, split=s)) for s in ("train", "validation")) == 2


def test_webdataset_shards(tmp_path):
    """Shards by pattern or folder: classes from .cls or .json, order and number the same, keys may repeat."""
    for shard in range(3):
        members = {}
        for k in range(4):
            members[f"{k:04}.jpg"] = encoded(picture(10 * shard + k), "JPEG")
            members[f"{k:04}.cls" if shard else f"{k:04}.json"] = (
                str(k).encode() if shard else json.dumps({"label": k}).encode()
            )
        write_tar(tmp_path / f"part-{shard:03}.tar", members)
    by_brace = open_dataset(str(tmp_path / "part-{000..002}.tar"), size=16)
    by_star, by_folder = open_dataset(str(tmp_path / "*.tar"), size=16), open_dataset(tmp_path, size=16)
    assert torch.equal(all_images(by_brace), all_images(by_star)) and torch.equal(
        all_images(by_star), all_images(by_folder)
    )
    assert by_brace.num_classes == 4 and by_brace.classes is None
    assert len(by_brace) + len(open_dataset(tmp_path, size=16, split="validation")) == 12
    assert expand_shards(str(tmp_path / "part-{001,002}.tar")) == [str(tmp_path / f"part-00{k}.tar") for k in (1, 2)]


def test_shards_named_by_split(tmp_path):
    """train-*.tar and val-*.tar in one folder are splits."""
    write_tar(tmp_path / "train-0.tar", {f"{k}.png": encoded(picture(k)) for k in range(5)})
    write_tar(tmp_path / "val-0.tar", {f"{k}.png": encoded(picture(9 + k)) for k in range(2)})
    assert [len(open_dataset(tmp_path, size=16, split=s)) for s in ("train", "validation")] == [5, 2]


def modes():
    grey = np.tile(np.linspace(0, 255, 16), (16, 1))
    level = Image.fromarray(grey.astype(np.uint8))
    rgb = level.convert("RGB")
    clear = rgb.convert("RGBA")
    clear.putalpha(0)
    palette = rgb.quantize(64)
    see_through = Image.new("P", (16, 16), 0)
    see_through.putpalette([200, 0, 0, 0, 200, 0])
    deep = Image.fromarray((grey * 257).astype(np.uint16))
    white = np.full((16, 16), 255.0)
    return {
        "L": (encoded(level), grey),
        "1": (encoded(level.point(lambda v: 255 if v > 127 else 0).convert("1")), (grey > 127) * 255.0),
        "P": (encoded(palette), grey),
        "P, transparent": (encoded(see_through, transparency=0), white),
        "LA": (encoded(level.convert("LA")), grey),
        "RGBA": (encoded(clear), white),
        "RGB, transparent colour": (encoded(Image.new("RGB", (16, 16), (1, 2, 3)), transparency=(1, 2, 3)), white),
        "CMYK": (encoded(rgb.convert("CMYK"), "JPEG", quality=100), grey),
        "16-bit PNG": (encoded(deep), grey),
        "16-bit TIFF": (encoded(deep, "TIFF"), grey),
        "float TIFF": (encoded(Image.fromarray((grey / 255).astype(np.float32)), "TIFF"), grey),
        "GIF": (encoded(palette, "GIF"), grey),
        "WebP": (encoded(rgb, "WEBP", lossless=True), grey),
    }


@pytest.mark.parametrize("mode", modes())
def test_every_mode_is_read_right(mode, tmp_path):
    """The same grey ramp (or white, where all is transparent) comes out of every kind of file."""
    data, expected = modes()[mode]
    for k in range(2):
        (tmp_path / f"{k}.{'tif' if 'TIFF' in mode else 'png'}").write_bytes(data)
    x = open_dataset(tmp_path, size=16)[0]["image"].numpy().astype(float)
    np.testing.assert_allclose(x, np.broadcast_to(expected, x.shape), atol=5)


def test_exif_rotation_is_applied(tmp_path):
    """A picture stored lying down and marked so is read upright."""
    image = Image.new("RGB", (32, 32), "black")
    image.paste((255, 255, 255), (0, 0, 32, 16))  # upper half white
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    for k in range(2):
        image.save(tmp_path / f"{k}.jpg", exif=exif)
    x = open_dataset(tmp_path, size=32)[0]["image"].float()
    assert x[:, :, 20:].mean() > 240 and x[:, :, :12].mean() < 15  # white is now on the right


def jpeg(image: Image.Image, **options) -> bytes:
    return encoded(image, "JPEG", quality=95, **options)


def stored(turned: int) -> bytes:
    """A smooth picture, stored as EXIF orientation `turned` says."""
    y, x = np.mgrid[:60, :90]
    exif = Image.Exif()
    exif[0x0112] = turned
    return jpeg(Image.fromarray(np.stack([x * 2, y * 4, x + y], 2).astype(np.uint8)), exif=exif)


@pytest.mark.parametrize("decoder", ["pil-draft", "torch"])
@pytest.mark.parametrize("turned", range(1, 9))
def test_a_quick_decoder_shows_the_same_picture(decoder, turned):
    """Upright, the same square: within a level by torch, and what a draft at half the size keeps."""
    raw = stored(turned)
    for size in (24, 32, 60, 64):
        given, expected = (decode(raw, size, name).astype(int) for name in (decoder, "pil"))
        assert np.abs(given - expected).max() <= (1 if decoder == "torch" else 12)
        assert np.abs(given - expected).mean() < 1.5


@pytest.mark.parametrize("decoder", ["pil-draft", "torch"])
@pytest.mark.parametrize("mode", modes())
def test_a_quick_decoder_reads_every_mode_as_pil_does(mode, decoder):
    """Alpha, palettes, 16 bit and CMYK come out the same to the byte where nothing is resized."""
    assert np.array_equal(decode(modes()[mode][0], 16, decoder), decode(modes()[mode][0], 16))


def test_a_draft_is_a_reduced_scale(monkeypatch):
    """Of a large JPEG only an eighth a side is decoded; a side never falls below the size that is asked for."""
    raw, loaded = jpeg(picture(0, 520, 264)), []
    monkeypatch.setattr("ldmlab.data.decode.center_crop",
                        lambda x, size: loaded.append(x.size) or np.zeros((3, size, size)))
    for size, decoder in ((32, "pil"), (32, "pil-draft"), (40, "pil-draft"), (200, "pil-draft")):
        decode(raw, size, decoder)
    assert loaded == [(520, 264), (65, 33), (130, 66), (520, 264)]


def test_the_decoder_is_part_of_the_data(tmp_path):
    """Protocol and fingerprint say who decoded, and nothing where it was PIL; damaged files are skipped as ever."""
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
        for k in range(4):
            (tmp_path / part / f"{k}.jpg").write_bytes(jpeg(picture(k, 40, 40)))
        raw = jpeg(picture(9, 200, 200))
        (tmp_path / part / "torn.jpg").write_bytes(raw[: len(raw) // 2])
    sets = {name: open_dataset(tmp_path, size=16, decoder=name) for name in ("pil", "pil-draft", "torch")}
    assert len({data.fingerprint for data in sets.values()}) == 3
    assert sets["pil"].fingerprint == open_dataset(tmp_path, size=16).fingerprint
    assert "decoder" not in sets["pil"].protocol and "PIL bicubic" in sets["pil"].protocol["resize"]
    assert "1/8" in sets["pil-draft"].protocol["resize"] and "torch bicubic" in sets["torch"].protocol["resize"]
    for data in sets.values():
        with pytest.warns(UserWarning, match="torn.jpg"):
            assert len(data) == 4
    assert (all_images(sets["pil"]).int() - all_images(sets["torch"]).int()).abs().max() <= 1
    assert torch.equal(all_images(pickle.loads(pickle.dumps(sets["torch"]))), all_images(sets["torch"]))


def test_a_decoder_for_whole_runs(folder, monkeypatch):
    """LDMLAB_DECODER is what files are read by unless a call says otherwise; what has no files does not mind."""
    named = open_dataset(folder, size=32, decoder="torch")
    monkeypatch.setenv("LDMLAB_DECODER", "torch")
    assert open_dataset(folder, size=32).fingerprint == named.fingerprint
    assert "decoder" not in open_dataset(folder, size=32, decoder="pil").protocol
    assert len(open_dataset("scenes", size=32, num=2)) == 2
    monkeypatch.setenv("LDMLAB_DECODER", "opencv")
    with pytest.raises(ValueError, match="'opencv' is unknown; accepted: pil"):
        open_dataset(folder, size=32)


def test_fingerprints_of_known_data_stay(tmp_path):
    """Models and caches are found by them, those of earlier versions too: an option that is not used changes none."""
    for name in "ab":
        (tmp_path / f"{name}.jpg").write_bytes(b"bytes")
        os.utime(tmp_path / f"{name}.jpg", ns=(0, 0))
    data = open_dataset(tmp_path, size=32)
    assert data.former_fingerprint.startswith("8a08b37c9587974246209d91452729e7")
    assert data.fingerprint.startswith("29f5e7dcaddf2fd6c5064189e97cbe32")


@pytest.mark.parametrize("name, decoder, message", [("folder", "opencv", "accepted: pil, pil-draft, torch"),
                                                 ("scenes", "torch", "folders and tar files")])
def test_other_decoders_are_refused(name, decoder, message, folder):
    """An unknown one, and one for data that has no files to decode."""
    with pytest.raises(ValueError, match=message):
        open_dataset(folder if name == "folder" else name, size=32, decoder=decoder)


def test_resize_is_antialiased_and_crop_is_central(tmp_path):
    """Fine checks become grey, not a moiré; of a wide picture the middle is kept."""
    checks = np.indices((128, 256)).sum(0) % 2 * 255
    checks[:, :56] = checks[:, 200:] = 0
    for k in range(2):
        Image.fromarray(checks.astype(np.uint8)).save(tmp_path / f"{k}.png")
    x = open_dataset(tmp_path, size=32)[0]["image"].float()
    assert (x[:, 2:-2, 2:-2] - 127.5).abs().max() < 4
    protocol = open_dataset(tmp_path, size=32).protocol
    assert "bicubic" in protocol["resize"] and protocol["crop"] == "centre square" and protocol["size"] == 32


@pytest.mark.parametrize("sides", [(50, 37), (37, 50), (90, 16), (40, 40), (16, 31), (16, 16), (7, 12), (9, 5)])
def test_a_crop_between_the_passes_changes_no_bit(sides):
    """What is decoded is one resize of the whole picture and one crop: wide, tall, square, as large, enlarged."""
    size, image = 16, picture(3, *sides)
    whole = image.resize([max(size, round(side * size / min(sides))) for side in sides], Image.Resampling.BICUBIC)
    left, top = ((side - size) // 2 for side in whole.size)
    expected = np.asarray(whole)[top : top + size, left : left + size].transpose(2, 0, 1)
    np.testing.assert_array_equal(decode(encoded(image), size), expected)


def test_files_broken_side_by_side_are_reported(tmp_path, monkeypatch):
    """Of a set too large to be kept, a batch whose first unreadable files are met by several threads still warns."""
    broken_folder(tmp_path, 30, 3)
    monkeypatch.setattr("ldmlab.data.pixels.KEEP_BYTES", 0)
    data = open_dataset(tmp_path, size=16)
    met, first, read = threading.Barrier(2), {0, 1}, data._pixels._try

    def both_then_on(row):
        found = read(row)
        if row in first:
            first.discard(row)
            met.wait(10)
        return found

    monkeypatch.setattr(data._pixels, "_try", both_then_on)
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    with pytest.warns(UserWarning, match="skipped: bad"):
        data.images([0, 1])
    for _ in range(4):
        data.images([0, 1])
    assert len({entry.split()[0] for entry in data.skipped}) == len(data.skipped), "a file counts once"


def broken_folder(root, good: int, bad: int):
    for k in range(good):
        (root / f"good{k:03}.png").write_bytes(encoded(picture(k, 8, 8)))
    for k in range(bad):
        whole = encoded(picture(k, 64, 64))
        (root / f"bad{k}.png").write_bytes((b"", b"not a picture", whole[: len(whole) // 2])[k % 3])
    return root


def test_a_few_broken_files_are_skipped_and_named(tmp_path):
    """Up to three unreadable files are one warning; they are gone from the set."""
    broken_folder(tmp_path, 30, 3)
    sets = [open_dataset(tmp_path, size=16, split=s) for s in ("train", "validation")]
    with pytest.warns(UserWarning, match=r"cannot be read, skipped: bad\d.png"):
        assert sum(map(len, sets)) == 30
    assert sorted(name.split()[0] for data in sets for name in data.skipped) == ["bad0.png", "bad1.png", "bad2.png"]


def test_many_broken_files_are_an_error(tmp_path):
    """More than three and above one in a hundred stop the work, as does a set with none left."""
    broken_folder(tmp_path, 30, 9)
    with pytest.raises(ValueError, match=r"of \d+ pictures .* cannot be read: bad"):
        len(open_dataset(tmp_path, size=16))
    for file in tmp_path.glob("good*"):
        file.unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        len(open_dataset(tmp_path, size=16, split="validation"))


def test_more_than_three_broken_of_very_many_are_skipped(tmp_path):
    """Four in five hundred are under one per cent."""
    data = encoded(picture(0, 4, 4))
    members = {f"{k:04}.png": b"" if k < 4 else data for k in range(500)}
    data = open_dataset(write_tar(tmp_path / "many.tar", members), size=4)
    with pytest.warns(UserWarning, match="skipped"):
        assert len(data) + len(data.skipped) in range(430, 470) and data.skipped


def test_sets_too_large_to_keep_put_the_next_picture_in_place(tmp_path, monkeypatch):
    """Where pictures are decoded one at a time, an unreadable one does not end a long training."""
    for name in ("train", "val"):
        (tmp_path / name).mkdir()
        broken_folder(tmp_path / name, 12, 1)
    monkeypatch.setattr("ldmlab.data.pixels.KEEP_BYTES", 0)
    data = open_dataset(tmp_path, size=16)
    with pytest.warns(UserWarning, match="bad0.png"):
        assert torch.equal(data.images([0]), data.images([1]))
    assert len(data) == 13 and [name.split()[0] for name in data.skipped] == ["bad0.png"]


@pytest.mark.parametrize("name", ["/nowhere", "sceens", "", "/nowhere/x.tar"])
def test_unknown_names_say_what_is_accepted(name):
    """The message names what was given and every kind that is accepted."""
    with pytest.raises(ValueError, match="accepted: 'scenes'") as raised:
        open_dataset(name, size=32)
    assert repr(name) in str(raised.value)


def test_other_wrong_requests(tmp_path):
    """A folder without pictures, a file that is no tar, a torn tar, and impossible numbers are refused plainly."""
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "torn.tar").write_bytes(b"x" * 2000)
    for given, message in ((tmp_path / "notes.txt", "a file but no .tar"), (tmp_path / "torn.tar", "uncompressed")):
        with pytest.raises(ValueError, match=message):
            open_dataset(given, size=16)
    (tmp_path / "torn.tar").unlink()
    with pytest.raises(ValueError, match="folder without a picture"):
        open_dataset(tmp_path, size=16)
    for wrong in ({"split": "dev"}, {"size": 0}, {"num": 0}, {"size": 16}):
        with pytest.raises(ValueError, match="accepted: train|at least 1|from 32 to 512"):
            open_dataset("scenes", **{"size": 32, **wrong})


def test_checking_a_name_imports_nothing_heavy():
    """Parameters are validated within seconds of a kernel's start."""
    code = ("import sys, ldmlab.data.dataset_names as n; n.check_data_name('scenes'); "
            "print({'torch', 'numpy'} & {*sys.modules})")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
    assert check_data_name("CIFAR10") == "torchvision"


def test_torchvision_sets(tmp_path):
    """A set that lies under the root is read; one that does not says how to get it, without any network."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, n in (("train", 40), ("t10k", 6)):
        digits = np.arange(n * 784, dtype=np.uint32).astype(np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">iiii", 2051, n, 28, 28) + digits.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, n) + bytes(k % 10 for k in range(n)))
    train, held, test = (
        open_dataset("mnist", size=32, split=s, root=tmp_path) for s in ("train", "validation", "test")
    )
    assert len(train) + len(held) == 40 and len(held) and len(test) == 6 and train.num_classes == 10
    assert train[0]["image"].shape == (3, 32, 32)
    with pytest.raises(ValueError, match=r"CIFAR10 is not under .*download=True"):
        open_dataset("cifar10", size=32, root=tmp_path)


def test_num_draws_evenly_and_repeatably(folder):
    """A subset takes from all classes, depends on the seed, and is part of the fingerprint."""
    a, b, c = (open_dataset(folder, size=16, num=10, seed=s) for s in (0, 0, 1))
    assert len(a) == 10 and torch.equal(all_images(a), all_images(b)) and set(a.labels().tolist()) == {0, 1}
    assert a.fingerprint == b.fingerprint != c.fingerprint
    assert not torch.equal(all_images(a), all_images(c))


def test_fingerprint_follows_content_and_preprocessing(folder):
    """Another size, split or file is another fingerprint; the same call is the same one."""
    first = open_dataset(folder, size=16).fingerprint
    others = [open_dataset(folder, size=32).fingerprint, open_dataset(folder, size=16, split="validation").fingerprint]
    assert open_dataset(folder, size=16).fingerprint == first and first not in others and len(first) == 64
    for name in ("cat/00.png", "dog/00.png", "cat/01.png"):
        (folder / name).write_bytes(encoded(picture(999)))
    assert open_dataset(folder, size=16).fingerprint != first


@pytest.mark.parametrize("source", ["scenes", "folder"])
def test_cache_on_disk(source, folder, tmp_path):
    """Decoded once, then loaded: equal bytes and labels, in any order; a torn cache is written anew."""
    name = folder if source == "folder" else "scenes"
    plain = open_dataset(name, size=32, num=12)
    cache = tmp_path / "cache"
    first = open_dataset(name, size=32, num=12).in_memory(cache_dir=cache)
    (stored,) = cache.glob("*.npy")
    written = stored.stat().st_mtime_ns
    again = open_dataset(name, size=32, num=12).in_memory(cache_dir=cache)
    assert stored.stat().st_mtime_ns == written and not list(cache.glob(".*.part"))
    order = [7, 0, 7, 3]
    for data in (first, again, open_dataset(name, size=32, num=12).in_memory()):
        assert torch.equal(data.images(order), plain.images(order)) and torch.equal(data.labels(), plain.labels())
    stored.write_bytes(stored.read_bytes()[:200])
    repaired = open_dataset(name, size=32, num=12).in_memory(cache_dir=cache)
    assert torch.equal(all_images(repaired), all_images(plain))
    with pytest.raises(ValueError, match="more than max_bytes=100"):
        open_dataset(name, size=32, num=12).in_memory(max_bytes=100)


def test_a_cache_that_cannot_be_written_gives_a_warning(tmp_path):
    """Where the disk refuses, the pictures stay in memory and the run goes on."""
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="not cached"):
        data = open_dataset("scenes", size=32, num=2).in_memory(cache_dir=tmp_path / "cache")
    assert data.images([1]).shape == (1, 3, 32, 32)


def test_cached_set_tells_what_was_skipped(tmp_path):
    """A second run that loads the cache still names the broken file."""
    root = tmp_path / "pictures"
    root.mkdir()
    for name in ("train", "val"):
        (root / name).mkdir()
        broken_folder(root / name, 4, 1)
    for _ in range(2):
        with pytest.warns(UserWarning, match="bad0.png"):
            data = open_dataset(root, size=16).in_memory(cache_dir=tmp_path / "cache")
        assert len(data) == 4 and len(data.skipped) == 1


def test_workers_get_a_copy(folder):
    """A set can be sent to the workers of a DataLoader."""
    for data in (open_dataset(folder, size=16), open_dataset("scenes", size=32, num=4)):
        assert torch.equal(all_images(pickle.loads(pickle.dumps(data))), all_images(data))


def test_indices_outside_are_refused():
    """Python's rule for sequences."""
    data = open_dataset("scenes", size=32, num=4)
    assert torch.equal(data.images([-1]), data.images([3])) and data.images([]).shape == (0, 3, 32, 32)
    for wrong in (4, -5):
        with pytest.raises(IndexError):
            data.images([wrong])


def test_bytes_to_floats_and_back():
    """[-1, 1] and 0..255 are inverse to each other; out of range is clamped going out, refused coming in."""
    x = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(to_uint8(to_float(x)), x)
    assert to_float(x).min() == -1 and to_float(x).max() == 1
    assert to_uint8(torch.full((1, 3, 1, 1), 7.0)).max() == 255
    check_range(to_float(x))
    for wrong in (x, to_float(x) * 2, torch.full((1, 3, 2, 2), float("nan"))):
        with pytest.raises(ValueError, match="must"):
            check_range(wrong)


def test_opening_warns_of_nothing(folder):
    """Clean data is silent."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        all_images(open_dataset(folder, size=16))
