"""What is this file, which released model is it, what does it lack? For `python -m ldmlab inspect`."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ldmlab.checkpoints.compvis import LDM_PARTS
from ldmlab.checkpoints.opening import Opened, open_weights
from ldmlab.checkpoints.released import LdmRow, Row
from ldmlab.checkpoints.released_model import candidates
from ldmlab.checkpoints.state import Fit, reason_ignored

FITS, FITS_NOT, UNREADABLE = 0, 1, 2  # exit codes


@dataclass(frozen=True)
class Report:
    """What `inspect_file` found: an exit code, and lines to print, the first saying what the file is."""

    status: int
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines)


def inspect_file(path: Path | str, sha256: str | None = None) -> Report:
    """Look into a file of weights, or a folder of diffusers, without loading a model; never raises for a bad file.

    Status 0: it is whole and can be used here; 1: it can be read, but fits nothing here; 2: it cannot be read.
    """
    path = Path(path)
    try:
        if path.is_dir() and (index := _diffusers_index(path)) is not None:
            return _pipeline(path, index)
        opened = open_weights(path, sha256)
    except (ValueError, OSError) as error:
        return Report(UNREADABLE, (str(error),))
    if "ldmlab" in opened.metadata:
        return _ours(opened)
    if _is_diffusers(opened):
        return Report(FITS_NOT, (f"{path}: weights of diffusers, {_count(opened)}",
                                 "what they are stands in the config.json beside them: inspect the folder"))
    return _compvis(opened)


def _diffusers_index(folder: Path) -> dict | None:
    for name in ("model_index.json", "config.json"):
        if (folder / name).is_file():
            index = json.loads((folder / name).read_text())
            return index if isinstance(index, dict) and "_class_name" in index else None
    return None


def _pipeline(folder: Path, index: dict) -> Report:
    """A folder of diffusers, judged by the name of its class; `diffusers_folders` reads it."""
    from ldmlab.checkpoints.diffusers_format.folders import FIRST_STAGES, PIPELINES, UNETS

    name = index["_class_name"]
    parts = [f"{part}: {kind[1]}" for part, kind in index.items() if isinstance(kind, list) and len(kind) == 2]
    known = (*PIPELINES, *FIRST_STAGES, *UNETS)
    lines = (f"{folder}: a {name} of diffusers", *parts)
    if name in known:
        return Report(FITS, lines)
    return Report(FITS_NOT, (*lines, f"nothing here reads a {name}; what is read: {', '.join(known)}"))


def _ours(opened: Opened) -> Report:
    described = json.loads(opened.metadata["ldmlab"])
    about = [f"{key}: {value}" for key, value in described.items() if isinstance(value, str | int | float)]
    return Report(FITS, (f"{opened.path}: a model of ldmlab, {_count(opened)}", *about))


def _is_diffusers(opened: Opened) -> bool:
    starts = ("down_blocks.", "encoder.down_blocks.", "decoder.up_blocks.", "up_blocks.")
    return any(key.startswith(starts) for key in opened.tensors)


def _compvis(opened: Opened) -> Report:
    found = candidates(opened.shapes, opened.path)
    best = found[0]
    same = [other.row.name for other in found[1:] if other.fits] if best.fits else []
    what = "a latent diffusion model" if isinstance(best.row, LdmRow) else "a first stage"
    known = sum(key.startswith(tuple(part.theirs for part in LDM_PARTS)) for key in opened.tensors) > 0
    if not best.fits and not known and len(best.unexpected) > len(opened.tensors) // 2:
        what = "weights of something else than a released model"
    lines = [f"{opened.path}: {what}, {_count(opened)}", f"averaged weights (EMA): {_averages(opened)}"]
    if opened.left:
        lines.append(f"left unread, as weights are all that is needed: {', '.join(opened.left)}")
    lines += _verdict(best, same) + _left_out(opened, best.row)
    return Report(FITS if best.fits else FITS_NOT, tuple(lines))


def _verdict(best: Fit, same: list[str]) -> list[str]:
    if best.fits:
        others = f"; {', '.join(same)} have the same layout" if same else ""
        return [f"fits {best.row.name} ({best.row.paper}){others}"]
    return [f"fits no released model; nearest is {best.row.name}, but for", *(f"  {d}" for d in best.differences())]


def _left_out(opened: Opened, row: Row) -> list[str]:
    """Entries that no module here takes, by reason."""
    reasons = Counter(reason for key in opened.tensors if (reason := reason_ignored(key, row)) is not None)
    return [f"  {count} entries beside the modules': {reason}" for reason, count in reasons.items()]


def _averages(opened: Opened) -> str:
    return "yes" if any(key.startswith("model_ema.diffusion_model") for key in opened.tensors) else "no"


def _count(opened: Opened) -> str:
    numbers = sum(value.numel() for value in opened.tensors.values())
    return f"{len(opened.tensors)} entries, {numbers:,} numbers"
