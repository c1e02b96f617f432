"""Identify a file of weights: its kind, the released model that it fits, and what differs."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ldmlab.checkpoints.compvis import LDM_PARTS
from ldmlab.checkpoints.opening import WeightsFile, open_weights
from ldmlab.checkpoints.released import LdmRow, Row
from ldmlab.checkpoints.released_model import candidates
from ldmlab.checkpoints.state import Fit, reason_ignored

FITS, NO_FIT, UNREADABLE = 0, 1, 2  # exit codes


@dataclass(frozen=True)
class Inspection:
    """Result of `inspect_file`: an exit code, and lines to print, of which the first names the kind of file."""

    status: int
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines)


def inspect_file(path: Path | str, sha256: str | None = None) -> Inspection:
    """Inspect a file of weights or a folder of diffusers, without building the model; bad files raise no error.

    `status` is 0 for a file that ldmlab can load, 1 for one that can be read but fits no model of ldmlab, and 2 for one
    that cannot be read. With `sha256`, a file of another hash cannot be read.

    >>> import tempfile, torch
    >>> from ldmlab.checkpoints.files import save_model
    >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> save_model(path, {"weight": torch.ones(2)}, {"f": 8})
    >>> report = inspect_file(path)
    >>> report.status, report.lines[0].split(": ")[1], report.lines[1]
    (0, 'a model of ldmlab, 1 entries, 2 numbers', 'f: 8')
    """
    path = Path(path)
    try:
        if path.is_dir() and (index := _diffusers_index(path)) is not None:
            return _pipeline(path, index)
        opened = open_weights(path, sha256)
    except (ValueError, OSError) as error:
        return Inspection(UNREADABLE, (str(error),))
    if "ldmlab" in opened.metadata:
        return _ours(opened)
    if _is_diffusers(opened):
        return Inspection(NO_FIT, (f"{path}: weights of diffusers, {_count(opened)}",
                                 "their config.json is not in the file: inspect the folder instead"))
    return _compvis(opened)


def _diffusers_index(folder: Path) -> dict | None:
    for name in ("model_index.json", "config.json"):
        if (folder / name).is_file():
            index = json.loads((folder / name).read_text())
            return index if isinstance(index, dict) and "_class_name" in index else None
    return None


def _pipeline(folder: Path, index: dict) -> Inspection:
    """Inspect a folder of diffusers by the name of its class; `diffusers_format.folders` reads such folders."""
    from ldmlab.checkpoints.diffusers_format.folders import FIRST_STAGES, PIPELINES, UNETS

    name = index["_class_name"]
    parts = [f"{part}: {kind[1]}" for part, kind in index.items() if isinstance(kind, list) and len(kind) == 2]
    known = (*PIPELINES, *FIRST_STAGES, *UNETS)
    lines = (f"{folder}: a {name} of diffusers", *parts)
    if name in known:
        return Inspection(FITS, lines)
    return Inspection(NO_FIT, (*lines, f"ldmlab does not read a {name}; accepted are {', '.join(known)}"))


def _ours(opened: WeightsFile) -> Inspection:
    described = json.loads(opened.metadata["ldmlab"])
    about = [f"{key}: {value}" for key, value in described.items() if isinstance(value, str | int | float)]
    return Inspection(FITS, (f"{opened.path}: a model of ldmlab, {_count(opened)}", *about))


def _is_diffusers(opened: WeightsFile) -> bool:
    starts = ("down_blocks.", "encoder.down_blocks.", "decoder.up_blocks.", "up_blocks.")
    return any(key.startswith(starts) for key in opened.tensors)


def _compvis(opened: WeightsFile) -> Inspection:
    found = candidates(opened.shapes, opened.path)
    best = found[0]
    same = [other.row.name for other in found[1:] if other.fits] if best.fits else []
    what = "a latent diffusion model" if isinstance(best.row, LdmRow) else "a first stage"
    known = sum(key.startswith(tuple(part.theirs for part in LDM_PARTS)) for key in opened.tensors) > 0
    if not best.fits and not known and len(best.unexpected) > len(opened.tensors) // 2:
        what = "weights of something else than a released model"
    lines = [f"{opened.path}: {what}, {_count(opened)}", f"averaged weights (EMA): {_averages(opened)}"]
    if opened.skipped_classes:
        lines.append(f"not read, since only weights are needed: {', '.join(opened.skipped_classes)}")
    lines += _verdict(best, same) + _left_out(opened, best.row)
    return Inspection(FITS if best.fits else NO_FIT, tuple(lines))


def _verdict(best: Fit, same: list[str]) -> list[str]:
    if best.fits:
        others = f"; {', '.join(same)} have the same layout" if same else ""
        return [f"fits {best.row.name} ({best.row.paper}){others}"]
    return [f"fits no released model; nearest is {best.row.name}, but for", *(f"  {d}" for d in best.differences())]


def _left_out(opened: WeightsFile, row: Row) -> list[str]:
    """Entries that belong to no module of ldmlab, by reason."""
    reasons = Counter(reason for key in opened.tensors if (reason := reason_ignored(key, row)) is not None)
    return [f"  {count} entries of no module: {reason}" for reason, count in reasons.items()]


def _averages(opened: WeightsFile) -> str:
    return "yes" if any(key.startswith("model_ema.diffusion_model") for key in opened.tensors) else "no"


def _count(opened: WeightsFile) -> str:
    numbers = sum(value.numel() for value in opened.tensors.values())
    return f"{len(opened.tensors)} entries, {numbers:,} numbers"
