"""Label maps have the order, resize and crop of their pictures; missing and wrong ones are errors."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from ldmlab.data.images import open_dataset
from ldmlab.data.scenes.scene import LABELS, render_scene

from .test_images import encoded, picture, write_tar


def halves(k: int, width: int = 40, height: int = 24, labels: tuple[int, int] = (3, 7)):
    """A picture, black and white in parts, and its map, which has labels[1] where the picture is white."""
    rng = np.random.default_rng(k)
    white = np.repeat(np.repeat(rng.integers(0, 2, (3, 5), dtype=np.uint8), 8, 0), 8, 1)[:height, :width]
    labelled = np.where(white, labels[1], labels[0]).astype(np.uint8)
    return encoded(Image.fromarray(white * 255)), encoded(Image.fromarray(labelled))


def lay_out(root, members: dict[str, bytes]):
    for name, data in members.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def members(pattern: tuple[str, str] = ("set/images/{}.png", "set/segmentations/{}.png"), num: int = 12, **options):
    made = [halves(k, **options) for k in range(num)]
    return {name.format(f"{k:02}"): data for k in range(num) for name, data in zip(pattern, made[k], strict=True)}


def both_splits(path, size: int = 12, **options):
    return [open_dataset(path, size=size, split=split, **options) for split in ("train", "validation")]


LAYOUTS = {
    "folders": ("set/images/{}.png", "set/segmentations/{}.png"),
    "folders, jpg, places": ("images/sea/{}.jpg", "segmentations/sea/{}.png"),
    "released ADE20K": ("images/training/{}.jpg", "annotations/training/{}.png"),
    "beside": ("{}.jpg", "{}.seg.png"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_maps_are_cropped_as_their_pictures(layout, tmp_path):
    """In every layout, of a folder and a tar: where the map says so the picture is white, whatever the order."""
    files = members(LAYOUTS[layout])
    folder, tar = lay_out(tmp_path / "folder", files), write_tar(tmp_path / "a.tar", dict(reversed(files.items())))
    for path in (folder, tar):
        sets = both_splits(path)
        assert sum(map(len, sets)) == 12  # no map is taken for a picture
        for data in sets:
            assert data.map_names == tuple(f"label {i}" for i in range(8))
            order = list(reversed(range(len(data))))
            maps, pictures = data.maps(order), data.images(order)
            assert maps.dtype == torch.uint8 and maps.shape == (len(data), 12, 12)
            assert set(maps.unique().tolist()) == {3, 7}
            agrees = (pictures[:, 0] > 127) == (maps == 7)
            assert agrees.float().mean() > 0.97  # but for a pixel of grey between the parts


def test_scenes_have_maps():
    """Those that the scene was rendered with, one at a time and all at once."""
    data = open_dataset("scenes", size=32, num=3)
    expected = torch.stack([render_scene(0, "train", i, 32).segmentation for i in (2, 0)])
    for images in (data, data.in_memory()):
        assert images.map_names == LABELS and torch.equal(images.maps([2, -3]), expected)


def test_without_maps(tmp_path):
    """There are no names, and asking for maps says how they are laid out."""
    data = open_dataset(lay_out(tmp_path, {f"{k}.png": encoded(picture(k)) for k in range(3)}), size=8)
    assert data.map_names == ()
    with pytest.raises(ValueError, match=r"has no label maps; .*segmentations/a.png"):
        data.maps([0])


def test_unlabelled_is_the_label_after_the_highest(tmp_path):
    """255 does not make 256 labels; 0 is a label like any other; splits agree though one has fewer labels."""
    files = members(num=20) | {"set/segmentations/03.png": halves(3, labels=(0, 255))[1]}
    for data in both_splits(lay_out(tmp_path, files)):
        assert data.map_names == (*(f"label {i}" for i in range(8)), "unlabelled")
        assert int(data.maps(range(len(data))).max()) <= 8
        for k, name in enumerate(data._source.names):
            assert set(data.maps([k]).unique().tolist()) == ({0, 8} if name == "03.png" else {3, 7})


def test_labels_are_kept_in_every_kind_of_png(tmp_path):
    """Palette indices, not colours; 16 bits; a bitmap."""
    labels = np.arange(8, dtype=np.uint8).reshape(2, 4).repeat(8, 0).repeat(8, 1)
    palette = Image.fromarray(labels, "P")
    palette.putpalette([200, 0, 7, 9, 9, 9] + [1] * 762)
    kinds = [Image.fromarray(labels), palette, Image.fromarray(labels.astype(np.uint16)), Image.fromarray(labels > 3)]
    files = {f"images/{k}.png": encoded(picture(k, 32, 16)) for k in range(4)}
    files |= {f"segmentations/{k}.png": encoded(kind) for k, kind in enumerate(kinds)}
    seen = {name: data.maps([k])[0] for data in both_splits(lay_out(tmp_path, files), 16)
            for k, name in enumerate(data._source.names)}
    middle = torch.from_numpy(labels[:, 8:24])
    for k in range(3):
        assert torch.equal(seen[f"{k}.png"], middle), kinds[k].mode
    assert torch.equal(seen["3.png"], (middle > 3).byte())


WRONG = {
    "none for some": (None, r"1 of 12 pictures have no label map: 05.png"),
    "another size": (encoded(Image.new("L", (24, 40))), r"05.png is 40 x 24, its picture .*05.png 24 x 40"),
    "colours": (encoded(Image.new("RGB", (40, 24))), r"05.png has mode RGB; a map has one channel"),
    "no picture": (b"nothing", r"label map .*05.png is not a picture"),
    "too many labels": (encoded(Image.new("I;16", (40, 24), 300)), r"05.png has labels from 300 to 300"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_maps_are_named_before_any_work(what, tmp_path):
    """Whichever split the map belongs to, and whether names or maps are asked for."""
    data, message = WRONG[what]
    files = members()
    files.pop("set/segmentations/05.png")
    lay_out(tmp_path, files if data is None else files | {"set/segmentations/05.png": data})
    for images in both_splits(tmp_path):
        with pytest.raises(ValueError, match=message):
            images.map_names  # noqa: B018
        with pytest.raises(ValueError, match=message):
            images.maps([0])


@pytest.mark.parametrize("source", ["scenes", "folder"])
def test_maps_are_cached_beside_the_pictures(source, tmp_path):
    """Written when they are first asked for, then loaded; a torn file is written anew."""
    name = lay_out(tmp_path / "data", members()) if source == "folder" else "scenes"
    cache, opened = tmp_path / "cache", {"size": 32, "num": 6}
    expected = open_dataset(name, **opened).maps(range(6))
    data = open_dataset(name, **opened).in_memory(cache_dir=cache)
    assert not list(cache.glob("*-maps.npy"))
    calls = []
    assert torch.equal(data.maps(range(6), lambda done, num: calls.append((done, num))), expected)
    assert calls[-1] == (6, 6)
    (stored,) = cache.glob("*-maps.npy")
    written = stored.stat().st_mtime_ns
    again = open_dataset(name, **opened).in_memory(cache_dir=cache)
    for images in (again, pickle.loads(pickle.dumps(again))):
        assert torch.equal(images.maps([5, 1]), expected[[5, 1]]) and images.map_names == data.map_names
    assert stored.stat().st_mtime_ns == written
    stored.write_bytes(stored.read_bytes()[:200])
    repaired = open_dataset(name, **opened).in_memory(cache_dir=cache)
    assert torch.equal(repaired.maps(range(6)), expected)


def test_a_map_cache_that_cannot_be_written_gives_a_warning(tmp_path):
    """Where the disk refuses, the maps stay in memory."""
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="not cached"):
        data = open_dataset("scenes", size=32, num=2).in_memory(cache_dir=tmp_path / "cache")
        assert data.maps([1]).shape == (1, 32, 32)


def test_fingerprint_follows_the_maps(tmp_path):
    """A model of label maps is another one when a map changes."""
    root = lay_out(tmp_path, members())
    before = open_dataset(root, size=12).fingerprint
    (root / "set/segmentations/05.png").write_bytes(halves(5, labels=(3, 200))[1] + b" ")
    assert open_dataset(root, size=12).fingerprint != before


@pytest.mark.parametrize("keep", [True, False])
def test_maps_stay_with_their_pictures_where_one_is_unreadable(keep, tmp_path, monkeypatch):
    """Left out of a small set, replaced by the next in a large one: the map is always that of the picture shown."""
    if not keep:
        monkeypatch.setattr("ldmlab.data.pixels.KEEP_BYTES", 0)
    pattern = ("set/train/images/{}.png", "set/train/segmentations/{}.png")
    root = lay_out(tmp_path, members(pattern) | {"set/train/images/04.png": b"torn", "set/val/x.png": halves(1)[0],
                                                 "set/val/x.seg.png": halves(1)[1]})
    data = open_dataset(root, size=12, num=9, seed=3)
    with pytest.warns(UserWarning, match="04.png"):
        maps = data.maps(range(len(data)))
    assert len(data) == (8 if keep else 9)
    assert ((data.images(range(len(data)))[:, 0] > 127) == (maps == 7)).float().mean() > 0.97
