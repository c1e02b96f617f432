"""Attention: whichever way its products are taken, the equation's values and gradients."""

import pytest
import torch
from torch import Tensor

from ldmlab.diffusion import attention
from ldmlab.diffusion.attention import CrossAttention, attend

D = 8


def by_the_equation(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.mT / D**0.5, -1) @ v


def with_gradients(run, *inputs: Tensor) -> list[Tensor]:
    """The result and the gradients of its weighted sum, as float64."""
    inputs = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in inputs]
    out = run(*inputs)
    (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    return [x.detach().double() for x in (out, *(x.grad for x in inputs))]


@pytest.mark.parametrize("n, m", [(16, 16), (200, 200), (40, 7), (40, 1)])
@pytest.mark.parametrize("layout", ["tokens", "views of channels"])
@pytest.mark.parametrize("dtype, rtol", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_attention_is_its_equation(n, m, layout, dtype, rtol):
    """As products or by a fused kernel, of tokens or of views into channels: values and all three gradients."""
    g = torch.Generator().manual_seed(n + m)
    q, k, v = (torch.randn(2, 3, D, x, generator=g).to(dtype).mT for x in (n, m, m))
    if layout == "tokens":
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    expected = with_gradients(by_the_equation, q.double(), k.double(), v.double())
    for value, wanted in zip(with_gradients(attend, q, k, v), expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=0, atol=rtol * float(wanted.abs().max().clamp(min=1)))


def test_products_and_fused_kernel_agree_in_bfloat16(monkeypatch):
    """On both sides of `WRITTEN_OUT` the answer is the same to bfloat16's precision."""
    q, k, v = (torch.randn(2, 3, 64, D, generator=torch.Generator().manual_seed(s)).bfloat16() for s in range(3))
    products = with_gradients(attend, q, k, v)
    monkeypatch.setattr(attention, "WRITTEN_OUT", 0)
    for fused, product in zip(with_gradients(attend, q, k, v), products, strict=True):
        torch.testing.assert_close(fused, product, rtol=0, atol=4e-2 * float(product.abs().max()))


def test_one_token_trains_as_two_equal_ones():
    """A context of one token is attended to once, not at every position: the same values and gradients as the long way.

    Between two equal tokens the softmax is a half each, whatever the query: there, too, Q and K have zero gradients.
    """
    torch.manual_seed(0)
    layer = CrossAttention(12, 6, num_heads=2, head_dim=4)
    x, token = torch.randn(3, 5, 12, requires_grad=True), torch.randn(3, 1, 6)
    found = []
    for context in (token, token.expand(-1, 2, -1)):
        layer.zero_grad()
        x.grad = None
        out = layer(x, context)
        (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
        found.append([out.detach(), x.grad, *(p.grad for p in layer.parameters())])
    for short, long in zip(*found, strict=True):
        torch.testing.assert_close(short, long, rtol=1e-5, atol=1e-5)
    assert not layer.to_q.weight.grad.isnan().any() and layer.to_v.weight.grad.abs().max() > 0.1
