"""The training objective: how far the predicted noise is from the noise [LDM v2, Eq. 2, 3]."""

from jaxtyping import Float, Int
from torch import Tensor

from .schedules import Schedule


def denoising_error(
    eps_hat: Float[Tensor, "b *dims"], eps: Float[Tensor, "b *dims"], kind: str = "l2"
) -> Float[Tensor, " b"]:
    """|| eps - eps_hat || per item, squared for "l2", absolute for "l1", averaged over its entries."""
    match kind:
        case "l2":
            error = (eps_hat - eps).square()
        case "l1":
            error = (eps_hat - eps).abs()
        case _:
            raise ValueError(f'the objective\'s norm is "l1" or "l2", got {kind!r}')
    return error.flatten(1).mean(1)


def weighted_objective(
    error: Float[Tensor, " b"], t: Int[Tensor, " b"], schedule: Schedule, *,
    logvar: Float[Tensor, " T"] | None = None, vlb_weight: float = 0.0,
) -> Float[Tensor, ""]:
    """The released objective: mean error, or with `logvar`, of error / exp(logvar_t) + logvar_t, plus the bound's.

    The second term, `vlb_weight` times the weights of the variational bound [DDPM, Eq. 12], is 0 in every released
    configuration, as is `logvar`: then this is the plain mean of Eq. 2.
    """
    simple = error if logvar is None else error / logvar[t].exp() + logvar[t]
    if vlb_weight == 0:
        return simple.mean()
    bound = schedule.vlb_weights.to(error.device, error.dtype)[t] * error
    return simple.mean() + vlb_weight * bound.mean()
