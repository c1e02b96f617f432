"""SIGINT and SIGTERM take effect between the steps of a training, and both save."""

import multiprocessing
import signal
import threading

import pytest
import torch
from study.training.test_loop import Toy
from study.training.test_loop import run as train_toy

from ldmlab.study.training.state import load_state


class Signalled(Toy):
    """A signal arrives in the middle of a step, between optimizer and what follows it."""

    def __init__(self, at, number, times=1):
        super().__init__()
        self.at, self.number, self.times, self.average = at, number, times, 0.0

    def optimizer_step(self, *args, **kwargs):
        super().optimizer_step(*args, **kwargs)
        if self.seen == self.at:
            for _ in range(self.times):
                signal.raise_signal(self.number)
        self.average = 0.5 * self.average + 0.5 * self.net[0].weight[0].item()  # as an EMA is taken

    def training_state(self):
        return {**super().training_state(), "average": self.average}

    def load_training_state(self, state):
        super().load_training_state(state)
        self.average = state["average"]


@pytest.fixture
def terminated(monkeypatch):
    """SIGTERM noted in place of the end of this process."""
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    yield received
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_step_is_done_whole_and_saved(tmp_path, terminated, number):
    """Stopped in step 5, the state is that after step 5, and the run ends where one without a stop does."""
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    with pytest.raises(KeyboardInterrupt, match="stopped at step 5 of 12; run the same again"):
        train_toy(tmp_path / "a", Signalled(5, number), steps=12)
    assert terminated == [signal.SIGTERM] * (number == signal.SIGTERM), "the signal goes on to whom it was for"
    assert {s: signal.getsignal(s) for s in handlers} == handlers
    assert load_state(tmp_path / "a")["step"] == 5
    _, resumed = train_toy(tmp_path / "a", Signalled(99, number), steps=12)
    _, whole = train_toy(tmp_path / "b", Signalled(99, number), steps=12)
    assert resumed.average == whole.average and resumed.seen == 7
    assert all(map(torch.equal, resumed.state_dict().values(), whole.state_dict().values()))


def test_a_second_signal_stops_at_once_and_saves_no_half_step(tmp_path):
    """Two in one step: what is on disk is nothing, rather than half a step."""
    with pytest.raises(KeyboardInterrupt):
        train_toy(tmp_path, Signalled(5, signal.SIGINT, times=2), steps=12)
    assert load_state(tmp_path) is None


def test_a_signal_while_samples_are_scored_stops_at_once(tmp_path):
    """Scoring takes minutes; the run then continues before it, so that the score is not lost."""
    def score(module, step, curve):
        if not (tmp_path / "scored").exists():
            (tmp_path / "scored").touch()
            signal.raise_signal(signal.SIGINT)
            pytest.fail("not stopped")
        curve.add(step, score=1.0)

    with pytest.raises(KeyboardInterrupt, match="stopped at step 4"):
        train_toy(tmp_path, steps=12, at_steps={4: [score]})
    curve, _ = train_toy(tmp_path, steps=12, at_steps={4: [score]})
    assert curve.values["score"] == [[4, 1.0]]


def _train_and_be_terminated(folder):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    train_toy(folder, Signalled(5, signal.SIGTERM), steps=12)


def test_a_process_ends_by_sigterm_once_its_state_is_saved(tmp_path):
    """As SLURM and docker end it: by the signal itself, after the step."""
    process = multiprocessing.get_context("fork").Process(target=_train_and_be_terminated, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGTERM and load_state(tmp_path)["step"] == 5


def test_training_in_another_thread_changes_no_handler(tmp_path):
    """Signals reach the main thread only, and only it may set handlers."""
    found = []
    thread = threading.Thread(target=lambda: found.append(train_toy(tmp_path, steps=3)))
    thread.start()
    thread.join()
    assert len(found) == 1
