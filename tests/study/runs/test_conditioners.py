"""Which conditioner a run gets, what it reads of the pictures, and what is refused before training."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from ldmlab.study.config.conditions import KINDS
from ldmlab.study.config.notebooks import NOTEBOOKS
from ldmlab.study.config.presets import study_spec
from ldmlab.study.config.specs import content_key
from ldmlab.study.runs.conditioners import build_conditioner, read_conditions, sample_conditions
from ldmlab.study.runs.pictures import open_pictures

TOKENS = {notebook: row.condition for notebook, row in NOTEBOOKS.items()
          if row.condition != "class" and KINDS[row.condition].injected_as == "tokens"}


@pytest.mark.long  # notebooks 09 and 10 train both
def test_captions_and_layouts_train_and_sample(tiny_run):
    """The whole way at once: annotations, tokens, the transformer trained with the denoiser, samples for validation."""
    for notebook, kind in TOKENS.items():
        run = tiny_run(notebook)
        model = run.diffusion.model
        assert model.conditioner.kind == kind
        y = sample_conditions(model.conditioner, run.pictures, 14)  # more than the 12 pictures there are
        assert torch.equal(y[12:], y[:2])
        x = model.sample(y[:4], num_steps=2, guidance_scale=3.0)
        assert x.shape == (4, 3, 32, 32) and x.isfinite().all()
        assert not torch.equal(model.sample(model.null_condition(4), num_steps=2), x)


def test_mirror_images_get_mirrored_conditions(tiny_run):
    """A thing on the left is on the right in the mirror image, in words and in boxes."""
    for notebook in TOKENS:
        run = tiny_run(notebook)
        known, tau = run.pictures.annotations(), run.diffusion.model.conditioner
        y, n = read_conditions(tau, run.pictures), len(known)
        sided = [i for i, a in enumerate(known) if "left" in a.caption or "right" in a.caption]
        assert len(y) == 2 * n and sided
        for i in sided:
            assert torch.equal(y[n + i], tau.read([known[i].mirrored()])[0]) and not torch.equal(y[n + i], y[i])


@pytest.mark.parametrize("notebook, more", [
    ("11_semantic_synthesis", {}), ("12_super_resolution", {"factor": 4, "degradation": "bicubic"}),
    ("12_super_resolution", {"factor": 2, "degradation": "bsr"}), ("13_inpainting", {"attention": False}),
])
@pytest.mark.parametrize("f", [pytest.param(1, marks=pytest.mark.long), 8])
def test_conditions_beside_the_latent_train_and_sample(tiny_run, notebook, more, f):
    """The whole way at once, in pixels and in latents: what differs in the condition differs in the sample."""
    run = tiny_run(notebook, f=f, **more)
    model = run.diffusion.model
    assert model.conditioner.kind == NOTEBOOKS[notebook].condition
    y = sample_conditions(model.conditioner, run.pictures, 4)
    x = model.sample(y, num_steps=2)
    assert x.shape == (4, 3, 32, 32) and x.isfinite().all()
    assert not torch.equal(model.sample(y.flip(0), num_steps=2), x)
    with pytest.raises(ValueError, match="never trained without its condition"):
        model.sample(y, num_steps=2, guidance_scale=3.0)
    wide = torch.cat([y, y], -1)  # twice as wide: the model makes a picture of that size
    assert model.sample(wide[:1], num_steps=2).shape == (1, 3, 32, 64)


def test_a_first_stage_without_attention_has_its_own_name(tiny_run):
    """Runs with and without attention never share a folder, a name or weights [LDM v2, Tab. 6]."""
    with_, without = (tiny_run("13_inpainting", attention=attention).spec.first_stage for attention in (True, False))
    assert (with_.name, without.name) == ("KL-f8", "KL-f8-noattn")
    assert content_key(with_) != content_key(without)


def test_a_new_field_leaves_old_models_their_names():
    """Models of a class, trained before there were other conditions, are found again; others are not mixed up."""
    spec = study_spec(8, tier="smoke").diffusion
    assert spec.condition is None and content_key(spec) == "285764b3c9fe"
    told = {study_spec(8, tier="smoke", condition=kind).diffusion for kind in ("class", "text", "layout")}
    assert len({content_key(spec) for spec in told}) == 3


@pytest.mark.parametrize("condition, missing", [("text", "captions"), ("layout", "boxes")])
def test_pictures_without_what_is_asked_for_are_refused(tmp_path, monkeypatch, condition, missing):
    """The error says where captions and boxes come from."""
    monkeypatch.setenv("LDMLAB_ROOT", str(tmp_path / "lab"))
    (tmp_path / "plain").mkdir()
    for i in range(100):
        Image.new("RGB", (32, 32), (i, 0, 0)).save(tmp_path / "plain" / f"{i}.png")
    spec = study_spec(8, data=str(tmp_path / "plain"), tier="smoke", condition=condition)
    with pytest.raises(ValueError, match=f"plain has no {missing}"):
        build_conditioner(spec.diffusion, open_pictures(spec))


def test_an_unknown_kind_is_refused(tiny_run):
    """By name, with what there is."""
    with pytest.raises(ValueError, match="low_resolution, mask; got 'sound'"):
        study_spec(8, condition="sound")
    plan = study_spec(8, tier="smoke", condition="text").diffusion
    plan = replace(plan, condition=replace(plan.condition, kind="sound"))
    with pytest.raises(ValueError, match="got 'sound'"):
        build_conditioner(plan, tiny_run("04_tradeoff").pictures)
