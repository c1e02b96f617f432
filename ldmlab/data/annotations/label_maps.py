"""Label maps: the label of each pixel of a picture, from a file beside the picture or rendered with it."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ldmlab.data.annotations.frames import Frame
from ldmlab.data.cache import CachedRows, Made, cached_array, cached_metadata
from ldmlab.data.decode import center_crop_map
from ldmlab.data.file_lists import Entry
from ldmlab.data.formats import PictureError, named_errors, open_picture_file, upright
from ldmlab.progress import Progress, report_progress

UNLABELLED = 255  # the usual mark of pixels without a label
_LOSSLESS = ("PNG", "TIFF", "BMP", "GIF", "PPM")


@dataclass(frozen=True)
class MapSource:
    """Label maps in the order of the pictures: `read(i)` returns the stored labels of map i, (size, size) uint8.

    `find_names` returns the names of the labels; for files, it reads and checks every map.
    """

    read: Callable[[int], np.ndarray]
    find_names: Callable[[Progress | None], tuple[str, ...]]


def map_labels(raw: bytes, name: str) -> np.ndarray:
    """Decode the bytes of a map file to labels (h, w) uint8: its grey levels or palette indices.

    Grey PNG files of 2 and 4 bits hold labels up to 3 and 15. Raises ValueError for what is not a picture, is of a
    format that changes levels (whatever the file is called), has several channels, or labels above 255.
    """
    with named_errors(f"label map {name}"), open_picture_file(raw, f"label map {name}") as picture:
        if picture.mode not in ("1", "L", "P", "I") and not picture.mode.startswith("I;16"):
            raise PictureError("", f"has mode {picture.mode}; a map has one channel, of labels as grey levels (L, I) "
                                   "or palette indices (P)")
        compression = str(picture.info.get("compression", ""))
        if picture.format not in _LOSSLESS or compression in ("jpeg", "tiff_jpeg", "webp"):
            what = "TIFF with JPEG inside" if picture.format in _LOSSLESS else picture.format
            raise PictureError("", f"is {what} in content, which changes labels near edges; save maps as PNG")
        labels = np.asarray(upright(picture))
    if labels.size and not (labels.min() >= 0 and labels.max() <= 255):
        raise ValueError(f"label map {name} has labels from {labels.min()} to {labels.max()}; accepted are 0 to 255")
    depth = raw[24] if picture.format == "PNG" and picture.mode == "L" else 8
    return labels.astype(np.uint8) // (255 // (2**depth - 1))  # Pillow stretches levels of 2 and 4 bits to 255


def read_map(entries: Sequence[Entry], size: int, i: int) -> np.ndarray:
    """The label map of entry i, resized and cropped as its picture: (size, size) uint8; ValueError if it has none."""
    return center_crop_map(_labels_of(entries[i]), size)


def _labels_of(entry: Entry) -> np.ndarray:
    if entry.map is None:
        raise ValueError(f"picture {entry.name} has no label map; other pictures have one")
    try:
        raw = entry.map.bytes()
    except OSError as error:
        raise ValueError(f"label map {entry.map.name} cannot be read: {error}") from error
    return map_labels(raw, entry.map.name)


def find_map_names(entries: Sequence[Entry], progress: Progress | None = None) -> tuple[str, ...]:
    """Names of the labels in the maps of all splits: "label 0" to the highest one, then "unlabelled" for UNLABELLED.

    Each map is read once, in full size. Raises ValueError, naming the files, for pictures without a map or with one of
    another size, and for maps that `map_labels` refuses.
    """
    without = [e.name for e in entries if e.map is None]
    if without:
        raise ValueError(
            f"{len(without)} of {len(entries)} pictures have no label map: {_listed(without)}; the map of images/a.jpg "
            "is segmentations/a.png, that of a.jpg may be a.seg.png"
        )
    counts = np.zeros(256, np.int64)
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        for done, found in enumerate(pool.map(_count, entries), 1):
            counts += found
            report_progress(progress, done, len(entries))
    labels = np.flatnonzero(counts[:UNLABELLED])
    names = tuple(f"label {i}" for i in range(int(labels.max(initial=-1)) + 1))
    return (*names, "unlabelled") if counts[UNLABELLED] else names


def _count(entry: Entry) -> np.ndarray:
    """Number of pixels of each label in a map, whose size is checked against the picture's header."""
    assert entry.map is not None
    labels = _labels_of(entry)
    try:
        width, height = Frame.of_file(entry.path, entry.offset, entry.length).upright
    except (OSError, ValueError):
        width = height = 0  # unreadable pictures are left out of the set, and their maps with them
    if width and labels.shape != (height, width):
        raise ValueError(
            f"label map {entry.map.name} is {labels.shape[0]} x {labels.shape[1]}, its picture {entry.name} "
            f"{height} x {width} (h x w, upright)"
        )
    return np.bincount(labels.reshape(-1), minlength=256)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


class Maps:
    """The label maps of one data set: read one at a time, or all at once and kept; names are found once."""

    def __init__(self, source: MapSource, size: int) -> None:
        self.source, self.size = source, size
        self._names: tuple[str, ...] | None = None
        self._all: np.ndarray | CachedRows | None = None  # (n, s, s) uint8

    def names(self, stem: Path | None, fingerprint: str, progress: Progress | None = None) -> tuple[str, ...]:
        """Names of the labels; from the cache if there is one under `stem`."""
        if self._names is None:
            cached = cached_metadata(stem, fingerprint) if stem else None
            self._names = tuple(cached["names"]) if cached else self.source.find_names(progress)
        return self._names

    def read(self, numbers: Iterable[int], progress: Progress | None = None) -> np.ndarray:
        """The maps of the pictures with these indices in the source, (n, size, size) uint8; values index `names`."""
        assert self._names is not None, "names come first"
        numbers = list(numbers)
        out = np.empty((len(numbers), self.size, self.size), np.uint8)
        with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
            for done, values in enumerate(pool.map(self.source.read, numbers), 1):
                out[done - 1] = values
                report_progress(progress, done, len(numbers))
        if self._names[-1:] == ("unlabelled",):
            out[out == UNLABELLED] = len(self._names) - 1
        return out

    def load_all(
        self, numbers: np.ndarray, stem: Path | None, fingerprint: str, progress: Progress | None = None
    ) -> np.ndarray | CachedRows:
        """Read all maps once, into memory or into a file `stem`.npy; OSError if it is not writable."""
        if self._all is None:
            make, row = partial(self._make, numbers), (self.size, self.size)
            self._all, _ = cached_array(stem, fingerprint, row, make, progress) if stem else make(progress)
        return self._all

    def _make(self, numbers: np.ndarray, progress: Progress | None) -> Made:
        return self.read(numbers.tolist(), progress), {"names": self._names}
