"""One recorded case: constructor arguments, inputs, expected outputs, and the rule that regenerates its weights."""

import json
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

StateDict = dict[str, Tensor]


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
        case "keep":
            return None
    raise ValueError(f"unknown kind of weight {kind!r} at {key}")


def _tolerance(stated: float | str) -> float:
    """Sampling loops and blocks state theirs in words: 'max|diff| <= 1e-4 * max|ref| (...)'."""
    if isinstance(stated, str):
        stated = re.search(r"<=\s*([\d.e-]+)\s*\*", stated)[1]
    return float(stated)


@dataclass(frozen=True)
class Case:
    name: str
    config: dict[str, Any]
    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]
    tol: float
    checked: set[str] = field(default_factory=set)  # recorded arrays that were compared
    left_out: dict[str, str] = field(default_factory=dict)  # recorded arrays that ours has no counterpart of: why

    @classmethod
    def load(cls, root: Path, name: str, entry: dict[str, Any]) -> "Case":
        meta = json.loads((root / entry["json"]).read_text())
        arrays = dict(np.load(root / entry["npz"])) if entry.get("npz") else {}
        return cls(name, meta.get("config", {}), meta, arrays, _tolerance(entry["tol"]))

    def tensor(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key])

    def recorded(self, prefix: str) -> list[str]:
        """The names of the arrays that begin with `prefix`."""
        return [key for key in self.arrays if key.startswith(prefix)]

    def _rows(self, part: str | None) -> list[tuple[str, list[int], str]]:
        return self.meta["weights"] if part is None else self.meta["weights"][part]

    def weights(self, part: str | None = None) -> StateDict:
        """The original's state dict under its own keys (of one sub-module, where a case has several)."""
        made = {key: _make_weight(key, shape, kind) for key, shape, kind in self._rows(part)}
        return {key: torch.from_numpy(np.asarray(value)) for key, value in made.items() if value is not None}

    def load_into(self, module: nn.Module, rename: Callable[[StateDict], StateDict], part: str | None = None) -> None:
        """Fill `module` through `rename` (CompVis keys -> ours); every key must fit and be filled, kept ones apart."""
        missing, unexpected = module.load_state_dict(rename(self.weights(part)), strict=False)
        kept = set(rename({key: torch.empty(0) for key, _, kind in self._rows(part) if kind == "keep"}))
        assert not unexpected and set(missing) <= kept, f"{self.name}: missing {missing}, unexpected {unexpected}"

    def compare(self, key: str, got: Tensor | float, tol: float | None = None) -> None:
        """max|diff| <= tol * max|ref|, or one float32 rounding step at 1; integers and booleans must be equal."""
        want, got = self.tensor(key), torch.as_tensor(got).detach()
        self.checked.add(key)
        assert got.shape == want.shape, f"{self.name} {key}: shape {tuple(got.shape)}, recorded {tuple(want.shape)}"
        if not want.is_floating_point():
            assert torch.equal(got.to(want.dtype), want), f"{self.name} {key}: {got} is not {want}"
            return
        assert got.isfinite().all(), f"{self.name} {key}: not finite"
        if want.numel() == 0:
            return
        tol = self.tol if tol is None else tol
        diff, scale = (got.double() - want.double()).abs().max(), want.double().abs().max()
        # A mean that nearly cancels is known no better than the numbers it was made of, whatever the processor.
        allowed = max(tol * scale, torch.finfo(torch.float32).eps)
        assert diff <= allowed, f"{self.name} {key}: max|diff| {diff:.3e} > {tol} * {scale:.3e}"

    def leave_out(self, prefix: str, why: str) -> None:
        """Declare that ours has no counterpart of the arrays that begin with `prefix`."""
        self.left_out.update({key: why for key in self.recorded(prefix)})

    def unchecked(self) -> list[str]:
        """Recorded outputs that were neither compared nor left out on purpose."""
        return [key for key in self.recorded("out.") if key not in self.checked and key not in self.left_out]
