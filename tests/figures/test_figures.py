"""Figures say what they rest on, and put nothing side by side that does not compare."""

import numpy as np
import pytest

from ldmlab.figures import training_cost
from ldmlab.figures.__main__ import draw_tradeoff, main
from ldmlab.figures.paper_tables import fig_reconstruction
from ldmlab.figures.tradeoff import fig_tradeoff
from ldmlab.paper import numbers as paper
from ldmlab.study.config.notebooks import FS
from ldmlab.study.config.paths import results_dir
from ldmlab.study.records.compare import Series, grouped, load_comparable
from ldmlab.study.records.record import Record
from ldmlab.study.runs.run import Run

FINAL = {1: 30.0, 2: 8.0, 4: 3.3, 8: 5.2, 16: 9.7, 32: 23.6}
FLOOR = {1: 0.0, 2: 0.2, 4: 1.1, 8: 3.9, 16: 8.9, 32: 23.2}
PSNR = {1: None, 2: 33.0, 4: 27.0, 8: 23.0, 16: 20.0, 32: 17.5}


def a_record(f: int = 8, seed: int = 0, reg: str = "kl", *, flat: bool = True, tier: str = "laptop", n: int = 512,
             data: str = "scenes", device: str = "a processor", notebook: str = "04_tradeoff") -> Record:
    """A run as `record_tradeoff` writes it, with invented numbers."""
    scored = {"unit": "1", "n_real": 10_000, "n_fake": n, "extractor": "effnet", "weights_hash": "ab12cd34"}
    fd = [[step, FINAL[f] * (1 + 60 / step) * (1 + seed / 20)] for step in (100.0, 200.0, 400.0, 800.0)]
    metrics = {
        "kd_effnet": scored | {"value": fd[-1][1]},
        "rkd_effnet": scored | {"value": FLOOR[f], "n_fake": 1024, "n_real": 1024},
        "psnr": {"value": PSNR[f], "unit": "dB"}, "num_params": {"value": 1_200_000 + 900 * f, "unit": "1"},
        "first_stage_train_s": {"value": 0.0 if f == 1 else 80.0 + f, "unit": "s"},
        "first_stage_flat": {"value": None if f == 1 else flat},
        "flops": {"value": 1e8 / f, "unit": "FLOP per picture and denoiser call"},
    }
    curves = {"kd_effnet": fd, "train_s": [[step, step / f] for step in (100.0, 800.0)],
              "images_per_s": [[steps, 400 * f / steps] for steps in (10.0, 20.0, 50.0)]}
    params = {"f": f, "reg": "none" if f == 1 else reg, "data": data, "size": 32, "tier": tier, "seed": seed}
    return Record(
        notebook, f"LDM-{f}", params, metrics, curves,
        {"sampler": "ddim", "num_steps": 20, "eta": 0.0, "guidance_scale": 1.0},
        {"data": "0f" * 32},
        env={"device": "cpu", "device_name": device, "threads": 2, "git": {"commit": "abc1234def", "dirty": False}})


def words(fig) -> str:
    """All text of a figure."""
    texts = fig.findobj(lambda artist: hasattr(artist, "get_text"))
    return " ".join(text.get_text() for text in texts).replace("\n", " ")


@pytest.mark.parametrize("fs", [(8,), (1,), (4, 8), FS])
def test_the_study_can_be_drawn_from_any_number_of_f(fs):
    """A figure after the first of six runs is as good as after the last; every f is named."""
    said = words(fig_tradeoff([a_record(f) for f in fs]))
    assert all(f"LDM-{f}" in said for f in fs)


def test_the_small_print_says_what_the_points_rest_on():
    """n, tier, data, size, extractor, seeds, device, git: a figure that travels without its record stays readable."""
    said = words(fig_tradeoff([a_record(8, seed) for seed in (0, 1)]))
    for part in ("n = 512", "10000", "tier laptop", "scenes at 32 px", "effnet (ab12cd34)", "2 seeds", "a processor",
                 "abc1234", "20 steps"):
        assert part in said


def test_seeds_become_a_mean_with_its_range():
    """Several seeds are one line, not several."""
    steps, mean, low, high = Series(8, "kl", [a_record(8, seed) for seed in (0, 1, 2)]).curve("kd_effnet")
    assert list(steps) == [100, 200, 400, 800]
    assert (low < mean).all() and (mean < high).all()


@pytest.mark.parametrize("other", [{"tier": "gpu"}, {"n": 1024}, {"data": "photographs"}, {"tier": "smoke"}])
def test_what_does_not_compare_is_refused(other):
    """Another tier, number of samples or data set never slips into one figure; the message names the difference."""
    with pytest.raises(ValueError, match="differ in"):
        fig_tradeoff([a_record(8), a_record(4, **other)])


def test_no_records_is_an_error():
    """An empty figure would look like a result."""
    with pytest.raises(ValueError, match="at least one"):
        fig_tradeoff([])


@pytest.mark.parametrize("draw", [fig_tradeoff, fig_reconstruction])
def test_figures_of_smoke_runs_say_that_they_are_no_evidence(draw):
    """Numbers of the smoke tier mean nothing, and nobody can take them for a result."""
    assert "testing only" in words(draw([a_record(8, tier="smoke")]))
    assert "testing only" not in words(draw([a_record(8)]))


def test_first_stages_that_were_still_improving_are_marked():
    """What stagnates at large f must be information; where it may be training time, the figure says so."""
    assert "LDM-32†" in words(fig_tradeoff([a_record(8), a_record(32, flat=False)]))
    assert "†" not in words(fig_tradeoff([a_record(8), a_record(32)]))


def test_seconds_of_another_device_are_left_out():
    """Panels over time and throughput hold one device; the small print counts what is missing."""
    fig = fig_tradeoff([a_record(4), a_record(8), a_record(16, device="another")])
    by_step, by_time, by_speed, _ = fig.axes
    assert "LDM-16" in words(by_step) and "LDM-16" not in words(by_time) + words(by_speed)
    assert "1 record timed on another device" in words(fig)


def test_reconstruction_stands_beside_table_8():
    """Both regularizers of the paper are there, and ours are named as ours."""
    said = words(fig_reconstruction([a_record(f) for f in FS] + [a_record(8, reg="vq")]))
    for part in ("KL, paper", "VQ, paper", "KL, ours", "VQ, ours", "1024 validation pictures"):
        assert part in said


def test_table_8_keeps_its_numbers():
    """Spot checks against the paper; f32c64, f16c16 and f8c4 have equally many numbers in a latent."""
    kl = {row.f: row for row in paper.first_stages("kl")}
    vq = {row.f: row for row in paper.first_stages("vq")}
    assert (kl[8].psnr, kl[8].r_fid, vq[4].psnr, vq[4].r_fid) == (24.19, 0.90, 27.43, 0.58)
    assert {kl[f].dims for f in (8, 16, 32)} == {4096}
    assert len(paper.tab8()) == 19


def test_the_command_draws_what_is_in_results(tmp_path, monkeypatch):
    """`python -m ldmlab.figures.tradeoff tradeoff` folds all records of a data set into one picture."""
    monkeypatch.setenv("LDMLAB_ROOT", str(tmp_path))
    for f in (4, 8):
        a_record(f).save()
    main(["tradeoff", "--data", "scenes", "--tier", "laptop"])
    assert (results_dir() / "figures" / "tradeoff_scenes_laptop.png").stat().st_size > 10_000
    with pytest.raises(SystemExit) as stopped:
        main(["tradeoff", "--data", "nothing", "--tier", "laptop"])
    assert stopped.value.code == 1


def test_the_command_draws_the_largest_group_and_names_the_rest(tmp_path, monkeypatch):
    """One record under another protocol neither stops the figure nor slips into it."""
    monkeypatch.setenv("LDMLAB_ROOT", str(tmp_path))
    for record in (a_record(4), a_record(8), a_record(16, n=1024)):
        record.save()
    assert draw_tradeoff("scenes", "laptop")[1] == ["f16_kl_scenes_32px_laptop_s0.json"]


@pytest.mark.parametrize("size, name", [(0, "one_scenes_smoke.png"), (64, "one_scenes_smoke_64px.png")])
def test_a_kept_figure_is_shown_and_written(size, name, tmp_path, monkeypatch):
    """What a cell shows lies in results/figures/ too; a size that is not the tier's own is in its name."""
    monkeypatch.setenv("LDMLAB_ROOT", str(tmp_path))
    run = Run("04_tradeoff", {"f": 8, "data": "scenes", "tier": "smoke", "seed": 0, "size": size}, "cpu", quiet=True)
    fig = fig_tradeoff([a_record(8)])
    assert run.keep("one", fig) is fig
    assert (results_dir() / "figures" / name).stat().st_size > 10_000


def test_a_notebook_finds_the_records_that_compare_with_its_own(tmp_path, monkeypatch):
    """Runs add points: the fold takes in other f and seeds, its own record once, and nothing of another tier."""
    monkeypatch.setenv("LDMLAB_ROOT", str(tmp_path))
    for record in (a_record(4), a_record(8), a_record(8, 1), a_record(8, tier="smoke")):
        record.save()
    found = load_comparable(a_record(8))
    assert sorted((r.params["f"], r.params["seed"]) for r in found) == [(4, 0), (8, 0), (8, 1)]


# Four clocks
STEPS = np.array([100.0, 800.0])


def test_paper_steps_undo_the_paper_s_batches():
    """Equal pictures are 16 times as many of the paper's steps at f = 1 as at f = 16 [LDM v2, Tab. 13]."""
    one, sixteen = (training_cost.paper_steps(grouped([a_record(f)])[0], STEPS) for f in (1, 16))
    assert one / sixteen == pytest.approx(112 / 7)


def test_time_includes_the_first_stage():
    """LDM-1 has none; the others start late."""
    one, eight = (training_cost.all_seconds(grouped([a_record(f)])[0], STEPS) for f in (1, 8))
    assert one == pytest.approx([100, 800]) and eight == pytest.approx([12.5 + 88, 100 + 88])


def test_training_costs_three_forward_passes():
    """For every picture seen."""
    series = grouped([a_record(8)])[0]
    assert training_cost.training_gflop(series, STEPS) == pytest.approx(
        3 * 1e8 / 8 * training_cost.pictures_seen(series, STEPS) / 1e9)


def test_clocks_name_every_model_and_the_batches():
    """Four panels, a line per f each, the paper's batch sizes in the small print."""
    fig = training_cost.fig_training_cost([a_record(f) for f in FS])
    assert len(fig.axes) == 4 and all(len(ax.lines) == 6 for ax in fig.axes)
    assert "7, 9, 40, 64, 112, 112" in words(fig)


def test_clocks_refuse_records_that_do_not_compare():
    with pytest.raises(ValueError, match="tier"):
        training_cost.fig_training_cost([a_record(8), a_record(8, tier="gpu")])
