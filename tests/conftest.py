"""Every test is deterministic, offline, and content with one core."""

import os
import socket
from dataclasses import replace

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; more threads spin at barriers
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")

import numpy as np
import pytest
import torch


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items):
    """With pytest-xdist, one worker runs a file, so that it trains its models once; what takes longest comes first.

    Tests marked `gpu` are skipped where there is no CUDA.
    """
    no_cuda = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
            item.add_marker(no_cuda)
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.relative_to(item.config.rootpath).as_posix()))
    first = ("test_it_runs_", "test_restoration.py", "test_conditioners.py", "experiments/")
    items.sort(key=lambda item: next((i for i, part in enumerate(first) if part in item.nodeid), len(first)))


@pytest.fixture(autouse=True)
def _deterministic():
    """The same numbers in every test, whatever ran before it; settings that a test changes do not outlive it."""
    torch.manual_seed(0)
    np.random.seed(0)
    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    yield
    if torch.are_deterministic_algorithms_enabled() != deterministic:
        torch.use_deterministic_algorithms(deterministic)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    """A test that reaches for the network fails, and says where it wanted to go."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise RuntimeError(f"tests run offline, and this one connects to {address[0]}:{address[1]}")
        return connect(self, address)

    def resolve(host, *args, **kwargs):
        if host not in (None, "", "127.0.0.1", "::1", "localhost", socket.gethostname()):
            raise RuntimeError(f"tests run offline, and this one looks up {host}")
        return getaddrinfo(host, *args, **kwargs)

    getaddrinfo = socket.getaddrinfo
    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.setattr(socket, "getaddrinfo", resolve)


@pytest.fixture
def lab_root(tmp_path, monkeypatch):
    """A project folder of the test's own: records, figures and checkpoints go there."""
    monkeypatch.setenv("LDMLAB_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A project folder that the tests of a module share, so that they train a model once."""
    return tmp_path_factory.mktemp("lab")


@pytest.fixture
def in_root(root, monkeypatch):
    """Results of the test go to the folder of its module."""
    monkeypatch.setenv("LDMLAB_ROOT", str(root))


def _tiny(spec):
    """Every code path of a spec, in three steps."""
    steps = min(3, spec.first_stage.num_steps)
    return replace(
        spec, data=replace(spec.data, num_train=64, num_val=12),
        first_stage=replace(spec.first_stage, num_steps=steps, batch_size=4, val_every=2),
        diffusion=replace(spec.diffusion, num_steps=3, batch_size=4, milestones=()),
        evaluation=replace(spec.evaluation, num_samples=12, num_reference=24, batch_size=8))


@pytest.fixture
def tiny_run(in_root):
    """A maker of tiny runs: `tiny_run("07_sampling", f=16)`."""

    def make(notebook: str, f: int = 8, reg: str = "kl", **more):
        from ldmlab.study.runs.run import Run

        params = {"f": f, "reg": reg, "data": "scenes", "size": 0, "tier": "smoke", "seed": 0, **more}
        run = Run(notebook, params, "cpu", quiet=True)
        run.spec = _tiny(run.spec)
        return run

    return make


@pytest.fixture(scope="module")
def tiny_spec():
    """A spec small enough for a test."""
    from ldmlab.study.config.presets import study_spec

    return _tiny(study_spec(8, tier="smoke"))
