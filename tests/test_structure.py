"""Short modules, small folders, and imports that hide no circle and load nothing slow early."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ldmlab"
MODULES = sorted(PACKAGE.rglob("*.py"))
ONE_A_NOTEBOOK = {"experiments", "figures"}  # these folders hold a module for each notebook
# Function-level imports of ldmlab, each with its reason.
LATE_IMPORTS = {
    ("__main__.py", "ldmlab.study.runs.storage"): "`python -m ldmlab --help` answers without it",
    ("checkpoints/commands.py", "ldmlab.checkpoints.downloads.download"): "torch, only when the command runs",
    ("checkpoints/commands.py", "ldmlab.checkpoints.downloads.lpips"): "torch, only when the command runs",
    ("checkpoints/commands.py", "ldmlab.checkpoints.downloads.manifest"): "torch, only when the command runs",
    ("checkpoints/commands.py", "ldmlab.checkpoints.inspection"): "torch, only when the command runs",
    ("study/config/conditions.py", "ldmlab.evaluation.judge"): "scipy, only where samples are judged",
    ("checkpoints/inspection.py", "ldmlab.checkpoints.diffusers_format.folders"): "only for diffusers folders",
    ("data/sources.py", "ldmlab.data.scenes"): "other data needs no renderer",
    ("data/sources.py", "ldmlab.data.scenes.scene"): "other data needs no renderer",
    ("evaluation/distances.py", "ldmlab.data.images"): "only a data set's moments need the data",
    ("study/runs/diffusion.py", "ldmlab.diffusion.training"): "a LightningModule, only for training",
    ("study/runs/first_stage.py", "ldmlab.first_stage.losses"): "only for training",
    ("study/runs/first_stage.py", "ldmlab.first_stage.training"): "a LightningModule, only for training",
    ("study/runs/run.py", "ldmlab.study.runs.scoring"): "scipy, only for scores",
    ("study/__init__.py", "ldmlab.atomic"): "filelock; `import ldmlab.study` stays quick",
    ("study/__init__.py", "ldmlab.study.config.paths"): "only to run",
    ("study/__init__.py", "ldmlab.study.config.notebooks"): "`import ldmlab.study` stays as quick as `import ldmlab`",
    ("study/__init__.py", "ldmlab.study.config.parameters"): "pydantic; `import ldmlab.study` stays quick",
    ("study/training/loop.py", "ldmlab.study.training.compiling"): "a subclass of Lightning's Callback",
}


def test_modules_stay_short():
    """No module of more than 350 lines: what grows longer is more than one thing."""
    lines = {path.relative_to(PACKAGE).as_posix(): len(path.read_text().splitlines()) for path in MODULES}
    assert {name: n for name, n in lines.items() if n > 350} == {}


def test_folders_stay_small():
    """No folder of more than a dozen modules, and every folder with modules is a package."""
    folders = {path.parent for path in MODULES}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []
    crowded = {folder.name: n for folder in folders - {PACKAGE / name for name in ONE_A_NOTEBOOK}
               if (n := sum(path.name not in ("__init__.py", "__main__.py") for path in folder.glob("*.py"))) > 12}
    assert crowded == {}


def late_imports(path: Path) -> set[str]:
    """Modules of ldmlab that functions of a file import."""
    found = set()
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.ImportFrom):
                    found.add(node.module or "")
                elif isinstance(node, ast.Import):
                    found |= {alias.name for alias in node.names}
    return {name for name in found if name.partition(".")[0] == "ldmlab"}


def test_no_function_hides_an_import_of_the_package():
    """A function-level import may hide a circle; those that postpone something slow are listed with their reason."""
    found = {(path.relative_to(PACKAGE).as_posix(), name) for path in MODULES for name in late_imports(path)}
    assert found - set(LATE_IMPORTS) == set()
    assert set(LATE_IMPORTS) - found == set(), "no longer there: remove these rows"


# --- What is imported when
SLOW = ("diffusers", "lpips", "pytorch_lightning", "scipy", "torch_fidelity", "torchmetrics", "torchvision",
        "transformers")


def imported(code: str, root: Path) -> set[str]:
    """Top-level modules that a fresh process has loaded after `code`."""
    script = f"{code}\nimport sys, json; print(json.dumps(sorted({{n.partition('.')[0] for n in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT,
                          env=os.environ | {"LDMLAB_ROOT": str(root), "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_package_imports_nothing_slow(tmp_path):
    """`import ldmlab` and `from ldmlab.study import start_run` answer at once."""
    loaded = imported("import ldmlab\nfrom ldmlab.study import start_run", tmp_path)
    assert loaded.isdisjoint({*SLOW, "torch", "numpy", "pandas", "matplotlib", "pydantic"})


def test_the_set_up_cell_imports_what_it_shows(tmp_path):
    """Notebook 04's set-up and imports wait for torch, pandas and matplotlib, and not for what training needs."""
    cells = json.loads((ROOT / "notebooks" / "04_tradeoff.ipynb").read_text())["cells"]
    parameters, setup, imports = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"][:3]
    assert "start_run(" in setup and "record_tradeoff" in imports
    imports = "\n".join(line for line in imports.splitlines() if line.startswith(("import ", "from ")))
    loaded = imported("\n".join((parameters, setup, imports)), tmp_path)
    assert "torch" in loaded and loaded.isdisjoint(SLOW)
