"""The table of notebooks agrees with what lies in the project, and says what a new row still needs."""

import json
import re
from collections import Counter
from dataclasses import replace

import pytest

from ldmlab.claims.definitions import CLAIMS
from ldmlab.evaluation.protocol import SAMPLING
from ldmlab.study.config.missing_parts import missing_parts
from ldmlab.study.config.notebooks import FS, NOTEBOOKS, SAMPLED_BY, Notebook, StudyFigure
from ldmlab.study.config.paths import PACKAGE
from ldmlab.study.config.readme import BEGIN, END, README, with_table, write_readme

ROOT = PACKAGE.parent
DUMMY = Notebook(
    "99_dummy", "a notebook that nobody has written", "Sec. 9", minutes="1", expect="1 dB",
    parameters=("f", "sharpness", "tier"), display_only=("contrast",), experiment="dummy",
    figures=(StudyFigure("dummy", "Fig. 99", "psnr_dummy", "dummy.fig_dummy"),),
    run_class="ldmlab.study.runs.run.DummyRun")
# Numbers in a row that the notebook's table for tier laptop does not state: of another f, of tier smoke.
ELSEWHERE = {"04_tradeoff": {"39"}, "19_released_models": {"1"}}


@pytest.mark.parametrize("row", NOTEBOOKS.values(), ids=NOTEBOOKS)
def test_no_part_of_a_notebook_is_missing(row):
    """Notebook, solutions, experiment, figure functions and parameters of each row exist."""
    missing = missing_parts(row)
    assert not missing, "\n".join([f"{row.name} is not complete:", *missing])


def test_each_missing_part_of_a_new_row_is_named():
    """Whoever adds a row reads what is left to write, and where."""
    assert missing_parts(DUMMY) == [
        "notebooks/99_dummy.ipynb is missing: the notebook.",
        "notebooks/solutions/99_dummy.md is missing: the solutions of its exercises.",
        "parameter 'sharpness' is not defined: add it to PARAMETERS in ldmlab/study/config/parameters.py.",
        "display_only names 'contrast', which is not a parameter of this notebook.",
        "ldmlab/experiments/dummy.py is missing: the experiment.",
        "ldmlab/study/runs/run.py does not define DummyRun, its run_class.",
        "ldmlab/figures/dummy.py is missing: it has to define fig_dummy, the function of figure 'dummy'.",
        "metric 'psnr_dummy' of figure 'dummy' is unknown: add it to the row's metrics, with the entries of the "
        "protocol that must be equal.",
    ]
    figure = replace(DUMMY.figures[0], function="tradeoff.fig_dummy")
    assert ("ldmlab/figures/tradeoff.py does not define fig_dummy, the function of figure 'dummy'."
            in missing_parts(replace(DUMMY, figures=(figure,))))


def test_a_row_whose_parts_are_written_is_complete(tmp_path):
    """Each file or definition that is added takes away its sentence."""
    row = replace(DUMMY, parameters=("f", "tier"), display_only=(), run_class="ldmlab.runs.Run",
                  metrics={"psnr_dummy": ()}, solution="answers.md")
    for path, text in {
        "notebooks/99_dummy.ipynb": "{}", "answers.md": "", "ldmlab/experiments/dummy.py": "",
        "ldmlab/runs.py": "class Run:\n    pass\n", "ldmlab/figures/dummy.py": "def fig_dummy(records):\n    pass\n",
    }.items():
        assert missing_parts(row, tmp_path)
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert missing_parts(row, tmp_path) == []


def test_every_notebook_has_a_row():
    """A notebook in the folder that the table does not know is not tested, listed or read by the report."""
    assert sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb")) == list(NOTEBOOKS)


def test_the_readme_is_up_to_date():
    """README.md prints the table as it is; `make readme` brings it up to date."""
    text = README.read_text(encoding="utf-8")
    assert with_table(text) == text, "README.md is stale: run `make readme`"


def test_make_readme_replaces_the_table_alone(tmp_path):
    """What stands before and after the marks is kept; without marks nothing is written."""
    path = tmp_path / "README.md"
    path.write_text(f"before\n{BEGIN}| an old table |\n{END}after\n", encoding="utf-8")
    assert write_readme(path) and not write_readme(path)
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{BEGIN}\n| notebook |") and text.endswith(f"\n\n{END}after\n")
    assert "an old table" not in text and text.count("\n| [") == len(NOTEBOOKS)
    path.write_text(f"{END}{BEGIN}")
    with pytest.raises(ValueError, match="two lines with the table of notebooks"):
        write_readme(path)


def numbers(text: str) -> set[str]:
    """The numbers in a text, without those of f, names such as LDM-4, and factors such as ×4."""
    return set(re.findall(r"(?<![\w.×-])\d+(?:\.\d+)?", re.sub(r"\bf = \d+", "", text)))


@pytest.mark.parametrize("row", NOTEBOOKS.values(), ids=NOTEBOOKS)
def test_a_notebook_states_the_numbers_of_its_row(row):
    """Machine, minutes and numbers to expect at tier laptop are those of the README, in the notebook's words."""
    cells = json.loads((ROOT / row.path).read_text(encoding="utf-8"))["cells"]
    lines = [line.strip() for cell in cells for line in cell["source"]]
    head, laptop = ([cell.strip() for cell in next(line for line in lines if line.startswith(start)).split("|")[1:-1]]
                    for start in ("| tier | machine |", "| `laptop` |"))
    assert laptop[1] == row.machine
    for said, columns in ((row.minutes, slice(2, -1)), (row.expect, slice(-1, None))):
        assert numbers(said) - ELSEWHERE.get(row.name, set()) <= numbers(" ".join(head[columns] + laptop[columns]))


def test_rows_agree_on_metrics_and_figures():
    """A metric compares by the same protocol in all notebooks, and no two figures share a name."""
    stated = {(metric, tuple(names)) for row in NOTEBOOKS.values() for metric, names in row.metrics.items()}
    assert stated == set(SAMPLED_BY.items())
    assert SAMPLED_BY["kd_effnet"] == SAMPLING
    figures = Counter(figure.name for row in NOTEBOOKS.values() for figure in row.figures)
    assert set(figures.values()) == {1}


def test_claims_read_the_notebooks_that_rows_call_evidence():
    """The evidence of a claim is loaded only from notebooks whose row says so."""
    read = {measure.notebook for claim in CLAIMS for part in claim.parts for measure in part.measures}
    assert read == {row.name for row in NOTEBOOKS.values() if row.evidence}
    assert {f for row in NOTEBOOKS.values() for f, _ in row.wanted} <= set(FS)
