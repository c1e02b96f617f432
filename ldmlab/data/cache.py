"""Cache of decoded pictures and label maps: one memory-mapped array on disk, shared by all runs."""

import json
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldmlab.atomic import atomic_write, lock_file
from ldmlab.damage import DamagedFile, read_json, reading, seal, set_aside
from ldmlab.progress import Progress

_BLOCK = 1 << 23  # bytes
Made = tuple[np.ndarray, dict]  # an array with one row per picture, and its metadata
Make = Callable[[Progress | None], Made]


class CachedRows:
    """Rows of an array on disk. A block's checksum is compared when one of its rows is first read.

    So opening a large set reads none of it. Where a block does not have its checksum, the file is set aside, and `make`
    gives the rows anew; where these cannot be written, they stay in memory, with a warning.
    """

    def __init__(self, stem: Path, fingerprint: str, array: np.ndarray, checksums: Sequence[str], make: Make):
        self._stem, self._fingerprint, self._array, self._make = stem, fingerprint, array, make
        self._stated = checksums  # of each block; earlier versions did not state them
        self._unread = set(range(len(checksums)))

    def __getstate__(self) -> dict[str, Any]:
        """For other processes, which map the file themselves."""
        return vars(self) | ({"_array": None} if isinstance(self._array, np.memmap) else {})

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self._array is None:
            self._array = np.load(f"{self._stem}.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, rows: np.ndarray | Sequence[int]) -> np.ndarray:
        """A copy of these rows."""
        if self._unread and not self._sound(np.asarray(rows)):
            set_aside(Path(f"{self._stem}.npy"), "a block does not have the checksum stated in its .json")
            self._renew()
        return np.ascontiguousarray(self._array[rows])

    def _sound(self, rows: np.ndarray) -> bool:
        size, raw = self._array[0].nbytes, self._array.reshape(-1).view(np.uint8)
        first, last = rows * size // _BLOCK, ((rows + 1) * size - 1) // _BLOCK
        for block in {b for start, end in zip(first.tolist(), last.tolist(), strict=True)
                      for b in range(start, end + 1)} & self._unread:
            if _checksum(raw, block) != self._stated[block]:
                return False
            self._unread.discard(block)  # two threads may compare the same block
        return True

    def _renew(self) -> None:
        self._unread = set()
        try:
            rows, _ = cached_array(self._stem, self._fingerprint, self._array.shape[1:], self._make)
            self._array = rows._array
        except OSError as error:
            warnings.warn(f"{self._stem}.npy cannot be written anew, its rows stay in memory: {error}", stacklevel=4)
            self._array, _ = self._make(None)


def cached_array(
    stem: Path, fingerprint: str, row: tuple[int, ...], make: Make, progress: Progress | None = None
) -> tuple[CachedRows, dict]:
    """Open the array in `stem`.npy, with its metadata in `stem`.json; compute and write them if absent.

    They are computed again where a file has another fingerprint, or rows of another shape than `row`, and where one is
    damaged, which is then set aside. Raises OSError where the cache cannot be written.
    """
    try:
        return _load(stem, fingerprint, row, make)
    except (FileNotFoundError, DamagedFile):
        pass
    stem.parent.mkdir(parents=True, exist_ok=True)
    waiting = f"another run is writing {stem}; waiting for that one"
    with lock_file(Path(f"{stem}.lock"), waiting):  # runs that start together decode only once
        for _ in range(2):  # either file may be damaged
            try:
                return _load(stem, fingerprint, row, make)
            except FileNotFoundError:
                break
            except DamagedFile as error:
                set_aside(error.path, error.why)
        array, metadata = make(progress)
        atomic_write(f"{stem}.npy", lambda part: _save(part, array))
        # the small file is written last: its presence means that the large one is complete
        about = {**metadata, "fingerprint": fingerprint, "rows_crc32": [_form(array), *_checksums(array)]}
        atomic_write(f"{stem}.json", seal(json.dumps(about)))
        return _load(stem, fingerprint, row, make)


def cached_metadata(stem: Path, fingerprint: str) -> dict | None:
    """The metadata of a cached array, without loading it; None where there is none of this fingerprint."""
    try:
        metadata = _read_metadata(stem, fingerprint)
    except (OSError, DamagedFile):
        return None
    metadata.pop("rows_crc32", None)
    return metadata


def _read_metadata(stem: Path, fingerprint: str) -> dict:
    path = Path(f"{stem}.json")
    metadata = read_json(path)
    with reading(path):
        if metadata.pop("fingerprint") != fingerprint:
            raise DamagedFile(path, "it describes other data")
    return metadata


def _load(stem: Path, fingerprint: str, row: tuple[int, ...], make: Make) -> tuple[CachedRows, dict]:
    """FileNotFoundError where a file is missing, DamagedFile where one is damaged or another data set's."""
    metadata, path = _read_metadata(stem, fingerprint), Path(f"{stem}.npy")
    form, *checksums = metadata.pop("rows_crc32", None) or [None]
    with reading(path):
        array = np.load(path, mmap_mode="r")
        if array.shape[1:] != row or array.dtype != np.uint8:
            raise DamagedFile(path, f"it has {array.dtype} of shape {array.shape}")
        if form is not None and (form, len(checksums)) != (_form(array), _num_blocks(array)):
            raise DamagedFile(path, f"it has {array.dtype} of shape {array.shape}, which its .json does not state")
    return CachedRows(stem, fingerprint, array, checksums, make), metadata


def _form(array: np.ndarray) -> str:
    return f"{array.dtype.str} {array.shape}"


def _num_blocks(array: np.ndarray) -> int:
    return -(-array.nbytes // _BLOCK)


def _checksums(array: np.ndarray) -> list[str]:
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return [_checksum(raw, block) for block in range(_num_blocks(array))]


def _checksum(raw: np.ndarray, block: int) -> str:
    return f"{zlib.crc32(raw[block * _BLOCK : (block + 1) * _BLOCK].data):08x}"


def _save(part: Path, array: np.ndarray) -> None:
    with open(part, "wb") as file:  # np.save would add .npy to a path
        np.save(file, array)
