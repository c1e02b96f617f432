"""One run's rates and distortions, and the figure over all: nothing free, nothing compared that does not compare."""

from functools import partial
from math import isfinite, log2

import pytest
import torch

from ldmlab.data.images import to_float
from ldmlab.experiments import rate_distortion as rd
from ldmlab.figures.rate_distortion import equal_rate_table, fig_rate_distortion, tab8_rates
from ldmlab.study.records.record import Record

BPP = {"latent": [2.0, 1.0, 0.5], "jpeg": [0.4, 1.6, 6.4], "webp": [0.6, 1.2, 2.4]}
PSNR = {"latent": [24.0, 23.95, 20.0], "jpeg": [18.0, 22.0, 26.0], "webp": [19.0, 23.0, 25.0]}


def a_record(f: int = 8, reg: str = "kl", seed: int = 0, *, tier: str = "laptop", n: int = 1024, flat: bool = True,
             rate: float = 1.0, nearest: float = 10.0) -> Record:
    """A run as `record_rate_distortion` writes it, with invented numbers."""
    reg = "none" if f == 1 else reg
    scored = {"unit": "1", "n_real": n, "n_fake": n, "extractor": "effnet", "weights_hash": "ab12cd34"}
    metrics = {"rkd_effnet": scored | {"value": 10.0 * f}, "first_stage_flat": {"value": None if f == 1 else flat},
               "perceptual": scored | {"value": 0.1, "name": "PSIM-lab", "extractor": "PSIM-lab"}}
    curves = {}
    for coder in ("latent", "jpeg", "webp"):
        settings = [0] if (coder, reg) == ("latent", "vq") else [1, 4, 16]
        if (coder, reg) == ("latent", "none"):
            continue
        own = rate * 8 / f if coder == "latent" else 1.0
        for i, setting in enumerate(settings):
            bpp = BPP[coder][i] * own
            values = {"bpp": bpp, "bpp_se": 0.01, "file_bpp": bpp + 2 * (coder == "jpeg"),
                      "psnr": PSNR[coder][i] + seed / 10, "perceptual": 0.1 + i / 10, "rkd_effnet": nearest + 20 * i}
            for what, value in values.items():
                curves.setdefault(f"{coder}_{what}", []).append([setting, value])
    times = [999, 500, 100, 0]
    curves |= {"progressive_bpp": [[t, 4 / f * 2.0 ** -(t / 100)] for t in times],
               "progressive_rmse": [[t, f + 10 + t / 20] for t in times],
               "progressive_rmse_se": [[t, 0.5] for t in times]}
    if reg == "kl":
        metrics["free_step"] = {"value": rd.free_step(Record("", "", {}, curves=curves))}
    if reg == "vq":
        metrics["fixed_bpp"] = {"value": 9 / f**2}
    params = {"f": f, "reg": reg, "data": "scenes", "size": 32, "tier": tier, "seed": seed}
    return Record("05_rate_distortion", f"LDM-{f}", params, metrics, curves,
                  {"num_val": n, "tables_from": 20_000, "rkd_num": 256, "pillow": "12", "progressive_num": 256,
                   "progressive_times": 40},
                  {"data": "0f" * 32}, env={"git": {"commit": "abc1234def", "dirty": False}})


def words(fig) -> str:
    """All text of a figure."""
    texts = fig.findobj(lambda artist: hasattr(artist, "get_text"))
    return " ".join(text.get_text() for text in texts).replace("\n", " ")


# The figure and the tables
@pytest.mark.parametrize("records", [
    [a_record(8)], [a_record(1)], [a_record(8, "vq")],
    [a_record(f, reg, seed) for f in (1, 4, 8, 16) for reg in ("kl", "vq") for seed in (0, 1)]])
def test_the_figure_stands_on_any_number_of_records(records):
    """After one run or all; every first stage and every diffusion model is named."""
    said = words(fig_rate_distortion(records))
    for r in records:
        f, reg = r.params["f"], r.params["reg"]
        assert f"LDM-{f}" in said and (f == 1 or f"{reg.upper()}-f{f}" in said)
    for part in ("1024 validation pictures", "scenes at 32 px", "tier laptop", "20000 training", "effnet (ab12cd34)",
                 "abc1234", "256 pictures", "PSIM-lab"):
        assert part in said


@pytest.mark.parametrize("other", [{"tier": "gpu"}, {"n": 512}])
def test_what_does_not_compare_is_refused(other):
    """Rates of another tier or from other pictures never slip into one figure."""
    with pytest.raises(ValueError, match="differ in"):
        fig_rate_distortion([a_record(8), a_record(4, **other)])


def test_smoke_records_and_unfinished_first_stages_are_marked():
    """The smoke tier is no evidence; a first stage that was still improving carries its dagger."""
    assert "testing only" in words(fig_rate_distortion([a_record(tier="smoke")]))
    said = words(fig_rate_distortion([a_record(8), a_record(16, flat=False)]))
    assert "KL-f16†" in said and "KL-f8†" not in said and "testing only" not in said


def test_a_first_stage_without_bits_does_not_break_the_figure():
    """At smoke, the latents of an untrained KL model round to one symbol, which costs nothing."""
    assert "KL-f8" not in words(fig_rate_distortion([a_record(8, rate=0.0, tier="smoke")]))


def test_a_kernel_distance_below_zero_is_drawn_on_a_linear_axis():
    """Nothing is dropped because a logarithm has no place for it."""
    for nearest, scale in ((10.0, "log"), (-0.5, "linear")):
        ax = fig_rate_distortion([a_record(8, nearest=nearest)]).axes[2]
        assert ax.get_yscale() == scale
        assert min(y for line in ax.get_lines() for y in line.get_ydata()) == nearest


def test_files_are_compared_at_equal_bits():
    """Interpolated in log rate, by hand; empty beyond what was measured."""
    (row,) = equal_rate_table([a_record(8)]).to_dict("records")  # free step 4: 1 bpp
    assert (row["model"], row["bpp"], row["PSNR [dB]"]) == ("KL-f8", 1.0, 23.95)
    assert row["PSNR [dB], JPEG"] == pytest.approx(18 + 4 * log2(1 / 0.4) / 2, abs=1e-3)
    (row,) = equal_rate_table([a_record(32)]).to_dict("records")
    assert row["bpp"] == 0.25 and row["PSNR [dB], JPEG"] is None or row["PSNR [dB], JPEG"] != row["PSNR [dB], JPEG"]
    assert equal_rate_table([a_record(1)]).empty


def test_table_8_stands_beside_ours():
    """The rate that |Z| and f imply, as the inventory derives it, and none for KL."""
    table = tab8_rates([a_record(4, "vq"), a_record(8, "kl")])
    assert table.loc["VQ-f4", "paper: bpp"] == round(13 / 16, 3)
    assert table["paper: bpp"].isna().tolist() == [name.startswith("KL") for name in table.index]
    assert table.loc["KL-f8", "ours: bpp, coded"] == 1.0 and table.loc["VQ-f4", "ours: bpp, fixed length"] == 0.562


def test_the_free_step_is_the_coarsest_that_costs_nothing_to_see():
    """0.05 dB is free, 4 dB is not."""
    assert rd.free_step(a_record()) == 4
    assert rd.working_point(a_record())["bpp"] == 1.0 and rd.working_point(a_record(1)) == {}
    assert rd.nearest_setting(a_record(), "jpeg", 1.5) == (4, 1.6)
    assert rd.points(a_record(), "jpeg", "psnr", "file_bpp")[0] == [2.4, 18.0]


# A run
@pytest.fixture
def a_run(tiny_run, monkeypatch):
    """Few settings, too: what is tested is what is counted, not how good it is."""
    monkeypatch.setattr(rd, "STEPS", (0.001, 0.02))  # of a posterior that has not been trained, and so is wide
    monkeypatch.setattr(rd, "QUALITIES", {"jpeg": (5, 90), "webp": (5, 90)})
    return partial(tiny_run, "05_rate_distortion")


@pytest.mark.parametrize(("f", "reg"), [(8, "kl"), (8, "vq"), (1, "kl")])
def test_a_run_measures_bits_for_everything_it_draws(f, reg, a_run, monkeypatch):
    """Rates in order of the dials, entropies below the alphabet's, a repeated run loads."""
    run = a_run(f, reg)
    record = rd.record_rate_distortion(run)
    value = {name: metric["value"] for name, metric in record.metrics.items()}.__getitem__
    for codec in ("jpeg", "webp"):
        (_, low), (_, high) = record.curves[f"{codec}_bpp"]
        assert 0 < low < high < record.curves[f"{codec}_file_bpp"][1][1]
    sent, error = (dict(record.curves[f"progressive_{what}"]) for what in ("bpp", "rmse"))
    rates = [sent[t] for t in sorted(sent, reverse=True)]
    assert min(sent) == 0 and rates == sorted(rates) and rates[0] > 0 and all(isfinite(v) for v in error.values())
    if f == 1:
        assert "latent_bpp" not in record.curves and value("bits_per_dim") > 0
    elif reg == "kl":
        (_, fine), (_, coarse) = record.curves["latent_bpp"]
        assert fine > coarse > 0 and record.curves["fitted_posterior_bpp"][0][1] < record.curves["posterior_bpp"][0][1]
        assert value("entropy_by_place") <= value("entropy_marginal") + 1e-9
    else:
        bound = log2(value("num_codes"))
        assert value("entropy_by_place") <= value("entropy_marginal") <= bound
        assert value("fixed_bpp") == bound / 64 and value("symbols_used") <= value("num_codes")
        ((_, bpp),) = record.curves["latent_bpp"]
        assert bpp == pytest.approx(value("code_length_by_place") / 64, rel=1e-4)
    run.finish(record)
    monkeypatch.setattr(rd, "_measure", lambda *_: pytest.fail("measured again"))
    assert rd.record_rate_distortion(a_run(f, reg)).curves == record.curves


def test_pictures_come_back_at_the_rates_their_names_say(a_run):
    """Files and the run's own first stage, each beside the picture; completions begin where z_t is."""
    run = a_run(8, "kl")
    record = rd.record_rate_distortion(run)
    x = to_float(run.pictures.val.images(range(3)))
    rate = record.curves["latent_bpp"][0][1]
    rows = rd.pictures_at(run, [record], x, rate)
    assert [name.split(",")[0] for name in rows] == ["x", "jpeg", "webp", "KL-f8"] and f"{rate:.2g}" in list(rows)[3]
    assert all(row.shape == x.shape and row.abs().max() <= 1 for row in rows.values())
    y = torch.zeros(3, dtype=torch.long)
    late, early = (rd.completions(run, x, y, t) for t in (1, 900))
    rec = rd.rounded(run.first_stage.model, x, record, 0)
    assert (late - rec).abs().mean() < (early - rec).abs().mean()
