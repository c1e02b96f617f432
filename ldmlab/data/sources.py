"""Where pictures come from: the embedded world, folders, tar files and shards, torchvision sets.

Every source is a list of pictures in a fixed order, each readable alone at any time, so that a run can stop and go on
anywhere in an epoch. Tar files are not unpacked: one scan notes where each picture lies.
"""

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ldmlab.data.annotate import annotate_files, annotate_scenes, annotate_torchvision
from ldmlab.data.annotations import Known
from ldmlab.data.decode import decode, square
from ldmlab.data.names import PICTURES, SPLITS, TORCHVISION, expand_shards

HELD_OUT = 0.1  # share of the pictures that makes the validation split where the data has none
_SPLIT_OF = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class Source:
    """Pictures in a fixed order; `read(i)` gives number i as (3, size, size) uint8 or raises what its decoder does."""

    name: str
    names: Sequence[str]
    labels: np.ndarray  # (n,) int64, -1 without a class
    classes: tuple[str, ...] | None
    num_classes: int
    identity: str  # sha256 of what the pictures are
    read: Callable[[int], np.ndarray]
    annotate: Callable[..., Known]  # (numbers, progress) -> what is known of these pictures, but for their classes
    box_names: tuple[str, ...] | None = None  # None: `annotate` finds them out


@dataclass(frozen=True)
class Entry:
    """One picture: its name inside the data set, and where its bytes lie."""

    name: str
    path: str
    offset: int
    length: int
    stamp: str  # changes when the picture does
    label: str | int | None = None

    def bytes(self) -> bytes:
        """The file's bytes; OSError where they cannot be read."""
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read(self.length)


def _read_file(entries: list[Entry], size: int, i: int) -> np.ndarray:
    return decode(entries[i].bytes(), size)


def _read_torchvision(pictures: Any, indices: np.ndarray, size: int, i: int) -> np.ndarray:
    return square(pictures[int(indices[i])][0], size)


def _read_scene(seed: int, split: str, size: int, i: int) -> np.ndarray:
    from ldmlab.data.scenes import render_images

    return render_images(seed, split, [i], size)[0][0]


def fraction(*parts: object) -> float:
    """A number in [0, 1) that depends on the parts alone; splits and subsets are drawn with it."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:7], "big") / 2**56


def scan_folder(root: Path) -> list[Entry]:
    """Every picture under a folder, hidden files left out."""
    entries = []
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders[:] = sorted(d for d in subfolders if not d.startswith((".", "__")))
        for file in files:
            if file.lower().endswith(PICTURES) and not file.startswith("."):
                path = os.path.join(folder, file)
                stat = os.stat(path) if os.path.exists(path) else None  # a dangling link is found out when it is read
                name = Path(path).relative_to(root).as_posix()
                entries.append(Entry(name, path, 0, stat.st_size if stat else 0, str(stat.st_mtime_ns if stat else 0)))
    return entries


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
    """Every picture in a tar file, with the class of a .cls or .json beside it; ValueError if it is no plain tar."""
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
                archive.members = []  # tarfile would keep every header
    except tarfile.TarError as error:
        raise ValueError(f"{path} is no uncompressed tar file: {error}") from error
    if not labels:
        return entries
    return [replace(e, label=labels.get(e.name.rsplit(".", 1)[0])) for e in entries]


def _without_companions(entries: list[Entry]) -> list[Entry]:
    """Leave out masks and maps that stand beside their picture: `a_mask.png` or `a.seg.png` beside `a.jpg`."""
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


def arrange(entries: list[Entry], split: str, what: str) -> tuple[list[Entry], np.ndarray, tuple[str, ...] | None, int]:
    """Names, split and classes of a listing: (entries of the split, labels, classes, num_classes).

    Folders `train` and `val`, `validation` or `test` are splits; where there is none, validation is HELD_OUT of train,
    drawn by name, and test a ValueError. Of `images` and its neighbours only `images` is read. The outermost folder
    that is left is the class, unless a label came with the picture.
    """
    entries = _strip_common_folder(sorted(_without_companions(entries), key=lambda e: (e.name, e.path)))
    if not entries:
        raise ValueError(f"data {what!r} holds no picture; read are {', '.join(PICTURES)}")
    tops = {PurePosixPath(e.name).parts[0] for e in entries if "/" in e.name}
    if "images" in tops:
        entries = _strip_common_folder([e for e in entries if e.name.startswith("images/")])
        tops = {PurePosixPath(e.name).parts[0] for e in entries if "/" in e.name}
    by_split: dict[str, list[Entry]] = {}
    if "train" in tops and len(tops & set(_SPLIT_OF)) > 1:
        for e in entries:
            top, _, rest = e.name.partition("/")
            if rest and top in _SPLIT_OF:
                by_split.setdefault(_SPLIT_OF[top], []).append(replace(e, name=rest))
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
    if given and all(isinstance(k, int) and k >= 0 for k in given):
        return chosen, np.array([-1 if e.label is None else e.label for e in chosen], np.int64), None, max(given) + 1
    classes = tuple(sorted(map(str, given)))
    if len(classes) < 2:  # one class tells nothing
        return chosen, np.full(len(chosen), -1, np.int64), None, 0
    number = {name: k for k, name in enumerate(classes)}
    return chosen, np.array([number.get(str(e.label), -1) for e in chosen], np.int64), classes, len(classes)


def _folder_class(name: str) -> str | None:
    return name.split("/", 1)[0] if "/" in name else None


def files_source(kind: str, path: str, split: str, size: int) -> Source:
    """A folder of pictures, a tar file, or shards."""
    if kind == "folder":
        roots = [str(Path(path).expanduser())]
        entries = scan_folder(Path(path).expanduser())
    else:
        place = Path(path).expanduser()
        tars = sorted(map(str, place.glob("*.tar"))) if place.is_dir() else expand_shards(str(place))
        roots = tars
        words = [{_SPLIT_OF[w] for w in re.split(r"[^a-z]+", Path(t).stem.lower()) if w in _SPLIT_OF} for t in tars]
        by_name = len(set().union(*words)) > 1  # shards are named after their split
        entries = []
        for tar, word in zip(tars, words, strict=True):
            prefix = f"{min(word)}/" if by_name and word else ""
            entries += [replace(e, name=prefix + e.name) for e in scan_tar(tar)]
    chosen, labels, classes, num_classes = arrange(entries, split, path)
    digest = hashlib.sha256()
    for e, label in zip(chosen, labels.tolist(), strict=True):
        digest.update(f"{e.name}\0{e.length}\0{e.stamp}\0{label}\n".encode())
    name = Path(path).expanduser().resolve().name.removesuffix(".tar")
    names = [e.name for e in chosen]
    places = [(e.path, e.offset, e.length) for e in chosen]
    return Source(
        name,
        names,
        labels,
        classes,
        num_classes,
        digest.hexdigest(),
        partial(_read_file, chosen, size),
        partial(annotate_files, roots, places, size),
    )


def torchvision_source(name: str, split: str, size: int, root: Path, download: bool) -> Source:
    """A torchvision set under `root`, downloaded only on request; without a validation split, HELD_OUT of train."""
    from torchvision import datasets

    name = name.lower()
    make = getattr(datasets, TORCHVISION[name])
    own_validation = {"celeba": "valid", "flowers102": "val"}
    part = "train" if split == "validation" and name not in own_validation else split
    if name in ("svhn", "stl10", "celeba", "flowers102", "food101"):
        arguments: dict[str, object] = {"split": own_validation.get(name, part) if part == "validation" else part}
    elif name == "oxfordiiitpet":
        arguments = {"split": "trainval" if part == "train" else part}
    else:
        arguments = {"train": part == "train"}
    try:
        pictures = make(root=str(root), download=download, **arguments)
    except (RuntimeError, OSError) as error:
        raise ValueError(
            f"torchvision's {TORCHVISION[name]} is not under {root} ({str(error).splitlines()[0]}); put it there, "
            f"or ask for the download with open_dataset({name!r}, ..., root={str(root)!r}, download=True)"
        ) from error
    indices = np.arange(len(pictures))
    if name not in own_validation and part == "train":
        held = np.array([fraction("held out", i) < HELD_OUT for i in range(len(pictures))], bool)
        indices = indices[held if split == "validation" else ~held]
    classes = None
    labels = np.full(len(indices), -1, np.int64)
    if name != "celeba":
        given = next((getattr(pictures, k) for k in ("targets", "labels", "_labels") if hasattr(pictures, k)), None)
        labels = np.asarray([pictures[i][1] for i in range(len(pictures))] if given is None else given, np.int64)[
            indices
        ]
        classes = tuple(map(str, getattr(pictures, "classes", ()))) or None
    num_classes = len(classes) if classes else int(labels.max()) + 1
    digest = hashlib.sha256(f"{name} {split} {len(indices)}\n".encode() + labels.tobytes())
    for i in (*indices[:16].tolist(), *indices[-16:].tolist()):
        digest.update(square(pictures[i][0], size).tobytes())
    names = [f"{part}/{i}" for i in indices]
    return Source(
        name,
        names,
        labels,
        classes,
        num_classes,
        digest.hexdigest(),
        partial(_read_torchvision, pictures, indices, size),
        partial(annotate_torchvision, pictures, indices, size),
        (),
    )


def scenes_source(split: str, size: int, num: int | None, seed: int) -> Source:
    """The embedded world: `num` scenes of a split (by default NUM_SCENES) of the world with this seed."""
    from ldmlab.data import scenes

    num = scenes.NUM_SCENES[split] if num is None else num
    scenes.render_images(seed, split, [0], size)  # a wrong size is told now
    labels = np.array([scenes.scene_label(seed, split, i) for i in range(num)], np.int64)
    identity = hashlib.sha256(f"scenes {scenes.VERSION} {seed} {split} {num} {size}".encode()).hexdigest()
    names = [f"{split}/{i}" for i in range(num)]

    return Source(
        "scenes",
        names,
        labels,
        scenes.CLASSES,
        len(scenes.CLASSES),
        identity,
        partial(_read_scene, seed, split, size),
        partial(annotate_scenes, seed, split, size),
        scenes.LABELS,
    )
