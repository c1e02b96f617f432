"""Cache of decoded pictures and label maps: one memory-mapped array on disk, shared by all runs."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from filelock import FileLock

from ldmlab.atomic import atomic_write

CachedArray = tuple[np.ndarray, dict]  # an array with one row per picture, and its metadata


def cached_array(stem: Path, fingerprint: str, row: tuple[int, ...], make: Callable[[], CachedArray]) -> CachedArray:
    """Load the array in `stem`.npy and its metadata in `stem`.json; compute and write them if absent.

    They are computed again where a file is incomplete, has another fingerprint, or rows of another shape than `row`.
    Raises OSError where the cache cannot be written.
    """
    if cached := _load(stem, fingerprint, row):
        return cached
    stem.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{stem}.lock"):  # runs that start together decode only once
        if not (cached := _load(stem, fingerprint, row)):
            array, metadata = make()
            atomic_write(f"{stem}.npy", lambda part: _save(part, array))
            # the small file is written last: its presence means that the large one is complete
            atomic_write(f"{stem}.json", json.dumps({"fingerprint": fingerprint, **metadata}).encode())
            cached = _load(stem, fingerprint, row) or (array, metadata)
    return cached


def cached_metadata(stem: Path, fingerprint: str) -> dict | None:
    """The metadata of a cached array, without loading it; None where there is none of this fingerprint."""
    try:
        metadata = json.loads(Path(f"{stem}.json").read_bytes())
    except (OSError, ValueError):
        return None
    return metadata if metadata.pop("fingerprint", None) == fingerprint else None


def _load(stem: Path, fingerprint: str, row: tuple[int, ...]) -> CachedArray | None:
    metadata = cached_metadata(stem, fingerprint)
    if metadata is None:
        return None
    try:
        array = np.load(f"{stem}.npy", mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return (array, metadata) if array.shape[1:] == row else None


def _save(part: Path, array: np.ndarray) -> None:
    with open(part, "wb") as file:  # np.save would add .npy to a path
        np.save(file, array)
