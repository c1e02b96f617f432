"""Sources of pictures: the embedded data set, folders, tar files and shards, torchvision's sets.

Every source is a list of pictures in a fixed order with random access, so that a run can resume within an epoch.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ldmlab.data.annotations.annotation import Annotation, AnnotationTable
from ldmlab.data.annotations.annotation_files import annotate_files, annotate_torchvision
from ldmlab.data.annotations.label_maps import MapSource, find_map_names, read_map
from ldmlab.data.annotations.report import AnnotationReport
from ldmlab.data.dataset_names import TORCHVISION, expand_shards
from ldmlab.data.decode import center_crop, decode
from ldmlab.data.file_lists import HELD_OUT, SPLIT_OF, Entry, arrange, fraction, scan_folder, scan_tar
from ldmlab.progress import Progress, report_progress


@dataclass(frozen=True)
class Source:
    """Pictures in a fixed order; `read(i)` decodes picture i to (3, size, size) uint8, or raises a decoder's error."""

    name: str
    names: Sequence[str]
    labels: np.ndarray  # (n,) int64, -1 without a class
    classes: tuple[str, ...] | None
    num_classes: int
    identity: str  # sha256 that changes with the pictures
    read: Callable[[int], np.ndarray]
    annotate: Callable[..., AnnotationTable]  # (numbers, progress) -> annotations, classes left at -1
    box_names: tuple[str, ...] | None = None  # None: `annotate` returns them
    maps: MapSource | None = None  # None: no label maps
    annotation_report: AnnotationReport | None = None  # filled by `annotate`


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


def _read_scene(seed: int, split: str, size: int, i: int) -> np.ndarray:
    from ldmlab.data.scenes.scene import render_images

    return render_images(seed, split, [i], size)[0][0]


def files_source(kind: str, path: str, split: str, size: int, decoder: str = "pil") -> Source:
    """A folder of pictures (`kind` "folder"), a tar file or shards ("tar"), decoded by one of `decode.DECODERS`."""
    if kind == "folder":
        roots = [str(Path(path).expanduser())]
        entries = scan_folder(Path(path).expanduser())
    else:
        where = Path(path).expanduser()
        tars = sorted(map(str, where.glob("*.tar"))) if where.is_dir() else expand_shards(str(where))
        roots = tars
        words = [{SPLIT_OF[w] for w in re.split(r"[^a-z]+", Path(t).stem.lower()) if w in SPLIT_OF} for t in tars]
        by_name = len(set().union(*words)) > 1  # shards are named after their split
        entries = []
        for tar, word in zip(tars, words, strict=True):
            prefix = f"{min(word)}/" if by_name and word else ""
            entries += [replace(e, name=prefix + e.name) for e in scan_tar(tar)]
    chosen, labels, classes, num_classes, all_entries = arrange(entries, split, path)
    digest = hashlib.sha256()
    for e, label in zip(chosen, labels.tolist(), strict=True):
        digest.update(f"{e.name}\0{e.length}\0{e.stamp}\0{label}\n".encode())
    any_map = any(e.map for e in all_entries)
    for e in all_entries if any_map else ():  # of all splits, since they share the set of labels
        digest.update(f"{e.name}\0{(e.map.length, e.map.stamp) if e.map else None}\n".encode())
    name = Path(path).expanduser().resolve().name.removesuffix(".tar")
    names = [e.name for e in chosen]
    places, every_place = ([(e.path, e.offset, e.length) for e in part] for part in (chosen, all_entries))
    report = AnnotationReport()
    return Source(
        name,
        names,
        labels,
        classes,
        num_classes,
        digest.hexdigest(),
        partial(_read_file, chosen, size, decoder),
        partial(annotate_files, roots, places, size, every_place=every_place, report=report),
        maps=MapSource(partial(read_map, chosen, size), partial(find_map_names, all_entries)) if any_map else None,
        annotation_report=report,
    )


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
        MapSource(partial(_read_scene_map, seed, split, size), _scene_map_names),
    )
