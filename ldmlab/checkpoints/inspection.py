"""Identify a file of weights: its kind, the released model that it fits, and what differs."""

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from ldmlab.checkpoints.compvis import LDM_PARTS
from ldmlab.checkpoints.foreign import check_values, class_in, read_json
from ldmlab.checkpoints.opening import WeightsFile, open_weights
from ldmlab.checkpoints.released import LdmRow, Row
from ldmlab.checkpoints.released_model import check_weights, match
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

    A folder's weights are looked at as well: what `read_pipeline` or `read_part` refuses has a status other than 0.

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
        if path.is_dir():
            return _folder(path)
        opened = open_weights(path, sha256)
        if "ldmlab" in opened.metadata:
            return _ours(opened)
        if _is_diffusers(opened):
            return Inspection(NO_FIT, (f"{path}: weights of diffusers, {_count(opened)}", *opened.notes,
                                     "their config.json is not in the file: inspect the folder instead"))
        return _compvis(opened)
    except (ValueError, OSError) as error:
        return Inspection(UNREADABLE, (str(error),))


def _folder(folder: Path) -> Inspection:
    """Inspect a folder of diffusers, as `diffusers_format.folders` reads it."""
    from ldmlab.checkpoints.diffusers_format.folders import FIRST_STAGES, PIPELINES, TEXT, UNETS, check_folder, snapshot

    folder = snapshot(folder)
    index = next((folder / name for name in ("model_index.json", "config.json") if (folder / name).is_file()), None)
    values = read_json(index) if index else {}
    name = class_in(values)
    if name is None:
        open_weights(folder)  # says what the folder has
    parts = [f"{part}: {kind[1]}" for part, kind in values.items() if isinstance(kind, list) and len(kind) == 2]
    known = (*PIPELINES, *FIRST_STAGES, *UNETS, TEXT)
    lines = (f"{folder}: a {name} of diffusers", *parts)
    if name not in known:
        return Inspection(NO_FIT, (*lines, f"ldmlab does not read a {name}; accepted are {', '.join(known)}"))
    try:
        return Inspection(FITS, (*lines, *check_folder(folder, name in PIPELINES)))
    except (ValueError, OSError) as error:
        return Inspection(NO_FIT, (*lines, str(error)))


def _ours(opened: WeightsFile) -> Inspection:
    try:
        described = json.loads(opened.metadata["ldmlab"])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{opened.path} has a description of ldmlab that is not JSON: it is damaged") from error
    check_values(str(opened.path), opened.tensors)
    about = [f"{key}: {value}" for key, value in dict(described).items() if isinstance(value, str | int | float)]
    return Inspection(FITS, (f"{opened.path}: a model of ldmlab, {_count(opened)}", *about))


def _is_diffusers(opened: WeightsFile) -> bool:
    starts = ("down_blocks.", "encoder.down_blocks.", "decoder.up_blocks.", "up_blocks.")
    return any(key.startswith(starts) for key in opened.tensors)


def _compvis(opened: WeightsFile) -> Inspection:
    matched = match(opened)
    found, best = matched.found, matched.found[0]
    if matched.note:
        opened = replace(opened, tensors=matched.tensors, notes=(*opened.notes, matched.note))
    same = [other.row.name for other in found[1:] if other.fits] if best.fits else []
    what = "a latent diffusion model" if isinstance(best.row, LdmRow) else "a first stage"
    known = sum(key.startswith(tuple(part.theirs for part in LDM_PARTS)) for key in opened.tensors) > 0
    if not best.fits and not known and len(best.unexpected) > len(opened.tensors) // 2:
        what = "weights of something else than a released model"
    lines = [f"{opened.path}: {what}, {_count(opened)}", f"averaged weights (EMA): {_averages(opened)}"]
    if opened.skipped_classes:
        lines.append(f"not read, since only weights are needed: {', '.join(opened.skipped_classes)}")
    lines += [*opened.notes, *_verdict(best, same), *_left_out(opened, best.row)]
    if best.fits:
        try:
            check_weights(str(opened.path), opened.tensors, best.row)
        except ValueError as error:
            return Inspection(NO_FIT, (*lines, str(error)))
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
