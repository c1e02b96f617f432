"""What is trained: the paper's rows as published, tiers that scale them down, sizes matched across f."""

from dataclasses import replace

import pytest

from ldmlab.diffusion.unet.unet import DenoiserConfig, count_params, match_widths
from ldmlab.first_stage.networks import AutoencoderConfig
from ldmlab.study.config.budgets import TIERS
from ldmlab.study.config.notebooks import FS
from ldmlab.study.config.presets import LAPTOP_PARAMS, study_spec
from ldmlab.study.config.specs import DiffusionSpec, FirstStageSpec, SpatialSpec, content_key, denoiser_config


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("f", FS)
@pytest.mark.parametrize("reg", ["kl", "vq"])
def test_every_spec_fits_together(f, reg, tier):
    """Latent channels, sizes and milestones of every row agree with each other."""
    spec = study_spec(f, reg, tier=tier)
    c = spec.first_stage.autoencoder.latent_channels
    assert spec.first_stage.autoencoder.f == f == 2 ** (f.bit_length() - 1)
    assert spec.diffusion.denoiser.in_channels == spec.diffusion.denoiser.out_channels == c
    assert spec.data.size % f == 0
    assert all(0 < mark < spec.diffusion.num_steps for mark in spec.diffusion.milestones)
    assert spec.reg == ("none" if f == 1 else reg)


def test_laptop_denoisers_are_of_one_size():
    """Within 3 % of the target for every f, and for f = 8 with the very widths that the matching function chooses."""
    counts = {f: count_params(study_spec(f).diffusion.denoiser) for f in FS}
    assert all(abs(count / LAPTOP_PARAMS - 1) <= 0.03 for count in counts.values()), counts
    template = study_spec(8).diffusion.denoiser
    assert match_widths(replace(template, widths=(48, 80)), LAPTOP_PARAMS).widths == template.widths


@pytest.mark.parametrize(("f", "millions"), [(1, 396), (2, 391), (4, 391), (8, 395), (16, 395), (32, 395)])
def test_paper_rows_have_about_the_published_size(f, millions):
    """The denoisers of Tab. 13, rebuilt from its rows, have the parameters it prints within 4 %."""
    count = count_params(study_spec(f, "vq", tier="paper").diffusion.denoiser)
    assert abs(count / 1e6 / millions - 1) < 0.04, count


def test_first_stages_get_more_steps_at_large_f():
    """What stagnates at large f should be information, not training time."""
    steps = [study_spec(f).first_stage.num_steps for f in FS]
    assert steps == sorted(steps) and steps[0] == 0


def test_only_kl_latents_are_rescaled():
    """As released: KL by the first batch's deviation, VQ and pixels not at all."""
    modes = {reg: study_spec(8, reg).diffusion.scale_mode for reg in ("kl", "vq")}
    assert modes == {"kl": "first_batch", "vq": "none"} and study_spec(1).diffusion.scale_mode == "none"


def test_content_key_changes_with_content_only():
    """Equal specs share a key; any other number gives another."""
    spec = study_spec(8)
    assert content_key(spec.first_stage) == content_key(study_spec(8).first_stage)
    assert content_key(spec.first_stage) != content_key(replace(spec.first_stage, lr=1.0))


def test_specs_of_old_keep_their_keys():
    """Models trained before a field came are found again: its default counts for nothing."""
    autoencoder = AutoencoderConfig(f=8, z_channels=4, ch=32, num_codes=512)
    denoiser = DenoiserConfig(4, 4, (32, 64), num_res_blocks=1, num_heads=1, context_dim=64)
    diffusion = DiffusionSpec(denoiser, num_steps=100, batch_size=16, lr=1e-3)
    assert content_key(FirstStageSpec(autoencoder, num_steps=10, batch_size=4, lr=1e-3)) == "42b5a5c8aa9f"
    assert content_key(diffusion) == "fa6226b12998"
    assert content_key(replace(diffusion, condition=SpatialSpec("mask"))) == "856b0ca77956"


def test_how_a_step_is_computed_is_no_content():
    """Parts and compilation change rounding; a model is found either way. The released schedule is another training."""
    spec = study_spec(8, accumulate=4, compile=True)
    assert spec.diffusion.accumulate == 4 and content_key(spec.diffusion) == content_key(study_spec(8).diffusion)
    assert content_key(replace(spec.first_stage, exact=True)) != content_key(spec.first_stage)


def test_only_the_papers_tier_follows_the_released_schedule():
    """It stands for published hyper-parameters; the others take the faster one."""
    assert {tier: study_spec(8, tier=tier).first_stage.exact for tier in TIERS} == {
        "smoke": False, "laptop": False, "gpu": False, "paper": True}


def test_impossible_specs_are_named():
    """A size that f does not divide, an unknown tier."""
    with pytest.raises(ValueError, match="divisible by f = 32; got 48"):
        study_spec(32, size=48)
    with pytest.raises(ValueError, match="smoke, laptop, gpu, paper; got 'huge'"):
        study_spec(8, tier="huge")


@pytest.mark.parametrize("tier", ["smoke", "laptop", "gpu", "paper"])
@pytest.mark.parametrize("kind, options", [("mask", {}), ("labels", {}),
                                        ("low_resolution", {"factor": 4, "degradation": "bsr"})])
def test_models_told_place_by_place_can_be_built_at_every_f(tier, kind, options):
    """Widths exist for each, of one size but at f = 32, where steps are too wide; nothing attends to tokens."""
    sizes = {}
    for f in FS:
        spec = study_spec(f, tier=tier, condition=kind, condition_options=options)
        config = denoiser_config(spec.diffusion, num_classes=12)
        assert config.context_dim is None and config.in_channels > config.out_channels
        sizes[f] = count_params(config)
    if tier != "paper":
        del sizes[32]
        assert max(sizes.values()) / min(sizes.values()) < 1.07


def test_paper_sizes_of_models_told_place_by_place():
    """Inpainting and semantic synthesis have the 215M of Tab. 15; super-resolution's 169M count the first stage."""
    def size(kind, options):
        spec = study_spec(4, "vq", tier="paper", condition=kind, condition_options=options)
        return count_params(spec.diffusion.denoiser) / 1e6

    kinds = {"mask": {}, "labels": {}, "low_resolution": {"factor": 4}}
    million = {kind: size(kind, options) for kind, options in kinds.items()}
    assert round(million["mask"]) == round(million["labels"]) == 215
    assert 169 - 56 < million["low_resolution"] < 169 - 54
