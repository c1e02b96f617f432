"""The tables of evaluation and loading: their options are told, and their ways agree at sizes that take no time."""

import importlib
import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """A script of the folder as a module, found as Python finds it when it is run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str):
        pytest.importorskip("torch_fidelity")
        monkeypatch.delitem(sys.modules, name, raising=False)
        module = importlib.import_module(name)
        monkeypatch.delitem(sys.modules, name)
        return module

    return load


@pytest.mark.parametrize("name", ["evaluation", "loading"])
def test_the_script_tells_its_options(name, monkeypatch, capsys):
    """`--help` names the rounds and the file of results."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
    told = capsys.readouterr().out
    assert done.value.code == 0 and "--rounds" in told and "--out" in told


def check(work, exact: int):
    """Every way runs, every goal is about ways that are there, and so many ways claim the same result."""
    names = [way.name for way in work.ways]
    assert len({*names}) == len(names) and work.ways[0].kind == "peer" and sum(w.exact for w in work.ways) == exact
    assert all(goal.ours in names and goal.peer in names and goal.at_least >= 1 for goal in work.goals)
    for way in work.ways:
        assert way.run() is not None


def test_distances_and_scores_agree(script):
    """Building a work compares what its ways give: with the known distance, and with each other."""
    evaluation = script("evaluation")
    full, few = evaluation.full_rank("full", d=24), evaluation.few_vectors("few", n=10, d=24)
    assert all(off < 1e-9 for off in full.agreement.values()) and few.agreement["ours, relative error"] < 1e-6
    check(full, 3)
    check(few, 3)
    with pytest.raises(AssertionError, match="of ours is off by more than"):
        evaluation.relative_errors(2.0, [evaluation.Way("ours", lambda: 1.0)], ours=1e-6)


def test_loaders_agree(script, tmp_path):
    """The same pictures to a level by every exact way, also where the centre is cropped; the same cached moments."""
    loading = script("loading")
    for name, width, height in (("wide", 70, 40), ("tall", 33, 90), ("equal", 32, 32)):
        work = loading.pictures(name, tmp_path, width, height, n=2, size=32)
        assert work.agreement["ours, levels"] == 0 and work.ways[1].run().shape == (2, 3, 32, 32)
        check(work, 3)
    check(loading.cached_moments("moments", tmp_path, n=8, shape=(2, 4, 4), b=4), 2)
    with pytest.raises(AssertionError, match="levels from"):
        loading.levels("ours", loading.torch.zeros(1), loading.torch.ones(1), 1)
