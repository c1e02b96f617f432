"""The compression trade-off's record, on a tiny run: complete, loaded when measured again, short."""

from math import isfinite

import pytest
import torch

from ldmlab.experiments.tradeoff import _thin, record_tradeoff

DISTANCES = {"kd_effnet", "kd_effnet_eta1", "kd_effnet_to_reconstructions", "kd_effnet_to_reconstructions_eta1",
             "rkd_effnet"}
SCORES = DISTANCES | {"psnr", "ssim", "perceptual"}


def test_a_run_is_recorded_once_with_all_that_the_figures_read(tiny_run):
    """Scores of samples and reconstructions, costs, curves and what they rest on; a second run measures nothing."""
    run = tiny_run("04_tradeoff")
    record = record_tradeoff(run)
    assert set(record.metrics) >= SCORES | {"num_params", "num_params_first_stage", "flops", "train_s", "latent_std"}
    assert all(isfinite(record.value(name)) for name in SCORES)
    channels = run.diffusion.model.denoiser.config.in_channels
    assert record.metrics["latent_dims"]["value"] == 4 * 4 * channels  # 32 px, f = 8
    assert all(record.metrics[name]["interval"]["low"] < record.value(name) for name in DISTANCES)
    for name in ("kd_effnet", "kd_effnet_to_reconstructions"):
        etas = [record.metrics[name + end]["protocol"].get("eta", record.protocol["eta"]) for end in ("", "_eta1")]
        assert etas == [0, 1] and record.value(name) != record.value(f"{name}_eta1")
    assert record.metrics["kd_effnet_to_reconstructions"]["protocol"]["reference"] == "reconstructed train"
    assert set(record.curves) >= {"kd_effnet", "loss", "train_s", "val_psnr", "images_per_s"}
    assert all(rate > 0 for _, rate in record.curves["images_per_s"])
    assert record.inputs["denoiser"] == run.diffusion.hash and record.protocol["sampler"] == "ddim"
    run.finish(record)
    again = record_tradeoff(tiny_run("04_tradeoff"))
    assert again.started == record.started and again.metrics == record.metrics


def test_pixels_have_no_first_stage_to_score(tiny_run):
    """At f = 1 nothing is lost on the way: no PSNR, no parameters, no seconds of a first stage."""
    record = record_tradeoff(tiny_run("04_tradeoff", f=1, reg="none"))
    assert record.value("first_stage_train_s") == 0
    assert record.metrics["num_params_first_stage"]["value"] == 0
    assert record.metrics["first_stage_flat"]["value"] is None
    assert record.metrics["latent_dims"]["value"] == 3 * 32 * 32 and isfinite(record.value("kd_effnet"))
    assert not any("reconstructions" in name for name in record.metrics)


def test_scores_tell_the_pictures_from_noise(tiny_run):
    """A run's scorer puts its own training pictures far nearer to the reference than noise."""
    run = tiny_run("04_tradeoff")
    pictures = torch.stack([run.pictures.train[i]["image"] for i in range(24)])
    pictures = pictures.float() / 127.5 - 1 if pictures.dtype == torch.uint8 else pictures
    near = run.scorer.score(pictures, intervals=False)
    far = run.scorer.score(torch.randn_like(pictures).clamp(-1, 1), intervals=False)
    assert set(near) == {"kd_effnet"} == set(far)
    assert all(near[name].value < 0.2 * far[name].value for name in near)


def test_reconstructions_are_scored_on_validation_pictures(tiny_run):
    """Each measure with the number of pictures it rests on."""
    run = tiny_run("04_tradeoff")
    scores = run.scorer.reconstruction(run.first_stage)
    assert set(scores) == {"psnr", "ssim", "perceptual", "rkd_effnet"}
    assert scores["rkd_effnet"].n_fake == len(run.pictures.val) and scores["rkd_effnet"].name == "rKD-EffNet"
    assert scores["rkd_effnet"].n_real == len(run.scorer.reference_set)


@pytest.mark.parametrize("n", [1, 2, 80, 81, 1000])
def test_curves_are_thinned_to_a_page(n):
    """First and last stay, at most about 80 in all, in order."""
    thin = _thin([[i, i / 3] for i in range(n)])
    assert thin[0][0] == 0 and thin[-1][0] == n - 1 and len(thin) <= 161
    assert [x for x, _ in thin] == sorted({x for x, _ in thin})
