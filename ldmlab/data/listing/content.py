"""Hashes of the pictures' bytes: each file is read once, and again when it changes.

A hash is kept under the identity of its file: path, place in it, size, times of modification and change, device and
number. So opening a known set reads no picture.
"""

import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from ldmlab.atomic import atomic_write
from ldmlab.progress import Progress

_KEY, _DIGEST = 16, 32  # bytes
_CHUNK = 64  # files that a thread reads at a time
_BLOCK = 1 << 20
_TICK_S = 0.02  # a change within the clock tick of the previous one leaves the times of a file as they are


Place = tuple[str, int, int, str]  # of a picture's bytes: file, offset, length, and what changes with the file


def content_digests(
    places: Sequence[Place], cache_file: Path | None = None, progress: Progress | None = None
) -> list[bytes]:
    """sha256 of the bytes at each place; of nothing where they cannot be read.

    Hashes are kept in `cache_file`; where it cannot be written, the next process computes them again.
    """
    keys = [_key(place) for place in places]
    known = _load(cache_file) if cache_file else {}
    missing = [k for k, key in enumerate(keys) if key not in known]
    if missing:
        known |= _hash_all([(keys[k], places[k]) for k in missing], progress)
        if cache_file:
            _save(cache_file, {key: known[key] for key in keys})
    return [known[key] for key in keys]


def cache_file_of(data: str, cache_dir: str | Path | None) -> Path | None:
    """The file for the hashes of one data set, a folder, tar file or pattern of shards; None without a folder."""
    if cache_dir is None:
        return None
    name = hashlib.sha256(os.path.abspath(data).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return Path(cache_dir) / f"contents-{name}.bin"


def _key(place: Place) -> bytes:
    return hashlib.blake2b("\0".join(map(str, place)).encode("utf-8", "surrogateescape"), digest_size=_KEY).digest()


def _hash_all(work: Sequence[tuple[bytes, Place]], progress: Progress | None) -> dict[bytes, bytes]:
    time.sleep(_TICK_S)  # so that a change after reading changes the times, and with them the key
    found: dict[bytes, bytes] = {}
    chunks = [work[i : i + _CHUNK] for i in range(0, len(work), _CHUNK)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for part in pool.map(_hash_some, chunks):
            found |= part
            if progress is not None:
                progress(len(found), len(work))
    return found


def _hash_some(work: Sequence[tuple[bytes, Place]]) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    with ExitStack() as stack:
        opened, file = "", None
        for key, (path, offset, length, _) in work:
            digest = hashlib.sha256()
            try:
                if file is None or path != opened:
                    stack.close()
                    opened, file = path, stack.enter_context(open(path, "rb", buffering=0))
                file.seek(offset)
                while length > 0 and (block := file.read(min(length, _BLOCK))):
                    digest.update(block)
                    length -= len(block)
            except OSError:
                digest, file = hashlib.sha256(), None
            found[key] = digest.digest()
    return found


def _load(file: Path) -> dict[bytes, bytes]:
    """The hashes in a file; {} where it is missing or damaged."""
    try:
        raw = file.read_bytes()
    except OSError:
        return {}
    rows = memoryview(raw)[_DIGEST:]
    if hashlib.sha256(rows).digest() != raw[:_DIGEST]:
        return {}
    width = _KEY + _DIGEST
    return {bytes(rows[i : i + _KEY]): bytes(rows[i + _KEY : i + width]) for i in range(0, len(rows), width)}


def _save(file: Path, digests: dict[bytes, bytes]) -> None:
    rows = b"".join(key + digest for key, digest in digests.items())
    try:
        atomic_write(file, hashlib.sha256(rows).digest() + rows)
    except OSError:
        pass  # a full or read-only disk: the next process reads the pictures again
