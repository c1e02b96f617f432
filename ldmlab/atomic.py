"""Files that are there whole or not at all; below every room, since all of them write."""

import errno
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_FORGOTTEN_S = 3600.0  # no write takes this long: its process is gone
_NEARLY_NOTHING = 2**20


class DiskFull(OSError):
    """No room for a file; the message names it, its size and the room left. What it should replace is unharmed."""


def atomic_write(path: Path | str, content: bytes | Callable[[Path], object]) -> Path:
    """Write a file so that a reader, a crash or a second writer never sees half of it.

    `content` is the bytes, or a function that writes to the path it is given. The bytes go to a file beside it, reach
    the disk, and take the name in one step. Raises DiskFull where they do not fit.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_forgotten(path)
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
            more = f"more than {_mb(max(written, free))}"  # what a function would have written is not known
            need = more if callable(content) else _mb(len(content))
            kept = "the file as it was is kept" if path.exists() else "nothing was written"
            raise DiskFull(errno.ENOSPC, f"disk full: {path} needs {need}, {left} are free; {kept}") from error
        raise
    _sync_folder(path.parent)
    return path


def _is_full(error: BaseException | None, free: int) -> bool:
    """Whether a failed write was for want of room; some libraries hide the number, and leave nothing free."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return free < _NEARLY_NOTHING or os.strerror(errno.ENOSPC).lower() in str(error).lower()


def _remove_forgotten(path: Path) -> None:
    """What killed processes left of earlier attempts at this file."""
    for part in path.parent.glob(f".{path.name}.*.part"):
        try:
            if time.time() - part.stat().st_mtime > _FORGOTTEN_S:
                part.unlink()
        except FileNotFoundError:
            pass  # another process was quicker


def _sync_folder(folder: Path) -> None:
    """Make the new name itself survive a power cut, where the system can open a folder."""
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
    """Hold the folder of one model: a second run of the same waits, and then finds it trained."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{label}: another run is training it; waiting for that one", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
