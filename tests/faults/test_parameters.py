"""Parameters of every type that papermill makes of them: text stays text, and what is wrong is one message."""

import itertools
import sys

import pytest

from ldmlab.study.config.notebooks import NOTEBOOKS
from ldmlab.study.config.parameters import PARAMETERS, ParameterError, parse_layout, read_parameters

GOOD = {"f": 8, "reg": "kl", "data": "scenes", "size": 0, "tier": "auto", "seed": 0, "scale_mode": "dataset",
        "num_steps": 50, "eta": 0.0, "guidance_scale": 1.0, "caption": "A red car.", "layout": "", "factor": 4,
        "degradation": "bicubic", "attention": True, "picture": "", "rater": "", "num_questions": 10, "exposure_s": 3.0,
        "compile": False, "perceptual": "", "classes": "car, boat", "model": "kl-f8", "file": ""}
FOLDERS = ("2024", "7", "100000.0", "True", "nan", "-1")


def given_by_p(text):
    """What papermill's -p makes of a text, after its documentation: true, false, none, whole numbers, numbers, text."""
    if text in ("True", "False", "None"):
        return {"True": True, "False": False, "None": None}[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with folders whose names look like numbers."""
    for name in FOLDERS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").touch()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("notebook", "name", "typed", "text"), [
    ("04_tradeoff", "data", "2024", "2024"), ("04_tradeoff", "data", "007", "7"),
    ("04_tradeoff", "data", "True", "True"),
    ("04_tradeoff", "data", "1e5", "100000.0"), ("04_tradeoff", "data", "nan", "nan"),
    ("04_tradeoff", "data", "-1", "-1"),
    ("09_text_to_image", "caption", "42", "42"), ("09_text_to_image", "caption", "3.5", "3.5"),
    ("09_text_to_image", "caption", "False", "False"), ("09_text_to_image", "caption", "1e308", "1e+308"),
    ("09_text_to_image", "caption", "true", "true"), ("08_class_conditional", "classes", "3", "3"),
    ("12_super_resolution", "picture", "2024", "2024"), ("19_released_models", "file", "2024", "2024"),
    ("17_user_study", "rater", "2023001", "2023001"), ("17_user_study", "rater", "007", "7"),
    ("17_user_study", "rater", "True", "True")])
def test_a_number_is_text_where_text_is_wanted(notebook, name, typed, text, here, capsys):
    """Folders by year, captions of a number, raters by number; what the number was taken for is said, with -r."""
    given = given_by_p(typed)
    assert getattr(read_parameters(notebook, {**GOOD, name: given}), name) == text
    said = capsys.readouterr().out
    if isinstance(given, str):
        assert said == ""
    else:
        assert said == (f"{name} is text: {given!r} was taken as {text!r}; papermill's -p makes numbers of 007 and "
                        f"1e3, -r {name} keeps them as they are\n")


WRONG = [
    ("04_tradeoff", "data", 2025, "data '2025' is neither a known name nor an existing path; papermill's -p makes"),
    ("04_tradeoff", "data", 1e30, "-r data keeps them"), ("17_user_study", "rater", 1000.0, "-r rater keeps them"),
    ("04_tradeoff", "data", None, "None is no text"), ("04_tradeoff", "data", ["a", "b"], "accepted is 'scenes'"),
    ("04_tradeoff", "data", {"a": 1}, "accepted is 'scenes'"), ("04_tradeoff", "data", b"a", "accepted is 'scenes'"),
    ("04_tradeoff", "data", "a\0b", ""), ("04_tradeoff", "data", "x" * 5000, "accepted is"),
    ("04_tradeoff", "data", "~nobody_of_this_name/x", ""),
    ("12_super_resolution", "picture", "x" * 5000, "accepted is"),
    ("12_super_resolution", "picture", "~nobody_of_this_name/x", "home"),
    ("09_text_to_image", "caption", None, "no text"),
    ("09_text_to_image", "caption", ["a"], "a line of text"),
    ("09_text_to_image", "caption", "a\rb", "more than one line"),
    ("04_tradeoff", "f", [4, 8], "one of 1 2 4"), ("04_tradeoff", "f", 1e308, "one of 1 2 4"),
    ("04_tradeoff", "seed", 10**5000, "a value of type int: "), ("04_tradeoff", "seed", None, "a whole number"),
    ("04_tradeoff", "size", 100_000, "from 32 to 4096"), ("04_tradeoff", "size", {}, "from 32 to 4096"),
    ("03_diffusion", "guidance_scale", 1e308, "from 0 to 1000"), ("03_diffusion", "guidance_scale", "1e30", "to 1000"),
    ("03_diffusion", "guidance_scale", True, "true and false are no numbers"),
    ("04_tradeoff", "compile", "2", "true or"),
    ("10_layout_to_image", "layout", "car 30 50 70 90", "outside of the picture, which is from 0 to 1: 'car 30"),
    ("10_layout_to_image", "layout", 3, "no box: '3'"), ("04_tradeoff", "tier", 7, "one of auto")]


@pytest.mark.parametrize(("notebook", "name", "value", "why"), WRONG, ids=map(str, range(len(WRONG))))
def test_what_cannot_be_taken_is_named(notebook, name, value, why, here):
    """A ParameterError, and no other exception, whatever the value is; it is shown, and shortened where it is long."""
    with pytest.raises(ParameterError) as error:
        read_parameters(notebook, {**GOOD, name: value})
    (line,) = [line for line in str(error.value).splitlines() if line.startswith(f"  {name} = ")]
    assert why in line and line.endswith(f"accepted is {PARAMETERS[name].accepted}")
    assert len(line) < 1500


@pytest.mark.parametrize("cell", [
    "# Parameters\n%matplotlib inline\ntiers = 'smoke'", "# Parameters\ntiers = 'smoke'\n!ls",
    "# Parameters\n?f\ntiers = 1",
    "# Parameters\n%time f = 8\ntiers = 3"])
def test_a_parameters_cell_with_magics_is_read(cell):
    """Its other lines say which names were passed."""
    with pytest.raises(ParameterError, match="tiers = .*no such parameter; did you mean tier?"):
        read_parameters("04_tradeoff", {**GOOD, "In": ["", cell]})


@pytest.mark.parametrize("cell", [
    "# Parameters\nf = ", "# Parameters\n%%bash\nls -l | wc", "# Parameters\nfor a in b", "# Parameters\na = 1\0",
    "# Parameters\na = " + "(" * 3000, None, 3])
def test_a_cell_that_papermill_did_not_write_is_left_alone(cell):
    """It does not stop the run, and the cell that papermill did write is read all the same."""
    assert read_parameters("04_tradeoff", {**GOOD, "In": ["", cell]}).f == 8
    with pytest.raises(ParameterError, match="tiers"):
        read_parameters("04_tradeoff", {**GOOD, "In": ["", "# Parameters\ntiers = 3\n", cell]})


def test_boxes_may_reach_over_the_edge():
    """Only a box with nothing inside of the picture is refused."""
    assert parse_layout("car -0.2 0.5 0.3 1.2") == [("car", -0.2, 0.5, 0.3, 1.2)]


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_no_other_exception_comes_out(notebook, tmp_path, monkeypatch):
    """Every parameter of every notebook, given anything, is accepted or refused."""
    monkeypatch.chdir(tmp_path)
    values = (None, True, 1e308, float("nan"), -3, "", "\ud800", [], {}, object(), sys.maxsize**9, 10**5000)
    for name, value in itertools.product(NOTEBOOKS[notebook].parameters, values):
        try:
            read_parameters(notebook, {**GOOD, name: value})
        except ParameterError as error:
            assert f"{name} = " in str(error)
