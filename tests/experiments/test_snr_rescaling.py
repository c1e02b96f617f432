"""The scale of a latent: released schedules as derived, a scale as a shift in time, measures of large samples."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ldmlab.claims.quantities import GAIN_2X, GAIN_BEYOND, VQ_2X
from ldmlab.diffusion.model import LatentDiffusion
from ldmlab.diffusion.samplers import SampleNoise
from ldmlab.diffusion.schedules import scaled_linear
from ldmlab.experiments import latent_scale, snr_rescaling
from ldmlab.figures import snr_rescaling as figures
from ldmlab.first_stage.autoencoder import build_autoencoder
from ldmlab.first_stage.latents import LatentStats
from ldmlab.first_stage.networks import AutoencoderConfig
from ldmlab.study.config.notebooks import NOTEBOOKS
from ldmlab.study.config.presets import study_spec
from ldmlab.study.records.record import Record
from ldmlab.study.runs.run import Run

SCHEDULE = scaled_linear()
# beta_1, beta_T: sqrt(alpha_bar_T), log SNR_T, t at SNR = 1 of a latent of std 1, and of one of std 5.49.
RELEASED = {
    (0.0015, 0.0195): (0.0119, -8.86, 255, 637), (0.0015, 0.0155): (0.0259, -7.31, 269, 690),
    (0.0015, 0.0205): (0.0098, -9.24, 252, 627), (0.00085, 0.012): (0.0683, -5.36, 354, 816),
}


class Optimal(nn.Module):
    """The best eps_hat where z_0 is standard normal, entry by entry: E[eps | z_t] = sqrt(1 - alpha_bar_t) z_t."""

    def forward(self, z_t, t):
        return (1 - SCHEDULE.alpha_bar[t]).sqrt().to(z_t)[:, None, None, None] * z_t


def scale_view(std=4.0):
    """Pixels as latents, seen by the optimal denoiser."""
    stage = build_autoencoder(AutoencoderConfig(f=1, z_channels=3, reg="none", resolution=16))
    stats = LatentStats("none", (0.0,), (1.0,), (0.01,), 8)
    model = LatentDiffusion(stage, stats, Optimal(), SCHEDULE, None, 16, torch.device("cpu"))
    z0 = 0.1 * torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    share = {"layout": [[0, 1.0], [500, 0.75], [999, 0.0]], "texture": [[0, 1.0], [500, 0.25], [999, 0.0]]}
    return latent_scale.ScaleView(model, z0, torch.zeros(2, dtype=torch.long), std, share)


def test_the_released_schedules_have_the_derived_ends_and_crossings():
    """Every pair of betas, to the digits that the inventory of the paper gives; the latent of std 5.49 is KL-f8's."""
    assert round(latent_scale.RELEASED_STD, 2) == 5.49
    rows = latent_scale.schedule_rows({"rescaled": 1.0, "KL-f8": latent_scale.RELEASED_STD})
    found = {(row["beta_1"], row["beta_T"]): (
        round(row["sqrt(alpha_bar_T)"], 4), round(row["log SNR_T"], 2), row["t at SNR = 1, rescaled"],
        row["t at SNR = 1, KL-f8"]) for row in rows}
    assert found == RELEASED


def test_a_crossing_is_the_first_step_below():
    """One step earlier the signal still holds its own; a latent that noise never outweighs crosses at T."""
    for std, level in ((1.0, 0.0), (3.0, -2.0), (0.2, 1.0)):
        curve, t = SCHEDULE.log_snr + 2 * np.log(std), SCHEDULE.crossing(std, level)
        assert curve[t - 1] >= level > curve[t]
    assert SCHEDULE.crossing(1000.0) == SCHEDULE.T and SCHEDULE.crossing(1e-3) == 0
    with pytest.raises(ValueError, match="positive; got 0"):
        SCHEDULE.crossing(0)


def test_the_step_of_a_given_noise_is_found_again():
    """step_at inverts log_snr, and stays inside the schedule."""
    t = torch.tensor([0, 1, 254, 998, 999])
    assert torch.equal(SCHEDULE.step_at(SCHEDULE.log_snr[t]), t)
    assert SCHEDULE.step_at(torch.tensor([50.0, -50.0])).tolist() == [0, 999]


@pytest.mark.parametrize("std", [0.5, 3.0])
def test_a_scale_is_a_shift_in_time(std):
    """What the view shows at scale std is the optimal guess for latents of that scale, worked out directly."""
    view, t = scale_view(), 600
    (shown,) = view.pictures(std, [t])
    eps = SampleNoise(0, range(2))(view.z0)
    ab = float(SCHEDULE.alpha_bar[t])
    z_t = ab**0.5 * std * view.z0 + (1 - ab) ** 0.5 * eps
    expected = std * ab**0.5 / (std**2 * ab + 1 - ab) * z_t  # E[z_0 / std | z_t]
    torch.testing.assert_close(shown, expected.clamp(-1, 1), atol=0.01, rtol=0)
    assert (view.same_noise(std, [t])[0] < t) == (std > 1)


def test_larger_latents_settle_later_in_the_forward_process():
    """The curves of layout and texture move to larger t, and stay what they are at scale 1."""
    view = scale_view()
    assert view.shares(1.0, "layout")[[0, 500, 999]] == pytest.approx([1.0, 0.75, 0.0])
    half = [int((view.shares(std, "texture") >= 0.5).sum()) for std in (0.3, 1.0, 3.0)]
    assert half == sorted(half) and len(set(half)) == 3


def test_half_is_where_the_curve_falls_through_one_half():
    """Between two measured steps by a straight line; T where it never falls; over chosen pictures only."""
    error = {"layout": np.array([[0.0, 0.0], [0.5, 0.1], [2.0, 0.4]])}
    found = latent_scale.Settled([0, 100, 200], error, {"layout": np.array([2.0, 1.0])})
    assert found.share("layout") == pytest.approx([1.0, 0.8, 0.2])
    assert found.half("layout", 1000) == pytest.approx(150.0)
    assert found.half("layout", 1000, np.array([1])) == 1000.0
    assert found.half("layout", 1000, np.array([0])) == pytest.approx(100 + 100 / 3)


def test_windows_are_parts_of_their_pictures_at_places_of_their_own():
    """Each window is found in its picture; places vary, and are the same again for the same seed."""
    x = torch.arange(40 * 3 * 8 * 8, dtype=torch.float32).view(40, 3, 8, 8)
    found = snr_rescaling.windows(x, 4)
    corners = found[:, 0, 0, 0].long() - x[:, 0, 0, 0].long()
    assert all(torch.equal(w, p[:, c // 8:c // 8 + 4, c % 8:c % 8 + 4])
               for w, p, c in zip(found, x, corners.tolist(), strict=True))
    assert len(set(corners.tolist())) > 10 and corners.max() > 4 * 8
    assert torch.equal(found, snr_rescaling.windows(x, 4))
    assert not torch.equal(found, snr_rescaling.windows(x, 4, seed=1))
    with pytest.raises(ValueError, match="window of 9 px"):
        snr_rescaling.windows(x, 9)


def test_a_wave_is_found_at_its_wavelength():
    """A wave of three half periods a side lies in the third ring, with all its power; flat pictures have none."""
    place = (torch.arange(32) + 0.5) * torch.pi / 32
    wave = 0.5 * torch.cos(3 * place).expand(2, 3, 32, 32)
    power = snr_rescaling.spectrum(wave)
    assert power.shape == (2, 31) and power[0, 2].item() == pytest.approx(32 * 32 * 0.125, rel=1e-6)
    assert power[0].sum() == pytest.approx(power[0, 2].item()) and snr_rescaling.spectrum(wave * 0 + 0.3).max() < 1e-9


def params(**changes):
    return {"f": 8, "data": "scenes", "size": 0, "tier": "smoke", "seed": 0, **changes}


def test_the_variants_differ_in_their_latent_alone_and_share_a_model_with_the_study(lab_root):
    """Four runs on the same pictures; the rescaled KL is 04's, so that it is trained once."""
    run = Run("06_snr_rescaling", params(), device="cpu", quiet=True)
    made = snr_rescaling.variants(run)
    specs = {key: each.spec for key, each in made.items()}
    assert made["kl_rescaled"] is run and specs["kl_rescaled"] == study_spec(8, "kl", "scenes", "smoke")
    assert {key: (s.reg, s.diffusion.scale_mode) for key, s in specs.items()} == snr_rescaling.VARIANTS
    assert specs["kl_none"].first_stage == specs["kl_rescaled"].first_stage
    assert len({s.diffusion.denoiser for s in specs.values()}) == 1 and all(
        each.pictures is run.pictures for each in made.values())


def test_pixels_are_refused_before_any_work(lab_root):
    """f = 1 has no latent to rescale, and says so while nothing has been trained or read."""
    with pytest.raises(ValueError, match="f = 1 has no first stage"):
        snr_rescaling.variants(Run("06_snr_rescaling", params(f=1), device="cpu", quiet=True))
    assert not (lab_root / "results").exists()


def made_up(seed=0, nearest=1.0, **changes):
    """A record as the notebook leaves it, with made-up numbers."""
    interval = {"low": 40.0, "high": 60.0, "level": 0.95, "method": "made up"}
    scored = {"n_fake": 512, "n_real": 1000, "extractor": "effnet", "weights_hash": "0" * 64}
    metrics, curves = {}, {}
    for i, key in enumerate(snr_rescaling.VARIANTS):
        for view in ("1x", "2x", "2x_whole"):
            for suffix in ("", "_eta1"):
                metrics[f"kd_effnet_{view}_{key}{suffix}"] = scored | {"value": 50.0 + seed + i, "interval": interval}
            metrics[f"kd_effnet_{view}_real"] = scored | {"value": nearest}
        for band in latent_scale.BANDS:
            metrics[f"{band}_t_{key}"] = {"value": 50.0, "interval": interval, "n": 64}
        for end in ("", "_low", "_high"):
            curves[f"spectrum_2x_{key}{end}"] = [[64.0, 0.5], [32.0, 1.0], [2.1, 2.0]]
    for band in latent_scale.BANDS:
        metrics[f"{band}_t_kl_none_predicted"] = {"value": 60.0}
    return Record("06_snr_rescaling", "LDM-8", params(tier="laptop", seed=seed, size=32, reg="kl", **changes), metrics,
                  curves, {"sampler": "ddim", "num_steps": 20, "large_size": 64})


def test_the_figure_draws_intervals_of_one_record_and_ranges_of_several():
    """Error bars are over samples or over seeds, and the small print says which."""
    for records, said, reach in (([made_up()], "1 seed: 95 % intervals", (40, 60)),
                                 ([made_up(0), made_up(4)], "2 seeds: means and ranges", (50, 54))):
        fig = figures.fig_rescaling(records)
        assert said in " ".join(" ".join(text.get_text() for text in fig.texts).split())
        (bar,) = fig.axes[0].containers[0].lines[2]
        assert bar.get_segments()[0][:, 1] == pytest.approx(reach)


def test_both_samplers_share_an_axis_that_holds_what_is_not_positive():
    """Logarithmic only where every distance and the end of its bar can be shown."""
    for nearest, scale in ((1.0, "log"), (-1.0, "linear")):
        eta_0, eta_1 = figures.fig_rescaling([made_up(nearest=nearest)]).axes[:2]
        assert eta_0.get_yscale() == eta_1.get_yscale() == scale
        assert eta_0.get_ylim() == eta_1.get_ylim() and eta_0.get_ylim()[0] < nearest


def test_the_record_has_the_names_that_claims_read(tiny_run, monkeypatch):
    """Every view under both samplers; gains are differences of them, their intervals paired."""
    run, g = tiny_run("06_snr_rescaling"), torch.Generator().manual_seed(0)
    run.spec = replace(run.spec, evaluation=replace(run.spec.evaluation, num_samples=5, num_reference=8))
    run.first_stage = run.diffusion = SimpleNamespace(hash="untrained", curve=SimpleNamespace(events=[]))
    monkeypatch.setattr(snr_rescaling, "sample_at", lambda run, y, factor=2, label="", eta=0.0: torch.rand(
        len(y), 3, 32 * factor, 32 * factor, generator=g) * 2 - 1)
    for measured_on_models in ("_add_latent", "_add_prediction"):
        monkeypatch.setattr(snr_rescaling, measured_on_models, lambda *_: None)
    record = snr_rescaling.record_rescaling(dict.fromkeys(snr_rescaling.VARIANTS, run))
    for measure in (GAIN_2X, GAIN_BEYOND, VQ_2X):
        assert all(quantity.read(record, None) is not None for quantity in measure.views.values())
    for suffix in ("", "_eta1"):
        gain, (before, after) = record.metrics[f"rescaling_gain_2x{suffix}"], (
            record.value(f"kd_effnet_2x_{key}{suffix}") for key in ("kl_none", "kl_rescaled"))
        assert gain["value"] == pytest.approx(before - after) and gain["extractor"] == "effnet"
        assert gain["interval"]["low"] < gain["value"] < gain["interval"]["high"]


def test_records_of_other_data_are_refused_in_one_figure():
    """Scores of different pictures do not stand side by side."""
    with pytest.raises(ValueError, match="cannot stand in one figure"):
        figures.fig_rescaling([made_up(), made_up(data="cifar10")])


def test_seeds_are_gathered_and_other_runs_left_out(lab_root):
    """Records of another f or sampler are no further seeds."""
    record, seed, other_f, other_steps = made_up(0), made_up(1), made_up(2, f=4), made_up(3)
    other_steps.protocol["num_steps"] = 50
    for each in (record, seed, other_f, other_steps):
        each.save()
    assert [r.params["seed"] for r in snr_rescaling.comparable(record)] == [0, 1]


def test_the_log_snr_figure_names_where_noise_takes_over():
    """Each latent of the run stands in the legend with its crossing, or with none."""
    fig = figures.fig_log_snr({"KL": 5.49, "huge": 500.0}, SCHEDULE)
    labels = [text.get_text() for text in fig.axes[1].get_legend().get_texts()]
    assert labels == ["KL, std 5.49; SNR = 1 at t = 637", "huge, std 500.00; SNR = 1 at no t"]


def test_the_notebook_takes_no_regularizer():
    """It trains both."""
    assert "reg" not in NOTEBOOKS["06_snr_rescaling"].parameters
