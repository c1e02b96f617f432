"""Guidance: steering a sampler by a condition that was dropped in training, by a classifier, or by a picture.

Each function gives an eps_hat(z_t, t) for the samplers. Those that take gradients may be called under `torch.no_grad`
and under `torch.inference_mode`; in the latter, what is differentiated must hold no tensors made in inference mode.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ldmlab.diffusion.guiders import Guider
from ldmlab.diffusion.samplers import EpsModel
from ldmlab.diffusion.schedules import Schedule
from ldmlab.diffusion.unet.unet import with_context


def classifier_free(
    denoiser: Callable[[Tensor, Tensor, Tensor], Tensor],
    context: Float[Tensor, "b n d"],
    null_context: Float[Tensor, "#b n d"],
    guidance_scale: float | int,
) -> Callable[[Tensor, Tensor], Tensor]:
    """eps_hat = eps(z_t, null) + s (eps(z_t, c) - eps(z_t, null)) as a function of (z_t, t) [CFG, Eq. 6].

    Here s = `guidance_scale` is 1 without guidance, then one call on the batch; otherwise one call on twice the batch,
    [null, c] as released. [CFG] counts from 0: its w is s - 1. One null context serves a whole batch.
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
    """eps_hat - s sqrt(1 - alpha_bar_t) grad log p_phi(y | z_t), of (z_t, t) [LDM v2, Eq. 16; ADM, Alg. 2].

    `classifier` (z_t, t) gives logits (b, classes). The score, -eps_hat / sqrt(1 - alpha_bar_t), gains s times the
    gradient: s = `guidance_scale` is 1 for Bayes' rule, 10 in [LDM v2, Tab. 10], and 0 for `eps_model` itself. The
    released code trains such a classifier and has no sampler for it. ValueError for labels that are no classes.
    """
    if guidance_scale == 0:
        return eps_model
    y, checked = _normal(y), []

    def guided(z_t: Float[Tensor, "b *dims"], t: Shaped[Tensor, " b"]) -> Float[Tensor, "b *dims"]:
        if len(y) != len(z_t):
            raise ValueError(f"one label an item: got {len(y)} labels for {len(z_t)} latents")

        def log_p(z: Tensor) -> Tensor:
            log_probs = classifier(z, t).log_softmax(1)
            if not checked:  # once: looking at labels makes a GPU wait
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
    """eps_hat + s sqrt(1 - alpha_bar_t) grad d(z0_hat(z_t)), of (z_t, t) [LDM v2, Eq. 16, 17].

    The distance d of a guider from `guiders` stands for -log p(y | z_t), that of a Gaussian of variance 1 / s; as in
    Eq. 17, how uncertain z0_hat still is at z_t does not widen it, so large scales overshoot y. z0_hat depends on z_t
    by eps_theta as well, so a step costs a backward pass through the denoiser. Deviation: `through_denoiser=False`
    saves that and takes sqrt(alpha_bar_t) for dz0_hat / dz_t, which is so for white latents of variance 1. (To hold
    eps_hat constant instead would give 1 / sqrt(alpha_bar_t), most where z0_hat is least sure: samples fly far past y.)
    With s = `guidance_scale` = 0 this is `eps_model` itself. ValueError for a guider without one distance an item.
    """
    if guidance_scale == 0:
        return eps_model

    def log_p(z0_hat: Tensor) -> Tensor:
        distance = guider(z0_hat)
        if distance.shape != z0_hat.shape[:1]:
            raise ValueError(f"a guider gives one distance an item, so shape ({len(z0_hat)},); "
                             f"got {tuple(distance.shape)}")
        return -distance

    def guided(z_t: Float[Tensor, "b *dims"], t: Shaped[Tensor, " b"]) -> Float[Tensor, "b *dims"]:
        t, answers = _normal(t), []
        ab = _alpha_bar(schedule, t, z_t)

        def z0_hat(z: Tensor) -> Tensor:
            eps_hat = eps_model(z, t).to(z.dtype)
            answers.append(eps_hat.detach())
            return (z - (1 - ab).sqrt() * eps_hat) / ab.sqrt()

        if through_denoiser:
            gradient = _gradient(lambda z: log_p(z0_hat(z)), z_t)
        else:
            gradient = ab.sqrt() * _gradient(log_p, z0_hat(z_t))
        return answers[0] - guidance_scale * (1 - ab).sqrt() * gradient

    return guided


def _gradient(log_p: Callable[[Tensor], Tensor], z_t: Tensor) -> Tensor:
    """The gradient of each item's log_p (b,) by its z_t, whatever mode the caller is in."""
    with torch.inference_mode(False), torch.enable_grad():
        z = z_t.clone().detach().requires_grad_()
        return torch.autograd.grad(log_p(z).sum(), z)[0]


def _normal(a: Tensor) -> Tensor:
    """A copy that autograd may keep, also of a tensor made in inference mode."""
    with torch.inference_mode(False):
        return a.detach().clone()


def _alpha_bar(schedule: Schedule, t: Tensor, z_t: Tensor) -> Tensor:
    """alpha_bar at `t`, whole or not, shaped to multiply z_t."""
    with torch.inference_mode(False):
        return schedule.alpha_bar_at(t).to(z_t.dtype).view(-1, *[1] * (z_t.ndim - 1))
