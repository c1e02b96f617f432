"""Every notebook runs from start to end at the smallest tier, and is committed as a reader wants to find it."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from ldmlab.study.config.notebooks import NOTEBOOKS
from ldmlab.study.records.record import load_records

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = sorted(NOTEBOOKS)
MOST_CELLS, MOST_LINES = 40, 150
STOPS = ("**Goals.**", "**Prerequisites.**", "| tier | machine | minutes", "papermill notebooks/", "## What matched",
         "## Exercises", "## References", "**Predict", "arXiv 2112.10752v2")


def read(name: str) -> nbformat.NotebookNode:
    """A notebook of the project."""
    return nbformat.read(FOLDER / f"{name}.ipynb", 4)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """One results folder for all notebooks, since later ones load what earlier ones trained."""
    return tmp_path_factory.mktemp("root")


def run(name: str, root: Path, *options: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """papermill as a user calls it, in a process of its own."""
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "--execution-timeout", "600",
               str(FOLDER / f"{name}.ipynb"), str(root / f"{name}.ipynb"), *options]
    environment = os.environ | {"LDMLAB_ROOT": str(root), "OMP_NUM_THREADS": "1"}
    for name_of_a_test in ("PYTEST_CURRENT_TEST", "MPLBACKEND"):  # a notebook shows progress and pictures
        environment.pop(name_of_a_test, None)
    return subprocess.run(command, cwd=cwd or root, env=environment, capture_output=True, text=True, timeout=900)


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_at_the_smallest_tier_and_leaves_a_record(name, root):
    """What a student opens works, from any folder, without a front end; and a run leaves its record."""
    done = run(name, root, "-p", "tier", "smoke")
    assert done.returncode == 0, done.stderr[-3000:]
    cells = nbformat.read(root / f"{name}.ipynb", 4).cells
    pictures = [output for cell in cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    assert len(pictures) >= 2
    os.environ["LDMLAB_ROOT"], before = str(root), os.environ.get("LDMLAB_ROOT")
    try:
        (record,) = load_records(name)
    finally:
        os.environ.pop("LDMLAB_ROOT") if before is None else os.environ.update(LDMLAB_ROOT=before)
    assert record.params["tier"] == "smoke" and record.metrics and record.wall_s > 0


@pytest.mark.parametrize("name", ["01_autoencoders", "04_tradeoff"])
def test_it_runs_without_a_first_stage(name, root):
    """f = 1 is part of the sweep: nothing to train first, no PSNR, and the figures still stand."""
    done = run(name, root, "-p", "tier", "smoke", "-p", "f", "1")
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("name", ["00_tour", "04_tradeoff"])
def test_wrong_parameters_stop_before_any_work(name, root, tmp_path):
    """papermill only warns of a name it does not know; the notebook says no, and what it accepts."""
    done = run(name, tmp_path, "-p", "f", "3", "-p", "fs", "8")
    assert done.returncode != 0
    assert "f = 3" in done.stderr and "fs = 8" in done.stderr and "one of 1 2 4 8 16 32" in done.stderr
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("name", NAMES)
def test_source_notebooks_are_clean(name):
    """No outputs, no counts, no one's private kernel; ids that do not change from build to build."""
    book = read(name)
    assert book.metadata == {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
                             "language_info": {"name": "python"}}
    for cell in book.cells:
        assert cell.get("execution_count") is None and not cell.get("outputs")
        assert re.fullmatch(r"[a-z][a-z-]*", cell.id)
        assert set(cell.metadata) <= {"tags"}


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_keep_to_their_spine_and_stay_short(name):
    """A reader finds the same stops in each; what grows long belongs into the library."""
    cells = read(name).cells
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    code = [line for cell in cells if cell.cell_type == "code" for line in cell.source.splitlines() if line.strip()]
    assert [stop for stop in STOPS if stop not in prose] == []
    assert len(cells) <= MOST_CELLS and len(code) <= MOST_LINES
    assert f"notebooks/{name}.ipynb" in prose
    assert (FOLDER.parent / NOTEBOOKS[name].solution).is_file()


@pytest.mark.parametrize("name", NAMES)
def test_the_parameters_cell_is_what_papermill_can_read(name):
    """Plain literals, one a line, with help; and exactly the parameters that the notebook accepts.

    papermill reads lines, not code: a second "=" or a union type hides a parameter from `--help-notebook`.
    """
    code = [cell for cell in read(name).cells if cell.cell_type == "code"]
    cell = code[0]
    assert cell.metadata.get("tags") == ["parameters"]
    for line in cell.source.splitlines():
        assert re.fullmatch(r"\w+: (int|float|str|bool) = [^=#]+  # [^=]+", line), line
    names = [node.target.id for node in ast.parse(cell.source).body]
    assert tuple(names) == NOTEBOOKS[name].parameters
    assert code[1].source.startswith("from ldmlab.study import start_run\n\nrun = start_run(")
