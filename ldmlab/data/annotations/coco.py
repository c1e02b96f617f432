"""Annotations in COCO's format: captions, and boxes of things and stuff, from JSON files [COCO; COCO-Stuff]."""

import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from ldmlab.data.annotations.annotation import Box
from ldmlab.data.annotations.file_names import Parts, name_parts, split_words
from ldmlab.data.annotations.frames import Frame
from ldmlab.data.annotations.report import AnnotationReport, short_name

COCO_FILE = re.compile(r"(?:.*/)?annotations/(instances|stuff|captions)(?:[-_. ][^/]*)?\.json", re.IGNORECASE)
_ORDER = ("instances", "stuff", "captions")
_DROPPED = "other"  # a stuff class that the released layout models do not use
_MARGIN = 2.0  # pixels by which a box may reach beyond its frame, by rounding
Category = tuple[str, str]  # id and name
Loader = Callable[[], bytes]


class StatedBox(NamedTuple):
    """A box as a file states it: left, top, width and height in pixels of a picture of `size`, None if not stated."""

    category: Category
    x: float
    y: float
    width: float
    height: float
    size: tuple[float, float] | None


@dataclass
class Listed:
    """What the files say of one file name."""

    name: str  # as it is written
    boxes: list[StatedBox] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    annotated: set[tuple[str, str]] = field(default_factory=set)  # files, and ids in them, that annotations are of

    @property
    def is_of_several(self) -> bool:
        """Whether one file has annotations of several pictures of this name."""
        return len(self.annotated) > len({file for file, _ in self.annotated})


@dataclass
class Coco:
    """Boxes and captions of COCO's files, by the pictures' file names and the splits that the files are named after.

    Labels of boxes index `names`: the categories in the order of their ids as strings ("1", "10", "100", ...), things
    and stuff together and without "other", as released; 171 in all. Boxes are in the files' order, things first;
    crowds count as boxes, as released. Entries that cannot be used are left out and counted in `report`.
    """

    report: AnnotationReport = field(default_factory=AnnotationReport)
    names: tuple[str, ...] = ()
    listed: dict[tuple[Parts, frozenset[str]], Listed] = field(default_factory=dict)
    _labels: dict[Category, int] = field(default_factory=dict)

    @classmethod
    def read(cls, files: Iterable[tuple[str, Loader]], report: AnnotationReport) -> "Coco":
        """Read files, each a name and a function that reads it, one after the other, since they can be large.

        Files of other names than COCO's are read where there are no others. Raises ValueError, naming the file, for one
        of COCO's names that is not in COCO's format.
        """
        coco, categories = cls(report), set[Category]()
        found = [(match[1].lower() if (match := COCO_FILE.fullmatch(name)) else "", name, read) for name, read in files]
        named = [file for file in found if file[0]]
        report.unread += [short_name(name) for kind, name, _ in found if named and not kind]
        ordered = sorted(named or found, key=lambda file: (_ORDER.index(file[0] or "instances"), file[1]))
        for kind, name, read in ordered:
            try:
                content = _content(read(), name, report)
                pictures, rows = content["images"], content["annotations"]
                if not isinstance(pictures, list) or not isinstance(rows, list):
                    raise TypeError("'images' and 'annotations' are lists")
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                if not kind:
                    report.unread.append(short_name(name))
                    continue
                said = f"{type(error).__name__}: {str(error)[:200]}"
                raise ValueError(f"{name} is not in COCO's format: {said}") from error
            short = short_name(name)
            report.files.append(short)
            own = coco._categories(content.get("categories"), categories, short)
            categories |= {c for c in own.values() if kind != "stuff" or c[1] != _DROPPED}
            coco._read_rows(rows, coco._read_pictures(pictures, short), own, short)
        coco._labels = {category: label for label, category in enumerate(sorted(categories))}
        coco.names = tuple(name for _, name in sorted(categories))
        return coco

    def _categories(self, rows: Any, known: set[Category], file: str) -> dict[str, Category]:
        """Categories of a file by id: as in earlier files, by name where the ids of those mean something else."""
        own: dict[str, Category] = {}
        for row in rows if isinstance(rows, list) else ():
            if isinstance(row, dict) and (key := _id(row.get("id"))) and isinstance(row.get("name"), str):
                own.setdefault(key, (key, row["name"]))
            else:
                self.report.leave_out("categories without an id or a name", file)
        names = dict(known)
        if any(names.get(key, name) != name for key, name in own.values()):
            self.report.note("files number the categories otherwise than the first: matched by name", file)
            first = {name: key for key, name in sorted(known, reverse=True)}
            own = {key: (first.get(name, key), name) for key, (_, name) in own.items()}
        return own

    def _read_pictures(self, rows: list, file: str) -> dict[str, tuple[Listed, tuple[float, float] | None]]:
        """What is listed of each picture by id, and the size that is stated, None where it is not or is 0."""
        pictures = {}
        splits = split_words([PurePosixPath(file).name])
        for row in rows:
            name = row.get("file_name") if isinstance(row, dict) else None
            key = _id(row.get("id")) if isinstance(row, dict) else ""
            parts = name_parts(name) if isinstance(name, str) else ()
            if not key or not parts:
                self.report.leave_out("pictures without an id or a file name", file)
                continue
            size = _numbers([row.get("width"), row.get("height")], 2)
            listed = self.listed.setdefault((parts, splits), Listed(str(name)))
            pictures[key] = listed, (size[0], size[1]) if size and min(size) > 0 else None
        return pictures

    def _read_rows(self, rows: list, pictures: dict, categories: dict[str, Category], file: str) -> None:
        for row in rows:
            if not isinstance(row, dict):
                self.report.leave_out("that are no objects", file)
            elif (found := pictures.get(_id(row.get("image_id")))) is None:
                self.report.leave_out("of a picture that is not listed", file)
            else:
                listed, size = found
                listed.annotated.add((file, _id(row["image_id"])))
                if "caption" in row and row.get("bbox") is None:
                    self._read_caption(row["caption"], listed)
                else:
                    self._read_box(row, listed, size, categories)

    def _read_caption(self, caption: Any, listed: Listed) -> None:
        if isinstance(caption, str) and caption.strip():
            listed.captions.append(" ".join(caption.split()))
        else:
            self.report.leave_out("captions without a word", listed.name)

    def _read_box(
        self, row: dict, listed: Listed, size: tuple[float, float] | None, categories: dict[str, Category]
    ) -> None:
        box, category = row.get("bbox"), categories.get(_id(row.get("category_id")))
        if category is None:
            self.report.leave_out("of a category that is not listed", listed.name)
        elif box is None or box == []:
            self.report.leave_out("without a box", listed.name)
        elif (numbers := _numbers(box, 4)) is None:
            self.report.leave_out("whose box is not four numbers", listed.name)
        else:
            x, y, width, height = numbers
            listed.boxes.append(StatedBox(category, x, y, width, height, size))

    def boxes(self, listed: Listed, frame: Frame, name: str) -> list[Box]:
        """The boxes of one picture in fractions of it, upright; `name` is counted in the report."""
        boxes = []
        for stated in listed.boxes:
            if stated.category in self._labels:
                ends = _in_fractions(stated, frame, name, self.report)
                if ends is not None:
                    boxes.append(Box(stated.category[1], self._labels[stated.category], *ends))
        return boxes


def _in_fractions(box: StatedBox, frame: Frame, name: str, report: AnnotationReport) -> tuple | None:
    """A stated box in fractions of the upright picture; None, and counted, where it is not known where it lies."""
    across, down = box.size or frame.upright
    which = frame.stated(across, down)
    if not which:
        report.leave_out("of a picture that is neither as it is stored nor upright of the stated size", name)
        return None
    x0, x1 = (min(max(end / across, 0.0), 1.0) for end in (box.x, box.x + box.width))
    y0, y1 = (min(max(end / down, 0.0), 1.0) for end in (box.y, box.y + box.height))
    if not (x1 > x0 and y1 > y0):
        report.leave_out("without size or outside of the picture", name)
        return None
    if which == "stored":
        if box.x + box.width > across + _MARGIN or box.y + box.height > down + _MARGIN:
            report.leave_out("beyond the stated size, which is that of the picture before EXIF turns it", name)
            return None
        report.note("boxes are turned with their pictures by EXIF, since the size stated for them is the stored one; "
                    "state the upright size for boxes of upright pictures", name)
        return frame.turn((x0, y0, x1, y1))
    if frame.orientation != 1 and (box.size is None or across == down or frame.orientation < 5):
        report.note("boxes of pictures that EXIF turns are taken as upright, since the stated size does not tell", name)
    return x0, y0, x1, y1


def _content(raw: bytes, name: str, report: AnnotationReport) -> dict:
    try:
        content = json.loads(raw)
    except UnicodeDecodeError:
        content = json.loads(raw.decode("cp1252"))
        report.note("annotation files are read as cp1252 (Windows), not being UTF-8", short_name(name))
    if not isinstance(content, dict):
        raise ValueError("it holds no object")
    return content


def _id(value: Any) -> str:
    """An id as text, the same for 1, 1.0 and "1"; "" for what is none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    if isinstance(value, float):
        return str(int(value)) if math.isfinite(value) and value == int(value) else ""
    return str(value).strip()


def _numbers(values: Any, count: int) -> list[float] | None:
    """The values, if they are so many finite numbers."""
    if not isinstance(values, list) or len(values) != count:
        return None
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e9 for v in values):
        return None  # also for NaN
    return [float(v) for v in values]
