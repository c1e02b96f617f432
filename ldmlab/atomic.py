"""Atomic writes and locks, below every package, since all of them write files."""

import errno
import hashlib
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from ldmlab.damage import set_aside

_STALE_S = 24 * 3600.0  # age at which a partial file of another machine is taken for that of a process that has died
_FULL_BELOW = 2**20  # free bytes below which a failed write is put down to a full disk
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


class DiskFull(OSError):
    """Not enough disk space for a file; the message has its size and the free space. An existing file is unchanged."""


def atomic_write(path: Path | str, content: bytes | Callable[[Path], object]) -> Path:
    """Write a file atomically: readers, crashes and other writers never meet a partial file. Returns the path.

    `content` is the bytes, or a function that writes to the path it is given. They go to a temporary file beside
    `path`, which is synced to disk and renamed. A folder of that name is set aside. Raises DiskFull where there is not
    enough space, and OSError with the cure where the folder cannot be written.
    """
    path = Path(path)
    make_folder(path.parent)
    part = part_of(path)
    try:
        if callable(content):
            content(part)
        else:
            part.write_bytes(content)
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        remove_abandoned(path, part)
        move_into_place(part, path)
    except BaseException as error:
        free = shutil.disk_usage(path.parent).free
        written = part.stat().st_size if part.exists() else 0
        if part.exists():  # on a read-only disk, removing what is not there is an error
            part.unlink()
        if isinstance(error, Exception) and _is_full(error, free):
            left = _mb(free + written)
            more = f"more than {_mb(max(written, free))}"  # the size of what a function writes is not known
            need = more if callable(content) else _mb(len(content))
            kept = "the previous file is kept" if path.exists() else "nothing was written"
            raise DiskFull(errno.ENOSPC, f"disk full: {path} needs {need}, {left} are free; {kept}") from error
        if isinstance(error, OSError) and error.errno in _READ_ONLY:
            raise _not_writable(path.parent, error) from error
        raise
    return path


def move_into_place(part: Path, path: Path) -> None:
    """Rename a complete partial file to `path`, where it replaces a file; a folder of that name is set aside."""
    if path.is_dir() and not path.is_symlink():
        set_aside(path, "it is a folder")
    os.replace(part, path)
    _sync_folder(path.parent)


def check_writable(folder: Path) -> None:
    """OSError with the cure where no file can be written to a folder, which is made where it is missing."""
    make_folder(folder)
    if not os.access(folder, os.W_OK):
        raise _not_writable(folder, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def make_folder(folder: Path) -> None:
    """Make a folder with its parents; OSError with the cure where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in _READ_ONLY:
            raise _not_writable(folder, error) from error
        raise


def _not_writable(folder: Path, error: OSError) -> OSError:
    root = os.environ.get("LDMLAB_ROOT", "not set")
    return OSError(error.errno, f"nothing can be written to {folder} ({error.strerror}): change its permissions, or "
                                f"name another folder. Results go below LDMLAB_ROOT, which is {root}")


def _is_full(error: BaseException | None, free: int) -> bool:
    """Whether a write failed for lack of space; some libraries do not pass on the errno."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return free < _FULL_BELOW or os.strerror(errno.ENOSPC).lower() in str(error).lower()


def check_free_space(folder: Path, size: int, what: str) -> None:
    """Raise DiskFull where `size` bytes do not fit on the disk of `folder`, which may not exist yet."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if size + _FULL_BELOW > free:
        raise DiskFull(errno.ENOSPC, f"{what} will take {_mb(size)} in {folder}, and {_mb(free)} are free: free some, "
                                     "`python -m ldmlab cache prune` removes what nothing uses, or set LDMLAB_ROOT to "
                                     "a folder on another disk")


def allocate(path: Path, size: int) -> None:
    """Create a file of `size` zero bytes whose blocks are reserved on disk; DiskFull where they are not available."""
    with open(path, "wb") as file:
        try:
            check_free_space(path.parent, size, path.name)
            if hasattr(os, "posix_fallocate"):
                try:
                    os.posix_fallocate(file.fileno(), 0, size)
                    return
                except OSError as error:
                    if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                        raise
            for start in range(0, size, 1 << 20):  # macOS, Windows, and file systems that cannot reserve
                file.write(bytes(min(1 << 20, size - start)))
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            path.unlink()
            if not isinstance(error, DiskFull) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                free = shutil.disk_usage(path.parent).free
                raise DiskFull(error.errno, f"disk full: {path} needs {_mb(size)}, {_mb(free)} are free") from error
            raise


# Partial files, and whose they are


def part_of(path: Path) -> Path:
    """A new name beside `path` for a partial file, which says what process of which machine writes it."""
    pid = os.getpid()
    return path.with_name(f".{path.name}.{_machine()}-{pid}-{_started(pid)}-{uuid.uuid4().hex[:4]}.part")


def release_part(part: Path) -> None:
    """Rename a partial file to one that no process writes, for another call to go on with, or to remove."""
    with suppress(FileNotFoundError):  # removed by someone else
        part.rename(part.with_name(f"{part.name.rpartition(f'.{_machine()}-')[0]}.{_machine()}-0-0-{part.name[-9:]}"))


def parts_of(path: Path) -> list[Path]:
    """All partial files of `path`, those of other processes included."""
    begin = f".{path.name}."
    return sorted(p for p in path.parent.iterdir() if p.name.startswith(begin) and p.name.endswith(".part"))


def is_abandoned(part: Path, now: float) -> bool:
    """Whether the writer of a partial file has died.

    Known for writers on this machine, whose process has gone. For those of another machine, or where processes cannot
    be looked up, a file counts as abandoned that was not written to for a day. `now` is the time of the last change of
    a file that was just written to the same folder: by the clock of the file system, and not by ours, which may be
    wrong.
    """
    fields = part.name.removesuffix(".part").rpartition(".")[2].split("-")
    if len(fields) == 4 and fields[0] == _machine() and fields[1].isdigit() and os.name == "posix":
        return _started(int(fields[1])) != fields[2]
    try:
        return now - part.stat().st_mtime > _STALE_S
    except FileNotFoundError:  # just finished, or removed by another process
        return False


def remove_abandoned(path: Path, part: Path) -> None:
    """Remove the partial files of `path` that dead processes have left; `part` is one that was just written."""
    for other in parts_of(path):
        try:
            if other != part and is_abandoned(other, part.stat().st_mtime):
                other.unlink()
        except FileNotFoundError:
            pass  # removed by another process


@cache
def _machine() -> str:
    """Digest of this machine, its boot and the namespace of its process ids."""
    about = [socket.gethostname()]
    for read in (lambda: Path("/proc/sys/kernel/random/boot_id").read_text(), lambda: os.readlink("/proc/self/ns/pid")):
        try:
            about.append(read())
        except OSError:
            pass  # not Linux
    return hashlib.sha256(" ".join(about).encode()).hexdigest()[:8]


def _started(pid: int) -> str:
    """When a process began, in ticks since boot; "0" where that is not known, "" where there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]  # Z, X: has ended
    except FileNotFoundError:
        if os.path.isdir("/proc/self"):
            return ""
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        pass  # of another user
    return "0"


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


# Locks


@contextmanager
def locked(folder: Path, label: str) -> Iterator[None]:
    """Lock the folder of one model, so that a second run of it waits and then finds it trained."""
    with lock_file(folder / ".lock", f"{label}: another run is training it; waiting for that one"):
        yield


@contextmanager
def lock_file(path: Path, waiting: str) -> Iterator[None]:
    """Hold the lock at `path`; prints `waiting` and waits where another process holds it.

    What is no file, or cannot be opened, is set aside. OSError with the cure where the folder cannot be written.
    """
    make_folder(path.parent)
    lock = FileLock(path)
    try:
        _acquire(lock, path, waiting)
    except OSError as error:
        if error.errno in _READ_ONLY and not os.access(path.parent, os.W_OK):
            raise _not_writable(path.parent, error) from error
        if error.errno not in (errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENXIO):
            raise
        set_aside(path, error.strerror)
        _acquire(lock, path, waiting)
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, path: Path, waiting: str) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(waiting, flush=True)
        lock.acquire()
