"""What was found when annotations were read: files, matches, and what was left out, each with up to three names."""

from dataclasses import dataclass, field

from ldmlab.data.listing.report import SHOWN, Named


@dataclass
class AnnotationReport:
    """Of one split: the files that were read, how many pictures have captions and boxes, and what was left out.

    `left_out` counts annotations and text files that are not used, by reason; `notes` counts what was changed or taken
    for granted; `unread` are JSON and CSV files that were seen and belong to no picture.
    """

    files: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    pictures: int = 0
    with_captions: int = 0
    with_boxes: int = 0
    left_out: dict[str, Named] = field(default_factory=dict)
    notes: dict[str, Named] = field(default_factory=dict)

    def clear(self) -> None:
        """Forget what was counted."""
        vars(self).update(vars(AnnotationReport()))

    def leave_out(self, reason: str, name: str) -> None:
        """Count an annotation of this picture, or in this file, that is not used."""
        self.left_out.setdefault(reason, Named()).add([name])

    def note(self, what: str, name: str) -> None:
        """Count a picture or file of which `what` is said."""
        self.notes.setdefault(what, Named()).add([name])

    def found(self) -> list[str]:
        """Lines on what was read and how; none where there was nothing to read."""
        lines = []
        if self.files or self.with_captions or self.with_boxes:
            source = f", from {_listed(self.files)}" if self.files else ""
            lines.append(f"{self.with_captions} of {self.pictures} pictures have a caption, {self.with_boxes} have "
                         f"boxes{source}")
        lines += [f"{met.count} {what}{met.listed}" for what, met in sorted(self.notes.items())]
        if self.unread:
            lines.append(f"{len(self.unread)} files that belong to no picture are not read: {_listed(self.unread)}; "
                         "COCO's files are annotations/instances*.json, stuff*.json and captions*.json")
        return lines

    def missing(self) -> str:
        """What was left out, with counts and names, in one sentence; "" for nothing."""
        return ", ".join(f"{met.count} {why}{met.listed}" for why, met in sorted(self.left_out.items()))

    def lines(self) -> list[str]:
        """The whole report."""
        return [*self.found(), *([f"left out: {self.missing()}"] if self.left_out else [])]


def short_name(path: str) -> str:
    """The last folder and the file name of a path."""
    return "/".join(path.split("/")[-2:])


def _listed(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
