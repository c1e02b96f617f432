"""Open weight files of any origin safely: only tensors and numbers are read, and no code in a file runs."""

import io
import os
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ldmlab.checkpoints.foreign import callable_by_pickles, globals_of, read_json, refused, unwrapped
from ldmlab.perception.files import file_hash

_POINTER = b"version https://git-lfs"  # first bytes of what git leaves in place of a large file
_CONTAINERS = ("state_dict", "model_state_dict", "params_ema", "ema", "model", "module", "params", "net", "weights")


@dataclass(frozen=True)
class WeightsFile:
    """Contents of a weights file: tensors, the metadata of safetensors, and plain numbers beside the weights.

    `skipped_classes` are the classes whose objects were not read; `notes` say what else was left out or renamed.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    numbers: dict[str, int | float]
    skipped_classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor."""
        return {key: tuple(value.shape) for key, value in self.tensors.items()}


def open_weights(path: Path | str, sha256: str | None = None) -> WeightsFile:
    """Open a .ckpt, .pt, .bin or .safetensors file without running code in it; tensors are memory-mapped.

    An index of shards, *.safetensors.index.json or *.bin.index.json, is read with the shards beside it. The file is
    judged by its content and not by its name. Parts of names that training wrappers insert, as `module.`, are taken
    out; see `notes`. Raises ValueError, with the reason, for a file that is empty, truncated, of another format, refers
    to code, or has another hash than `sha256`; FileNotFoundError and IsADirectoryError where the path is not a file.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the file of weights in it{_weights_in(path)}")
    if not path.is_file():
        if path.is_symlink():
            raise FileNotFoundError(f"{path} is a link to {os.readlink(path)}, which does not exist: download it again")
        raise FileNotFoundError(f"{path} does not exist" if not path.exists() else f"{path} is not a regular file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty: copy or download it again")
    if sha256 is not None and (found := file_hash(path)) != sha256.lower():
        raise ValueError(f"{path} has sha256 {found}, expected {sha256.lower()}: it is damaged or another file")
    opened = _open(path)
    tensors, notes = unwrapped(opened.tensors)
    return WeightsFile(path, tensors, opened.metadata, opened.numbers, opened.skipped_classes, opened.notes + notes)


def _open(path: Path) -> WeightsFile:
    with open(path, "rb") as file:
        start = file.read(64)
    if start[:4] == b"PK\x03\x04":
        return _open_pickle(path, zipped=True)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return _open_safetensors(path)
    if start[:1] == b"\x80":  # pickles of protocol 2 and later: what torch wrote before 1.6
        return _open_pickle(path, zipped=False)
    if start.startswith(_POINTER):
        size = re.search(r"^size (\d+)$", path.read_text("ascii", "replace")[:1000], re.MULTILINE)
        of = f" of {int(size[1]):,} bytes" if size else ""
        raise ValueError(f"{path} is a pointer of git-lfs to a file{of}, and not that file: run `git lfs pull` in its "
                         "folder, or download the file itself")
    if start.lstrip(b"\xef\xbb\xbf \r\n\t")[:1] == b"{":
        return _open_shards(path)
    if start[8:9] == b"{":
        raise ValueError(f"{path} cannot be read as a safetensors file, it is truncated or damaged: its header is "
                         "longer than the file")
    hint = ": it is a web page, perhaps since the address has changed" if b"<" in start.lstrip()[:1] else ""
    raise ValueError(f"{path} is neither written by torch.save nor safetensors (it begins with {start[:16]!r}){hint}")


def _weights_in(folder: Path) -> str:
    found = sorted(p.name for p in folder.iterdir() if p.suffix in (".ckpt", ".safetensors", ".bin", ".pt", ".pth"))
    return f": {', '.join(found[:5])}" if found else "; it has none"


def _open_safetensors(path: Path) -> WeightsFile:
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except Exception as error:  # of several kinds, by what is damaged
        raise ValueError(f"{path} cannot be read as a safetensors file, it is truncated or damaged: {error}") from error
    if not tensors:
        raise ValueError(f"{path} has no weights in it")
    return WeightsFile(path, tensors, metadata, {})


def _open_shards(index: Path) -> WeightsFile:
    """The tensors that an index of shards lists, from the files beside it; ValueError for an incomplete set."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{index} is JSON, but no index of shards: it has no 'weight_map' of names and files")
    if outside := sorted({name for name in names.values() if Path(name).name != name}):
        raise ValueError(f"{index} lists files of other folders, which are not read: {', '.join(outside[:3])}")
    files = sorted(set(names.values()))
    if missing := [name for name in files if not (index.parent / name).exists()]:
        raise ValueError(f"{index}: {len(missing)} of {len(files)} shards are missing: {', '.join(missing[:3])}")
    shards = {name: _open(index.parent / name) for name in files}
    if absent := [key for key, name in names.items() if key not in shards[name].tensors]:
        raise ValueError(f"{index}: {len(absent)} of {len(names)} entries are not in their shards, such as {absent[0]} "
                         f"of {names[absent[0]]}")
    skipped = sorted({name for shard in shards.values() for name in shard.skipped_classes})
    return WeightsFile(index, {key: shards[name].tensors[key] for key, name in names.items()}, {}, {}, tuple(skipped))


def _open_pickle(path: Path, zipped: bool) -> WeightsFile:
    skipped = _classes_to_skip(path, zipped)
    stand_ins = torch.serialization.safe_globals([_stand_in(name) for name in skipped]) if skipped else nullcontext()
    try:
        with stand_ins, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other protocols: what torch cannot read, it refuses
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds more than weights and was not read: {_first_sentence(error)}") from error
    except Exception as error:  # of many kinds, by what is damaged
        raise ValueError(f"{path} cannot be read, it is truncated or damaged: {_first_sentence(error)}") from error
    return _opened(path, content, skipped)


def _classes_to_skip(path: Path, zipped: bool) -> tuple[str, ...]:
    """Names in a pickle whose objects are left out; ValueError for code, and for a zip not written by torch."""
    try:
        if zipped:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                pickled = next((name for name in names if name.endswith("data.pkl")), None)
                if pickled is None:
                    held = ", ".join(names[:3]) or "nothing"
                    raise ValueError(f"{path} is an archive of {held}; unpack it and open the file in it")
                with archive.open(pickled) as stream:
                    found = globals_of(io.BufferedReader(stream))  # type: ignore[arg-type]
        else:
            with open(path, "rb") as file:
                found = globals_of(file)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is truncated or damaged ({error}): copy or download it again") from error
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path} was not written by torch.save, or is damaged: {error}") from error
    except (EOFError, RuntimeError, ArithmeticError, LookupError, OSError, struct.error, zlib.error) as error:
        raise ValueError(f"{path} was not written by torch.save, or is damaged: {error}") from error
    if code := sorted(filter(refused, found)):
        raise ValueError(f"{path} refers to code, which weights do not need, and was not read: {', '.join(code)}")
    return tuple(sorted(found))


class _NotCalled(type):
    """Objects of the class may be made, as pickles make those of a class, but not by calling it as a function."""

    def __call__(cls, *args: object, **keywords: object) -> object:
        raise pickle.UnpicklingError(f"it calls {cls.__module__}.{cls.__qualname__}, which weights do not need")


def _stand_in(name: str) -> Callable:
    """An empty class under the name of another, so that unpickling imports and keeps nothing of it."""
    module, _, qualname = name.rpartition(".")
    names = {"__module__": module, "__qualname__": qualname}
    if re.search("dict$|CfgNode|Munch|Box|^deque$", qualname, re.IGNORECASE):  # torch fills plain containers only
        empty = list if qualname == "deque" else OrderedDict
        return type(qualname, (), {"__new__": lambda cls, *args: empty(), **names})

    def new(cls: type, *args: object, **keywords: object) -> object:
        return object.__new__(cls)

    def ignore(self: object, *args: object, **keywords: object) -> None:
        pass

    methods: dict[str, Callable] = {"__new__": new, "__init__": ignore, "__setstate__": ignore}
    kind = type if callable_by_pickles(name) else _NotCalled
    return kind(qualname, (), {**methods, **names})


def _opened(path: Path, content: object, skipped: tuple[str, ...]) -> WeightsFile:
    """The contents of a checkpoint (weights under "state_dict", or a name like it) or of a plain state dict."""
    if not isinstance(content, Mapping):
        whole = type(content).__module__ + "." + type(content).__qualname__
        if whole in skipped:
            raise ValueError(f"{path} holds a pickled {whole} and not its weights: where its code is, load it and save "
                             "its state_dict()")
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict")
    nested = [name for name in _CONTAINERS if _tensors(content.get(name))]
    if not nested and not _tensors(content):
        raise ValueError(f"{path} has no weights at the top level or under 'state_dict'; it has the entries "
                         f"{', '.join(map(repr, list(content)[:8]))}")
    state = content[nested[0]] if nested and ("state_dict" in nested or not _tensors(content)) else content
    tensors = _tensors(state)
    notes = [] if state is content or nested[0] == "state_dict" else [f"weights are those under {nested[0]!r}"]
    other = [f"{key} ({type(value).__name__})" for key, value in state.items() if key not in tensors]
    if other and state is not content:
        notes.append(f"{len(other)} entries that are no tensors were left out: {', '.join(other[:3])}")
    numbers = {key: value for key, value in content.items() if type(value) in (int, float) and isinstance(key, str)}
    return WeightsFile(path, tensors, {}, numbers, skipped, tuple(notes))


def _tensors(state: object) -> dict[str, Tensor]:
    entries = state.items() if isinstance(state, Mapping) else ()
    return {key: value for key, value in entries if isinstance(key, str) and isinstance(value, Tensor)}


def _first_sentence(error: Exception) -> str:
    """First sentence of torch's error; the rest advises to switch off the safety check."""
    message = str(error).partition("WeightsUnpickler error:")[2] or str(error)
    lines = [line.strip() for line in message.splitlines() if line and not line.startswith("Weights only load failed")]
    return next(filter(None, lines), type(error).__name__).split(". ")[0]
