"""The baseline that does not sample: one pass of the same UNet to the mean of all pictures that fit [SR3, Sec. 4]."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from ldmlab.data.images import to_float
from ldmlab.diffusion.denoiser import UNet
from ldmlab.diffusion.schedules import Schedule
from ldmlab.diffusion.spatial_conditioning import SpatialConditioner
from ldmlab.diffusion.training import LatentModule


def regress(
    net: UNet, conditioner: SpatialConditioner, y: Shaped[Tensor, "b ..."]
) -> Float[Tensor, "b 3 H W"]:
    """x_hat of pixels, not clamped: what the condition shows of the picture, plus what the net finds missing."""
    c = conditioner(y)
    return c[:, :3] + net(c, torch.zeros(len(c), device=c.device, dtype=torch.long))


class RegressionModule(LatentModule):
    """E || x - x_hat(y) ||^2 over pictures: PSNR is what it is trained for.

    `conditioner` works at f = 1, so its first three channels are a picture: the enlarged, or the masked one.
    """

    def __init__(self, net: UNet, conditioner: SpatialConditioner, schedule: Schedule, **options):
        super().__init__({"net": net}, schedule, 3, scale_factor=(1.0,), **options)
        self.net, self.conditioner = net, conditioner

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        x = to_float(batch["image"])
        return {"loss": F.mse_loss(regress(self.net, self.conditioner, self.conditioner.told(batch)).float(), x)}
