"""The state dict of a whole released model <-> the state dicts of its modules here; no entry is lost on the way."""

import re
from collections.abc import Mapping
from contextlib import nullcontext
from functools import cache
from typing import NamedTuple

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

OURS_ONLY = ("quantizer.counts",)  # how often codes were chosen in training: no weight, and no key of theirs
_UNET, _EMA, _DISCRIMINATOR = "model.diffusion_model.", "model_ema.", "loss.discriminator."


def parts_of(row: Row) -> tuple[Part, ...]:
    """The modules of a row's file."""
    return LDM_PARTS if isinstance(row, LdmRow) else FIRST_STAGE_PARTS


def build_modules(row: Row, device: torch.device | str = "cpu") -> dict[str, nn.Module]:
    """The modules of a row with fresh weights: first_stage and discriminator, or first_stage, denoiser, conditioner."""
    with torch.device(device), _WithoutInit() if torch.device(device).type == "meta" else nullcontext():
        if isinstance(row, FirstStageRow):
            return {"first_stage": build_autoencoder(row.config), "discriminator": PatchDiscriminator(row.disc_layers)}
        modules = {"first_stage": build_autoencoder(row.first_stage.config),
                   "denoiser": UNet(row.denoiser)}
        tau = _build_conditioner(row)
        return modules if tau is None else modules | {"conditioner": tau}


class _WithoutInit(TorchFunctionMode):
    """Leaves out random numbers, which for tensors without memory mean nothing, and load half of torch first."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"]
        if func in (Tensor.uniform_, Tensor.normal_):
            return args[0]
        return func(*args, **(kwargs or {}))


def _build_conditioner(row: LdmRow) -> nn.Module | None:
    c = row.condition
    match c and c.kind:
        case "class":
            return ClassEmbedder(c.num_items - 1, c.channels)
        case "text" | "layout":
            return TokenTransformer(c.num_items, c.max_length, c.channels, c.num_layers)
        case "labels":
            num_stages = row.first_stage.config.f.bit_length() - 1
            return SpatialRescaler(num_stages, c.num_items, c.channels)
    return None  # no condition, or one that no network of its own encodes


def reason_ignored(key: str, row: Row) -> str | None:
    """Why a key of a row's file belongs to no module; None if it should."""
    masks = isinstance(row, LdmRow) and row.condition is not None and row.condition.kind == "mask"
    for ignored in (*IGNORED, *([IGNORED_FOR_MASKS] if masks else [])):
        if re.fullmatch(ignored.pattern, key):
            return ignored.reason
    return None


def to_theirs(modules: Mapping[str, nn.Module], row: Row) -> dict[str, Tensor]:
    """The modules' weights under CompVis's keys."""
    theirs = {}
    for part in parts_of(row):
        if part.ours in modules:
            state = {k: v for k, v in modules[part.ours].state_dict().items() if k not in OURS_ONLY}
            theirs |= {part.theirs + key: value for key, value in to_compvis(state, part.rules).items()}
    return theirs


@cache
def expected(row: Row) -> dict[str, tuple[int, ...]]:
    """Keys and shapes that a row's file must have: those of the modules."""
    return {key: tuple(value.shape) for key, value in to_theirs(build_modules(row, "meta"), row).items()}


def averaged_keys(keys: Mapping[str, object]) -> dict[str, str]:
    """Each denoiser key -> the key of its average, which CompVis writes without the dots.

    ValueError if two keys would become one.
    """
    names = {key: _EMA + key.removeprefix("model.").replace(".", "") for key in keys if key.startswith(_UNET)}
    if len(set(names.values())) < len(names):
        raise ValueError("two parameters of the denoiser have the same name once the dots are gone")
    return names


class Fit(NamedTuple):
    """How a file's keys and shapes differ from a row's: all empty where it fits."""

    row: Row
    missing: list[str]
    unexpected: list[str]
    reshaped: list[str]  # "key: shape in the file, shape in the row"

    @property
    def fits(self) -> bool:
        return not (self.missing or self.unexpected or self.reshaped)

    def differences(self) -> list[str]:
        """A sentence for each kind of difference, with the first few keys."""
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": self.reshaped}
        return [f"{len(keys)} {kind}: {'; '.join(keys[:3])}{' ...' if len(keys) > 3 else ''}"
                for kind, keys in kinds.items() if keys]


def fit(shapes: Mapping[str, tuple[int, ...]], row: Row) -> Fit:
    """Compare the keys and shapes of a file with those of a row; averages and discriminator are whole or absent."""
    required = _required(row, shapes)
    averages = {name: required[key] for key, name in averaged_keys(required).items()}
    if shapes.keys() & averages.keys():
        required |= averages
    if _lacks_scale(row):
        required["scale_factor"] = ()
    missing = [key for key in required if key not in shapes]
    unexpected = [key for key in shapes if key not in required and reason_ignored(key, row) is None]
    reshaped = [f"{key}: {tuple(shapes[key])} in the file, {shape} in {row.name}" for key, shape in required.items()
                if key in shapes and tuple(shapes[key]) != tuple(shape)]
    return Fit(row, missing, unexpected, reshaped)


def _required(row: Row, entries: Mapping[str, object]) -> dict[str, tuple[int, ...]]:
    """What a file with these entries must have; a first stage without any of its discriminator needs none of it."""
    bare = not any(key.startswith(_DISCRIMINATOR) for key in entries)
    return {key: shape for key, shape in expected(row).items() if not (bare and key.startswith(_DISCRIMINATOR))}


def _lacks_scale(row: Row) -> bool:
    return isinstance(row, LdmRow) and row.scale_factor is None


def to_ours(state: Mapping[str, Tensor], row: Row, averaged: bool) -> dict[str, dict[str, Tensor]]:
    """The state dict of each module, in float32, from a file that fits; the denoiser's from its averages if asked."""
    if averaged:
        state = {**state, **{key: state[name] for key, name in averaged_keys(state).items()}}
    ours: dict[str, dict[str, Tensor]] = {}
    for part in parts_of(row):
        keys = [key for key in _required(row, state) if _part(key, row) == part]
        if keys:
            mine = {key.removeprefix(part.theirs): _wide(state[key]) for key in keys}
            ours[part.ours] = from_compvis(mine, part.rules)
    return ours


def _part(key: str, row: Row) -> Part:
    """The first part with the key's prefix: the longer prefixes come first."""
    return next(part for part in parts_of(row) if key.startswith(part.theirs))


def _wide(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def schedule_tables(schedule: Schedule) -> dict[str, Tensor]:
    """The tables that CompVis stores of a schedule, computed in float64 and rounded to float32."""
    ab, variance = schedule.alpha_bar, schedule.posterior_variance
    of_z0, of_z_t = schedule.posterior_coefficients
    tables = (schedule.beta, ab, schedule.alpha_bar_prev, ab.sqrt(), (1 - ab).sqrt(), (1 - ab).log(), (1 / ab).sqrt(),
              (1 / ab - 1).sqrt(), variance, variance.clamp(min=1e-20).log(), of_z0, of_z_t)
    return {name: table.float() for name, table in zip(TABLES, tables, strict=True)}


def recomputed(
    theirs: Mapping[str, Tensor], row: Row, schedule: Schedule | None, scale_factor: float
) -> dict[str, Tensor]:
    """What a row's file has beside the modules' entries `theirs`, as follows from them; averages equal the weights."""
    if not isinstance(row, LdmRow):
        return {}
    entries = schedule_tables(schedule)
    if _lacks_scale(row):
        entries["scale_factor"] = torch.tensor(scale_factor)
    if row.ema:
        entries["model_ema.decay"] = torch.tensor(0.9999)
        entries["model_ema.num_updates"] = torch.tensor(0, dtype=torch.int32)
        entries |= {name: theirs[key] for key, name in averaged_keys(theirs).items()}
    if row.condition is not None and row.condition.kind == "mask":
        entries |= {key.replace("first_stage_model.", "cond_stage_model.", 1): value for key, value in theirs.items()
                    if key.startswith("first_stage_model.")}
    return entries
