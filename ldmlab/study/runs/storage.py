"""What lies under results/runs, which of it nothing refers to, and its removal; torch is not needed for it.

Models name their first stage and data by content hashes, and so do caches: a cache is unused where the model or network
that it was computed with is gone. What cannot be decided from the files themselves counts as used.
"""

import hashlib
import json
import re
import shutil
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ldmlab.atomic import is_abandoned
from ldmlab.damage import read_json
from ldmlab.study.config.paths import PACKAGE, results_dir, runs_dir

_DAMAGED = re.compile(r"\.damaged-\d+$")
MODELS = ("first_stage", "diffusion", "classifier", "regression")


@dataclass(frozen=True)
class Entry:
    """A file or folder under results/runs. `lock` is the file that a process holds while it writes there."""

    name: str  # relative to results/runs
    family: str
    paths: tuple[Path, ...]
    about: str = ""
    unused: str = ""  # why nothing refers to it; "" where something does, or where that cannot be decided
    lock: Path | None = None

    @property
    def num_bytes(self) -> int:
        """The size of all its files."""
        return sum(file.stat().st_size for file in self._files())

    @property
    def last_used(self) -> float:
        """When a file of it was last read or written, in seconds since 1970."""
        return max((max(stat.st_atime, stat.st_mtime) for stat in (f.stat() for f in self._files())), default=0.0)

    def _files(self) -> Iterator[Path]:
        for path in self.paths:
            yield from (p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]

    @property
    def in_use(self) -> bool:
        """Whether a running process holds its lock."""
        try:
            with _held(self.lock):
                return False
        except Timeout:
            return True


def stored_entries() -> list[Entry]:
    """Everything under results/runs, by family and name."""
    root = runs_dir()
    if not root.is_dir():
        return []
    found, metas = _leftover_parts(root), _model_metas(root)
    for path in sorted(root.iterdir()):
        family = path.name.split("-")[0]
        if path.name.startswith("latents-lock-"):
            found += _leftover_lock(path)
        elif path.suffix != ".part" and not _DAMAGED.search(path.name):
            found += (_FAMILIES.get(family, _other) if path.is_dir() else _other)(path, metas)
    return sorted(found, key=lambda entry: (ORDER.index(entry.family), entry.name))


def named_entries(names: Sequence[str]) -> list[Entry]:
    """The entries with these names; ValueError for names that `stored_entries` does not list."""
    known = {entry.name: entry for entry in stored_entries()}
    if missing := [name for name in names if name.rstrip("/") not in known]:
        raise ValueError(f"nothing under {runs_dir()} is called {', '.join(missing)}; `cache list` shows the names")
    return [known[name.rstrip("/")] for name in names]


def remove_entry(entry: Entry) -> bool:
    """Remove an entry unless a running process holds its lock; whether it was removed."""
    try:
        with _held(entry.lock):
            for path in entry.paths:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    except Timeout:
        return False
    return True


@contextmanager
def _held(lock: Path | None) -> Iterator[None]:
    """Hold a lock that exists; Timeout where another process does."""
    if lock is None or not lock.exists():
        yield
        return
    with FileLock(lock, timeout=0):
        yield


# What files say of themselves


def read_meta(path: Path) -> dict[str, Any]:
    """The metadata of a safetensors file, ours decoded, without its weights; {} where it cannot be read."""
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            meta = json.loads(file.read(min(length, 1 << 26))).get("__metadata__", {})
        return json.loads(meta["ldmlab"]) if "ldmlab" in meta else meta
    except (OSError, ValueError, struct.error, RecursionError, AttributeError):
        return {}


def _model_metas(root: Path) -> dict[str, dict[str, Any]]:
    """The metadata of all trained models, by the name of their folder."""
    files = (file for kind in MODELS for file in root.glob(f"{kind}-*/{kind}.safetensors"))
    return {file.parent.name: read_meta(file) for file in files}


def _notebooks_with(digest: str) -> list[str]:
    """The notebooks whose records name a hash among their inputs."""
    found = set()
    for file in results_dir().glob("[0-9]*/*.json"):
        inputs = _json(file).get("inputs")
        if isinstance(inputs, dict) and digest in inputs.values():
            found.add(file.parent.name)
    return sorted(found)


# One function a family: a path -> its entries

Metas = dict[str, dict[str, Any]]


def _model(path: Path, metas: Metas) -> list[Entry]:
    """A trained model, and beside it what its training has left."""
    kind, lock = path.name.split("-")[0], path / ".lock"
    if path.name not in metas:
        if [*path.iterdir()] == [lock]:
            return _leftover_lock(path)
        stopped = "training not finished; the same run continues it" if [*path.glob("state*.pt")] else "no model yet"
        return [Entry(path.name, kind, (path,), stopped, lock=lock), *_leftover_parts(path)]
    meta = metas[path.name]
    seed = f"seed {meta['seed']}" if "seed" in meta else ""
    parts = [meta.get("name", ""), seed, meta.get("data", {}).get("name", "")]
    on = [name for name, other in metas.items() if other.get("kind") == "first_stage"
          and kind != "first_stage" and other.get("hash") == meta.get("first_stage")]
    parts += [f"on {name}" for name in on[:1]]
    if notebooks := _notebooks_with(meta.get("hash", "")):
        parts.append(f"in records of {', '.join(notebooks)}")
    about = ", ".join(part for part in parts if part) or "its metadata cannot be read"
    found = [Entry(path.name, kind, (path,), about, lock=lock)]
    found += [Entry(f"{path.name}/{file.name}", "leftover", (file,), "state of a training", "the training is finished",
                    lock) for file in sorted(path.glob("*.pt"))]
    return found + _leftover_parts(path)


def _latents(path: Path, metas: Metas) -> list[Entry]:
    """The encoded pictures of one first stage and data set."""
    trained = {name: meta for name, meta in metas.items() if meta.get("kind") == "first_stage"}
    stages = {meta["hash"]: name for name, meta in trained.items() if "hash" in meta}
    shipped = read_meta(PACKAGE / "weights" / "tour-first-stage.safetensors")
    stages |= {shipped["hash"]: "the shipped first stage"} if "hash" in shipped else {}
    identity = _json(path / "done.json").get("first_stage") or _first_stage_of(path, stages, metas)
    if identity is None:
        return [Entry(path.name, "latents", (path,), "first stage unknown")]
    lock = path.with_name(f"latents-lock-{identity[:12]}") / ".lock"
    if identity in stages:
        return [Entry(path.name, "latents", (path,), f"of {stages[identity]}", lock=lock), *_leftover_parts(path)]
    gone = f"of first stage {identity[:12]}, which is gone"
    return [Entry(path.name, "latents", (path,), gone, "its first stage is gone", lock)]


def _first_stage_of(path: Path, stages: dict[str, str], metas: Metas) -> str | None:
    """The first stage whose hash, with that of a data set under results/runs, gives the folder's name."""
    data = {meta["data"]["fingerprint"] for meta in metas.values() if "fingerprint" in meta.get("data", {})}
    data |= {str(_json(file).get("fingerprint")) for file in (runs_dir() / "data").glob("*.json")}
    for identity in stages:
        keys = (hashlib.sha256(f"{identity} {fingerprint}".encode()).hexdigest()[:16] for fingerprint in data)
        if path.name in (f"latents-{key}" for key in keys):
            return identity
    return None


def _moments(path: Path, metas: Metas) -> list[Entry]:
    """Features of reference pictures by one network each."""
    found, networks = [], {}
    for card in (PACKAGE / "weights").glob("*.json"):
        if "sha256" in (content := _json(card)):
            networks[card.stem] = content["sha256"]
    for file in sorted(path.glob("*.safetensors")):
        meta = read_meta(file)
        name, digest = meta.get("extractor", ""), meta.get("weights_hash")
        gone = "its network has other weights now" if name in networks and networks[name] != digest else ""
        about = f"{meta['n']} pictures by {name}" if "n" in meta else "its metadata cannot be read"
        found.append(Entry(f"{path.name}/{file.name}", "moments", (file,), about, gone))
    return found + _leftover_parts(path)


def _data(path: Path, metas: Metas) -> list[Entry]:
    """Decoded pictures, label maps and annotations: an array with its .json, or a .json alone."""
    found = []
    for file in sorted([*path.glob("*.npy"), *path.glob("*-annotations.json")]):
        stem, annotations = file.with_suffix(""), file.suffix == ".json"
        lock = Path(f"{file}.lock") if annotations else Path(f"{stem}.lock")
        card = file if annotations else Path(f"{stem}.json")
        kind = "annotations" if annotations else "label maps" if stem.name.endswith("-maps") else "decoded pictures"
        unused = "" if card.exists() else "half of a cache: what describes it is missing"
        paths = tuple(p for p in dict.fromkeys((file, card, lock)) if p.exists())
        found.append(Entry(f"{path.name}/{stem.name}", "data", paths, kind, unused, lock))
    found += [Entry(f"{path.name}/{file.name}", "data", (file,), "hashes of the files of a data set")
              for file in sorted(path.glob("contents-*.bin"))]
    taken = {p for entry in found for p in entry.paths}
    alone = [file for file in sorted(path.glob("*.lock")) if file not in taken]
    return found + _leftover_parts(path) + [entry for file in alone for entry in _leftover_lock(file)]


def _released(path: Path, metas: Metas) -> list[Entry]:
    """Samples of released models, and scaled-down models with random weights."""
    found = []
    for p in sorted(path.iterdir()):
        sampled = "samples of a released model" if p.name.startswith("samples-") else "an exported model"
        found.append(Entry(f"{path.name}/{p.name}", "released", (p,),
                           sampled if p.is_dir() else "a scaled-down model with random weights"))
    return found


def _vocabulary(path: Path, metas: Metas) -> list[Entry]:
    return [Entry(path.name, "vocabulary", (path,), "learned from captions")]


def _user_study(path: Path, metas: Metas) -> list[Entry]:
    return [Entry(path.name, "user-study", (path,), "pictures that answers were given on")]


def _other(path: Path, metas: Metas) -> list[Entry]:
    return [Entry(path.name, "other", (path,), "not known to this version")]


def _leftover_parts(folder: Path) -> list[Entry]:
    """Halves of files that killed processes have left, see `atomic_write`, and files set aside as damaged."""
    old = [part for part in sorted(folder.glob(".*.part")) if is_abandoned(part, time.time())]
    damaged = [path for path in sorted(folder.iterdir()) if _DAMAGED.search(path.name)]
    return [Entry(str(path.relative_to(runs_dir())), "leftover", (path,), about, unused)
            for paths, about, unused in ((old, "half of a file", "its writer is gone"),
                                         (damaged, "set aside as damaged", "it was made anew")) for path in paths]


def _leftover_lock(path: Path) -> list[Entry]:
    """A lock file, or a folder with nothing but one; a later run makes it again."""
    lock = path / ".lock" if path.is_dir() else path
    return [Entry(str(path.relative_to(runs_dir())), "leftover", (path,), "lock", "no process holds it", lock)]


def _json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


_FAMILIES: dict[str, Callable[[Path, Metas], list[Entry]]] = {
    **{kind: _model for kind in MODELS}, "latents": _latents, "moments": _moments, "data": _data,
    "vocabulary": _vocabulary, "user": _user_study, "released": _released,
}
ORDER = (*MODELS, "latents", "moments", "data", "vocabulary", "user-study", "released", "other", "leftover")
