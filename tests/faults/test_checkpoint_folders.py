"""Folders of diffusers as people share them: read, or refused by `read_pipeline` and `inspect` in the same words."""

import json
import os
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldmlab.checkpoints.diffusers_format.folders import read_part, read_pipeline, write_pipeline
from ldmlab.checkpoints.inspection import inspect_file
from ldmlab.diffusion.model import LatentDiffusion
from ldmlab.diffusion.schedules import scaled_linear
from ldmlab.diffusion.unet.config import DenoiserConfig
from ldmlab.diffusion.unet.unet import UNet
from ldmlab.first_stage.autoencoder import AutoencoderConfig, build_autoencoder
from ldmlab.first_stage.latents import LatentStats

W = "diffusion_pytorch_model"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 334643276\n"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A pipeline's folder, and samples of its model."""
    torch.manual_seed(0)
    first_stage = build_autoencoder(AutoencoderConfig(
        f=2, z_channels=3, reg="kl", ch=8, ch_mult=(1, 1), num_res_blocks=1, resolution=8, norm_groups=4)).eval()
    denoiser = UNet(DenoiserConfig(3, 3, widths=(8, 8), num_res_blocks=1, norm_groups=4, attention_at=(2,),
                                   num_head_channels=8)).eval()
    for value in denoiser.state_dict().values():
        torch.nn.init.normal_(value, std=0.1)  # its last layer begins at zero
    stats = LatentStats("first_batch", (0.0,), (2.0,), (0.0,), 0)
    model = LatentDiffusion(first_stage, stats, denoiser, scaled_linear(100), None, 8, torch.device("cpu"))
    folder = tmp_path_factory.mktemp("base")
    write_pipeline(model, folder)
    return folder, model.sample(torch.zeros(1), num_steps=2)


def weights_of(folder, part="unet"):
    return folder / part / f"{W}.safetensors"


def rewrite(folder, change, part="unet"):
    """Change the tensors of a part."""
    save_file({key: value.contiguous() for key, value in change(load_file(weights_of(folder, part))).items()},
              weights_of(folder, part))


def variants(*names, keep=False):
    def change(folder):
        for name in names:
            half = {key: value.half() for key, value in load_file(weights_of(folder)).items()}
            full = load_file(weights_of(folder))
            save_file(full if name != "fp16" else half, folder / "unet" / f"{W}.{name}.safetensors")
        if not keep:
            weights_of(folder).unlink()
    return change


def sharded(variant="", lost=None, index_of=None, ending="safetensors"):
    def change(folder):
        state = load_file(weights_of(folder))
        names = {key: f"{W}{variant}-0000{1 + i % 2}-of-00002.{ending}" for i, key in enumerate(sorted(state))}
        for name in set(names.values()):
            part = {key: value for key, value in state.items() if names[key] == name and key != lost}
            (save_file if ending == "safetensors" else torch.save)(part, folder / "unet" / name)
        index = {"metadata": {}, "weight_map": names} if index_of is None else index_of(names)
        (folder / "unet" / f"{W}{variant}.{ending}.index.json").write_text(json.dumps(index))
        weights_of(folder).unlink()
    return change


def as_bin(folder):
    torch.save(load_file(weights_of(folder)), folder / "unet" / f"{W}.bin")
    weights_of(folder).unlink()


def settings(file, **changes):
    def change(folder):
        values = json.loads((folder / file).read_text()) | changes
        (folder / file).write_text(json.dumps({key: value for key, value in values.items() if value != "REMOVE"}))
    return change


def spoil_one(value):
    def change(state):
        state["conv_in.weight"][0, 0, 0, 0] = value
        return state
    return lambda folder: rewrite(folder, change)


def hub_cache(folder):
    inside = [path for path in folder.iterdir()]
    for commit in ("abc", "def"):
        shutil.copytree(folder, folder / "snapshots" / commit, ignore=shutil.ignore_patterns("snapshots"))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("def\n")
    for path in inside:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


READ = {
    "as written": lambda folder: None,
    "fp32 variant": variants("fp32"),
    "fp16 and fp32": variants("fp16", "fp32"),
    "non_ema beside": variants("non_ema", keep=True),
    "shards": sharded(),
    "shards of a variant": sharded(".fp32"),
    "shards of .bin": sharded(ending="bin"),
    ".bin": as_bin,
    "float64": lambda folder: rewrite(folder, lambda state: {k: v.double() for k, v in state.items()}),
    "a byte-order mark": lambda folder: (folder / "model_index.json").write_bytes(
        b"\xef\xbb\xbf" + (folder / "model_index.json").read_bytes()),
    "vae/": lambda folder: os.rename(folder / "vqvae", folder / "vae"),
    "config.json of a scheduler": lambda folder: os.rename(
        folder / "scheduler" / "scheduler_config.json", folder / "scheduler" / "config.json"),
    "the hub's cache": hub_cache,
    **{f"prefix {p}": lambda folder, p=p: rewrite(folder, lambda state: {p + k: v for k, v in state.items()})
       for p in ("module.", "_orig_mod.", "model.", "ema.", "model.diffusion_model.", "module._orig_mod.")},
    "_orig_mod inside": lambda folder: rewrite(folder, lambda state: {
        k.replace("mid_block.", "mid_block._orig_mod."): v for k, v in state.items()}),
}
REFUSED = {
    "git-lfs pointer": (lambda folder: weights_of(folder).write_text(POINTER),
                        "pointer of git-lfs to a file of 334,643,276 bytes.*git lfs pull"),
    "no weights": (lambda folder: weights_of(folder).unlink(), "unet has neither .*it has: config.json"),
    "weights of another framework": (
        lambda folder: os.rename(weights_of(folder), folder / "unet" / "flax_model.msgpack"), "config.json, flax_"),
    "NaN": (spoil_one(float("nan")), "conv_in.weight has NaN or infinite values; the file is damaged"),
    "infinite": (spoil_one(float("inf")), "conv_in.weight has NaN or infinite values"),
    "all NaN": (lambda folder: rewrite(folder, lambda state: {k: v * float("nan") for k, v in state.items()}),
                "the first of ([0-9]+) of \\1 entries"),
    "quantized": (lambda folder: rewrite(folder, lambda state: {k: v.to(torch.int8) for k, v in state.items()}),
                  "is of type int8.*quantized"),
    "one entry missing": (lambda folder: rewrite(folder, lambda state: {
        k: v for k, v in state.items() if k != "conv_in.bias"}), "1 missing \\(down.0.0.bias\\)"),
    "one entry missing, and a prefix": (lambda folder: rewrite(folder, lambda state: {
        f"model.{k}": v for k, v in state.items() if k != "conv_in.bias"}), "1 missing \\(down.0.0.bias\\) \\("),
    "one entry too many": (lambda folder: rewrite(folder, lambda state: state | {"extra": torch.ones(1)}),
                           "1 unexpected \\(extra\\)"),
    "a shard missing": (lambda folder: (sharded()(folder), next((folder / "unet").glob("*-00002-*")).unlink()),
                        "1 of 2 shards are missing: .*00002-of-00002"),
    "an entry missing in its shard": (sharded(lost="conv_in.bias"), "1 of [0-9]+ entries are not in .* conv_in.bias"),
    "an index elsewhere": (sharded(index_of=lambda names: {"weight_map": dict.fromkeys(names, "../../x.safetensors")}),
                           "files of other folders, which are not read"),
    "an index that is none": (sharded(index_of=lambda names: {"weight_map": [1]}), "no index of shards"),
    "shards without an index": (
        lambda folder: (sharded()(folder), next((folder / "unet").glob("*.index.json")).unlink()),
        "index of these shards is missing"),
    "deep JSON": (lambda folder: (folder / "unet" / "config.json").write_text("[" * 100_000), "nested too deeply"),
    "deep index": (lambda folder: (folder / "model_index.json").write_text('{"a":' * 100_000), "nested too deeply"),
    "an index of no object": (lambda folder: (folder / "model_index.json").write_text("[]"), "holds a list"),
    "not UTF-8": (lambda folder: (folder / "unet" / "config.json").write_bytes(b"\xff\xfe{}"), "is not JSON"),
    "architectures of another type": (settings("unet/config.json", _class_name=None, architectures={"a": 1}),
                                      "describes a None"),
    "a class that is a list": (settings("unet/config.json", _class_name=["UNet2DModel"]), "describes a None"),
    "widths that are text": (settings("unet/config.json", block_out_channels="many"), "unet.config.json"),
    "widths of nothing": (settings("unet/config.json", block_out_channels=[]), "unet.config.json"),
    "widths that fit no memory": (settings("unet/config.json", block_out_channels=[2**40, 2**40]), "unet.*config.json"),
    "widths that are negative": (settings("unet/config.json", block_out_channels=[-8, -8]), "unet.config.json"),
    "zero groups": (settings("unet/config.json", norm_num_groups=0), "unet.config.json"),
    "steps that are text": (settings("scheduler/scheduler_config.json", num_train_timesteps="x"), "scheduler_config"),
    "no steps": (settings("scheduler/scheduler_config.json", num_train_timesteps=0), "scheduler_config"),
    "no schedule": (settings("scheduler/scheduler_config.json", trained_betas=[[1], 2]), "scheduler_config"),
    "scale that is no number": (settings("vqvae/config.json", scaling_factor="1x"), "vqvae.config.json"),
    "scale of zero": (settings("vqvae/config.json", scaling_factor=0), "scaling_factor = 0"),
    "v_prediction": (settings("scheduler/scheduler_config.json", prediction_type="v_prediction"), "v_prediction"),
    "Stable Diffusion": (settings("model_index.json", _class_name="StableDiffusionPipeline"), "StableDiffusionP"),
    "no model_index.json": (
        lambda folder: (folder / "model_index.json").unlink(), "model_index.json is missing|is a folder"),
}


@pytest.fixture
def folder(base, tmp_path):
    return shutil.copytree(base[0], tmp_path / "pipeline")


@pytest.mark.parametrize("case", READ)
def test_folders_that_are_read(case, base, folder, capsys):
    """Samples equal those of the model that was written, and `inspect` says that the folder fits."""
    READ[case](folder)
    assert torch.equal(read_pipeline(folder).sample(torch.zeros(1), num_steps=2), base[1])
    said = capsys.readouterr().out
    assert ("was taken" in said) == ("prefix" in case or "inside" in case)
    assert ("variant" in said) == ("fp" in case or "of a variant" in case)
    report = inspect_file(folder)
    assert report.status == 0, report
    assert said.strip() in str(report)


def test_half_precision_is_read_where_there_is_nothing_else(folder, base):
    """The variant most often shared; weights are those of 16 bits."""
    variants("fp16")(folder)
    model = read_pipeline(folder)
    assert model.denoiser.down[0][0].weight.dtype == torch.float32
    assert 0 < (model.sample(torch.zeros(1), num_steps=2) - base[1]).abs().max() < 0.02
    assert "variant fp16 of the weights, the only one" in str(inspect_file(folder))


@pytest.mark.parametrize("case", REFUSED)
def test_folders_that_are_refused(case, folder):
    """`read_pipeline` and `inspect` agree, and say why in the same words."""
    change, message = REFUSED[case]
    change(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_pipeline(folder)
    report = inspect_file(folder)
    assert report.status in (1, 2)
    assert re.search(message, str(report))


def test_a_part_is_inspected_with_its_weights(folder):
    """A first stage alone, as other people share it."""
    assert inspect_file(folder / "vqvae").status == 0 and read_part(folder / "vqvae").scale_factor == 0.5
    weights_of(folder, "vqvae").unlink()
    assert inspect_file(folder / "vqvae").status == 1
    assert inspect_file(folder / "scheduler").status != 0
