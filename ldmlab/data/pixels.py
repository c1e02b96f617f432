"""The pixels of a set: which pictures can be read, decoded one at a time or all at once and kept."""

import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np
import torch

from ldmlab.data.annotations.annotation_files import Progress
from ldmlab.data.cache import Kept, keep_array
from ldmlab.data.sources import Source

KEEP_BYTES = 1 << 30  # sets up to this size are decoded whole when first used, and kept
SKIP_ALWAYS, SKIP_SHARE = 3, 0.01  # unreadable files that are forgiven: this many, or this share
_CHUNK = 512  # pictures decoded ahead of what is stored
_NOTING = Lock()  # two threads may come upon the same unreadable file, which counts once


def _decoders() -> ThreadPoolExecutor:
    """As many threads as torch has, since PIL decodes outside of Python's lock: one in a DataLoader's worker."""
    return ThreadPoolExecutor(max(1, torch.get_num_threads()))


class Pixels:
    """Some pictures of a source, one a row, but for those that cannot be read, which are named in `skipped`.

    Whether a file is readable is found out on first use: sets of up to KEEP_BYTES are decoded then and kept; in larger
    ones a picture that turns out to be unreadable is replaced by the next one. ValueError where more than SKIP_ALWAYS
    and SKIP_SHARE of the files are unreadable, or all are; otherwise one warning names them.
    """

    def __init__(self, source: Source, numbers: np.ndarray, size: int, what: str) -> None:
        self.source, self.size, self.what = source, size, what
        self.numbers = numbers  # of each row in the source
        self.skipped: list[str] = []
        self._told = False  # of the first one, where files are found out as they are used
        self._kept: np.ndarray | None = None  # (n, 3, s, s) uint8 once decoded, in memory or mapped from the cache
        self._rendered = self._surveyed = source.name == "scenes"  # always readable

    @property
    def num_bytes(self) -> int:
        """What all pictures take."""
        return len(self.numbers) * 3 * self.size**2

    @property
    def are_kept(self) -> bool:
        """Whether all pictures are decoded."""
        return self._kept is not None

    @property
    def is_on_disk(self) -> bool:
        """Whether they are in a file that all runs share."""
        return isinstance(self._kept, np.memmap)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The pictures of these rows: (n, 3, size, size) uint8."""
        self.survey()
        if self._kept is not None:
            return np.ascontiguousarray(self._kept[rows])
        out = np.empty((len(rows), 3, self.size, self.size), np.uint8)
        with _decoders() as pool:
            for place, (_, picture) in enumerate(pool.map(self._read_or_next, rows.tolist())):
                out[place] = picture
        return out

    def numbers_read(self, rows: np.ndarray) -> list[int]:
        """The numbers in the source of the pictures that `read` gives, of which some may stand in for another."""
        self.survey()
        if self._kept is None and not self._rendered:
            rows = np.array([self._read_or_next(row)[0] for row in rows.tolist()], np.int64)
        return self.numbers[rows].tolist()

    def survey(self) -> None:
        """Find out what is readable, if the set is small enough to be kept."""
        if not self._surveyed and self.num_bytes <= KEEP_BYTES:
            self.decode_all()
        self._surveyed = True

    def decode_all(self, progress: Progress | None = None) -> None:
        """Decode every picture into memory, unless that is done."""
        if self._kept is not None:
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
        self._judge_skipped(num, tell=True)
        self._kept, self.numbers, self._surveyed = pixels[: len(readable)], self.numbers[readable], True

    def keep(self, stem: Path, fingerprint: str, progress: Progress | None = None) -> None:
        """Have every picture in a file under `stem`, decoded by the first run; OSError if it cannot be written."""
        row = (3, self.size, self.size)
        told = bool(self.skipped)
        self._kept, known = keep_array(stem, fingerprint, row, partial(self._decoded, progress))
        told = told or bool(self.skipped)
        self.numbers, self.skipped, self._surveyed = np.array(known["chosen"], np.int64), known["skipped"], True
        if not told:
            self._judge_skipped(len(self.numbers) + len(self.skipped), tell=True)

    def _decoded(self, progress: Progress | None) -> Kept:
        self.decode_all(progress)
        assert self._kept is not None
        labels = self.source.labels[self.numbers]  # not read here, but by earlier versions that share the cache
        return self._kept, {"labels": labels.tolist(), "chosen": self.numbers.tolist(), "skipped": self.skipped}

    def _try(self, row: int) -> np.ndarray | None:
        number = int(self.numbers[row])
        try:
            return self.source.read(number)
        except MemoryError:
            raise
        except Exception as error:  # a damaged file makes decoders raise anything
            # Without the addresses of objects, which would make the same file another one at each use.
            reason = re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(f"{type(error).__name__}: {error}".split()))[:120]
            told = f"{self.source.names[number]} ({reason})"
            with _NOTING:
                if told not in self.skipped:
                    self.skipped.append(told)
            return None

    def _read_or_next(self, row: int) -> tuple[int, np.ndarray]:
        """The first readable picture from this row on, and its row."""
        for step in range(len(self.numbers)):
            found = (row + step) % len(self.numbers)
            picture = self._try(found)
            if picture is not None:
                return found, picture
            tell, self._told = not self._told, True  # two threads may meet their first at the same time
            self._judge_skipped(len(self.numbers), tell=tell)
        raise ValueError(f"no picture of {self.what} can be read: {self._named()}")

    def _judge_skipped(self, total: int, tell: bool) -> None:
        num = len(self.skipped)
        told, named = f"{num} of {total} pictures of {self.what} cannot be read", self._named()
        if num and (num == total or (num > SKIP_ALWAYS and num > SKIP_SHARE * total)):
            rule = f"up to {SKIP_ALWAYS}, or {SKIP_SHARE:.0%}, are skipped as long as any are left"
            raise ValueError(f"{told}: {named}; {rule}")
        if num and tell:
            warnings.warn(f"{told}, skipped: {named}", stacklevel=2)

    def _named(self) -> str:
        return ", ".join(self.skipped[:10]) + (f" and {len(self.skipped) - 10} more" if len(self.skipped) > 10 else "")
