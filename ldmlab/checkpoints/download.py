"""Released files, fetched on request and never otherwise: resumed, checked, and there whole or not at all.

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
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from ldmlab.atomic import atomic_write
from ldmlab.checkpoints.manifest import Released, find
from ldmlab.checkpoints.transfer import FetchError, Report, forget, length, mb, need_room, transfer
from ldmlab.perception import file_hash

_TRIES = 5  # a broken connection is taken up again as long as each try brings something


def fetch(name: str, folder: Path | str | None = None, report: Report | None = None) -> Path:
    """The path of a released file of the manifest, downloaded if it is not there, and checked either way.

    `folder`: $LDMLAB_CHECKPOINTS, else ~/.cache/ldmlab/checkpoints; torch's hub folder for the networks of metrics. An
    interrupted download goes on where it stopped. Of a zip only the checkpoint is kept. Without a published sha256 the
    first one seen is written beside the file, and a file that changes later is refused (trust on first use). `report`
    replaces the progress bar. Raises ValueError for an unknown name and for a file on disk of another sha256,
    FetchError where the network or what came is at fault, DiskFull.
    """
    row = find(name)
    place = Path(folder).expanduser() if folder is not None else default_folder(row)
    path, archive = place / row.file, (place / row.file).with_suffix(".zip")
    if there := _lying(row, place):  # published whole, so no lock is needed, nor a folder that can be written
        return there
    with _alone(path):
        if there := _lying(row, place):
            return there
        if row.member and archive.exists():  # put there by hand, and left there
            _publish(row, archive, path)
            _keep_record(row, path, file_hash(path), "a zip put there by hand")
            return path
        with _progress(name, report) as show:
            part, url = _download(row, path, show)
        try:
            _publish(row, part, path)
        except FetchError:
            forget(part)  # whole and wrong: to go on from it would fail for ever
            raise
        forget(part)
        _keep_record(row, path, file_hash(path), url)
    return path


def default_folder(row: Released) -> Path:
    """Where a file of the manifest lies unless a folder is named."""
    if row.hub:
        return Path(torch.hub.get_dir()) / "checkpoints"
    named = os.environ.get("LDMLAB_CHECKPOINTS")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "ldmlab" / "checkpoints"


# What is on disk


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{path.name}: another process is fetching it; waiting for that one", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def record_file(path: Path) -> Path:
    """Where the sha256 of a fetched file, and who states it, are kept."""
    return path.with_name(f"{path.name}.json")


def _known_hash(row: Released, path: Path) -> tuple[str | None, str]:
    """The sha256 a file must have, and who says so: the manifest, or the record of the first fetch."""
    if row.sha256:
        return row.sha256, "the manifest"
    record = record_file(path)
    return (json.loads(record.read_text())["sha256"], record.name) if record.exists() else (None, "")


def _lying(row: Released, place: Path) -> Path | None:
    """The file if it is there, under any of its names; ValueError if its hash is not the one it must have."""
    path = next((place / name for name in (row.file, *row.other_names) if (place / name).exists()), None)
    if path is None:
        return None
    digest, (known, who) = file_hash(path), _known_hash(row, path)
    if known not in (None, digest):
        raise ValueError(f"{path} has sha256 {digest}, but {who} states {known}: the file is damaged or another one. "
                         f"Remove it and fetch {row.name!r} again")
    if not record_file(path).exists() and os.access(place, os.W_OK):
        _keep_record(row, path, digest, "a file put there by hand")
    return path


def _keep_record(row: Released, path: Path, digest: str, came_from: str) -> None:
    trust = "as the manifest states it" if row.sha256 else "trusted on first use: none is published"
    if row.copy:
        same = row.copy.sha256 == digest
        trust += f"; {'the same as' if same else 'NOT that of'} the copy at {row.copy.source}"
        if not same:
            warnings.warn(f"{path} has sha256 {digest}, the copy at {row.copy.source} has {row.copy.sha256}. Neither "
                          "is the authors' word; look into it before you trust a number", stacklevel=3)
    record = {"name": row.name, "sha256": digest, "size": path.stat().st_size, "trust": trust, "from": came_from,
              "license": row.license, "seen": datetime.now(UTC).isoformat(timespec="seconds")}
    atomic_write(record_file(path), json.dumps(record, indent=1).encode())


def _publish(row: Released, source: Path, path: Path) -> None:
    """Give the file its name, once its hash is known to be right; a zip is left as it is."""
    known, who = _known_hash(row, path)

    def check(part: Path) -> None:
        if known and (digest := file_hash(part)) != known:
            raise FetchError(f"{row.name}: what came has sha256 {digest}, but {who} states {known}; it was thrown "
                             f"away. Fetch it again; if that does not help, the file at {row.urls[0]} has changed")

    def move(part: Path) -> None:
        os.replace(source, part)
        check(part)

    if not row.member:
        atomic_write(path, move)
        return
    with _checkpoint_in(row, source) as (packed, size):
        need_room(path.parent, size)

        def unpack(part: Path) -> None:
            with open(part, "wb") as file:
                shutil.copyfileobj(packed, file, 1 << 20)
            check(part)

        atomic_write(path, unpack)


@contextmanager
def _checkpoint_in(row: Released, source: Path) -> Iterator[tuple[IO[bytes], int]]:
    """The one checkpoint of a zip and its size; names inside are compared, and never used as paths."""
    try:
        with ZipFile(source) as archive:
            files = {info: PurePosixPath(info.filename).name for info in archive.infolist() if not info.is_dir()}
            fitting = [info for info, file in files.items() if file == row.member]
            fitting = fitting or [i for i, file in files.items() if file.endswith(".ckpt") and not file.startswith(".")]
            if len(fitting) != 1:
                held = ", ".join(archive.namelist()[:9])
                raise FetchError(f"the zip of {row.name!r} should hold one {row.member}; it holds {held or 'nothing'}")
            with archive.open(fitting[0]) as packed:
                yield packed, fitting[0].file_size
    except (BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: encrypted, unknown method
        raise FetchError(f"what came for {row.name!r} is no whole zip ({error}); fetch it again") from error


# The download


def _download(row: Released, path: Path, show: Report) -> tuple[Path, str]:
    """The whole of what an address gives, in a file that no reader looks at, and the address."""
    problems = []
    for url in row.urls:
        part = path.with_name(f".{path.name}.{hashlib.sha256(url.encode()).hexdigest()[:8]}.download")
        for _ in range(_TRIES):
            had = length(part)
            try:
                transfer(url, part, None if row.member else row.size, show)
                return part, url
            except FetchError as error:
                problem = f"{error}; {mb(length(part))} are kept for the next try" if length(part) else str(error)
            if length(part) <= had:
                break
        problems.append(problem)
    target = path.with_suffix(".zip") if row.member else path
    raise FetchError(f"{row.name!r} could not be fetched: {'; '.join(problems)}. Try again later, or get "
                     f"{' or '.join(row.urls)} ({size_text(row)}) by other means and put it there as {target}")


@contextmanager
def _progress(label: str, report: Report | None) -> Iterator[Report]:
    if report is not None:
        yield report
        return
    with tqdm(desc=label, unit="B", unit_scale=True) as bar:

        def show(done: int, total: int) -> None:
            if bar.total is None:
                bar.initial, bar.n, bar.total = done, done, total or None  # what was there already took no time
            bar.update(done - bar.n)

        yield show


def size_text(row: Released) -> str:
    """The size of a released file in words: published, of a copy, or not known."""
    if row.size:
        return mb(row.size)
    if row.copy and row.copy.size:
        return f"about {mb(row.copy.size)}"
    return "size not published"
