"""Download released files, on request only: with resume, verification and atomic writes.

`fetch("kl-f8")`, or `python -m ldmlab fetch kl-f8`.
"""

import hashlib
import json
import os
import shutil
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO
from zipfile import BadZipFile, ZipFile

import torch
from tqdm.auto import tqdm

from ldmlab.atomic import atomic_write, lock_file
from ldmlab.checkpoints.downloads.manifest import ReleasedFile, find_released_file
from ldmlab.checkpoints.downloads.transfer import (
    FetchError,
    check_free_space,
    discard,
    file_size,
    megabytes,
    transfer,
    without_password,
)
from ldmlab.damage import read_json, read_or_set_aside
from ldmlab.perception.files import file_hash
from ldmlab.perception.trunks import cache_folder
from ldmlab.progress import Progress

_TRIES = 5  # per address; a broken connection is resumed as long as each try adds bytes


def fetch(name: str, folder: Path | str | None = None, report: Progress | None = None) -> Path:
    """Download a file of the manifest if it is not on disk, verify it, and return its path.

    `folder` defaults to $LDMLAB_CHECKPOINTS, else ~/.cache/ldmlab/checkpoints; to torch's hub folder for the networks
    of metrics. Interrupted downloads resume. Of a zip only the checkpoint is kept. Without a published sha256 the first
    one seen is written beside the file, and a file that changes later is refused (trust on first use). `report` is
    called with (bytes, total bytes) in place of the progress bar. Raises ValueError for an unknown name and for a file
    on disk with another sha256, FetchError where the network or the downloaded file is at fault, and DiskFull.
    """
    row = find_released_file(name)
    place = Path(folder).expanduser() if folder is not None else default_folder(row)
    path, archive = place / row.file, (place / row.file).with_suffix(".zip")
    if found := _find_on_disk(row, place):  # complete files need no lock and no writable folder
        return found
    with lock_file(path.with_name(f".{path.name}.lock"), f"{path.name}: another process is downloading it; waiting"):
        if found := _find_on_disk(row, place):
            return found
        if row.member and archive.exists():  # put there by hand; it is not removed
            _publish(row, archive, path)
            _write_record(row, path, file_hash(path), "a zip put there by hand")
            return path
        with show_progress(name, report) as show:
            part, url = download_part(row, path, show)
        try:
            _publish(row, part, path)
        except FetchError:
            discard(part)  # complete but wrong: resuming it would fail again
            raise
        discard(part)
        _write_record(row, path, file_hash(path), url)
    return path


def default_folder(row: ReleasedFile) -> Path:
    """The folder of a file of the manifest unless the caller names one."""
    if row.hub:
        return Path(torch.hub.get_dir()) / "checkpoints"
    return cache_folder()


# Files on disk


def record_file(path: Path) -> Path:
    """Where the sha256 of a fetched file, and who states it, are kept."""
    return path.with_name(f"{path.name}.json")


def _known_hash(row: ReleasedFile, path: Path) -> tuple[str | None, str]:
    """The expected sha256 of a file and its origin: the manifest, or the record of the first download."""
    if row.sha256:
        return row.sha256, "the manifest"
    record = read_or_set_aside(record_file(path), read_json)
    return (record["sha256"], record_file(path).name) if record else (None, "")


def _find_on_disk(row: ReleasedFile, place: Path) -> Path | None:
    """The file on disk, under any of its names, or None; ValueError if its hash is not the expected one."""
    path = next((place / name for name in (row.file, *row.other_names) if (place / name).exists()), None)
    if path is None:
        return None
    digest, (known, origin) = file_hash(path), _known_hash(row, path)
    if known not in (None, digest):
        raise ValueError(f"{path} has sha256 {digest}, but {origin} states {known}: it is damaged or another file. "
                         f"Remove it and fetch {row.name!r} again")
    if not record_file(path).exists() and os.access(place, os.W_OK):
        _write_record(row, path, digest, "a file put there by hand")
    return path


def _write_record(row: ReleasedFile, path: Path, digest: str, source: str) -> None:
    """Write sha256, size, origin and licence of a file beside it; warn where a third party's copy has another hash."""
    trust = "as the manifest states it" if row.sha256 else "trusted on first use: none is published"
    if row.copy:
        same = row.copy.sha256 == digest
        trust += f"; {'the same as' if same else 'NOT that of'} the copy at {row.copy.source}"
        if not same:
            warnings.warn(f"{path} has sha256 {digest}, the copy at {row.copy.source} has {row.copy.sha256}. Neither "
                          "is published by the authors; find out which is right before you use the file", stacklevel=3)
    record = {"name": row.name, "sha256": digest, "size": path.stat().st_size, "trust": trust, "from": source,
              "license": row.license, "seen": datetime.now(UTC).isoformat(timespec="seconds")}
    atomic_write(record_file(path), json.dumps(record, indent=1).encode())


def _publish(row: ReleasedFile, source: Path, path: Path) -> None:
    """Verify the hash of a download and move it to `path`; of a zip, unpack the checkpoint there."""
    known, origin = _known_hash(row, path)

    def check(part: Path) -> None:
        if known and (digest := file_hash(part)) != known:
            raise FetchError(f"{row.name}: the download has sha256 {digest}, but {origin} states {known}; it was "
                             f"deleted. Fetch it again; if that does not help, the file at {row.urls[0]} has changed")

    def move(part: Path) -> None:
        os.replace(source, part)
        check(part)

    if not row.member:
        atomic_write(path, move)
        return
    with _checkpoint_in(row, source) as (packed, size):
        check_free_space(path.parent, size)

        def unpack(part: Path) -> None:
            with open(part, "wb") as file:
                shutil.copyfileobj(packed, file, 1 << 20)
            check(part)

        atomic_write(path, unpack)


@contextmanager
def _checkpoint_in(row: ReleasedFile, source: Path) -> Iterator[tuple[IO[bytes], int]]:
    """Open the single checkpoint in a zip, with its size; names in the zip are never used as paths."""
    try:
        with ZipFile(source) as archive:
            files = {info: PurePosixPath(info.filename).name for info in archive.infolist() if not info.is_dir()}
            fitting = [info for info, file in files.items() if file == row.member]
            fitting = fitting or [i for i, file in files.items() if file.endswith(".ckpt") and not file.startswith(".")]
            if len(fitting) != 1:
                held = ", ".join(archive.namelist()[:9])
                raise FetchError(f"the zip of {row.name!r} must hold one {row.member}; it holds {held or 'nothing'}")
            with archive.open(fitting[0]) as packed:
                yield packed, fitting[0].file_size
    except (BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: encrypted, unknown method
        raise FetchError(f"the download of {row.name!r} is not a complete zip ({error}); fetch it again") from error


# The download


def download_part(row: ReleasedFile, path: Path, show: Progress) -> tuple[Path, str]:
    """Download from the first address that works to a temporary file beside `path`; the file and the address.

    FetchError where none works: what has arrived is kept, and the next call resumes it.
    """
    problems = []
    for url in row.urls:
        part = path.with_name(f".{path.name}.{hashlib.sha256(url.encode()).hexdigest()[:8]}.download")
        for _ in range(_TRIES):
            had = file_size(part)
            try:
                transfer(url, part, None if row.member else row.size, show)
                return part, without_password(url)
            except FetchError as error:
                kept = f"; {megabytes(file_size(part))} are kept for the next try" if file_size(part) else ""
                problem = f"{error}{kept}"
            if file_size(part) <= had:
                break
        problems.append(problem)
    target = path.with_suffix(".zip") if row.member else path
    addresses = " or ".join(map(without_password, row.urls))
    raise FetchError(f"{row.name!r} could not be fetched: {'; '.join(problems)}. Try again later, or "
                     f"download {addresses} ({size_text(row)}) by other means to {target}")


@contextmanager
def show_progress(label: str, report: Progress | None) -> Iterator[Progress]:
    """Context with a function of (bytes, total bytes): `report`, or that of a progress bar."""
    if report is not None:
        yield report
        return
    with tqdm(desc=label, unit="B", unit_scale=True) as bar:

        def show(done: int, total: int) -> None:
            if bar.total is None:
                bar.initial, bar.n, bar.total = done, done, total or None  # bytes on disk do not count for the rate
            bar.update(done - bar.n)

        yield show


def size_text(row: ReleasedFile) -> str:
    """The size of a released file in words: published, of a copy, or not known."""
    if row.size:
        return megabytes(row.size)
    if row.copy and row.copy.size:
        return f"about {megabytes(row.copy.size)}"
    return "size not published"
