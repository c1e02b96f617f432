"""Pixels of a data set: find the readable pictures; decode them one at a time, or all at once into memory or a file."""

import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import numpy as np
import torch

from ldmlab.data.cache import CachedRows, Made, cached_array
from ldmlab.data.formats import PictureError
from ldmlab.data.sources import Source
from ldmlab.progress import Progress

KEEP_BYTES = 1 << 30  # sets up to this size are decoded whole at their first use
SKIP_ALWAYS, SKIP_SHARE = 3, 0.01  # unreadable files that are tolerated: this many, or this share
_CHUNK = 512  # pictures decoded at a time
_SKIPPED_LOCK = Lock()  # two threads may meet the same unreadable file, which counts once


def _decoders() -> ThreadPoolExecutor:
    """Threads that decode, as many as torch has (one in a DataLoader's worker): PIL releases Python's lock."""
    return ThreadPoolExecutor(max(1, torch.get_num_threads()))


class Pixels:
    """The readable pictures among `numbers` of a source, one per row; files that cannot be read go to `skipped`.

    Sets of up to KEEP_BYTES are decoded whole at their first use; in larger ones an unreadable picture is replaced by
    the next one when it is read. One warning names the unreadable files; ValueError where they are more than
    SKIP_ALWAYS and more than a share SKIP_SHARE, or all.
    """

    def __init__(self, source: Source, numbers: np.ndarray, size: int, what: str) -> None:
        self.source, self.size, self.what = source, size, what
        self.numbers = numbers  # index in the source of each row
        self.skipped: list[str] = []
        self._warned = False  # of the first unreadable file of a set that is read at each use
        self._decoded: np.ndarray | CachedRows | None = None  # (n, 3, s, s) uint8
        self._rendered = self._checked = source.name == "scenes"  # always readable

    @property
    def num_bytes(self) -> int:
        """Bytes of all pictures once they are decoded."""
        return len(self.numbers) * 3 * self.size**2

    @property
    def is_decoded(self) -> bool:
        """Whether all pictures are decoded."""
        return self._decoded is not None

    @property
    def is_on_disk(self) -> bool:
        """Whether they are decoded into a file that all runs share."""
        return isinstance(self._decoded, CachedRows)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The pictures of these rows: (n, 3, size, size) uint8."""
        self.find_unreadable()
        if self._decoded is not None:
            return np.ascontiguousarray(self._decoded[rows])
        out = np.empty((len(rows), 3, self.size, self.size), np.uint8)
        with _decoders() as pool:
            for place, (_, picture) in enumerate(pool.map(self._read_or_next, rows.tolist())):
                out[place] = picture
        return out

    def numbers_read(self, rows: np.ndarray) -> list[int]:
        """Indices in the source of the pictures that `read` returns, some of which may replace an unreadable one."""
        self.find_unreadable()
        if self._decoded is None and not self._rendered:
            rows = np.array([self._read_or_next(row)[0] for row in rows.tolist()], np.int64)
        return self.numbers[rows].tolist()

    def find_unreadable(self) -> None:
        """Find the unreadable files of a set of up to KEEP_BYTES, by decoding it."""
        if not self._checked and self.num_bytes <= KEEP_BYTES:
            self.decode_all()
        self._checked = True

    def decode_all(self, progress: Progress | None = None) -> None:
        """Decode every picture into memory, unless they are decoded already."""
        if self._decoded is not None:
            return
        pixels = np.empty((len(self.numbers), 3, self.size, self.size), np.uint8)
        readable: list[int] = []
        num = len(self.numbers)
        with _decoders() as pool:
            for start in range(0, num, _CHUNK):
                rows = range(start, min(start + _CHUNK, num))
                for row, picture in zip(rows, pool.map(self._try, rows), strict=True):
                    if picture is not None:
                        pixels[len(readable)] = picture
                        readable.append(row)
                if progress is not None:
                    progress(rows.stop, num)
        self.skipped.sort()
        self._check_skipped(num, warn=True)
        self._decoded, self.numbers, self._checked = pixels[: len(readable)], self.numbers[readable], True

    def decode_to_file(self, stem: Path, fingerprint: str, progress: Progress | None = None) -> None:
        """Decode every picture into a file `stem`.npy, or map it if it exists; OSError if it is not writable."""
        row = (3, self.size, self.size)
        warned = bool(self.skipped)
        self._decoded, metadata = cached_array(stem, fingerprint, row, self._decode_for_cache, progress)
        warned = warned or bool(self.skipped)
        self.numbers, self.skipped, self._checked = np.array(metadata["chosen"], np.int64), metadata["skipped"], True
        if not warned:
            self._check_skipped(len(self.numbers) + len(self.skipped), warn=True)

    def _decode_for_cache(self, progress: Progress | None) -> Made:
        if self.is_on_disk:  # and found damaged
            self._decoded = None
        self.decode_all(progress)
        assert isinstance(self._decoded, np.ndarray)
        labels = self.source.labels[self.numbers]  # not used here, but by earlier versions that share the cache
        return self._decoded, {"labels": labels.tolist(), "chosen": self.numbers.tolist(), "skipped": self.skipped}

    def _try(self, row: int) -> np.ndarray | None:
        number = int(self.numbers[row])
        try:
            return self.source.read(number)
        except MemoryError:
            raise
        except Exception as error:  # decoders raise all kinds of errors on damaged files
            # Without the addresses of objects, which differ at each use and would list a file twice.
            said = re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(f"{type(error).__name__}: {error}".split()))[:120]
            entry = f"{self.source.names[number]} ({error.reason if isinstance(error, PictureError) else said})"
            with _SKIPPED_LOCK:
                if entry not in self.skipped:
                    self.skipped.append(entry)
            return None

    def _read_or_next(self, row: int) -> tuple[int, np.ndarray]:
        """The first readable picture from this row on, and its row."""
        for step in range(len(self.numbers)):
            found = (row + step) % len(self.numbers)
            picture = self._try(found)
            if picture is not None:
                return found, picture
            warn, self._warned = not self._warned, True  # two threads may meet their first at the same time
            self._check_skipped(len(self.numbers), warn=warn)
        raise ValueError(f"no picture of {self.what} can be read, repair them: {self._named()}")

    def _check_skipped(self, total: int, warn: bool) -> None:
        """Raise ValueError if too many files were skipped, else, with `warn`, name them in a warning."""
        num = len(self.skipped)
        summary, named = f"{num} of {total} pictures of {self.what} cannot be read", self._named()
        if num and (num == total or (num > SKIP_ALWAYS and num > SKIP_SHARE * total)):
            rule = (f"up to {SKIP_ALWAYS}, or {SKIP_SHARE:.0%}, are skipped as long as any are left; repair the files, "
                    "or remove them from the data")
            raise ValueError(f"{summary}: {named}; {rule}")
        if num and warn:
            warnings.warn(f"{summary}, skipped: {named}", stacklevel=2)

    def _named(self) -> str:
        return ", ".join(self.skipped[:10]) + (f" and {len(self.skipped) - 10} more" if len(self.skipped) > 10 else "")
