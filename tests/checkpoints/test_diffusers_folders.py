"""diffusers runs what is written here, and models here run what diffusers wrote, number for number."""

import json
import re
import sys
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ldmlab.checkpoints.compvis import FIRST_STAGE_RULES, TRANSFORMER_RULES, UNET_RULES, from_compvis, to_compvis
from ldmlab.checkpoints.diffusers_format import configs, folders
from ldmlab.diffusion.conditioning.captions import SCENES_VOCABULARY
from ldmlab.diffusion.conditioning.spatial import LowResolution
from ldmlab.diffusion.conditioning.transformer import TokenTransformer
from ldmlab.diffusion.model import LatentDiffusion
from ldmlab.diffusion.samplers import SampleNoise, ddim
from ldmlab.diffusion.schedules import cosine, linear, scaled_linear
from ldmlab.diffusion.unet.unet import DenoiserConfig, UNet
from ldmlab.first_stage.autoencoder import build_autoencoder
from ldmlab.first_stage.latents import LatentStats
from ldmlab.first_stage.networks import AutoencoderConfig
from ldmlab.study.config.presets import study_spec
from ldmlab.study.runs import diffusion as diffusion_runs
from ldmlab.study.runs import pictures
from ldmlab.study.runs.first_stage import encode, train_first_stage

AE = AutoencoderConfig(f=4, z_channels=3, ch=8, ch_mult=(1, 2, 3), attn_resolutions=(8,), resolution=16, norm_groups=4,
                       num_codes=16)
UNET = DenoiserConfig(in_channels=3, out_channels=3, widths=(8, 16, 24), num_head_channels=4, attention_at=(2, 4),
                      norm_groups=4)


@pytest.fixture(scope="module")
def diffusers():
    """The library, silent; the tests of this module are skipped where it is not installed."""
    library = pytest.importorskip("diffusers")
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()
    return library


def randomized(module: nn.Module) -> nn.Module:
    """Random weights everywhere: what starts at zero would hide whatever is wrong with it."""
    for p in module.parameters():
        nn.init.normal_(p, std=0.3 if p.ndim == 1 else p[0].numel() ** -0.5)
    return module.eval()


def loaded(library, folder, name):
    """The model that diffusers makes of a folder, which must hold every weight of it and no other."""
    model, info = getattr(library, name).from_pretrained(folder, output_loading_info=True, low_cpu_mem_usage=False)
    assert not any(info.values()), info
    return model.eval()


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def assert_same_weights(a: nn.Module, b: nn.Module) -> None:
    """Bit for bit, name by name."""
    ours, back = a.state_dict(), b.state_dict()
    assert list(ours) == list(back) and all(torch.equal(ours[key], back[key]) for key in ours)


@pytest.mark.parametrize("change", [dict(), dict(mid_attn=False, num_res_blocks=1), dict(reg="vq"),
                                    dict(reg="vq", embed_dim=2, attn_resolutions=())])
@torch.no_grad()
def test_first_stages(diffusers, tmp_path, change):
    """AutoencoderKL and VQModel encode and decode as ours, and come back bit for bit."""
    ours = randomized(build_autoencoder(replace(AE, **change)))
    folders.write_part(ours, tmp_path, scale_factor=0.7)
    theirs = loaded(diffusers, tmp_path, "VQModel" if ours.reg == "vq" else "AutoencoderKL")
    x, z = torch.rand(2, 3, 16, 16) * 2 - 1, torch.randn(2, ours.z_channels, 4, 4)
    encoded = theirs.encode(x)
    close(encoded.latents if ours.reg == "vq" else encoded.latent_dist.parameters, ours.moments(x))
    close(theirs.decode(z).sample, ours.decode(z))
    back = folders.read_part(tmp_path)
    assert_same_weights(ours, back.module)
    assert (back.scale_factor, theirs.config.scaling_factor) == (0.7, 0.7)


@pytest.mark.parametrize("change", [
    dict(), dict(num_heads=1, num_head_channels=None, attention_at=(1, 4)), dict(widths=(8,), attention_at=()),
    dict(resblock_updown=True, use_scale_shift_norm=True, num_classes=5, num_res_blocks=1),
    dict(context_dim=6, transformer_depth=2), dict(context_dim=6, num_heads=2, num_head_channels=None, num_classes=5),
])
@torch.no_grad()
def test_denoisers(diffusers, tmp_path, change):
    """UNet2DModel and UNet2DConditionModel predict the same noise, and come back bit for bit."""
    ours = randomized(UNet(replace(UNET, **change)))
    folders.write_part(ours, tmp_path, sample_size=8)
    z, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 700])
    y = torch.tensor([0, 4]) if ours.config.num_classes else None
    context = torch.randn(2, 5, 6) if ours.config.context_dim else None
    told = {} if context is None else {"encoder_hidden_states": context}
    theirs = loaded(diffusers, tmp_path, "UNet2DModel" if context is None else "UNet2DConditionModel")
    close(theirs(z, t, class_labels=y, **told).sample, ours(z, t, context, y))
    back = folders.read_part(tmp_path)
    assert_same_weights(ours, back.module)
    assert back.sample_size == 8 and back.module.config == ours.config


@torch.no_grad()
def test_text_transformer(diffusers, tmp_path):
    """LDMBert gives the same tokens, and comes back bit for bit."""
    from diffusers.pipelines.latent_diffusion import LDMBertModel

    ours, ids = randomized(TokenTransformer(40, 77, 12, 3, 2, 5)), torch.randint(40, (2, 9))
    folders.write_part(ours, tmp_path)
    close(LDMBertModel.from_pretrained(tmp_path).eval()(ids)[0], ours(ids))
    assert_same_weights(ours, folders.read_part(tmp_path).module)


@pytest.mark.parametrize("ours, rules", [
    (lambda: build_autoencoder(AE), FIRST_STAGE_RULES), (lambda: build_autoencoder(replace(AE, reg="vq")),
                                                         FIRST_STAGE_RULES),
    (lambda: UNet(UNET), UNET_RULES), (lambda: UNet(replace(UNET, context_dim=6)), UNET_RULES),
    (lambda: TokenTransformer(40, 77, 12, 3, 2, 5), TRANSFORMER_RULES),
])
def test_by_way_of_diffusers_and_of_compvis(tmp_path, ours, rules):
    """What went through both layouts, one after the other, is what it was, bit for bit."""
    ours = randomized(ours())
    folders.write_part(ours, tmp_path)
    twice = folders.read_part(tmp_path).module
    twice.load_state_dict(from_compvis(to_compvis(twice.state_dict(), rules), rules))
    assert_same_weights(ours, twice)


@pytest.mark.parametrize("schedule", [scaled_linear(), scaled_linear(1000, 0.00085, 0.012), linear(), cosine()])
@pytest.mark.parametrize("num_steps, eta", [(50, 0.0), (20, 1.0), (8, 0.5)])
def test_ddim_takes_the_same_path(diffusers, tmp_path, schedule, num_steps, eta):
    """From the same noise, by the same denoiser, every step of DDIMScheduler lands where ours does."""
    values = configs.schedule_to_theirs(schedule)
    scheduler = diffusers.DDIMScheduler.from_config({k: v for k, v in values.items() if k[0] != "_"})
    scheduler.set_timesteps(num_steps)

    def eps_model(z, t):  # anything that depends on all of its input
        return torch.tanh(z + 0.1 * z.roll(1, -1)) * (1 + 1e-3 * t.view(-1, 1))

    z_T, noises, path = torch.randn(2, 16), torch.randn(num_steps, 2, 16), []
    tape = iter(noises)
    ddim(eps_model, z_T, schedule, num_steps, eta=eta, generator=lambda z: next(tape),
         on_step=lambda i, t, z, z0: path.append(z))
    z = z_T
    for t, noise, expected in zip(scheduler.timesteps, noises, path, strict=True):
        z = scheduler.step(eps_model(z, t.expand(2)), t, z, eta=eta, variance_noise=noise).prev_sample
        close(z, expected, 1e-4)


def whole(change=None, denoiser=None, conditioner=None, std=2.0) -> LatentDiffusion:
    """A model of random weights in one piece."""
    first_stage = randomized(build_autoencoder(replace(AE, **(change or {}))))
    stats = LatentStats("none" if std == 1 else "first_batch", (0.0,), (std,), (0.1,), 8)
    return LatentDiffusion(first_stage, stats, randomized(UNet(denoiser or UNET)), scaled_linear(), conditioner, 32,
                           torch.device("cpu"))


def as_theirs(x):
    """Pictures in [-1, 1], as pipelines hand them out: (n, H, W, 3) in [0, 1]."""
    return (x / 2 + 0.5).movedim(1, -1)


def run(pipeline, **given):
    """Pictures from the starting noise that samples with seed 3 have here."""
    pipeline.set_progress_bar_config(disable=True)
    noise = lambda shape, **_: SampleNoise(3, range(shape[0])).draw(shape[1:])  # noqa: E731
    with patch.object(sys.modules[type(pipeline).__module__], "randn_tensor", noise):
        return torch.as_tensor(pipeline(output_type="np", **given).images)


@pytest.mark.parametrize("change, std", [(dict(), 2.0), (dict(reg="vq"), 1.0)])
def test_unconditional_pipeline(diffusers, tmp_path, change, std):
    """A folder runs as LDMPipeline, and gives the pictures that the model gives here from the same noise."""
    model = whole(change, std=std)
    assert folders.write_pipeline(model, tmp_path) == "LDMPipeline"
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    assert type(pipeline).__name__ == "LDMPipeline"
    ours = model.sample(torch.zeros(2), num_steps=10, seed=3)
    close(run(pipeline, batch_size=2, num_inference_steps=10), as_theirs(ours), 1e-4)
    close(folders.read_pipeline(tmp_path).sample(torch.zeros(2), num_steps=10, seed=3), ours)


def test_super_resolution_pipeline(diffusers, tmp_path):
    """A model of low-resolution pictures runs as LDMSuperResolutionPipeline, and back."""
    model = whole(dict(reg="vq"), replace(UNET, in_channels=6), LowResolution(4, 4), std=1.0)
    assert folders.write_pipeline(model, tmp_path) == "LDMSuperResolutionPipeline"
    pipeline, y = diffusers.DiffusionPipeline.from_pretrained(tmp_path, low_cpu_mem_usage=False), torch.rand(2, 3, 8, 8)
    ours = model.sample(y, num_steps=10, seed=3)
    close(run(pipeline, image=y, num_inference_steps=10), as_theirs(ours), 1e-4)
    close(folders.read_pipeline(tmp_path).sample(y, num_steps=10, seed=3), ours)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A text-to-image model of `scenes`: a plain first stage, and captions of the length that diffusers wants."""
    spec = study_spec(8, tier="smoke", condition="text")
    autoencoder = configs.exportable_config(spec.first_stage.autoencoder)
    first_stage = replace(spec.first_stage, autoencoder=autoencoder, num_steps=3, batch_size=4, val_every=2)
    spec = replace(spec, data=replace(spec.data, num_train=64, num_val=12), first_stage=first_stage, diffusion=replace(
        spec.diffusion, condition=replace(spec.diffusion.condition, max_length=77), num_steps=3, batch_size=4,
        milestones=()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LDMLAB_ROOT", str(tmp_path_factory.mktemp("lab")))
        opened = pictures.open_pictures(spec)
        first_stage = train_first_stage(spec, opened, "cpu")
        latents = encode(spec, first_stage, opened, "cpu")
        return diffusion_runs.train_diffusion(spec, opened, first_stage, latents, "cpu").model


PROMPTS = ["a red circle above a blue square", "two small trees"]


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_a_model_trained_on_scenes_runs_in_diffusers(diffusers, tmp_path, trained, guidance_scale):
    """Trained, exported, loaded by DiffusionPipeline, asked in words: the pictures are those it gives here."""
    assert folders.write_pipeline(trained, tmp_path) == "LDMTextToImagePipeline"
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    theirs = run(pipeline, prompt=PROMPTS, num_inference_steps=10, guidance_scale=guidance_scale)
    for model in (trained, folders.read_pipeline(tmp_path)):
        ours = model.sample(model.conditioner.tokenizer(PROMPTS), num_steps=10, seed=3, guidance_scale=guidance_scale)
        close(theirs, as_theirs(ours), 1e-4)


def of_diffusers(diffusers):
    """CompVis/ldm-text2im-large-256 as diffusers builds it, small and with random weights."""
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
    from transformers import BertTokenizer

    down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    vqvae = diffusers.AutoencoderKL(block_out_channels=(8, 8, 16, 16), layers_per_block=2, down_block_types=down,
                                    up_block_types=up, norm_num_groups=4, sample_size=32)
    attend, rise = ("CrossAttnDownBlock2D",) * 3, ("CrossAttnUpBlock2D",) * 3
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16, 16, 16), down_block_types=(*attend, "DownBlock2D"),
        up_block_types=("UpBlock2D", *rise), attention_head_dim=2, cross_attention_dim=12, norm_num_groups=4)
    tokenizer = BertTokenizer.from_pretrained(SCENES_VOCABULARY)
    bert = LDMBertModel(LDMBertConfig(vocab_size=len(tokenizer), encoder_layers=2, encoder_ffn_dim=48, d_model=12,
                                      encoder_attention_heads=2, head_dim=4))
    scheduler = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                                        clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    for module in (vqvae, unet, bert):
        randomized(module)
    return diffusers.LDMTextToImagePipeline(vqvae, bert, tokenizer, unet, scheduler)


def age(folder):
    """Make a folder look as in 2022: pickles, older names of attention, no fields that came later."""
    new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    path = folder / "vqvae" / "diffusion_pytorch_model.safetensors"
    state = {re.sub(r"(?<=attentions\.0\.)(to_[qkv]|to_out\.0)", lambda m: new[m[1]], key): value
             for key, value in load_file(path).items()}
    torch.save(state, path.with_suffix(".bin"))
    path.unlink()
    bert = folder / "bert" / "model.safetensors"
    torch.save(load_file(bert), bert.with_name("pytorch_model.bin"))
    bert.unlink()
    for name in ("vqvae", "unet"):
        config = folder / name / "config.json"
        kept = {key: value for key, value in json.loads(config.read_text()).items() if key in {
            "_class_name", "act_fn", "attention_head_dim", "block_out_channels", "center_input_sample",
            "cross_attention_dim", "down_block_types", "downsample_padding", "flip_sin_to_cos", "freq_shift",
            "in_channels", "latent_channels", "layers_per_block", "mid_block_scale_factor", "norm_eps",
            "norm_num_groups", "out_channels", "sample_size", "up_block_types"}}
        config.write_text(json.dumps(kept))


@pytest.mark.parametrize("old", [False, True])
def test_the_released_text_model_in_diffusers_layout_runs_here(diffusers, tmp_path, old):
    """A folder that diffusers saved, today or in 2022, gives the same pictures here, with guidance."""
    pipeline = of_diffusers(diffusers)
    pipeline.save_pretrained(tmp_path)
    if old:
        age(tmp_path)
    theirs = run(pipeline, prompt=PROMPTS, num_inference_steps=10, guidance_scale=3.0)
    model = folders.read_pipeline(tmp_path)
    ours = model.sample(model.conditioner.tokenizer(PROMPTS), num_steps=10, seed=3, guidance_scale=3.0)
    close(theirs, as_theirs(ours), 1e-4)
