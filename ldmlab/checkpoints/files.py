"""ldmlab's own checkpoint files: weights and a JSON description of the model in one safetensors file."""

import json
from pathlib import Path

from torch import Tensor, nn

from ldmlab.damage import DamagedFile, reading
from ldmlab.first_stage.latents import weights_hash
from ldmlab.tensor_files import CHECKSUM, load_tensors, save_tensors

_KEY = "ldmlab"


def save_model(path: Path, tensors: dict[str, Tensor], meta: dict) -> None:
    """Write tensors and `meta` (JSON values) atomically; DiskFull where there is not enough space.

    ValueError, before anything is written, for values that are not finite.

    >>> import tempfile, torch
    >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> save_model(path, {"weight": torch.ones(2)}, {"kind": "example"})
    >>> load_model(path)
    ({'weight': tensor([1., 1.])}, {'kind': 'example'})
    """
    if bad := nonfinite(tensors):
        raise ValueError(f"{path} is not written: {bad} has values that are not finite")
    save_tensors(path, tensors, {_KEY: json.dumps(meta, sort_keys=True)})


def load_model(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Read the tensors and `meta` that `save_model` wrote.

    The meta of a file of an earlier version, which has no checksum, has {"unchecked": True}. FileNotFoundError for a
    missing file; DamagedFile, a ValueError, for a damaged one or one of another origin.

    >>> import tempfile, torch
    >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> save_model(path, {"weight": torch.zeros(1)}, {"f": 8})
    >>> tensors, meta = load_model(path)
    >>> meta["f"], tensors["weight"].shape
    (8, torch.Size([1]))
    """
    tensors, metadata = load_tensors(path, (_KEY,))
    with reading(path):
        meta = json.loads(metadata[_KEY])
        return tensors, meta if CHECKSUM in metadata else meta | {"unchecked": True}


def load_weights(path: Path, module: nn.Module, tensors: dict[str, Tensor], meta: dict) -> None:
    """Load the tensors that `load_model` read into a module on the CPU; DamagedFile where they do not fit it.

    Those of a file without a checksum must be finite and have the hash that `meta` states: also a DamagedFile.
    """
    with reading(path):
        module.load_state_dict(tensors)
        if "unchecked" not in meta:
            return
        if (digest := weights_hash(module)) != meta["hash"]:
            raise DamagedFile(path, f"its weights have the hash {digest[:12]}, and it states {meta['hash'][:12]}")
        if bad := nonfinite(tensors):
            raise DamagedFile(path, f"{bad} has values that are not finite")


def nonfinite(values: object, name: str = "") -> str:
    """The place of the first tensor in nested dicts and lists with a value that is not finite, as a.b.c; "" if none.

    >>> import torch
    >>> nonfinite({"net": {"weight": torch.ones(2), "bias": torch.tensor([0.0, float("nan")])}})
    'net.bias'
    """
    if isinstance(values, Tensor):
        # A sum is much faster than isfinite, and not finite if a value is not; that of finite values may overflow.
        finite = not values.is_floating_point() or values.sum().isfinite() or values.isfinite().all()
        return "" if finite else name
    if isinstance(values, list | tuple):
        values = dict(enumerate(values))
    items = values.items() if isinstance(values, dict) else ()
    places = (nonfinite(value, f"{name}.{key}" if name else str(key)) for key, value in items)
    return next(filter(None, places), "")
