"""Decoded pictures and label maps on disk: one array that all runs share, mapped into memory, not read."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from filelock import FileLock

from ldmlab.atomic import atomic_write

Kept = tuple[np.ndarray, dict]  # an array, one row a picture, and what is known of it


def keep_array(stem: Path, fingerprint: str, row: tuple[int, ...], make: Callable[[], Kept]) -> Kept:
    """What is kept in `stem`.npy and .json, else what `make` gives, kept from then on.

    Anew where it is half of a file, or rows are not of the shape `row`. OSError where it cannot be written.
    """
    if kept := _load(stem, fingerprint, row):
        return kept
    stem.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{stem}.lock"):  # six runs that start together decode once
        if not (kept := _load(stem, fingerprint, row)):
            array, known = make()
            atomic_write(f"{stem}.npy", lambda part: _save(part, array))
            # the small file last: where it is, the large one is whole
            atomic_write(f"{stem}.json", json.dumps({"fingerprint": fingerprint, **known}).encode())
            kept = _load(stem, fingerprint, row) or (array, known)
    return kept


def kept_facts(stem: Path, fingerprint: str) -> dict | None:
    """What is known of a kept array, without it; None where there is none of this fingerprint."""
    try:
        known = json.loads(Path(f"{stem}.json").read_bytes())
    except (OSError, ValueError):
        return None
    return known if known.pop("fingerprint", None) == fingerprint else None


def _load(stem: Path, fingerprint: str, row: tuple[int, ...]) -> Kept | None:
    known = kept_facts(stem, fingerprint)
    if known is None:
        return None
    try:
        array = np.load(f"{stem}.npy", mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return (array, known) if array.shape[1:] == row else None


def _save(part: Path, array: np.ndarray) -> None:
    with open(part, "wb") as file:  # np.save would add .npy to a path
        np.save(file, array)
