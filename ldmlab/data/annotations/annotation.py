"""Annotations of pictures: class, captions, bounding boxes and crop."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ldmlab.atomic import atomic_write, lock_file
from ldmlab.damage import DamagedFile, read_json, read_or_set_aside, reading, seal

Crop = tuple[float, float, float, float]  # x0, y0, width, height in fractions of the whole picture
WHOLE: Crop = (0.0, 0.0, 1.0, 1.0)
_SIDES = {"left": "right", "right": "left", "Left": "Right", "Right": "Left", "LEFT": "RIGHT", "RIGHT": "LEFT"}


@dataclass(frozen=True)
class Box:
    """Bounding box of an object's visible pixels, in fractions of the picture; (x1, y1) is exclusive."""

    name: str
    label: int  # index into the data set's `box_names`; for scenes, LABELS
    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True)
class Annotation:
    """Class, captions and boxes of one picture.

    `label` is the class, -1 without one; `caption` is "" without one, and `more_captions` holds the others where there
    are several, as in COCO. `boxes` are in fractions of the whole, uncropped picture; so is `crop`, the square of it
    that the data set returns.
    """

    label: int
    caption: str
    boxes: tuple[Box, ...]
    crop: Crop = WHOLE
    more_captions: tuple[str, ...] = ()

    def visible_boxes(self) -> tuple[Box, ...]:
        """The boxes clipped to the crop, in fractions of the crop; boxes outside of it are dropped."""
        x, y, width, height = self.crop
        boxes = []
        for box in self.boxes:
            x0, x1 = (min(max((end - x) / width, 0.0), 1.0) for end in (box.x0, box.x1))
            y0, y1 = (min(max((end - y) / height, 0.0), 1.0) for end in (box.y0, box.y1))
            if x1 > x0 and y1 > y0:
                boxes.append(replace(box, x0=x0, y0=y0, x1=x1, y1=y1))
        return tuple(boxes)

    def mirrored(self) -> "Annotation":
        """The annotation of the horizontally flipped picture: boxes, crop, and "left" and "right" in the captions.

        The words are exchanged wherever they occur, also in "turns right" and "left the room".
        """
        x, y, width, height = self.crop
        return replace(
            self,
            caption=_mirrored_words(self.caption),
            boxes=tuple(replace(box, x0=1 - box.x1, x1=1 - box.x0) for box in self.boxes),
            crop=(1 - (x + width), y, width, height),
            more_captions=tuple(map(_mirrored_words, self.more_captions)),
        )


def _mirrored_words(text: str) -> str:
    sides = "|".join(_SIDES)
    return re.sub(rf"\b({sides})(?=(?:most|wards?)?\b)", lambda match: _SIDES[match[1]], text)


def center_crop_box(width: int, height: int, size: int) -> Crop:
    """The part of a picture of `width` x `height` pixels that `decode.center_crop` keeps.

    Resized sides and offsets are whole pixels, as there.
    """
    scale = size / min(width, height)
    width, height = (max(size, round(side * scale)) for side in (width, height))
    return ((width - size) // 2 / width, (height - size) // 2 / height, size / width, size / height)


AnnotationTable = tuple[list[Annotation], tuple[str, ...]]  # one annotation per picture; names of the box labels


def write_annotations(path: Path, fingerprint: str, table: AnnotationTable) -> None:
    """Write the annotations of the data set with this fingerprint to a JSON file."""
    annotations, box_names = table
    rows = [
        [a.label, a.caption, [[b.label, b.x0, b.y0, b.x1, b.y1] for b in a.boxes], a.crop, a.more_captions]
        for a in annotations
    ]
    content = {"fingerprint": fingerprint, "box_names": box_names, "annotations": rows}
    atomic_write(path, seal(json.dumps(content, separators=(",", ":"))))


def read_annotations(path: Path, fingerprint: str) -> AnnotationTable:
    """Read what `write_annotations` wrote; FileNotFoundError if missing, DamagedFile if damaged or of other data."""
    content = read_json(path)
    with reading(path):
        if content["fingerprint"] != fingerprint:
            raise DamagedFile(path, "it holds the annotations of other data")
        names = tuple(content["box_names"])
        annotations = [
            Annotation(label, caption, tuple(Box(names[b[0]], *b) for b in boxes), tuple(crop), tuple(more))
            for label, caption, boxes, crop, more in content["annotations"]
        ]
    return annotations, names


def cached_annotations(path: Path, fingerprint: str, make: Callable[[], AnnotationTable]) -> AnnotationTable:
    """Read annotations from `path`; if absent, compute them with `make` and write them. OSError if not writable."""
    try:
        return read_annotations(path, fingerprint)
    except (FileNotFoundError, DamagedFile):
        pass
    waiting = f"another run is writing {path}; waiting for that one"
    with lock_file(Path(f"{path}.lock"), waiting):  # runs that start together render only once
        table = read_or_set_aside(path, lambda path: read_annotations(path, fingerprint))
        if table is None:
            table = make()
            write_annotations(path, fingerprint, table)
    return table
