"""Released models: build them from their row, load CompVis's files, and write them back without loss."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ldmlab.atomic import atomic_write
from ldmlab.checkpoints.foreign import check_kinds, check_values, peeled, peeling_note
from ldmlab.checkpoints.opening import WeightsFile, open_weights
from ldmlab.checkpoints.released import ROWS, LdmRow, Row, released_row
from ldmlab.checkpoints.state import (
    Fit,
    averaged_keys,
    build_modules,
    expected,
    fit,
    reason_ignored,
    recomputed,
    schedule_tables,
    to_ours,
    to_theirs,
)
from ldmlab.diffusion.conditioning.tokens import ClassEmbedder
from ldmlab.diffusion.schedules import Schedule
from ldmlab.diffusion.unet.unet import UNet
from ldmlab.first_stage.autoencoder import AutoencoderKL, AutoencoderVQ
from ldmlab.first_stage.losses import PatchDiscriminator


@dataclass
class ReleasedModel:
    """The modules of a released model, in eval mode; a first stage alone has no denoiser, schedule or conditioner.

    The conditioner is the network alone (`ClassEmbedder`, `TokenTransformer` over words or boxes, `SpatialRescaler`),
    or None where there is none (see `Condition`). z is multiplied by `scale_factor`. `averaged`: the denoiser has the
    averaged weights (EMA). `extra_entries` are the entries of a file that belong to no module, by CompVis's keys, for
    `to_compvis_state`; `same_layout` names the other rows of the same architecture, any of which a file may be.
    """

    row: Row
    first_stage: AutoencoderKL | AutoencoderVQ
    denoiser: UNet | None = None
    conditioner: nn.Module | None = None
    schedule: Schedule | None = None
    scale_factor: float = 1.0
    discriminator: PatchDiscriminator | None = None
    averaged: bool = False
    extra_entries: dict[str, Tensor] = field(default_factory=dict)
    same_layout: tuple[str, ...] = ()

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The modules with weights, by name."""
        named = {name: getattr(self, name) for name in ("first_stage", "discriminator", "denoiser", "conditioner")}
        return {name: module for name, module in named.items() if module is not None}

    def to_compvis_state(self) -> dict[str, Tensor]:
        """The whole state dict under CompVis's keys: modules, entries computed from them, and `extra_entries`.

        Clear `extra_entries` after training a loaded model further: they hold the earlier weights.
        """
        theirs = to_theirs(self.modules, self.row)
        return theirs | recomputed(theirs, self.row, self.schedule, self.scale_factor) | self.extra_entries


def build(row: Row, device: torch.device | str = "cpu") -> ReleasedModel:
    """Build the model of a row with random weights; on "meta", without memory. A scale factor of None becomes 1."""
    return _assemble(row, build_modules(row, device))


def _assemble(row: Row, modules: Mapping[str, nn.Module]) -> ReleasedModel:
    named: dict[str, Any] = dict(modules)
    model = ReleasedModel(row, **named)
    for module in modules.values():
        module.eval()
    if isinstance(row, LdmRow):
        model.schedule, model.scale_factor = row.schedule, row.scale_factor or 1.0
    return model


def candidates(shapes: Mapping[str, tuple[int, ...]], near: Path | None = None) -> list[Fit]:
    """Compare a file with all rows of its kind, best fit first; among equals, one named in the path `near` first."""
    ldm = any(key.startswith("model.diffusion_model.") for key in shapes)
    rows = [row for row in ROWS.values() if isinstance(row, LdmRow) == ldm]
    named = {part.lower() for part in near.parts} | {near.stem.lower()} if near is not None else set()

    def rank(found: Fit) -> tuple[int, bool]:
        return _num_wrong(found), found.row.name.lower() not in named

    plausible = [row for row in rows if isinstance(row, LdmRow) and _plausible(shapes, row)]
    return sorted((fit(shapes, row) for row in plausible or rows), key=rank)


def _plausible(shapes: Mapping[str, tuple[int, ...]], row: LdmRow) -> bool:
    """Whether the first convolution has the row's channels: a fast test before all keys are compared."""
    first = shapes.get("model.diffusion_model.input_blocks.0.0.weight", ())
    return tuple(first[:2]) == (row.denoiser.widths[0], row.denoiser.in_channels)


@dataclass(frozen=True)
class Match:
    """How a file's entries compare with rows, best first; `tensors` have names without the prefix that `note` says."""

    tensors: dict[str, Tensor]
    found: list[Fit]
    note: str | None = None


def match(opened: WeightsFile, row: Row | None = None) -> Match:
    """Compare a file with all rows, or the given one: as it is, then without what its names begin with.

    What does not fit in any way is returned as it is, or as it comes nearest without a prefix that all names have.
    """
    best = None
    for prefix, tensors in peeled(opened.tensors):
        shapes = {key: tuple(value.shape) for key, value in tensors.items()}
        found = candidates(shapes, opened.path) if row is None else [fit(shapes, row)]
        note = peeling_note(prefix, len(tensors), len(opened.tensors)) if prefix else None
        this = Match(tensors, found, note)
        if found[0].fits:
            return this
        whole = len(tensors) == len(opened.tensors)
        if best is None or (whole and _num_wrong(found[0]) < _num_wrong(best.found[0])):
            best = this
        if row is None and any(key.startswith("model.diffusion_model.") for key in shapes):
            break  # a latent diffusion model that does not fit: its first stage alone is not what the file is
    assert best is not None
    return best


def _num_wrong(found: Fit) -> int:
    return len(found.missing) + len(found.unexpected) + len(found.reshaped)


def check_weights(source: str, tensors: Mapping[str, Tensor], row: Row) -> None:
    """ValueError, naming the entry, for weights of a row that are quantized, NaN or infinite."""
    used = {key: value for key, value in tensors.items() if reason_ignored(key, row) is None}
    check_kinds(source, used, to_theirs(build_modules(row, "meta"), row))
    check_values(source, used)


def load_compvis(
    path: Path | str, row: str | Row = "auto", *, ema: bool = True, sha256: str | None = None
) -> ReleasedModel:
    """Load a released model from a CompVis file (.ckpt or .safetensors) as the given row, or as the one that fits.

    Averaged weights are used where the file has them, unless `ema` is False; all weights become float32. Prefixes that
    all names have are taken off; what was done to a file's entries is printed. Raises ValueError where the file does
    not fit, with the differences, for weights that are NaN, infinite or quantized, and for files that `open_weights`
    refuses. No code in a file runs.
    """
    opened = open_weights(path, sha256)
    matched = match(opened, None if row == "auto" else released_row(row) if isinstance(row, str) else row)
    best = matched.found[0]
    if not best.fits:
        name = best.row.name
        problem = f"does not fit {name}" if row != "auto" else f"fits no released model; {name} is nearest"
        raise ValueError(f"{opened.path} {problem}: {'; '.join(best.differences())}")
    check_weights(str(opened.path), matched.tensors, best.row)
    for note in (*opened.notes, *filter(None, [matched.note])):
        print(f"{opened.path.name}: {note}", flush=True)
    same_layout = tuple(other.row.name for other in matched.found[1:] if other.fits)
    return from_compvis_state(matched.tensors, best.row, ema=ema, same_layout=same_layout)


def from_compvis_state(
    state: Mapping[str, Tensor], row: Row, *, ema: bool = True, same_layout: tuple[str, ...] = ()
) -> ReleasedModel:
    """Build the model of a row from a CompVis state dict that fits it (see `state.fit`)."""
    has_averages = bool(set(averaged_keys(expected(row)).values()) & state.keys())
    averaged = ema and has_averages
    built, modules = build_modules(row, "meta"), {}
    for name, weights in to_ours(state, row, averaged).items():
        modules[name] = built[name]
        if "quantizer.codebook" in weights:
            weights["quantizer.counts"] = torch.zeros(len(weights["quantizer.codebook"]), dtype=torch.long)
        modules[name].load_state_dict(weights, assign=True)
        if isinstance(modules[name], ClassEmbedder):
            modules[name].null_condition = torch.tensor(modules[name].num_classes)  # not stored in files
    model = _assemble(row, modules)
    model.averaged, model.same_layout = averaged, same_layout
    if isinstance(row, LdmRow):
        _take_settings(model, state)
    ours = model.to_compvis_state()
    model.extra_entries = {key: value for key, value in state.items() if key not in ours or not _same(value, ours[key])}
    return model


def _take_settings(model: ReleasedModel, state: Mapping[str, Tensor]) -> None:
    """Take schedule and scale factor from the file where it has them: it may be of a model trained with others."""
    beta = state.get("betas")
    if beta is not None and model.schedule is not None and not _same(beta, schedule_tables(model.schedule)["betas"]):
        model.schedule = Schedule.from_beta(beta)
    if "scale_factor" in state:
        model.scale_factor = float(state["scale_factor"])


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.dtype == b.dtype and torch.equal(a, b))


def save_compvis(model: ReleasedModel, path: Path | str) -> None:
    """Write a model for CompVis's code, atomically: a checkpoint (.ckpt), or the state dict alone (.safetensors)."""
    path, state = Path(path), {key: value.detach().cpu() for key, value in model.to_compvis_state().items()}
    if path.suffix == ".safetensors":
        atomic_write(path, lambda part: save_file(_unshared(state), part))
    elif path.suffix == ".ckpt":
        atomic_write(path, lambda part: torch.save({"state_dict": state}, part))
    else:
        raise ValueError(f"CompVis's files are .ckpt or .safetensors, got {path.name}")


def _unshared(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that occur twice, since safetensors does not store shared tensors."""
    seen: set[int] = set()
    own = {}
    for key, value in state.items():
        own[key] = value.clone() if value.data_ptr() in seen else value.contiguous()
        seen.add(value.data_ptr())
    return own
