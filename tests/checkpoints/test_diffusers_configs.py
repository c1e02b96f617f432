"""What diffusers cannot express, and what it has that we have not, is an error that names it; no diffusers needed."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from ldmlab.checkpoints.diffusers_format import configs
from ldmlab.checkpoints.diffusers_format.folders import (
    pipeline_name,
    read_part,
    read_pipeline,
    read_schedule,
    write_part,
    write_parts,
    write_pipeline,
)
from ldmlab.diffusion.conditioning.tokens import ClassEmbedder
from ldmlab.diffusion.model import LatentDiffusion
from ldmlab.diffusion.schedules import cosine, linear, scaled_linear, sqrt
from ldmlab.diffusion.unet.unet import DenoiserConfig, UNet
from ldmlab.first_stage.autoencoder import build_autoencoder
from ldmlab.first_stage.latents import LatentStats
from ldmlab.first_stage.networks import AutoencoderConfig
from ldmlab.study.config.presets import study_spec

AE = AutoencoderConfig(f=2, z_channels=2, ch=4, ch_mult=(1, 2), num_res_blocks=1, resolution=8, norm_groups=2)
UNET = DenoiserConfig(in_channels=2, out_channels=2, widths=(4, 8), num_res_blocks=1, attention_at=(2,), num_heads=1,
                      norm_groups=2)


def model(stats=None, conditioner=None, unet=UNET):
    stats = stats or LatentStats("first_batch", (0.0,), (2.0,), (0.1,), 8)
    return LatentDiffusion(build_autoencoder(AE), stats, UNet(unet), scaled_linear(), conditioner, 8,
                           torch.device("cpu"))


@pytest.mark.parametrize("change, field", [
    (dict(f=4, patch=2), "patch = 2"), (dict(linear_shortcut=True), "linear_shortcut"),
    (dict(ch_mult=(2, 2)), "ch_mult"), (dict(embed_dim=3), "embed_dim = 3"),
    (dict(f=1, reg="none", z_channels=3), "f = 1"),
])
def test_first_stages_that_diffusers_cannot_build(change, field):
    """An architecture of ours alone is refused by name, not written as another one."""
    with pytest.raises(ValueError, match=field):
        configs.autoencoder_to_theirs(replace(AE, **change), 1.0)


@pytest.mark.parametrize("change, field", [
    (dict(num_heads=2, attention_at=(1, 2)), "num_heads = 2"), (dict(context_dim=4, resblock_updown=True), "resblock"),
])
def test_denoisers_that_diffusers_cannot_build(change, field):
    """As for first stages."""
    with pytest.raises(ValueError, match=field):
        configs.denoiser_to_theirs(replace(UNET, **change), 8)


def test_modules_that_diffusers_has_no_class_for(tmp_path):
    """Anything else than its three kinds of parts is refused before a file is written."""
    with pytest.raises(TypeError, match="got a ClassEmbedder"):
        write_part(ClassEmbedder(3, 4), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("f", [2, 4, 8, 16, 32])
@pytest.mark.parametrize("reg", ["kl", "vq"])
def test_every_laptop_first_stage_has_a_plain_twin(f, reg):
    """`plain` keeps f, latents and the size at which each width works, and diffusers can build the result."""
    config = study_spec(f, reg).first_stage.autoencoder
    plain = configs.exportable_config(config)
    assert (plain.f, plain.latent_channels, plain.ch_mult[-len(config.ch_mult):]) == (
        f, config.latent_channels, config.ch_mult)
    theirs = configs.autoencoder_to_theirs(plain, 1.0)
    assert configs.autoencoder_to_ours(theirs, "x")[0].ch_mult == plain.ch_mult


def test_released_heads_keep_their_number():
    """attention_head_dim means heads in one class and channels in the other; both survive the way there and back."""
    for change in (dict(num_heads=None, num_head_channels=4), dict(num_heads=2, context_dim=4),
                   dict(num_heads=None, num_head_channels=4, context_dim=4, attention_at=(1, 2))):
        config = replace(UNET, **change)
        assert configs.denoiser_to_ours(configs.denoiser_to_theirs(config, 8), "x") == (config, 8)


@pytest.mark.parametrize("schedule", [scaled_linear(), scaled_linear(1000, 0.00085, 0.012), linear(), cosine(), sqrt()])
def test_any_schedule_comes_back(schedule):
    """beta_t by name where diffusers knows it, else one by one; no schedule is written as a similar one."""
    back = configs.schedule_to_ours(json.loads(json.dumps(configs.schedule_to_theirs(schedule))), "x")
    torch.testing.assert_close(back.alpha_bar, schedule.alpha_bar, rtol=1e-7, atol=0)


@pytest.mark.parametrize("field, value", [
    ("prediction_type", "v_prediction"), ("clip_sample", True), ("rescale_betas_zero_snr", True),
    ("beta_schedule", "sigmoid"),
])
def test_schedulers_of_other_models_are_refused(field, value):
    """A model that predicts v, say, would sample nonsense here without a word."""
    theirs = configs.schedule_to_theirs(scaled_linear()) | {field: value}
    with pytest.raises(ValueError, match=f"scheduler.json has {field}"):
        configs.schedule_to_ours(theirs, "scheduler.json")


def test_a_vq_model_without_a_scale_has_none():
    """The released VQ models were converted before the field came; diffusers' later default would spoil them."""
    theirs = configs.autoencoder_to_theirs(replace(AE, reg="vq"), 1.0)
    del theirs["scaling_factor"]
    assert configs.autoencoder_to_ours(theirs, "x")[1] == 1.0


def test_models_without_a_pipeline_say_so_and_give_parts(tmp_path):
    """Class-conditional models have parts in diffusers, but nothing there samples them; nor a scale per channel."""
    told = model(conditioner=ClassEmbedder(3, 4), unet=replace(UNET, context_dim=4))
    with pytest.raises(ValueError, match="kind class"):
        write_pipeline(told, tmp_path)
    assert not list(tmp_path.iterdir())
    assert sorted(write_parts(told, tmp_path)) == ["scheduler", "unet", "vqvae"]
    assert read_part(tmp_path / "unet").module.config.context_dim == 4
    with pytest.raises(ValueError, match="this model has one per channel"):
        write_pipeline(model(LatentStats("channel", (0.0,) * 2, (1.0, 2.0), (0.1,) * 2, 8)), tmp_path)
    assert pipeline_name(model()) == "LDMPipeline"


@pytest.mark.parametrize("name, field, value", [
    ("unet", "flip_sin_to_cos", False), ("unet", "norm_eps", 1e-6), ("unet", "use_an_invention", 7),
    ("unet", "down_block_types", ["DownBlock2D", "SkipDownBlock2D"]), ("unet", "sample_size", None),
    ("vqvae", "norm_num_groups", 3), ("unet", "layers_per_block", [1, 2]), ("unet", "block_out_channels", "wide"),
    ("vqvae", "act_fn", "relu"), ("vqvae", "shift_factor", 0.1), ("vqvae", "block_out_channels", [4, 6]),
    ("vqvae", "up_block_types", ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"]), ("vqvae", "sample_size", 3),
])
def test_values_that_models_here_cannot_have(tmp_path, name, field, value):
    """Reading another model's folder as one of ours would give wrong pictures; the message names file and field."""
    write_pipeline(model(), tmp_path)
    path = tmp_path / name / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    about = "divisible" if field == "norm_num_groups" else "does not describe a model" if value == "wide" else field
    with pytest.raises(ValueError, match=rf"{name}.config\.json .*{about}"):
        read_pipeline(tmp_path)


def _truncate(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _remove(folder):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()


def _code(folder):
    _remove(folder)
    torch.save({"conv_in.weight": torch.zeros(1), "run": print}, folder / "unet" / "diffusion_pytorch_model.bin")


def _another(folder):
    save_file({"conv_in.weight": torch.zeros(4, 2, 1, 1), "x": torch.zeros(1)},
              folder / "unet" / "diffusion_pytorch_model.safetensors")


def _another_class(folder):
    (folder / "unet" / "config.json").write_text('{"_class_name": "Transformer2DModel"}')


def _no_json(folder):
    (folder / "vqvae" / "config.json").write_text("<html>")


def _no_index(folder):
    (folder / "model_index.json").unlink()


def _another_size(folder):
    write_part(UNet(replace(UNET, in_channels=3)), folder / "unet", sample_size=4)


@pytest.mark.parametrize("spoil, error, message", [
    (_truncate, ValueError, "unet.diffusion_pytorch_model.safetensors .*(truncated|damaged)"),
    (_remove, FileNotFoundError, "unet has neither .* it has: config.json"),
    (_code, ValueError, "diffusion_pytorch_model.bin .*print"),
    (_another, ValueError, r"safetensors does not fit .* missing .* 1 unexpected \(x\); 1 of another shape"),
    (_another_class, ValueError, "unet.config.json describes a Transformer2DModel; accepted are"),
    (_no_json, ValueError, "vqvae.config.json is not JSON"),
    (_no_index, FileNotFoundError, "model_index.json is missing.* it has: scheduler, unet, vqvae"),
    (_another_size, ValueError, "for LDMPipeline with this first stage"),
])
def test_damaged_folders(tmp_path, spoil, error, message):
    """What is missing, damaged, another model or holds code is an error that names the file; no code is run."""
    write_pipeline(model(), tmp_path)
    spoil(tmp_path)
    with pytest.raises(error, match=message):
        read_pipeline(tmp_path)


def test_folders_are_read_without_diffusers(tmp_path):
    """Weights bit for bit, scale, schedule and size come back from what was written."""
    ours = model()
    assert write_pipeline(ours, tmp_path) == "LDMPipeline"
    back = read_pipeline(tmp_path)
    assert back.stats.scale_factor == (0.5,) and back.size == 8
    assert torch.equal(back.schedule.beta, read_schedule(tmp_path / "scheduler").beta)
    for a, b in ((ours.first_stage, back.first_stage), (ours.denoiser, back.denoiser)):
        assert a.config == b.config and all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))
