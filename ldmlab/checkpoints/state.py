"""The state dict of a whole released model <-> the state dicts of its modules, without loss in either direction."""

import re
from collections.abc import Mapping
from contextlib import nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ldmlab.checkpoints.compvis import (
    FIRST_STAGE_PARTS,
    IGNORED,
    IGNORED_FOR_MASKS,
    LDM_PARTS,
    TABLES,
    Part,
    from_compvis,
    to_compvis,
)
from ldmlab.checkpoints.released import FirstStageRow, LdmRow, Row
from ldmlab.diffusion.conditioning.spatial_ops import SpatialRescaler
from ldmlab.diffusion.conditioning.tokens import ClassEmbedder
from ldmlab.diffusion.conditioning.transformer import TokenTransformer
from ldmlab.diffusion.schedules import Schedule
from ldmlab.diffusion.unet.unet import UNet
from ldmlab.first_stage.autoencoder import build_autoencoder
from ldmlab.first_stage.losses import PatchDiscriminator

OURS_ONLY = ("quantizer.counts",)  # counts of codes in training, which CompVis's files do not have
_UNET, _EMA, _DISCRIMINATOR = "model.diffusion_model.", "model_ema.", "loss.discriminator."


def parts_of(row: Row) -> tuple[Part, ...]:
    """The modules in the file of a row."""
    return LDM_PARTS if isinstance(row, LdmRow) else FIRST_STAGE_PARTS


def build_modules(row: Row, device: torch.device | str = "cpu") -> dict[str, nn.Module]:
    """Modules of a row, random weights: first_stage and discriminator; or first_stage, denoiser and conditioner."""
    with torch.device(device), _WithoutInit() if torch.device(device).type == "meta" else nullcontext():
        if isinstance(row, FirstStageRow):
            return {"first_stage": build_autoencoder(row.config), "discriminator": PatchDiscriminator(row.disc_layers)}
        modules: dict[str, nn.Module] = {"first_stage": build_autoencoder(row.first_stage.config),
                                         "denoiser": UNet(row.denoiser)}
        tau = _build_conditioner(row)
        return modules if tau is None else modules | {"conditioner": tau}


class _WithoutInit(TorchFunctionMode):
    """Skips random initialization, which has no effect on meta tensors and imports much of torch."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return (kwargs or {})["tensor"]
        if func in (Tensor.uniform_, Tensor.normal_):
            return args[0]
        return func(*args, **(kwargs or {}))


def _build_conditioner(row: LdmRow) -> nn.Module | None:
    c = row.condition
    if c is None:
        return None
    match c.kind:
        case "class":
            return ClassEmbedder(c.num_items - 1, c.channels)
        case "text" | "layout":
            return TokenTransformer(c.num_items, c.max_length, c.channels, c.num_layers)
        case "labels":
            num_stages = row.first_stage.config.f.bit_length() - 1
            return SpatialRescaler(num_stages, c.num_items, c.channels)
    return None  # a condition without a network of its own


def reason_ignored(key: str, row: Row) -> str | None:
    """The reason why a key of a row's file belongs to no module; None if it belongs to one."""
    masks = isinstance(row, LdmRow) and row.condition is not None and row.condition.kind == "mask"
    for ignored in (*IGNORED, *([IGNORED_FOR_MASKS] if masks else [])):
        if re.fullmatch(ignored.pattern, key):
            return ignored.reason
    return None


def to_theirs(modules: Mapping[str, nn.Module], row: Row) -> dict[str, Tensor]:
    """The modules' weights under CompVis's keys."""
    theirs: dict[str, Tensor] = {}
    for part in parts_of(row):
        if part.ours in modules:
            state = {k: v for k, v in modules[part.ours].state_dict().items() if k not in OURS_ONLY}
            theirs |= {part.theirs + key: value for key, value in to_compvis(state, part.rules).items()}
    return theirs


@cache
def expected(row: Row) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the modules of a row, under CompVis's keys."""
    return {key: tuple(value.shape) for key, value in to_theirs(build_modules(row, "meta"), row).items()}


def averaged_keys(keys: Mapping[str, object]) -> dict[str, str]:
    """Map each key of the denoiser to that of its average, which CompVis writes without dots.

    Raises ValueError where two keys would become the same.
    """
    names = {key: _EMA + key.removeprefix("model.").replace(".", "") for key in keys if key.startswith(_UNET)}
    if len(set(names.values())) < len(names):
        raise ValueError("two parameters of the denoiser have the same name without dots")
    return names


class Fit(NamedTuple):
    """Differences between a file's keys and shapes and those of a row; all empty where it fits."""

    row: Row
    missing: list[str]
    unexpected: list[str]
    reshaped: list[str]  # "key: shape in the file, shape in the row"

    @property
    def fits(self) -> bool:
        """Whether there are no differences."""
        return not (self.missing or self.unexpected or self.reshaped)

    def differences(self) -> list[str]:
        """A phrase for each kind of difference, with the first three keys."""
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": self.reshaped}
        return [f"{len(keys)} {kind}: {'; '.join(keys[:3])}{' ...' if len(keys) > 3 else ''}"
                for kind, keys in kinds.items() if keys]


def fit(shapes: Mapping[str, tuple[int, ...]], row: Row) -> Fit:
    """Compare a file's keys and shapes with those of a row; averages and discriminator must be complete or absent."""
    required = _required(row, shapes)
    averages = {name: required[key] for key, name in averaged_keys(required).items()}
    if shapes.keys() & averages.keys():
        required |= averages
    if _has_measured_scale(row):
        required["scale_factor"] = ()
    missing = [key for key in required if key not in shapes]
    unexpected = [key for key in shapes if key not in required and reason_ignored(key, row) is None]
    reshaped = [f"{key}: {tuple(shapes[key])} in the file, {shape} in {row.name}" for key, shape in required.items()
                if key in shapes and tuple(shapes[key]) != tuple(shape)]
    return Fit(row, missing, unexpected, reshaped)


def _required(row: Row, entries: Mapping[str, object]) -> dict[str, tuple[int, ...]]:
    """Keys that a file with these entries must have; those of a discriminator only if there are any."""
    bare = not any(key.startswith(_DISCRIMINATOR) for key in entries)
    return {key: shape for key, shape in expected(row).items() if not (bare and key.startswith(_DISCRIMINATOR))}


def _has_measured_scale(row: Row) -> bool:
    return isinstance(row, LdmRow) and row.scale_factor is None


def to_ours(state: Mapping[str, Tensor], row: Row, averaged: bool) -> dict[str, dict[str, Tensor]]:
    """State dicts of the modules, in float32, from a file that fits; the denoiser's from its averages if `averaged`."""
    if averaged:
        state = {**state, **{key: state[name] for key, name in averaged_keys(state).items()}}
    ours: dict[str, dict[str, Tensor]] = {}
    for part in parts_of(row):
        keys = [key for key in _required(row, state) if _part(key, row) == part]
        if keys:
            mine = {key.removeprefix(part.theirs): _to_float32(state[key]) for key in keys}
            ours[part.ours] = from_compvis(mine, part.rules)
    return ours


def _part(key: str, row: Row) -> Part:
    """The first part with the key's prefix; longer prefixes come first."""
    return next(part for part in parts_of(row) if key.startswith(part.theirs))


def _to_float32(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def schedule_tables(schedule: Schedule) -> dict[str, Tensor]:
    """The tables of a schedule in CompVis's files, computed in float64 and rounded to float32."""
    ab, variance = schedule.alpha_bar, schedule.posterior_variance
    of_z0, of_z_t = schedule.posterior_coefficients
    tables = (schedule.beta, ab, schedule.alpha_bar_prev, ab.sqrt(), (1 - ab).sqrt(), (1 - ab).log(), (1 / ab).sqrt(),
              (1 / ab - 1).sqrt(), variance, variance.clamp(min=1e-20).log(), of_z0, of_z_t)
    return {name: table.float() for name, table in zip(TABLES, tables, strict=True)}


def recomputed(
    theirs: Mapping[str, Tensor], row: Row, schedule: Schedule | None, scale_factor: float
) -> dict[str, Tensor]:
    """The other entries of a row's file, computed from those of the modules, `theirs`; averages equal the weights."""
    if not isinstance(row, LdmRow) or schedule is None:
        return {}
    entries = schedule_tables(schedule)
    if _has_measured_scale(row):
        entries["scale_factor"] = torch.tensor(scale_factor)
    if row.ema:
        entries["model_ema.decay"] = torch.tensor(0.9999)
        entries["model_ema.num_updates"] = torch.tensor(0, dtype=torch.int32)
        entries |= {name: theirs[key] for key, name in averaged_keys(theirs).items()}
    if row.condition is not None and row.condition.kind == "mask":
        entries |= {key.replace("first_stage_model.", "cond_stage_model.", 1): value for key, value in theirs.items()
                    if key.startswith("first_stage_model.")}
    return entries
