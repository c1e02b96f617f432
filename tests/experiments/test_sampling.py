"""Sampling measured: samplers from equal noise, budgets that say what they leave out, fronts and orders that are so."""

from dataclasses import replace
from functools import partial
from math import exp

import numpy as np
import pytest
import torch

from ldmlab.claims.quantities import by_steps, rate_by_steps
from ldmlab.diffusion.samplers import SAMPLERS, SamplerRow, ddim
from ldmlab.diffusion.schedules import scaled_linear
from ldmlab.experiments import sampling
from ldmlab.experiments.sampling import (
    BY_STEPS,
    NAMES,
    curve_name,
    enough_steps,
    order,
    pareto_front,
    plan_jobs,
    variants,
)
from ldmlab.figures.sampling import fig_convergence, fig_samplers, fig_steps, paper_rates
from ldmlab.study.config.presets import study_spec
from ldmlab.study.config.specs import EvaluationSpec
from ldmlab.study.records.record import Record

STEPS, FEW = (10, 20, 50, 100, 200), (5, 10, 20, 50)


def a_record(f: int = 8, reg: str = "kl", seed: int = 0, *, tier: str = "laptop", n: int = 512, fd: float = 60.0,
             rate: float = 1600.0, cpu: str = "x86", most: int = 200) -> Record:
    """A run as `record_sampling` writes it, with invented numbers: KD-EffNet falls as 1 + 4 / steps."""
    curves = {"images_per_s": [[k, rate / k] for k in STEPS]}
    for i, key in enumerate(variants()):
        for k in sorted({*FEW, *(STEPS if key in NAMES else ())}):
            value = (fd + seed) * (1 + 4 / k) * (1 + i / 10)
            for end, factor in (("", 1.0), ("_low", 0.95), ("_high", 1.05)):
                if k <= most:
                    curves.setdefault(curve_name(key) + end, []).append([k, value * factor])
    scored = {"value": dict(map(tuple, curves[BY_STEPS]))[20], "unit": "1", "n_real": 10_000, "n_fake": n,
              "name": "KD-EffNet", "extractor": "effnet", "weights_hash": "ab12cd34",
              "interval": {"low": 50.0, "high": 80.0, "level": 0.95, "method": "bootstrap"}}
    params = {"f": f, "reg": "none" if f == 1 else reg, "data": "scenes", "size": 32, "tier": tier, "seed": seed}
    protocol = {"sampler": "ddim", "num_steps": 20, "eta": 0.0, "timed_batch": 16, "timed_repeats": 3}
    events = [] if most >= 200 else ["DDIM by steps: 200 steps left out: over the budget"]
    return Record("07_sampling", f"LDM-{f}", params, {"kd_effnet": scored}, curves, protocol, {"data": "0f" * 32},
                  events, {"device": "cpu", "device_name": cpu, "threads": 1,
                           "git": {"commit": "abc1234def", "dirty": False}})


def words(fig) -> str:
    """All text of a figure."""
    texts = fig.findobj(lambda artist: hasattr(artist, "get_text"))
    return " ".join(text.get_text() for text in texts).replace("\n", " ")


# What is read off a record
def test_the_front_holds_what_nothing_beats():
    """By definition, over all pairs of random points; of two equal points one stays."""
    points = [tuple(p) for p in np.random.default_rng(0).random((40, 2))] + [(0.5, 0.01), (0.5, 0.01), (0.4, 0.01)]

    def beaten(a):
        return any(b[0] >= a[0] and b[1] <= a[1] and b != a for b in points)

    front = [points[i] for i in pareto_front(points)]
    assert len(front) == len(set(front)) and set(front) == {p for p in points if not beaten(p)}
    assert front == sorted(front, reverse=True)


def test_order_of_a_power_law():
    """The fitted order is the exponent, whatever lies outside the fitted range."""
    curve = [(5, 1e9), *((k, 3.0 * k**-2.5) for k in (20, 40, 50, 100)), (200, 1e-12)]
    assert order(curve) == pytest.approx(2.5)


def test_enough_steps_are_the_fewest_within_the_interval():
    """DDIM at 200 steps reaches up to 60 x 1.02 x 1.05 = 64.3, which 60 (1 + 4 / 100) is below and others never."""
    found, names = enough_steps(a_record()), [variant.name for variant in variants().values()]
    assert found["DDIM, eta 0"] == 100 and found["PLMS"] is None and list(found) == names


def test_a_budget_leaves_out_long_runs_and_says_so():
    """A slow model keeps all steps up to the protocol's, whatever they cost; without a limit nothing is left out."""
    plan = EvaluationSpec(512, 20, 128, 10_000)
    fast, slow = ([[k, rate / k] for k in STEPS] for rate in (1600, 100))
    everything = [(key, k) for k in (5, 10, 20, 50, 100, 200) for key in NAMES] + [
        (key, k) for k in FEW for key in variants() if key not in NAMES]
    assert plan_jobs(plan, fast) == (everything, []) and plan_jobs(plan, slow, limited=False) == (everything, [])
    jobs, notes = plan_jobs(plan, slow)  # 5.12 s a step: 870 s are spent at 50 steps of both, 100 more take 1024 s
    assert [k for key, k in jobs if key == "ddim"] == [5, 10, 20, 50]
    assert sorted({k for key, k in jobs if key not in NAMES}) == [5, 10, 20]
    assert [note.partition(" left out")[0] for note in notes] == [
        "DDIM by steps: 100 steps", "DDIM by steps: 200 steps", "samplers side by side: 50 steps"]
    assert "17 min 4 s on top of 14 min 30 s" in notes[0] and "100 picture steps/s" in notes[0]


@pytest.mark.parametrize("tier", ["smoke", "laptop", "gpu", "paper"])
def test_every_tier_scores_the_steps_of_its_protocol(tier):
    """The DDIM point that is the record's metric is among those planned, and samplers are compared at it or below."""
    plan = study_spec(8, tier=tier).evaluation
    assert plan.num_steps in plan.speed_steps
    assert 1 <= min(sampling.compared_steps(plan)) < min(plan.speed_steps)


# The figures and the table
@pytest.mark.parametrize("records", [
    [a_record()], [a_record(1)],
    [a_record(f, reg, seed, rate=200.0 * f) for f in (1, 8) for reg in ("kl", "vq") for seed in (0, 1)]])
def test_the_figures_stand_on_any_number_of_records(records):
    """After one run or many: every model is named, and what the numbers rest on."""
    for fig in (fig_steps(records), fig_samplers(records)):
        said = words(fig)
        for part in ("n = 512 samples against 10000", "scenes at 32 px", "tier laptop", "effnet (ab12cd34)", "abc1234",
                     *(f"LDM-{r.params['f']}" for r in records)):
            assert part in said
    assert "Pareto front" in words(fig_steps(records)) and "200, 100, 50, 20, 10 steps" in words(fig_steps(records))
    assert all(variant.name in words(fig_samplers(records)) for variant in variants().values())


def test_what_does_not_compare_is_refused_or_marked():
    """Scores of other numbers of pictures are refused; a record timed elsewhere stays out of the throughput alone."""
    with pytest.raises(ValueError, match="differ in"):
        fig_steps([a_record(), a_record(4, n=256)])
    fig = fig_steps([a_record(8), a_record(4), a_record(2, cpu="another")])
    speed, steps, _ = fig.axes
    assert "1 record(s) timed on another device" in words(fig)
    assert [sum("LDM-2" == text.get_text() for text in ax.texts) for ax in (speed, steps)] == [0, 1]


def test_smoke_records_and_gaps_are_marked():
    """The smoke tier is no evidence; a record with steps left out is counted, and drawn with what it has."""
    assert "testing only" in words(fig_steps([a_record(tier="smoke")]))
    said = words(fig_steps([a_record(8), a_record(1, most=50)]))
    assert "1 of 2 records lack the numbers of steps" in said and "LDM-1" in said and "testing only" not in said


def test_table_18_stands_beside_ours():
    """1.9 pictures a second at 200 steps are 380 picture steps; guided models, which call twice, stay out."""
    table = paper_rates([a_record(8)])
    assert table.loc[("paper", "ImageNet", "LDM-8"), "picture steps/s"] == pytest.approx(380)
    assert table.loc[("ours, x86, 1 thread", "scenes", "LDM-8"), "picture steps/s"] == 1600
    assert not any("-G" in model for *_, model in table.index) and len(table) == 7


def test_convergence_shows_the_orders_of_the_samplers():
    """First order for DDIM, second for DPM-Solver++(2M); PLMS far ahead of DDIM; the figure names the fits."""
    curves = sampling.convergence_curves(scaled_linear())
    assert order(curves["ddim"]) == pytest.approx(1, abs=0.1)
    assert order(curves["dpm-solver++"]) == pytest.approx(2, abs=0.1)
    assert all(p < d / 3 for (_, p), (_, d) in zip(curves["plms"], curves["ddim"], strict=True))
    said = words(fig_convergence(curves))
    assert f"{order(curves['ddim']):.2f}" in said and "20 to 100 steps" in said


# A run
@pytest.fixture
def a_run(tiny_run):
    return partial(tiny_run, "07_sampling", 16)


def test_the_sampler_of_a_model_is_chosen_by_name(a_run):
    """The default is DDIM as before; DDPM on few steps is DDIM at eta = 1; no other sampler takes an eta."""
    model, y = a_run().diffusion.model, torch.arange(3)
    default = model.sample(y, num_steps=3, seed=4)
    assert torch.equal(default, model.sample(y, num_steps=3, sampler="ddim", seed=4))
    noisy = model.sample(y, num_steps=3, sampler="ddpm", seed=4)
    assert torch.equal(noisy, model.sample(y, num_steps=3, eta=1.0, seed=4)) and not torch.equal(noisy, default)
    for name in ("plms", "dpm-solver++"):
        pictures = model.sample(y, num_steps=3, sampler=name, seed=4)
        assert pictures.isfinite().all() and not torch.equal(pictures, default)
        assert torch.equal(pictures, model.sample(y, num_steps=3, sampler=name, seed=4))
    with pytest.raises(ValueError, match="ddim, ddpm, plms, dpm-solver.*'euler'"):
        model.sample(y, num_steps=3, sampler="euler")
    with pytest.raises(ValueError, match="eta = 0.5 with sampler 'plms'"):
        model.sample(y, num_steps=3, sampler="plms", eta=0.5)


def test_a_run_measures_all_samplers_and_is_found_again(a_run, monkeypatch, capsys):
    """Curves for every variant under the names that the ledger reads, within their intervals; a second run loads."""
    run = a_run()
    record = sampling.record_sampling(run)
    assert [k for k, _ in record.curves["images_per_s"]] == [2, 4] and record.events == []
    for key in variants():
        name = curve_name(key)
        assert [k for k, _ in record.curves[name]] == [1, 2, 4]
        for (_, low), (_, value), (_, high) in zip(*(record.curves[name + end] for end in ("_low", "", "_high")),
                                                   strict=True):
            assert low < value < high
    assert record.curves[BY_STEPS][1:] != record.curves[curve_name("ddpm")][1:]
    kd = record.value("kd_effnet")
    assert dict(map(tuple, record.curves[BY_STEPS]))[4] == pytest.approx(kd, rel=1e-5)
    assert record.metrics["kd_effnet"]["n_fake"] == 12 and record.metrics["kd_effnet"]["interval"]["level"] == 0.95
    assert record.protocol["curves"][curve_name("ddpm")] == {"sampler": "ddpm", "eta": 1.0}

    rate = dict(map(tuple, record.curves["images_per_s"]))[4]  # as the ledger of claims reads it
    for quantity, curve in zip(by_steps(4).views.values(), NAMES.values(), strict=True):
        assert quantity.read(record, None) == dict(map(tuple, record.curves[curve]))[4]
    assert exp(rate_by_steps(4).views["", ""].read(record, None)) == pytest.approx(rate)

    judged = run.scorer.score(run.scorer.sample(run.diffusion.model), ("kd_effnet",), intervals=False)["kd_effnet"]
    assert kd == pytest.approx(judged.value, rel=1e-4)  # that of 04: the same noise, steps and judge

    run.finish(record)
    monkeypatch.setattr(sampling, "_score_job", lambda *_: pytest.fail("measured again"))
    assert sampling.record_sampling(a_run()).curves == record.curves
    assert "loaded" in capsys.readouterr().out


def test_a_sampler_is_one_row(a_run, monkeypatch):
    """With a row alone it samples from a model, is planned and drawn beside the others, and has its order measured."""
    calls = []

    def coarse(eps_model, z_T, schedule, num_steps, *, generator=None, on_step=None):
        calls.append(num_steps)
        return ddim(eps_model, z_T, schedule, max(1, num_steps // 2))

    row = SamplerRow(coarse, "Half as many DDIM steps", num_calls=lambda num_steps: max(1, num_steps // 2))
    monkeypatch.setitem(SAMPLERS, "coarse++", row)
    run = a_run()
    rows = sampling.side_by_side(run, torch.arange(2), 6)
    assert calls == [6] and torch.equal(rows[row.title], sampling.sample_with(run, "ddim", torch.arange(2), 3))
    with pytest.raises(ValueError, match="eta = 0.5 with sampler 'coarse[+][+]'"):
        run.diffusion.model.sample(torch.arange(2), num_steps=6, sampler="coarse++", eta=0.5)
    assert sampling.calls(("coarse_pp", 50)) == 25
    jobs, _ = plan_jobs(EvaluationSpec(512, 20, 128, 10_000), [[k, 1600 / k] for k in STEPS])
    assert {k for key, k in jobs if key == "coarse_pp"} == set(FEW)
    assert row.title in words(fig_samplers([a_record()])) and "kd_effnet_by_steps_coarse_pp" in a_record().curves
    monkeypatch.setattr(sampling, "ORDER_STEPS", (20, 40))
    assert row.title in words(fig_convergence(sampling.convergence_curves(scaled_linear())))


def test_pictures_of_all_samplers_start_from_one_noise(a_run):
    """In many steps the deterministic samplers meet, so a column holds the same picture."""
    run = a_run()
    rows = sampling.side_by_side(run, torch.arange(2), 60)
    assert list(rows) == [variant.name for variant in variants().values()]
    ddim, plms, other = (rows[variants()[key].name] for key in ("ddim", "plms", "ddpm"))
    assert (ddim - plms).abs().mean() < 0.5 * (ddim - other).abs().mean()


def test_records_of_the_former_score_are_refused_by_name():
    """They have FD-lab: it never stands beside KD-EffNet, and the error says what to do."""
    old = replace(a_record(4), metrics={"fd_lab": {"value": 50.0}})
    for draw, records in ((fig_steps, [a_record(), old]), (fig_samplers, [old])):
        with pytest.raises(ValueError, match="no kd_effnet in this record.*Run notebook 07_sampling again"):
            draw(records)
