"""Atomic writes and locks, below every package, since all of them write files."""

import errno
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_STALE_S = 3600.0  # age at which a partial file is taken for that of a process that has died
_FULL_BELOW = 2**20  # free bytes below which a failed write is put down to a full disk


class DiskFull(OSError):
    """Not enough disk space for a file; the message has its size and the free space. An existing file is unchanged."""


def atomic_write(path: Path | str, content: bytes | Callable[[Path], object]) -> Path:
    """Write a file atomically: readers, crashes and other writers never meet a partial file. Returns the path.

    `content` is the bytes, or a function that writes to the path it is given. They go to a temporary file beside
    `path`, which is synced to disk and renamed. Raises DiskFull where there is not enough space.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        if callable(content):
            content(part)
        else:
            part.write_bytes(content)
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as error:
        free = shutil.disk_usage(path.parent).free
        written = part.stat().st_size if part.exists() else 0
        part.unlink(missing_ok=True)
        if isinstance(error, Exception) and _is_full(error, free):
            left = _mb(free + written)
            more = f"more than {_mb(max(written, free))}"  # the size of what a function writes is not known
            need = more if callable(content) else _mb(len(content))
            kept = "the previous file is kept" if path.exists() else "nothing was written"
            raise DiskFull(errno.ENOSPC, f"disk full: {path} needs {need}, {left} are free; {kept}") from error
        raise
    _sync_folder(path.parent)
    return path


def _is_full(error: BaseException | None, free: int) -> bool:
    """Whether a write failed for lack of space; some libraries do not pass on the errno."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return free < _FULL_BELOW or os.strerror(errno.ENOSPC).lower() in str(error).lower()


def _remove_stale(path: Path) -> None:
    """Remove partial files that killed processes left."""
    for part in path.parent.glob(f".{path.name}.*.part"):
        try:
            if time.time() - part.stat().st_mtime > _STALE_S:
                part.unlink()
        except FileNotFoundError:
            pass  # removed by another process


def _sync_folder(folder: Path) -> None:
    """Sync the folder, so that the new name survives a power cut (POSIX only)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


@contextmanager
def locked(folder: Path, label: str) -> Iterator[None]:
    """Lock the folder of one model, so that a second run of it waits and then finds it trained."""
    with lock_file(folder / ".lock", f"{label}: another run is training it; waiting for that one"):
        yield


@contextmanager
def lock_file(path: Path, waiting: str) -> Iterator[None]:
    """Hold the lock at `path`; prints `waiting` and waits where another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(waiting, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
