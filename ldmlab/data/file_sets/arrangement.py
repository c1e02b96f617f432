"""Sort the pictures of a listing into splits and classes, by the names of their folders and their labels."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from ldmlab.data.dataset_names import PICTURES, SPLITS
from ldmlab.data.file_lists import HELD_OUT, Entry, fraction
from ldmlab.data.listing.names import IMAGE_FOLDERS, is_companion, mask_folders, odd_class, splits_among
from ldmlab.data.listing.report import DataReport, listed

Item = tuple[str, Entry]  # a picture under the name that it has so far: without its split, "cat/1.png"


@dataclass(frozen=True)
class Arranged:
    """The pictures of each split, in order, with their labels; classes are those of all splits."""

    by_split: dict[str, list[Entry]]
    labels: dict[str, np.ndarray]  # (n,) int64 of each split, -1 without a class
    classes: tuple[str, ...] | None
    num_classes: int

    @property
    def all_entries(self) -> list[Entry]:
        """The pictures of all splits."""
        return [e for part in self.by_split.values() for e in part]

    def check_split(self, split: str, what: str) -> None:
        """ValueError where a split has no picture."""
        if not self.by_split.get(split):
            has = ", ".join(k for k in SPLITS if self.by_split.get(k))
            raise ValueError(f"data {what!r} has no {split} split; it has {has}")


def arrange(entries: list[Entry], what: str, report: DataReport | None = None) -> Arranged:
    """Sort the pictures of a listing into splits and classes; `what` names the data in errors.

    Folders named as splits, see `listing.names.splits_among`, are splits: at the top, or below folders of classes or
    of images. Without them, validation is a share HELD_OUT of train, drawn by file name. Folders of masks and labels,
    and what lies beside a folder `images`, are left out. The class of a picture is its own label if it has one, else
    its outermost folder below the split; a single class counts as none. Raises ValueError where there are no pictures.
    """
    report = DataReport() if report is None else report
    entries = _without_companions(sorted(entries, key=lambda e: (e.name, e.path)), report)
    items = _strip_common_folder([(e.name, e) for e in entries])
    if not items:
        raise ValueError(f"data {what!r} holds no picture; accepted are {', '.join(PICTURES)}")
    parts = _split(_strip_common_folder(_without_masks(items, report)), report)
    if "validation" not in parts and "train" in parts:
        parts["train"], parts["validation"] = _hold_out(parts["train"])
        drawn = f"validation is {HELD_OUT:.0%} of the pictures, drawn by file name"
        report.splits = f"{report.splits}; {drawn}" if report.splits else drawn
    labels, classes, num_classes = _classes(parts, report)
    report.used = {split: len(parts[split]) for split in SPLITS if parts.get(split)}
    by_split = {split: [e if e.name == name else replace(e, name=name) for name, e in part]
                for split, part in parts.items()}
    return Arranged(by_split, labels, classes, num_classes)


def _without_companions(entries: list[Entry], report: DataReport) -> list[Entry]:
    """Leave out masks and the like beside their picture: `a_mask.png` or `a.depth.png` beside `a.jpg`."""
    suspects = [e for e in entries if "." in (stem := e.name.rsplit(".", 1)[0].rpartition("/")[2])
                or stem.endswith("_mask")]
    if not suspects:
        return entries
    stems = {e.name.rsplit(".", 1)[0] for e in entries}

    def accompanies(name: str) -> bool:
        stem = name.rsplit(".", 1)[0]
        if stem.endswith("_mask") and stem.removesuffix("_mask") in stems:
            return True
        base, dot, middle = stem.rpartition(".")
        return bool(dot) and "/" not in middle and is_companion(middle) and base in stems

    left_out = {(e.name, e.path) for e in suspects if accompanies(e.name)}
    report.leave_out("masks and maps beside their picture", *sorted(name for name, _ in left_out))
    return [e for e in entries if (e.name, e.path) not in left_out] if left_out else entries


def _strip_common_folder(items: list[Item]) -> list[Item]:
    while items and (top := items[0][0].partition("/")[0] + "/") and all(n.startswith(top) for n, _ in items):
        items = [(name[len(top) :], e) for name, e in items]
    return items


def _tops(items: Iterable[Item]) -> set[str]:
    """The outermost folders."""
    return {name.partition("/")[0] for name, _ in items if "/" in name}


def _without_masks(items: list[Item], report: DataReport) -> list[Item]:
    """Leave out folders of masks and labels at the top; where there is a folder `images`, everything beside it."""
    tops = _tops(items)
    masks = mask_folders(tops)
    if not masks and "images" not in tops:
        return items
    kept, in_masks, beside = [], [], []
    for name, e in items:
        top, slash, _ = name.partition("/")
        if slash and top in masks:
            in_masks.append(name)
        elif "images" in tops and not name.startswith("images/"):
            beside.append(name)
        else:
            kept.append((name, e))
    report.leave_out(f"in folders of masks or labels ({listed(sorted(masks))})", *in_masks)
    report.leave_out("beside the folder images", *beside)
    return kept


def _split(items: list[Item], report: DataReport) -> dict[str, list[Item]]:
    """The pictures by split, as far as folders say; all are "train" where none does."""
    tops = _tops(items)
    splits = splits_among(tops)
    inner = {name.split("/")[1] for name, _ in items if name.count("/") > 1}
    nested = {} if splits or not all(name.count("/") > 1 for name, _ in items) else splits_among(inner)
    parts: dict[str, list[Item]] = {}
    outside = []
    if not splits and not (nested and inner == set(nested)):
        odd = [name for name in sorted(tops) if odd_class(name) == "a split"]
        if odd:
            report.note(f"the folder {odd[0]} looks like a split, but no folder beside it is another one; taken as "
                        "a class")
        return {"train": items}
    for name, e in items:
        top, _, rest = name.partition("/")
        if splits and rest and top in splits:
            split, more = splits[top]
        elif nested:
            inside, _, last = rest.partition("/")
            split, more = nested[inside]
            rest = f"{top}/{last}"
        else:
            outside.append(name)
            continue
        parts.setdefault(split, []).append((f"{more}/{rest}" if _tells_apart(splits, more) else rest, e))
    report.leave_out("outside of the folders of splits", *outside)
    named = sorted((splits or nested).items(), key=lambda found: SPLITS.index(found[1][0]))
    report.splits = "by folders: " + ", ".join(f"{folder} is {split}" for folder, (split, _) in named)
    for split, part in parts.items():
        part = _without_masks(part, report)
        only_images = {folder.lower() for folder in _tops(part)} <= IMAGE_FOLDERS
        if only_images and any(name.count("/") > 1 for name, _ in part):
            part = _strip_common_folder(part)  # the folders below are the classes
        parts[split] = part
    return parts


def _tells_apart(splits: dict[str, tuple[str, str]], more: str) -> bool:
    """Whether what else the names of splits say are classes, as in trainA, trainB, testA and testB."""
    return bool(more) and len({rest for _, rest in splits.values()}) > 1


def _hold_out(items: list[Item]) -> tuple[list[Item], list[Item]]:
    """(train, validation)."""
    shares = [fraction("held out", name) for name, _ in items]
    order = sorted(range(len(items)), key=shares.__getitem__)
    num = sum(share < HELD_OUT for share in shares) or min(1, len(items) - 1)
    held = set(order[:num])
    return ([item for i, item in enumerate(items) if i not in held],
            [item for i, item in enumerate(items) if i in held])


def _classes(
    parts: dict[str, list[Item]], report: DataReport
) -> tuple[dict[str, np.ndarray], tuple[str, ...] | None, int]:
    """(labels by split, names of the classes or None, number of classes).

    Ids are names: those of the data are the classes 0 to n - 1 in their order, numbers by value and others as text.
    """
    by_files = any(e.label is not None for part in parts.values() for _, e in part)
    given: dict[str, list[str | int | None]] = {
        split: [e.label if by_files else _folder_class(name) for name, e in part] for split, part in parts.items()}
    found = {label for part in given.values() for label in part if label is not None}
    source = ".cls and .json files" if by_files else "folders"
    ids = sorted(label for label in found if isinstance(label, int))
    names: tuple[str, ...] | None
    if found and len(ids) == len(found) and ids == list(range(len(ids))):
        numbers: dict[str | int | None, int] = {label: label for label in ids}
        names, num = None, len(ids)
        report.classes = f"{num}, ids 0 to {num - 1} of {source}"
    else:
        ordered: list[str | int] = [*ids] if len(ids) == len(found) else sorted(found, key=str)
        if len(ids) != len(found):
            ordered = list(dict.fromkeys(map(str, ordered)))
        numbers = {label: k for k, label in enumerate(ordered)}
        given = {split: [label if label in numbers or label is None else str(label) for label in part]
                 for split, part in given.items()}
        names, num = tuple(map(str, ordered)), len(ordered)
        report.classes = f"{num:,} by {source}: {listed(names)}" if num else "none"
    if names is not None and num < 2:  # a single class carries no information
        if num:
            report.classes = f"none; the only one is {names[0]!r}, by {source}"
        return {split: np.full(len(part), -1, np.int64) for split, part in parts.items()}, None, 0
    labels = {split: np.array([-1 if label is None else numbers[label] for label in part], np.int64)
              for split, part in given.items()}
    if names is not None and ids:
        report.class_ids = names
        report.note(f"class ids of the data are taken as names: {listed(names, 4)} are classes 0 to {num - 1}")
        if ids[0] < 0:
            report.note(f"the id {ids[0]} is a class like the others; pictures without a class have no .cls file")
    _note_odd(names, labels, num, sum(map(len, parts.values())), report)
    return labels, names, num


def _folder_class(name: str) -> str | None:
    return name.split("/", 1)[0] if "/" in name else None


def _note_odd(
    names: tuple[str, ...] | None, labels: dict[str, np.ndarray], num: int, total: int, report: DataReport
) -> None:
    """Notes on classes that may be none, and on those that cannot be learned."""
    for name in names or ():
        if odd := odd_class(name):
            report.note(f"the class {name!r} looks like {odd}; rename or move the folder if it is one")
    if num > 2 and num == total:
        report.note("every picture has a class of its own")
    counts = Counter(labels.get("train", np.empty(0, np.int64)).tolist())
    missing = [k for k in range(num) if not counts[k]]
    if missing:
        shown = [names[k] if names else str(k) for k in missing]
        report.note(f"{len(missing)} classes have no training picture: {listed(shown)}")
    if counts[-1]:
        report.note(f"{counts[-1]:,} training pictures have no class")
