"""Training steps and samplers at the paper's sizes: as ours run them, and with the structure of the released code.

The released structure is written here, with our UNet's weights: attention as two products with the softmax between,
recomputed in the backward pass; AdamW tensor by tensor; averages in a loop over the parameters whose decay is compared
on the device, so that the host waits; constants of a sampler's step read from the device, four times a step.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from peers import filled
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldmlab.checkpoints.released import LDMS, LdmRow
from ldmlab.diffusion.samplers import ddim, ddim_timesteps
from ldmlab.diffusion.schedules import Schedule
from ldmlab.diffusion.training import DiffusionModule
from ldmlab.diffusion.unet import attention
from ldmlab.diffusion.unet.config import DenoiserConfig
from ldmlab.diffusion.unet.unet import UNet
from ldmlab.experiments.compute.flops import PASSES, count_denoiser

ROWS = {"LDM-4": "celeba256", "LDM-8": "lsun_churches256"}  # unconditional models, 256 px
SIDE = 256


def shape_of(name: str, rehearse: bool) -> tuple[DenoiserConfig, int, LdmRow]:
    """The denoiser's shape, the side of its latent, and its row of the released models; tiny for a rehearsal."""
    row = next(row for row in LDMS.values() if row.name == ROWS[name])
    config, side = row.denoiser, SIDE // row.first_stage.config.f
    if rehearse:
        c = config.in_channels
        config, side = DenoiserConfig(c, c, (32, 64), num_res_blocks=1, attention_at=(2,), num_heads=2), 8
    return config, side, row


# --- The released structure
def two_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention that stores all weights: scaled queries and keys, a product, softmax in float32, a product."""
    scale = q.shape[3] ** -0.25
    weights = (q * scale) @ (k * scale).mT
    return weights.float().softmax(3).to(v.dtype) @ v


@contextmanager
def released_attention() -> Iterator[None]:
    """Inside, every UNet computes attention by `two_products`."""
    own = attention.attend
    attention.attend = two_products
    try:
        yield
    finally:
        attention.attend = own


class LoopAverage:
    """An exponential moving average, parameter by parameter, with the number of updates on the device."""

    def __init__(self, model: nn.Module, decay: float = 0.9999):
        self.parameters = list(model.parameters())
        self.shadows = [p.detach().clone() for p in self.parameters]
        device = self.shadows[0].device
        self.decay, self.n = torch.tensor(decay, device=device), torch.zeros((), dtype=torch.int, device=device)

    @torch.no_grad()
    def update(self) -> None:
        self.n += 1
        left = 1 - min(self.decay, (1 + self.n) / (10 + self.n))
        for shadow, p in zip(self.shadows, self.parameters, strict=True):
            shadow.sub_(left * (shadow - p))


def released_step(config: DenoiserConfig, row: LdmRow, z0: Tensor, bf16: bool) -> Callable[[], object]:
    device = z0.device
    model, schedule = filled(UNet(config)).to(device), row.schedule.to(device)
    for module in model.modules():
        if isinstance(module, attention.SelfAttention):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, foreach=False, fused=False)
    average = LoopAverage(model)

    def step() -> None:
        t, eps = torch.randint(schedule.T, (len(z0),), device=device), torch.randn_like(z0)
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, bf16):
            eps_hat = model(schedule.q_sample(z0, t, eps), t)
            off = eps_hat.float() - eps
            loss = (off.abs() if row.loss == "l1" else off.square()).mean((1, 2, 3)).mean()
            if bf16:  # as shipped it cannot: attention would be recomputed outside of autocast
                loss.backward()
        if not bf16:
            loss.backward()
        optimizer.step()
        average.update()

    return step


def released_ddim(model: Callable, z: Tensor, schedule: Schedule, num_steps: int) -> Tensor:
    """DDIM, eta = 0, with the constants of a step read from the device and written into new tensors."""
    steps = ddim_timesteps(num_steps)
    alpha_bar = schedule.alpha_bar.float().to(z.device)
    for i, step in enumerate(steps):
        at = [alpha_bar[step], alpha_bar[steps[i + 1]] if i + 1 < num_steps else alpha_bar[0]]
        values = [at[0], at[1], (1 - at[0]).sqrt(), torch.zeros((), device=z.device)]
        a, a_prev, root, sigma = (torch.full((len(z), 1, 1, 1), v.item(), device=z.device) for v in values)
        eps = model(z, torch.full((len(z),), step, device=z.device, dtype=torch.long))
        z0 = (z - root * eps) / a.sqrt()
        z = a_prev.sqrt() * z0 + (1 - a_prev - sigma**2).sqrt() * eps + sigma * torch.randn_like(z)
    return z


# --- Ours
def our_step(
    config: DenoiserConfig, row: LdmRow, z0: Tensor, bf16: bool = True, channels_last: bool = True,
    backend: str | None = None,
) -> Callable[[], object]:
    """As `study.training` runs a step on a GPU: fused AdamW, clipped gradients, averages by foreach."""
    device = z0.device
    module = DiffusionModule(filled(UNet(config)), row.schedule, None, lr=1e-6, loss=row.loss,
                             channels_last=channels_last).to(device)
    module.on_fit_start()
    if backend is not None:
        module.denoiser.compile(backend=backend, dynamic=False)
    optimizer, batch = module.configure_optimizers(), {"moments": z0}

    def step() -> None:
        with autocast(device, bf16):
            loss = module.training_step(batch, 0)["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(module.trained.parameters(), module.clip_norm)
        optimizer.step()
        module.ema.update(module.trained)

    return step


def autocast(device: torch.device, bf16: bool) -> AbstractContextManager[Any]:
    """On the GPU: a rehearsal on a CPU that emulates bfloat16 would take minutes."""
    return torch.autocast(device.type, torch.bfloat16) if bf16 and device.type == "cuda" else nullcontext()


def training_step(name: str, batch: int, device: torch.device, rehearse: bool, released: bool = False,
                  **options: Any) -> tuple[Callable[[], object], float]:
    """A training step of a model of ROWS on given latents, and its FLOP: three times the forward pass."""
    config, side, row = shape_of(name, rehearse)
    torch.manual_seed(0)
    z0 = torch.randn(batch, config.in_channels, side, side, device=device)
    make = released_step if released else our_step
    return make(config, row, z0, **options), PASSES * batch * count_denoiser(config, side)


def sampling(
    name: str, batch: int, num_steps: int, device: torch.device, rehearse: bool, released: bool = False,
    bf16: bool = False, change: Callable[[nn.Module], Callable] = lambda model: model,
) -> tuple[Callable[[], Tensor], float]:
    """DDIM in the latent space, without the decoder, and its FLOP; `change` accelerates the denoiser."""
    config, side, row = shape_of(name, rehearse)
    torch.manual_seed(0)
    model = filled(UNet(config)).to(device).eval().requires_grad_(False)
    schedule = row.schedule.to(device)
    z_T = torch.randn(batch, config.in_channels, side, side, device=device)
    fast, draw = change(model), released_ddim if released else ddim

    def run() -> Tensor:
        with torch.no_grad() if released else torch.inference_mode(), autocast(device, bf16):
            return draw(fast, z_T, schedule, num_steps)

    return run, batch * num_steps * count_denoiser(config, side)
