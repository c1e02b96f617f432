"""Attention: whichever way its products are taken, the equation's values and gradients."""

import jaxtyping
import pytest
import torch
from torch import Tensor, nn

from ldmlab.diffusion.unet import attention
from ldmlab.diffusion.unet.attention import CrossAttention, Linear, attend
from ldmlab.diffusion.unet.unet import DenoiserConfig, UNet

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


@pytest.mark.parametrize("dtype, rtol", [(torch.float32, 1e-5), (torch.bfloat16, 4e-2)])
def test_products_and_fused_kernel_agree(monkeypatch, dtype, rtol):
    """On both sides of the bound the answer is the same, to the precision at hand."""
    q, k, v = (torch.randn(2, 3, 64, D, generator=torch.Generator().manual_seed(s)).to(dtype) for s in range(3))
    products = with_gradients(attend, q, k, v)
    monkeypatch.setattr(attention, "FEW", 0)
    monkeypatch.setattr(attention, "FEW_BF16", 0)
    for fused, product in zip(with_gradients(attend, q, k, v), products, strict=True):
        torch.testing.assert_close(fused, product, rtol=0, atol=rtol * float(product.abs().max()))


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


@pytest.mark.parametrize("layout", ["tokens", "views of channels"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_map_is_the_same_as_a_convolution(monkeypatch, layout, bias):
    """However large the batch, and so by whichever kernel: values, and gradients of tokens, weight and bias."""
    torch.manual_seed(0)
    layer = Linear(12, 20, bias=bias)
    x = torch.randn(3, 7, 12) if layout == "tokens" else torch.randn(3, 12, 7).mT
    plain = with_gradients(lambda x, *w: nn.functional.linear(x, *w), x, *layer.parameters())
    monkeypatch.setattr(attention, "LARGE", 0)

    def of_layer(x: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(("weight", "bias"), weights, strict=False)), x)

    for value, wanted in zip(with_gradients(of_layer, x, *layer.parameters()), plain, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-5)


def test_a_linear_map_keeps_to_autocast(monkeypatch):
    """Under autocast large maps are bfloat16, as small ones are."""
    monkeypatch.setattr(attention, "LARGE", 0)
    with torch.autocast("cpu", torch.bfloat16):
        assert Linear(4, 4)(torch.randn(2, 3, 4)).dtype == torch.bfloat16


@pytest.mark.long
def test_a_denoiser_compiles_in_one_piece(monkeypatch):
    """No way of taking a product breaks the graph that `torch.compile` is given: it would pay for each piece."""
    monkeypatch.setattr(attention, "LARGE", 0)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the tests' checks of shapes would break it
    torch.compiler.reset()
    torch.manual_seed(0)
    config = DenoiserConfig(
        3, 3, (8, 16), num_res_blocks=1, attention_at=(2,), num_heads=2, norm_groups=4, context_dim=6)
    model, given = UNet(config).eval(), (torch.randn(2, 3, 4, 4), torch.arange(2), torch.randn(2, 3, 6))
    whole = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(whole(*given), model(*given))
    torch.compiler.reset()
