"""Annotations in COCO's format: captions, and boxes of things and stuff, from JSON files [COCO; COCO-Stuff]."""

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from ldmlab.data.annotations.annotation import Box

COCO_FILE = re.compile(r"(?:.*/)?annotations/(instances|stuff|captions)(?:_[^/]*)?\.json")
_DROPPED = "other"  # a stuff class that the released layout models do not use


@dataclass
class Coco:
    """Boxes and captions of COCO's files, by the pictures' file names.

    Labels of boxes index `names`: the categories in the order of their ids as strings ("1", "10", "100", ...), things
    and stuff together and without "other", as released; 171 in all. Boxes are in the files' order, things first;
    crowds count as boxes, as released. Boxes without area or outside of their picture, and entries of a picture or
    category that its file does not list, are left out and counted in `left_out`.
    """

    names: tuple[str, ...] = ()
    listed: set[str] = field(default_factory=set)  # file names of pictures, annotated or not
    boxes: dict[str, list[Box]] = field(default_factory=lambda: defaultdict(list))
    captions: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    left_out: Counter = field(default_factory=Counter)

    @classmethod
    def read(cls, files: Iterable[tuple[str, Callable[[], bytes]]]) -> "Coco":
        """Read files, each a name and a function that reads it, one after the other, since they can be large.

        Raises ValueError, naming the file, for one that is not in COCO's format.
        """
        coco, categories = cls(), dict[str, str]()
        found: list[tuple[str, str, tuple[float, float, float, float]]] = []
        order = ("instances", "stuff", "captions")
        kinds = [(order.index(match[1]), name, read) for name, read in files if (match := COCO_FILE.fullmatch(name))]
        for number, name, read in sorted(kinds, key=lambda entry: entry[:2]):
            kind = order[number]
            try:
                content = json.loads(read())
                pictures = {p["id"]: p for p in content["images"]}
                coco.listed.update(p["file_name"] for p in pictures.values())
                if kind == "captions":
                    coco._read_captions(content["annotations"], pictures)
                else:
                    listed = {c["id"]: c["name"] for c in content["categories"]}
                    found += coco._read_boxes(content["annotations"], pictures, listed)
                    kept = {i: c for i, c in listed.items() if kind != "stuff" or c != _DROPPED}
                    categories.update({str(i): c for i, c in kept.items() if str(i) not in categories})
            except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
                raise ValueError(f"{name} is not in COCO's format: {type(error).__name__}: {error}") from error
        index = {i: k for k, i in enumerate(sorted(categories))}
        coco.names = tuple(categories[i] for i in sorted(categories))
        for picture, category, ends in found:
            if category in index:
                coco.boxes[picture].append(Box(categories[category], index[category], *ends))
        return coco

    def _read_captions(self, rows: list[dict], pictures: dict) -> None:
        for row in rows:
            text = " ".join(row["caption"].split())
            if row["image_id"] not in pictures:
                self.left_out["of a picture that is not listed"] += 1
            elif text:
                self.captions[pictures[row["image_id"]]["file_name"]].append(text)

    def _read_boxes(
        self, rows: list[dict], pictures: dict, categories: dict
    ) -> Iterator[tuple[str, str, tuple[float, float, float, float]]]:
        for row in rows:
            picture = pictures.get(row["image_id"])
            if picture is None:
                self.left_out["of a picture that is not listed"] += 1
                continue
            if row["category_id"] not in categories:
                self.left_out["of a category that is not listed"] += 1
                continue
            x, y, width, height = row["bbox"]
            across, down = picture["width"], picture["height"]
            x0, x1 = (min(max(end / across, 0.0), 1.0) for end in (x, x + width))
            y0, y1 = (min(max(end / down, 0.0), 1.0) for end in (y, y + height))
            if not (x1 > x0 and y1 > y0):
                self.left_out["without size or outside of the picture"] += 1
                continue
            yield picture["file_name"], str(row["category_id"]), (x0, y0, x1, y1)

    def key(self, path: str) -> str | None:
        """The listed file name of a picture: the longest suffix of its path that is listed; None if there is none."""
        parts = path.replace(os.sep, "/").split("/")
        ends = ("/".join(parts[k:]) for k in range(len(parts)))
        return next((end for end in ends if end in self.listed), None)
