"""The project as a whole: its notebooks, rooms, style, and what it takes to install it."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ldmlab

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def tracked(*patterns: str) -> list[Path]:
    """Files that git knows, or would take; all files where there is no git."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *patterns]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [path for name in sorted(set(done.stdout.split("\0"))) if name and (path := ROOT / name).is_file()]


def tool(*command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_data_flows_one_way():
    """The rooms import only from the rooms below them (contracts in pyproject.toml)."""
    from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), cache_dir=None) == EXIT_STATUS_SUCCESS


def test_style():
    """ruff's pinned rules, notebooks included."""
    tool("ruff", "check", "--no-cache", ".")


@pytest.mark.long
def test_types():
    """mypy as pyproject.toml sets it up; the few exemptions are single lines that name the complaint and the reason."""
    tool("mypy")
    ignores = [f"{path.relative_to(ROOT)}:{number}" for path in tracked("ldmlab/*.py")
               for number, line in enumerate(path.read_text().splitlines(), 1) if "# type: ignore" in line
               if not re.search(r"# type: ignore\[[a-z, -]+\]  # \w", line)]
    assert ignores == []


def test_an_executed_notebook_that_is_committed_is_a_reference():
    """Executed copies live under results/reference, small, and ran to their end."""
    for path in tracked("*.ipynb"):
        if path.parent in (ROOT / "notebooks", ROOT / "notebooks" / "solutions"):
            continue
        assert (ROOT / "results" / "reference") in path.parents, path
        outputs = [o for cell in json.loads(path.read_text())["cells"] for o in cell.get("outputs", [])]
        assert all(output["output_type"] != "error" for output in outputs), path


def test_tracked_files_are_small():
    """Nobody clones checkpoints; the tour's denoiser, in half precision, is the one file that needs more than 2 MB."""
    needed = {"tour-diffusion.safetensors": 2.5}
    assert [path for path in tracked() if path.stat().st_size > needed.get(path.name, 2) * 2**20] == []


def test_no_file_names_a_registry_or_a_machine():
    """Installs go where the user's tools point; paths are relative."""
    registry = re.compile(r"index-url|find-links|pypi\.org/simple|files\.pythonhosted|download\.pytorch\.org/whl")
    machine = re.compile(r"(?<![\w./~}])/(home|root|Users|work|opt|mnt|workspace)/\w")
    bad, reading = [], ("ldmlab/checkpoints/downloads/registry.py", "tests/checkpoints/test_fetch_lpips.py")
    for path in tracked():
        if path.relative_to(ROOT).as_posix() in reading:
            continue  # reads where the user's tools point, and knows where they point by default
        if path == Path(__file__).resolve() or path.suffix in (".safetensors", ".png", ".jpg", ".npz", ".npy", ".tar"):
            continue
        for number, line in enumerate(path.read_text(errors="ignore").splitlines(), 1):
            if registry.search(line) or machine.search(line):
                bad.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert bad == []


def test_environment_yml_installs_the_project():
    """conda brings Python and pip, pip brings the project: one list of dependencies, in pyproject.toml."""
    import yaml
    from packaging.specifiers import SpecifierSet

    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PYPROJECT["project"]["name"]
    *conda, pip = environment["dependencies"]
    (python,) = [entry for entry in conda if entry.startswith("python")]
    supported = SpecifierSet(PYPROJECT["project"]["requires-python"])
    chosen = SpecifierSet(python.removeprefix("python"))
    versions = [f"3.{minor}" for minor in range(8, 20)]
    assert [v for v in versions if v in chosen] == ["3.11", "3.12", "3.13"]
    assert all(v in supported for v in versions if v in chosen)
    (entry,) = pip["pip"]
    match = re.fullmatch(r"-e \.\[([\w,]+)\]", entry)
    assert match and set(match[1].split(",")) <= set(PYPROJECT["project"]["optional-dependencies"])


def test_citation_and_licence_name_the_project():
    """CITATION.cff parses, cites the paper, and agrees with the package; pyproject.toml reads the version from it."""
    import yaml

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "ldmlab.__version__"}
    assert citation["version"] == ldmlab.__version__ and citation["license"] == "MIT"
    assert citation["references"][0]["identifiers"][0]["value"] == "arXiv:2112.10752"
    assert (ROOT / "LICENSE").read_text().startswith("MIT License\n\nCopyright (c) 2026 The ldmlab authors")


def test_ci_runs_the_readme_s_test_command():
    """What the README promises is what is checked."""
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    readme = (ROOT / "README.md").read_text()
    assert "\nmake\n" in readme and "\nmake test\n" in readme


def test_readme_links_lead_somewhere():
    """Every relative link of the README is a file of the project."""
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text())
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []
