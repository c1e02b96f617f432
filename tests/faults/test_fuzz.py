"""Damaged bytes of pictures, annotation files and captions: only ValueError comes out, and it names the file."""

import io
import json
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from made_files import encoded, picture
from PIL import Image

from ldmlab.data.annotations.annotation_files import annotate_files
from ldmlab.data.annotations.captions import captions_of_json, captions_of_text
from ldmlab.data.annotations.coco import Coco
from ldmlab.data.annotations.frames import Frame
from ldmlab.data.annotations.label_maps import map_labels
from ldmlab.data.annotations.report import AnnotationReport
from ldmlab.data.decode import decode
from ldmlab.data.formats import readable_suffixes
from ldmlab.data.user_pictures import decode_bytes, open_mask

NAME = "a b/file.x"
ROUNDS = 40  # a kind; all of them take some three seconds


def mutants(raw: bytes, seed: int, rounds: int = ROUNDS) -> Iterator[bytes]:
    """The bytes with some changed, cut, repeated or moved."""
    rng = np.random.default_rng([seed, len(raw)])
    for k in range(rounds):
        data = bytearray(raw)
        for _ in range(int(rng.integers(1, 6))):
            a, b = sorted(rng.integers(0, len(data) + 1, 2).tolist())
            how = int(rng.integers(0, 6))
            if how < 3 and data:
                data[int(rng.integers(0, min(len(data), 64 if how else 10**9)))] = int(rng.integers(0, 256))
            elif how == 3:
                data[a:a] = data[a : min(b, a + 40)]
            elif how == 4:
                del data[a : min(b, a + 8)]
            elif k % 4 == 0:
                data = data[:b]
        yield bytes(data)


def turned(kind: str, **options) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(picture(1, 24, 16), kind, exif=exif, **options)


PICTURES: dict[str, Callable[[], bytes]] = {
    "PNG": lambda: turned("PNG"), "JPEG": lambda: turned("JPEG"),
    "progressive": lambda: turned("JPEG", progressive=True),
    "TIFF": lambda: turned("TIFF"), "LZW": lambda: turned("TIFF", compression="tiff_lzw"),
    "GIF": lambda: encoded(picture(), "GIF"), "BMP": lambda: encoded(picture(), "BMP"),
    "WEBP": lambda: turned("WEBP"), "PPM": lambda: encoded(picture(), "PPM"),
    "16 bit": lambda: encoded(Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 100)),
    "float": lambda: encoded(Image.fromarray(np.linspace(0, 1, 400, dtype=np.float32).reshape(20, 20)), "TIFF"),
    "palette": lambda: encoded(picture().quantize(16), "PNG", transparency=3),
    "AVIF": lambda: turned("AVIF", speed=10), "JPEG2000": lambda: encoded(picture(0, 32, 32), "JPEG2000"),
}


def only_names_the_file(*calls: Callable[[], object]) -> int:
    """Call each; how many raised ValueError. Any other error, or one without the name, fails."""
    refused = 0
    for call in calls:
        try:
            call()
        except ValueError as error:
            assert NAME in str(error), f"not named: {error!r}"
            refused += 1
    return refused


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", PICTURES)
def test_damaged_pictures(kind, tmp_path):
    """Through every door: a data set, one's own picture, a mask, a label map, a header."""
    suffix = {"AVIF": ".avif", "JPEG2000": ".jp2", "WEBP": ".webp"}.get(kind)
    if suffix and suffix not in readable_suffixes():
        pytest.skip(f"this Pillow does not read {kind}")
    file, refused = tmp_path / "a b" / "file.x", 0
    file.parent.mkdir()
    for raw in mutants(PICTURES[kind](), 0):
        file.write_bytes(raw)
        refused += only_names_the_file(
            lambda raw=raw: decode(raw, 8, name=NAME), lambda raw=raw: decode(raw, 8, "pil-draft", NAME),
            lambda raw=raw: decode_bytes(raw, NAME), lambda raw=raw: map_labels(raw, NAME),
            lambda: open_mask(file, (16, 24)), lambda raw=raw: Frame.of_file(str(file), 0, len(raw)))
    assert refused > ROUNDS / 2


ROWS = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}, {"id": 2, "image_id": 1, "caption": "a cat"}]
CONTENT = {"images": [{"id": 1, "file_name": "a.png", "width": 20, "height": 16}], "annotations": ROWS,
           "categories": [{"id": 1, "name": "cat"}]}
VALUES = [None, True, "", "x", -1, 0, 1e308, float("nan"), float("inf"), 10**30, [], {}, [[]], [1, 2], {"id": 1}, "1"]


def changed_values(rng: np.random.Generator) -> bytes:
    """CONTENT with some values, at any depth, replaced or left out."""
    content = json.loads(json.dumps(CONTENT))
    for _ in range(int(rng.integers(1, 4))):
        at = content
        while True:
            keys = list(at) if isinstance(at, dict) else range(len(at))
            if not len(keys):
                break
            key = keys[int(rng.integers(0, len(keys)))]
            if isinstance(at[key], dict | list) and at[key] and rng.random() < 0.8:
                at = at[key]
                continue
            if rng.random() < 0.3:
                del at[key]
            else:
                at[key] = VALUES[int(rng.integers(0, len(VALUES)))]
            break
    return json.dumps(content).encode()


def test_damaged_annotation_files():
    """Of bytes and of values: a file is read but for its damaged entries, or refused by its name."""
    rng, name = np.random.default_rng(1), f"{NAME}/annotations/instances.json"
    read = 0
    for raw in (*mutants(json.dumps(CONTENT).encode(), 1, 10 * ROUNDS), *(changed_values(rng) for _ in range(600))):
        report = AnnotationReport()
        try:
            coco = Coco.read([(name, lambda raw=raw: raw)], report)
        except ValueError as error:
            assert name in str(error)
            continue
        read += 1
        for listed in coco.listed.values():
            for box in coco.boxes(listed, Frame(20, 16, 6), "a.png"):
                assert 0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1 and box.name == coco.names[box.label]
        assert all(isinstance(line, str) for line in report.lines())
    assert read > 200


def test_damaged_names_in_annotation_files(tmp_path):
    """Whatever a file is said to be called, it is that picture, another, or none."""
    (tmp_path / "annotations").mkdir()
    place = (str(tmp_path / "a.png"), 0, (tmp_path / "a.png").write_bytes(encoded(picture())))
    for name in mutants(b"C:\\x/../images/%2e%2E/a.png", 2, 4 * ROUNDS):
        images = [CONTENT["images"][0] | {"file_name": name.decode("latin-1")}]
        (tmp_path / "annotations" / "instances.json").write_text(json.dumps(CONTENT | {"images": images}))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (annotation,), names = annotate_files([str(tmp_path)], [place], 8, np.array([0]))
        assert names == ("cat",) and len(annotation.boxes) <= 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "cp1252"])
def test_damaged_captions(encoding):
    """A caption comes out, or the report counts why there is none."""
    for raw in mutants("a café près du château, 7 o'clock\nun chat".encode(encoding), 3, 10 * ROUNDS):
        for read in (captions_of_text, captions_of_json):
            report = AnnotationReport()
            captions = read(raw, NAME, report)
            assert all(c == " ".join(c.split()) and "\0" not in c for c in captions)
            assert captions or report.left_out or read is captions_of_json
            io.StringIO("\n".join(captions)).read().encode()
