"""One training step of the denoiser on given latents, and its optimizer and EMA alone: ours, diffusers, the original.

`python benchmarks/training.py [--original FOLDERS] [--compile] [--rounds N] [--only WORK] [--out FILE]`. A step is
forward, backward, AdamW and EMA at equal weights, whose outputs and gradients are compared first. "With our levers" is
a peer with fused AdamW and foreach EMA. The original cannot train under bf16 autocast as shipped, since it recomputes
attention outside of it; here its backward runs inside, and its note says so. Compilation is a row of its own.
"""

import time
from collections.abc import Callable
from functools import partial

import torch
from harness import Goal, Way, Work, agree, parse, run_table
from original import NAME as ORIGINAL
from original import add_option, ema, find_original, unet
from peers import call_diffusers, call_original, call_ours, diffusers_twin, filled
from torch import Tensor, nn

from ldmlab.diffusion.ema import EMA
from ldmlab.diffusion.schedules import scaled_linear
from ldmlab.diffusion.unet.config import DenoiserConfig
from ldmlab.diffusion.unet.unet import UNet
from ldmlab.evaluation.cost import count_flops
from ldmlab.study.training.device import choose_device

CPU, CUDA = 1.15, 1.8  # goals over the original as shipped


def config(context_dim: int | None = None, released: bool = False) -> DenoiserConfig:
    """A UNet of the released shape, at a width that a CPU trains; or the released one of CelebA-HQ, LDM-4."""
    width, mult, heads = (224, (1, 2, 3, 4), 32) if released else (64, (1, 2, 3, 4), 32)
    return DenoiserConfig(3, 3, tuple(width * m for m in mult), num_res_blocks=2, attention_at=(2, 4, 8),
                          num_head_channels=heads, context_dim=context_dim)


class Step:
    """forward, backward, update, EMA; `predict(model, z_t, t, context)` calls the model as its library does."""

    def __init__(self, model: nn.Module, predict, batch: tuple, *, levers: bool, bf16: bool, average: str,
                 backward_inside: bool = False):
        self.model, self.predict, self.batch = model.train(), predict, batch
        self.bf16, self.backward_inside = bf16, backward_inside
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=levers or None)
        if average == "ours":
            averages = EMA(model)
            self.average = lambda: averages.update(model)
        elif average == "diffusers":
            from diffusers.training_utils import EMAModel

            averages = EMAModel(model.parameters(), foreach=levers)
            self.average = lambda: averages.step(model.parameters())
        else:
            averages = ema(model).to(batch[0].device)
            self.average = lambda: averages(model)

    def loss(self) -> Tensor:
        z_t, t, eps, context = self.batch
        return (self.predict(self.model, z_t, t, context).float() - eps).square().mean()

    def gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.batch[0].device.type, torch.bfloat16, enabled=self.bf16):
            loss = self.loss()
            if self.backward_inside:
                loss.backward()
        if not self.backward_inside:
            loss.backward()

    def update(self) -> None:
        self.optimizer.step()
        self.average()

    def __call__(self) -> None:
        self.gradients()
        self.update()


def batch_of(b: int, side: int, context_dim: int | None, device: torch.device) -> tuple:
    """(z_t, t, eps, context) of random latents and noise, the same for all ways."""
    g = torch.Generator().manual_seed(0)
    z0, eps = (torch.randn(b, 3, side, side, generator=g).to(device) for _ in range(2))
    t = torch.randint(1000, (b,), generator=g).to(device)
    context = None if context_dim is None else torch.randn(b, 1, context_dim, generator=g).to(device)
    return scaled_linear().to(device).q_sample(z0, t, eps), t, eps, context


def steps(b: int, side: int, context_dim: int | None, bf16: bool, has_original: bool,
          released: bool = False) -> dict[str, Step]:
    """Every way at equal weights, on one batch."""
    device = choose_device()
    torch.manual_seed(0)
    model = filled(UNet(config(context_dim, released))).to(device)
    make = partial(Step, batch=batch_of(b, side, context_dim, device), bf16=bf16)
    theirs = [unet(model)] if has_original else []  # made before any of them is trained
    peers = [diffusers_twin(model, side) for _ in range(2)]
    if device.type == "cuda":
        model.to(memory_format=torch.channels_last)
        peers[1].to(memory_format=torch.channels_last)
    ways = {"ours": make(model, call_ours, levers=True, average="ours")}
    for original in theirs:
        ways[ORIGINAL] = make(original, call_original, levers=False, average=ORIGINAL, backward_inside=bf16)
    ways["diffusers"] = make(peers[0], call_diffusers, levers=False, average="diffusers")
    ways["diffusers with our levers"] = make(peers[1], call_diffusers, levers=True, average="ours")
    return ways


def compared(ways: dict[str, Step], bf16: bool) -> dict[str, float]:
    """The loss and the gradient of the first convolution, of all ways against ours."""
    found, ours = {}, ways["ours"]
    for step in ways.values():
        step.gradients()
    for name, step in ways.items():
        first, other = (next(p.grad for p in s.model.parameters() if p.shape[1:] == (3, 3, 3)) for s in (ours, step))
        found |= agree(f"gradient of the first convolution, {name}", other, first, 5e-2 if bf16 else 1e-4)
    with torch.no_grad():
        for name, step in ways.items():
            found |= agree(f"loss, {name}", step.loss()[None], ours.loss()[None], 2e-2 if bf16 else 1e-5)
    return found


def step_work(name: str, args, b: int, side: int, context_dim: int | None = None, bf16: bool = False,
              released: bool = False) -> Work:
    ways = steps(b, side, context_dim, bf16, bool(args.original), released)
    agreement = compared(ways, bf16)
    notes = {ORIGINAL: "backward inside of autocast, without which it stops" if bf16 else "as shipped",
             "diffusers": "as shipped: AdamW, EMAModel"}
    rows = [Way(way, step, "ours" if way == "ours" else "peer", note=notes.get(way, ""))
            for way, step in ways.items()]
    z_t, t, _, context = ways["ours"].batch
    forward = count_flops(ways["ours"].model, z_t[:1], t[:1], *([] if context is None else [context[:1]]))
    if args.compile:
        rows.append(compiled(ways["ours"]))
    goals = [Goal("ours", "diffusers with our levers", 1.05 if z_t.is_cuda else 1.0)]
    if args.original:
        goals.insert(0, Goal("ours", ORIGINAL, CUDA if z_t.is_cuda else CPU))
    return Work(name, rows, goals, n=b, unit="pictures", flops=3 * b * forward,
                dtype="bfloat16" if bf16 else "float32", agreement=agreement)


def compiled(step: Step) -> Way:
    """Ours through torch.compile: same weights, own optimizer."""
    fast = torch.compile(step.model)
    again = Step(step.model, lambda _, z_t, t, context: fast(z_t, t, context), step.batch, levers=True,
                 bf16=step.bf16, average="ours")
    began = time.perf_counter()
    again()
    return Way("ours, compiled", again, exact=False, note="differs by rounding",
               prepare_s=time.perf_counter() - began)


def update_work(name: str, args, released: bool = False) -> Work:
    """AdamW and EMA alone, on gradients that stay."""
    ways = steps(1 if released else 2, 32, None, False, bool(args.original), released)
    if released and not torch.cuda.is_available():  # a way takes 5.5 GB: three are what 24 GB hold
        ways = {name: step for name, step in ways.items() if "diffusers" not in name}
    for step in ways.values():
        step.gradients()
    rows = [Way(way, step.update, "ours" if way == "ours" else "peer") for way, step in ways.items()]
    num_params = sum(p.numel() for p in ways["ours"].model.parameters())
    rows.append(Way("one buffer", in_one_buffer(num_params), exact=False,
                    note="a single tensor of as many weights: not shipped, as gradients would have to be added"))
    # AdamW reads the gradient, reads and writes weight and two moments; EMA reads the weight, reads and writes itself.
    return Work(name, rows, [Goal("ours", ORIGINAL, 3.0)] if args.original else [], unit="updates",
                num_bytes=40 * num_params)


def in_one_buffer(num_params: int) -> Callable[[], None]:
    """The same two updates without the cost of many tensors: what is left is the memory's."""
    flat = nn.Parameter(torch.randn(num_params, device=choose_device()))
    flat.grad, average = torch.randn_like(flat), flat.detach().clone()
    optimizer = torch.optim.AdamW([flat], lr=1e-6, fused=True)

    def update() -> None:
        optimizer.step()
        average.lerp_(flat.detach(), 1e-4)

    return update


def add_options(parser) -> None:
    add_option(parser)
    parser.add_argument("--compile", action="store_true", help="also ours through torch.compile: minutes a work")


def main() -> None:
    args = parse(__doc__, "training", add_options)
    about = find_original(args.original)
    works = {
        "UNet step, 32 x 32, batch 8, fp32": (8, 32),
        "UNet step, 64 x 64, batch 2, fp32": (2, 64),
        "UNet step, cross-attention, 32 x 32, batch 8, fp32": (8, 32, 128),
        "UNet step, 32 x 32, batch 8, bf16": (8, 32, None, True),
    }
    if torch.cuda.is_available():
        works = {"CelebA-HQ LDM-4 UNet step, 64 x 64, batch 48, bf16": (48, 64, None, True, True), **works}
    table = [(name, partial(step_work, name, args, *settings)) for name, settings in works.items()]
    updates = {"AdamW and EMA update": False, "AdamW and EMA update, CelebA-HQ LDM-4": True}
    table += [(name, partial(update_work, name, args, released)) for name, released in updates.items()]
    run_table("training", table, args, **about)


if __name__ == "__main__":
    main()
