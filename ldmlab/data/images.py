"""Open any data set: `open_dataset(name_or_path)` returns an `ImageSet` of uint8 squares with their annotations."""

import os
import warnings
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from ldmlab.data.annotations.annotation import Annotation, AnnotationTable, cached_annotations
from ldmlab.data.annotations.label_maps import Maps
from ldmlab.data.dataset_names import SPLITS, check_data_name
from ldmlab.data.decode import DECODERS, PROTOCOL
from ldmlab.data.file_lists import drawn
from ldmlab.data.listing.identity import Identified
from ldmlab.data.listing.names import MAX_NAME, fit_name
from ldmlab.data.listing.report import DataReport
from ldmlab.data.pixels import Pixels
from ldmlab.data.sources import Source, describe_headers, files_source, scenes_source, torchvision_source
from ldmlab.progress import Progress

MAX_BYTES = 8 << 30  # of decoded pictures in memory
SUBSET = "hash of names"  # how `ImageSet.subset` draws; records state it, and those of other subsets are not loaded


def to_float(images: UInt8[Tensor, "*b c h w"]) -> Float32[Tensor, "*b c h w"]:
    """Map pixel values 0..255 to [-1, 1].

    >>> to_float(torch.tensor([[[0, 51, 255]]], dtype=torch.uint8))
    tensor([[[-1.0000, -0.6000,  1.0000]]])
    """
    return images.to(torch.float32).div_(127.5).sub_(1)


def to_uint8(images: Float[Tensor, "*b c h w"]) -> UInt8[Tensor, "*b c h w"]:
    """Map [-1, 1] to pixel values 0..255, rounded, values outside clamped; the inverse of `to_float`.

    ValueError for values that are not finite, which would become ordinary pixels.

    >>> to_uint8(torch.tensor([[[-1.0, 0.0, 1.2]]]))
    tensor([[[  0, 128, 255]]], dtype=torch.uint8)
    """
    images = images.detach().float()
    # A sum is not finite if a value is not, and much faster than isfinite; that of finite values may overflow.
    if not images.sum().isfinite() and not images.isfinite().all():
        raise ValueError("pictures have values that are not finite: check the model and the sampler that made them")
    return images.add(1).mul(127.5).round().clamp_(0, 255).to(torch.uint8)


def quantize_8bit(images: Float[Tensor, "*b c h w"]) -> Float32[Tensor, "*b c h w"]:
    """Pictures in [-1, 1] rounded to 8 bits, as they would be saved to a file; values beyond are clamped."""
    return to_float(to_uint8(images))


def check_range(x: Tensor, name: str = "x") -> Tensor:
    """Return `x` if it is a float tensor with values in [-1, 1]; ValueError, with what was given, otherwise."""
    if not x.is_floating_point():
        raise ValueError(f"{name} must be float in [-1, 1], got {x.dtype}; to_float converts uint8")
    low, high = (float(v) for v in torch.aminmax(x.detach())) if x.numel() else (0.0, 0.0)
    if not (low >= -1.001 and high <= 1.001):  # also false for NaN
        raise ValueError(f"{name} must lie in [-1, 1], got values from {low:.4g} to {high:.4g}")
    return x


class ImageSet(Identified, Dataset):
    """Square pictures of one size in a fixed order, each with a class label or -1.

    Unreadable files are left out, listed in `skipped` and named in one warning; `Pixels` describes when they are found.
    """

    def __init__(self, source: Source, chosen: np.ndarray, *, split: str, size: int, protocol: dict) -> None:
        self._source = source
        self.name, self.split, self.size = source.name, split, size
        self.classes, self.num_classes = source.classes, source.num_classes
        self.protocol = {"data": source.name, **protocol} | ({} if self._is_shuffled else {"subset": SUBSET})
        self._preparation, self._num_listed = protocol, len(chosen)
        self._pixels = Pixels(source, chosen, size, f"{source.name} ({split})")
        self._cache_dir: Path | None = None  # set by `in_memory`
        self._annotations: AnnotationTable | None = None
        self._maps = Maps(source.maps, size) if source.maps else None

    def __len__(self) -> int:
        self._pixels.find_unreadable()
        return len(self._pixels.numbers)

    @property
    def num_listed(self) -> int:
        """The number of pictures before any of them is decoded, which may find some unreadable."""
        return self._num_listed

    @property
    def report(self) -> DataReport:
        """What was found in the data, used and left out; its fingerprint is there once that of the set has been."""
        return self._source.report

    def look(self) -> None:
        """Add bit depth, colour and format of some pictures to the report, from their headers."""
        files = self._source.files
        if files is not None and not self.report.depth:
            self.report.depth = describe_headers(files.arranged.by_split[self.split])

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        return {"image": self.images([index])[0], "label": int(self.labels([index])[0])}

    def __getstate__(self) -> dict:
        """State for the workers of a DataLoader, which then need not find the unreadable files again."""
        self._pixels.find_unreadable()
        return self.__dict__

    def __repr__(self) -> str:
        classes = self.num_classes or "no"
        return f"ImageSet({self.name!r}, {self.split}, {len(self)} pictures, {self.size} px, {classes} classes)"

    @property
    def num_bytes(self) -> int:
        """Bytes of all pictures once they are decoded."""
        return self._pixels.num_bytes

    @property
    def is_decoded(self) -> bool:
        """Whether all pictures are decoded; if not, a file is read (or a scene rendered) at each use."""
        return self._pixels.is_decoded

    @property
    def skipped(self) -> list[str]:
        """Names of the files that could not be read, with the reason."""
        self._pixels.find_unreadable()
        return self._pixels.skipped

    def images(self, indices: Iterable[int]) -> UInt8[Tensor, "n 3 s s"]:
        """The pictures with these indices, in this order; IndexError for an index out of range."""
        return torch.from_numpy(self._pixels.read(self._rows(indices)))

    def subset(self, num: int) -> list[int]:
        """Indices of `num` pictures, or of all where they are fewer, drawn by a hash of their names and the set's seed.

        What is measured on some of the pictures is measured on these, since the first ones of a data set are often of
        one class. They are the same on every machine, whatever the order of the files, and those that `open_dataset`
        draws for `num`; a smaller subset begins a larger one. `scenes` gives its first: each scene, its class included,
        is drawn independently of its number.
        """
        num = min(num, len(self))
        if self._is_shuffled:
            return list(range(num))
        return drawn([self._source.names[i] for i in self._pixels.numbers], num, self._preparation["seed"])

    @property
    def _is_shuffled(self) -> bool:
        return self._source.report.kind == "scenes"

    def _rows(self, indices: Iterable[int]) -> np.ndarray:
        """Indices in 0..len - 1; negative ones count from the end."""
        numbers, num = np.asarray(list(indices), np.int64), len(self)
        if len(numbers) and not (-num <= numbers.min() and numbers.max() < num):
            raise IndexError(f"{self!r} has no picture {numbers.min()} or {numbers.max()}")
        return numbers % max(num, 1)

    def labels(self, indices: Iterable[int] | None = None) -> Int64[Tensor, " n"]:
        """The class labels of the pictures with these indices, or of all; -1 for pictures without a class."""
        self._pixels.find_unreadable()
        rows = slice(None) if indices is None else self._rows(indices)
        return torch.from_numpy(self._source.labels[self._pixels.numbers[rows]])

    @property
    def map_names(self) -> tuple[str, ...]:
        """Names of the labels in `maps`; () without label maps. Raises ValueError as `maps` does."""
        return self._maps.names(*self._stem("-maps")) if self._maps else ()

    def maps(self, indices: Iterable[int], progress: Progress | None = None) -> UInt8[Tensor, "n s s"]:
        """The label maps of the pictures with these indices, resized (nearest) and cropped like them.

        Values index `map_names`. They are those of the files, except that 255, the usual mark of unlabelled pixels,
        becomes the label after the highest one in any split. Where the pictures are decoded, the first call reads (or
        renders) all maps and caches them beside the pictures. The first call also checks every map. Raises ValueError
        where the data has no maps, pictures lack one, or a map has another size or is not a label map.
        """
        if self._maps is None:
            raise ValueError(
                f"{self.name} has no label maps; put that of images/a.jpg at segmentations/a.png, or that of a.jpg at "
                "a.seg.png"
            )
        rows, (stem, fingerprint) = self._rows(indices), self._stem("-maps")
        self._maps.names(stem, fingerprint, progress)
        if not self._pixels.is_decoded:
            return torch.from_numpy(self._maps.read(self._pixels.numbers_read(rows), progress))
        try:
            maps = self._maps.load_all(self._pixels.numbers, stem, fingerprint, progress)
        except OSError as error:
            warnings.warn(f"label maps are not cached under {self._cache_dir}: {error}", stacklevel=2)
            maps = self._maps.load_all(self._pixels.numbers, None, fingerprint, progress)
        return torch.from_numpy(np.ascontiguousarray(maps[rows]))

    @property
    def box_names(self) -> tuple[str, ...]:
        """Names of the labels of boxes; () where the data has no boxes."""
        return self._find_annotations()[1] if self._source.box_names is None else self._source.box_names

    @property
    def annotation_report(self) -> list[str]:
        """Lines on what `annotations` found and left out; none before it is called."""
        return self._source.annotation_report.lines() if self._source.annotation_report else []

    def annotations(self, progress: Progress | None = None, cache_dir: str | Path | None = None) -> list[Annotation]:
        """Class, captions, boxes and crop of each picture, in the set's order; "" and () without captions and boxes.

        Annotations of `scenes` are rendered with the pictures; with a `cache_dir` that happens once, and the result is
        cached there under the fingerprint. Those of other sources are read on the first call. An unreadable picture of
        a set that is read at each use has its own annotation, not that of the picture that replaces it.
        """
        annotations, _ = self._find_annotations(progress, cache_dir)
        return [replace(a, label=label) for a, label in zip(annotations, self.labels().tolist(), strict=True)]

    def _find_annotations(
        self, progress: Progress | None = None, cache_dir: str | Path | None = None
    ) -> AnnotationTable:
        num = len(self)
        if self._annotations is None or len(self._annotations[0]) != num:
            find = partial(self._source.annotate, self._pixels.numbers, progress)
            self._annotations = None
            if cache_dir is not None and self.name == "scenes":
                try:
                    file = Path(cache_dir) / f"{self._cache_name(self.fingerprint)}-annotations.json"
                    self._annotations = cached_annotations(file, self.fingerprint, find)
                except OSError as error:
                    warnings.warn(f"annotations are not cached under {cache_dir}: {error}", stacklevel=3)
            self._annotations = self._annotations or find()
            self._report_annotations()
        return self._annotations

    def _report_annotations(self) -> None:
        """Take the lines on annotations into the report of the set."""
        for line in self.annotation_report:
            if (line := f"{self.split}: {line}") not in self.report.annotations:
                self.report.annotations.append(line)

    def in_memory(
        self, max_bytes: int = MAX_BYTES, cache_dir: str | Path | None = None, progress: Progress | None = None
    ) -> "ImageSet":
        """Decode every picture once, into memory or into a file under `cache_dir` that all runs share; returns the set.

        The cache is keyed by the fingerprint and written atomically; where it cannot be written (a full disk), there is
        a warning and the pictures stay in memory. Raises ValueError if they take more than `max_bytes`.
        """
        if self.num_bytes > max_bytes:
            raise ValueError(
                f"{self.name} at {self.size} px takes {self.num_bytes:,} bytes, more than {max_bytes=:,}; "
                "lower num or size"
            )
        if cache_dir is None or self._pixels.is_on_disk:
            self._pixels.decode_all(progress)
            return self
        self._cache_dir = Path(cache_dir)
        stem, fingerprint = self._stem("")
        assert stem is not None
        try:
            self._pixels.decode_to_file(stem, fingerprint, progress)
        except OSError as error:
            warnings.warn(f"pictures are not cached under {cache_dir}: {error}", stacklevel=2)
            self._pixels.decode_all(progress)
        return self

    def _cache_name(self, fingerprint: str) -> str:
        name = fit_name(self.name.replace("/", "_"), MAX_NAME)
        return f"{name}-{self.split}-{self.size}px-{fingerprint[:16]}"

    def _stem(self, ending: str) -> tuple[Path | None, str]:
        """Where something of this set is cached, and the fingerprint that it carries there."""
        if (folder := self._cache_dir) is None:
            return None, ""
        card = self.find(lambda fingerprint: folder / f"{self._cache_name(fingerprint)}{ending}.json")
        known = {self._cache_name(fp): fp for fp in (self.fingerprint, self.former_fingerprint)}
        stem = card.name.removesuffix(f"{ending}.json")
        return folder / f"{stem}{ending}", known[stem]


def open_dataset(
    name_or_path: str | Path,
    *,
    size: int,
    split: str = "train",
    num: int | None = None,
    seed: int = 0,
    root: str | Path | None = None,
    download: bool = False,
    decoder: str | None = None,
    cache_dir: str | Path | None = None,
) -> ImageSet:
    """Open `scenes`, a folder, a .tar, WebDataset shards or a torchvision set as squares of `size` pixels.

    Args:
        num: at most so many pictures, drawn by a hash of `seed` and their names, and so evenly over classes; None
            takes all. For `scenes`, the number of scenes.
        seed: of the draw; for `scenes`, of the data set.
        root: folder of torchvision's sets (default: $LDMLAB_DATA, else ~/.cache/ldmlab/datasets).
        download: whether a torchvision set may be downloaded.
        decoder: for folders and tars (default: $LDMLAB_DECODER, else "pil"). "torch" (PIL decodes, torch resizes; some
            values differ by one grey level) and "pil-draft" (large JPEG files decoded at a reduced scale) are faster.
            Both change the pixels, so they are part of protocol and fingerprint.
        cache_dir: folder for the hashes of the files, so that a known set is not read again for its fingerprint.

    Raises ValueError for data that does not exist, is unknown or empty, and for other arguments out of range.

    >>> data = open_dataset("scenes", size=32, num=4)
    >>> data.images([0, 1]).shape, data.labels().shape
    (torch.Size([2, 3, 32, 32]), torch.Size([4]))
    >>> data.annotations()[0].caption
    '...'
    """
    kind = check_data_name(name_or_path)
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; accepted: {', '.join(SPLITS)}")
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    if num is not None and num < 1:
        raise ValueError(f"num must be at least 1, or None for all, got {num}")
    if decoder is None:
        decoder = "pil" if kind in ("scenes", "torchvision") else os.environ.get("LDMLAB_DECODER") or "pil"
    if decoder not in DECODERS:
        raise ValueError(f"decoder {decoder!r} is unknown; accepted: {', '.join(DECODERS)}")
    if decoder != "pil" and kind in ("scenes", "torchvision"):
        raise ValueError(f"decoder {decoder!r} is for folders and tar files; {name_or_path} takes 'pil' only")
    if kind == "scenes":
        source = scenes_source(split, size, num, seed)
        protocol: dict = {"resize": "none: rendered at size", "crop": "none", "colour": "RGB"}
    elif kind == "torchvision":
        place = Path(root or os.environ.get("LDMLAB_DATA") or Path.home() / ".cache" / "ldmlab" / "datasets")
        source, protocol = torchvision_source(str(name_or_path), split, size, place, download), dict(PROTOCOL)
    else:
        source = files_source(kind, str(name_or_path), split, size, decoder, cache_dir)
        protocol = PROTOCOL | DECODERS[decoder]
    chosen = np.arange(len(source.names))
    if num is not None and num < len(chosen):
        chosen = np.array(sorted(drawn(source.names, num, seed)), np.int64)
    protocol = {"split": split, "size": size, "num": num, "seed": seed, **protocol}
    return ImageSet(source, chosen, split=split, size=size, protocol=protocol)
