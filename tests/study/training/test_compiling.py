"""torch.compile in training: the same losses and names, and an honest sentence on whether it pays."""

from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from ldmlab.study.training import compiling
from ldmlab.study.training.compiling import Compiling, verdict
from ldmlab.study.training.loop import fit


class Numbers(torch.utils.data.Dataset):
    """Twenty numbers and their mirror images, minus themselves."""

    def __len__(self):
        return 40

    def __getitems__(self, indices):
        i = torch.tensor(indices)
        return torch.where(i < 20, i, 20 - i).float()[:, None] / 20


class Toy(pl.LightningModule):
    """A noisy regression."""

    automatic_optimization, clip_norm = True, 1.0

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(1, 8), nn.SiLU(), nn.Linear(8, 1))

    def training_step(self, x, batch_idx):
        return {"loss": (self.net(x + torch.randn_like(x)) - x).square().mean()}

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)

    def training_state(self):
        return {"net": self.net.state_dict()}


@pytest.fixture
def soon(monkeypatch):
    """Two steps without, two with, by the backend that only traces."""
    monkeypatch.setattr(compiling, "SETTLE", 1)
    monkeypatch.setattr(compiling, "TIMED", 1)
    monkeypatch.setattr(compiling, "Compiling", partial(Compiling, backend="eager"))


def train(folder, steps=6, compiled=False):
    module = Toy()
    curve = fit(module, Numbers(), num_steps=steps, batch_size=6, seed=3, run_dir=folder, label="toy",
                device=torch.device("cpu"), log_every=1, compiled=module.net if compiled else None)
    return module, curve


def test_compiled_training_is_the_same_training(soon, tmp_path, capsys):
    """Same losses, and weights of the same names, so that files and averages fit; its cost is kept and printed."""
    plain, before = train(tmp_path / "plain")
    module, curve = train(tmp_path / "compiled", compiled=True)
    assert curve["loss"].tolist() == pytest.approx(before["loss"].tolist(), rel=1e-6)
    assert list(module.state_dict()) == list(plain.state_dict())
    for a, b in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    (sentence,) = curve.events
    assert sentence in capsys.readouterr().out and sentence.startswith("toy: compiling the denoiser took ")
    assert not before.events


def test_a_run_too_short_to_tell_is_not_compiled(soon, tmp_path, capsys):
    """Three steps would be over before the second timing."""
    _, curve = train(tmp_path, steps=3, compiled=True)
    assert not curve.events and "not compiled, 3 steps are too few" in capsys.readouterr().out


def test_only_what_is_asked_for_runs_compiled(soon):
    """Samples are scored by the plain network: other batch sizes would be compiled anew."""
    calls = []

    def backend(graph, inputs):
        calls.append(len(inputs))
        return graph.forward

    net = nn.Linear(2, 2)
    net.compile(backend=backend)
    net(torch.ones(3, 2))
    with torch.compiler.set_stance("force_eager"):
        net(torch.ones(5, 2))
    assert len(calls) == 1


def test_the_verdict_is_arithmetic():
    """Cost is what the first compiled steps took more than later ones; the rest is a division."""
    plain = [9.0, 9.0, 9.0] + [0.5] * 10
    assert verdict([*plain, 20.0, 10.0, 0.4, *[0.4] * 10], 1000) == (
        "compiling the denoiser took 29.2 s; a step takes 400 ms instead of 500 ms, so it has paid for itself after "
        "293 steps of 1000")
    assert verdict([*plain, 20.0, 0.6, 0.6, *[0.6] * 10], 1000).endswith("600 ms instead of 500 ms, so it does not pay")
