"""Checkpoints of others: judged by content, read where that is safe, and refused in one sentence that has the cure."""

import argparse
import collections
import json
import os
import random
import re
import shutil
import sys
import time
import types
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ldmlab.checkpoints.diffusers_format.folders import read_part, read_pipeline, write_pipeline
from ldmlab.checkpoints.files import save_model
from ldmlab.checkpoints.inspection import inspect_file
from ldmlab.checkpoints.opening import open_weights
from ldmlab.checkpoints.released import FIRST_STAGES, LDMS, ROWS, scaled_down
from ldmlab.checkpoints.released_model import build, load_compvis
from ldmlab.diffusion.model import LatentDiffusion
from ldmlab.diffusion.schedules import scaled_linear
from ldmlab.diffusion.unet.config import DenoiserConfig
from ldmlab.diffusion.unet.unet import UNet
from ldmlab.first_stage.autoencoder import AutoencoderConfig, build_autoencoder
from ldmlab.first_stage.latents import LatentStats

W = "diffusion_pytorch_model"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 334643276\n"


# --- Folders of diffusers --------------------------------------------------------------------------------------------
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
       for p in ("module.", "_orig_mod.", "model.", "ema.", "unet.", "model.diffusion_model.", "module._orig_mod.", "net.")},
    "_orig_mod inside": lambda folder: rewrite(folder, lambda state: {
        k.replace("mid_block.", "mid_block._orig_mod.") : v for k, v in state.items()}),
}
REFUSED = {
    "git-lfs pointer": (lambda folder: weights_of(folder).write_text(POINTER),
                        "pointer of git-lfs to a file of 334,643,276 bytes.*git lfs pull"),
    "no weights": (lambda folder: weights_of(folder).unlink(), "unet has neither .*it has: config.json"),
    "weights of another framework": (lambda folder: os.rename(weights_of(folder), folder / "unet" / "flax_model.msgpack"),
                                     "it has: config.json, flax_model.msgpack"),
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
    "an index nested too deeply": (sharded(index_of=lambda names: {}), "no index of shards"),
    "shards without an index": (lambda folder: (sharded()(folder), next((folder / "unet").glob("*.index.json")).unlink()),
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
    "steps that are text": (settings("scheduler/scheduler_config.json", num_train_timesteps="many"), "scheduler_config"),
    "no steps": (settings("scheduler/scheduler_config.json", num_train_timesteps=0), "scheduler_config"),
    "a schedule that is none": (settings("scheduler/scheduler_config.json", trained_betas=[[1], 2]), "scheduler_config"),
    "scale that is no number": (settings("vqvae/config.json", scaling_factor="1x"), "vqvae.config.json"),
    "scale of zero": (settings("vqvae/config.json", scaling_factor=0), "scaling_factor = 0"),
    "v_prediction": (settings("scheduler/scheduler_config.json", prediction_type="v_prediction"), "v_prediction"),
    "Stable Diffusion": (settings("model_index.json", _class_name="StableDiffusionPipeline"), "StableDiffusionPipeline"),
    "no model_index.json": (lambda folder: (folder / "model_index.json").unlink(), "model_index.json is missing|is a folder"),
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


# --- CompVis's files -------------------------------------------------------------------------------------------------
@pytest.fixture
def rows():
    """Small rows in place of the released ones."""
    before = dict(ROWS)
    small = (FIRST_STAGES["kl-f8"], FIRST_STAGES["vq-f4-noattn"], LDMS["celeba256"])
    ROWS.clear()
    ROWS.update({row.name: scaled_down(row) for row in small})
    yield ROWS
    ROWS.clear()
    ROWS.update(before)


PREFIXES = ("module.", "_orig_mod.", "first_stage_model.", "model.", "ema.", "autoencoder.", "module.first_stage_model.",
            "state_dict.model.", "model._orig_mod.", "_fsdp_wrapped_module.")


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", ["kl-f8", "celeba256"])
def test_a_prefix_is_taken_off_and_said(name, prefix, rows, tmp_path, capsys):
    """It was called the nearest of another family, with every entry missing; the weights are those without it."""
    model = build(rows[name])
    state = model.to_compvis_state()
    torch.save({"state_dict": {prefix + key: value for key, value in state.items()}}, tmp_path / "model.ckpt")
    report = inspect_file(tmp_path / "model.ckpt")
    assert report.status == 0 and f"fits {name} small" in str(report) and "taken" in str(report)
    loaded = load_compvis(tmp_path / "model.ckpt", ema=False)
    assert "taken o" in capsys.readouterr().out
    assert all(torch.equal(value, state[key]) for key, value in loaded.to_compvis_state().items())


def test_averages_come_first_where_a_file_has_two_sets(rows, tmp_path, capsys):
    """`model.` and `ema.` in one file: the averaged weights, and what was left out is said."""
    state = build(rows["kl-f8"]).to_compvis_state()
    both = {f"model.{key}": torch.zeros_like(value) for key, value in state.items()}
    torch.save(both | {f"ema.{key}": value for key, value in state.items()}, tmp_path / "model.ckpt")
    loaded = load_compvis(tmp_path / "model.ckpt")
    assert torch.equal(loaded.first_stage.decoder.conv_in.weight, state["decoder.conv_in.weight"])
    assert f"{len(state)} others were left out" in capsys.readouterr().out


def test_a_latent_diffusion_model_with_one_bad_entry_is_not_its_first_stage(rows, tmp_path):
    """The one entry is named; taking off prefixes does not make another model of it."""
    state = build(rows["celeba256"]).to_compvis_state()
    del state["model.diffusion_model.out.2.bias"]
    state = {key: value for key, value in state.items() if not key.startswith("model_ema.")}
    for prefix in ("", "module.", "ema."):
        torch.save({prefix + key: value for key, value in state.items()}, tmp_path / "model.ckpt")
        with pytest.raises(ValueError, match="celeba256 small is nearest: 1 missing: model.diffusion_model.out.2.bias"):
            load_compvis(tmp_path / "model.ckpt")
    loaded = load_compvis(tmp_path / "model.ckpt", scaled_first_stage(rows))
    assert torch.equal(loaded.first_stage.decoder.conv_in.weight, state["first_stage_model.decoder.conv_in.weight"])


def scaled_first_stage(rows):
    return rows["celeba256"].first_stage


@pytest.mark.parametrize(("value", "message"), [
    (lambda x: x * float("nan"), "decoder.conv_in.weight has NaN or infinite values;"),
    (lambda x: x.to(torch.int8), "decoder.conv_in.weight is of type int8, as 1 of"),
    (lambda x: x.numpy(), "1 missing: decoder.conv_in.weight"), (lambda x: None, "1 missing: decoder.conv_in.weight"),
    (lambda x: x[0], "1 of another shape: decoder.conv_in.weight"),
    (lambda x: x.to(torch.complex64), "decoder.conv_in.weight is of type complex64"),
    (lambda x: (x * float("inf")).to(torch.float16), "NaN or infinite"),
])
def test_one_bad_entry_is_named(value, message, rows, tmp_path):
    """Not "all missing", nor a model that gives NaN."""
    state = build(rows["kl-f8"]).to_compvis_state()
    state["decoder.conv_in.weight"] = value(state["decoder.conv_in.weight"])
    torch.save({"state_dict": state}, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=message):
        load_compvis(tmp_path / "model.ckpt")
    report = inspect_file(tmp_path / "model.ckpt")
    assert report.status == 1 and message.partition(":")[2].strip(" ;") in str(report)


def test_a_model_of_ours_with_nan_is_said(tmp_path):
    """`inspect` calls it what it is, and damaged."""
    save_model(tmp_path / "a.safetensors", {"w": torch.full((2,), float("nan"))}, {"f": 8})
    assert inspect_file(tmp_path / "a.safetensors").status == 2


# --- What stands beside weights --------------------------------------------------------------------------------------
class AttributeDict(dict):
    """A dictionary of a package that is not installed where the file is read."""


class Config:
    """A class of somebody's training code."""

    def __init__(self):
        self.lr = 1e-4


BESIDE = {
    "numpy scalar": np.float64(0.1), "numpy array": np.arange(6.0).reshape(2, 3), "array of text": np.array(["a", "b"]),
    "structured array": np.zeros(2, "i4,f8"), "array of objects": np.array([None, {}], dtype=object),
    "numpy type": np.float32, "dtype": np.dtype("f4"), "random state": np.random.RandomState(0),
    "generator": np.random.default_rng(0), "masked": np.ma.masked_array([1, 2], [0, 1]), "big endian": np.arange(3, dtype=">i2"),
    "namespace": argparse.Namespace(a=np.int64(1)), "simple namespace": types.SimpleNamespace(a=1),
    "defaultdict": collections.defaultdict(list, a=[1]), "deque": collections.deque([1]), "set": {1, 2}, "bytes": b"ab",
    "counter": collections.Counter("aab"), "complex": 1j, "range": range(3), "object": Config(), "class": Config,
    "dictionary of a class": AttributeDict(a=1), "nested": {"a": [(AttributeDict(b=Config()), np.ones(2))]},
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("kind", BESIDE)
def test_settings_of_any_kind_are_left_out(kind, zipped, tmp_path, monkeypatch):
    """Hyper-parameters that are arrays or objects cost nothing but themselves: weights come out, classes are named."""
    path = tmp_path / "model.ckpt"
    content = {"state_dict": {"w": torch.arange(3.0)}, "epoch": 3, "hyper_parameters": {"x": BESIDE[kind]}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    if "Config" in repr(BESIDE[kind]) or "AttributeDict" in repr(type(BESIDE[kind])):
        monkeypatch.delattr(sys.modules[__name__], "Config")
    opened = open_weights(path)
    assert torch.equal(opened.tensors["w"], torch.arange(3.0)) and opened.numbers == {"epoch": 3}
    plain = kind in ("set", "bytes", "counter", "complex")
    assert bool(opened.skipped_classes) != plain


def test_a_whole_pickled_model_is_told_apart(tmp_path):
    """torch.save(model) in place of its state dict: the cure is said."""
    torch.save(Config(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"holds a pickled .*Config and not its weights.*state_dict\(\)"):
        open_weights(tmp_path / "model.pt")


class Calls:
    """Unpickled, it calls a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize(("function", "name"), [
    (os.mkdir, "mkdir"), (eval, "eval"), (exec, "exec"), (getattr, "getattr"), (shutil.rmtree, "rmtree"),
    (torch.hub.load, "torch.hub"), (json.loads, "loads"), (pytest.main, "pytest"), (__import__, "import")])
def test_code_is_refused_wherever_it_stands(function, name, zipped, tmp_path):
    """Beside weights, among them, and as settings: the file is refused, and nothing is called."""
    target = str(tmp_path / "made")
    for content in ({"state_dict": {"w": torch.ones(1)}, "x": Calls(function, target)},
                    {"state_dict": {"w": torch.ones(1), "x": Calls(function, target)}}, Calls(function, target)):
        path = tmp_path / "model.ckpt"
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match=f"model.ckpt .*{name}"):
            open_weights(path)
        assert inspect_file(path).status == 2 and not os.path.exists(target)


@pytest.mark.parametrize(("container", "note"), [
    ("state_dict", ""), ("model", "'model'"), ("model_state_dict", "'model_state_dict'"), ("params_ema", "'params_ema'")])
def test_weights_are_found_under_other_names(container, note, tmp_path):
    """Where a trainer other than Lightning saved them; it is said where they were."""
    torch.save({container: {"w": torch.ones(2)}, "step": 3}, tmp_path / "a.pt")
    opened = open_weights(tmp_path / "a.pt")
    assert list(opened.tensors) == ["w"] and note in "".join(opened.notes) and bool(note) == bool(opened.notes)


# --- Any bytes -------------------------------------------------------------------------------------------------------
def fuzzed(seeds, seconds):
    """Copies of files with bytes changed, cut, repeated or swapped; the heads, where formats are decided, most often."""
    rng, until = random.Random(0), time.monotonic() + seconds
    while time.monotonic() < until:
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(min(len(data), rng.choice((16, 64, 4096, len(data)))))
            match rng.randrange(5):
                case 0:
                    data[at] = rng.randrange(256)
                case 1:
                    data[at] ^= 1 << rng.randrange(8)
                case 2:
                    del data[at : at + rng.choice((1, 8, 100))]
                case 3:
                    data[at:at] = rng.choice((b"\0", b"{", b"\xff" * 8, b"PK\x03\x04", b"\x80\x02", b"[" * 5000, data[:32]))
                case 4:
                    del data[at:]
            if not data:
                break
        yield bytes(data)


def test_any_bytes_are_read_or_refused(tmp_path, rows):
    """Two seconds of changed heads of every format: a ValueError with the file's name, or tensors; nothing else."""
    state = {"encoder.conv_in.weight": torch.arange(6.0).view(2, 3), "n": torch.tensor(3)}
    save_file(state, tmp_path / "a.safetensors", metadata={"ldmlab": "{}"})
    torch.save({"state_dict": state, "hparams": {"a": np.ones(2)}}, tmp_path / "b.ckpt")
    torch.save({"state_dict": state}, tmp_path / "c.ckpt", _use_new_zipfile_serialization=False)
    (tmp_path / "d.json").write_text(json.dumps({"weight_map": {"w": "a.safetensors"}}))
    with zipfile.ZipFile(tmp_path / "e.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
    seeds = [path.read_bytes() for path in sorted(tmp_path.iterdir())] + [POINTER.encode()]
    path, outcomes = tmp_path / "f.ckpt", collections.Counter()
    inspect_file(tmp_path / "b.ckpt")  # builds the rows, once
    for data in fuzzed(seeds, 2.0):
        path.write_bytes(data)
        try:
            outcomes["read"] += bool(open_weights(path).tensors)
        except ValueError as error:
            outcomes["refused"] += 1
            assert str(path) in str(error)
        assert inspect_file(path).status in (0, 1, 2)
    assert outcomes["refused"] > 20
