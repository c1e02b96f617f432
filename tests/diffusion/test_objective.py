"""The objective: norms, and the released weighting that is off by default."""

import pytest
import torch

from ldmlab.diffusion import schedules
from ldmlab.diffusion.training import denoising_error, weighted_objective


def test_norms_are_means_over_entries():
    """One number per item, independent of the batch and of the latent's size."""
    eps, eps_hat = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), -2.0)
    assert denoising_error(eps_hat, eps, "l2").tolist() == [4, 4]
    assert denoising_error(eps_hat, eps, "l1").tolist() == [2, 2]
    with pytest.raises(ValueError, match="l3"):
        denoising_error(eps_hat, eps, "l3")


def test_plain_objective_is_the_mean_error():
    """Without logvar and bound, Eq. 2; with a constant logvar, the error shifts by it and is divided by its exp."""
    schedule, error, t = schedules.scaled_linear(), torch.tensor([1.0, 3.0]), torch.tensor([0, 999])
    assert weighted_objective(error, t, schedule) == 2
    logvar = torch.full((1000,), 0.5)
    torch.testing.assert_close(weighted_objective(error, t, schedule, logvar=logvar), 2 / logvar[0].exp() + 0.5)
    bound = (schedule.vlb_weights[t] * error).mean().float()
    torch.testing.assert_close(weighted_objective(error, t, schedule, vlb_weight=0.1), 2 + 0.1 * bound)
