"""Captions and boxes: from scenes, files beside pictures and COCO's format, and how they follow crop and mirror."""

import json
import pickle
import warnings

import numpy as np
import pytest
from PIL import Image

from ldmlab.data.annotations.annotation import Annotation, Box, center_crop_box
from ldmlab.data.decode import center_crop
from ldmlab.data.images import open_dataset
from ldmlab.data.scenes.scene import LABELS, render_scene

from .test_images import encoded, picture, write_tar

# Ids chosen so that their order as strings ("10", "2", "92") is not that as numbers.
THINGS = [{"id": 2, "name": "bicycle"}, {"id": 10, "name": "traffic light"}]
STUFF = [{"id": 92, "name": "banner"}, {"id": 183, "name": "other"}]
PICTURES = [{"id": 7, "file_name": "a.png", "width": 80, "height": 40}, {"id": 8, "file_name": "b.png", "width": 40,
                                                                       "height": 40}]


def coco_files() -> dict[str, bytes]:
    """Two pictures of one data set, 80 x 40 and 40 x 40, in COCO's three files."""

    def box(picture: int, category: int, bbox: list, crowd: int = 0) -> dict:
        return {"image_id": picture, "category_id": category, "bbox": bbox, "iscrowd": crowd}

    instances = [box(7, 2, [0, 10, 40, 20]), box(8, 10, [10, 10, 20, 30]), box(7, 10, [30, 0, 20, 40], 1)]
    stuff = [box(7, 92, [0.0, 20.0, 80.0, 20.0]), box(8, 183, [0, 0, 40, 40])]
    captions = [{"image_id": 7, "caption": "A bicycle on the left. "}, {"image_id": 7, "caption": "A\nbike"}]
    contents = {
        "instances_val2017": {"images": PICTURES, "annotations": instances, "categories": THINGS},
        "stuff_val2017": {"images": PICTURES, "annotations": stuff, "categories": THINGS + STUFF},
        "captions_val2017": {"images": PICTURES, "annotations": captions},
    }
    return {f"annotations/{name}.json": json.dumps(content).encode() for name, content in contents.items()}


def coco_members() -> dict[str, bytes]:
    pictures = {"val2017/a.png": encoded(picture(0, 80, 40)), "val2017/b.png": encoded(picture(1, 40, 40))}
    return {f"coco/{name}": content for name, content in (pictures | coco_files()).items()}


def lay_out(root, members: dict[str, bytes]):
    for name, content in members.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def by_width(*places) -> dict[float, Annotation]:
    """The annotations of both splits, by the width of the crop: 0.5 is a.png, 1 is b.png."""
    sets = [open_dataset(place, size=16, split=split) for place in places for split in ("train", "validation")]
    return {a.crop[2]: a for data in sets for a in data.annotations()}


def test_boxes_follow_the_crop():
    """Seen boxes are cut to the square, and what lies outside of it is no longer there."""
    boxes = (Box("a", 0, 0.0, 0.2, 0.5, 0.6), Box("b", 1, 0.0, 0.0, 0.25, 1.0), Box("c", 2, 0.3, 0.0, 0.7, 1.0))
    seen = Annotation(3, "", boxes, (0.25, 0.0, 0.5, 1.0)).visible_boxes()
    assert seen == (Box("a", 0, 0.0, 0.2, 0.5, 0.6), Box("c", 2, 0.09999999999999998, 0.0, 0.8999999999999999, 1.0))


def test_the_mirror_image_has_mirrored_boxes_and_words():
    """Boxes and crop change sides, so what is seen is mirrored, and left and right change in every caption."""
    boxes = (Box("a", 0, 0.125, 0.25, 0.375, 0.5),)
    given = Annotation(1, "Left of it, not leftover, the rightmost.", boxes, (0.125, 0.0, 0.75, 1.0), ("to the right",))
    mirrored = given.mirrored()
    assert mirrored.caption == "Right of it, not leftover, the leftmost." and mirrored.more_captions == ("to the left",)
    assert mirrored.boxes == (Box("a", 0, 0.625, 0.25, 0.875, 0.5),) and mirrored.crop == (0.125, 0.0, 0.75, 1.0)
    (seen,), (other,) = given.visible_boxes(), mirrored.visible_boxes()
    assert (other.x0, other.x1) == pytest.approx((1 - seen.x1, 1 - seen.x0))
    assert mirrored.mirrored() == given


@pytest.mark.parametrize(("width", "height", "size"), [(90, 40, 32), (41, 97, 17), (30, 30, 64)])
def test_the_seen_square_is_what_decoding_leaves(width, height, size):
    """A picture whose colours are its coordinates shows, in its decoded corners, where the square lies."""
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    coordinates = np.stack([x, y, 0 * x], -1)
    decoded = center_crop(Image.fromarray((255 * coordinates).round().astype(np.uint8)), size) / 255
    x0, y0, across, down = center_crop_box(width, height, size)
    middle = decoded[:2, size // 4 : -(size // 4), size // 4 : -(size // 4)].mean((1, 2))
    assert middle == pytest.approx((x0 + across / 2, y0 + down / 2), abs=0.01)
    assert np.ptp(decoded[0]) == pytest.approx(across * (1 - 1 / size), abs=0.06)
    assert np.ptp(decoded[1]) == pytest.approx(down * (1 - 1 / size), abs=0.06)


def test_scenes_know_their_captions_and_boxes():
    """Annotations are those of the scenes, in order; all of the picture is seen."""
    data = open_dataset("scenes", size=32, num=3, seed=5, split="validation")
    calls = []
    annotations = data.annotations(progress=lambda done, num: calls.append((done, num)))
    scenes = [render_scene(5, "validation", i, 32) for i in range(3)]
    assert [(a.label, a.caption, a.boxes) for a in annotations] == [(s.label, s.caption, s.boxes) for s in scenes]
    assert all(a.visible_boxes() == a.boxes for a in annotations) and data.box_names == LABELS and calls[-1] == (3, 3)


def test_scenes_are_annotated_once(tmp_path, monkeypatch):
    """A second run reads what the first has kept; a damaged file is made again; other scenes have their own file."""

    def opened(seed: int = 0):
        return open_dataset("scenes", size=32, num=3, seed=seed)

    first = opened().annotations(cache_dir=tmp_path)
    assert opened(1).annotations(cache_dir=tmp_path) != first
    (kept,) = (f for f in tmp_path.glob("*.json") if opened().fingerprint[:16] in f.name)
    whole = kept.read_bytes()
    kept.write_bytes(whole[:100])
    assert opened().annotations(cache_dir=tmp_path) == first and kept.read_bytes() == whole
    monkeypatch.setattr("ldmlab.data.scenes.scene.render_scene", lambda *_: pytest.fail("rendered again"))
    assert opened().annotations(cache_dir=tmp_path) == first


def test_annotations_where_nothing_can_be_kept(tmp_path):
    """A folder that cannot be written gives a warning, and costs no more than the time of rendering."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.warns(UserWarning, match="annotations are not cached"):
        assert len(open_dataset("scenes", size=32, num=2).annotations(cache_dir=tmp_path / "file")) == 2


@pytest.mark.filterwarnings("ignore:annotations of")  # of 3.png
def test_captions_beside_pictures(tmp_path):
    """A .txt holds a caption a line, a .json a "caption" or "text"; a folder and its tar say the same."""
    members = {f"{k}.png": encoded(picture(k)) for k in range(5)}
    members |= {"0.txt": "A cat.\n\nTwo  cats.\n".encode("utf-8-sig"), "1.json": b'{"caption": "A dog."}'}
    members |= {"2.json": b'{"text": ["A bird.", "Birds."]}', "3.json": b'{"caption": '}
    folder, tar = lay_out(tmp_path / "set", members), write_tar(tmp_path / "set.tar", members)
    said = []
    for place in (folder, tar):
        sets = [open_dataset(place, size=8, split=split) for split in ("train", "validation")]
        annotations = {data._source.names[k]: a for data in sets
                       for k, a in zip(data._pixels.numbers, data.annotations(), strict=True)}
        said.append({name: (a.caption, a.more_captions) for name, a in annotations.items()})
        assert all(data.box_names == () for data in sets) and all(a.boxes == () for a in annotations.values())
    assert said[0] == said[1] == {
        "0.png": ("A cat.", ("Two cats.",)), "1.png": ("A dog.", ()), "2.png": ("A bird.", ("Birds.",)),
        "3.png": ("", ()), "4.png": ("", ()),
    }


def test_captions_do_not_change_a_data_set(tmp_path):
    """Trained models are filed under fingerprints: captions beside pictures leave them as they are."""
    lay_out(tmp_path, {f"{k}.png": encoded(picture(k)) for k in range(3)})
    before = open_dataset(tmp_path, size=8).fingerprint
    lay_out(tmp_path, {"0.txt": b"A cat."} | coco_files())
    assert open_dataset(tmp_path, size=8).fingerprint == before


def test_coco(tmp_path):
    """Captions, things and stuff in fractions of the picture; categories by id as string, without "other"."""
    found = [by_width(lay_out(tmp_path, coco_members()) / "coco"), by_width(write_tar(tmp_path / "c.tar",
                                                                                      coco_members()))]
    assert found[0] == found[1]
    a, b = found[0][0.5], found[0][1.0]
    assert (a.caption, a.more_captions, b.caption) == ("A bicycle on the left.", ("A bike",), "")
    assert a.boxes == (Box("bicycle", 1, 0.0, 0.25, 0.5, 0.75), Box("traffic light", 0, 0.375, 0.0, 0.625, 1.0),
                       Box("banner", 2, 0.0, 0.5, 1.0, 1.0))
    assert b.boxes == (Box("traffic light", 0, 0.25, 0.25, 0.75, 1.0),)
    assert a.visible_boxes()[0] == Box("bicycle", 1, 0.0, 0.25, 0.5, 0.75) and a.label == -1
    data = open_dataset(tmp_path / "c.tar", size=16)
    assert data.box_names == ("traffic light", "bicycle", "banner")
    assert pickle.loads(pickle.dumps(data)).annotations() == data.annotations()


def test_coco_without_some_of_its_files(tmp_path):
    """Any of the three files may be missing."""
    members = {name: content for name, content in coco_members().items() if "captions" not in name}
    a = by_width(write_tar(tmp_path / "boxes.tar", members))[0.5]
    assert a.caption == "" and len(a.boxes) == 3
    members = {name: content for name, content in coco_members().items() if "captions" in name or "png" in name}
    a = by_width(write_tar(tmp_path / "captions.tar", members))[0.5]
    assert a.caption == "A bicycle on the left." and a.boxes == ()


@pytest.mark.filterwarnings("ignore:annotations of")  # of the other split
def test_unusable_coco_entries_are_counted_in_a_warning(tmp_path):
    """Boxes without size, and of pictures and categories that are not listed, are left out and counted."""
    rows = [
        {"image_id": 7, "category_id": 2, "bbox": [0, 10, 40, 0]},
        {"image_id": 99, "category_id": 2, "bbox": [0, 10, 40, 5]},
        {"image_id": 7, "category_id": 77, "bbox": [0, 10, 40, 5]},
        {"image_id": 7, "category_id": 2, "bbox": [70, 10, 40, 5]},
    ]
    content = json.dumps({"images": PICTURES, "annotations": rows, "categories": THINGS}).encode()
    members = {"coco/annotations/instances_x.json": content}
    members |= {name: content for name, content in coco_members().items() if "png" in name}
    with pytest.warns(UserWarning, match="1 of a category .*1 of a picture .*1 without size"):
        found = by_width(write_tar(tmp_path / "coco.tar", members))
    assert found[0.5].boxes == (Box("bicycle", 1, 0.875, 0.25, 1.0, 0.375),) and found[1.0].boxes == ()


def test_coco_files_that_do_not_fit(tmp_path):
    """A damaged file is named; pictures that have other names than the files list give a warning."""
    members = coco_members() | {"coco/annotations/stuff_val2017.json": b'{"images": []'}
    with pytest.raises(ValueError, match=r"stuff_val2017.json is not in COCO's format"):
        open_dataset(write_tar(tmp_path / "a.tar", members), size=16).annotations()
    members = {name.replace("/a.png", "/c.png").replace("/b.png", "/d.png"): x for name, x in coco_members().items()}
    with pytest.warns(UserWarning, match="no picture of .* has a file name"):
        open_dataset(write_tar(tmp_path / "b.tar", members), size=16).annotations()


def test_pictures_that_cannot_be_read_have_no_annotation(tmp_path):
    """One annotation a picture, after unreadable files were left out."""
    members = {f"{k}.png": encoded(picture(k)) for k in range(8)} | {f"{k}.txt": str(k).encode() for k in range(8)}
    data = open_dataset(lay_out(tmp_path, members | {"3.png": b"no picture"}), size=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        captions = [a.caption for a in data.annotations()]
    assert len(captions) == len(data) and "3" not in captions and captions == sorted(captions)
