"""Released models as ours: built from their row, loaded from CompVis's files, and written back with nothing lost."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ldmlab.atomic import atomic_write
from ldmlab.checkpoints.opening import open_weights
from ldmlab.checkpoints.released import ROWS, LdmRow, Row, released
from ldmlab.checkpoints.state import (
    Fit,
    averaged_keys,
    build_modules,
    expected,
    fit,
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
    """A released model's modules here, in eval mode; a first stage alone has no denoiser, schedule or conditioner.

    The conditioner is the network alone: `ClassEmbedder`, `TokenTransformer` over words or boxes, `SpatialRescaler`; or
    None where there is none (see `Condition`). z is multiplied by `scale_factor`. `averaged`: the denoiser has the
    averaged weights (EMA). `kept` holds the entries of a file that no module here holds, by CompVis's keys, for
    `to_compvis_state`; `also` names rows of the same architecture, which a file cannot tell apart.
    """

    row: Row
    first_stage: AutoencoderKL | AutoencoderVQ
    denoiser: UNet | None = None
    conditioner: nn.Module | None = None
    schedule: Schedule | None = None
    scale_factor: float = 1.0
    discriminator: PatchDiscriminator | None = None
    averaged: bool = False
    kept: dict[str, Tensor] = field(default_factory=dict)
    also: tuple[str, ...] = ()

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What has weights, by the name of the part."""
        named = {name: getattr(self, name) for name in ("first_stage", "discriminator", "denoiser", "conditioner")}
        return {name: module for name, module in named.items() if module is not None}

    def to_compvis_state(self) -> dict[str, Tensor]:
        """The whole state dict under CompVis's keys: modules, what follows from them, and what was kept of a file.

        After training a loaded model further, clear `kept`: it holds the weights of before.
        """
        theirs = to_theirs(self.modules, self.row)
        return theirs | recomputed(theirs, self.row, self.schedule, self.scale_factor) | self.kept


def build(row: Row, device: torch.device | str = "cpu") -> ReleasedModel:
    """The model of a row with fresh weights; on "meta" without memory. A measured scale factor (None) becomes 1."""
    return _assemble(row, build_modules(row, device))


def _assemble(row: Row, modules: Mapping[str, nn.Module]) -> ReleasedModel:
    model = ReleasedModel(row, **modules)
    for module in modules.values():
        module.eval()
    if isinstance(row, LdmRow):
        model.schedule, model.scale_factor = row.schedule, row.scale_factor or 1.0
    return model


def candidates(shapes: Mapping[str, tuple[int, ...]], near: Path | None = None) -> list[Fit]:
    """How each row of the file's kind compares, the best first; among equals one that the path `near` names."""
    ldm = any(key.startswith("model.diffusion_model.") for key in shapes)
    rows = [row for row in ROWS.values() if isinstance(row, LdmRow) == ldm]
    named = {part.lower() for part in near.parts} | {near.stem.lower()} if near is not None else set()

    def rank(found: Fit) -> tuple[int, bool]:
        wrong = len(found.missing) + len(found.unexpected) + len(found.reshaped)
        return wrong, found.row.name.lower() not in named

    plausible = [row for row in rows if isinstance(row, LdmRow) and _plausible(shapes, row)]
    return sorted((fit(shapes, row) for row in plausible or rows), key=rank)


def _plausible(shapes: Mapping[str, tuple[int, ...]], row: LdmRow) -> bool:
    """Whether the first convolution has the row's channels: the quick look that saves comparing every key."""
    first = shapes.get("model.diffusion_model.input_blocks.0.0.weight", ())
    return tuple(first[:2]) == (row.denoiser.widths[0], row.denoiser.in_channels)


def load_compvis(
    path: Path | str, row: str | Row = "auto", *, ema: bool = True, sha256: str | None = None
) -> ReleasedModel:
    """A released model from a CompVis file (.ckpt or .safetensors), by the row or name given, or by the one that fits.

    The averaged weights are taken where the file has them, unless `ema` is False. Weights come in float32. ValueError
    where the file fits no row, with what differs, and for what `open_weights` refuses; nothing in a file is run.
    """
    opened = open_weights(path, sha256)
    if row == "auto":
        found = candidates(opened.shapes, opened.path)
    else:
        found = [fit(opened.shapes, released(row) if isinstance(row, str) else row)]
    best = found[0]
    if not best.fits:
        nearest = f"does not fit {best.row.name}" if row != "auto" else f"fits no released model, {best.row.name} best"
        raise ValueError(f"{opened.path} {nearest}: {'; '.join(best.differences())}")
    also = tuple(other.row.name for other in found[1:] if other.fits)
    return from_compvis_state(opened.tensors, best.row, ema=ema, also=also)


def from_compvis_state(
    state: Mapping[str, Tensor], row: Row, *, ema: bool = True, also: tuple[str, ...] = ()
) -> ReleasedModel:
    """The model of a row from a CompVis state dict that fits it (see `state.fit`)."""
    has_averages = bool(set(averaged_keys(expected(row)).values()) & state.keys())
    averaged = ema and has_averages
    built, modules = build_modules(row, "meta"), {}
    for name, weights in to_ours(state, row, averaged).items():
        modules[name] = built[name]
        if "quantizer.codebook" in weights:
            weights["quantizer.counts"] = torch.zeros(len(weights["quantizer.codebook"]), dtype=torch.long)
        modules[name].load_state_dict(weights, assign=True)
        if isinstance(modules[name], ClassEmbedder):
            modules[name].null_condition = torch.tensor(modules[name].num_classes)  # in no file
    model = _assemble(row, modules)
    model.averaged, model.also = averaged, also
    if isinstance(row, LdmRow):
        _take_settings(model, state)
    ours = model.to_compvis_state()
    model.kept = {key: value for key, value in state.items() if key not in ours or not _same(value, ours[key])}
    return model


def _take_settings(model: ReleasedModel, state: Mapping[str, Tensor]) -> None:
    """Schedule and scale as the file has them, where it does: it may be of a model trained on with others."""
    beta = state.get("betas")
    if beta is not None and not _same(beta, schedule_tables(model.schedule)["betas"]):
        model.schedule = Schedule.from_beta(beta)
    if "scale_factor" in state:
        model.scale_factor = float(state["scale_factor"])


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.dtype == b.dtype and torch.equal(a, b))


def save_compvis(model: ReleasedModel, path: Path | str) -> None:
    """Write a model as CompVis's code reads it: a checkpoint (.ckpt), or the bare state dict (.safetensors); atomic."""
    path, state = Path(path), {key: value.detach().cpu() for key, value in model.to_compvis_state().items()}
    if path.suffix == ".safetensors":
        atomic_write(path, lambda part: save_file(_unshared(state), part))
    elif path.suffix == ".ckpt":
        atomic_write(path, lambda part: torch.save({"state_dict": state}, part))
    else:
        raise ValueError(f"CompVis's files are .ckpt or .safetensors, got {path.name}")


def _unshared(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies where two entries are one tensor, which safetensors cannot say."""
    seen: set[int] = set()
    own = {}
    for key, value in state.items():
        own[key] = value.clone() if value.data_ptr() in seen else value.contiguous()
        seen.add(value.data_ptr())
    return own
