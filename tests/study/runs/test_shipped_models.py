"""What the tour takes where nothing has been trained."""

import torch

from ldmlab.checkpoints.files import load_model
from ldmlab.data.images import open_dataset, to_float
from ldmlab.evaluation.reconstruction import psnr
from ldmlab.study.config.presets import study_spec
from ldmlab.study.runs import shipped_models
from ldmlab.study.runs.diffusion import load_diffusion
from ldmlab.study.runs.first_stage import load_first_stage
from ldmlab.study.runs.pictures import Pictures
from ldmlab.study.runs.run import Run


def tour(tmp_path, monkeypatch, **params) -> Run:
    monkeypatch.setenv("LDMLAB_ROOT", str(tmp_path))
    return Run("00_tour", {"f": 8, "data": "scenes", "tier": "laptop", "seed": 0} | params, device="cpu", quiet=True)


def test_shipped_models_are_those_of_the_study():
    """A change to the preset of f = 8 or to the scenes without new shipped files would leave the tour to old models."""
    train = open_dataset("scenes", size=32, split="train", num=20_000, seed=0)
    for path in shipped_models.SHIPPED.values():
        assert load_model(path)[1]["run_key"] == shipped_models.run_key(study_spec(8), train)


def test_tour_takes_the_shipped_models(tmp_path, monkeypatch):
    """They load, belong together, keep pictures recognisable and sample what they are asked for."""
    run = tour(tmp_path, monkeypatch)
    train, val = (open_dataset("scenes", size=32, split=s, num=n, seed=0) for s, n in
                  (("train", 20_000), ("validation", 32)))
    run.pictures = Pictures(train, val)
    assert "shipped" in shipped_models.prepare_tour(run)
    x = to_float(val.images(range(32)))
    with torch.no_grad():
        x_rec = run.first_stage.model.decode(run.first_stage.model.encode(x).mode()).clamp(-1, 1)
    assert psnr(x, x_rec).mean() > 19
    assert run.diffusion.first_stage.hash == run.first_stage.hash
    samples = run.diffusion.model.sample(torch.arange(4), num_steps=4)
    assert samples.shape == (4, 3, 32, 32) and samples.std() > 0.1


def test_tour_trains_briefly_where_nothing_is_shipped(tmp_path, monkeypatch):
    """Another tier, f or seed is another run: both models get a part of the steps."""
    run = tour(tmp_path, monkeypatch, tier="smoke")
    plan = run.spec
    assert "minute" in shipped_models.prepare_tour(run)
    assert run.spec.first_stage.num_steps <= plan.first_stage.num_steps
    assert run.spec.diffusion.num_steps <= plan.diffusion.num_steps and not run.spec.diffusion.milestones


def test_shipping_keeps_the_two_files_together(tmp_path, monkeypatch):
    """Rounding changes hashes; the diffusion file still names its first stage, and loads on it."""
    run = tour(tmp_path, monkeypatch, tier="smoke")
    files = {part: tmp_path / f"{part}.safetensors" for part in shipped_models.SHIPPED}
    shipped_models.ship(run, files)
    first_stage = load_first_stage(run.spec, run.pictures, files["first-stage"], run.device)
    assert first_stage.hash != load_model(files["first-stage"])[1]["hash_before_rounding"]
    load_diffusion(run.spec, run.pictures, first_stage, files["diffusion"], run.device)
