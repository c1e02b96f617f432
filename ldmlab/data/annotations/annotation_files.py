"""Annotations from files beside the pictures (text, JSON, COCO), and those of torchvision's sets."""

import json
import os
import tarfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ContainerIO, Image

from ldmlab.data.annotations.annotation import WHOLE, Annotation, AnnotationTable, center_crop_box
from ldmlab.data.annotations.coco import COCO_FILE, Coco
from ldmlab.progress import Progress, report_progress

Place = tuple[str, int, int]  # of a picture's bytes: file, offset, length


def annotate_torchvision(
    pictures: Any, indices: np.ndarray, size: int, numbers: np.ndarray, progress: Progress | None = None
) -> AnnotationTable:
    """Annotations with the crop alone: of torchvision's sets only the classes are read."""
    annotations = []
    for done, i in enumerate(indices[numbers].tolist(), 1):
        width, height = pictures[i][0].size
        annotations.append(Annotation(-1, "", (), center_crop_box(width, height, size)))
        report_progress(progress, done, len(numbers))
    return annotations, ()


@dataclass
class _Companions:
    """Files found beside pictures: full names of pictures by file and offset; text and COCO files by name."""

    names: dict[tuple[str, int], str] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)
    coco: list[tuple[str, Callable[[], bytes]]] = field(default_factory=list)


def _read_part(path: str, offset: int, length: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(length)


def _find_in_tar(path: str, found: _Companions) -> None:
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            name = f"{path}/{member.name.removeprefix('./')}"
            if not member.isreg() or member.issparse():
                continue
            if COCO_FILE.fullmatch(name):
                found.coco.append((name, partial(_read_part, path, member.offset_data, member.size)))
            elif name.endswith((".txt", ".json")):
                found.texts[name] = _read_part(path, member.offset_data, member.size)
            else:
                found.names[path, member.offset_data] = name
            archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header in memory


def _find_in_folder(path: str, places: Sequence[Place], found: _Companions) -> None:
    for file in sorted(f for pattern in ("", "*/") for f in Path(path).glob(f"{pattern}annotations/*.json")):
        if COCO_FILE.fullmatch(file.as_posix()):
            found.coco.append((file.as_posix(), file.read_bytes))
    for picture, offset, _ in places:
        found.names[picture, offset] = picture
        stem = picture.rsplit(".", 1)[0]
        for text in (f"{stem}.txt", f"{stem}.json"):
            if os.path.isfile(text):
                found.texts[text] = Path(text).read_bytes()


def captions_beside(name: str, texts: dict[str, bytes]) -> list[str]:
    """Captions of a picture from the .txt beside it, one per line, or from "caption" or "text" of the .json."""
    stem = name.rsplit(".", 1)[0]
    if (text := texts.get(f"{stem}.txt")) is not None:
        lines: object = text.decode("utf-8-sig", "replace").splitlines()
    else:
        try:
            fields = json.loads(texts.get(f"{stem}.json", b"{}"))
        except ValueError:
            return []
        lines = next((fields[k] for k in ("caption", "text") if k in fields), []) if isinstance(fields, dict) else []
    lines = [lines] if isinstance(lines, str) else lines if isinstance(lines, list) else []
    return [" ".join(line.split()) for line in lines if isinstance(line, str) and line.strip()]


def picture_size(path: str, offset: int, length: int) -> tuple[int, int]:
    """Width and height of a picture from its header, after its EXIF orientation."""
    with open(path, "rb") as file, Image.open(ContainerIO.ContainerIO(file, offset, length)) as image:
        width, height = image.size
        sideways = image.getexif().get(0x0112, 1) >= 5  # orientations 5 to 8 turn by a quarter
    return (height, width) if sideways else (width, height)


def annotate_files(
    folders_or_tars: Sequence[str],
    places: Sequence[Place],
    size: int,
    numbers: np.ndarray,
    progress: Progress | None = None,
) -> AnnotationTable:
    """Annotations of the pictures with these indices, and the names of box labels, from the files beside them.

    COCO's files are `annotations/instances*.json`, `stuff*.json` and `captions*.json` where they exist, at the top or
    one folder below; a picture belongs to the `file_name` that its path ends in. A text file beside a picture takes
    precedence over COCO's captions; the first caption in a file's order is `caption`. One warning counts the entries
    of COCO's files that cannot be used. A picture whose header cannot be read has an empty annotation.
    """
    found = _Companions()
    for root in folders_or_tars:
        if os.path.isdir(root):
            _find_in_folder(root, places, found)
        else:
            _find_in_tar(root, found)
    coco = Coco.read(found.coco)
    names = [found.names[places[number][:2]] for number in numbers.tolist()]
    keys = [coco.key(name) or "" for name in names]
    _warn_about_unused(coco, any(keys), ", ".join(folders_or_tars))
    annotations = []
    for done, (number, name, key) in enumerate(zip(numbers.tolist(), names, keys, strict=True), 1):
        captions = captions_beside(name, found.texts) or coco.captions.get(key, [])
        try:
            crop = center_crop_box(*picture_size(*places[number]), size)
            boxes = tuple(coco.boxes.get(key, ()))
            annotations.append(Annotation(-1, captions[0] if captions else "", boxes, crop, tuple(captions[1:])))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            annotations.append(Annotation(-1, "", (), WHOLE))
        report_progress(progress, done, len(numbers))
    return annotations, coco.names


def _warn_about_unused(coco: Coco, any_picture: bool, where: str) -> None:
    if coco.left_out:
        counts = ", ".join(f"{count} {why}" for why, count in sorted(coco.left_out.items()))
        warnings.warn(f"annotations of {where} are left out: {counts}", stacklevel=3)
    if coco.listed and not any_picture:
        warnings.warn(f"no picture of {where} has a file name that its annotations list, such as {min(coco.listed)!r}",
                      stacklevel=3)
