"""Annotations: what is known of a picture besides its pixels, that is class, captions, and boxes of what it shows."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ldmlab.atomic import atomic_write

Crop = tuple[float, float, float, float]
WHOLE: Crop = (0.0, 0.0, 1.0, 1.0)
_SIDES = {"left": "right", "right": "left", "Left": "Right", "Right": "Left", "LEFT": "RIGHT", "RIGHT": "LEFT"}


@dataclass(frozen=True)
class Box:
    """Where a thing is seen: the tight bound of its visible pixels in fractions of the picture, far ends outside."""

    name: str
    label: int  # index into the data set's box_names; for scenes, LABELS
    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True)
class Annotation:
    """What is known of one picture: its class, what it shows in words, and where it shows it.

    `label` is the class, -1 without one; `caption` is "" where there is none, and `more_captions` holds the others
    where there are several, as in COCO. `boxes` lie in fractions of the whole, uncropped picture, and `crop` is the
    square of it that is seen: x0, y0, width, height, also in fractions of the whole.
    """

    label: int
    caption: str
    boxes: tuple[Box, ...]
    crop: Crop = WHOLE
    more_captions: tuple[str, ...] = ()

    def seen(self) -> tuple[Box, ...]:
        """The boxes in fractions of the crop, cut to it; boxes of which nothing is seen are dropped."""
        x, y, width, height = self.crop
        boxes = []
        for box in self.boxes:
            x0, x1 = (min(max((end - x) / width, 0.0), 1.0) for end in (box.x0, box.x1))
            y0, y1 = (min(max((end - y) / height, 0.0), 1.0) for end in (box.y0, box.y1))
            if x1 > x0 and y1 > y0:
                boxes.append(replace(box, x0=x0, y0=y0, x1=x1, y1=y1))
        return tuple(boxes)

    def mirrored(self) -> "Annotation":
        """The annotation of the picture's mirror image: boxes, crop, and "left" and "right" in the captions.

        Words are exchanged wherever they stand, so "turns right" and "left the room" change too.
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


def seen_square(width: int, height: int, size: int) -> Crop:
    """The part of a picture of `width` x `height` pixels that is left of it as a square of `size` pixels.

    It follows the arithmetic of `decode.square`: resized sides are whole pixels, and so is the offset.
    """
    scale = size / min(width, height)
    width, height = (max(size, round(side * scale)) for side in (width, height))
    return ((width - size) // 2 / width, (height - size) // 2 / height, size / width, size / height)


Known = tuple[list[Annotation], tuple[str, ...]]  # one annotation a picture, and what the boxes' labels index


def write_known(path: Path, fingerprint: str, known: Known) -> None:
    """Keep annotations as JSON, of the pictures with this fingerprint."""
    annotations, box_names = known
    rows = [
        [a.label, a.caption, [[b.label, b.x0, b.y0, b.x1, b.y1] for b in a.boxes], a.crop, a.more_captions]
        for a in annotations
    ]
    content = {"fingerprint": fingerprint, "box_names": box_names, "annotations": rows}
    atomic_write(path, json.dumps(content, separators=(",", ":")).encode())


def read_known(path: Path, fingerprint: str) -> Known | None:
    """What `write_known` has kept; None where there is nothing, something else, or half of it."""
    try:
        content = json.loads(path.read_bytes())
        if content["fingerprint"] != fingerprint:
            return None
        names = tuple(content["box_names"])
        annotations = [
            Annotation(label, caption, tuple(Box(names[b[0]], *b) for b in boxes), tuple(crop), tuple(more))
            for label, caption, boxes, crop, more in content["annotations"]
        ]
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None
    return annotations, names


def keep_known(path: Path, fingerprint: str, make: Callable[[], Known]) -> Known:
    """What is kept under `path`, else what `make` finds, kept from then on; OSError where it cannot be written."""
    from filelock import FileLock

    if known := read_known(path, fingerprint):
        return known
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):  # runs that start together render once
        known = read_known(path, fingerprint)
        if known is None:
            known = make()
            write_known(path, fingerprint, known)
    return known
