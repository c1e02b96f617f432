"""Our own checkpoint files: weights and everything needed to rebuild the model, in one safetensors file."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ldmlab.atomic import atomic_write

_KEY = "ldmlab"


def save_model(path: Path, tensors: dict[str, Tensor], meta: dict) -> None:
    """Write weights and `meta` (JSON) atomically: the file is there whole, or not at all."""
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    atomic_write(path, save(plain, metadata={_KEY: json.dumps(meta, sort_keys=True)}))


def load_model(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Weights and meta of a file written by `save_model`; ValueError if it is none, or is damaged."""
    try:
        with safe_open(str(path), framework="pt") as file:
            meta = (file.metadata() or {}).get(_KEY)
            tensors: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a safetensors file: {error}") from error
    if meta is None:
        raise ValueError(f"{path} holds weights but not ldmlab's description of the model; was it written elsewhere?")
    return tensors, json.loads(meta)
