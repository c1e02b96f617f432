"""Guiders: how far the picture that z0_hat stands for is from a target, differentiably [LDM v2, App. C, Eq. 17].

A guider is a function z0_hat (b, c, h, w) -> distance (b,), put together from a decoder D, a transformation T of
pictures, a target y and a distance of T(D(z0_hat)) from y. Decoders are large, so all guiders work on `chunk` items at
a time, and where a gradient is asked for, take it right after each chunk's distance: besides inputs and outputs, no
more than one chunk's activations exist at once, and nothing is computed twice. This holds items to be independent, as
they are in evaluation mode; a distance has a first derivative only.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ldmlab.first_stage.latents import LatentStats

Guider = Callable[[Tensor], Tensor]
Transform = Callable[[Tensor], Tensor]


def guiding_decoder(first_stage: nn.Module, stats: LatentStats) -> Transform:
    """D: scaled latents z_0 -> pictures, not clamped, so that a gradient comes back from beyond [-1, 1] too.

    Quantizing has no gradient. That of a VQ first stage goes straight through, as in its training: the decoder sees the
    nearest codes, and z_0 gets the gradient that they would get [VQ-VAE, Sec. 3.2].
    """

    def decode(z0: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c_x H W"]:
        z = stats.unscale(z0)
        if first_stage.reg == "vq":
            return first_stage.decode(first_stage.quantizer(z).z_q, quantize=False)
        return first_stage.decode(z)

    return decode


def identity(x: Tensor) -> Tensor:
    """T that leaves pictures as they are."""
    return x


def downsample(factor: int) -> Transform:
    """T of [LDM v2, Fig. 14]: bicubic, antialiased, both sides divided by `factor`; ValueError where they cannot be."""
    if factor < 1:
        raise ValueError(f"a factor is a positive whole number, got {factor}")

    def to_small(x: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c h w"]:
        H, W = x.shape[2:]
        if H % factor or W % factor:
            raise ValueError(f"both sides must be divisible by {factor}, got {H} x {W}")
        return F.interpolate(x, (H // factor, W // factor), mode="bicubic", antialias=True)

    return to_small


def gaussian_guider(
    decode: Transform, y: Float[Tensor, "n *dims"], T: Transform = identity, *, chunk: int = 8
) -> Guider:
    """1/2 || y - T(D(z0_hat)) ||^2, summed over a picture [LDM v2, Eq. 17].

    `y` is one target an item, or a single one for any batch; it has the shape that T gives, else ValueError.
    """

    def distance(target: Tensor, seen: Tensor) -> Tensor:
        return 0.5 * (target - seen).square().flatten(1).sum(1)

    return _guider(decode, y, T, distance, chunk)


def perceptual_guider(
    decode: Transform, y: Float[Tensor, "n 3 H W"], net: nn.Module, T: Transform = identity, *, chunk: int = 8
) -> Guider:
    """net(y, T(D(z0_hat))), a loss like LPIPS in place of the squared error [LDM v2, App. C].

    `net` is one of `ldmlab.perception.perceptual_loss`; `y`, pictures in [-1, 1], as for `gaussian_guider`. Such a
    loss is a mean over places and of order 1, so its guidance scale is not that of a sum of squares.
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
        seen = T(decode(z0))
        if seen.shape[1:] != target.shape[1:]:
            raise ValueError(f"T(D(z0)) has shape {tuple(seen.shape[1:])} an item, "
                             f"the target {tuple(target.shape[1:])}")
        return distance(target, seen)

    def guider(z0_hat: Float[Tensor, "b *dims"]) -> Float[Tensor, " b"]:
        if len(y) not in (1, len(z0_hat)):
            raise ValueError(f"one target, or one an item: got {len(y)} targets for {len(z0_hat)} latents")
        targets = y.to(z0_hat.device).expand(len(z0_hat), *y.shape[1:]).split(chunk)
        if torch.is_grad_enabled() and z0_hat.requires_grad:
            return _Distance.apply(z0_hat, targets, of_chunk)
        with torch.no_grad():
            return torch.cat([of_chunk(z0, target) for z0, target in zip(z0_hat.split(chunk), targets, strict=True)])

    return guider


class _Distance(torch.autograd.Function):
    """The distances, and in the same pass their gradients, which wait for the backward pass in their place."""

    @staticmethod
    def forward(ctx, z0_hat: Tensor, targets: tuple[Tensor, ...], of_chunk: Callable[[Tensor, Tensor], Tensor]):
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
    def backward(ctx, grad_distance: Tensor):
        (gradient,) = ctx.saved_tensors
        return grad_distance.to(gradient.dtype).view(-1, *[1] * (gradient.ndim - 1)) * gradient, None, None
