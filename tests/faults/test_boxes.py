"""Boxes of other people's COCO files: the frame they are of, the picture they mean, and entries that are damaged."""

import json

import pytest
from made_files import encoded, picture, write_tar
from PIL import Image

from ldmlab.data.annotations.file_names import PictureNames, name_parts
from ldmlab.data.annotations.frames import Frame
from ldmlab.data.decode import open_rgb
from ldmlab.data.images import open_dataset

from .sets_of_files import annotated

NUM = 6
FILES = [f"{k}.jpg" for k in range(NUM)]
BOX = [8, 6, 16, 12]  # of 64 x 48: 0.125 to 0.375, both ways


def image(i, name, width=64, height=48):
    return {"id": i, "file_name": name, "width": width, "height": height}


def row(i, image_id, category=1, bbox=BOX):
    return {"id": i, "image_id": image_id, "category_id": category, "bbox": bbox}


def content(images, rows, categories=("car", "tree")) -> bytes:
    named = [{"id": k, "name": name} for k, name in enumerate(categories, 1)]
    return json.dumps({"images": images, "annotations": rows, "categories": named}).encode()


def photograph(width=64, height=48, orientation=1, kind="JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture(0, width, height), kind, exif=exif)


def lay_out(root, images, rows, names=None, file="annotations/instances.json", raw=None, files=()):
    """Pictures of 64 x 48, and a file of these images and annotations."""
    for name in names or [f"images/{n}" for n in FILES]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(raw or photograph())
    for name, data in ((file, content(images, rows)), *files):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def opened(root):
    """Boxes of each picture by name, of both splits, what was warned of, and the report's lines."""
    found, said, lines = annotated(root, 48)
    return {name: [(b.name, b.x0, b.y0, b.x1, b.y1) for b in a.boxes] for name, a in found.items()}, said, lines


CAR = ("car", 0.125, 0.125, 0.375, 0.375)
NAMES = {
    "bare": "{}.jpg", "windows": "images\\{}.jpg", "up": "..\\label\\{}.jpg", "dots": "./images/{}.jpg",
    "absolute": "/srv/ann/images/{}.jpg", "drive": "C:\\data\\images\\{}.jpg", "url": "https://x.org/a/{}.jpg?v=2",
    "upper case": "IMAGES/{}.JPG", "no ending": "{}", "percent": "images%2F{}.jpg", "other folder": "photos/{}.jpg",
}


@pytest.mark.parametrize("how", NAMES)
def test_names_are_matched_however_they_are_written(how, tmp_path):
    """Slashes, drives, dots, addresses, case, percent-encoding and a missing ending lose nobody's boxes."""
    lay_out(tmp_path, [image(k, NAMES[how].format(k)) for k in range(NUM)], [row(k, k) for k in range(NUM)])
    boxes, said, lines = opened(tmp_path)
    assert list(boxes.values()) == [[CAR]] * NUM and not said
    assert ("by their file name alone" in lines) == (how in ("up", "other folder", "url"))


def test_percent_and_accents_are_undone(tmp_path):
    """As browsers and macOS write them."""
    names = PictureNames(["images/my dog.jpg", "images/caf\u00e9.jpg"])
    assert names.find(name_parts("my%20dog.jpg"), frozenset())[0] == [0]
    assert names.find(name_parts("cafe\u0301.jpg"), frozenset())[0] == [1]


TWO = ["job1/0.jpg", "job2/0.jpg"]
AMBIGUOUS = {
    "listed twice": ([image(0, "0.jpg"), image(1, "0.jpg")], TWO),
    "listed once": ([image(0, "0.jpg"), image(1, "1.jpg")], [*TWO, "1.jpg"]),
    "another folder": ([image(0, "job3/0.jpg"), image(1, "job4/0.jpg")], TWO),
    "twice, one is there": ([image(0, "0.jpg"), image(1, "0.jpg")], ["job1/0.jpg", "job1/1.jpg"]),
    "two folders, one is there": ([image(0, "a/0.jpg"), image(1, "b/0.jpg")], ["c/0.jpg", "c/1.jpg"]),
}


@pytest.mark.parametrize("how", AMBIGUOUS)
def test_a_name_that_may_mean_two_pictures_is_refused(how, tmp_path):
    """Neither picture gets the other's boxes; the message says how to name them."""
    images, names = AMBIGUOUS[how]
    lay_out(tmp_path, images, [row(0, 0), row(1, 1, 2)], [f"images/{n}" for n in names] + ["images/job9/9.jpg"])
    with pytest.raises(ValueError, match=r"0\.jpg.*(with their folders|put it into the folder)"):
        opened(tmp_path)


def test_folders_and_the_files_split_tell_pictures_of_one_name_apart(tmp_path):
    """The longest common path decides; then the split that the annotation file is named after."""
    names = [f"images/{n}" for n in TWO]
    lay_out(tmp_path / "a", [image(k, f"D:\\{n}") for k, n in enumerate(TWO)], [row(0, 0), row(1, 1, 2)], names)
    boxes, _, _ = opened(tmp_path / "a")
    assert {name: [b[0] for b in found] for name, found in boxes.items()} == {"job1/0.jpg": ["car"],
                                                                              "job2/0.jpg": ["tree"]}
    other = ("annotations/instances_val.json", content([image(0, "0.jpg")], [row(0, 0, 2)]))
    lay_out(tmp_path / "b", [image(0, "0.jpg")], [row(0, 0)], ["train/0.jpg", "val/0.jpg"],
            "annotations/instances_train.json", files=[other])
    sets = [open_dataset(tmp_path / "b", size=48, split=split) for split in ("train", "validation")]
    assert [data.annotations()[0].boxes[0].name for data in sets] == ["car", "tree"]


TURNS = {  # orientation -> the box 0.1 0.2 0.4 0.3 of the stored picture, upright
    1: (0.1, 0.2, 0.4, 0.3), 2: (0.6, 0.2, 0.9, 0.3), 3: (0.6, 0.7, 0.9, 0.8), 4: (0.1, 0.7, 0.4, 0.8),
    5: (0.2, 0.1, 0.3, 0.4), 6: (0.7, 0.1, 0.8, 0.4), 7: (0.7, 0.6, 0.8, 0.9), 8: (0.2, 0.6, 0.3, 0.9),
}


@pytest.mark.parametrize("orientation", TURNS)
def test_boxes_turn_as_pixels_do(orientation):
    """A white box of the stored pixels is where `turn` says after decoding."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.new("RGB", (100, 80))
    stored.paste((255, 255, 255), (10, 16, 40, 24))
    shown = open_rgb(encoded(stored, "PNG", exif=exif), "x").convert("L")
    x0, y0, x1, y1 = Frame(100, 80, orientation).turn((0.1, 0.2, 0.4, 0.3))
    assert (x0, y0, x1, y1) == pytest.approx(TURNS[orientation])
    w, h = shown.size
    assert shown.getbbox() == tuple(round(v) for v in (x0 * w, y0 * h, x1 * w, y1 * h))
    assert Frame(100, 80, orientation).upright == (w, h)


FRAMES = {  # stated size, of a picture stored as 64 x 48 and shown as 48 x 64 -> its box, and what is said
    "upright": ((48, 64), ("car", 8 / 48, 6 / 64, 24 / 48, 18 / 64), ""),
    "stored": ((64, 48), ("car", 1 - 18 / 48, 8 / 64, 1 - 6 / 48, 24 / 64), "turned with their pictures"),
    "upright, twice as large": ((96, 128), ("car", 8 / 96, 6 / 128, 24 / 96, 18 / 128), ""),
    "stored, half": ((32, 24), ("car", 1 - 18 / 24, 8 / 32, 1 - 6 / 24, 24 / 32), "turned with their pictures"),
    "neither": ((50, 50), None, "neither as it is stored nor upright"),
    "none": ((None, None), ("car", 8 / 48, 6 / 64, 24 / 48, 18 / 64), "taken as upright"),
    "zero": ((0, 0), ("car", 8 / 48, 6 / 64, 24 / 48, 18 / 64), "taken as upright"),
}


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG"])
@pytest.mark.parametrize("frame", FRAMES)
def test_boxes_are_of_the_frame_that_their_file_states(frame, kind, tmp_path):
    """Of a photograph that EXIF turns: as it is shown, or as it is stored, and then they turn with it."""
    size, box, said = FRAMES[frame]
    ending = {"JPEG": "jpg", "TIFF": "tif", "PNG": "png"}[kind]
    names = [f"images/{k}.{ending}" for k in range(3)]
    lay_out(tmp_path, [image(k, f"{k}.{ending}", *size) for k in range(3)], [row(k, k) for k in range(3)], names,
            raw=photograph(orientation=6, kind=kind))
    boxes, warned, lines = opened(tmp_path)
    for found in boxes.values():
        assert len(found) == (box is not None) and all(b[0] == box[0] for b in found)
        assert not found or found[0][1:] == pytest.approx(box[1:])
    assert said in lines and (box is not None or said in warned)


def test_a_picture_of_another_shape_than_stated_has_no_boxes(tmp_path):
    """It was cropped, or is another picture: said, not scaled."""
    lay_out(tmp_path, [image(k, n, 48, 48) for k, n in enumerate(FILES)], [row(k, k) for k in range(NUM)])
    boxes, said, _ = opened(tmp_path)
    assert not any(boxes.values()) and "of the stated size (" in said and "0.jpg" in said


DAMAGED = {
    "no bbox": ({"id": 0, "image_id": 0, "category_id": 1}, "1 without a box"),
    "empty": (row(0, 0, bbox=[]), "1 without a box"),
    "null": (row(0, 0, bbox=None), "1 without a box"),
    "nested": (row(0, 0, bbox=[[1, 2, 3, 4]]), "1 whose box is not four numbers"),
    "strings": (row(0, 0, bbox=["1", "2", "3", "4"]), "1 whose box is not four numbers"),
    "NaN": (row(0, 0, bbox=[float("nan"), 1, 5, 5]), "1 whose box is not four numbers"),
    "huge": (row(0, 0, bbox=[10**400, 1, 5, 5]), "1 whose box is not four numbers"),
    "true": (row(0, 0, bbox=[True, 1, 5, 5]), "1 whose box is not four numbers"),
    "negative": (row(0, 0, bbox=[30, 20, -10, -10]), "1 without size or outside"),
    "outside": (row(0, 0, bbox=[100, 100, 5, 5]), "1 without size or outside"),
    "no image_id": ({"id": 0, "category_id": 1, "bbox": BOX}, "1 of a picture that is not listed"),
    "list as image_id": (row(0, [0]), "1 of a picture that is not listed"),
    "no category": ({"id": 0, "image_id": 0, "bbox": BOX}, "1 of a category that is not listed"),
    "dict as category": (row(0, 0, {}), "1 of a category that is not listed"),
    "text": ("row", "1 that are no objects"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_one_damaged_annotation_is_left_out_and_counted(what, tmp_path):
    """The other pictures keep their boxes."""
    bad, reason = DAMAGED[what]
    lay_out(tmp_path, [image(k, n) for k, n in enumerate(FILES)], [bad, *(row(k, k) for k in range(1, NUM))])
    boxes, said, _ = opened(tmp_path)
    assert boxes == {n: [CAR] if k else [] for k, n in enumerate(FILES)} and reason in said


IDS = {"text": str, "float": float, "spaces": lambda i: f" {i}"}


@pytest.mark.parametrize("kind", IDS)
def test_ids_of_another_type_are_the_same_ids(kind, tmp_path):
    """As pandas and hand-written exporters leave them."""
    make = IDS[kind]
    lay_out(tmp_path, [image(k, n) for k, n in enumerate(FILES)], [row(k, make(k), make(1)) for k in range(NUM)])
    assert opened(tmp_path)[0] == {n: [CAR] for n in FILES}


def test_damaged_pictures_and_categories_of_a_file_are_counted(tmp_path):
    """Entries without id, name or size cost only themselves."""
    lay_out(tmp_path, [{"id": 0}, {"file_name": "1.jpg"}, "2.jpg", {"id": 3, "file_name": "3.jpg"}], [row(3, 3)])
    boxes, said, _ = opened(tmp_path)
    assert boxes["3.jpg"] == [CAR] and "3 pictures without an id or a file name" in said


def test_categories_that_two_files_number_otherwise_are_matched_by_name(tmp_path):
    """1 is a car in one file and a tree in the other."""
    other = ("annotations/instances_b.json",
             content([image(k, FILES[k]) for k in (3, 4, 5)], [row(k, k) for k in (3, 4, 5)], ("tree", "car")))
    lay_out(tmp_path, [image(k, FILES[k]) for k in range(3)], [row(k, k) for k in range(3)],
            file="annotations/instances_a.json", files=[other])
    boxes, _, lines = opened(tmp_path)
    assert [boxes[n][0][0] for n in FILES] == ["car"] * 3 + ["tree"] * 3 and "matched by name" in lines


SEEN = {  # where the file lies -> whether it is read
    "annotations/train.json": True, "annotations/instances-train.json": True, "annotations/Instances_x.json": True,
    "a/b/annotations/instances_x.json": True, "result.json": False, "labels/instances.json": False,
    "images/metadata.jsonl": False,
}


@pytest.mark.parametrize("file", SEEN)
def test_annotation_files_are_read_or_named(file, tmp_path):
    """None is ignored without a word."""
    lay_out(tmp_path, [image(k, n) for k, n in enumerate(FILES)], [row(k, k) for k in range(NUM)], file=file)
    boxes, _, lines = opened(tmp_path)
    assert all(boxes.values()) == SEEN[file] and file.rpartition("/")[2] in lines
    assert ("not read" in lines) == (not SEEN[file])


RAW = {
    "BOM": (lambda raw: b"\xef\xbb\xbf" + raw, ""),
    "UTF-16": (lambda raw: raw.decode().encode("utf-16"), ""),
    "nested": (lambda raw: b'{"images": ' + b"[" * 100_000, "is not in COCO's format: RecursionError"),
    "empty": (lambda raw: b"", "is not in COCO's format: JSONDecodeError"),
    "list": (lambda raw: b"[]", "is not in COCO's format: ValueError: it holds no object"),
    "no images": (lambda raw: b'{"annotations": []}', "is not in COCO's format: KeyError: 'images'"),
    "null": (lambda raw: b'{"images": null, "annotations": []}', "are lists"),
}


@pytest.mark.parametrize("what", RAW)
def test_encodings_and_damage_of_a_whole_file(what, tmp_path):
    """Either it is read, or a ValueError names it."""
    make, message = RAW[what]
    raw = make(content([image(k, n) for k, n in enumerate(FILES)], [row(k, k) for k in range(NUM)]))
    lay_out(tmp_path, [], [], files=[("annotations/instances.json", raw)])
    if message:
        with pytest.raises(ValueError, match=f"annotations/instances.json.*{message}"):
            opened(tmp_path)
    else:
        assert opened(tmp_path)[0] == {n: [CAR] for n in FILES}


def test_a_tar_is_matched_as_a_folder(tmp_path):
    """Names, frames and damaged entries have the same outcome."""
    images = [image(k, f"..\\label\\{n}") for k, n in enumerate(FILES)]
    root = lay_out(tmp_path / "set", images, [row(k, k) for k in range(NUM)], raw=photograph(orientation=6))
    members = {f.relative_to(root).as_posix(): f.read_bytes() for f in sorted(root.rglob("*")) if f.is_file()}
    assert opened(write_tar(tmp_path / "set.tar", members))[0] == opened(root)[0]
