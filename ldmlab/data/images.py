"""One door to all pictures: `open_dataset(name_or_path)` gives an `ImageSet`: uint8 squares, classes if there are."""

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from ldmlab.data.annotate import Progress
from ldmlab.data.annotations import Annotation, Known, keep_known
from ldmlab.data.decode import PROTOCOL
from ldmlab.data.names import SPLITS, check_data_name
from ldmlab.data.sources import Source, files_source, fraction, scenes_source, torchvision_source

KEEP_BYTES = 1 << 30  # sets up to this size are decoded whole when first used, and kept
MAX_BYTES = 8 << 30
SKIP_ALWAYS, SKIP_SHARE = 3, 0.01  # unreadable files that are forgiven: this many, or this share


def to_float(images: UInt8[Tensor, "*b c h w"]) -> Float32[Tensor, "*b c h w"]:
    """Bytes 0..255 to [-1, 1]."""
    return images.to(torch.float32).div_(127.5).sub_(1)


def to_uint8(images: Float[Tensor, "*b c h w"]) -> UInt8[Tensor, "*b c h w"]:
    """[-1, 1] to bytes, clamped and rounded; the inverse of `to_float`."""
    return images.detach().float().add(1).mul(127.5).round().clamp_(0, 255).to(torch.uint8)


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

    Unreadable files are left out, named in `skipped` and told in one warning. Whether a file is readable is found out
    on first use: sets of up to KEEP_BYTES are decoded then and kept; in larger ones a picture that turns out to be
    unreadable is replaced by the next one.
    """

    def __init__(
        self, source: Source, chosen: np.ndarray, *, split: str, size: int, protocol: dict, fingerprint: str
    ) -> None:
        self.name, self.split, self.size = source.name, split, size
        self.classes, self.num_classes = source.classes, source.num_classes
        self.protocol, self.fingerprint = protocol, fingerprint
        self._source: Source | None = source
        self._chosen = chosen
        self._pixels: np.ndarray | None = None  # (n, 3, s, s) uint8 once decoded, in memory or mapped from the cache
        self._known: Known | None = None
        self._labels = source.labels[chosen]
        self._skipped: list[str] = []
        self._surveyed = source.name == "scenes"

    def __len__(self) -> int:
        self._survey()
        return len(self._labels)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        return {"image": self.images([index])[0], "label": int(self._labels[index])}

    def __getstate__(self) -> dict:
        """Workers of a DataLoader get what has been found out, so that none of them decodes everything again."""
        self._survey()
        return self.__dict__

    def __repr__(self) -> str:
        classes = self.num_classes or "no"
        return f"ImageSet({self.name!r}, {self.split}, {len(self)} pictures, {self.size} px, {classes} classes)"

    @property
    def skipped(self) -> list[str]:
        """The names of the files that could not be read."""
        self._survey()
        return self._skipped

    def images(self, indices: Iterable[int]) -> UInt8[Tensor, "n 3 s s"]:
        """The pictures with these numbers, in this order; IndexError outside of the set."""
        self._survey()
        numbers = np.asarray(list(indices), np.int64)
        if len(numbers) and not (-len(self._labels) <= numbers.min() and numbers.max() < len(self._labels)):
            raise IndexError(f"{self!r} has no picture {numbers.min()} or {numbers.max()}")
        if self._pixels is not None:
            return torch.from_numpy(np.ascontiguousarray(self._pixels[numbers]))
        out = np.empty((len(numbers), 3, self.size, self.size), np.uint8)
        for row, i in enumerate(numbers):
            out[row] = self._read_or_next(int(i) % len(self._labels))
        return torch.from_numpy(out)

    def labels(self, indices: Iterable[int] | None = None) -> Int64[Tensor, " n"]:
        """The class labels with these numbers, or all."""
        self._survey()
        return torch.from_numpy(
            self._labels.copy() if indices is None else self._labels[np.asarray(list(indices), np.int64)]
        )

    @property
    def box_names(self) -> tuple[str, ...]:
        """What the labels of boxes index; () where the data has no boxes."""
        assert self._source is not None
        return self._find_annotations()[1] if self._source.box_names is None else self._source.box_names

    def annotations(self, progress: Progress | None = None, cache_dir: str | Path | None = None) -> list[Annotation]:
        """What is known of each picture, in the set's order: class, captions, boxes, and the square that is seen.

        Where the data has no captions or boxes these are "" and (). Scenes are rendered for it, which takes as long as
        the pictures did; with a `cache_dir` they are rendered once, and the result is kept there, keyed by the
        fingerprint. Other sources are read each time, since captions may change while the pictures do not. A picture
        of a large set that turns out to be unreadable has its own annotation, not that of the next.
        """
        known, _ = self._find_annotations(progress, cache_dir)
        return [replace(a, label=int(label)) for a, label in zip(known, self._labels, strict=True)]

    def _find_annotations(self, progress: Progress | None = None, cache_dir: str | Path | None = None) -> Known:
        self._survey()
        assert self._source is not None
        if self._known is None or len(self._known[0]) != len(self._labels):
            find = partial(self._source.annotate, self._chosen, progress)
            self._known = None
            if cache_dir is not None and self.name == "scenes":
                stem = f"{self.name}-{self.split}-{self.size}px-{self.fingerprint[:16]}-annotations.json"
                try:
                    self._known = keep_known(Path(cache_dir) / stem, self.fingerprint, find)
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
        needed = len(self._labels) * 3 * self.size**2
        if needed > max_bytes:
            raise ValueError(
                f"{self.name} at {self.size} px takes {needed:,} bytes, more than {max_bytes=:,}; lower num or size"
            )
        if cache_dir is None or isinstance(self._pixels, np.memmap):
            if self._pixels is None:
                self._decode_all(progress)
            return self
        folder = Path(cache_dir)
        stem = folder / f"{self.name}-{self.split}-{self.size}px-{self.fingerprint[:16]}"
        if self._load_cache(stem):
            return self
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{stem}.lock"):  # six runs that start together decode once
                if not self._load_cache(stem):
                    if self._pixels is None:
                        self._decode_all(progress)
                    self._write_cache(stem)
                    self._load_cache(stem)
        except OSError as error:
            warnings.warn(f"pictures are not cached under {folder}: {error}", stacklevel=2)
            if self._pixels is None:
                self._decode_all(progress)
        return self

    # What is readable
    def _survey(self) -> None:
        if self._surveyed:
            return
        if len(self._labels) * 3 * self.size**2 <= KEEP_BYTES:
            self._decode_all()
        self._surveyed = True

    def _decode_all(self, progress: Progress | None = None) -> None:
        pixels = np.empty((len(self._chosen), 3, self.size, self.size), np.uint8)
        kept: list[int] = []
        num, chunk = len(self._chosen), 512
        with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:  # PIL decodes outside of Python's lock
            for start in range(0, num, chunk):
                rows = range(start, min(start + chunk, num))
                for row, picture in zip(rows, pool.map(self._read, rows), strict=True):
                    if picture is not None:
                        pixels[len(kept)] = picture
                        kept.append(row)
                if progress is not None:
                    progress(rows.stop, num)
        self._skipped.sort()
        self._judge_skipped(len(self._chosen), tell=True)
        self._pixels = pixels[: len(kept)]
        self._chosen, self._labels, self._surveyed = self._chosen[kept], self._labels[kept], True

    def _read(self, row: int) -> np.ndarray | None:
        assert self._source is not None
        number = int(self._chosen[row])
        try:
            return self._source.read(number)
        except MemoryError:
            raise
        except Exception as error:  # a damaged file makes decoders raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
            told = f"{self._source.names[number]} ({reason})"
            if told not in self._skipped:
                self._skipped.append(told)
            return None

    def _read_or_next(self, row: int) -> np.ndarray:
        for step in range(len(self._chosen)):
            picture = self._read((row + step) % len(self._chosen))
            if picture is not None:
                return picture
            self._judge_skipped(len(self._chosen), tell=step == 0 and len(self._skipped) == 1)
        raise ValueError(f"no picture of {self.name} can be read: {self._named()}")

    def _judge_skipped(self, total: int, tell: bool) -> None:
        num = len(self._skipped)
        if num and (num == total or (num > SKIP_ALWAYS and num > SKIP_SHARE * total)):
            raise ValueError(
                f"{num} of {total} pictures of {self.name} ({self.split}) cannot be read: {self._named()}; "
                f"up to {SKIP_ALWAYS}, or {SKIP_SHARE:.0%}, are skipped as long as any are left"
            )
        if num and tell:
            warnings.warn(
                f"{num} of {total} pictures of {self.name} ({self.split}) cannot be read, skipped: {self._named()}",
                stacklevel=2,
            )

    def _named(self) -> str:
        return ", ".join(self._skipped[:10]) + (
            f" and {len(self._skipped) - 10} more" if len(self._skipped) > 10 else ""
        )

    # The cache
    def _load_cache(self, stem: Path) -> bool:
        try:
            with open(f"{stem}.json") as file:
                known = json.load(file)
            pixels = np.load(f"{stem}.npy", mmap_mode="r")
        except (OSError, ValueError, EOFError):
            return False
        labels = np.array(known["labels"], np.int64)
        if known["fingerprint"] != self.fingerprint or pixels.shape != (len(labels), 3, self.size, self.size):
            return False
        first_told = not self._skipped
        self._pixels, self._labels, self._skipped, self._surveyed = pixels, labels, known["skipped"], True
        self._chosen = np.array(known["chosen"], np.int64)
        if first_told:
            self._judge_skipped(len(labels) + len(self._skipped), tell=True)
        return True

    def _write_cache(self, stem: Path) -> None:
        known = {
            "fingerprint": self.fingerprint,
            "labels": self._labels.tolist(),
            "chosen": self._chosen.tolist(),
            "skipped": self._skipped,
        }
        for suffix in (".npy", ".json"):  # the small file last: where it is, the large one is whole
            handle, part = tempfile.mkstemp(dir=stem.parent, prefix=".writing-")
            try:
                with os.fdopen(handle, "wb") as file:
                    if suffix == ".npy":
                        np.save(file, self._pixels)
                    else:
                        file.write(json.dumps(known).encode())
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(part, f"{stem}{suffix}")
            except BaseException:
                Path(part).unlink(missing_ok=True)
                raise


def open_dataset(
    name_or_path: str | Path,
    *,
    size: int,
    split: str = "train",
    num: int | None = None,
    seed: int = 0,
    root: str | Path | None = None,
    download: bool = False,
) -> ImageSet:
    """Open pictures by name or path as squares of `size`: `scenes`, a folder, a .tar or shards, a torchvision set.

    `num` takes at most so many, drawn by a hash of `seed` and the name, so evenly over classes; for `scenes` it is the
    number of scenes and `seed` the world's. `root` is where torchvision's sets lie (default: the variable LDMLAB_DATA,
    else ~/.cache/ldmlab/datasets). ValueError for what is not there, unknown or empty.
    """
    kind = check_data_name(name_or_path)
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; accepted: {', '.join(SPLITS)}")
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    if num is not None and num < 1:
        raise ValueError(f"num must be at least 1, or None for all, got {num}")
    if kind == "scenes":
        source = scenes_source(split, size, num, seed)
        protocol: dict = {"resize": "none: rendered at size", "crop": "none", "colour": "RGB"}
    elif kind == "torchvision":
        place = Path(root or os.environ.get("LDMLAB_DATA") or Path.home() / ".cache" / "ldmlab" / "datasets")
        source, protocol = torchvision_source(str(name_or_path), split, size, place, download), dict(PROTOCOL)
    else:
        source, protocol = files_source(kind, str(name_or_path), split, size), dict(PROTOCOL)
    chosen = np.arange(len(source.names))
    if num is not None and num < len(chosen):
        order = sorted(range(len(chosen)), key=lambda i: fraction("subset", seed, source.names[i]))
        chosen = np.array(sorted(order[:num]), np.int64)
    protocol = {"split": split, "size": size, "num": num, "seed": seed, **protocol}
    identity = json.dumps({"pictures": source.identity, **protocol}, sort_keys=True)
    protocol = {"data": source.name, **protocol}
    fingerprint = hashlib.sha256(identity.encode()).hexdigest()
    return ImageSet(source, chosen, split=split, size=size, protocol=protocol, fingerprint=fingerprint)
