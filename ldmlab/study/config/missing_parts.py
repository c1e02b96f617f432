"""What a row of the table of notebooks promises and the project lacks."""

import ast
from pathlib import Path

from ldmlab.study.config.notebooks import Notebook
from ldmlab.study.config.parameters import PARAMETERS
from ldmlab.study.config.paths import PACKAGE


def missing_parts(row: Notebook, root: Path = PACKAGE.parent) -> list[str]:
    """A sentence for each part of a notebook that is missing in the checkout `root`; empty where it is complete.

    Modules are parsed and not imported, so that this needs no torch and can check figures.
    """
    found = [f"{path} is missing: {what}." for path, what in (
        (row.path, "the notebook"), (row.solution, "the solutions of its exercises"),
    ) if not (root / path).is_file()]
    found += [f"parameter {name!r} is not defined: add it to PARAMETERS in ldmlab/study/config/parameters.py."
              for name in row.parameters if name not in PARAMETERS]
    found += [f"display_only names {name!r}, which is not a parameter of this notebook."
              for name in row.display_only if name not in row.parameters]
    if row.experiment and _source(root, module := f"ldmlab.experiments.{row.experiment}") is None:
        found.append(f"{_path(module)} is missing: the experiment.")
    found += _undefined(root, row.run_class, "its run_class")
    for figure in row.figures:
        found += _undefined(root, f"ldmlab.figures.{figure.function}", f"the function of figure {figure.name!r}")
        if figure.metric not in row.metrics:
            found.append(f"metric {figure.metric!r} of figure {figure.name!r} is unknown: add it to the row's metrics, "
                         "with the entries of the protocol that must be equal.")
    return found


def _undefined(root: Path, dotted: str, what: str) -> list[str]:
    """A sentence if a module does not define the function or class that `dotted` names."""
    module, _, name = dotted.rpartition(".")
    source = _source(root, module)
    if source is None:
        return [f"{_path(module)} is missing: it has to define {name}, {what}."]
    defined = {node.name for node in ast.parse(source).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    return [] if name in defined else [f"{_path(module)} does not define {name}, {what}."]


def _path(module: str) -> str:
    return f"{module.replace('.', '/')}.py"


def _source(root: Path, module: str) -> str | None:
    path = root / _path(module)
    return path.read_text(encoding="utf-8") if path.is_file() else None
