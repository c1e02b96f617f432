"""The average of the weights: how it moves, how it is put in and taken out, how it is saved."""

import pytest
import torch
from torch import nn

from ldmlab.diffusion.ema import EMA


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_average_with_warm_up():
    """The n-th update, from 1, has decay min(decay, (1 + n) / (10 + n)); buffers and frozen weights are left out."""
    net = model()
    net[2].weight.requires_grad_(False)
    ema = EMA(net, decay=0.25)
    expected = net[0].weight.detach().clone()
    for decay in (2 / 11, 0.25, 0.25):
        with torch.no_grad():
            net[0].weight.add_(1)
        ema.update(net)
        expected = decay * expected + (1 - decay) * net[0].weight.detach()
    torch.testing.assert_close(ema.shadow["0.weight"], expected)
    assert set(ema.shadow) == {"0.weight", "0.bias", "1.weight", "1.bias", "2.bias"}


def test_applied_average_is_taken_back_to_the_bit():
    """Inside the block the model has the averages; after it, or an error, its own values in the same tensors."""
    net = model()
    ema = EMA(net)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p))
    ema.update(net)
    before, addresses = [p.detach().clone() for p in net.parameters()], [p.data_ptr() for p in net.parameters()]
    averages = [s.clone() for s in ema.shadow.values()]
    with pytest.raises(KeyboardInterrupt), ema.applied_to(net):
        assert all(torch.equal(p, s) for p, s in zip(net.parameters(), averages, strict=True))
        raise KeyboardInterrupt
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))
    assert addresses == [p.data_ptr() for p in net.parameters()]
    assert all(torch.equal(s, a) for s, a in zip(ema.shadow.values(), averages, strict=True))


def test_saved_average_continues_the_same():
    """Saved and loaded half-way, the average ends at the same bits: nothing else is its state."""
    net, other = model(), model(1)
    ema = EMA(net, decay=0.5)
    ema.update(other)
    resumed = EMA(net, decay=0.9)
    resumed.load_state_dict(ema.state_dict())
    for average in (ema, resumed):
        average.update(net)
    assert resumed.num_updates == 2 and resumed.decay == 0.5
    assert all(torch.equal(ema.shadow[name], resumed.shadow[name]) for name in ema.shadow)


def test_averages_of_another_model_are_refused():
    """Other shapes or names stop with the names, instead of a half-loaded state."""
    ema = EMA(model())
    with pytest.raises(ValueError, match="another model.*0.weight"):
        ema.load_state_dict(EMA(nn.Sequential(nn.Linear(5, 4))).state_dict())
    with pytest.raises(ValueError, match="other parameters"):
        ema.update(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        EMA(model(), decay=1.0)


def test_half_precision_is_averaged_in_float32():
    """Between bf16 weights, steps of 1 - 0.9999 would round to nothing."""
    net = nn.Linear(2, 2, bias=False).bfloat16()
    ema = EMA(net, decay=0.999, warmup=False)
    nn.init.constant_(net.weight, 1.0)
    start = ema.shadow["weight"].clone()
    ema.update(net)
    torch.testing.assert_close(ema.shadow["weight"], start + 0.001 * (1 - start))
    with ema.applied_to(net):
        assert net.weight.dtype == torch.bfloat16
