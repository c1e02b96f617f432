"""One door to all pictures: `open_dataset(name_or_path)` gives an `ImageSet`, uint8 squares and what goes with them."""

import hashlib
import json
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

from ldmlab.data.annotations.annotation import Annotation, Known, keep_known
from ldmlab.data.annotations.annotation_files import Progress
from ldmlab.data.annotations.label_maps import Maps
from ldmlab.data.dataset_names import SPLITS, check_data_name
from ldmlab.data.decode import DECODERS, PROTOCOL
from ldmlab.data.file_lists import fraction
from ldmlab.data.pixels import Pixels
from ldmlab.data.sources import Source, files_source, scenes_source, torchvision_source

MAX_BYTES = 8 << 30


def to_float(images: UInt8[Tensor, "*b c h w"]) -> Float32[Tensor, "*b c h w"]:
    """Bytes 0..255 to [-1, 1]."""
    return images.to(torch.float32).div_(127.5).sub_(1)


def to_uint8(images: Float[Tensor, "*b c h w"]) -> UInt8[Tensor, "*b c h w"]:
    """[-1, 1] to bytes, clamped and rounded; the inverse of `to_float`."""
    return images.detach().float().add(1).mul(127.5).round().clamp_(0, 255).to(torch.uint8)


def quantize_8bit(images: Float[Tensor, "*b c h w"]) -> Float32[Tensor, "*b c h w"]:
    """Pictures in [-1, 1] rounded to 8 bits, as they would be saved to a file; values beyond are clamped."""
    return to_float(to_uint8(images))


def check_range(x: Tensor, name: str = "x") -> Tensor:
    """Return x if it is a float tensor within [-1, 1]; else ValueError that says what came."""
    if not x.is_floating_point():
        raise ValueError(f"{name} must be float in [-1, 1], got {x.dtype}; to_float converts bytes")
    low, high = (float(v) for v in torch.aminmax(x.detach())) if x.numel() else (0.0, 0.0)
    if not (low >= -1.001 and high <= 1.001):  # also false for NaN
        raise ValueError(f"{name} must lie in [-1, 1], got values from {low:.4g} to {high:.4g}")
    return x


class ImageSet(Dataset):
    """Square pictures of one size in a fixed order, each with a class label or -1.

    Unreadable files are left out, named in `skipped` and told in one warning; when that is found out, `Pixels` says.
    """

    def __init__(
        self, source: Source, chosen: np.ndarray, *, split: str, size: int, protocol: dict, fingerprint: str
    ) -> None:
        self.name, self.split, self.size = source.name, split, size
        self.classes, self.num_classes = source.classes, source.num_classes
        self.protocol, self.fingerprint = protocol, fingerprint
        self._source = source
        self._pixels = Pixels(source, chosen, size, f"{source.name} ({split})")
        self._cache_dir: Path | None = None  # once `in_memory` was given one
        self._known: Known | None = None
        self._maps = Maps(source.maps, size) if source.maps else None

    def __len__(self) -> int:
        self._pixels.survey()
        return len(self._pixels.numbers)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        return {"image": self.images([index])[0], "label": int(self.labels([index])[0])}

    def __getstate__(self) -> dict:
        """Workers of a DataLoader get what has been found out, so that none of them decodes everything again."""
        self._pixels.survey()
        return self.__dict__

    def __repr__(self) -> str:
        classes = self.num_classes or "no"
        return f"ImageSet({self.name!r}, {self.split}, {len(self)} pictures, {self.size} px, {classes} classes)"

    @property
    def num_bytes(self) -> int:
        """What all pictures take once they are decoded."""
        return self._pixels.num_bytes

    @property
    def is_kept(self) -> bool:
        """Whether all pictures are decoded; where not, a file is read (or a scene rendered) each time it is used."""
        return self._pixels.are_kept

    @property
    def skipped(self) -> list[str]:
        """The names of the files that could not be read."""
        self._pixels.survey()
        return self._pixels.skipped

    def images(self, indices: Iterable[int]) -> UInt8[Tensor, "n 3 s s"]:
        """The pictures with these numbers, in this order; IndexError outside of the set."""
        return torch.from_numpy(self._pixels.read(self._rows(indices)))

    def _rows(self, indices: Iterable[int]) -> np.ndarray:
        """Rows from 0 on; negative indices count from the end."""
        numbers, num = np.asarray(list(indices), np.int64), len(self)
        if len(numbers) and not (-num <= numbers.min() and numbers.max() < num):
            raise IndexError(f"{self!r} has no picture {numbers.min()} or {numbers.max()}")
        return numbers % max(num, 1)

    def labels(self, indices: Iterable[int] | None = None) -> Int64[Tensor, " n"]:
        """The class labels with these numbers, or all."""
        self._pixels.survey()
        rows = slice(None) if indices is None else self._rows(indices)
        return torch.from_numpy(self._source.labels[self._pixels.numbers[rows]])

    @property
    def map_names(self) -> tuple[str, ...]:
        """What the values of `maps` index; () where the data has no label maps; ValueError as by `maps`."""
        return self._maps.names(self._stem("-maps"), self.fingerprint) if self._maps else ()

    def maps(self, indices: Iterable[int], progress: Progress | None = None) -> UInt8[Tensor, "n s s"]:
        """The label maps of the pictures with these numbers, resized and cropped as they are, nearest neighbour.

        Values index `map_names`: those of the files are kept, but 255, the usual mark of unlabelled pixels, becomes
        the label after the highest that occurs in any split. Where the pictures are in memory, all maps are read (or
        rendered) on the first call, and kept beside the pictures' own cache. The first call also checks every map:
        ValueError where some pictures have none, or one of another size, or one that is no picture of labels.
        """
        if self._maps is None:
            raise ValueError(
                f"{self.name} has no label maps; that of images/a.jpg is segmentations/a.png, that of a.jpg a.seg.png"
            )
        rows, stem = self._rows(indices), self._stem("-maps")
        self._maps.names(stem, self.fingerprint, progress)
        if not self._pixels.are_kept:
            return torch.from_numpy(self._maps.read(self._pixels.numbers_read(rows), progress))
        try:
            kept = self._maps.keep(self._pixels.numbers, stem, self.fingerprint, progress)
        except OSError as error:
            warnings.warn(f"label maps are not cached under {self._cache_dir}: {error}", stacklevel=2)
            kept = self._maps.keep(self._pixels.numbers, None, self.fingerprint, progress)
        return torch.from_numpy(np.ascontiguousarray(kept[rows]))

    @property
    def box_names(self) -> tuple[str, ...]:
        """What the labels of boxes index; () where the data has no boxes."""
        return self._find_annotations()[1] if self._source.box_names is None else self._source.box_names

    def annotations(self, progress: Progress | None = None, cache_dir: str | Path | None = None) -> list[Annotation]:
        """What is known of each picture, in the set's order: class, captions, boxes, and the square that is seen.

        Where the data has no captions or boxes these are "" and (). Scenes are rendered for it, which takes as long as
        the pictures did; with a `cache_dir` they are rendered once, and the result is kept there, keyed by the
        fingerprint. Other sources are read each time, since captions may change while the pictures do not. A picture
        of a large set that turns out to be unreadable has its own annotation, not that of the next.
        """
        known, _ = self._find_annotations(progress, cache_dir)
        return [replace(a, label=label) for a, label in zip(known, self.labels().tolist(), strict=True)]

    def _find_annotations(self, progress: Progress | None = None, cache_dir: str | Path | None = None) -> Known:
        num = len(self)
        if self._known is None or len(self._known[0]) != num:
            find = partial(self._source.annotate, self._pixels.numbers, progress)
            self._known = None
            if cache_dir is not None and self.name == "scenes":
                try:
                    file = Path(cache_dir) / f"{self._cache_name}-annotations.json"
                    self._known = keep_known(file, self.fingerprint, find)
                except OSError as error:
                    warnings.warn(f"annotations are not cached under {cache_dir}: {error}", stacklevel=3)
            self._known = self._known or find()
        return self._known

    def in_memory(
        self, max_bytes: int = MAX_BYTES, cache_dir: str | Path | None = None, progress: Progress | None = None
    ) -> "ImageSet":
        """This set with every picture decoded, once: into memory, or into a file under `cache_dir` that all runs share.

        ValueError if it would take more than `max_bytes`. The cache is keyed by the fingerprint and written atomically;
        where it cannot be written (a full disk), that is said and the pictures stay in memory.
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
        try:
            self._pixels.keep(self._cache_dir / self._cache_name, self.fingerprint, progress)
        except OSError as error:
            warnings.warn(f"pictures are not cached under {cache_dir}: {error}", stacklevel=2)
            self._pixels.decode_all(progress)
        return self

    @property
    def _cache_name(self) -> str:
        return f"{self.name}-{self.split}-{self.size}px-{self.fingerprint[:16]}"

    def _stem(self, ending: str) -> Path | None:
        return self._cache_dir / f"{self._cache_name}{ending}" if self._cache_dir else None


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
) -> ImageSet:
    """Open pictures by name or path as squares of `size`: `scenes`, a folder, a .tar or shards, a torchvision set.

    `num` takes at most so many, drawn by a hash of `seed` and the name, so evenly over classes; for `scenes` it is the
    number of scenes and `seed` the world's. `root` is where torchvision's sets lie (default: the variable LDMLAB_DATA,
    else ~/.cache/ldmlab/datasets). `decoder` (default: the variable LDMLAB_DECODER) reads the files of folders and
    tars: "pil", or, where loading binds, "torch" (PIL decodes, torch resizes, some values off by a level) or
    "pil-draft" (large JPEG at a reduced scale); both change what a score is taken on and join protocol and
    fingerprint. ValueError for what is not there, unknown or empty.
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
        source = files_source(kind, str(name_or_path), split, size, decoder)
        protocol = PROTOCOL | DECODERS[decoder]
    chosen = np.arange(len(source.names))
    if num is not None and num < len(chosen):
        order = sorted(range(len(chosen)), key=lambda i: fraction("subset", seed, source.names[i]))
        chosen = np.array(sorted(order[:num]), np.int64)
    protocol = {"split": split, "size": size, "num": num, "seed": seed, **protocol}
    identity = json.dumps({"pictures": source.identity, **protocol}, sort_keys=True)
    protocol = {"data": source.name, **protocol}
    fingerprint = hashlib.sha256(identity.encode()).hexdigest()
    return ImageSet(source, chosen, split=split, size=size, protocol=protocol, fingerprint=fingerprint)
