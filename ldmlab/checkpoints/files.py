"""ldmlab's own checkpoint files: weights and a JSON description of the model in one safetensors file."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ldmlab.atomic import atomic_write

_KEY = "ldmlab"


def save_model(path: Path, tensors: dict[str, Tensor], meta: dict) -> None:
    """Write tensors and `meta` (JSON values) atomically; DiskFull where there is not enough space.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> save_model(path, {"weight": torch.ones(2)}, {"kind": "example"})
    >>> load_model(path)
    ({'weight': tensor([1., 1.])}, {'kind': 'example'})
    """
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    atomic_write(path, save(plain, metadata={_KEY: json.dumps(meta, sort_keys=True)}))


def load_model(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Read the tensors and `meta` that `save_model` wrote; ValueError for a damaged file or one of another origin.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> save_model(path, {"weight": torch.zeros(1)}, {"f": 8})
    >>> tensors, meta = load_model(path)
    >>> meta["f"], tensors["weight"].shape
    (8, torch.Size([1]))
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            meta = (file.metadata() or {}).get(_KEY)
            tensors: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a safetensors file: {error}") from error
    if meta is None:
        raise ValueError(f"{path} holds weights but not ldmlab's description of the model; was it written elsewhere?")
    return tensors, json.loads(meta)
