"""Find and read the weights of a part in its folder: whole or in shards, safetensors or .bin, of any variant."""

import re
from pathlib import Path

from torch import Tensor

from ldmlab.checkpoints.opening import open_weights

# Endings of file names: "diffusion_pytorch_model" + ".fp16" + ".safetensors", and the index of shards of either.
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.(safetensors|bin)$")
_PRECISION = ("", "fp32", "bf16", "fp16")  # of several variants the first; then others by name, then those without EMA


def read_weights(folder: Path, of_transformers: bool) -> tuple[dict[str, Tensor], str, list[str]]:
    """Tensors by name, the file that they are of, and notes.

    safetensors come before the older .bin, whole files before shards, and a file without a variant in its name before
    fp32, bf16, fp16 and others. FileNotFoundError, with what the folder has, where there are no weights; ValueError as
    by `open_weights`.
    """
    stem, older = ("model", "pytorch_model") if of_transformers else ("diffusion_pytorch_model",) * 2
    found = [(_rank(path, variant), path, variant) for path in folder.iterdir()
             if (variant := _variant(path.name, stem, older)) is not None]
    if not found:
        there = sorted(path.name for path in folder.iterdir())
        why = "; the index of these shards is missing" if any(map(_SHARD.search, there)) else ""
        raise FileNotFoundError(f"{folder} has neither {stem}.safetensors nor {older}.bin, nor a variant such as "
                                f"{stem}.fp16.safetensors, nor an index of shards; it has: {', '.join(there)}{why}")
    _, path, variant = min(found)
    opened = open_weights(path)
    notes = [f"variant {variant} of the weights, the only one" if len(found) == 1 else
             f"variant {variant} of the weights, of {len(found)} files"] if variant else []
    return opened.tensors, str(path), [*notes, *opened.notes]


def _variant(name: str, stem: str, older: str) -> str | None:
    """The variant in the name of a file of weights or of an index, "" for none; None for other files."""
    for base, ending in ((stem, "safetensors"), (older, "bin")):
        if match := re.fullmatch(rf"{base}(?:\.([\w-]+))?\.{ending}(?:\.index(?:\.([\w-]+))?\.json)?", name):
            if _SHARD.search(name) is None:
                return match[1] or match[2] or ""
    return None


def _rank(path: Path, variant: str) -> tuple[int, bool, bool]:
    place = _PRECISION.index(variant) if variant in _PRECISION else len(_PRECISION) + (variant == "non_ema")
    return place, ".bin" in path.name, path.suffix == ".json"
