"""Counting operations and parameters, timing."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ldmlab.evaluation.cost import count_flops, peak_memory, throughput, training_throughput, v100_days


def test_flops_are_two_per_multiply_accumulate():
    """A convolution and a linear layer, by hand."""
    conv = nn.Conv2d(3, 8, 3, padding=1)
    assert count_flops(conv, torch.zeros(2, 3, 16, 16)) == 2 * 2 * 16 * 16 * 8 * 3 * 9
    assert count_flops(nn.Linear(5, 7), torch.zeros(4, 5)) == 2 * 4 * 5 * 7


def test_attention_is_not_free():
    """Fused attention counts its two products, 4 b h n^2 d."""
    q = torch.zeros(2, 4, 16, 8)
    assert count_flops(F.scaled_dot_product_attention, q, q, q) == 4 * 2 * 4 * 16 * 16 * 8


def test_throughput_is_the_median(monkeypatch):
    """One slow run does not move it, warm-up is not timed, n counts."""
    clock = iter([0.0, 1.0, 10.0, 12.0, 20.0, 70.0])
    calls = []
    monkeypatch.setattr("ldmlab.evaluation.cost.time.perf_counter", lambda: next(clock))
    assert throughput(lambda: calls.append(1), 8, warmup=2, repeats=3) == 4.0
    assert len(calls) == 5
    with pytest.raises(ValueError, match="repeats=0"):
        throughput(lambda: None, 1, repeats=0)


def test_training_throughput_takes_whole_steps(monkeypatch):
    """Warm-up and timed steps all update the parameters, each from a fresh gradient; the median counts."""
    clock = iter([0.0, 1.0, 10.0, 12.0, 20.0, 70.0])
    monkeypatch.setattr("ldmlab.evaluation.cost.time.perf_counter", lambda: next(clock))
    w = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.5)
    assert training_throughput(lambda: -w, optimizer, 8, warmup=1, repeats=3) == 4.0
    assert w.item() == 4 * 0.5


def test_peak_memory_sees_what_is_given_back():
    """A call that takes 200 MB and frees them shows; the same call with 1 MB does not, after it."""

    def take(megabytes: int):
        return lambda: bytearray(megabytes * 2**20).count(b"x")

    found = peak_memory(take(200))
    if found is None:
        pytest.skip("the system says nothing of memory")
    large, what = found
    assert large > 200 * 2**20
    if what == "resident memory of the process":
        assert large - peak_memory(take(1))[0] > 150 * 2**20


def test_wall_time_becomes_v100_days_and_says_so():
    """The paper's factor for an A100, none for a V100; another device needs one, and the error says what is stated."""
    day = 86_400
    a100 = v100_days(day, "NVIDIA A100-SXM4-80GB")
    assert (a100["value"], a100["unit"], a100["converted"], a100["factor"]) == (2.2, "V100-days", True, 2.2)
    v100 = v100_days(2 * day, "Tesla V100-SXM2-32GB")
    assert (v100["value"], v100["converted"]) == (2.0, False)
    assert v100_days(day, "Intel Xeon", 0.01)["value"] == pytest.approx(0.01)
    with pytest.raises(ValueError, match="2.2 for an A100"):
        v100_days(day, "Intel Xeon")
