"""Cache of decoded pictures and label maps: one memory-mapped array on disk, shared by all runs."""

import json
import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ldmlab.atomic import atomic_write, lock_file
from ldmlab.damage import DamagedFile, read_json, reading, seal, set_aside

_BLOCK = 1 << 23  # bytes
CachedArray = tuple[np.ndarray, dict]  # an array with one row per picture, and its metadata


def cached_array(stem: Path, fingerprint: str, row: tuple[int, ...], make: Callable[[], CachedArray]) -> CachedArray:
    """Load the array in `stem`.npy and its metadata in `stem`.json; compute and write them if absent.

    They are computed again where a file has another fingerprint, or rows of another shape than `row`, and where one is
    damaged, which is then set aside. Raises OSError where the cache cannot be written.
    """
    try:
        return _load(stem, fingerprint, row)
    except (FileNotFoundError, DamagedFile):
        pass
    stem.parent.mkdir(parents=True, exist_ok=True)
    waiting = f"another run is writing {stem}; waiting for that one"
    with lock_file(Path(f"{stem}.lock"), waiting):  # runs that start together decode only once
        for _ in range(2):  # either file may be damaged
            try:
                return _load(stem, fingerprint, row)
            except FileNotFoundError:
                break
            except DamagedFile as error:
                set_aside(error.path, error.why)
        array, metadata = make()
        atomic_write(f"{stem}.npy", lambda part: _save(part, array))
        # the small file is written last: its presence means that the large one is complete
        about = {**metadata, "fingerprint": fingerprint, "rows_crc32": _checksums(array)}
        atomic_write(f"{stem}.json", seal(json.dumps(about)))
        return np.load(f"{stem}.npy", mmap_mode="r"), metadata


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


def _load(stem: Path, fingerprint: str, row: tuple[int, ...]) -> CachedArray:
    """FileNotFoundError where a file is missing, DamagedFile where one is damaged or another data set's."""
    metadata, path = _read_metadata(stem, fingerprint), Path(f"{stem}.npy")
    stated = metadata.pop("rows_crc32", None)  # not stated by earlier versions
    with reading(path):
        array = np.load(path, mmap_mode="r")
        if array.shape[1:] != row or array.dtype != np.uint8:
            raise DamagedFile(path, f"it has {array.dtype} of shape {array.shape}")
        if stated is not None and stated != _checksums(array):
            raise DamagedFile(path, "its content does not have the checksum stated in its .json")
    return array, metadata


def _checksums(array: np.ndarray) -> list[str]:
    """Type and shape, then the CRC-32 of each block of bytes; by threads, since opening a data set waits for it."""
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    blocks = (raw[start : start + _BLOCK].data for start in range(0, len(raw), _BLOCK))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [f"{array.dtype.str} {array.shape}", *(f"{crc:08x}" for crc in pool.map(zlib.crc32, blocks))]


def _save(part: Path, array: np.ndarray) -> None:
    with open(part, "wb") as file:  # np.save would add .npy to a path
        np.save(file, array)
