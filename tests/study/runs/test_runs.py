"""Train or load: a model is trained once, found again, and never mixed with another's latents."""

from dataclasses import replace

import pytest
import torch

from ldmlab.diffusion.unet.unet import count_params
from ldmlab.study.config.presets import study_spec
from ldmlab.study.config.specs import denoiser_config
from ldmlab.study.runs import diffusion as diffusion_runs
from ldmlab.study.runs.first_stage import encode, is_flat, train_first_stage
from ldmlab.study.runs.pictures import open_pictures
from ldmlab.study.training.curve import Curve

pytestmark = pytest.mark.usefixtures("in_root")


@pytest.fixture(scope="module")
def spec(tiny_spec):
    return tiny_spec


def score_nothing(model, step):
    """A stand-in for scores: what it sees is a model that samples."""
    return {"fd_lab": float(model.sample(torch.tensor([0]), num_steps=1).std())}


def both(spec):
    pictures = open_pictures(spec)
    first_stage = train_first_stage(spec, pictures, "cpu")
    latents = encode(spec, first_stage, pictures, "cpu")
    trained = diffusion_runs.train_diffusion(spec, pictures, first_stage, latents, "cpu", score_nothing)
    return pictures, first_stage, latents, trained


def test_second_run_loads_what_the_first_trained(spec, root, monkeypatch):
    """The same spec again trains nothing and gives the same models, curves and samples."""
    *_, first_stage, _, first = both(spec)
    monkeypatch.setattr(diffusion_runs, "fit", lambda *_, **__: pytest.fail("trained again"))
    *_, again_stage, _, again = both(spec)
    assert again.hash == first.hash and again_stage.hash == first_stage.hash
    assert again.curve.values == first.curve.values and len(first.curve["fd_lab"]) == 1
    y = torch.arange(3)
    assert torch.equal(first.model.sample(y, num_steps=2, seed=5), again.model.sample(y, num_steps=2, seed=5))
    assert not list(root.glob("results/runs/*/state.pt")), "training states are removed once a model is there"


def test_another_scale_mode_finds_the_same_first_stage_and_its_own_statistics(spec):
    """How latents are scaled is the diffusion model's affair: nothing is trained again, and nothing old is used."""
    pictures, first_stage, *_ = both(spec)
    other = replace(spec, diffusion=replace(spec.diffusion, scale_mode="channel"))
    again = train_first_stage(other, pictures, "cpu")
    assert again.hash == first_stage.hash
    assert len(first_stage.stats.std) == 1 and len(again.stats.std) == again.model.z_channels


def test_samples_do_not_depend_on_the_batch_size(spec):
    """Each draws its own noise, here those of a trained model."""
    *_, trained = both(spec)
    whole = trained.model.sample(torch.arange(5), num_steps=2, batch_size=5)
    parts = trained.model.sample(torch.arange(5), num_steps=2, batch_size=2)
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-4)
    assert whole.shape == (5, 3, 32, 32) and whole.abs().max() <= 1


def test_latents_of_another_first_stage_are_refused(spec):
    """A diffusion model is never trained on latents that its decoder cannot read."""
    pictures, first_stage, latents, _ = both(spec)
    with pytest.raises(ValueError, match="encode the pictures with this one"):
        diffusion_runs.train_diffusion(spec, pictures, replace(first_stage, hash="0" * 64), latents, "cpu")


def test_pixels_are_their_own_latents(spec):
    """LDM-1 has no first stage to train and sees pictures in [-1, 1]."""
    one = study_spec(1, tier="smoke")
    one = replace(one, data=spec.data)
    pictures = open_pictures(one)
    first_stage = train_first_stage(one, pictures, "cpu")
    batch = encode(one, first_stage, pictures).__getitems__([0, 33])
    assert first_stage.flat is None and batch["moments"].shape == (2, 3, 32, 32)
    assert -1 <= batch["moments"].min() < batch["moments"].max() <= 1


def test_flatness_is_judged_over_the_second_half():
    """What the last doubling of training improved is not flat, though its very end may be; what stopped is."""
    climbing = Curve({"val_psnr": [[step, min(step, 70) / 10] for step in range(10, 110, 10)]})
    stopped = Curve({"val_psnr": [[step, min(step, 50) / 10] for step in range(10, 110, 10)]})
    assert not is_flat(climbing) and is_flat(stopped)


def test_data_without_classes_gives_an_unconditional_model(spec):
    """No labels, no context: the denoiser attends to itself, at the size asked for."""
    config = denoiser_config(study_spec(8).diffusion, num_classes=0)
    target = study_spec(8).diffusion.target_params
    assert config.context_dim is None and abs(count_params(config) / target - 1) <= 0.03
