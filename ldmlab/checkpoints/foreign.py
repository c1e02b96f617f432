"""What other people's files have beside or around their weights: classes in pickles, prefixes of names, odd JSON."""

import io
import json
import pickletools
import re
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

# What torch itself reads; other names of torch are for torch to judge.
_PLAIN = re.compile(r"torch\..*|builtins\.(set|complex|bytearray)|_codecs\.encode"
                    r"|collections\.(OrderedDict|Counter)")
# Training frameworks pickle settings and results beside the weights, some by calling a class or function of theirs.
# Empty classes stand in for all of these, and their contents are dropped.
_CALLED = re.compile(
    r"(pytorch_lightning|lightning|lightning_fabric|lightning_utilities|omegaconf|torchmetrics|pandas|hydra|pathlib)\..*"
    r"|numpy\.\w+|numpy\._?(core|ma|random|dtypes)\..*|argparse\.Namespace|typing\.Any|copyreg\._reconstructor"
    r"|collections\.(defaultdict|deque)|types\.SimpleNamespace|datetime\.\w+|decimal\.Decimal|fractions\.Fraction"
    r"|uuid\.UUID|functools\.partial|builtins\.(object|dict|list|tuple|int|float|str|bool|slice|range|type)")
# Parts of names that wrappers of modules insert: DataParallel, torch.compile, FSDP, checkpointing of activations.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_AVERAGED = ("ema", "model_ema", "ema_model", "module_ema")
_MOST_GROUPS = 12
_MAX_GLOBALS = 10_000


def globals_of(stream: io.BufferedReader) -> set[str]:
    """Names of the classes and functions in the pickles of a checkpoint, without those that torch reads.

    Older files consist of several pickles. Nothing is unpickled. ValueError for what is no pickle.
    """
    found: set[str] = set()
    num_read = 0
    while num_read < 5 and stream.peek(1):  # magic number, version, system, the content, keys of storages
        for opcode, value, _ in pickletools.genops(stream):
            if opcode.name in ("GLOBAL", "INST"):
                found.add(_python_3(*str(value).split(" ", 1)))
                if len(found) > _MAX_GLOBALS:
                    raise ValueError(f"it refers to more than {_MAX_GLOBALS} classes")
        num_read += 1
    return {name for name in found if not _PLAIN.fullmatch(name)}


def _python_3(module: str, name: str) -> str:
    """A name as Python 3 has it: pickles of protocol 2 have those of Python 2, and unpickling maps them."""
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"


def callable_by_pickles(name: str) -> bool:
    """Whether a pickle may call what stands in for this name; of other names it may have objects."""
    return _CALLED.fullmatch(name) is not None


def refused(name: str) -> bool:
    """Whether a name, of Python's own library, has no business in a checkpoint; nothing of any name is ever run."""
    return name.partition(".")[0] in sys.stdlib_module_names and not callable_by_pickles(name)


def unwrapped(tensors: Mapping[str, T]) -> tuple[dict[str, T], tuple[str, ...]]:
    """Entries without the parts that wrappers insert into their names, and a note of what was taken out.

    Names that would become equal stay as they are.
    """
    names = {key: ".".join(part for part in key.split(".") if part not in _WRAPPERS) for key in tensors}
    taken = Counter(part for key in tensors for part in set(key.split(".")) & set(_WRAPPERS))
    if not taken or len(set(names.values())) < len(names) or not all(names.values()):
        return dict(tensors), ()
    said = ", ".join(f"{part!r} was taken out of {count}" for part, count in taken.items())
    return {names[key]: value for key, value in tensors.items()}, (f"of {len(tensors)} names {said}",)


def peeled(entries: Mapping[str, T]) -> Iterator[tuple[str, dict[str, T]]]:
    """("", all entries), then those under a leading part of their names, without it, as ("model.", ...).

    Where all of those again begin alike, that is taken off as well. Averaged weights come before others.
    """
    yield "", dict(entries)
    counts = Counter(key.partition(".")[0] for key in entries if "." in key)
    if len(counts) > _MOST_GROUPS:
        return
    for part in sorted(counts, key=lambda part: (part not in _AVERAGED, -counts[part])):
        prefix, leading = "", {part}
        while len(leading) == 1:
            prefix += f"{leading.pop()}."
            inside = {key.removeprefix(prefix): value for key, value in entries.items() if key.startswith(prefix)}
            yield prefix, inside
            if all("." in key for key in inside):
                leading = {key.partition(".")[0] for key in inside}


def peeling_note(prefix: str, num: int, of: int) -> str:
    """What was done to names that began with a prefix."""
    return f"{prefix!r} was taken off {num} names" + (f"; {of - num} others were left out" if num < of else "")


def check_values(source: str, entries: Mapping[str, Tensor]) -> None:
    """ValueError, naming the entry, where weights are NaN or infinite."""
    bad = [key for key, value in entries.items() if not _finite(value)]
    if bad:
        more = f", the first of {len(bad)} of {len(entries)} entries" if len(bad) > 1 else ""
        raise ValueError(f"{source}: {bad[0]} has NaN or infinite values{more}; the file is damaged, or its training "
                         "diverged: copy it again, or take an earlier checkpoint")


def _finite(value: Tensor) -> bool:
    if not (value.is_floating_point() or value.is_complex()):
        return True
    return bool(torch.isfinite(value if value.element_size() > 1 else value.float()).all())


def check_kinds(source: str, entries: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> None:
    """ValueError, naming the entry, where one holds integers, as quantized weights do, and the model has numbers."""
    bad = [key for key, value in entries.items()
           if key in like and like[key].is_floating_point() and not value.is_floating_point()]
    if bad:
        raise ValueError(f"{source}: {bad[0]} is of type {str(entries[bad[0]].dtype).removeprefix('torch.')}, as "
                         f"{len(bad)} of {len(entries)} entries: quantized weights are not read; take the file in 16 "
                         "or 32 bits")


def read_json(path: Path) -> dict[str, Any]:
    """An object of JSON, with or without a byte-order mark; ValueError, naming the file, for anything else."""
    try:
        values = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise ValueError(f"{path} is not JSON: {why}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__} where a configuration is expected")
    return values


def class_in(values: Mapping[str, Any]) -> str | None:
    """The class that a configuration of diffusers, or of transformers, is of."""
    architectures = values.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else None
    name = values.get("_class_name") or first
    return name if isinstance(name, str) else None
