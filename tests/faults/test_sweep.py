"""The study of all f: what its files are called, and that nothing in a name is run or read as a pattern."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ldmlab.study.config.budgets import BUDGETS
from ldmlab.study.config.notebooks import FS
from ldmlab.study.config.sweep import Sweep, read_sweep

ROOT = Path(__file__).parents[2]
NAMES = ("pictures", "my pictures", "it's $(touch x); touch y; `touch z` \"q\" #1", "a: b # c", "2024", "007", "-x",
         "{f}", "{a,b}", "$(shell touch x)", "é", "a\\b", "x" * 200, "1e5", "true", "[1, 2]", "!ls", "~", "%d", "$HOME")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory that holds a folder of each name, each with a picture."""
    for name in NAMES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LDMLAB_ROOT", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_a_study_of_any_folder(name, here):
    """Data arrive as they were named, from any working directory; file names are plain; jobs get the same study."""
    sweep = read_sweep({"tier": "smoke"}, {"LDMLAB_STUDY_DATA": str(here / name)})
    assert sweep.data == str(here / name)
    assert re.fullmatch(r"results/executed/study/[A-Za-z0-9_.-]+-[0-9a-f]{8}_smoke_kl_s0", sweep.path)
    assert len(Path(sweep.path).name) < 120
    args = sweep.passed_on()
    assert all(re.fullmatch(r"[a-z_]+=[A-Za-z0-9,]+", arg) for arg in args)
    assert read_sweep(dict(arg.split("=") for arg in args), {}) == sweep


def test_relative_paths_are_those_of_the_working_directory(here):
    """A job that starts in another folder finds them."""
    assert read_sweep({"data": "my pictures"}, {}).data == str(here / "my pictures")


def test_folders_of_one_name_have_files_of_their_own(here):
    """A study of b/pictures is not done because one of a/pictures is; names of data sets are kept."""
    for folder in ("a", "b"):
        shutil.copytree(here / "pictures", here / folder / "pictures")
    paths = {read_sweep({"data": f"{folder}/pictures"}, {}).path for folder in ("a", "b")}
    assert len(paths) == 2
    assert read_sweep({}, {}).path == "results/executed/study/scenes_laptop_kl_s0"


def test_results_elsewhere_are_absolute(here, monkeypatch):
    """LDMLAB_ROOT on another disk, with spaces; braces are refused, since Snakemake and papermill fill them in."""
    monkeypatch.setenv("LDMLAB_ROOT", str(here / "my root"))
    monkeypatch.chdir(here / "pictures")
    assert read_sweep({}, {}).path == f"{here}/my root/results/executed/study/scenes_laptop_kl_s0"
    monkeypatch.setenv("LDMLAB_ROOT", str(here / "{f}"))
    with pytest.raises(ValueError, match="braces in its name.*LDMLAB_ROOT"):
        _ = read_sweep({}, {}).path


def test_pictures_that_are_added_are_noticed(here):
    """Otherwise the study of the old pictures counts as done."""
    (here / "pictures" / "class").mkdir()
    before = read_sweep({"data": "pictures"}, {}).changed
    os.utime(here / "pictures" / "class", (before + 10, before + 10))
    assert read_sweep({"data": "pictures"}, {}).changed == before + 10
    assert read_sweep({}, {}).changed == 0


@pytest.mark.parametrize(("given", "fs"), [
    (None, FS), (8, (8,)), ("8", (8,)), ("4,8", (4, 8)), ("8 4", (4, 8)), (["4", "8"], (4, 8)), ("[4, 8, 8]", (4, 8))])
def test_the_f_of_a_study(given, fs, here):
    """In any spelling that Snakemake's --config makes of a list."""
    assert read_sweep({} if given is None else {"fs": given}, {}).fs == fs


@pytest.mark.parametrize(("config", "says"), [
    ({"fs": "3"}, "fs = '3': accepted are some of 1 2 4 8 16 32, such as fs=4,8"), ({"fs": ""}, "fs = ''"),
    ({"fs": "4;8"}, "fs = '4;8'"), ({"tier": "auto"}, "must not differ in tier"), ({"tier": "huge"}, "tier = 'huge'"),
    ({"reg": "KL"}, "reg = 'KL': accepted is kl or vq"), ({"seed": "-1"}, "seed = '-1'"),
    ({"data": "nowhere"}, "nowhere"),
    ({"data": {"a": "b"}}, "data = {'a': 'b'}"), ({"mem": 3}, "--config mem: accepted are fs, reg, data, tier, seed")])
def test_a_wrong_study_starts_no_job(config, says, here):
    """One message in place of one failed job for each f."""
    with pytest.raises(ValueError, match=re.escape(says)):
        read_sweep(config, {})


def test_what_a_tier_asks_for():
    """Every tier says how much memory, and how many threads and minutes, one of its runs takes."""
    for tier, budget in BUDGETS.items():
        assert Sweep(FS, "kl", "scenes", tier, 0).budget is budget
        assert budget.memory_mb >= 4000 and budget.threads >= 1 and budget.minutes >= 1


def test_the_snakefile_quotes_what_it_hands_to_a_shell():
    """Only numbers stand without quotes; outputs are relative to the results, and no job writes beside them."""
    text = (ROOT / "Snakefile").read_text()
    commands = re.findall(r"shell:\n((?: +\".*\"\n)+)", text)
    fields = {field for command in commands for field in re.findall(r"\{([^}]*)\}", command)}
    assert len(commands) == 2 and len(fields) > 6
    assert {field for field in fields if not field.endswith(":q")} == {"wildcards.f", "params.seed"}
    assert '"results/' not in text and "SWEEP.budget" in text


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_expands_nothing_in_a_folders_name(here):
    """`make study DATA=...` prints a command that a shell reads as the folder's name, and runs nothing itself."""
    name = "it's $(shell touch x) $(touch y); touch z `touch u` \"q\" # $HOME"
    environ = {key: value for key, value in os.environ.items() if key != "MAKEFLAGS"}
    done = subprocess.run(["make", "-n", "-f", ROOT / "Makefile", "-o", ".venv/ready-sweep", "study", f"DATA={name}"],
                          capture_output=True, text=True, cwd=here, env=environ, check=True)
    command = done.stdout.partition("LDMLAB_STUDY_DATA=")[2].partition(" .venv/bin/snakemake")[0]
    told = subprocess.run(["sh", "-c", f"printf %s {command}"], capture_output=True, text=True, cwd=here, check=True)
    assert told.stdout == name
    assert sorted(os.listdir(here)) == sorted(NAMES)


@pytest.mark.filterwarnings("ignore:'ldmlab.figures.__main__' found:RuntimeWarning")  # another test imported it
def test_the_figures_command_draws_or_says_why_not(here, monkeypatch, capsys):
    """`python -m ldmlab.figures`, the study's last job: without a call of main it ended with status 0 and no figure."""
    monkeypatch.setattr(sys, "argv", ["figures", "tradeoff", "--data", "scenes"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("ldmlab.figures", run_name="__main__")
    assert stop.value.code == 1 and "holds no record of data scenes" in capsys.readouterr().err
