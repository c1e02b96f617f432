"""The report: complete without records, right with them, and silent about nothing."""

import pytest

from ldmlab import report
from ldmlab.claims import judging as claims
from ldmlab.figures import report as figures
from ldmlab.figures.index import DRAWINGS
from ldmlab.paper.deviations import deviations
from ldmlab.study.config.notebooks import NOTEBOOKS
from ldmlab.study.records.record import Record

ALL = {"data": "scenes", "size": 0, "tier": "auto"}


def point(f: int = 8, reg: str = "kl", seed: int = 0, tier: str = "laptop", fd: float = 60.0, **more) -> Record:
    """A record of 04_tradeoff as far as the report reads it."""
    params = {"f": f, "reg": "none" if f == 1 else reg, "data": "scenes", "size": 32, "tier": tier, "seed": seed}
    score = {"value": fd, "n_fake": 512, "n_real": 10_000, "extractor": "effnet", "weights_hash": "0" * 64}
    metrics = {"kd_effnet": score, "rkd_effnet": score | {"n_real": 512}, "psnr": {"value": 20.0 - f / 8, "unit": "dB"},
               "num_params": {"value": 1e6}}
    return Record("04_tradeoff", f"LDM-{f}", params, metrics=metrics,
                  curves={"kd_effnet": [[100, 2 * fd], [200, fd]], "train_s": [[100, 10.0 / f], [200, 20.0 / f]],
                          "images_per_s": [[20, 10.0 * f]]},
                  protocol={"sampler": "ddim", "num_steps": 20, "eta": 0.0, "reference": "train"},
                  inputs={"data": "a"}, env={"device": "cpu", "threads": 1}, started="2026-01-01T00:00:00Z", **more)


def test_an_empty_lab_gives_a_whole_report(lab_root, capsys):
    """No record at all: every part is there, says what is missing and how to get it, and leaves a record."""
    run = report.Report("20_report", ALL)
    assert run.params == {"data": "scenes", "size": 32, "tier": "laptop"} and run.records == []
    assert [run.figure(name) for name in DRAWINGS] == [None] * len(DRAWINGS)
    said = capsys.readouterr().out
    assert said.count("no figure for") == len(DRAWINGS) and "papermill notebooks/04_tradeoff.ipynb" in said
    assert {v.verdict for v in run.verdicts} == {claims.UNDERPOWERED}
    assert len(report.explained(run.verdicts)) == len(claims.CLAIMS)
    wanted = sum(len(row.wanted) * row.seeds for row in NOTEBOOKS.values())
    assert len(run.missing()) == wanted and run.environments().empty
    for table in (report.first_stages, report.models, report.efficiency):
        assert len(table([])) > 0
    assert figures.fig_coverage([], run.about).axes and figures.fig_ledger(run.verdicts, run.about).axes
    path = run.finish(run.new_record(3))
    assert path.name == "scenes_32px_laptop.json" and path.parent.name == "20_report"


def test_records_leave_the_list_of_missing_and_enter_the_tables(lab_root):
    """One f of two seeds: its rows are filled, its squares counted, and only the others are asked for."""
    for seed in (0, 1):
        point(seed=seed).save()
    point(f=1).save()
    run = report.Report("20_report", ALL, quiet=True)
    missing = run.missing()
    assert len(run.records) == 3
    here = missing[(missing["notebook"] == "04_tradeoff") & (missing["reg"] == "kl")]
    assert 8 not in set(here["f"]) and 4 in set(here["f"])
    records = run.comparable(DRAWINGS["tradeoff"])
    assert report.first_stages(records).loc["KL-f8", "PSNR, ours"] == 19.0
    assert report.models(records).loc["LDM-8", "seeds"] == 2
    fast = report.efficiency(records)
    assert fast.loc["LDM-8", "sampling, ours"] == 8 and fast.loc["LDM-8", "training, ours"] == 8
    assert fast.loc["LDM-4", "training, paper"] == pytest.approx(0.32 / 0.11, abs=0.01)
    assert list(run.environments()["records"]) == [3]


def test_auto_takes_the_tier_with_most_records_and_never_smoke(lab_root):
    """A rehearsal is no reason to read rehearsals, and smoke records give no verdict even when asked for."""
    for f in (2, 4, 8):
        point(f=f, tier="smoke").save()
    point(tier="gpu").save()
    assert report.Report("20_report", ALL, quiet=True).params["tier"] == "gpu"
    smoke = report.Report("20_report", ALL | {"tier": "smoke"}, quiet=True)
    assert len(smoke.records) == 3 and {v.verdict for v in smoke.verdicts} == {claims.UNDERPOWERED}


def test_what_is_not_supported_is_explained_with_its_numbers():
    """A contradicted claim says effect and interval, an unmeasured one what it lacks; a supported one is left out."""
    claim = claims.CLAIMS[0]
    verdicts = [
        claims.Verdict(claim, claims.CONTRADICTED, "the interval lies below the threshold", "KD-EffNet", 0.5,
                       (0.4, 0.6), "LDM-1 x2", "seeds"),
        claims.Verdict(claims.CLAIMS[1], claims.UNDERPOWERED, "no record of it"),
        claims.Verdict(claims.CLAIMS[2], claims.SUPPORTED, "", "KD-EffNet", 2.0, (1.9, 2.1)),
    ]
    first, second = report.explained(verdicts)
    for part in (claim.id, "contradicted", " is 0.5,", "0.4 to 0.6", "LDM-1 x2", claim.statement):
        assert part in first
    assert "nothing was measured" in second.lower() and "no record of it" in second
    assert figures.fig_ledger(verdicts, "").axes


def test_commands_name_only_what_differs_and_what_the_notebook_takes(lab_root):
    """They can be pasted: parameters of that notebook, in its own words."""
    run = report.Report("20_report", {"data": "cifar10", "size": 32, "tier": "laptop"}, quiet=True)
    assert run.command("04_tradeoff", 4, "vq", 1).endswith("-p f 4 -p reg vq -p data cifar10 -p tier laptop -p seed 1")
    for notebook in (name for name, row in NOTEBOOKS.items() if row.wanted):
        words = run.command(notebook, 4, "kl", 1).split()
        assert {words[i + 1] for i, word in enumerate(words) if word == "-p"} <= set(NOTEBOOKS[notebook].parameters)
    assert "no notebook" in run.command("99_nothing")


def test_deviations_are_found_in_docstrings_and_comments(tmp_path):
    """Each with its line; a paragraph that follows is not part of it."""
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "a.py").write_text(
        'def f():\n    """One.\n\n    Deviation: two\n    lines.\n\n    More."""\n\n\n'
        "# Deviation: a comment\n# of two lines.\nx = 'Deviation: no'\n")
    found = deviations(tmp_path / "pkg")
    assert list(found["deviation"]) == ["two lines.", "a comment of two lines."]
    assert list(found["where"]) == ["pkg/a.py:2", "pkg/a.py:10"]
    assert len(deviations()) >= 15
