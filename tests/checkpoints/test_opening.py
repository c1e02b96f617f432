"""Files of others are opened for their weights alone, and bad ones are refused in plain words."""

import argparse
import hashlib
import json
import os
import sys
import types
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from ldmlab.checkpoints.__main__ import main
from ldmlab.checkpoints.files import save_model
from ldmlab.checkpoints.inspection import inspect_file
from ldmlab.checkpoints.opening import open_weights
from ldmlab.checkpoints.released import FIRST_STAGES, LDMS, ROWS, scaled_down
from ldmlab.checkpoints.released_model import build, load_compvis

WEIGHTS = {"encoder.conv_in.weight": torch.arange(6.0).view(2, 3), "steps": torch.tensor(3)}


class Bomb:
    """Unpickled without care, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def lightning(monkeypatch):
    """Classes that stand in for those of training frameworks; gone again before a file is read."""

    def make(name):
        module, _, qualname = name.rpartition(".")
        made = type(qualname, (), {"__module__": module})
        if (package := module.partition(".")[0]) not in sys.modules:
            monkeypatch.setitem(sys.modules, package, types.ModuleType(package))  # pickling imports it, in vain
        monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**{qualname: made}))
        return made

    return make


def test_a_checkpoint_of_lightning_is_read_without_its_objects(tmp_path, lightning, monkeypatch):
    """Released files name a callback's class and hold settings; weights and step come out, the rest is named."""
    name = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
    callback = lightning(name)
    content = {"epoch": 3, "global_step": 7, "state_dict": WEIGHTS, "hparams": argparse.Namespace(a=1),
               "callbacks": {callback: {"best": torch.ones(1)}}, "loops": [callback()]}
    torch.save(content, tmp_path / "model.ckpt")
    monkeypatch.undo()
    opened = open_weights(tmp_path / "model.ckpt")
    assert all(torch.equal(opened.tensors[key], value) for key, value in WEIGHTS.items())
    assert opened.numbers == {"epoch": 3, "global_step": 7}
    assert opened.skipped_classes == ("argparse.Namespace", name)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_code_in_a_pickle_does_not_run(tmp_path, zipped):
    """A file that would make a folder when unpickled is refused, named, and makes none; torch's own load would."""
    made, path = tmp_path / "made", tmp_path / "model.ckpt"
    torch.save({"state_dict": WEIGHTS, "x": Bomb(made)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="mkdir|posix|nt"):
        open_weights(path)
    assert inspect_file(path).status == 2
    assert not made.exists()
    torch.load(path, weights_only=False)
    assert made.exists()


def truncated(path):
    torch.save(WEIGHTS, path)
    os.truncate(path, path.stat().st_size // 2)


def truncated_safetensors(path):
    save_file(WEIGHTS, path)
    os.truncate(path, path.stat().st_size - 4)


def archive(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model.ckpt", "")


BAD = {
    "truncated": (truncated, "truncated or damaged"),
    "truncated safetensors": (truncated_safetensors, "truncated or damaged"),
    "empty": (lambda path: path.touch(), "is empty"),
    "a folder": (lambda path: path.mkdir(), "is a folder"),
    "missing": (lambda path: None, "does not exist"),
    "a web page": (lambda path: path.write_text("<!DOCTYPE html><html>"), "web page"),
    "an archive": (archive, "archive of model.ckpt; unpack it"),
    "a list": (lambda path: torch.save([1, 2], path), "holds a list, not a state dict"),
    "no weights": (lambda path: torch.save({"epoch": 1}, path), "no weights.*'epoch'"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_refused_in_plain_words(tmp_path, kind):
    """Each is an error that names file and reason, exit code 2, and nothing on disk changes."""
    make, message = BAD[kind]
    path = tmp_path / "model.ckpt"
    make(path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    for read in (open_weights, load_compvis):
        with pytest.raises((ValueError, OSError), match=f"model.ckpt.*{message}"):
            read(path)
    assert inspect_file(path).status == 2
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_wrong_hash(tmp_path):
    """A file with another hash than asked for is not even unpickled; with the right one, in any case, it is read."""
    path = tmp_path / "model.ckpt"
    torch.save(WEIGHTS, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert open_weights(path, digest.upper()).shapes["encoder.conv_in.weight"] == (2, 3)
    with pytest.raises(ValueError, match=f"has sha256 {digest}, expected {'0' * 64}"):
        open_weights(path, "0" * 64)
    assert inspect_file(path, "0" * 64).status == 2


@pytest.fixture
def small_rows():
    """Small rows of the released layouts in place of the released ones, whose order comes back as well."""
    before = dict(ROWS)
    small = (FIRST_STAGES["kl-f4"], FIRST_STAGES["vq-f4"], LDMS["celeba256"], LDMS["ffhq256"], LDMS["bsr_sr"])
    ROWS.clear()
    ROWS.update({row.name: scaled_down(row) for row in small})
    yield ROWS
    ROWS.clear()
    ROWS.update(before)


def test_the_row_that_fits_is_found(tmp_path, small_rows, capsys):
    """`inspect` and "auto" find the row by keys and shapes; the path tells rows of one layout apart, if anything."""
    state = build(small_rows["ffhq256"]).to_compvis_state()
    path = tmp_path / "ffhq256 small" / "model.ckpt"
    path.parent.mkdir()
    torch.save({"state_dict": state}, path)
    assert main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert "a latent diffusion model" in out and f"{len(state)} entries" in out
    assert "fits ffhq256 small (FFHQ / LDM-4); celeba256 small have the same layout" in out
    assert "averaged weights (EMA): yes" in out and "12 entries of no module: tables of the schedule" in out
    model = load_compvis(path)
    assert (model.row.name, model.same_layout, model.averaged) == ("ffhq256 small", ("celeba256 small",), True)


def test_another_architecture(tmp_path, small_rows):
    """A file of another model is named with the nearest row and what differs; other weights are said to be such."""
    path = tmp_path / "model.ckpt"
    state = build(small_rows["vq-f4"]).to_compvis_state()
    state["quantize.embedding.weight"] = torch.zeros(10, 3)
    del state["quant_conv.bias"]
    torch.save(state, path)
    report = inspect_file(path)
    assert report.status == 1
    assert "nearest is vq-f4 small" in str(report) and "1 missing: quant_conv.bias" in str(report)
    assert "quantize.embedding.weight: (10, 3) in the file, (64, 3) in vq-f4 small" in str(report)
    with pytest.raises(ValueError, match="fits no released model; vq-f4 small is nearest: 1 missing: quant_conv.bias"):
        load_compvis(path)
    torch.save({"layer1.conv.weight": torch.zeros(3), "fc.bias": torch.zeros(1)}, path)
    assert inspect_file(path).status == 1 and "something else" in inspect_file(path).lines[0]


def test_files_of_ours_and_of_diffusers(tmp_path):
    """Our own files tell what they are; a folder of diffusers is known by its class, its bare weights by their keys."""
    save_model(tmp_path / "ours.safetensors", WEIGHTS, {"hash": "abc", "curve": [1, 2]})
    report = inspect_file(tmp_path / "ours.safetensors")
    assert report.status == 0 and "a model of ldmlab" in report.lines[0] and "hash: abc" in report.lines
    save_file({"down_blocks.0.resnets.0.conv1.weight": torch.zeros(2)}, tmp_path / "diffusion.safetensors")
    assert inspect_file(tmp_path / "diffusion.safetensors").status == 1
    for name, why in (("LDMPipeline", "config.json is missing"), ("StableDiffusionXLPipeline", "does not read a")):
        index = {"_class_name": name, "unet": ["diffusers", "UNet2DModel"]}
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        report = inspect_file(tmp_path)
        assert (report.status, name in report.lines[0]) == (1, True) and "unet: UNet2DModel" in report.lines
        assert why in report.lines[-1]


def test_exit_code_of_a_file_that_is_not_there(tmp_path, capsys):
    """`inspect` says so, and the command ends with code 2."""
    assert main(["inspect", str(tmp_path / "none.ckpt")]) == 2
    assert "does not exist" in capsys.readouterr().out
