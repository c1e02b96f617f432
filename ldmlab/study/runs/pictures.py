"""The pictures of one study, and their annotations."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from ldmlab.data.annotations.annotation import Annotation
from ldmlab.data.images import MAX_BYTES, ImageSet, open_dataset
from ldmlab.study.config.paths import runs_dir
from ldmlab.study.config.specs import DataSpec, StudySpec
from ldmlab.study.training.progress import progress_callback


@dataclass
class Pictures:
    """Training and validation pictures of one study: decoded once, or at each use where they are too many to keep."""

    train: ImageSet
    val: ImageSet

    def annotations(self, split: str = "train") -> list[Annotation]:
        """The annotation of each picture of "train" or "val": read or rendered once, and cached on disk."""
        images = getattr(self, split)
        with progress_callback(f"annotations of {images.name}, {images.split}", "pictures") as report:
            return images.annotations(report, cache_dir=runs_dir() / "data")


def open_pictures(spec: StudySpec) -> Pictures:
    """The pictures of a spec; a data set that has fewer gives all of them."""
    data = spec.data
    return Pictures(open_split(data, "train", data.num_train), open_split(data, "validation", data.num_val))


def open_set(data: DataSpec, split: str, num: int = 0, *, size: int = 0) -> ImageSet:
    """The first `num` pictures of a split in the study's order, or all at 0; at `size` pixels, if not their own."""
    return open_dataset(data.name, size=size or data.size, split=split, num=num or None, seed=0)


def open_split(data: DataSpec, split: str, num: int) -> ImageSet:
    """`num` pictures of a split, or all at 0: in memory, or read at each use if they take more than MAX_BYTES there."""
    images = open_set(data, split, num)
    if images.num_bytes > MAX_BYTES:
        print(f"{images.name}, {split}: {len(images):,} pictures would take {images.num_bytes / 1e9:.1f} GB decoded, "
              f"and up to {MAX_BYTES / 1e9:.1f} GB are kept; each is read again whenever it is used", flush=True)
        return images
    with progress_callback(f"pictures of {images.name}, {split}", "pictures") as report:
        return images.in_memory(cache_dir=runs_dir() / "data", progress=report)


def label_names(images: ImageSet, labels: Sequence[int] | Int[Tensor, " n"]) -> list[str]:
    """The classes' names; none where the data has no classes."""
    return [images.classes[int(label)] for label in labels] if images.classes else []


def labels_named(images: ImageSet, names: str) -> Int[Tensor, " n"]:
    """The labels of classes named in "car, boat"; of all where nothing is named. ValueError with the nearest names."""
    known = {name.lower(): label for label, name in enumerate(images.classes or ())}
    found = []
    for name in filter(None, (part.strip().lower() for part in names.split(","))):
        if name not in known:
            if not known:
                raise ValueError(f"classes = {names!r}: {images.name} has no classes; accepted is ''")
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or list(known)[:12]
            raise ValueError(f"{images.name} has no class {name!r}; there are {len(known)}, such as {', '.join(near)}")
        found.append(known[name])
    return torch.tensor(found or list(known.values()), dtype=torch.long)
