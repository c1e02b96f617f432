"""Shipped weights: their folder, their hashes, and networks that are not trained further."""

import hashlib
from pathlib import Path
from typing import TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)

WEIGHTS = Path(__file__).parents[1] / "weights"


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def freeze(module: Module) -> Module:
    """Put a module into evaluation mode, without gradients for its parameters; returns the module."""
    return module.eval().requires_grad_(False)
