"""Damaged files: recognized by a checksum, named, and set aside under another name so that they can be made anew."""

import errno
import json
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

# Read errors that say nothing of the file: the same read may succeed later.
_PASSING = {errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EINTR, errno.EAGAIN, errno.ESTALE, errno.ETIMEDOUT}
_CHECKSUM = re.compile(rb',\s*"crc32": "([0-9a-f]{8})"\s*}\s*$')


class DamagedFile(ValueError):
    """A file does not hold what was written to it, or is not what its name says. The message names it."""

    def __init__(self, path: Path | str, why: object):
        super().__init__(f"{path} is damaged: {why}")
        self.path, self.why = Path(path), why


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Context of reading one file: what it raises because of the file's content becomes a DamagedFile.

    FileNotFoundError where nothing is at `path`; DamagedFile also for a folder, a pipe or a device, which are not
    opened, and for a file without read permission. Errors that may pass, such as too many open files, stay.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DamagedFile(path, "it is a link to itself") from error
        raise
    if not stat.S_ISREG(mode):
        raise DamagedFile(path, "it is a folder" if stat.S_ISDIR(mode) else "it is no regular file")
    try:
        yield
    except DamagedFile:
        raise
    except OSError as error:
        if error.errno in _PASSING or not path.exists():
            raise
        raise DamagedFile(path, error.strerror or error) from error
    except MemoryError:
        raise
    except Exception as error:  # parsers of damaged files raise almost anything
        raise DamagedFile(path, " ".join(f"{type(error).__name__}: {error}".split())[:300]) from error


def set_aside(path: Path, why: object) -> Path:
    """Rename a damaged file, or a folder in its place, to `<name>.damaged-<n>`, and print that; returns the new path.

    DamagedFile, with the cure, where it cannot be renamed.
    """
    n = 1
    while os.path.lexists(new := path.with_name(f"{path.name}.damaged-{n}")):
        n += 1
    try:
        os.rename(path, new)
    except FileNotFoundError:  # another process was first
        return new
    except OSError as error:
        raise DamagedFile(path, f"{why}. It cannot be renamed either ({error.strerror}): move or remove it, or make "
                                "its folder writable") from error
    print(f"{path} is damaged ({why}): set aside as {new.name}, and made anew", flush=True)
    return new


def read_or_set_aside(path: Path, read: Callable[[Path], T]) -> T | None:
    """`read(path)`; None where there is no file, or where it is damaged, which is then set aside."""
    try:
        return read(path)
    except FileNotFoundError:
        return None
    except DamagedFile as error:
        if error.path == path:
            set_aside(path, error.why)
            return None
        raise


# JSON with a checksum as its last key


def seal(text: str) -> bytes:
    """The text of a JSON object with the CRC-32 of all that precedes it as its last key, "crc32".

    >>> seal('{"done": 3}')
    b'{"done": 3, "crc32": "02c4fa21"}'
    """
    body = text.rstrip()[:-1].rstrip().encode()
    crc = f'"crc32": "{zlib.crc32(body):08x}"'.encode()
    return body + (b",\n  " + crc + b"\n}\n" if b"\n" in body else b", " + crc + b"}")


def read_json(path: Path) -> Any:
    """The content of a JSON file, without the checksum of `seal`; a file without one is read unchecked.

    FileNotFoundError for a missing file; DamagedFile for one that is no JSON, nested too deep, or has another checksum.
    """
    with reading(path):
        raw = path.read_bytes()
        if found := _CHECKSUM.search(raw):
            body = raw[: found.start()].replace(b"\r\n", b"\n")  # as git may have written it on Windows
            if f"{zlib.crc32(body):08x}" != found[1].decode():
                raise DamagedFile(path, "its content does not have the checksum that it states")
        content = json.loads(raw)
        if found:
            del content["crc32"]
        return content
