"""A notebook's parameters stop a run before any work, or not at all."""

import json
import subprocess
import sys
import time

import pytest

from ldmlab.study.config.notebooks import NOTEBOOKS
from ldmlab.study.config.parameters import PARAMETERS, ParameterError, Parameters, parse_layout, read_parameters

GOOD = {"f": 8, "reg": "kl", "data": "scenes", "size": 0, "tier": "auto", "seed": 0, "scale_mode": "dataset",
        "num_steps": 50, "eta": 0.0, "guidance_scale": 1.0, "caption": "A red car.", "layout": "", "factor": 4,
        "degradation": "bicubic", "attention": True, "picture": "", "rater": "", "num_questions": 10, "exposure_s": 3.0,
        "compile": False, "perceptual": "", "classes": "car, boat", "model": "kl-f8", "file": ""}


def read(notebook="04_tradeoff", cell=None, **changes):
    return read_parameters(notebook, {**GOOD, **changes, "In": ["", *([cell] if cell else [])]})


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_every_notebook_takes_its_defaults(notebook):
    """Types kept, order kept, nothing added."""
    params = read(notebook)
    assert params.as_dict() == {name: GOOD[name] for name in NOTEBOOKS[notebook].parameters}
    assert params.tier == "auto" and isinstance(params, Parameters)


def test_strings_are_parsed():
    """papermill's -r, and every value its -p does not recognise, arrives as a string."""
    params = read("03_diffusion", f="16", size="64", eta="0.5", seed="3")
    assert (params.f, params.size, params.eta, params.seed) == (16, 64, 0.5, 3)


@pytest.mark.parametrize(("name", "value"), [
    ("f", 3), ("f", True), ("f", 8.5), ("f", "eight"), ("f", None), ("reg", "KL"), ("reg", False), ("tier", "huge"),
    ("seed", -1), ("seed", 2**32), ("seed", "false"), ("size", 31), ("size", -32), ("data", "/nowhere"), ("data", 3),
    ("data", ""), ("eta", 1.5), ("eta", "nan"), ("num_steps", 0), ("num_steps", 1001), ("guidance_scale", -1),
    ("guidance_scale", float("inf")), ("scale_mode", "first"),
])
def test_a_wrong_value_is_named_with_what_is_accepted(name, value):
    """One sentence that says both, whatever is wrong."""
    notebook = "02_latents" if name == "scale_mode" else "03_diffusion"
    with pytest.raises(ParameterError) as error:
        read(notebook, **{name: value})
    (line,) = [line for line in str(error.value).splitlines() if line.startswith(f"  {name} = {value!r}: ")]
    assert line.endswith(f"accepted is {PARAMETERS[name].accepted}")


@pytest.mark.parametrize(("notebook", "name", "value", "why"), [
    ("09_text_to_image", "caption", "a car\nand a dog", "more than one line"),
    ("09_text_to_image", "caption", None, ""),
    ("10_layout_to_image", "layout", "car 0.1 0.2 0.3", "no box: 'car 0.1 0.2 0.3'"),
    ("10_layout_to_image", "layout", "car 0.1 0.2 0.3 0.4; sun", "no box: 'sun'"),
    ("10_layout_to_image", "layout", "car 0.5 0.2 0.5 0.4", "left is not below right"),
    ("10_layout_to_image", "layout", "car 0.1 0.2 nan 0.4", "left is not below right"),
    ("14_image_guiding", "factor", 3, ""), ("17_user_study", "rater", "anna & bert", ""),
    ("17_user_study", "num_questions", 0, ""), ("17_user_study", "exposure_s", -1.0, ""),
])
def test_what_is_asked_for_is_checked_too(notebook, name, value, why):
    """The box that is wrong is named, not only the list that holds it."""
    with pytest.raises(ParameterError) as error:
        read(notebook, **{name: value})
    assert f"{name} = {value!r}: {why}" in str(error.value) and PARAMETERS[name].accepted in str(error.value)


def test_a_layout_is_a_list_of_boxes():
    """Names may have spaces; a trailing semicolon is a box without a name, and an error."""
    assert parse_layout("potted plant 0 0.5 .5 1;car 0.1 0.2 0.3 0.4") == [
        ("potted plant", 0.0, 0.5, 0.5, 1.0), ("car", 0.1, 0.2, 0.3, 0.4)]
    assert parse_layout(" ") == []


def test_size_must_be_divisible_by_f():
    """40 pixels go into f = 8, not into f = 16."""
    assert read(f=8, size=40).size == 40
    with pytest.raises(ParameterError, match="size = 40: not divisible by f = 16"):
        read(f=16, size=40)


def test_all_problems_come_at_once():
    """Nobody should need three runs to learn of three mistakes."""
    with pytest.raises(ParameterError) as error:
        read(f=3, seed=-1, cell="# Parameters\nf = 3\nseed = -1\ntiers = \"smoke\"\n")
    message = str(error.value)
    assert "because of 3 parameters" in message and "f = 3" in message and "seed = -1" in message
    assert "tiers = 'smoke': 04_tradeoff has no such parameter; did you mean tier?" in message
    assert all(f"{name} (" in message.splitlines()[-1] for name in NOTEBOOKS["04_tradeoff"].parameters)


def test_only_the_injected_cell_tells_unknown_names():
    """Re-running the set-up cell in JupyterLab, with a kernel full of variables, is no error."""
    cells = ["", "f = 8", "# Parameters\nf = 8\n", "ema = False\nlosses = []", "%matplotlib inline"]
    assert read_parameters("04_tradeoff", {**GOOD, "In": cells, "ema": False, "losses": []}).f == 8


def test_a_missing_name_is_an_error():
    """A parameters cell that lost a line."""
    with pytest.raises(ParameterError, match="tier: not set"):
        read_parameters("04_tradeoff", {name: value for name, value in GOOD.items() if name != "tier"})


def test_parameters_are_frozen():
    """What the record says is what ran."""
    params = read()
    with pytest.raises(AttributeError):
        params.f = 4
    with pytest.raises(TypeError):
        params.values["f"] = 4
    with pytest.raises(AttributeError, match="no parameter 'ema'; there are f, reg"):
        params.ema  # noqa: B018


def test_an_unknown_notebook_is_refused():
    """A typing error in a set-up cell."""
    with pytest.raises(ValueError, match="no notebook '4_tradeoff'; there are 00_tour"):
        read("4_tradeoff")


def test_checking_is_quick():
    """No torch, no numpy: parameters are checked before anything slow is imported."""
    code = ("import sys; from ldmlab.study.config.parameters import read_parameters\n"
            f"read_parameters('04_tradeoff', {GOOD!r})\n"
            "print([name for name in ('torch', 'numpy', 'pandas') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """The smallest notebook that takes parameters as ours do."""
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook

    defaults = "\n".join(f"{name} = {GOOD[name]!r}" for name in NOTEBOOKS["04_tradeoff"].parameters)
    cells = [new_code_cell(defaults, metadata={"tags": ["parameters"]}),
             new_code_cell("from ldmlab.study.config.parameters import read_parameters\n"
                           "params = read_parameters('04_tradeoff', globals())\n"
                           "print('WORK BEGINS', params.as_dict())")]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path = tmp_path_factory.mktemp("papermill") / "in.ipynb"
    nbformat.write(new_notebook(cells=cells, metadata=kernel), path)
    return path


def papermill(notebook, *args):
    out = notebook.with_name("out.ipynb")
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "papermill", "--no-progress-bar", notebook, out, *args],
                          capture_output=True, text=True, cwd=notebook.parent)
    cells = json.loads(out.read_text())["cells"]
    text = "".join("".join(output.get("text", [])) for cell in cells for output in cell.get("outputs", []))
    return done.returncode, done.stderr, text, time.monotonic() - began


def test_papermill_stops_at_wrong_parameters(notebook):
    """Exit code, message and time, by a real run with every kind of mistake at once."""
    code, log, text, seconds = papermill(notebook, "-p", "f", "3", "-p", "seed", "-1", "-p", "data", "/nowhere",
                                         "-p", "ema", "false", "-p", "tier", "7")
    assert code != 0 and "WORK BEGINS" not in text
    for words in ("f = 3: accepted is one of 1 2 4 8 16 32", "seed = -1", "data = '/nowhere'", "tier = 7",
                  "ema = 'false': 04_tradeoff has no such parameter"):
        assert words in log
    assert seconds < 30  # the kernel's start, on a busy machine, included


def test_papermill_runs_with_right_parameters(notebook, tmp_path):
    """A path as data, a string as number."""
    (tmp_path / "a.jpg").touch()
    code, log, text, _ = papermill(notebook, "-p", "f", "16", "-r", "size", "64", "-p", "data", str(tmp_path))
    assert code == 0, log
    assert f"'f': 16, 'reg': 'kl', 'data': '{tmp_path}', 'size': 64" in text
