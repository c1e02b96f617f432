"""Sources of pictures: the embedded data set, folders, tar files and shards, torchvision's sets.

Every source is a list of pictures in a fixed order with random access, so that a run can resume within an epoch.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ContainerIO, Image

from ldmlab.data.annotations.annotation import Annotation, AnnotationTable
from ldmlab.data.annotations.annotation_files import annotate_files, annotate_torchvision
from ldmlab.data.annotations.label_maps import MapSource, find_map_names, read_map
from ldmlab.data.annotations.report import AnnotationReport
from ldmlab.data.dataset_names import TORCHVISION
from ldmlab.data.decode import center_crop, decode
from ldmlab.data.file_lists import HELD_OUT, Entry, fraction
from ldmlab.data.file_sets.file_set import FileSet
from ldmlab.data.listing.report import DataReport
from ldmlab.progress import Progress, report_progress


@dataclass(frozen=True)
class Source:
    """Pictures in a fixed order; `read(i)` decodes picture i to (3, size, size) uint8, or raises a decoder's error."""

    name: str
    names: Sequence[str]
    labels: np.ndarray  # (n,) int64, -1 without a class
    classes: tuple[str, ...] | None
    num_classes: int
    identity: Callable[..., str]  # (progress) -> sha256 that changes with the pictures
    read: Callable[[int], np.ndarray]
    annotate: Callable[..., AnnotationTable]  # (numbers, progress) -> annotations, classes left at -1
    box_names: tuple[str, ...] | None = None  # None: `annotate` returns them
    maps: MapSource | None = None  # None: no label maps
    annotation_report: AnnotationReport | None = None  # filled by `annotate`
    report: DataReport = field(default_factory=DataReport)
    former_identity: Callable[[], str] | None = None  # the identity by sizes and times that earlier versions used
    files: FileSet | None = None


def _read_file(entries: list[Entry], size: int, decoder: str, i: int) -> np.ndarray:
    return decode(entries[i].bytes(), size, decoder, entries[i].name)


def _read_torchvision(pictures: Any, indices: np.ndarray, size: int, i: int) -> np.ndarray:
    return center_crop(pictures[int(indices[i])][0], size)


def _read_scene_map(seed: int, split: str, size: int, i: int) -> np.ndarray:
    from ldmlab.data.scenes.scene import render_scene

    return render_scene(seed, split, i, size).segmentation.numpy()


def _scene_map_names(progress: Progress | None = None) -> tuple[str, ...]:
    from ldmlab.data.scenes.scene import LABELS

    return LABELS


def _known_identity(identity: str, progress: Progress | None = None) -> str:
    return identity


def _read_scene(seed: int, split: str, size: int, i: int) -> np.ndarray:
    from ldmlab.data.scenes.scene import render_images

    return render_images(seed, split, [i], size)[0][0]


def files_source(
    kind: str, path: str, split: str, size: int, decoder: str = "pil", cache_dir: str | Path | None = None
) -> Source:
    """A folder of pictures (`kind` "folder"), a tar file or shards ("tar"), decoded by one of `decode.DECODERS`.

    Hashes of the files are kept under `cache_dir`.
    """
    files = FileSet.open(kind, path, cache_dir)
    files.arranged.check_split(split, path)
    chosen, all_entries = files.arranged.by_split[split], files.arranged.all_entries
    places, every_place = ([(e.path, e.offset, e.length) for e in part] for part in (chosen, all_entries))
    annotated = AnnotationReport()
    return Source(
        files.name,
        [e.name for e in chosen],
        files.arranged.labels[split],
        files.arranged.classes,
        files.arranged.num_classes,
        partial(files.identity, split),
        partial(_read_file, chosen, size, decoder),
        partial(annotate_files, files.roots, places, size, every_place=every_place, report=annotated),
        maps=(MapSource(partial(read_map, chosen, size), partial(find_map_names, all_entries))
              if files.has_maps else None),
        report=files.report,
        former_identity=partial(files.former_identity, split),
        files=files,
        annotation_report=annotated,
    )


_DEPTHS = {
    "1": "1-bit", "L": "8-bit grey", "P": "8-bit palette", "LA": "8-bit grey with alpha", "RGB": "8-bit RGB",
    "RGBA": "8-bit RGB with alpha", "CMYK": "8-bit CMYK", "YCbCr": "8-bit YCbCr", "I": "32-bit grey", "F": "float grey",
}


def describe_headers(entries: Sequence[Entry], num: int = 16) -> str:
    """Bit depth, colour and format of up to `num` pictures evenly spread over a list, from their headers."""
    chosen = [entries[i] for i in sorted({k * len(entries) // num for k in range(num)})]
    found = Counter()  # type: Counter[str]
    for e in chosen:
        try:
            with open(e.path, "rb") as file, Image.open(ContainerIO.ContainerIO(file, e.offset, e.length)) as picture:
                deep = picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG")
                found[f"{'16-bit grey' if deep else _DEPTHS.get(picture.mode, picture.mode)} {picture.format}"] += 1
        except Exception:  # as in Pixels: PIL raises all kinds of errors on damaged files
            found["unreadable"] += 1
    return ", ".join(f"{count} {what}" for what, count in found.most_common()) + f" of {len(chosen)} looked at"


def torchvision_source(name: str, split: str, size: int, root: Path, download: bool) -> Source:
    """A torchvision set under `root`, downloaded on request only; validation is HELD_OUT of train if it has none."""
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
            f"or download it with open_dataset({name!r}, ..., root={str(root)!r}, download=True)"
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
        digest.update(center_crop(pictures[i][0], size).tobytes())
    names = [f"{part}/{i}" for i in indices]
    identity = digest.hexdigest()
    splits = "torchvision's own" if split == part else f"validation is {HELD_OUT:.0%} of train, drawn by number"
    report = DataReport(name, "torchvision", 0, {split: len(indices)}, splits=splits, classes=f"{num_classes}",
                        depth="8 bits, as torchvision gives them", fingerprint=identity)
    return Source(
        name,
        names,
        labels,
        classes,
        num_classes,
        partial(_known_identity, identity),
        partial(_read_torchvision, pictures, indices, size),
        partial(annotate_torchvision, pictures, indices, size),
        (),
        report=report,
    )


def annotate_scenes(
    seed: int, split: str, size: int, numbers: np.ndarray, progress: Progress | None = None
) -> AnnotationTable:
    """Captions and boxes of the scenes with these indices, found by rendering them at `size`."""
    from ldmlab.data.scenes import scene as scenes

    annotations = []
    for done, i in enumerate(numbers.tolist(), 1):
        scene = scenes.render_scene(seed, split, i, size)
        annotations.append(Annotation(-1, scene.caption, scene.boxes))
        report_progress(progress, done, len(numbers))
    return annotations, scenes.LABELS


def scenes_source(split: str, size: int, num: int | None, seed: int) -> Source:
    """The embedded data set: `num` scenes (default: NUM_SCENES) of a split, drawn with this seed."""
    from ldmlab.data.scenes import scene as scenes

    num = scenes.NUM_SCENES[split] if num is None else num
    scenes.render_images(seed, split, [0], size)  # raises now if the size is out of range
    labels = np.array([scenes.scene_label(seed, split, i) for i in range(num)], np.int64)
    identity = hashlib.sha256(f"scenes {scenes.VERSION} {seed} {split} {num} {size}".encode()).hexdigest()
    names = [f"{split}/{i}" for i in range(num)]
    report = DataReport("scenes", "scenes", 0, {split: num}, splits="drawn by number", fingerprint=identity,
                        classes=f"{len(scenes.CLASSES)}", depth="8 bits, rendered")

    return Source(
        "scenes",
        names,
        labels,
        scenes.CLASSES,
        len(scenes.CLASSES),
        partial(_known_identity, identity),
        partial(_read_scene, seed, split, size),
        partial(annotate_scenes, seed, split, size),
        scenes.LABELS,
        MapSource(partial(_read_scene_map, seed, split, size), _scene_map_names),
        report=report,
    )
