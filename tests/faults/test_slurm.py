"""Inside a job of SLURM a run trains as outside: Lightning neither requeues, nor writes, nor loads a stray file."""

import os
import signal
import subprocess

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from ldmlab.study.training import slurm
from ldmlab.study.training.callbacks import build_trainer
from ldmlab.study.training.loop import fit

BATCH = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "study", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
         "SLURM_NODEID": "0", "SLURM_NNODES": "1", "SLURM_NODELIST": "vm"}
JOBS = {
    "one task": BATCH,
    "four tasks": BATCH | {"SLURM_NTASKS": "4"},
    "four tasks a node": BATCH | {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4"},
    "the third of four": BATCH | {"SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "2"},
    "two nodes": BATCH | {"SLURM_NTASKS": "2", "SLURM_NNODES": "2", "SLURM_NODELIST": "node[1-2]"},
    "an array": BATCH | {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"},
    "requeued": BATCH | {"SLURM_RESTART_COUNT": "1"},
    "interactive": BATCH | {"SLURM_JOB_NAME": "interactive", "SLURM_NTASKS": "4"},
}


class Numbers(torch.utils.data.Dataset):
    """Eight numbers and their mirror images."""

    def __len__(self):
        return 16

    def __getitems__(self, indices):
        return torch.tensor(indices).float()[:, None] / 16


class Line(pl.LightningModule):
    """A line through noise; `at_step` is called with the number of each step."""

    automatic_optimization, clip_norm = True, 1.0

    def __init__(self, at_step=lambda step: None):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.at_step, self.seen = nn.Linear(1, 1), at_step, 0

    def training_step(self, x, batch_idx):
        self.seen += 1
        self.at_step(self.seen)
        return {"loss": (self.net(x + torch.randn_like(x)) - x).square().mean()}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_state(self):
        return {"net": self.net.state_dict()}

    def load_training_state(self, state):
        self.net.load_state_dict(state["net"])


def train(folder, at_step=lambda step: None):
    """Weights after six steps."""
    module = Line(at_step)
    folder.mkdir(exist_ok=True)
    fit(module, Numbers(), num_steps=6, batch_size=4, seed=3, run_dir=folder, label="line", device=torch.device("cpu"),
        log_every=1)
    return {key: value.clone() for key, value in module.net.state_dict().items()}


def equal(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """The weights of a run outside SLURM; the working directory is a fresh folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    return train(tmp_path / "outside")


@pytest.mark.parametrize("job", JOBS)
def test_a_run_in_a_job_equals_one_outside(outside, job, tmp_path, monkeypatch, capsys):
    """Equal weights, nothing in the working directory, and a sentence where there are tasks that a run cannot use."""
    capsys.readouterr()
    for name, value in JOBS[job].items():
        monkeypatch.setenv(name, value)
    assert equal(train(tmp_path / "inside"), outside)
    assert os.listdir() == []
    tasks = JOBS[job]["SLURM_NTASKS"]
    said = capsys.readouterr().out
    assert (f"SLURM_NTASKS = {tasks}: a run is one process" in said) == (tasks != "1")
    assert tasks == "1" or ("--ntasks=1" in said and f"train the same model {tasks} times" in said)


def stray_checkpoint(folder):
    """What an older version left in the working directory at SIGUSR1: another seed's weights."""
    other = Line()
    nn.init.constant_(other.net.weight, 100.0)
    trainer = build_trainer(torch.device("cpu"), "32-true", [], other)
    trainer.strategy.connect(other)
    torch.save({"state_dict": other.state_dict(), "epoch": 0, "global_step": 5, "optimizer_states": [],
                "lr_schedulers": [], "loops": {}, "pytorch-lightning_version": pl.__version__},
               folder / "hpc_ckpt_1.ckpt")


@pytest.mark.parametrize("place", ["working directory", "folder of the run"])
def test_a_stray_checkpoint_is_not_loaded(outside, place, tmp_path, monkeypatch):
    """Lightning takes hpc_ckpt_N.ckpt for its own wherever SLURM's variables are set; it was another seed's weights."""
    for name, value in BATCH.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "inside").mkdir()
    stray_checkpoint(tmp_path / ("here" if place == "working directory" else "inside"))
    assert equal(train(tmp_path / "inside"), outside)


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="Windows has no SIGUSR1")
def test_the_warning_before_the_limit_saves_and_the_run_goes_on(outside, tmp_path, monkeypatch):
    """SIGUSR1 in a step: the state is saved after that step, no job is requeued, and weights are as without it."""
    calls = []
    monkeypatch.setattr(subprocess, "call", calls.append)
    monkeypatch.setattr("pytorch_lightning.trainer.connectors.signal_connector.call", calls.append)
    for name, value in BATCH.items():
        monkeypatch.setenv(name, value)
    state, saved = tmp_path / "inside" / "state.pt", {}

    def at_step(step):
        saved[step] = torch.load(state, weights_only=True)["step"] if state.exists() else 0
        if step == 2:
            signal.raise_signal(signal.SIGUSR1)

    assert equal(train(tmp_path / "inside", at_step), outside)
    assert (saved[2], saved[3]) == (0, 2)
    assert calls == [] and os.listdir() == []
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_another_handler_of_the_signal_is_kept(monkeypatch):
    """A program that uses SIGUSR1 itself goes on to get it."""
    if not hasattr(signal, "SIGUSR1"):
        pytest.skip("Windows has no SIGUSR1")
    got, saves = [], []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: got.append(number))
    try:
        with slurm.on_warning(lambda: saves.append(1)):
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert (len(got), saves) == (1, [])


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="Windows has no SIGUSR1")
def test_a_run_in_a_job_survives_the_warning_between_trainings():
    """Outside SLURM the signal keeps its meaning; in a job, decoding and scoring go on until the limit."""
    before = signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    try:
        slurm.heed_warnings({})
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
        saves = []
        slurm.heed_warnings(BATCH)
        signal.raise_signal(signal.SIGUSR1)
        with slurm.on_warning(lambda: saves.append(1)):
            signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
        assert saves == [1]
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("tasks", ["", "1", "many", "-2", "1(x2)"])
def test_no_sentence_without_several_tasks(tasks):
    """What is no number of tasks is none of ours to judge."""
    assert slurm.tasks_note({"SLURM_NTASKS": tasks}) is None and slurm.tasks_note({}) is None
