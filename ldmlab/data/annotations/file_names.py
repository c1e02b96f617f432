"""Which picture a file name in an annotation file means, however its folders were written."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import unquote

from ldmlab.data.listing.names import SPLIT_WORDS

Parts = tuple[str, ...]  # folders and file name


def name_parts(name: str) -> Parts:
    """Folders and file name of a path or URL; without drives, `.` and `..`, and with either kind of slash."""
    if "://" in name:
        name = re.split(r"[?#]", name)[0]
    parts = unicodedata.normalize("NFC", name).replace("\\", "/").split("/")
    return tuple(p for p in parts if p not in ("", ".", "..") and not re.fullmatch(r"[A-Za-z]+:", p))


def split_words(parts: Iterable[str]) -> frozenset[str]:
    """The splits that folders and file names speak of, such as `instances_val2017.json`."""
    return frozenset(SPLIT_WORDS[w] for part in parts for w in re.split(r"[^a-z]+", part.lower()) if w in SPLIT_WORDS)


class PictureNames:
    """The pictures of a data set by their paths, to find those that annotation files list."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = [name_parts(path) for path in paths]
        self._by_name: list[Mapping[str, list[int]]] = [defaultdict(list) for _ in range(3)]
        for number, parts in enumerate(self.paths):
            base, folded = parts[-1], parts[-1].casefold()
            for table, key in zip(self._by_name, (base, folded, folded.rpartition(".")[0]), strict=True):
                table[key].append(number)

    def find(self, parts: Parts, splits: frozenset[str]) -> tuple[list[int], int]:
        """The pictures that a listed name means, best first found, and how many last parts of their paths agree.

        Sought are the file name as it is written, in any case, without percent-encoding, and without its ending. Of
        several the one whose folders agree furthest is meant, then the one whose folders name the same split. None, or
        more than one picture, where the name decides nothing.
        """
        for given in filter(None, dict.fromkeys((parts, name_parts(unquote("/".join(parts)))))):
            base = given[-1]
            for table, key in zip(self._by_name, (base, base.casefold(), base.casefold()), strict=True):
                if key in table:
                    return self._nearest(table[key], given, splits)
        return [], 0

    def _nearest(self, numbers: list[int], parts: Parts, splits: frozenset[str]) -> tuple[list[int], int]:
        depth = {number: 1 + _common(parts[:-1], self.paths[number][:-1]) for number in numbers}
        if len(numbers) > 1:
            best = max((depth[n], self.agreement(n, splits)) for n in numbers)
            numbers = [n for n in numbers if (depth[n], self.agreement(n, splits)) == best]
        return numbers, depth[numbers[0]]

    def agreement(self, number: int, splits: frozenset[str]) -> int:
        """1 where the folders of a picture name one of these splits, -1 where they name others, 0 for no word."""
        words = split_words(self.paths[number][-4:-1])  # not of the folders that the data set lies in
        return 0 if not words or not splits else 1 if words & splits else -1


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    """How many last elements are equal, in any case."""
    count = 0
    for one, other in zip(reversed(a), reversed(b), strict=False):
        if one.casefold() != other.casefold():
            break
        count += 1
    return count
