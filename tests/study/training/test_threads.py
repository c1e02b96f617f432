"""How threads wait beside a busy neighbour: what is measured, when it changes, and that no result does."""

import os
import threading
from contextlib import contextmanager

import pytest
import torch

from ldmlab.diffusion.model import LatentDiffusion
from ldmlab.diffusion.schedules import scaled_linear
from ldmlab.diffusion.unet.unet import UNet
from ldmlab.first_stage.autoencoder import build_autoencoder
from ldmlab.first_stage.latents import LatentStats
from ldmlab.study.config.presets import study_spec
from ldmlab.study.config.specs import denoiser_config
from ldmlab.study.training import threads
from ldmlab.study.training.threads import (
    CALM,
    DECIDED,
    Neighbours,
    ProcessorWatch,
    _IdleTeam,
    busy_seconds,
    num_processors,
)

STAT = """cpu  {total} 0 0 9 9 0 0 0 0 0
cpu0 {user0} 1 2 900 90 3 4 5 7 8
cpu1 {user1} 0 0 900 90 0 0 0 7 8
intr 1 2 3
"""


def write_stat(path, user0, user1):
    path.write_text(STAT.format(total=user0 + user1, user0=user0, user1=user1))
    return path


def neighbours(taken, num_threads=2, processors=2.0, own=0.5):
    """What is decided after each second in which others take `taken` processors."""
    watched, busy = Neighbours(num_threads, processors), 0.0
    watched.update(0.0, 0.0, 0.0)
    found = []
    for second, others in enumerate(taken, 1):
        busy += others + own
        found.append(watched.update(float(second), busy, own * second))
    return found


def test_busy_seconds_are_those_of_our_processors(tmp_path, monkeypatch):
    """All but idle and iowait, of guests nothing twice; processors that we may not use do not count."""
    stat, hertz = write_stat(tmp_path / "stat", 85, 1000), os.sysconf("SC_CLK_TCK")
    for allowed, ticks in (({0}, 100), ({1}, 1000), ({0, 1}, 1100)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, allowed=allowed: allowed, raising=False)
        assert busy_seconds(stat) == ticks / hertz


@pytest.mark.parametrize("content", [None, "", "cpu 1 2 3\n", "cpu0 a b c d e f g h\n", "cpu0 1 2\n"])
def test_a_system_without_these_numbers_is_not_watched(tmp_path, monkeypatch, content):
    """No file, no lines of processors, other lines: None, and no error."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    if content is not None:
        (tmp_path / "stat").write_text(content)
    assert busy_seconds(tmp_path / "stat") is None


@pytest.mark.parametrize("content, expected", [("max 100000", 4.0), ("150000 100000", 1.5), ("900000 100000", 4.0),
                                               ("", 4.0), (None, 4.0)])
def test_processors_are_those_of_affinity_and_container(tmp_path, monkeypatch, content, expected):
    """A limit of cgroup v2 counts where it is less."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 4, 5}, raising=False)
    if content is not None:
        (tmp_path / "cpu.max").write_text(content)
    assert num_processors(tmp_path / "cpu.max") == expected


def test_a_neighbour_is_noticed_at_once_and_forgotten_slowly():
    """One interval with a processor taken decides; CALM quiet ones in a row, before threads spin again."""
    assert neighbours([0, 0, 1, 1]) == [False, False, True, True]
    assert neighbours([1] + [0] * CALM) == [True] * CALM + [False]
    assert neighbours([1] + [0] * (CALM - 1) + [0.2] + [0] * CALM) == [True] * 2 * CALM + [False]


def test_a_little_noise_changes_nothing():
    """The system's own work is no neighbour, and what lies between the two limits leaves things as they are."""
    assert neighbours([0.05, 0.2, 0.29]) == [False] * 3 and neighbours([1, 0.2, 0.2, 0.2, 0.2, 0.2]) == [True] * 6


def test_own_work_is_no_neighbour():
    """Two threads that keep two processors busy."""
    assert neighbours([0, 0, 0], own=2.0) == [False] * 3


def test_only_processors_that_threads_need_count():
    """With 8 processors and 6 threads two may be taken; with a container's limit below the threads they never spin."""
    assert neighbours([2, 2.1, 3], num_threads=6, processors=8.0) == [False, False, True]
    assert neighbours([0, 0], num_threads=4, processors=1.5) == [True, True]


def test_the_idle_team_comes_and_goes():
    """One thread that runs a parallel loop once and stays; asking twice changes nothing."""
    began, seen = threading.Event(), []

    def run(num_threads):
        seen.append(num_threads)
        began.set()

    team, before = _IdleTeam(2, run), threading.active_count()
    for _ in range(2):
        for _ in range(2):
            team.set(True)
        assert began.wait(10) and threading.active_count() == before + 1
        began.clear()
        for _ in range(2):
            team.set(False)
        assert threading.active_count() == before
    assert seen == [2, 2]


def test_gradients_are_equal_to_the_bit_beside_an_idle_team():
    """What a change of the number of threads would not promise."""
    torch.set_num_threads(2)  # the fixture of all tests puts it back
    conv, x = torch.nn.Conv2d(8, 16, 1), torch.randn(32, 8, 16, 16)

    def gradients():
        conv.zero_grad()
        conv(x).square().mean().backward()
        return [p.grad.clone() for p in conv.parameters()]

    alone, team = gradients(), _IdleTeam(2)
    team.set(True)
    try:
        assert all(map(torch.equal, alone, gradients()))
    finally:
        team.set(False)


@pytest.fixture
def started(monkeypatch):
    """The watches that would have been started."""
    started = []

    class Watch:
        def __init__(self, num_threads):
            self.num_threads = num_threads

        def start(self):
            started.append(self.num_threads)

    monkeypatch.setattr(threads, "ProcessorWatch", Watch)
    monkeypatch.setattr(threads, "_watch", None)
    monkeypatch.setattr(threads, "busy_seconds", lambda: 1.0)
    torch.set_num_threads(2)
    return started


def test_one_watch_a_process(started):
    """However many runs a notebook has."""
    threads.share_processors({})
    threads.share_processors({})
    assert started == [2]


@pytest.mark.parametrize("name", DECIDED)
def test_the_users_own_settings_stand(started, name):
    """Variables of OpenMP: nothing is watched, and the number of threads stays."""
    threads.share_processors({name: "2"})
    assert started == [] and torch.get_num_threads() == 2


def test_where_nothing_can_be_measured_nothing_is_watched(started, monkeypatch):
    """Systems without /proc/stat; and a single thread waits for nobody."""
    monkeypatch.setattr(threads, "busy_seconds", lambda: None)
    threads.share_processors({})
    monkeypatch.setattr(threads, "busy_seconds", lambda: 1.0)
    torch.set_num_threads(1)
    threads.share_processors({})
    assert started == []


def test_the_number_of_threads_can_be_set(started):
    """LDMLAB_THREADS goes before OpenMP's variables; what is no number is an error that says so."""
    threads.share_processors({"LDMLAB_THREADS": "1", "OMP_NUM_THREADS": "2"})
    assert torch.get_num_threads() == 1 and started == []
    for wrong in ("0", "-1", "two", "1.5"):
        with pytest.raises(ValueError, match=f"from 1 on; got '{wrong}'"):
            threads.share_processors({"LDMLAB_THREADS": wrong})


def test_sampling_beside_a_neighbour_takes_one_thread_and_gives_them_back(monkeypatch):
    """From one batch to the next; undisturbed, and where nothing watches, it has all of them."""
    watch = ProcessorWatch(2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for present, busy, size, expected in ((None, False, 64, 2), (watch, False, 64, 2), (watch, True, 64, 1),
                                              (watch, True, threads.SAME_BITS_FROM - 1, 2)):
            monkeypatch.setattr(threads, "_watch", present)
            watch._neighbours.are_busy = busy
            with threads.one_thread_if_busy(size):
                assert torch.get_num_threads() == expected
            assert torch.get_num_threads() == 2
        with pytest.raises(KeyboardInterrupt), threads.one_thread_if_busy():
            raise KeyboardInterrupt
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_samples_do_not_depend_on_threads_and_guides_keep_theirs():
    """To the bit, from SAME_BITS_FROM pictures in a batch on; a guide that takes gradients keeps all threads."""
    spec, entered = study_spec(8, tier="laptop"), []

    @contextmanager
    def context(batch_size):
        entered.append((torch.get_num_threads(), batch_size))
        yield

    torch.manual_seed(0)
    model = LatentDiffusion(
        build_autoencoder(spec.first_stage.autoencoder).eval(), LatentStats("none", (0.0,), (1.0,), (0.0,), 0),
        UNet(denoiser_config(spec.diffusion, 0)).eval(), scaled_linear(), None, 32, torch.device("cpu"), context)
    before, pictures = torch.get_num_threads(), []
    try:
        for num_threads in (1, 2):
            torch.set_num_threads(num_threads)
            pictures.append(model.sample(torch.zeros(32), num_steps=2, batch_size=threads.SAME_BITS_FROM))
        model.sample(torch.zeros(2), num_steps=1, guided=lambda eps_model, rows: eps_model)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*pictures) and entered == [(1, 16), (1, 16), (2, 16), (2, 16)]
