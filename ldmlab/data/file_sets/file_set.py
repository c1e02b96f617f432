"""A data set of files: its pictures by split and class, the report on it, and its identity.

Nothing slow is imported: commands that only need the name of a data set's records list its files and hash them.
"""

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from ldmlab.data.dataset_names import SPLITS, check_data_name, expand_shards, is_picture, tars_in
from ldmlab.data.file_lists import Entry, scan_folder, scan_tar
from ldmlab.data.file_sets.arrangement import Arranged, arrange
from ldmlab.data.listing.content import cache_file_of, content_digests
from ldmlab.data.listing.names import file_label, printable, shard_split
from ldmlab.data.listing.report import DataReport
from ldmlab.data.listing.walk import walk
from ldmlab.progress import Progress


@dataclass
class FileSet:
    """The pictures of a folder, a tar file or shards. `roots` are the folder or the tar files."""

    name: str
    roots: list[str]
    arranged: Arranged
    report: DataReport
    cache_file: Path | None = None
    _digests: dict[str, bytes] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, kind: str, path: str, cache_dir: str | Path | None = None) -> "FileSet":
        """List the files; ValueError where there is no picture, or a tar file is none."""
        where = Path(path).expanduser()
        name = printable(where.resolve().name).removesuffix(".tar")
        report = DataReport(name, kind)
        if kind == "folder":
            roots, entries = [str(where)], scan_folder(where, report)
        else:
            roots = [str(tar) for tar in tars_in(where)] if where.is_dir() else expand_shards(str(where))
            entries = _scan_shards(roots, report)
            if where.is_dir():
                beside = [found.name for found in walk(where, is_picture) if found.stat is not None]
                report.found += len(beside)
                report.leave_out("pictures beside the tar files, which hold more", *sorted(beside))
        return cls(name, roots, arrange(entries, path, report), report, cache_file_of(str(where), cache_dir))

    @cached_property
    def has_maps(self) -> bool:
        """Whether any picture has a label map."""
        return any(e.map for e in self.arranged.all_entries)

    def _hash(self, progress: Progress | None = None) -> dict[str, bytes]:
        """sha256 of every picture and map, by file and offset."""
        if not self._digests:
            pictures = self.arranged.all_entries
            entries = [*pictures, *(e.map for e in pictures if e.map)]
            places = [(e.path, e.offset, e.length, f"{e.stamp} {e.file_id}") for e in entries]
            digests = content_digests(places, self.cache_file, progress)
            self._digests = {_place(e): digest for e, digest in zip(entries, digests, strict=True)}
            self._note_copies()
        return self._digests

    def identity(self, split: str, progress: Progress | None = None) -> str:
        """sha256 of names, bytes, labels and maps of a split's pictures; also sets the report's fingerprint.

        It does not depend on paths and times, so a copy of the data has the same.
        """
        digests = self._hash(progress)
        found = {part: self._split_identity(part, digests) for part in SPLITS if self.arranged.by_split.get(part)}
        self.report.fingerprint = hashlib.sha256("\n".join(f"{k} {v}" for k, v in found.items()).encode()).hexdigest()
        return found[split]

    def _split_identity(self, split: str, digests: dict[str, bytes]) -> str:
        arranged = self.arranged
        digest = hashlib.sha256(f"content\0{arranged.classes}\n".encode())
        for e, label in zip(arranged.by_split[split], arranged.labels[split].tolist(), strict=True):
            digest.update(b"%s\0%s\0%d\n" % (e.name.encode(), digests[_place(e)], label))
        for e in arranged.all_entries if self.has_maps else ():  # of all splits, since they share the set of labels
            digest.update(b"%s\0%s\n" % (e.name.encode(), digests[_place(e.map)] if e.map else b""))
        return digest.hexdigest()

    def former_identity(self, split: str) -> str:
        """The identity by which earlier versions filed models: names, sizes, times of modification and labels."""
        digest = hashlib.sha256()
        for e, label in zip(self.arranged.by_split[split], self.arranged.labels[split].tolist(), strict=True):
            digest.update(f"{e.name}\0{e.length}\0{e.stamp}\0{label}\n".encode())
        for e in self.arranged.all_entries if self.has_maps else ():
            digest.update(f"{e.name}\0{(e.map.length, e.map.stamp) if e.map else None}\n".encode())
        return digest.hexdigest()

    def _note_copies(self) -> None:
        parts = {split: {self._digests[_place(e)] for e in part} for split, part in self.arranged.by_split.items()}
        copies = sum(map(len, self.arranged.by_split.values())) - len(set().union(*parts.values()))
        if copies:
            self.report.note(f"{copies:,} pictures have the bytes of another one, and are used as well")
        shared = parts.get("train", set()) & (parts.get("validation", set()) | parts.get("test", set()))
        if shared:
            self.report.note(f"{len(shared):,} training pictures are in validation or test, too, byte for byte")


def _place(entry: Entry) -> str:
    return f"{entry.offset} {entry.path}"


def _scan_shards(tars: list[str], report: DataReport) -> list[Entry]:
    """The pictures of shards; where shards are named after their splits, below a folder of that name."""
    splits = [shard_split(Path(tar).stem) for tar in tars]
    by_name = len({split for split in splits if split}) > 1
    entries: list[Entry] = []
    for tar, split in zip(tars, splits, strict=True):
        found = scan_tar(tar, report)
        entries += [replace(e, name=f"{split}/{e.name}") for e in found] if by_name and split else found
    return entries


def data_label(data: str, cache_dir: str | Path | None = None) -> str:
    """The name under which records and figures of a data set are filed: that of files ends in their fingerprint.

    ValueError for data that does not exist.
    """
    kind = check_data_name(data)
    if kind not in ("folder", "tar"):
        return data
    files = FileSet.open(kind, data, cache_dir)
    files.identity(next(iter(files.report.used)))
    return file_label(files.name, files.report.fingerprint)
