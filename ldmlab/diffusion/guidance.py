"""Guidance of a sampler: classifier-free, by a classifier on noisy latents, or by a picture.

Each function returns a function (z_t, t) -> eps_hat for the samplers. Those that take gradients may be called under
`torch.no_grad` and under `torch.inference_mode`; under the latter, nothing that is differentiated may contain a tensor
made in inference mode.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ldmlab.diffusion.guiders import Guider
from ldmlab.diffusion.prediction import z0_from_eps
from ldmlab.diffusion.samplers import EpsModel
from ldmlab.diffusion.schedules import Schedule
from ldmlab.diffusion.unet.unet import with_context


def classifier_free(
    denoiser: Callable[[Tensor, Tensor, Tensor], Tensor],
    context: Float[Tensor, "b n d"],
    null_context: Float[Tensor, "#b n d"],
    guidance_scale: float | int,
) -> EpsModel:
    """eps_hat = eps(z_t, null) + s (eps(z_t, c) - eps(z_t, null)) as a function of (z_t, t) [CFG, Eq. 6].

    s = `guidance_scale`; w in [CFG] is s - 1. At s = 1, without guidance, a step is one call on the batch, otherwise
    one call on twice the batch, in the released order [null, c]. One null context may serve the whole batch.

    >>> denoiser = lambda z_t, t, context: z_t + context.mean((1, 2))[:, None, None, None]
    >>> eps_model = classifier_free(denoiser, torch.ones(2, 1, 4), torch.zeros(1, 1, 4), guidance_scale=3.0)
    >>> eps_model(torch.zeros(2, 1, 1, 1), torch.tensor([10, 10])).flatten()
    tensor([3., 3.])
    """
    if guidance_scale == 1:
        return with_context(denoiser, context)
    both = with_context(denoiser, torch.cat([null_context.expand_as(context), context]))

    def eps_model(z_t: Float[Tensor, "b c h w"], t: Shaped[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        eps_null, eps_cond = both(torch.cat([z_t, z_t]), torch.cat([t, t])).to(z_t.dtype).chunk(2)
        return eps_null + guidance_scale * (eps_cond - eps_null)

    return eps_model


def classifier_guided(
    eps_model: EpsModel,
    classifier: Callable[[Tensor, Tensor], Tensor],
    y: Int[Tensor, " b"],
    schedule: Schedule,
    guidance_scale: float | int,
) -> EpsModel:
    """eps_hat - s sqrt(1 - alpha_bar_t) grad log p_phi(y | z_t), a function of (z_t, t) [LDM v2, Eq. 16].

    `classifier(z_t, t)` returns logits (b, classes). s times the gradient is added to the score, which is
    -eps_hat / sqrt(1 - alpha_bar_t), hence the minus sign [ADM, Alg. 2]. s = `guidance_scale` is 1 for Bayes' rule and
    10 in [LDM v2, Tab. 10]; at 0 this is `eps_model` itself. The released code trains such a classifier but has no
    sampler that uses it. ValueError for labels outside the classifier's classes, or not one an item.

    >>> from ldmlab.diffusion.schedules import scaled_linear
    >>> classifier = lambda z_t, t: torch.stack([z_t[:, 0], -z_t[:, 0]], 1)  # class 0: z_t is large
    >>> guided = classifier_guided(lambda z_t, t: z_t, classifier, torch.tensor([0]), scaled_linear(), 1.0)
    >>> guided(torch.zeros(1, 1), torch.tensor([999])).round(decimals=2)  # eps_hat falls, so z_0 grows
    tensor([[-1.]])
    """
    if guidance_scale == 0:
        return eps_model
    y = _normal(y)
    checked: list[bool] = []

    def guided(z_t: Float[Tensor, "b *dims"], t: Shaped[Tensor, " b"]) -> Float[Tensor, "b *dims"]:
        if len(y) != len(z_t):
            raise ValueError(f"y has one label an item; got {len(y)} labels for {len(z_t)} latents")

        def log_p(z: Tensor) -> Tensor:
            log_probs = classifier(z, t).log_softmax(1)
            if not checked:  # once: reading labels waits for a GPU
                if not 0 <= y.min() <= y.max() < log_probs.shape[1]:
                    raise ValueError(f"labels are 0..{log_probs.shape[1] - 1}, the classes of the classifier; "
                                     f"got {y.min().item()} to {y.max().item()}")
                checked.append(True)
            return log_probs.gather(1, y.to(z.device)[:, None])[:, 0]

        t = _normal(t)
        noise_level = (1 - _alpha_bar(schedule, t, z_t)).sqrt()
        return eps_model(z_t, t).to(z_t.dtype) - guidance_scale * noise_level * _gradient(log_p, z_t)

    return guided


def image_guided(
    eps_model: EpsModel,
    guider: Guider,
    schedule: Schedule,
    guidance_scale: float | int,
    *,
    through_denoiser: bool = True,
) -> EpsModel:
    """eps_hat + s sqrt(1 - alpha_bar_t) grad d(z0_hat(z_t)), a function of (z_t, t) [LDM v2, App. C].

    The distance d of a guider from `guiders` is -log p(y | z_t) for a Gaussian of variance 1 / s. As in the paper, that
    variance does not grow with the uncertainty of z0_hat at z_t, so large scales overshoot y. z0_hat depends on z_t
    through eps_theta as well, so a step costs a backward pass through the denoiser. Deviation: `through_denoiser=False`
    saves that pass and takes sqrt(alpha_bar_t) for dz0_hat / dz_t, which holds for white latents of variance 1. (With
    eps_hat held constant it would be 1 / sqrt(alpha_bar_t), largest where z0_hat is least certain, and samples would
    overshoot y by far.) At s = `guidance_scale` = 0 this is `eps_model` itself. ValueError unless the guider returns
    one distance an item.
    """
    if guidance_scale == 0:
        return eps_model

    def log_p(z0_hat: Tensor) -> Tensor:
        distance = guider(z0_hat)
        if distance.shape != z0_hat.shape[:1]:
            raise ValueError(f"a guider returns one distance an item, so shape ({len(z0_hat)},); "
                             f"got {tuple(distance.shape)}")
        return -distance

    def guided(z_t: Float[Tensor, "b *dims"], t: Shaped[Tensor, " b"]) -> Float[Tensor, "b *dims"]:
        t = _normal(t)
        predicted: list[Tensor] = []
        ab = _alpha_bar(schedule, t, z_t)

        def z0_hat(z: Tensor) -> Tensor:
            eps_hat = eps_model(z, t).to(z.dtype)
            predicted.append(eps_hat.detach())
            return z0_from_eps(z, eps_hat, ab)

        if through_denoiser:
            gradient = _gradient(lambda z: log_p(z0_hat(z)), z_t)
        else:
            gradient = ab.sqrt() * _gradient(log_p, z0_hat(z_t))
        return predicted[0] - guidance_scale * (1 - ab).sqrt() * gradient

    return guided


def _gradient(log_p: Callable[[Tensor], Tensor], z_t: Tensor) -> Tensor:
    """The gradient of each item's log_p (b,) with respect to its z_t, also under no_grad and inference mode."""
    with torch.inference_mode(False), torch.enable_grad():
        z = z_t.clone().detach().requires_grad_()
        return torch.autograd.grad(log_p(z).sum(), z)[0]


def _normal(a: Tensor) -> Tensor:
    """A copy that autograd can save for the backward pass, also of a tensor made in inference mode."""
    with torch.inference_mode(False):
        return a.detach().clone()


def _alpha_bar(schedule: Schedule, t: Tensor, z_t: Tensor) -> Tensor:
    """alpha_bar at whole or fractional `t`, in the dtype of z_t and shaped to multiply it."""
    with torch.inference_mode(False):
        return schedule.alpha_bar_at(t).to(z_t.dtype).view(-1, *[1] * (z_t.ndim - 1))
