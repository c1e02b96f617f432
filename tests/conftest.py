"""Every test is deterministic, offline, and content with two cores."""

import os
import socket

os.environ.setdefault("OMP_NUM_THREADS", "2")  # before torch is imported
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")

import numpy as np
import pytest
import torch


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
