"""Conversions between eps, z_0 and v: inverse to one another, in the dtype of the latents."""

import pytest
import torch

from ldmlab.diffusion import prediction
from ldmlab.diffusion.schedules import scaled_linear

SCHEDULE = scaled_linear()
LEVELS = [0.9985, 0.3, 0.001, torch.tensor(0.3), SCHEDULE.alpha_bar[[0, 400, 999]]]


def draws(dtype=torch.float64):
    return torch.randn(2, 3, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("alpha_bar", LEVELS, ids=["early", "middle", "late", "tensor", "per item"])
def test_conversions_give_back_what_was_mixed(alpha_bar):
    """From z_t and any of eps, z_0 and v the others follow, for one level and for one an item."""
    z0, eps = draws()
    z_t, v = prediction.noised(z0, eps, alpha_bar), prediction.v_from_z0_eps(z0, eps, alpha_bar)
    torch.testing.assert_close(prediction.z0_from_eps(z_t, eps, alpha_bar), z0)
    torch.testing.assert_close(prediction.eps_from_z0(z_t, z0, alpha_bar), eps)
    torch.testing.assert_close(prediction.z0_from_v(z_t, v, alpha_bar), z0)
    torch.testing.assert_close(prediction.eps_from_v(z_t, v, alpha_bar), eps)
    if isinstance(alpha_bar, torch.Tensor):
        torch.testing.assert_close(prediction.z0_from_eps_ddpm(z_t, eps, alpha_bar), z0)


def test_v_is_the_derivative_of_z_t_by_the_angle():
    """With z_t = cos(phi) z_0 + sin(phi) eps, v = dz_t / dphi [Progressive Distillation, App. D]."""
    z0, eps = draws()
    z_t = lambda phi: prediction.noised(z0, eps, phi.cos() ** 2)  # noqa: E731
    phi = torch.tensor(0.7, dtype=torch.float64)
    slope = torch.autograd.functional.jvp(z_t, phi, torch.ones_like(phi))[1]
    torch.testing.assert_close(prediction.v_from_z0_eps(z0, eps, phi.cos() ** 2), slope)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_latents_keep_their_dtype(dtype):
    """A float64 schedule does not widen latents; a weight is rounded once, from float64."""
    z0, eps = draws(dtype)
    ab = SCHEDULE.alpha_bar[[0, 400, 999]]
    for convert in (prediction.noised, prediction.z0_from_eps, prediction.z0_from_eps_ddpm, prediction.eps_from_z0,
                    prediction.v_from_z0_eps, prediction.z0_from_v, prediction.eps_from_v):
        assert convert(z0, eps, ab).dtype == dtype
    weight = ab.sqrt().to(dtype).view(-1, 1, 1)
    assert torch.equal(prediction.noised(z0, torch.zeros_like(eps), ab), weight * z0)
