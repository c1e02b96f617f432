"""README and CONTRIBUTING.md are held to the code: what they list exists, and their examples run."""

import doctest
import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README, CONTRIBUTING = ((ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md"))
TREE = re.search(r"```\nldmlab/\n(.*?)```", README, re.DOTALL)[1]
LISTED = re.findall(r"^\| `(ldmlab(?:\.\w+)+)` \|", README, re.MULTILINE)


def named(dotted: str):
    """The function, class or method of this name."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise LookupError(dotted)


def test_the_tree_of_readme_is_the_tree_of_the_code():
    """A folder that is added or moved gets its line, at the place where it lies."""
    listed, parents = set(), {}
    for line in TREE.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        parents[depth] = name
        listed.add("".join(parents[level] for level in range(1, depth)) + name)
    packages = {f"{path.parent.relative_to(ROOT / 'ldmlab')}/" for path in (ROOT / "ldmlab").rglob("__init__.py")
                if path.parent != ROOT / "ldmlab"}
    modules = {path.name for path in (ROOT / "ldmlab").glob("*.py") if not path.name.startswith("__")}
    # Below experiments/, folders hold what one notebook needs.
    packages = {name for name in packages if not name.startswith("experiments/") or name == "experiments/"}
    assert listed == packages | modules


def test_readme_lists_twenty_functions():
    """What a user calls most, each once."""
    assert len(LISTED) == len(set(LISTED)) >= 20


@pytest.mark.parametrize("dotted", LISTED)
def test_the_example_of_a_listed_function_runs(dotted, tmp_path, monkeypatch):
    """A few lines in the docstring, imports aside, that do what they show."""
    monkeypatch.setenv("LDMLAB_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    function = named(dotted)
    names = {**vars(sys.modules[function.__module__])}  # as doctest runs a module: its own names are there
    (test,) = doctest.DocTestFinder(recurse=False).find(function, dotted, globs=names)
    lines = [line for example in test.examples for line in example.source.splitlines() if "import " not in line]
    assert 1 <= len(lines) <= 5 and any(example.want for example in test.examples)
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)


def sections() -> dict[str, str]:
    """The Python of each section of CONTRIBUTING.md, in order."""
    parts = re.split(r"^## (.+)$", CONTRIBUTING, flags=re.MULTILINE)[1:]
    code = {title: "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
            for title, text in zip(parts[::2], parts[1::2], strict=True)}
    return {title: lines for title, lines in code.items() if lines}


def test_contributing_has_the_five_examples():
    """A notebook, a condition, a sampler, a tier and a metric are one row each, and shown."""
    assert {"Add a notebook", "Add a condition", "Add a sampler", "Add a tier", "Add a metric"} <= set(sections())


@pytest.mark.parametrize("title", sections())
def test_an_example_of_contributing_runs(title, tmp_path):
    """Each section's Python, from top to bottom in a process of its own."""
    script = tmp_path / "example.py"
    script.write_text(sections()[title])
    done = subprocess.run([sys.executable, str(script)], cwd=ROOT, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "LDMLAB_ROOT": str(tmp_path), "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-3000:]


def test_readme_states_what_the_benchmarks_measured():
    """Its numbers are those of the committed tables."""
    readme = " ".join(README.split())
    faults, neighbour, gpu = (json.loads((ROOT / "results" / name).read_text()) for name in (
        "benchmarks/faults.json", "benchmarks/busy_neighbour.json", "gpu_day/gpu_day.json"))
    assert f"of {faults['tried']} tiny runs" in readme and f"{faults['identical']} gave the same numbers" in readme
    assert f"numbers at once and {faults['refused']}" in readme and faults["stuck"] == faults["silent"] == 0
    kept = {row["variant"]: row["over"]["before, undisturbed"]["ratio"] for row in neighbour["rows"]
            if row["unit"] == "pictures" and "before, undisturbed" in row["over"]}
    now, before = kept["now, beside"], kept["before, beside"]
    assert f"keeps {now:.2f} of its rate, where it kept {before:.2f}" in readme
    rows = [row for row in gpu["parts"]["3"]["result"]["rows"] if row["work"] == "training LDM-4"]
    best = max(rows, key=lambda row: row["per_s"])
    assert f"reached {100 * best['share_of_peak']:.0f} % of the measured peak" in readme
    assert f"{best['per_s']:.0f} pictures a second, {best['per_s'] / rows[0]['per_s']:.1f} times" in readme
    errors = [group["max_error"] for group in gpu["parts"]["1"]["result"]["golden, float32"]["groups"].values()]
    assert "within 4e-4 in float32" in readme and 3e-4 < max(errors) <= 4e-4


def test_notebook_16_states_what_the_ranking_suite_measured():
    """The numbers of its closing text are those of results/ranking."""
    orders = json.loads((ROOT / "results" / "ranking" / "scenes-32px.json").read_text())["orders"]
    cells = json.loads((ROOT / "notebooks" / "16_evaluation.ipynb").read_text())["cells"]
    (text,) = ("".join(cell["source"]) for cell in cells if cell["id"] == "matched")
    _, blurred, random = orders["order fd_lab, blurred, then no structure"]["values"]
    assert f"{random:.0f} against {blurred:.0f}" in text and random < blurred
    mosaic, phases = (orders[f"order kd_effnet, {family}"]["values"][-1] for family in (
        "linear autoencoder", "random phases"))
    assert f"worse ({round(mosaic, -1):.0f})" in text and f"random phases ({round(phases, -1):.0f})" in text
    kept = [name for name, order in orders.items() if name.startswith("order kd_effnet") and order["value"] == 1]
    assert len(kept) == 12 and orders["order kd_effnet, fewer distinct pictures"]["value"] == 0
