"""Counting operations and parameters, timing."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ldmlab.evaluation.cost import count_flops, throughput


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
