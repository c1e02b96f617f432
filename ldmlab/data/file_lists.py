"""List the pictures in a folder or tar file, with their label maps; what is not used is counted in a `DataReport`.

Tar files are not unpacked: one scan notes the offset and length of each picture.
"""

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from ldmlab.data.dataset_names import is_picture
from ldmlab.data.formats import read_part
from ldmlab.data.listing.names import (
    PICTURE_LIKE,
    TEXTS,
    is_companion,
    is_litter_file,
    is_litter_folder,
    main_rank,
    printable,
)
from ldmlab.data.listing.report import DataReport
from ldmlab.data.listing.walk import Found, walk

HELD_OUT = 0.1  # share of the pictures for validation where the data has no such split
MAP_FOLDERS = ("segmentations", "annotations")  # beside "images", with the label maps under the pictures' names
MAX_LABEL = 1 << 12  # bytes of a .cls; longer files hold something else
MAX_JSON = 1 << 24
_WHY = {
    "special": "no regular files (pipes, sockets, devices)",
    "broken": "links that lead nowhere",
    "loop": "folders that are in the set already, or contain it, under another name",
    "closed": "folders that cannot be opened",
}
TWICE = "names of a file that is in the set already (links)"


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
    file_id: str = ""  # device, number and time of the last change of the file that holds it

    def bytes(self) -> bytes:
        """Read the picture's bytes; OSError where they cannot be read, ValueError for what is no regular file."""
        return read_part(self.path, self.offset, self.length, self.name)


def fraction(*parts: object) -> float:
    """Hash the parts to a number in [0, 1); splits and subsets are drawn by it."""
    text = "\0".join(map(str, parts)).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(text).digest()[:7], "big") / 2**56


def drawn(names: Sequence[str], num: int, seed: int) -> list[int]:
    """Indices of `num` of the names, or of all where they are fewer, in the order of a hash of `seed` and each name.

    A smaller draw begins a larger one.
    """
    return sorted(range(len(names)), key=lambda i: fraction("subset", seed, names[i]))[:num]


def file_entry(path: str | Path, name: str) -> Entry:
    """The entry of a picture file."""
    stat = os.stat(path) if os.path.exists(path) else None  # a dangling link fails when it is read
    return _entry(os.fspath(path), name, stat)


def _entry(path: str, name: str, stat: os.stat_result | None) -> Entry:
    if stat is None:
        return Entry(name, path, 0, 0, "0")
    return Entry(name, path, 0, stat.st_size, str(stat.st_mtime_ns), file_id=_file_id(stat))


def _file_id(stat: os.stat_result) -> str:
    return f"{stat.st_dev}:{stat.st_ino}:{stat.st_ctime_ns}"


def _leave_out(report: DataReport, name: str) -> None:
    """Count a file whose name is none of a picture."""
    base = name.rpartition("/")[2]
    ending = os.path.splitext(base)[1].lower()
    if is_litter_file(base):
        report.leave_out("hidden and system files", name)
    elif ending in PICTURE_LIKE:
        report.leave_out(f"{ending} files, a format that is not read", name)
    elif ending == ".tar":
        report.leave_out("tar files beside pictures, which hold more", name)
    elif ending in TEXTS:
        report.count_beside("text and JSON files")
    else:
        report.leave_out(f"other files, {printable(ending) or 'without an ending'}", name)


def scan_folder(root: Path, report: DataReport | None = None) -> list[Entry]:
    """List every picture under a folder once, each with its label map, whatever links lead to it.

    Hidden files, litter of systems and tools, and what is no regular file are left out.
    """
    report = DataReport() if report is None else report
    names: dict[object, list[Found]] = {}
    for found in walk(root, is_picture):
        report.found += found.kind != "folder"
        if found.kind == "folder":
            report.folders.add([found.name])
        elif found.kind != "file":
            report.leave_out(_WHY[found.kind], found.name)
        elif found.stat is None:
            _leave_out(report, found.name)
        else:
            names.setdefault(found.identity, []).append(found)
    entries, again = [], []
    for same in names.values():
        first = same[0]
        if len(same) > 1:
            first, *others = sorted(same, key=lambda found: found.rank)
            again += [found.name for found in others]
        entries.append(_entry(first.path, printable(first.name), first.stat))
    report.leave_out(TWICE, *sorted(again))
    return _join_maps(entries, report)


def _sibling_label(file: IO[bytes], member: tarfile.TarInfo) -> str | int | None:
    """The class that a .cls or .json states; None where it states none, ValueError for what is no id or name."""
    is_json = member.name.endswith(".json")
    if member.size > (MAX_JSON if is_json else MAX_LABEL):
        raise ValueError("too long")
    file.seek(member.offset_data)
    text = file.read(member.size).decode("utf-8-sig", "replace").strip()
    label: object = text
    if is_json:
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError):
            return None  # captions may be in it; who reads them says so
        label = (
            next((fields[k] for k in ("label", "cls", "class") if k in fields), None)
            if isinstance(fields, dict)
            else None
        )
    if isinstance(label, float) and label.is_integer():
        return int(label)
    if isinstance(label, str) and re.fullmatch(r"-?[0-9]{1,4000}", label):
        return int(label)
    if label is None or (isinstance(label, str | int) and not isinstance(label, bool) and label != ""):
        return label
    raise ValueError(f"a class is an id or a name, not {label!r}")


def scan_tar(path: str, report: DataReport | None = None) -> list[Entry]:
    """List every picture in a tar file, each with its label map and the class from a .cls or .json beside it.

    Files of one sample share their name up to the first dot, as in WebDataset; of a sample's pictures one is listed.
    Raises ValueError for what is not an uncompressed tar file.
    """
    report = DataReport() if report is None else report
    entries, labels, texts, unread = [], dict[str, str | int](), set[str](), list[str]()
    try:
        with open(path, "rb") as file, tarfile.open(path, "r:", fileobj=file) as archive:
            file_id = _file_id(os.fstat(file.fileno()))
            for member in archive:
                name = printable(member.name.removeprefix("./"))
                if member.isdir():
                    continue
                report.found += 1
                *folders, base = name.split("/")
                if any(map(is_litter_folder, folders)) or is_litter_file(base) or base.startswith("__"):
                    report.leave_out("hidden and system files", name)
                elif member.islnk() or member.issym():
                    report.leave_out("links inside of the tar file", name)
                elif not member.isreg() or member.issparse():
                    report.leave_out("no regular files", name)
                elif is_picture(base):
                    entries.append(
                        Entry(name, path, member.offset_data, member.size, f"{member.mtime}", file_id=file_id))
                else:
                    _leave_out(report, name)
                    if base.endswith((".cls", ".json")):
                        try:
                            if (label := _sibling_label(file, member)) is not None:
                                labels[_stem(name)] = label
                        except ValueError:
                            unread.append(name)
                    if base.endswith((".cls", ".json", ".txt")):
                        texts.add(_stem(name))
                archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header in memory
    except tarfile.TarError as error:
        raise ValueError(f"{path} is not an uncompressed tar file: {error}") from error
    if unread:
        report.note(f"{len(unread):,} .cls and .json files hold a class that is no id and no name, such as {unread[0]}")
    entries = _main_pictures(_join_maps(entries, report, by_key=True), texts, report)
    if not labels:
        return entries
    return [replace(e, label=labels.get(stem, labels.get(_key(stem)))) for e in entries for stem in (_stem(e.name),)]


def _stem(name: str) -> str:
    return name.rsplit(".", 1)[0]


def _key(name: str) -> str:
    """What the files of a WebDataset sample share: the name up to the first dot after its folders."""
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}{base.split('.', 1)[0]}"


def _middle(name: str) -> str:
    """The part of a name between its first and its last dot."""
    return _stem(name)[len(_key(name)) + 1 :]


def _main_pictures(entries: list[Entry], texts: set[str], report: DataReport) -> list[Entry]:
    """One picture of each WebDataset sample; pictures whose names merely hold dots, or with texts of their own, all.

    Where a tar file holds no texts by key, "photo.1.jpg" is a picture beside "photo.jpg"; where it does, and nothing
    but a companion's name or another picture's key sets them apart, they are one sample.
    """
    samples: dict[str, list[Entry]] = {}
    for e in entries:
        samples.setdefault(_key(e.name), []).append(e)
    if len(samples) == len(entries):
        return entries
    left_out = set()
    for key, members in samples.items():
        own = [e for e in members if not _middle(e.name) or _stem(e.name) in texts]
        others = sorted((e for e in members if e not in own), key=lambda e: (
            is_companion(_middle(e.name)), main_rank(_middle(e.name)), e.name)) if len(own) < len(members) else []
        if not own and others:
            own = [others.pop(0)]
        for e in others:
            if key in texts or is_companion(_middle(e.name)) or not re.search(r"\d", _middle(e.name)):
                left_out.add(e.name)
    report.leave_out("further pictures of a sample (the same name up to the first dot)", *sorted(left_out))
    return [e for e in entries if e.name not in left_out]


def _join_maps(entries: list[Entry], report: DataReport, by_key: bool = False) -> list[Entry]:
    """Join pictures with their label maps: `segmentations/a.png` of `images/a.jpg`, or `a.seg.png` beside `a.jpg`."""
    if not any(e.name.endswith(".png") for e in entries):
        return entries
    by_name = {e.name: e for e in entries}
    joined = []
    for e in entries:
        found = next((by_name[n] for n in _map_names(e.name, by_key) if n in by_name and n != e.name), None)
        joined.append(e if found is None else replace(e, map=found))
    maps = {e.map.name for e in joined if e.map}
    report.count_beside("label maps", len(maps))
    return [e for e in joined if e.name not in maps]


def _map_names(name: str, by_key: bool) -> Iterator[str]:
    """Possible names of a picture's label map."""
    stem = _stem(name)
    yield f"{stem}.seg.png"
    if by_key:
        yield f"{_key(name)}.seg.png"
    if "images" in stem:
        parts = stem.split("/")
        for i in [i for i, part in enumerate(parts[:-1]) if part == "images"]:
            for folder in MAP_FOLDERS:
                yield "/".join([*parts[:i], folder, *parts[i + 1 :]]) + ".png"
