"""Guiders: differentiable distances of a decoded z0_hat from a target picture [LDM v2, App. C].

A guider is a function z0_hat (b, c, h, w) -> distance (b,), composed of a decoder D, a transformation T of pictures, a
target y and a distance of T(D(z0_hat)) from y. Decoders are large, so all guiders process `chunk` items at a time. When
z0_hat requires a gradient, it is computed right after each chunk's distance: besides inputs and outputs, only the
activations of one chunk are in memory, and nothing is computed twice. This requires independent items, as in evaluation
mode; a distance has a first derivative only.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ldmlab.first_stage.autoencoder import AutoencoderVQ, FirstStage
from ldmlab.first_stage.latents import LatentStats

Guider = Callable[[Tensor], Tensor]
Transform = Callable[[Tensor], Tensor]


def guiding_decoder(first_stage: FirstStage, stats: LatentStats) -> Transform:
    """D: scaled latents z_0 (b, c, h, w) -> pictures (b, c_x, H, W), not clamped: a clamp would have no gradient there.

    Quantization has no gradient either. As in the training of a VQ first stage, the straight-through estimate is used:
    the decoder gets the nearest codes, and z_0 the gradient with respect to them [VQ-VAE, Sec. 3.2].
    """

    def decode(z0: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c_x H W"]:
        z = stats.unscale(z0)
        if isinstance(first_stage, AutoencoderVQ):
            return first_stage.decode(first_stage.quantizer(z).z_q, quantize=False)
        return first_stage.decode(z)

    return decode


def identity(x: Tensor) -> Tensor:
    """T that returns pictures unchanged."""
    return x


def downsample(factor: int) -> Transform:
    """T of [LDM v2, Fig. 14]: bicubic, antialiased, both sides divided by `factor`; ValueError for other sizes.

    >>> downsample(4)(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 3, 8, 8])
    """
    if factor < 1:
        raise ValueError(f"factor must be a positive whole number, got {factor}")

    def to_small(x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c h w"]:
        H, W = x.shape[2:]
        if H % factor or W % factor:
            raise ValueError(f"both sides must be divisible by {factor}, got {H} x {W}")
        return F.interpolate(x, (H // factor, W // factor), mode="bicubic", antialias=True)

    return to_small


def gaussian_guider(
    decode: Transform, y: Float[Tensor, "n *dims"], T: Transform = identity, *, chunk: int = 8
) -> Guider:
    """1/2 || y - T(D(z0_hat)) ||^2, summed over a picture: -log p(y | z_t) up to a constant [LDM v2, Eq. 17].

    `y` (n, *dims) holds one target an item, or one for the whole batch, in the shape that T returns, else ValueError.

    >>> guider = gaussian_guider(decode=lambda z0: 2 * z0, y=torch.zeros(1, 3, 4, 4))
    >>> guider(torch.ones(5, 3, 4, 4))
    tensor([96., 96., 96., 96., 96.])
    """

    def distance(target: Tensor, x: Tensor) -> Tensor:
        return 0.5 * (target - x).square().flatten(1).sum(1)

    return _guider(decode, y, T, distance, chunk)


def perceptual_guider(
    decode: Transform, y: Float[Tensor, "n 3 H W"], net: nn.Module, T: Transform = identity, *, chunk: int = 8
) -> Guider:
    """net(y, T(D(z0_hat))), a perceptual distance such as LPIPS in place of the squared error [LDM v2, App. C].

    `net` comes from `perception.losses.perceptual_loss`; `y` are pictures in [-1, 1], as for `gaussian_guider`. Such a
    distance is a mean over positions and of order 1, so its guidance scale differs from that of a sum of squares.
    """
    return _guider(decode, y, T, net, chunk)


def _guider(
    decode: Transform, y: Tensor, T: Transform, distance: Callable[[Tensor, Tensor], Tensor], chunk: int
) -> Guider:
    if chunk < 1:
        raise ValueError(f"chunk is the number of items decoded at once, at least 1; got {chunk}")
    with torch.inference_mode(False):
        y = y.detach().clone()  # autograd cannot keep a tensor made in inference mode

    def of_chunk(z0: Tensor, target: Tensor) -> Tensor:
        x = T(decode(z0))
        if x.shape[1:] != target.shape[1:]:
            raise ValueError(f"T(D(z0)) has shape {tuple(x.shape[1:])} an item, "
                             f"the target {tuple(target.shape[1:])}")
        return distance(target, x)

    def guider(z0_hat: Float[Tensor, "b *dims"]) -> Float[Tensor, " b"]:
        if len(y) not in (1, len(z0_hat)):
            raise ValueError(f"y holds one target, or one an item; got {len(y)} targets for {len(z0_hat)} latents")
        targets = y.to(z0_hat.device).expand(len(z0_hat), *y.shape[1:]).split(chunk)
        if torch.is_grad_enabled() and z0_hat.requires_grad:
            return _Distance.apply(z0_hat, targets, of_chunk)
        with torch.no_grad():
            return torch.cat([of_chunk(z0, target) for z0, target in zip(z0_hat.split(chunk), targets, strict=True)])

    return guider


class _Distance(torch.autograd.Function):
    """The distances; their gradients are computed in the forward pass and kept for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, z0_hat: Tensor, targets: tuple[Tensor, ...], of_chunk: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        distances, gradients, size = [], [], len(targets[0])
        for z0, target in zip(z0_hat.detach().split(size), targets, strict=True):
            with torch.enable_grad():
                z0 = z0.requires_grad_()
                distance = of_chunk(z0, target)
                gradients += torch.autograd.grad(distance.sum(), z0)
            distances.append(distance.detach())
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(distances)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_distance: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return grad_distance.to(gradient.dtype).view(-1, *[1] * (gradient.ndim - 1)) * gradient, None, None
