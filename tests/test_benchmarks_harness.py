"""How tables of benchmarks are made: intervals, the control, goals, what is kept; on a made-up clock."""

import argparse
import importlib
import json
import random
import sys
from pathlib import Path

import pytest
import torch
from scipy import stats

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """A module of the folder, found as Python finds it when a script there is run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str):
        monkeypatch.delitem(sys.modules, name, raising=False)
        module = importlib.import_module(name)
        monkeypatch.delitem(sys.modules, name)
        return module

    return load


@pytest.fixture
def harness(load, monkeypatch):
    """The harness on a clock that only the ways themselves move."""
    module = load("harness")
    module.now = 0.0
    monkeypatch.setattr(module.time, "perf_counter", lambda: module.now)
    return module


def takes(harness, *seconds: float):
    """Something that takes these times, one call after the other, and the last from then on."""
    left = list(seconds)

    def run() -> None:
        harness.now += left.pop(0) if len(left) > 1 else left[0]
    return run


def options(tmp_path, **changes) -> argparse.Namespace:
    known = {"rounds": 7, "tries": 2, "only": "", "seed": 0, "out": tmp_path / "table.json"}
    return argparse.Namespace(**{**known, **changes})


def test_intervals_hold_the_median_as_often_as_they_say():
    """Order statistics: at least 95 % whatever the distribution, and no interval at all from too few rounds."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from harness import interval
    finally:
        sys.path.remove(str(BENCHMARKS))
    rng = random.Random(0)
    for n in (6, 11, 20):
        held = sum(low <= 1.0 <= high for low, high in (
            interval([rng.lognormvariate(0, 1) for _ in range(n)]) for _ in range(2000)))
        assert held / 2000 > 0.94, n
    assert interval([1.0, 1.1, 0.9]) == (0.0, float("inf"))
    assert stats.binom.cdf(0, 5, 0.5) > 0.025  # so that five rounds are too few as well
    assert interval([1.0] * 5) == (0.0, float("inf"))


def test_ratios_are_of_one_round_and_goals_of_the_lower_end(harness, tmp_path, capsys):
    """Twice as fast within every round is 2, however much rounds differ; a goal above the interval is not met."""
    work = harness.Work("w", [
        harness.Way("peer", takes(harness, 4.0), "peer"), harness.Way("ours", takes(harness, 2.0)),
    ], [harness.Goal("ours", "peer", 1.9), harness.Goal("ours", "peer", 2.1)])
    rows = {row["variant"]: row for row in harness.measure(work, options(tmp_path))}
    assert rows["ours"]["over"]["peer"] == {"ratio": 2.0, "low": 2.0, "high": 2.0}
    assert [goal["met"] for goal in rows["ours"]["goals"]] == [True, False]
    assert rows["peer"]["median_s"] == 4.0 and not rows["ours"]["void"]
    assert "not met" in capsys.readouterr().out


def test_a_machine_that_is_not_quiet_voids_the_work(harness, tmp_path):
    """Where one way differs from itself by more than 3 % in all tries, no goal is met and the rows say so."""
    class Drifting:
        calls = 0

        def __call__(self):
            self.calls += 1
            harness.now += 2.0 + self.calls % 2  # alternates: of two runs in a round one is half as long again

    work = harness.Work("w", [harness.Way("peer", Drifting(), "peer")])
    assert all(row["void"] and row["tries"] == 2 for row in harness.measure(work, options(tmp_path, rounds=1)))


def test_preparing_is_not_timed_and_pays_after_some_calls(harness, tmp_path):
    """What a way does before a timing is not in it; what was paid once is told with the calls that earn it back."""
    def prepare() -> None:
        harness.now += 100.0

    work = harness.Work("w", [
        harness.Way("plain", takes(harness, 3.0)),
        harness.Way("compiled", takes(harness, 1.0), prepare=prepare, prepare_s=50.0)])
    compiled = harness.measure(work, options(tmp_path))[1]
    assert compiled["median_s"] == 1.0 and compiled["pays_after_calls"] == 25.0


def test_a_table_keeps_the_works_that_were_not_measured_again(harness, tmp_path):
    """`--only` replaces its own rows, in the table's order; a name that none contains stops with those there are."""
    def build(name: str, seconds: float):
        return lambda: harness.Work(name, [harness.Way("ours", takes(harness, seconds))])

    args = options(tmp_path)
    harness.run_table("t", [("a", build("a", 1.0)), ("b", build("b", 2.0))], args)
    harness.run_table("t", [("a", build("a", 5.0)), ("b", build("b", 2.0))], options(tmp_path, only="a"))
    rows = json.loads(args.out.read_text())["rows"]
    assert [(row["work"], row["median_s"]) for row in rows] == [("a", 5.0), ("b", 2.0)]
    assert rows[0]["env"]["device_name"]
    with pytest.raises(SystemExit, match="there are: a; b"):
        harness.run_table("t", [("a", None), ("b", None)], options(tmp_path, only="c"))


def test_ways_that_differ_are_not_timed(harness):
    """Outputs are compared by the largest entry; beyond what is accepted, or NaN, nothing goes on."""
    a = torch.tensor([1.0, 2.0])
    assert harness.agree("same", a, a, 0.0) == {"same": 0.0}
    assert harness.agree("pair", [a, a], [a, a + 0.02], 0.02)["pair"] == pytest.approx(0.02 / 2.02)
    for other in (a + 1, a * float("nan")):
        with pytest.raises(AssertionError, match="other: differs by"):
            harness.agree("other", a, other, 1e-3)


def test_peers_have_the_weights_of_ours(load):
    """diffusers' twin of a denoiser and of a first stage answers as ours does, whose layers begin at zero no more."""
    pytest.importorskip("diffusers")
    peers = load("peers")
    from ldmlab.diffusion.unet.unet import DenoiserConfig, UNet
    from ldmlab.first_stage.autoencoder import build_autoencoder
    from ldmlab.first_stage.networks import AutoencoderConfig

    z, t, c = torch.randn(1, 3, 16, 16), torch.tensor([7]), torch.randn(1, 2, 16)
    config = DenoiserConfig(3, 3, (32, 64), attention_at=(2,), num_head_channels=16, context_dim=16)
    model = peers.filled(UNet(config)).eval()
    with torch.no_grad():
        ours, theirs = model(z, t, c), peers.call_diffusers(peers.diffusers_twin(model, 16).eval(), z, t, c)
        assert ours.abs().max() > 1e-3
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
        stage = build_autoencoder(AutoencoderConfig(2, 3, "kl", ch=32, ch_mult=(1, 2), resolution=32)).eval()
        twin = peers.diffusers_twin(stage).eval()
        torch.testing.assert_close(twin.decode(z).sample, stage.decode(z), rtol=1e-4, atol=1e-5)


def test_figures_of_tables_are_drawn(load, harness, tmp_path, monkeypatch, capsys):
    """Goals and tables become pictures; files of another form are left alone, and an empty folder says what to do."""
    figure = load("figure")
    monkeypatch.setattr(sys, "argv", ["figure.py", "--folder", str(tmp_path)])
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(SystemExit, match="holds no table"):
        figure.main()
    ways = [harness.Way("peer", takes(harness, 4.0), "peer"), harness.Way("ours", takes(harness, 2.0))]
    work = harness.Work("w", ways, [harness.Goal("ours", "peer", 1.5)], flops=1e6)
    monkeypatch.setattr(harness, "peak_flops", lambda dtype: 1e6)
    harness.run_table("t", [("w", lambda: work)], options(tmp_path))
    assert json.loads((tmp_path / "table.json").read_text())["rows"][-1]["kind"] == "floor"
    figure.main()
    assert {path.name for path in tmp_path.glob("*.png")} == {"goals.png", "t.png"}


@pytest.mark.parametrize("name", ["training", "pictures", "first_stage", "sampling"])
def test_scripts_tell_their_options(name, load, monkeypatch, capsys):
    """`--help` answers at once and names rounds, file and the folders of the released code."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as done:
        load(name).main()
    told = capsys.readouterr().out
    assert done.value.code == 0 and all(option in told for option in ("--rounds", "--out", "--original"))


def test_folders_without_the_released_code_are_refused(load, tmp_path):
    """A wrong folder stops before any work and is named; no folder leaves the peer out."""
    original = load("original")
    assert original.find_original("") == {}
    with pytest.raises(SystemExit, match="no folder 'ldm' or 'taming'"):
        original.find_original(str(tmp_path))
