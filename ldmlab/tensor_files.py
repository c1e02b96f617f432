"""safetensors files with a checksum of all that they hold."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ldmlab.atomic import atomic_write
from ldmlab.damage import DamagedFile, reading

CHECKSUM = "crc32"


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Write tensors and metadata atomically, with their checksum; DiskFull where there is not enough space."""
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = dict(metadata)
    return atomic_write(path, save(plain, metadata | {CHECKSUM: checksum(plain, metadata)}))


def load_tensors(
    path: Path, keys: tuple[str, ...] = (), optional: tuple[str, ...] = ()
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what `save_tensors` wrote: tensors, and metadata, which must have these `keys`, and may have the `optional`.

    The checksum is among the metadata, under CHECKSUM; a file without one, of an earlier version, is read unchecked.
    FileNotFoundError for a missing file, DamagedFile for one that is no safetensors file, has other metadata or another
    checksum.
    """
    with reading(path):
        with safe_open(str(path), framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        stated = metadata.pop(CHECKSUM, None)
        if not set(keys) <= set(metadata) <= {*keys, *optional}:
            found = ", ".join(sorted(metadata)) or "none"
            raise DamagedFile(path, f"its metadata should be {', '.join(keys) or 'none'}, and is {found[:200]}")
        if stated not in (None, checksum(tensors, metadata)):
            raise DamagedFile(path, "its content does not have the checksum that it states")
    return tensors, metadata | ({CHECKSUM: stated} if stated else {})


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """CRC-32 of names, types, shapes and bytes of contiguous tensors on the CPU, and of the metadata; hexadecimal."""
    crc = zlib.crc32(json.dumps(dict(metadata), sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {value.dtype} {tuple(value.shape)} ".encode(), crc)
        crc = zlib.crc32(value.reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"
