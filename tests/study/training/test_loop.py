"""The training loop: exact continuation, nothing lost to a kill, a full disk or a NaN."""

import errno
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import nn

from ldmlab.first_stage.latents import MirroredImages
from ldmlab.study.config.specs import DataSpec
from ldmlab.study.runs.pictures import open_split
from ldmlab.study.training import callbacks, loop
from ldmlab.study.training.callbacks import NonFiniteLoss, step_seed
from ldmlab.study.training.loop import StepSampler, fit


class Numbers(torch.utils.data.Dataset):
    """Twenty numbers and their mirror images, minus themselves."""

    def __len__(self):
        return 40

    def __getitems__(self, indices):
        i = torch.tensor(indices)
        return torch.where(i < 20, i, 20 - i).float()[:, None] / 20


class Toy(pl.LightningModule):
    """A noisy regression with dropout and Adam: everything that resuming could get wrong."""

    automatic_optimization, clip_norm = True, 1.0

    def __init__(self, nan_at=None, kill_at=None):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.3), nn.Linear(8, 1))
        self.nan_at, self.kill_at, self.seen = nan_at, kill_at, 0

    def training_step(self, x, batch_idx):
        self.seen += 1
        if self.seen == self.kill_at:
            signal.raise_signal(signal.SIGKILL)
        loss = (self.net(x + torch.randn_like(x)) - x).square().mean()
        return {"loss": loss * float("nan") if self.seen == self.nan_at else loss}

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)

    def training_state(self):
        return {"net": self.net.state_dict(), "optimizer": self.optimizers(use_pl_optimizer=False).state_dict()}

    def load_training_state(self, state):
        self.net.load_state_dict(state["net"])
        self.saved = state["optimizer"]

    def on_train_start(self):
        if hasattr(self, "saved"):
            self.optimizers(use_pl_optimizer=False).load_state_dict(self.saved)


def run(folder, module=None, steps=30, dataset=None, **options):
    module = module or Toy()
    return fit(module, dataset or Numbers(), num_steps=steps, batch_size=6, seed=3, run_dir=folder, label="toy",
               device=torch.device("cpu"), log_every=1, **options), module


def test_batches_are_a_function_of_seed_and_step():
    """A sampler started late yields what one started early yields there; an epoch shows every picture once."""
    whole = list(StepSampler(20, 5, seed=1, start=0, stop=12))
    assert list(StepSampler(20, 5, seed=1, start=7, stop=12)) == whole[7:]
    assert sorted(i % 20 for batch in whole[:4] for i in batch) == list(range(20))
    assert any(i >= 20 for batch in whole for i in batch), "mirror images take part"
    assert list(StepSampler(20, 5, seed=2, start=0, stop=12)) != whole


class LeftHalves(MirroredImages):
    """The mean of a picture's left half, which tells it from its mirror image: (b, 1)."""

    def __getitems__(self, indices):
        return super().__getitems__(indices)["image"][..., :8].float().mean((1, 2, 3))[:, None] / 255


def test_pictures_too_many_to_keep_are_read_at_each_use(tmp_path, monkeypatch, capsys):
    """Shards read by other processes, batch for batch, train to the same bits as pictures that are kept; said before.

    A run that was stopped goes on alike, whichever way its pictures come.
    """
    monkeypatch.setenv("LDMLAB_ROOT", str(tmp_path / "root"))
    (tmp_path / "shards").mkdir()
    for shard in range(3):
        with tarfile.open(tmp_path / "shards" / f"{shard:03}.tar", "w") as archive:
            for k in range(12):
                pixels = np.random.default_rng([shard, k]).integers(0, 256, (20, 24, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "picture.png")
                archive.add(tmp_path / "picture.png", f"{shard}-{k}.png")
    data = DataSpec(str(tmp_path / "shards"), 16, 0, 0)
    kept = LeftHalves(open_split(data, "train", 0))
    monkeypatch.setattr("ldmlab.study.runs.pictures.MAX_BYTES", 1000)
    monkeypatch.setattr("ldmlab.data.pixels.KEEP_BYTES", 1000)
    capsys.readouterr()
    read = LeftHalves(open_split(data, "train", 0))
    assert "pictures would take" in capsys.readouterr().out
    assert kept.is_decoded and not read.is_decoded and loop._num_readers(read) >= 1 > loop._num_readers(kept)
    expected, trained = run(tmp_path / "kept", steps=9, dataset=kept)
    run(tmp_path / "stopped", steps=4, dataset=read)
    resumed, module = run(tmp_path / "stopped", steps=9, dataset=read)
    for curve, other in (run(tmp_path / "read", steps=9, dataset=read), (resumed, module)):
        assert curve.values["loss"] == expected.values["loss"]
        assert all(map(torch.equal, other.state_dict().values(), trained.state_dict().values()))
    assert not read.is_decoded


def test_step_seeds_differ():
    """No two steps and no two seeds share their noise."""
    assert len({step_seed(seed, step) for seed in range(3) for step in range(100)}) == 300


def test_killed_run_continues_with_the_same_curve(tmp_path):
    """SIGKILL in the middle, then the same call: losses and weights of an uninterrupted run."""
    script = (f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
              "import test_loop, pathlib\n"
              "test_loop.callbacks.CHECKPOINT_EVERY_S = 0\n"
              f"test_loop.run(pathlib.Path({str(tmp_path / 'b')!r}), test_loop.Toy(kill_at=18))\n")
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    whole, module_a = run(tmp_path / "a")
    resumed, module_b = run(tmp_path / "b")
    assert module_b.seen < 30, "it started over instead of continuing"
    np.testing.assert_array_equal(whole["loss"], resumed["loss"])
    for a, b in zip(module_a.parameters(), module_b.parameters(), strict=True):
        assert torch.equal(a, b)


def test_nan_stops_the_run_and_spares_the_checkpoint(tmp_path, monkeypatch):
    """A NaN raises, names the file with batch and state, and the last good checkpoint still continues."""
    monkeypatch.setattr(callbacks, "CHECKPOINT_EVERY_S", 0)
    with pytest.raises(NonFiniteLoss, match="nonfinite_step11.pt"):
        run(tmp_path / "a", Toy(nan_at=11))
    saved = torch.load(tmp_path / "a" / "nonfinite_step11.pt", weights_only=True)
    assert saved["batch"].shape == (6, 1)
    curve, module = run(tmp_path / "a")
    assert module.seen == 20 and np.isfinite(curve["loss"]).all()


def test_full_disk_is_reported_and_corrupts_nothing(tmp_path, monkeypatch):
    """When a checkpoint cannot be written the error says so, and the one before it is still good."""
    monkeypatch.setattr(callbacks, "CHECKPOINT_EVERY_S", 0)
    run(tmp_path, steps=10)
    good = (tmp_path / "state.pt").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(callbacks.torch, "save", full)
    with pytest.raises(OSError, match="disk full: .*state.pt"):
        run(tmp_path, steps=20)
    assert (tmp_path / "state.pt").read_bytes() == good
    assert {path.name for path in tmp_path.iterdir()} == {"state.pt", "state-older.pt"}, "no half-written files"


def test_finished_run_trains_no_more(tmp_path):
    """Called again, a finished run returns its curve without a step."""
    first, _ = run(tmp_path)
    again, module = run(tmp_path)
    assert module.seen == 0 and again.values == first.values


def test_callbacks_run_at_their_steps_and_join_the_curve(tmp_path):
    """What a milestone measures is kept with the step it was measured at."""
    curve, _ = run(tmp_path, at_steps={10: [lambda module, step, curve: curve.add(step, score=1.5)]})
    assert curve.values["score"] == [[10, 1.5]]
    assert len(curve["loss"]) == 30 and curve["train_s"][-1] > 0
