"""The pictures of one study, and their annotations."""

import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from ldmlab.data.annotations.annotation import Annotation
from ldmlab.data.images import MAX_BYTES, ImageSet, open_dataset
from ldmlab.data.listing.report import DataReport
from ldmlab.study.config.paths import runs_dir
from ldmlab.study.config.specs import DataSpec, StudySpec
from ldmlab.study.training.progress import progress_callback

MIN_TRAIN = 5  # the error of a kernel distance is a spread over pictures, as is the scale of latents
MIN_VAL = 8  # notebooks show as many, and scores of a few pictures say nothing


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

    @property
    def report(self) -> DataReport:
        """The report on the data, with the files of both splits that turned out to be unreadable."""
        report = self.train.report
        for images in (self.train, self.val):
            if images.split not in report.used:
                report.used[images.split] = images.report.used[images.split]
            report.set_unreadable(images.split, images.skipped)
        for line in self.val.report.annotations:
            if line not in report.annotations:
                report.annotations.append(line)
        return report


def open_pictures(spec: StudySpec) -> Pictures:
    """The pictures of a spec, with a report on files; a data set that has fewer gives all of them.

    Raises ValueError where they are fewer than the run needs.
    """
    data = spec.data
    train, val = (open_listed(data, split, num) for split, num in (("train", data.num_train),
                                                                  ("validation", data.num_val)))
    check_numbers(spec, train.num_listed, val.num_listed, train.report)  # before anything is decoded
    pictures = Pictures(decoded(train), decoded(val))
    check_numbers(spec, len(pictures.train), len(pictures.val), train.report)
    if pictures.train.report.kind != "scenes":
        pictures.train.look()
        show_report(pictures.report)
    return pictures


def check_numbers(spec: StudySpec, num_train: int, num_val: int, report: DataReport) -> None:
    """ValueError where a run of `spec` would fail later, for want of training or validation pictures."""
    what = f"data = {spec.data.name!r}"
    if num_val < MIN_VAL:
        drawn = "drawn" in report.splits
        cure = ("a tenth of the training pictures is drawn for validation: add pictures, to about 100 or more, or put "
                "some in a folder `val` beside `train`" if drawn else "put more into the validation split")
        raise ValueError(f"{what} has {num_val} validation pictures, and {MIN_VAL} or more are needed; {cure}")
    if num_train < MIN_TRAIN:
        raise ValueError(f"{what} has {num_train} training pictures, and {MIN_TRAIN} or more are needed; add pictures")


def show_report(report: DataReport) -> None:
    """Display the report as a table in a notebook, and print its lines elsewhere."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is not None and hasattr(shell, "kernel"):
        from IPython.display import display

        display(report)
    else:
        print(report, flush=True)


def open_set(data: DataSpec, split: str, num: int = 0, *, size: int = 0) -> ImageSet:
    """`num` pictures of a split, as `ImageSet.subset` draws them, or all at 0; at `size` pixels, if not their own."""
    return open_dataset(data.name, size=size or data.size, split=split, num=num or None, seed=0,
                        cache_dir=runs_dir() / "data")


def open_listed(data: DataSpec, split: str, num: int) -> ImageSet:
    """`num` pictures of a split, or all at 0, with their fingerprint, for which new and changed files are read."""
    images = open_set(data, split, num)
    with progress_callback(f"contents of {images.name}", "files") as report:
        images.identify(report)
    return images


def open_split(data: DataSpec, split: str, num: int) -> ImageSet:
    """`num` pictures of a split, or all at 0, decoded as far as they fit into memory."""
    return decoded(open_listed(data, split, num))


def decoded(images: ImageSet) -> ImageSet:
    """The pictures in memory, or read at each use if they take more than MAX_BYTES there."""
    split = images.split
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
    """The labels of classes named in "car, boat"; of all where nothing is named.

    ValueError for an unknown name, with the nearest ones, and for a class without a picture in this set.
    """
    known = {name.lower(): label for label, name in enumerate(images.classes or map(str, range(images.num_classes)))}
    found = []
    for name in filter(None, (part.strip().lower() for part in names.split(","))):
        if name not in known:
            if not known:
                raise ValueError(f"classes = {names!r}: {images.name} has no classes; accepted is ''")
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or list(known)[:12]
            raise ValueError(f"{images.name} has no class {name!r}; there are {len(known)}, such as {', '.join(near)}")
        found.append(known[name])
    if found and (empty := set(found) - set(images.labels().tolist())):
        without = ", ".join(label_names(images, sorted(empty)) or map(str, sorted(empty)))
        raise ValueError(f"classes = {names!r}: no {images.split} picture of {images.name} is of class {without}")
    return torch.tensor(found or list(known.values()), dtype=torch.long)
