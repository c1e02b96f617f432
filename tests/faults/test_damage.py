"""Damaged files: the next run names what was damaged, sets it aside, and makes it anew."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from study.training.test_loop import run as train_toy
from torch import nn

from ldmlab.checkpoints.files import load_model, load_weights, save_model
from ldmlab.damage import DamagedFile, read_or_set_aside
from ldmlab.data import cache
from ldmlab.data.images import open_dataset
from ldmlab.diffusion.conditioning.captions import find_vocabulary
from ldmlab.evaluation.distances import reference_moments
from ldmlab.first_stage.autoencoder import AutoencoderConfig, build_autoencoder
from ldmlab.first_stage.latents import encode_dataset, weights_hash
from ldmlab.perception.lab_networks import feature_net
from ldmlab.study.records.record import Record
from ldmlab.study.training import callbacks
from ldmlab.study.training.state import check_meta, find_or_train, load_state


def scenes(num=12):
    return open_dataset("scenes", size=32, num=num)


def make_pictures(folder):
    return scenes().in_memory(cache_dir=folder).images(range(12))


def make_annotations(folder):
    return scenes().annotations(cache_dir=folder)


def make_latents(folder):
    torch.manual_seed(0)
    config = AutoencoderConfig(f=4, z_channels=3, reg="kl", ch=8, ch_mult=(1, 1, 1), num_res_blocks=1, resolution=32,
                               norm_groups=4, mid_attn=False)
    return torch.from_numpy(np.array(encode_dataset(build_autoencoder(config).eval(), scenes(), folder).moments))


def make_features(folder):
    return reference_moments(scenes(), feature_net("fd-lab"), folder).sample


def make_state(folder):
    """Weights of a toy after ten steps, of which the last may be loaded, or trained again from the fifth."""
    for steps in (5, 10):
        _, module = train_toy(folder / "toy", steps=steps)
    return module.net[0].weight.detach()


def make_model(folder):
    path, net = folder / "model-1" / "model.safetensors", nn.Linear(3, 3)

    def train():
        torch.manual_seed(1)
        trained = nn.Linear(3, 3)
        save_model(path, trained.state_dict(), {"kind": "toy", "folder": "model-1", "hash": weights_hash(trained)})

    def load(path):
        tensors, meta = load_model(path)
        check_meta(path, meta, {"kind": "toy", "folder": "model-1"})
        load_weights(path, net, tensors, meta)
        return net.weight.detach()

    return find_or_train(path, "toy", train, load)


def make_record(folder):
    record = Record("n", "x", {"f": 8}, metrics={"psnr": {"value": 21.5}})
    fresh = Record("n", "x", {"f": 8}).stored(folder)
    if fresh is None:
        record.save(folder)
    return (fresh or record).metrics


def make_vocabulary(folder):
    found, _ = find_vocabulary("mine", ["a red cat", "two green dogs"], folder)
    return (found / "vocab.txt").read_text()


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def flip(path, part):
    raw = bytearray(path.read_bytes())
    raw[int(part * (len(raw) - 1))] ^= 16
    path.write_bytes(raw)


def as_folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = {
    "nothing left": lambda path: cut(path, 0), "half left": lambda path: cut(path, path.stat().st_size // 2),
    "last byte cut": lambda path: cut(path, -1), "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "early flip": lambda path: flip(path, 0.05), "middle flip": lambda path: flip(path, 0.5),
    "late flip": lambda path: flip(path, 0.9), "a folder": as_folder,
}
KINDS = {  # name of the file -> what makes it
    "moments.npy": make_latents, "done.json": make_latents, "scenes-*px-????????????????.npy": make_pictures,
    "scenes-*px-????????????????.json": make_pictures, "*-annotations.json": make_annotations,
    "moments-*.safetensors": make_features, "state.pt": make_state, "model.safetensors": make_model,
    "f8.json": make_record, "vocab.txt": make_vocabulary, "checksum.json": make_vocabulary,
}


def same(a, b):
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """For each maker, what it returned and the folder that it filled."""
    found = {}

    def make(maker):
        if maker not in found:
            folder = tmp_path_factory.mktemp(maker.__name__)
            found[maker] = maker(folder), folder
        return found[maker]

    return make


@pytest.fixture(autouse=True)
def _no_bert(monkeypatch):
    monkeypatch.setattr("ldmlab.diffusion.conditioning.captions.find_bert", lambda: None)


@pytest.mark.parametrize("pattern", KINDS)
def test_what_is_damaged_is_made_anew(made, tmp_path, capsys, pattern):
    """Each kind of file, each kind of damage: the same content as before, once and again, and no other error."""
    maker = KINDS[pattern]
    expected, whole = made(maker)
    for name, damage in DAMAGES.items():
        folder = tmp_path / name
        shutil.copytree(whole, folder)
        (path,) = folder.rglob(pattern)
        damage(path)
        damaged = path.is_dir() or path.read_bytes()
        assert same(maker(folder), expected) and same(maker(folder), expected), name
        harmless = "flip" in name or pattern == "done.json" or (pattern, name) == ("f8.json", "last byte cut")
        if not harmless:  # a flipped bit may be padding, done.json need not be read, a record ends with an empty line
            (kept,) = folder.rglob(f"{pattern}.damaged-1")
            assert damaged is True or kept.read_bytes() == damaged, name
            assert f"{path.name}" in capsys.readouterr().out


def test_cached_pictures_are_checked_block_by_block(tmp_path, monkeypatch, capsys):
    """Opening reads no pixels; the first read of a damaged block makes the file anew, in another process as well."""
    monkeypatch.setattr(cache, "_BLOCK", 4 * 3 * 32 * 32)  # four pictures
    expected = make_pictures(tmp_path)
    (path,) = tmp_path.rglob("scenes-*.npy")
    flip(path, 0.5)
    images = pickle.loads(pickle.dumps(scenes().in_memory(cache_dir=tmp_path)))
    assert torch.equal(images.images(range(4)), expected[:4]) and not capsys.readouterr().out
    assert torch.equal(images.images([11, 6]), expected[[11, 6]]) and path.name in capsys.readouterr().out
    assert torch.equal(make_pictures(tmp_path), expected) and not capsys.readouterr().out
    assert len(pickle.dumps(scenes().in_memory(cache_dir=tmp_path))) < path.stat().st_size


def test_the_file_of_another_run_in_its_place(tmp_path, monkeypatch):
    """Sound files of the same kind and shape, which only what they say of themselves tells apart."""
    monkeypatch.setattr(callbacks, "CHECKPOINT_EVERY_S", 0)
    expected = {maker: maker(tmp_path) for maker in (make_latents, make_state, make_model)}
    torch.manual_seed(5)
    other = tmp_path / "other"
    encode_dataset(build_autoencoder(AutoencoderConfig(
        f=4, z_channels=3, reg="kl", ch=8, ch_mult=(1, 1, 1), num_res_blocks=1, resolution=32, norm_groups=4,
        mid_attn=False)).eval(), scenes(), other)
    train_toy(other / "another", steps=10)
    save_model(other / "model.safetensors", nn.Linear(3, 3).state_dict(), {"folder": "model-2", "hash": "0" * 64})
    for name, maker in (("moments.npy", make_latents), ("state.pt", make_state), ("model.safetensors", make_model)):
        (theirs,) = other.rglob(name)
        (path,) = (file for file in tmp_path.rglob(name) if other not in file.parents)
        shutil.copyfile(theirs, path)
        assert torch.equal(maker(tmp_path), expected[maker])
        assert path.with_name(f"{name}.damaged-1").read_bytes() == theirs.read_bytes()


def test_the_older_state_stands_in_for_a_damaged_one(tmp_path, monkeypatch):
    """Training goes on from the state before it, and not from the beginning."""
    monkeypatch.setattr(callbacks, "CHECKPOINT_EVERY_S", 0)
    _, whole = train_toy(tmp_path / "a", steps=12)
    train_toy(tmp_path / "b", steps=8)
    cut(tmp_path / "b" / "state.pt", 100)
    assert load_state(tmp_path / "b")["step"] == 7
    _, module = train_toy(tmp_path / "b", steps=12)
    assert module.seen == 5 and torch.equal(module.net[0].weight, whole.net[0].weight)


def test_a_folder_in_the_place_of_the_older_state_stops_nothing(tmp_path, monkeypatch):
    """The state that is to move there sets it aside."""
    monkeypatch.setattr(callbacks, "CHECKPOINT_EVERY_S", 0)
    train_toy(tmp_path, steps=4)
    as_folder(tmp_path / "state-older.pt")
    assert train_toy(tmp_path, steps=6)[1].seen == 2
    assert (tmp_path / "state-older.pt.damaged-1").is_dir() and (tmp_path / "state-older.pt").is_file()


def test_files_of_earlier_versions_are_read(tmp_path):
    """Models without a checksum and a folder's name, latents without a table: read as they are."""
    expected = make_latents(tmp_path)
    (file,) = tmp_path.rglob("moments.npy")
    np.save(file, expected.numpy())
    file.with_name("done.json").write_text('{"done": 24}')
    assert torch.equal(make_latents(tmp_path), expected) and not list(tmp_path.rglob("*.damaged-*"))
    cut(file.with_name("done.json"), 3)
    assert torch.equal(make_latents(tmp_path), expected)
    assert [path.name for path in tmp_path.rglob("*.damaged-*")].count("moments.npy.damaged-1") == 1


def test_weights_of_earlier_versions_are_compared_with_their_hash(tmp_path):
    """Files without a checksum state the hash of their weights."""
    net, path = nn.Linear(3, 3), tmp_path / "m.safetensors"
    meta = {"hash": weights_hash(net)}
    save_file(net.state_dict(), path, {"ldmlab": json.dumps(meta)})
    load_weights(path, nn.Linear(3, 3), *load_model(path))
    flip(path, 0.9)
    with pytest.raises(DamagedFile, match="its weights have the hash"):
        load_weights(path, nn.Linear(3, 3), *load_model(path))


def test_what_cannot_be_set_aside_is_refused_with_the_cure(tmp_path, monkeypatch):
    """A folder that cannot be changed: the file and what to do are named."""
    path = tmp_path / "a"
    path.write_bytes(b"x")

    def read(path: Path):
        raise DamagedFile(path, "torn")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.rename", refuse)
    with pytest.raises(DamagedFile, match="a is damaged: torn. It cannot be renamed .* move or remove it"):
        read_or_set_aside(path, read)
