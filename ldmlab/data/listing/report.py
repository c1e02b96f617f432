"""What a set of pictures is: what was found, used and left out, how it was understood, and its fingerprint."""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ldmlab.data.listing.names import printable

SHOWN = 3  # names given of each group


@dataclass
class Named:
    """How often something was met, and the names of the first few files or pictures where it was."""

    count: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, names: Iterable[str]) -> None:
        """Count these; a name that is counted twice is listed once, and an empty one is not listed."""
        for name in map(printable, names):
            self.count += 1
            if name and name not in self.names and len(self.names) < SHOWN:
                self.names.append(name)

    @property
    def listed(self) -> str:
        """The names in brackets, after a space; "" for none."""
        more = ", ..." if self.count > len(self.names) else ""
        return f" ({', '.join(self.names)}{more})" if self.names else ""

    def __str__(self) -> str:
        return f"{self.count:,}{self.listed}"


@dataclass
class DataReport:
    """What a data set holds and how it was understood.

    Every file found is counted once: `found` is the sum of `used`, `beside` and `left_out`. `folders` counts the
    folders that were not entered, whose files are not counted.
    """

    name: str = ""
    kind: str = ""  # scenes, folder, tar or torchvision
    found: int = 0
    used: dict[str, int] = field(default_factory=dict)  # pictures of each split
    beside: dict[str, int] = field(default_factory=dict)  # label maps, texts and the like that belong to pictures
    left_out: dict[str, Named] = field(default_factory=dict)  # by reason
    folders: Named = field(default_factory=Named)
    splits: str = ""
    classes: str = ""
    class_ids: tuple[str, ...] = ()  # the data's own id of class 0, 1, ..., where they differ
    annotations: list[str] = field(default_factory=list)  # filled in by the readers of annotations
    depth: str = ""
    notes: list[str] = field(default_factory=list)  # what may have been misunderstood
    fingerprint: str = ""  # of the content of all pictures that are used

    def leave_out(self, reason: str, *names: str) -> None:
        """Count files that are not used, with their names."""
        if names:
            self.left_out.setdefault(reason, Named()).add(names)

    def count_beside(self, what: str, count: int = 1) -> None:
        """Count files that belong to pictures."""
        if count:
            self.beside[what] = self.beside.get(what, 0) + count

    def set_unreadable(self, split: str, names: Sequence[str]) -> None:
        """Move pictures of a split that cannot be decoded from the used to those left out, once."""
        reason = f"unreadable, {split}"
        if names and reason not in self.left_out:
            self.leave_out(reason, *names)
            self.used[split] = self.used.get(split, 0) - len(names)

    def note(self, sentence: str) -> None:
        """Add a sentence, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    @property
    def num_left_out(self) -> int:
        """Files that are neither used nor belong to a picture."""
        return sum(group.count for group in self.left_out.values())

    def rows(self) -> list[tuple[str, str]]:
        """(what, value) of each row, in words."""
        used = ", ".join(f"{count:,} {split}" for split, count in self.used.items())
        rows = [("used", f"{sum(self.used.values()):,} pictures: {used}" if used else "no picture")]
        if self.found:
            rows.insert(0, ("found", f"{self.found:,} files"))
        rows += [("beside them", f"{count:,} {what}") for what, count in self.beside.items()]
        rows += [("left out", f"{reason}: {group}") for reason, group in self.left_out.items()]
        if self.folders.count:
            rows.append(("not entered", f"hidden and system folders: {self.folders}"))
        rows += [("splits", self.splits), ("classes", self.classes)]
        rows += [("annotations", line) for line in self.annotations]
        rows += [("pictures", self.depth), ("fingerprint", self.fingerprint[:16])]
        rows += [("note", sentence) for sentence in self.notes]
        return [(what, value) for what, value in rows if value]

    def __str__(self) -> str:
        return "\n".join([f"data {self.name}:", *(f"  {what + ':':<13}{value}" for what, value in self.rows())])

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What IPython shows where it shows no tables, and papermill's log."""
        printer.text(str(self))

    def _repr_html_(self) -> str:
        """The table that a notebook shows."""
        rows = "".join(f"<tr><td style='text-align:left'>{html.escape(what)}</td>"
                       f"<td style='text-align:left'>{html.escape(value)}</td></tr>" for what, value in self.rows())
        return f"<table><caption style='text-align:left'>data {html.escape(self.name)}</caption>{rows}</table>"

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON, for a record; without what is empty."""
        content: dict[str, Any] = {
            "name": self.name, "kind": self.kind, "found": self.found, "used": self.used, "beside": self.beside,
            "left_out": {reason: [g.count, *g.names] for reason, g in self.left_out.items()},
            "folders": [self.folders.count, *self.folders.names] if self.folders.count else [],
            "splits": self.splits, "classes": self.classes, "class_ids": list(self.class_ids),
            "annotations": self.annotations, "depth": self.depth, "notes": self.notes, "fingerprint": self.fingerprint,
        }
        return {name: value for name, value in content.items() if value}


def listed(names: Sequence[str], num: int = 8) -> str:
    """The first names of a sequence, with commas."""
    return ", ".join(map(printable, names[:num])) + (f", ... ({len(names):,})" if len(names) > num else "")
