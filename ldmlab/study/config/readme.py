"""README.md's table of notebooks, written from their rows: `make readme`."""

import sys
from collections.abc import Iterable
from pathlib import Path

from ldmlab.atomic import atomic_write
from ldmlab.study.config.notebooks import NOTEBOOKS, Notebook
from ldmlab.study.config.paths import PACKAGE

README = PACKAGE.parent / "README.md"
BEGIN = "<!-- The table of notebooks: `make readme` writes it from ldmlab/study/config/notebooks.py. -->\n"
END = "<!-- End of the table of notebooks. -->\n"


def notebook_table(rows: Iterable[Notebook] = NOTEBOOKS.values()) -> str:
    """The notebooks as a table in Markdown, a line each."""
    lines = ["| notebook | paper | minutes (`laptop`) | number to expect |", "| --- | --- | ---: | --- |"]
    lines += [f"| [{row.name}]({row.path}): {row.title} | {row.paper} | {row.minutes} | {row.expect} |" for row in rows]
    return "".join(f"{line}\n" for line in lines)


def with_table(text: str) -> str:
    """A README with the present table between its two marks; ValueError where it lacks one of them."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"README.md needs two lines with the table of notebooks between them:\n{BEGIN}{END}")
    return f"{before}{begin}\n{notebook_table()}\n{end}{after}"


def write_readme(path: Path = README) -> bool:
    """Bring the table in a README up to date; returns whether anything changed."""
    text = path.read_text(encoding="utf-8")
    new = with_table(text)
    if new != text:
        atomic_write(path, new.encode())
    return new != text


if __name__ == "__main__":
    sys.stdout.write(f"{README.name}: {'table of notebooks rewritten' if write_readme() else 'up to date'}\n")
