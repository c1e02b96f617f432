"""Departures from the paper and the released code, collected from "Deviation:" marks in docstrings and comments."""

import ast
import io
import tokenize
from pathlib import Path

import pandas as pd

from ldmlab.study.config.paths import PACKAGE


def deviations(folder: Path = PACKAGE) -> pd.DataFrame:
    """A table of all marked departures in the Python files under `folder`, with file and line."""
    rows = []
    for path in sorted(folder.rglob("*.py")):
        for line, text in _texts(path.read_text()):
            for part in text.split("Deviation:")[1:]:
                sentence = " ".join(part.split("\n\n")[0].split())
                rows.append({"where": f"{path.relative_to(folder.parent)}:{line}", "deviation": sentence})
    return pd.DataFrame(rows, columns=["where", "deviation"])


def _texts(source: str) -> list[tuple[int, str]]:
    """Docstrings and blocks of comments with their first lines, in order."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (text := ast.get_docstring(node)):
            found.append((node.body[0].lineno, text))
    last = -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            text, line = token.string.lstrip("# "), token.start[0]
            if line == last + 1:
                found[-1] = (found[-1][0], f"{found[-1][1]} {text}")
            else:
                found.append((line, text))
            last = line
    return sorted(found)
