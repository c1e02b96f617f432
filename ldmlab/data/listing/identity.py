"""The identity of a set of pictures: its fingerprint, and what is filed under it."""

import hashlib
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from ldmlab.data.listing.names import file_label
from ldmlab.progress import Progress


class Identified:
    """A set of pictures with a fingerprint: of the content of its `_source`, and of how pictures are prepared."""

    _source: Any  # a `Source`
    _preparation: dict[str, Any]
    name: str

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the bytes of the split's pictures, their names and labels, and of how they are prepared.

        Files are read for it at its first use, unless their hashes are cached.
        """
        return self.identify()

    def identify(self, progress: Progress | None = None) -> str:
        """The fingerprint, with the progress of reading the files for it."""
        if "fingerprint" not in self.__dict__:
            self.__dict__["fingerprint"] = self._with_preparation(self._source.identity(progress=progress))
        return self.__dict__["fingerprint"]

    @cached_property
    def former_fingerprint(self) -> str:
        """The fingerprint by which earlier versions filed what they made of this set: of times instead of bytes."""
        former = self._source.former_identity
        return self._with_preparation(former()) if former else self.fingerprint

    def _with_preparation(self, identity: str) -> str:
        content = json.dumps({"pictures": identity, **self._preparation}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def find(self, place: Callable[[str], Path]) -> Path:
        """`place(fingerprint)`; that of the former fingerprint where only this one exists."""
        path = place(self.fingerprint)
        if self._source.former_identity is None or path.exists():
            return path
        former = place(self.former_fingerprint)
        return former if former.exists() else path

    @property
    def label(self) -> str:
        """The name under which records and figures of the data are filed: that of files ends in their fingerprint."""
        if self._source.files is None:
            return self.name
        self.identify()
        return file_label(self.name, self._source.report.fingerprint)
