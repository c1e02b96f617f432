"""Noise eps, data z_0 and velocity v: any two of z_t, eps, z_0 and v at a noise level give the other two.

alpha_bar is the share of variance in z_t = sqrt(alpha_bar) z_0 + sqrt(1 - alpha_bar) eps that is signal, in (0, 1):
alpha_t^2 in [LDM v2, App. B], alpha_t in [DDIM]. It is a number for the whole batch or a tensor with one entry an item.
Results have the dtype and device of the latents. A new type of prediction needs its conversions here, and nothing else
in samplers, guidance and likelihood, which work with eps_hat and z0_hat.
"""

import math

from jaxtyping import Float
from torch import Tensor

AlphaBar = float | Tensor


def noised(
    z0: Float[Tensor, "b *dims"], eps: Float[Tensor, "b *dims"], alpha_bar: AlphaBar
) -> Float[Tensor, "b *dims"]:
    """z_t = sqrt(alpha_bar) z_0 + sqrt(1 - alpha_bar) eps [DDPM, Eq. 4].

    >>> import torch
    >>> z0, eps = torch.tensor([[2.0]]), torch.tensor([[1.0]])
    >>> noised(z0, eps, 0.64)
    tensor([[2.2000]])
    """
    return _root(alpha_bar, z0) * z0 + _root(1 - alpha_bar, z0) * eps


def z0_from_eps(
    z_t: Float[Tensor, "b *dims"], eps: Float[Tensor, "b *dims"], alpha_bar: AlphaBar
) -> Float[Tensor, "b *dims"]:
    """z_0 = (z_t - sqrt(1 - alpha_bar) eps) / sqrt(alpha_bar) [DDIM, Eq. 9], for the samplers and guidance.

    >>> import torch
    >>> z_t, eps = torch.tensor([[2.2]]), torch.tensor([[1.0]])
    >>> z0_from_eps(z_t, eps, 0.64)
    tensor([[2.]])
    """
    return (z_t - _root(1 - alpha_bar, z_t) * eps) / _root(alpha_bar, z_t)


def z0_from_eps_ddpm(
    z_t: Float[Tensor, "b *dims"], eps: Float[Tensor, "b *dims"], alpha_bar: Tensor
) -> Float[Tensor, "b *dims"]:
    """z_0 = sqrt(1 / alpha_bar) z_t - sqrt(1 / alpha_bar - 1) eps [DDPM, Eq. 15], for DDPM and the likelihood.

    The same z_0 as `z0_from_eps` but for rounding: as in the released code, both weights are computed in the dtype of
    `alpha_bar` (float64 in a `Schedule`) and rounded once.
    """
    return _like(alpha_bar.rsqrt(), z_t) * z_t - _root(1 / alpha_bar - 1, z_t) * eps


def eps_from_z0(
    z_t: Float[Tensor, "b *dims"], z0: Float[Tensor, "b *dims"], alpha_bar: AlphaBar
) -> Float[Tensor, "b *dims"]:
    """eps = (z_t - sqrt(alpha_bar) z_0) / sqrt(1 - alpha_bar) [LDM v2, Eq. 14].

    >>> import torch
    >>> z_t, z0 = torch.tensor([[2.2]]), torch.tensor([[2.0]])
    >>> eps_from_z0(z_t, z0, 0.64)
    tensor([[1.]])
    """
    return (z_t - _root(alpha_bar, z_t) * z0) / _root(1 - alpha_bar, z_t)


def v_from_z0_eps(
    z0: Float[Tensor, "b *dims"], eps: Float[Tensor, "b *dims"], alpha_bar: AlphaBar
) -> Float[Tensor, "b *dims"]:
    """v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) z_0 [Progressive Distillation, App. D].

    >>> import torch
    >>> z0, eps = torch.tensor([[2.0]]), torch.tensor([[1.0]])
    >>> v_from_z0_eps(z0, eps, 0.64)
    tensor([[-0.4000]])
    """
    return _root(alpha_bar, z0) * eps - _root(1 - alpha_bar, z0) * z0


def z0_from_v(
    z_t: Float[Tensor, "b *dims"], v: Float[Tensor, "b *dims"], alpha_bar: AlphaBar
) -> Float[Tensor, "b *dims"]:
    """z_0 = sqrt(alpha_bar) z_t - sqrt(1 - alpha_bar) v [Progressive Distillation, App. D]."""
    return _root(alpha_bar, z_t) * z_t - _root(1 - alpha_bar, z_t) * v


def eps_from_v(
    z_t: Float[Tensor, "b *dims"], v: Float[Tensor, "b *dims"], alpha_bar: AlphaBar
) -> Float[Tensor, "b *dims"]:
    """eps = sqrt(1 - alpha_bar) z_t + sqrt(alpha_bar) v [Progressive Distillation, App. D]."""
    return _root(1 - alpha_bar, z_t) * z_t + _root(alpha_bar, z_t) * v


def _root(a: AlphaBar, like: Tensor) -> AlphaBar:
    """sqrt(a), taken in a's own precision, to multiply `like`."""
    return _like(a.sqrt(), like) if isinstance(a, Tensor) else math.sqrt(a)


def _like(weight: Tensor, like: Tensor) -> Tensor:
    """One weight an item, or one for all, in the device and dtype of `like` and shaped to multiply it."""
    return weight.to(like.device, like.dtype).view(-1, *[1] * (like.ndim - 1))
