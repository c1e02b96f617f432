"""Classifier-free guidance: how many calls, in which order, and what comes out."""

import pytest
import torch

from ldmlab.diffusion.guidance import classifier_free


def recording_denoiser():
    calls = []

    def denoiser(z_t, t, context):
        calls.append((len(z_t), context))
        return z_t * 0 + context.mean((1, 2)).view(-1, 1, 1, 1)

    return denoiser, calls


Z, T = torch.zeros(2, 1, 2, 2), torch.tensor([3, 3])
CONTEXT, NULL = torch.full((2, 1, 4), 2.0), torch.full((2, 1, 4), 1.0)


def test_scale_one_makes_one_call_on_the_batch_itself():
    """Without guidance the null condition costs nothing."""
    denoiser, calls = recording_denoiser()
    assert (classifier_free(denoiser, CONTEXT, NULL, 1.0)(Z, T) == 2).all()
    assert [n for n, _ in calls] == [2]


@pytest.mark.parametrize("scale, expected", [(3.0, 4.0), (0.0, 1.0), (1.5, 2.5)])
def test_guidance_extrapolates_from_null_to_condition(scale, expected):
    """eps_null + s (eps_cond - eps_null), from one call on [null, condition]."""
    denoiser, calls = recording_denoiser()
    assert (classifier_free(denoiser, CONTEXT, NULL, scale)(Z, T) == expected).all()
    [(n, context)] = calls
    assert n == 4 and torch.equal(context, torch.cat([NULL, CONTEXT]))


def test_one_null_context_serves_the_batch():
    """A single null token stands for every item."""
    denoiser, calls = recording_denoiser()
    assert (classifier_free(denoiser, CONTEXT, NULL[:1], 2)(Z, T) == 3).all()
    assert torch.equal(calls[0][1], torch.cat([NULL, CONTEXT]))
