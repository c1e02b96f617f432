"""Walk a folder so that each real folder and file is met once, whatever links, loops and bind mounts lead to it.

Standard library only.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from ldmlab.data.listing.names import is_litter_folder, split_of

_SPLITS = ("train", "validation", "test")
Identity = tuple[int, int] | str


@dataclass(frozen=True)
class Found:
    """A file or what stands for one. `kind` is file, special, broken (link), loop (link), folder (not entered) or
    closed (a folder that cannot be listed); `stat` is there for wanted files only."""

    kind: str
    path: str
    name: str  # below the root, with "/"
    stat: os.stat_result | None = None
    is_link: bool = False  # whether a link is part of the path below the root

    @property
    def identity(self) -> Identity:
        """The same for all names of one file."""
        return _identity(self.stat, self.path) if self.stat else self.path

    @property
    def rank(self) -> tuple[bool, bool, int, str]:
        """Order of the names of one file: in a split before outside, without links before with them."""
        split = _split_rank(self.name.rpartition("/")[0])
        return split == len(_SPLITS), self.is_link, split, self.name


def _identity(stat: os.stat_result, path: str) -> Identity:
    return (stat.st_dev, stat.st_ino) if stat.st_ino else os.path.realpath(path)  # some file systems have no numbers


def _split_rank(folder: str) -> int:
    """The position in _SPLITS of the first split among the names of a path's folders."""
    found = next((split for part in folder.split("/") if (split := split_of(part))), None) if folder else None
    return _SPLITS.index(found[0]) if found else len(_SPLITS)


def walk(root: str | Path, wanted: Callable[[str], bool]) -> Iterator[Found]:
    """Everything below a folder, links last; the files whose names are `wanted` with their stat.

    A folder is entered once, and once more by a link that puts it into a split; never one that contains the link.
    """
    root = os.fspath(root)
    above: list[Identity] = []
    for folder in (Path(root).resolve(), *Path(root).resolve().parents):
        above.append(_identity(os.stat(folder), str(folder)))
    entered: set[tuple[Identity, int]] = set()
    # (path, name below the root, identities of the folders that it lies in, whether a link led here)
    folders: list[tuple[str, str, tuple[Identity, ...], bool]] = [(root, "", tuple(above[1:]), False)]
    links: deque[tuple[str, str, tuple[Identity, ...]]] = deque()
    while folders or links:
        if folders:
            path, name, inside, is_link = folders.pop()
            try:
                here = _identity(os.stat(path), path)
                with os.scandir(path) as listing:
                    entries = sorted(listing, key=lambda entry: entry.name)
            except OSError:
                yield Found("closed", path, name or ".")
                continue
            if (here, rank := _split_rank(name)) in entered:
                yield Found("loop", path, name, is_link=is_link)
                continue
            entered.add((here, rank))
            chain = (*inside, here)
            for entry in entries:
                below = f"{name}/{entry.name}" if name else entry.name
                if entry.is_symlink():
                    links.append((entry.path, below, chain))
                elif entry.is_dir(follow_symlinks=False):
                    if is_litter_folder(entry.name):
                        yield Found("folder", entry.path, below)
                    else:
                        folders.append((entry.path, below, chain, is_link))
                elif not entry.is_file(follow_symlinks=False):
                    yield Found("special", entry.path, below)
                else:
                    yield from _file(entry.path, below, wanted, is_link)
            continue
        path, name, inside = links.popleft()
        try:
            stat = os.stat(path)
        except OSError:
            yield Found("broken", path, name, is_link=True)
            continue
        if S_ISDIR(stat.st_mode):
            if is_litter_folder(os.path.basename(name)):
                yield Found("folder", path, name)
            elif _identity(stat, path) in inside or (_identity(stat, path), _split_rank(name)) in entered:
                yield Found("loop", path, name, is_link=True)
            else:
                folders.append((path, name, inside, True))
        elif S_ISREG(stat.st_mode):
            yield from _file(path, name, wanted, True)
        else:
            yield Found("special", path, name, is_link=True)


def _file(path: str, name: str, wanted: Callable[[str], bool], is_link: bool) -> Iterator[Found]:
    if not wanted(os.path.basename(name)):
        yield Found("file", path, name, None, is_link)
        return
    try:
        yield Found("file", path, name, os.stat(path), is_link)
    except OSError:  # removed since, or no longer within reach
        yield Found("broken", path, name, None, is_link)
