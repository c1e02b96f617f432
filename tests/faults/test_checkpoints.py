"""Checkpoints of others: judged by content, read where that is safe, and refused in one sentence that has the cure."""

import argparse
import collections
import json
import os
import random
import shutil
import sys
import time
import types
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ldmlab.checkpoints.inspection import inspect_file
from ldmlab.checkpoints.opening import open_weights
from ldmlab.checkpoints.released import FIRST_STAGES, LDMS, ROWS, scaled_down
from ldmlab.checkpoints.released_model import build, load_compvis

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 334643276\n"


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


PREFIXES = ("module.", "_orig_mod.", "first_stage_model.", "model.", "ema.", "autoencoder.",
            "module.first_stage_model.", "state_dict.model.", "model._orig_mod.", "_fsdp_wrapped_module.")


@pytest.mark.parametrize(("name", "prefix"), [
    *(("kl-f8", prefix) for prefix in PREFIXES), ("celeba256", "module."), ("celeba256", "ema.model.")])
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
    for prefix in ("ema.", ""):
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
    save_file({"w": torch.full((2,), float("nan"))}, tmp_path / "a.safetensors", {"ldmlab": '{"f": 8}'})  # by 0.2.0
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
    "generator": np.random.default_rng(0), "masked": np.ma.masked_array([1, 2], [0, 1]),
    "big endian": np.arange(3, dtype=">i2"),
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
    ("state_dict", ""), ("model", "'model'"), ("model_state_dict", "'model_state_dict'"), ("ema", "'ema'")])
def test_weights_are_found_under_other_names(container, note, tmp_path):
    """Where a trainer other than Lightning saved them; it is said where they were."""
    torch.save({container: {"w": torch.ones(2)}, "step": 3}, tmp_path / "a.pt")
    opened = open_weights(tmp_path / "a.pt")
    assert list(opened.tensors) == ["w"] and note in "".join(opened.notes) and bool(note) == bool(opened.notes)


# --- Any bytes -------------------------------------------------------------------------------------------------------
def fuzzed(seeds, seconds):
    """Copies of files with bytes changed, cut or repeated; the heads, where formats are decided, most often."""
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
                    data[at:at] = rng.choice(
                        (b"\0", b"{", b"\xff" * 8, b"PK\x03\x04", b"\x80\x02", b"[" * 5000, data[:32]))
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
