"""Annotations from files beside the pictures (text, JSON, COCO), and those of torchvision's sets."""

import os
import tarfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ldmlab.data.annotations.annotation import WHOLE, Annotation, AnnotationTable, Box, center_crop_box
from ldmlab.data.annotations.captions import MAX_TEXT_BYTES, captions_of_json, captions_of_text
from ldmlab.data.annotations.coco import Coco, Listed, Loader
from ldmlab.data.annotations.file_names import Parts, PictureNames
from ldmlab.data.annotations.frames import Frame
from ldmlab.data.annotations.report import AnnotationReport, short_name
from ldmlab.progress import Progress, report_progress

Place = tuple[str, int, int]  # of a picture's bytes: file, offset, length


class Claim(NamedTuple):
    """That a listed name means a picture: how many last parts and split words agree, and what is listed."""

    depth: int
    agreement: int
    parts: Parts
    listed: Listed


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
    """Files found beside pictures: names of pictures by file and offset; text, COCO and other files by name."""

    names: dict[tuple[str, int], str] = field(default_factory=dict)
    texts: dict[str, Loader] = field(default_factory=dict)  # by name with the ending in lower case
    coco: list[tuple[str, Loader]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)  # .jsonl, .csv

    def add(self, name: str, read: Callable[[int], bytes]) -> None:
        """Sort one file that is no picture by its name; `read` returns so many of its bytes, all at -1."""
        stem, dot, ending = name.rpartition(".")
        ending = dot + ending.lower()
        if ending == ".json" and name.rpartition("/")[0].rpartition("/")[2] == "annotations":
            self.coco.append((name, partial(read, -1)))
        elif ending in (".txt", ".caption", ".json"):
            self.texts[stem + ending] = partial(read, MAX_TEXT_BYTES + 1)
        elif ending in (".jsonl", ".csv"):
            self.others.append(name)

    def captions(self, name: str, short: str, report: AnnotationReport) -> list[str]:
        """Captions of a picture from its .txt, one a line, or its .json; counted in the report as `short`."""
        for ending, read_captions in ((".txt", captions_of_text), (".caption", captions_of_text),
                                      (".json", captions_of_json)):
            for stem in _stems(name):
                if (read := self.texts.get(stem + ending)) is not None:
                    return read_captions(read(), short, report)
        return []

    def unread(self, pictures: list[str]) -> list[str]:
        """JSON and CSV files that belong to none of these pictures."""
        stems = {stem for name in pictures for stem in _stems(name)}
        return [n for n in self.texts if n.endswith(".json") and n.removesuffix(".json") not in stems] + self.others


def _stems(name: str) -> list[str]:
    """What the texts of a picture are called: `a` or `a.jpg`; in a tar, whose keys end at the first dot, also that."""
    stems = [name.rpartition(".")[0], name]
    if ".tar/" in name:
        folder, slash, file = name.rpartition("/")
        stems.append(folder + slash + file.partition(".")[0])
    return stems


def _read(path: str, offset: int, length: int, most: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(length if most < 0 else min(length, most))


def _find_in_tar(path: str, found: _Companions) -> None:
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            name = f"{path}/{member.name.removeprefix('./')}"
            if member.isreg() and not member.issparse():
                found.names[path, member.offset_data] = name
                found.add(name, partial(_read, path, member.offset_data, member.size))
            archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header in memory


def _find_in_folder(root: str, places: Sequence[Place], found: _Companions) -> None:
    """Look in the folders of the pictures, the root, those in it, and in `annotations` at any depth."""
    folders = set()
    for picture, offset, _ in places:
        found.names[picture, offset] = picture
        folders.add(os.path.dirname(picture))
    for folder, below, _ in os.walk(root):  # through no links: they may lead round in circles
        below[:] = [name for name in below if not name.startswith(".")]
        folders |= {folder} if os.path.dirname(folder) == root or folder == root else set()
        folders |= {f"{folder}/annotations"} if "annotations" in below else set()
    for folder in sorted(folders):
        for file in _files(folder):
            found.add(file.path, partial(_read, file.path, 0, file.stat().st_size))


def _files(folder: str) -> list[os.DirEntry[str]]:
    """The regular files of a folder, sorted; none where it cannot be read."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return []
    return [entry for entry in entries if entry.is_file() and not entry.name.startswith(".")]


def annotate_files(
    folders_or_tars: Sequence[str],
    places: Sequence[Place],
    size: int,
    numbers: np.ndarray,
    progress: Progress | None = None,
    *,
    every_place: Sequence[Place] = (),
    report: AnnotationReport | None = None,
) -> AnnotationTable:
    """Annotations of the pictures with these indices, and the names of box labels, from the files beside them.

    COCO's files are `annotations/instances*.json`, `stuff*.json` and `captions*.json`, or any other JSON there where
    none has such a name. They are matched by `PictureNames`; a name that may mean several pictures of the data set, all
    of whose splits are `every_place`, is a ValueError. Boxes are of the picture as it is stored or as EXIF turns it,
    whichever has the size that their file states, and come out upright. A text file beside a picture takes precedence
    over COCO's captions; the first caption in a file's order is `caption`. `report` is filled; what was read is
    printed, and one warning counts what was left out. A picture whose header cannot be read has an empty annotation.
    """
    found, report = _Companions(), report or AnnotationReport()
    report.clear()
    every_place = every_place or places
    for root in folders_or_tars:
        if os.path.isdir(root):
            _find_in_folder(root.rstrip("/") or "/", every_place, found)
        else:
            _find_in_tar(root, found)
    coco = Coco.read(found.coco, report)
    pictures = [found.names[place[:2]] for place in every_place]
    listed = _matched(coco, pictures, report)
    report.unread += map(short_name, found.unread(pictures))
    annotations = []
    for done, number in enumerate(numbers.tolist(), 1):
        annotations.append(_annotation(places[number], size, found, coco, listed, report))
        report_progress(progress, done, len(numbers))
    report.pictures = len(annotations)
    report.with_boxes = sum(bool(a.boxes) for a in annotations)
    report.with_captions = sum(bool(a.caption) for a in annotations)
    _tell(report, any(coco.listed) and not listed, coco, ", ".join(folders_or_tars))
    return annotations, coco.names


def _annotation(
    place: Place, size: int, found: _Companions, coco: Coco, listed: dict[str, list[Listed]], report: AnnotationReport
) -> Annotation:
    name = found.names[place[:2]]
    short = name.rpartition("/")[2]
    own = listed.get(name, [])
    try:
        frame = Frame.of_file(*place, short)
    except (OSError, ValueError):
        return Annotation(-1, "", (), WHOLE)
    captions = found.captions(name, short, report) or [caption for one in own for caption in one.captions]
    boxes: list[Box] = [box for one in own for box in coco.boxes(one, frame, short)]
    crop = center_crop_box(*frame.upright, size)
    return Annotation(-1, captions[0] if captions else "", tuple(boxes), crop, tuple(captions[1:]))


def _matched(coco: Coco, paths: list[str], report: AnnotationReport) -> dict[str, list[Listed]]:
    """What the files list of each picture, by its path; ValueError where it is open which picture is meant."""
    names = PictureNames(paths)
    claims: dict[int, list[Claim]] = defaultdict(list)
    for (parts, splits), listed in coco.listed.items():
        meant, depth = names.find(parts, splits)
        if len(meant) > 1 and listed.annotated:
            raise ValueError(
                f"{min(listed.annotated)[0]} annotates {listed.name!r}, which may be any of {len(meant)} pictures: "
                f"{', '.join(paths[number] for number in meant[:3])}; list pictures with their folders, such as "
                f"{'/'.join(names.paths[meant[0]][-2:])!r}")
        if len(meant) == 1:
            claims[meant[0]].append(Claim(depth, names.agreement(meant[0], splits), parts, listed))
        elif listed.annotated:
            report.note("names that are annotated are no picture of the data", listed.name)
    return {paths[number]: _nearest(given, paths[number], report) for number, given in claims.items()}


def _nearest(claims: list[Claim], path: str, report: AnnotationReport) -> list[Listed]:
    """What is listed under the name that is nearest to a picture's path; ValueError for several of them."""
    depth = max(claim.depth for claim in claims)
    claims = [claim for claim in claims if claim.depth == depth]
    if any(claim.agreement >= 0 for claim in claims):
        claims = [claim for claim in claims if claim.agreement >= 0]
    listed, first = [claim.listed for claim in claims], claims[0]
    names = list(dict.fromkeys(repr(one.name) for one in listed if one.annotated))
    if len({claim.parts for claim in claims if claim.listed.annotated}) > 1:
        raise ValueError(f"{path} may be {' or '.join(names[:3])} of {report.files[0]}; put it into the folder that "
                         "is listed there, or correct the names")
    if several := next((one for one in listed if one.is_of_several), None):
        raise ValueError(f"{min(several.annotated)[0]} annotates {several.name!r} under several ids, as several "
                         f"pictures of one name; list pictures with their folders, such as {short_name(path)!r}")
    if depth == 1 and len(first.parts) > 1 and any(one.annotated for one in listed):
        report.note("pictures are matched by their file name alone: they lie in other folders than listed",
                    first.listed.name)
    return listed


def _tell(report: AnnotationReport, unmatched: bool, coco: Coco, where: str) -> None:
    for line in report.found():
        print(f"annotations of {where}: {line}", flush=True)
    if report.left_out:
        warnings.warn(f"annotations of {where} are left out: {report.missing()}", stacklevel=3)
    if unmatched:
        first = min(listed.name for listed in coco.listed.values())
        warnings.warn(f"no picture of {where} has a file name that its annotations list, such as {first!r}",
                      stacklevel=3)
