"""One recorded case: constructor arguments, inputs, expected outputs, and the rule that regenerates its weights."""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def _make_weight(key: str, shape: list[int], kind: str) -> np.ndarray | None:
    """Seeded by the key's CRC, so that files hold no weights; None keeps what the constructor made."""
    normal = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(tuple(shape)).astype(np.float32)
    match kind:
        case "emb":
            return normal * np.float32(0.5)
        case "fan_in":
            return normal * np.float32(0.5 / np.sqrt(np.prod(shape[1:])))
        case "scale":
            return np.float32(1) + np.float32(0.1) * normal
        case "bias":
            return np.float32(0.1) * normal
    return None


@dataclass(frozen=True)
class Case:
    name: str
    config: dict[str, Any]
    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]
    tol: float

    @classmethod
    def load(cls, root: Path, name: str, entry: dict[str, Any]) -> "Case":
        meta = json.loads((root / entry["json"]).read_text())
        arrays = dict(np.load(root / entry["npz"])) if entry.get("npz") else {}
        tol = entry["tol"] if isinstance(entry["tol"], float) else 1e-4  # sampling loops state their bound in words
        return cls(name, meta.get("config", {}), meta, arrays, tol)

    def tensor(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key])

    def weights(self, part: str | None = None) -> dict[str, Tensor]:
        """The original's state dict under its own keys (of one sub-module, where a case has several)."""
        rows = self.meta["weights"] if part is None else self.meta["weights"][part]
        made = {key: _make_weight(key, shape, kind) for key, shape, kind in rows}
        return {key: torch.from_numpy(np.asarray(value)) for key, value in made.items() if value is not None}

    def load_into(self, module: nn.Module, rename, part: str | None = None) -> None:
        """Fill `module` through `rename` (CompVis keys -> ours); every key must fit, kept buffers apart."""
        missing, unexpected = module.load_state_dict(rename(self.weights(part)), strict=False)
        rows = self.meta["weights"] if part is None else self.meta["weights"][part]
        kept = set(rename({key: torch.empty(0) for key, _, kind in rows if kind == "keep"}))
        assert not unexpected and set(missing) <= kept, f"{self.name}: missing {missing}, unexpected {unexpected}"

    def compare(self, key: str, got: Tensor) -> None:
        """max|diff| <= tol * max|ref|."""
        want = self.tensor(key)
        assert got.shape == want.shape, f"{self.name} {key}: shape {tuple(got.shape)}, recorded {tuple(want.shape)}"
        diff, scale = (got.double() - want.double()).abs().max(), want.double().abs().max()
        assert diff <= self.tol * scale, f"{self.name} {key}: max|diff| {diff:.3e} > {self.tol} * {scale:.3e}"
