"""Costs: counts that are known, Tab. 18 as the paper has it, and arithmetic on a machine that was made up."""

import json
from dataclasses import replace

import pytest
import torch

from ldmlab.checkpoints.released import LDMS
from ldmlab.diffusion.unet.unet import UNet
from ldmlab.evaluation.cost import V100_PER_A100
from ldmlab.experiments.compute import flops, forecasts, machine
from ldmlab.experiments.compute.flops import Costs, Model
from ldmlab.experiments.compute.machine import Machine, Measured, Rate
from ldmlab.figures import compute as figures
from ldmlab.paper import numbers as paper
from ldmlab.study.config.presets import study_spec
from ldmlab.study.config.specs import denoiser_config
from ldmlab.study.records.record import Record

# GFLOP of denoiser, encoder, decoder for a picture of 256 px: those of the authors' own code, counted there.
KNOWN = {"celeba256": (202.4, 345.2, 670.6), "lsun_churches256": (41.8, 272.7, 622.2),
         "txt2img-1p4B-eval": (182.1, 272.7, 622.2)}
SWEEP = {1: 1188, 8: 114.1, 32: 6.82}  # denoisers of Tab. 13


def rate(value: float, precision: str = "fp32") -> Rate:
    return Rate(value, value / 2, 2 * value, 0.1, precision)


def a_machine(**changes) -> Measured:
    """Trains LDM-1 at 400 and LDM-16 at 25 FLOP/s, the paper's widths at 100 and 400; the peak is 1000."""
    fields = dict(device="a device", tier="laptop", peaks={"fp32": rate(1000.0), "bf16": rate(500.0, "bf16")},
                  bandwidth=rate(50.0), training={1: rate(400.0), 16: rate(25.0)}, first_stage={2: rate(10.0)},
                  sampling=rate(5.0), wide={"outer": rate(400.0), "inner": rate(100.0, "bf16")})
    return Measured(**(fields | changes))


def a_model(f: int = 4, **changes) -> Model:
    return Model("a model", f, Costs(10, 2, 3, 1, 1), **({"num_steps": 100, "batch_size": 5, "first_stage_steps": 20,
                                                         "first_stage_batch": 2} | changes))


# --- Counting
@pytest.mark.parametrize("name", KNOWN)
def test_released_models_cost_what_was_counted_of_the_authors_code(name):
    """Within a percent, though our blocks are written otherwise."""
    costs = flops.costs_of_row(LDMS[name])
    assert (costs.denoiser / 1e9, costs.encode / 1e9, costs.decode / 1e9) == pytest.approx(KNOWN[name], rel=0.01)


@pytest.mark.parametrize("f", SWEEP)
def test_the_sweep_costs_what_its_shapes_cost(f):
    """The six f have equal parameters, and not by far equal work; f = 1 has nothing to encode."""
    costs = flops.costs_of_spec(study_spec(f, "vq", tier="paper"))
    assert costs.denoiser / 1e9 == pytest.approx(SWEEP[f], rel=0.01)
    assert (costs.encode == 0) == (f == 1)


def test_presets_and_released_models_of_one_row_cost_the_same():
    """The same model, described in two places of this project; labels enter beside the latent."""
    of_spec = flops.costs_of_spec(study_spec(4, "vq", tier="paper", condition="labels"))
    assert of_spec.denoiser == flops.costs_of_row(LDMS["semantic_synthesis256"]).denoiser


def test_a_training_step_is_about_three_forward_passes():
    """The rule that all trainings are counted by, against a count of forward and backward."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    config = denoiser_config(study_spec(8).diffusion, 1)
    with torch.device("meta"):
        unet, z, t = UNet(config), torch.empty(1, 4, 4, 4), torch.zeros(1)
        context = torch.empty(1, 2, config.context_dim)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        unet(z, t, context).sum().backward()
    assert counter.get_total_flops() == pytest.approx(3 * flops.count_denoiser(config, 4, 2), rel=0.01)


def test_costs_add_up():
    """Cached or online, guided or not, with a transformer for the condition and a masked picture to encode."""
    costs = Costs(denoiser=10, encode=2, decode=3, num_params=1, num_params_first_stage=1, tau=1)
    assert (costs.training(), costs.training(online=True)) == (33, 35)
    assert (costs.sampling(5), costs.sampling(5, guided=True)) == (54, 105)
    assert replace(costs, masked=True).training(online=True) == 37 and replace(costs, masked=True).sampling(5) == 56
    assert a_model().training() == 500 * 30 and a_model().first_stage_training == 40 * 15


def test_a_caption_s_transformer_counts_and_a_class_costs_nothing():
    """tau_theta of the text model takes part in training; Tab. 15 counts it among the 1.45B parameters."""
    costs = flops.costs_of_row(LDMS["txt2img-1p4B-eval"])
    total = costs.num_params + costs.num_params_tau + costs.num_params_first_stage
    assert costs.tau > 0 and total == pytest.approx(1.45e9, rel=0.05)
    assert flops.costs_of_spec(study_spec(8)).tau == 0


def test_parts_are_those_of_a_picture():
    """A cache shares two encodings out over all times that a picture is shown; sampling encodes nothing."""
    parts = flops.parts([a_model(num_steps=flops.IMAGENET, batch_size=4)], num_steps=7)
    assert parts["online"].loc[4].tolist() == [2, 30, 0]
    assert parts["cached"].loc[4].tolist() == [1, 30, 0]
    assert parts["sampling"].loc[4].tolist() == [0, 70, 3]


# --- Tab. 18
def test_tab_18_is_the_paper_s():
    """Every number of the table is the one in paper.csv, and no row is lost."""
    table, printed = flops.tab18(), paper.table("Tab. 18")
    assert list(table.index) == list(printed)
    for name, row in printed.items():
        assert table.loc[name, "total [V100-days]"] == row["total_v100_days"]
        assert table.loc[name, "FID"] == row["fid"] if "fid" in row else table.isna().loc[name, "FID"]


def test_implied_rates_are_count_over_time():
    """By hand for CelebA-HQ: pictures times operations over seconds of an A100, and samples per second times theirs."""
    costs = flops.costs_of_row(LDMS["celeba256"])
    row = flops.implied_rates([Model("CelebA-HQ / LDM-4", 4, costs, 410_000, 48)]).loc["CelebA-HQ / LDM-4"]
    seconds = 14.4 * 86_400 / V100_PER_A100
    assert row["training [TFLOP/s]"] == pytest.approx(410_000 * 48 * costs.training(True) / seconds / 1e12)
    assert row["sampling [TFLOP/s]"] == pytest.approx(0.43 * costs.sampling(500) / 1e12)


def test_implied_rates_take_the_steps_of_tab_18_and_double_what_is_guided():
    """Churches has other steps in Tab. 12; a scale of guidance means two passes."""
    churches = Model("LSUN-Churches / LDM-8", 8, Costs(1, 0, 0, 1, 1), 500_000, 96)
    assert flops.implied_rates([churches])["pictures seen [M]"].item() == pytest.approx(0.410 * 96)
    found = flops.implied_rates([Model("ImageNet / LDM-4", 4, Costs(10, 0, 0, 1, 1), 1, 1)])
    assert found.loc["ImageNet / LDM-4-G scale 1.5", "sample [TFLOP]"] == pytest.approx(
        2 * found.loc["ImageNet / LDM-4", "sample [TFLOP]"])


# --- Floors and estimates
def test_floors_are_work_over_peak():
    """Days of a training; of one call at batch 1 the slower of operations and of weights through memory."""
    slow = Machine("slow", "fp32", 1.0, 2.0, "made up")
    assert forecasts.time_lower_bounds([a_model(), a_model(num_steps=0)], [slow]).loc["a model", "slow"] * 86_400 == (
        pytest.approx(15_000))
    assert forecasts.forward_lower_bounds([a_model()], [slow]).loc["a model", "slow"] == 10_000
    faster = replace(slow, flops_per_s=100.0)
    assert forecasts.forward_lower_bounds([a_model()], [faster]).loc["a model", "slow"] == 1000


def test_estimates_take_the_rate_of_their_own_kind():
    """A tier's run: between the f that were timed, in logarithms. The paper's: the middle of the wide pieces."""
    measured = a_machine()
    denoiser, stage = forecasts.estimate_time(a_model(4), measured, wide=False)
    assert (denoiser.seconds, denoiser.low, denoiser.high) == pytest.approx((150, 75, 300))  # at 100 FLOP/s
    assert stage.seconds == pytest.approx(600 / 10)
    wide, stage = forecasts.estimate_time(a_model(first_stage_steps=0), measured, wide=True)
    assert (wide.seconds, wide.low, wide.high) == pytest.approx((15_000 / 200, 15_000 / 800, 15_000 / 50))
    assert stage is None
    table = forecasts.estimates([a_model(), a_model(num_steps=0)], measured, wide=False)
    assert table["denoiser [h]"].tolist() == pytest.approx([150 / 3600])
    assert table["share of peak"].item() == pytest.approx(0.1)


def test_a_share_is_of_the_peak_in_the_same_precision():
    """And the machine's own peak is that of its fastest precision."""
    measured = a_machine()
    assert measured.share(measured.wide["inner"]) == pytest.approx(0.2)
    assert (measured.machine.precision, measured.machine.flops_per_s) == ("fp32", 1000.0)


def test_records_are_compared_with_their_own_estimate(lab_root):
    """Recorded over estimated, by device; another tier's and another data set's records stay out."""
    params = {"f": 8, "reg": "kl", "data": "scenes", "tier": "laptop", "size": 32, "seed": 0}
    env = {"device": "cuda", "device_name": "a device"}
    seconds = {"train_s": {"value": 100.0}, "first_stage_train_s": {"value": 50.0}}
    for changes in ({}, {"tier": "smoke"}, {"data": "cifar10-train"}):
        Record("04_tradeoff", "LDM-8", params | changes, dict(seconds), env=env).save()
    measured = a_machine(training={8: rate(1e9)}, first_stage={8: rate(1e9)})
    found = forecasts.recorded_and_estimated(measured, "scenes").set_index("part")
    work = study_spec(8).diffusion.num_steps * 64 * flops.costs_of_spec(study_spec(8)).training()
    assert found.loc["denoiser", "estimated [s]"] == pytest.approx(work / 1e9)
    assert found.loc["denoiser", "ratio"] == pytest.approx(100e9 / work) and len(found) == 2
    off = forecasts.estimate_errors(forecasts.recorded_and_estimated(measured, "scenes"), measured)
    assert off["this machine"].all() and off["trainings"].tolist() == [1, 1]
    assert forecasts.recorded_and_estimated(measured, "nothing").empty
    assert forecasts.estimate_errors(forecasts.recorded_and_estimated(measured, "nothing"), measured).empty


# --- Measuring
@pytest.mark.long
def test_a_minute_s_measurement_is_whole():
    """Every job has a positive rate within its range, and the record can be written as JSON."""
    measured = machine.measure_machine(study_spec(1, tier="smoke", size=32), "cpu", 0.01)
    assert set(measured.training) == {1, 4, 16} and set(measured.first_stage) == {2, 4, 8, 32}
    for job in (*measured.jobs.values(), *measured.peaks.values(), measured.bandwidth):
        assert 0 < job.low <= job.value <= job.high and job.seconds > 0
    assert all(metric["value"] > 0 for metric in json.loads(json.dumps(measured.metrics())).values())
    with pytest.raises(ValueError, match="seconds must be positive, got 0"):
        machine.measure_machine(study_spec(1, tier="smoke"), "cpu", 0)


# --- Tables and pictures
def test_benchmark_tables_pass_over_what_is_none(tmp_path):
    """Ours beside each peer, a row each; other files, broken ones, and no folder at all are no error."""
    ratio = {"ratio": 2.0, "low": 1.5, "high": 2.5}
    shared = {"work": "w", "exact": True, "median_s": 1.0, "void": False, "goals": []}
    ours = {**shared, "kind": "ours", "variant": "a", "over": {"b": ratio, "c": ratio},
            "goals": [{"peer": "b", "at_least": 1.2}]}
    rows = [ours, {**shared, "kind": "ours", "variant": "c", "over": {"b": ratio}},
            {**shared, "kind": "peer", "variant": "b", "over": {"a": ratio}}]
    (tmp_path / "a.json").write_text(json.dumps({"table": "training", "rows": rows}))
    (tmp_path / "b.json").write_text(json.dumps([{"side": 1024}]))
    (tmp_path / "c.json").write_text("{")
    (tmp_path / "d.json").write_text(json.dumps({"table": "none", "rows": ["no row"]}))
    found = flops.benchmark_tables(tmp_path)
    assert list(found.index) == ["training"] * 2
    assert found[["variant", "peer", "ratio"]].values.tolist() == [["a", "b", 2.0], ["c", "b", 2.0]]
    assert found["goal"].dropna().tolist() == [1.2]
    assert flops.benchmark_tables(tmp_path / "nowhere").empty


def test_names_in_the_figure_of_tab_18_do_not_overlap():
    """Every row with an FID has its name, and no two names cover each other."""
    fig = figures.fig_tab18()
    for ax in fig.axes:
        boxes = [text.get_window_extent() for text in ax.texts]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert sum(len(ax.texts) for ax in fig.axes) == sum("fid" in row for row in paper.table("Tab. 18").values())


def test_a_figure_of_nothing_says_so():
    """Not an empty pair of axes."""
    measured = a_machine()
    with pytest.raises(ValueError, match="no training to compare with"):
        figures.fig_compared(forecasts.recorded_and_estimated(measured, "nothing"), measured)
