"""Answers of raters, one row each in a CSV that several processes may write to [LDM v2, App. E.3.6].

Raters are identified by a nickname or a random name only.
"""

import csv
import io
import math
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import get_type_hints

from filelock import FileLock

from ldmlab.experiments.user_study.questions import BLOCK

RATER = re.compile(r"[\w-]{1,32}")
_HASH = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True)
class Answer:
    """A row of the CSV. Hashes come last and have a fixed length, so that truncated rows are invalid.

    ValueError for values out of range.
    """

    time: str  # UTC
    rater: str
    question: str
    task: str
    item: int
    left: str
    right: str
    answer: str
    seconds: float  # from seeing the pictures to the answer
    exposure_s: float  # how long the pictures were shown
    seed: int
    left_hash: str
    right_hash: str

    def __post_init__(self) -> None:
        known = {"task": (self.task, BLOCK), "answer": (self.answer, ("left", "right"))}
        wrong = [f"{name} = {value!r}" for name, (value, accepted) in known.items() if value not in accepted]
        wrong += [f"{name} = {value!r}" for name in ("left_hash", "right_hash")
                  if not _HASH.fullmatch(value := getattr(self, name))]
        wrong += [f"{name} = {value}" for name in ("seconds", "exposure_s")
                  if not (math.isfinite(value := getattr(self, name)) and value >= 0)]
        wrong += [] if RATER.fullmatch(self.rater) else [f"rater = {self.rater!r}"]
        if wrong:
            raise ValueError(", ".join(wrong))

    @property
    def winner(self) -> str:
        """The method that was preferred."""
        return self.left if self.answer == "left" else self.right

    @property
    def loser(self) -> str:
        """The method that was not preferred."""
        return self.right if self.answer == "left" else self.left


COLUMNS = tuple(f.name for f in fields(Answer))


def append_answer(path: Path, answer: Answer) -> None:
    """Append a row and flush it to disk; concurrent writers are serialized by a file lock.

    A row truncated by a crash is terminated first, and remains an invalid row.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    row = io.StringIO()
    writer = csv.writer(row, lineterminator="\n")
    with FileLock(f"{path}.lock"), open(path, "ab+") as file:
        if file.tell() == 0:
            writer.writerow(COLUMNS)
        else:
            file.seek(-1, os.SEEK_END)
            row.write("" if file.read(1) == b"\n" else "\n")
        writer.writerow(asdict(answer).values())
        file.write(row.getvalue().encode())
        file.flush()
        os.fsync(file.fileno())


def read_answers(path: Path) -> tuple[list[Answer], list[str]]:
    """The answers in a file, and messages on its invalid rows; two empty lists if there is no file.

    Of repeated answers of a rater to a question the first counts. ValueError if the file is no CSV of answers.
    """
    if not path.exists() or not (lines := path.read_text(errors="replace").splitlines()):
        return [], []
    if next(csv.reader(lines[:1])) != list(COLUMNS):
        raise ValueError(f"{path} is no file of answers: its first line must be {','.join(COLUMNS)}; got "
                         f"{lines[0][:80]!r}")
    answers, problems = [], []
    first: dict[tuple, int] = {}
    for number, line in enumerate(lines[1:], 2):
        try:
            answer = _parse(next(csv.reader([line]), []))
        except (ValueError, csv.Error) as error:
            problems.append(f"{path.name}, line {number}, is left out: {error}")
            continue
        key = answer.rater, answer.question, tuple(sorted((answer.left_hash, answer.right_hash)))
        if key in first:
            problems.append(f"{path.name}, line {number}, is left out: answered in line {first[key]} already")
            continue
        first[key] = number
        answers.append(answer)
    return answers, problems


def _parse(cells: Sequence[str]) -> Answer:
    if len(cells) != len(COLUMNS):
        raise ValueError(f"{len(cells)} cells instead of {len(COLUMNS)}")
    types = get_type_hints(Answer)
    return Answer(**{name: types[name](cell) for name, cell in zip(COLUMNS, cells, strict=True)})
