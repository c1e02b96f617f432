"""Open weight files of any origin safely: only tensors and numbers are read, and no code in a file runs."""

import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ldmlab.perception import file_hash

# Training frameworks pickle objects beside the weights. Objects of these classes are replaced by empty ones and their
# state is dropped; a file with any other class or function that torch does not list as safe is refused.
FRAMEWORKS = (
    "pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.", "argparse.Namespace", "typing.Any",
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype", "pathlib.",
    "collections.defaultdict", "builtins.dict", "builtins.list", "builtins.int", "builtins.float",
    "__builtin__.dict", "__builtin__.list", "__builtin__.int", "__builtin__.float")


@dataclass(frozen=True)
class WeightsFile:
    """Contents of a weights file: tensors, the metadata of safetensors, and plain numbers beside the weights.

    `skipped_classes` are the classes whose objects were not read.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    numbers: dict[str, int | float]
    skipped_classes: tuple[str, ...] = ()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor."""
        return {key: tuple(value.shape) for key, value in self.tensors.items()}


def open_weights(path: Path | str, sha256: str | None = None) -> WeightsFile:
    """Open a .ckpt, .pt, .bin or .safetensors file without running code in it; tensors are memory-mapped.

    Raises ValueError, with the reason, for a file that is empty, truncated, of another format, refers to code, or has
    another hash than `sha256`; FileNotFoundError and IsADirectoryError where the path is not a file.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the file of weights in it{_weights_in(path)}")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty: copy or download it again")
    if sha256 is not None and (found := file_hash(path)) != sha256.lower():
        raise ValueError(f"{path} has sha256 {found}, expected {sha256.lower()}: it is damaged or another file")
    with open(path, "rb") as file:
        start = file.read(16)
    if start[:4] == b"PK\x03\x04":
        return _open_pickle(path, zipped=True)
    if start[8:9] == b"{":
        return _open_safetensors(path)
    if start[:1] == b"\x80":  # pickles of protocol 2 and later: what torch wrote before 1.6
        return _open_pickle(path, zipped=False)
    hint = ": it is a web page, perhaps since the address has changed" if b"<" in start.lstrip()[:1] else ""
    raise ValueError(f"{path} is neither written by torch.save nor safetensors (it begins with {start!r}){hint}")


def _weights_in(folder: Path) -> str:
    found = sorted(p.name for p in folder.iterdir() if p.suffix in (".ckpt", ".safetensors", ".bin", ".pt", ".pth"))
    return f": {', '.join(found[:5])}" if found else "; it has none"


def _open_safetensors(path: Path) -> WeightsFile:
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return WeightsFile(path, tensors, file.metadata() or {}, {})
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a safetensors file, it is truncated or damaged: {error}") from error


def _open_pickle(path: Path, zipped: bool) -> WeightsFile:
    skipped = _classes_to_skip(path) if zipped else ()
    stand_ins = torch.serialization.safe_globals([_stand_in(name) for name in skipped]) if skipped else nullcontext()
    try:
        with stand_ins, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other protocols: what torch cannot read, it refuses
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds more than weights and was not read: {_first_sentence(error)}") from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, OSError) as error:
        raise ValueError(f"{path} cannot be read, it is truncated or damaged: {_first_sentence(error)}") from error
    return _opened(path, content, skipped)


def _classes_to_skip(path: Path) -> tuple[str, ...]:
    """Names of the FRAMEWORKS classes in a file; ValueError for others, and for a zip not written by torch."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is truncated or damaged ({error}): copy or download it again") from error
    if not any(name.endswith("data.pkl") for name in names):
        held = ", ".join(names[:3]) or "nothing"
        raise ValueError(f"{path} is an archive of {held}; unpack it and open the file in it")
    # From torch 2.6 on.
    find = getattr(torch.serialization, "get_unsafe_globals_in_checkpoint", None)
    try:
        found: set[str] = set(find(path)) if find else set()
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(f"{path} was not written by torch.save, or is damaged: {_first_sentence(error)}") from error
    if refused := sorted(name for name in found if not name.startswith(FRAMEWORKS)):
        raise ValueError(f"{path} refers to code, which weights do not need, and was not read: {', '.join(refused)}")
    return tuple(sorted(found))


def _stand_in(name: str) -> Callable:
    """An empty class under the name of another, so that unpickling imports and keeps nothing of it."""
    module, _, qualname = name.rpartition(".")
    if qualname == "defaultdict":  # torch fills plain dictionaries only
        def plain(*args: object) -> dict:
            return {}

        plain.__module__, plain.__qualname__ = module, qualname
        return plain

    def new(cls: type, *args: object, **keywords: object) -> object:
        return object.__new__(cls)

    def ignore(self: object, *args: object, **keywords: object) -> None:
        pass

    methods: dict[str, Callable] = {"__new__": new, "__init__": ignore, "__setstate__": ignore}
    return type(qualname, (), {**methods, "__module__": module, "__qualname__": qualname})


def _opened(path: Path, content: object, skipped: tuple[str, ...]) -> WeightsFile:
    """The contents of a checkpoint (weights under "state_dict") or of a plain state dict."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict")
    state = content.get("state_dict", content)
    entries = state.items() if isinstance(state, Mapping) else ()
    tensors = {key: value for key, value in entries if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path} has no weights at the top level or under 'state_dict'; it has the entries "
                         f"{', '.join(map(repr, list(content)[:8]))}")
    numbers = {key: value for key, value in content.items() if type(value) in (int, float) and isinstance(key, str)}
    return WeightsFile(path, tensors, {}, numbers, skipped)


def _first_sentence(error: Exception) -> str:
    """First sentence of torch's error; the rest advises to switch off the safety check."""
    message = str(error).partition("WeightsUnpickler error:")[2] or str(error)
    lines = [line.strip() for line in message.splitlines() if line and not line.startswith("Weights only load failed")]
    return next(filter(None, lines), type(error).__name__).split(". ")[0]
