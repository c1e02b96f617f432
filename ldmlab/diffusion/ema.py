"""Exponential moving average of a model's parameters, as sampled from in the paper's experiments."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class EMA:
    """Shadow copies of the parameters that train; `decay` ramps up as min(decay, (1 + n) / (10 + n)) if `warmup`.

    The n-th update, counted from 1, is shadow <- lerp(shadow, parameter, 1 - decay_n), for all parameters at once and
    without waiting for the device: n is a Python int. Shadows are float32 or wider.

    A model's parameters are looked up once, as by an optimizer: later changes of their values count, parameters that
    replace them do not.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, warmup: bool = True):
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay, self.warmup, self.num_updates = decay, warmup, 0
        self.shadow = {name: p.detach().to(_wide(p.dtype), copy=True) for name, p in _trained(model)}
        self._model: nn.Module | None = None
        self._parameters: list[Tensor] = []  # of that model, in the order of the shadows

    def to(self, device: torch.device | str) -> "EMA":
        """Move the shadows; returns self."""
        self.shadow = {name: shadow.to(device) for name, shadow in self.shadow.items()}
        return self

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the shadows towards the model's parameters, after an optimizer step."""
        self.num_updates += 1
        n = self.num_updates
        decay = min(self.decay, (1 + n) / (10 + n)) if self.warmup else self.decay
        shadows, parameters = self._pairs(model)
        wide = [p if p.dtype == s.dtype else p.to(s.dtype) for s, p in zip(shadows, parameters, strict=True)]
        torch._foreach_lerp_(shadows, wide, 1 - decay)

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[nn.Module]:
        """The model with averaged parameters inside the block; after it, its own are restored bit for bit."""
        shadows, parameters = self._pairs(model)
        with torch.no_grad():
            own = [p.clone() for p in parameters]
            torch._foreach_copy_(parameters, shadows)
        try:
            yield model
        finally:
            with torch.no_grad():
                torch._foreach_copy_(parameters, own)

    def state_dict(self) -> dict[str, Any]:
        """Shadows, decay and the number of updates: tensors and numbers only."""
        return {"decay": self.decay, "num_updates": self.num_updates, "shadow": dict(self.shadow)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a saved state; ValueError if it is of other parameters."""
        shapes = {name: tuple(shadow.shape) for name, shadow in self.shadow.items()}
        saved = {name: tuple(shadow.shape) for name, shadow in state["shadow"].items()}
        if shapes != saved:
            differing = sorted(name for name in shapes.keys() | saved.keys() if shapes.get(name) != saved.get(name))
            raise ValueError(f"the saved averages are of another model; first differences: {differing[:5]}")
        self.decay, self.num_updates = float(state["decay"]), int(state["num_updates"])
        for name, shadow in self.shadow.items():
            shadow.copy_(state["shadow"][name])

    def _pairs(self, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """Shadows and parameters in the same order; ValueError for a model with other parameters than the averaged."""
        if model is not self._model:  # the walk through its modules takes a fifth of an update and more
            parameters = dict(_trained(model))
            if parameters.keys() != self.shadow.keys():
                differing = sorted(parameters.keys() ^ self.shadow.keys())
                raise ValueError(f"this model trains other parameters than were averaged: {differing[:5]}")
            self._model, self._parameters = model, [parameters[name] for name in self.shadow]
        return list(self.shadow.values()), self._parameters


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """float32 or wider: in half precision averages would not change, as 1 - decay is below its resolution."""
    return torch.promote_types(dtype, torch.float32)
