"""Annotations of each kind of source: rendered scenes, files beside pictures, torchvision's sets."""

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

from ldmlab.data.annotations.annotation import WHOLE, Annotation, Known, seen_square
from ldmlab.data.annotations.coco import COCO_FILE, Coco

Progress = Callable[[int, int], object]  # told how many of how many are done
Place = tuple[str, int, int]  # where a picture's bytes lie: file, offset, length


def report_progress(progress: Progress | None, done: int, num: int) -> None:
    """Call `progress` at every 128th picture and at the last one."""
    if progress is not None and (done % 128 == 0 or done == num):
        progress(done, num)


def annotate_torchvision(
    pictures: Any, indices: np.ndarray, size: int, numbers: np.ndarray, progress: Progress | None = None
) -> Known:
    """The square that is seen, and nothing else: of torchvision's sets only the classes are read."""
    annotations = []
    for done, i in enumerate(indices[numbers].tolist(), 1):
        annotations.append(Annotation(-1, "", (), seen_square(*pictures[i][0].size, size)))
        report_progress(progress, done, len(numbers))
    return annotations, ()


@dataclass
class _Beside:
    """Files found beside pictures: each picture's full name by where it lies, text and COCO files by name."""

    names: dict[tuple[str, int], str] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)
    coco: list[tuple[str, Callable[[], bytes]]] = field(default_factory=list)


def _read_part(path: str, offset: int, length: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(length)


def _beside_in_tar(path: str, beside: _Beside) -> None:
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            name = f"{path}/{member.name.removeprefix('./')}"
            if not member.isreg() or member.issparse():
                continue
            if COCO_FILE.fullmatch(name):
                beside.coco.append((name, partial(_read_part, path, member.offset_data, member.size)))
            elif name.endswith((".txt", ".json")):
                beside.texts[name] = archive.extractfile(member).read()
            else:
                beside.names[path, member.offset_data] = name
            archive.members = []  # tarfile would keep every header


def _beside_in_folder(path: str, places: Sequence[Place], beside: _Beside) -> None:
    for file in sorted(f for pattern in ("", "*/") for f in Path(path).glob(f"{pattern}annotations/*.json")):
        if COCO_FILE.fullmatch(file.as_posix()):
            beside.coco.append((file.as_posix(), file.read_bytes))
    for picture, offset, _ in places:
        beside.names[picture, offset] = picture
        stem = picture.rsplit(".", 1)[0]
        for text in (f"{stem}.txt", f"{stem}.json"):
            if os.path.isfile(text):
                beside.texts[text] = Path(text).read_bytes()


def captions_beside(name: str, texts: dict[str, bytes]) -> list[str]:
    """The captions of a picture in the .txt beside it, one a line, or in the "caption" or "text" of the .json."""
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
    """Width and height of a picture, upright, from its header alone."""
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
) -> Known:
    """Annotations of the pictures with these numbers, and the names of the boxes, from the files beside them.

    COCO's files are `annotations/instances*.json`, `stuff*.json` and `captions*.json`, any that are there, at the top
    or one folder below; a picture belongs to the `file_name` that its path ends in. The first caption in a file's
    order is the caption; text beside the picture comes before COCO's. What in COCO's files cannot be used is told in
    one warning. Of a picture whose header cannot be read, nothing is known.
    """
    beside = _Beside()
    for root in folders_or_tars:
        if os.path.isdir(root):
            _beside_in_folder(root, places, beside)
        else:
            _beside_in_tar(root, beside)
    coco = Coco.read(beside.coco)
    names = [beside.names[places[number][:2]] for number in numbers.tolist()]
    keys = [coco.key(name) for name in names]
    _tell_what_is_left_out(coco, any(keys), ", ".join(folders_or_tars))
    annotations = []
    for done, (number, name, key) in enumerate(zip(numbers.tolist(), names, keys, strict=True), 1):
        captions = captions_beside(name, beside.texts) or coco.captions.get(key, [])
        try:
            crop = seen_square(*picture_size(*places[number]), size)
            boxes = tuple(coco.boxes.get(key, ()))
            annotations.append(Annotation(-1, captions[0] if captions else "", boxes, crop, tuple(captions[1:])))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            annotations.append(Annotation(-1, "", (), WHOLE))
        report_progress(progress, done, len(numbers))
    return annotations, coco.names


def _tell_what_is_left_out(coco: Coco, any_picture: bool, where: str) -> None:
    if coco.left_out:
        counts = ", ".join(f"{count} {why}" for why, count in sorted(coco.left_out.items()))
        warnings.warn(f"annotations of {where} are left out: {counts}", stacklevel=3)
    if coco.listed and not any_picture:
        warnings.warn(f"no picture of {where} has a file name that its annotations list, such as {min(coco.listed)!r}",
                      stacklevel=3)
