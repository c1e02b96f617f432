"""Every notebook runs from start to end at the smallest tier, and is committed as a reader wants to find it."""

import ast
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import nbformat
import papermill
import pytest
from forked_kernel import ForkedKernel
from jupyter_client.provisioning import local_provisioner
from papermill.inspection import _infer_parameters
from papermill.iorw import load_notebook_node

from ldmlab.study.config.notebooks import NOTEBOOKS
from ldmlab.study.config.parameters import read_parameters
from ldmlab.study.records.record import load_records

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = sorted(NOTEBOOKS)
MOST_CELLS, MOST_LINES = 39, 149
STOPS = ("**Goals.**", "**Prerequisites.**", "| tier | machine | minutes", "papermill notebooks/", "## What matched",
         "## Exercises", "## References", "**Predict", "arXiv 2112.10752v2")


@cache
def read(name: str) -> nbformat.NotebookNode:
    """A notebook of the project."""
    return nbformat.read(FOLDER / f"{name}.ipynb", 4)


def default_f(name: str) -> str:
    """The f in the parameters cell; notebooks of one f load what the others trained, so that they run in one group."""
    value = re.search(r"^f: int = (\d+)", next(c.source for c in read(name).cells if c.cell_type == "code"), re.M)
    return value[1] if value else "8"


def in_group(name: str, f: str):
    """A notebook as a parameter of a test, to be run by the worker of that f."""
    return pytest.param(name, id=f"{name}-f{f}", marks=pytest.mark.xdist_group(f"notebooks f={f}"))


# The report, last, reads the records of its group.
RUNS = [in_group(name, default_f(name)) for name in NAMES]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """One results folder for the notebooks of a group, since later ones load what earlier ones trained."""
    return tmp_path_factory.mktemp("root")


@pytest.fixture
def run(root, monkeypatch):
    """Run a notebook by papermill in a kernel of its own, forked from a process that has imported torch already."""
    def launch(cmd, env, **options):  # without what pytest added: a notebook shows progress and pictures
        return ForkedKernel(cmd, {k: v for k, v in env.items() if k not in ("PYTEST_CURRENT_TEST", "MPLBACKEND")},
                            **options)

    monkeypatch.setattr(local_provisioner, "launch_kernel", launch)
    monkeypatch.setenv("LDMLAB_ROOT", str(root))
    return lambda name, **parameters: papermill.execute_notebook(
        FOLDER / f"{name}.ipynb", root / f"{name}.ipynb", parameters, cwd=root, progress_bar=False,
        execution_timeout=600)


def command(name: str, root: Path, *options: str) -> subprocess.CompletedProcess:
    """papermill as a user calls it, in a process of its own."""
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "--execution-timeout", "600",
               str(FOLDER / f"{name}.ipynb"), str(root / f"{name}.ipynb"), *options]
    environment = os.environ | {"LDMLAB_ROOT": str(root)}
    for name_of_a_test in ("PYTEST_CURRENT_TEST", "MPLBACKEND"):
        environment.pop(name_of_a_test, None)
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=900)


@pytest.mark.parametrize("name", RUNS)
def test_it_runs_at_the_smallest_tier_and_leaves_a_record(name, run):
    """What a student opens works, from any folder, without a front end; and a run leaves its record."""
    cells = run(name, tier="smoke").cells
    pictures = [output for cell in cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    assert len(pictures) >= 2
    (record,) = load_records(name)
    assert record.params["tier"] == "smoke" and record.metrics and record.wall_s > 0


@pytest.mark.parametrize("name", [in_group("01_autoencoders", "8")])
def test_it_runs_without_a_first_stage(name, run):
    """f = 1 is part of the sweep: nothing to train first, no PSNR, and the figures still stand."""
    run(name, tier="smoke", f=1)


@pytest.mark.parametrize("name", [in_group("04_tradeoff", "8")])
def test_the_command_runs_without_a_first_stage(name, root):
    """The same with README's command, in a process that imports everything itself."""
    done = command(name, root, "-p", "tier", "smoke", "-p", "f", "1")
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("name", ["04_tradeoff"])
def test_wrong_parameters_stop_before_any_work(name, tmp_path):
    """papermill only warns of a name it does not know; the notebook says no, and what it accepts."""
    done = command(name, tmp_path, "-p", "f", "3", "-p", "fs", "8")
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
    """Plain literals, one a line, with help; exactly the notebook's parameters, and defaults that it accepts.

    papermill reads lines, not code: a second "=" or a union type hides a parameter from `--help-notebook`.
    """
    code = [cell for cell in read(name).cells if cell.cell_type == "code"]
    cell = code[0]
    assert [c.metadata.get("tags", []) for c in code if "parameters" in c.metadata.get("tags", [])] == [["parameters"]]
    assert cell.metadata.get("tags") == ["parameters"]
    for line in cell.source.splitlines():
        assert re.fullmatch(r"\w+: (int|float|str|bool) = [^=#]+  # [^=]+", line), line
    names = [node.target.id for node in ast.parse(cell.source).body]
    assert tuple(names) == NOTEBOOKS[name].parameters
    found = _infer_parameters(load_notebook_node(str(FOLDER / f"{name}.ipynb")))
    assert [parameter.name for parameter in found] == names and all(parameter.help for parameter in found)
    namespace: dict = {}
    exec(cell.source, namespace)
    assert read_parameters(name, namespace).as_dict().items() <= namespace.items()
    assert code[1].source.startswith("from ldmlab.study import start_run\n\nrun = start_run(")
