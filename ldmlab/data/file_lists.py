"""List the pictures in a folder or tar file, with their splits, classes and label maps.

Tar files are not unpacked: one scan notes the offset and length of each picture.
"""

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from ldmlab.data.dataset_names import PICTURES, SPLITS
from ldmlab.data.formats import read_part

HELD_OUT = 0.1  # share of the pictures for validation where the data has no such split
MAP_FOLDERS = ("segmentations", "annotations")  # beside "images", with the label maps under the pictures' names
SPLIT_OF = {
    "train": "train", "training": "train",
    "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test",
}


@dataclass(frozen=True)
class Entry:
    """One picture: its name in the data set, and the file, offset and length of its bytes."""

    name: str
    path: str
    offset: int
    length: int
    stamp: str  # modification time: changes when the file does
    label: str | int | None = None
    map: "Entry | None" = None  # its label map

    def bytes(self) -> bytes:
        """Read the picture's bytes; OSError where they cannot be read, ValueError for what is no regular file."""
        return read_part(self.path, self.offset, self.length, self.name)


def fraction(*parts: object) -> float:
    """Hash the parts to a number in [0, 1); splits and subsets are drawn by it."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:7], "big") / 2**56


def file_entry(path: str | Path, name: str) -> Entry:
    """The entry of a picture file."""
    stat = os.stat(path) if os.path.exists(path) else None  # a dangling link fails when it is read
    return Entry(name, str(path), 0, stat.st_size if stat else 0, str(stat.st_mtime_ns if stat else 0))


def scan_folder(root: Path) -> list[Entry]:
    """List every picture under a folder, each with its label map; hidden files are left out."""
    entries = []
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders[:] = sorted(d for d in subfolders if not d.startswith((".", "__")))
        for file in files:
            if file.lower().endswith(PICTURES) and not file.startswith("."):
                path = os.path.join(folder, file)
                entries.append(file_entry(path, Path(path).relative_to(root).as_posix()))
    return _join_maps(entries)


def _sibling_label(path: str, member: tarfile.TarInfo) -> str | int | None:
    with open(path, "rb") as file:
        file.seek(member.offset_data)
        text = file.read(member.size).decode("utf-8", "replace").strip()
    label: object = text
    if member.name.endswith(".json"):
        try:
            fields = json.loads(text)
        except json.JSONDecodeError:
            return None
        label = (
            next((fields[k] for k in ("label", "cls", "class") if k in fields), None)
            if isinstance(fields, dict)
            else None
        )
    if isinstance(label, str) and re.fullmatch(r"\d+", label):
        return int(label)
    return label if isinstance(label, str | int) and not isinstance(label, bool) and label != "" else None


def scan_tar(path: str) -> list[Entry]:
    """List every picture in a tar file, each with its label map and the class from a .cls or .json beside it.

    Raises ValueError for what is not an uncompressed tar file.
    """
    entries, labels = [], {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                hidden = any(part.startswith((".", "__")) for part in name.split("/"))
                if not member.isreg() or member.issparse() or hidden:
                    continue
                if name.lower().endswith(PICTURES):
                    entries.append(Entry(name, path, member.offset_data, member.size, f"{member.mtime}"))
                elif name.endswith((".cls", ".json")):
                    label = _sibling_label(path, member)
                    if label is not None:
                        labels[name.rsplit(".", 1)[0]] = label
                archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header in memory
    except tarfile.TarError as error:
        raise ValueError(f"{path} is not an uncompressed tar file: {error}") from error
    entries = _join_maps(entries)
    if not labels:
        return entries
    return [replace(e, label=labels.get(e.name.rsplit(".", 1)[0])) for e in entries]


def _join_maps(entries: list[Entry]) -> list[Entry]:
    """Join pictures with their label maps: `segmentations/a.png` of `images/a.jpg`, or `a.seg.png` beside `a.jpg`."""
    by_name = {e.name: e for e in entries}
    joined = [replace(e, map=next((by_name[n] for n in _map_names(e.name) if n in by_name), None)) for e in entries]
    maps = {e.map.name for e in joined if e.map}
    return [e for e in joined if e.name not in maps]


def _map_names(name: str) -> Iterator[str]:
    """Possible names of a picture's label map."""
    stem = name.rsplit(".", 1)[0]
    yield f"{stem}.seg.png"
    parts = stem.split("/")
    for i in [i for i, part in enumerate(parts[:-1]) if part == "images"]:
        for folder in MAP_FOLDERS:
            yield "/".join([*parts[:i], folder, *parts[i + 1 :]]) + ".png"


def _without_companions(entries: list[Entry]) -> list[Entry]:
    """Leave out masks and label maps beside their picture: `a_mask.png` or `a.seg.png` beside `a.jpg`."""
    stems = {e.name.rsplit(".", 1)[0] for e in entries}

    def is_companion(name: str) -> bool:
        stem = name.rsplit(".", 1)[0]
        folder, _, file = stem.rpartition("/")
        base = f"{folder}/{file.split('.')[0]}" if folder else file.split(".")[0]
        return (stem.endswith("_mask") and stem.removesuffix("_mask") in stems) or ("." in file and base in stems)

    return [e for e in entries if not is_companion(e.name)]


def _strip_common_folder(entries: list[Entry]) -> list[Entry]:
    while entries and len({e.name.split("/", 1)[0] for e in entries}) == 1 and all("/" in e.name for e in entries):
        entries = [replace(e, name=e.name.split("/", 1)[1]) for e in entries]
    return entries


class Arranged(NamedTuple):
    """The pictures of one split, in order, with their labels and class names; and the pictures of all splits."""

    entries: list[Entry]
    labels: np.ndarray  # (n,) int64, -1 without a class
    classes: tuple[str, ...] | None
    num_classes: int
    all_entries: list[Entry]


def arrange(entries: list[Entry], split: str, what: str) -> Arranged:
    """Sort the pictures of a listing into splits and classes, and return one split; `what` names the data in errors.

    Folders whose names are in SPLIT_OF, such as `train` and `val`, are splits. Without such folders, validation is a
    share HELD_OUT of train, drawn by file name. Where there is a folder `images`, its siblings are ignored. The class
    of a picture is its own label if it has one, else its outermost folder below the split; a single class counts as
    none. Raises ValueError where there are no pictures, or none in `split`.
    """
    entries = _strip_common_folder(sorted(_without_companions(entries), key=lambda e: (e.name, e.path)))
    if not entries:
        raise ValueError(f"data {what!r} holds no picture; accepted are {', '.join(PICTURES)}")
    tops = {PurePosixPath(e.name).parts[0] for e in entries if "/" in e.name}
    if "images" in tops:
        entries = _strip_common_folder([e for e in entries if e.name.startswith("images/")])
        tops = {PurePosixPath(e.name).parts[0] for e in entries if "/" in e.name}
    by_split: dict[str, list[Entry]] = {}
    if tops & {"train", "training"} and len(tops & set(SPLIT_OF)) > 1:
        for e in entries:
            top, _, rest = e.name.partition("/")
            if rest and top in SPLIT_OF:
                by_split.setdefault(SPLIT_OF[top], []).append(replace(e, name=rest))
    else:
        by_split["train"] = entries
    if "validation" not in by_split:
        drawn = sorted(by_split["train"], key=lambda e: fraction("held out", e.name))
        num = sum(fraction("held out", e.name) < HELD_OUT for e in drawn) or min(1, len(drawn) - 1)
        held = {(e.name, e.path) for e in drawn[:num]}
        by_split["validation"] = [e for e in by_split["train"] if (e.name, e.path) in held]
        by_split["train"] = [e for e in by_split["train"] if (e.name, e.path) not in held]
    if not by_split.get(split):
        raise ValueError(
            f"data {what!r} has no {split} split; it has {', '.join(k for k in SPLITS if by_split.get(k))}"
        )
    every = [e for part in by_split.values() for e in part]
    if not any(e.label is not None for e in every):
        by_split = {k: [replace(e, label=_folder_class(e.name)) for e in part] for k, part in by_split.items()}
        every = [e for part in by_split.values() for e in part]
    chosen = by_split[split]
    given = {e.label for e in every if e.label is not None}
    numbers = [k for k in given if isinstance(k, int) and k >= 0]
    if given and len(numbers) == len(given):
        labels = np.array([-1 if e.label is None else e.label for e in chosen], np.int64)
        return Arranged(chosen, labels, None, max(numbers) + 1, every)
    classes = tuple(sorted(map(str, given)))
    if len(classes) < 2:  # a single class carries no information
        return Arranged(chosen, np.full(len(chosen), -1, np.int64), None, 0, every)
    number = {name: k for k, name in enumerate(classes)}
    labels = np.array([number.get(str(e.label), -1) for e in chosen], np.int64)
    return Arranged(chosen, labels, classes, len(classes), every)


def _folder_class(name: str) -> str | None:
    return name.split("/", 1)[0] if "/" in name else None
