"""Trained models on disk; the state that a training continues from, and one older state beside it."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from zipfile import ZipFile

import torch

from ldmlab.atomic import atomic_write, locked, move_into_place
from ldmlab.damage import DamagedFile, read_or_set_aside, reading

Model = TypeVar("Model")
_STATE, _OLDER = "state.pt", "state-older.pt"


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write a state atomically, and keep the one before it; DiskFull, with both kept, where there is no space."""
    file = folder / _STATE

    def write(part: Path) -> None:
        torch.save({**state, "folder": folder.name}, part)
        with open(part, "rb") as written:  # on disk before the state before it moves
            os.fsync(written.fileno())
        with suppress(FileNotFoundError):  # none yet, or another host has finished
            move_into_place(file, folder / _OLDER)

    atomic_write(file, write)


def load_state(folder: Path) -> dict[str, Any] | None:
    """The last state of a training, or the one before it where that is damaged; None if there is none.

    Damaged files are set aside.
    """
    for name in (_STATE, _OLDER):
        if (state := read_or_set_aside(folder / name, _read)) is not None:
            return state
    return None


def _read(path: Path) -> dict[str, Any]:
    with reading(path):
        with ZipFile(path) as archive:  # torch writes checksums, and does not read them
            if bad := archive.testzip():
                raise DamagedFile(path, f"its part {bad} does not have the checksum that it states")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if missing := [name for name in ("step", "module", "curve", "events") if name not in state]:
            raise DamagedFile(path, f"it lacks {', '.join(missing)}")
        if state.get("folder", path.parent.name) != path.parent.name:
            raise DamagedFile(path, f"it is the state of {state['folder']}")
        return state


def state_files(folder: Path) -> list[Path]:
    """The states in a folder, the last one first."""
    return [folder / name for name in (_STATE, _OLDER) if (folder / name).is_file()]


def remove_states(folder: Path) -> None:
    """Remove the states of a finished training."""
    for file in state_files(folder):
        file.unlink(missing_ok=True)


def find_or_train(path: Path, label: str, train: Callable[[], object], load: Callable[[Path], Model]) -> Model:
    """`load(path)`, after `train()` has written the file where it is missing, or damaged and set aside.

    A model that is there is loaded without a lock, so that its folder may be read-only. Otherwise the folder is locked:
    of several processes one trains. The states of the training are removed once the model is there.
    """
    try:
        return load(path)
    except (FileNotFoundError, DamagedFile):
        pass
    with locked(path.parent, label):
        model = read_or_set_aside(path, load)
        if model is None:
            train()
            model = load(path)
        remove_states(path.parent)
    return model


def check_meta(path: Path, meta: dict[str, Any], stated: dict[str, Any]) -> None:
    """DamagedFile where a model's metadata does not have the `stated` values: it is the file of another model.

    What the metadata lacks, as that of earlier versions does, is not compared.
    """
    for name, value in stated.items():
        if meta.get(name, value) != value:
            raise DamagedFile(path, f"it is another model: its {name} is {meta[name]}, and here it must be {value}")
