"""A training step from pictures, from the second epoch on: moments cached once, against encoding each step.

`python benchmarks/pictures.py [--original FOLDERS] [--rounds N] [--only WORK] [--out FILE]`. Models of the released
sizes, random weights, 256 pixels. The peers encode each batch with their own first stage, without gradients; "ours,
encoding each step" is our code without the cache, which shows what the cache alone is worth. What is read from the
cache is compared with what encoding gives. Making the cache is a cost of its own, paid once for all runs of a study.
"""

import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from harness import Goal, Way, Work, agree, parse, run_table
from original import NAME as ORIGINAL
from original import FirstStage, add_option, find_original, unet
from peers import call_diffusers, call_original, call_ours, diffusers_twin, filled
from torch import Tensor
from training import Step

from ldmlab.checkpoints.diffusers_format.folders import describe
from ldmlab.checkpoints.released import released_row
from ldmlab.data.images import open_dataset, to_float
from ldmlab.diffusion.schedules import Schedule
from ldmlab.diffusion.unet.unet import UNet
from ldmlab.evaluation.cost import count_flops
from ldmlab.first_stage.autoencoder import build_autoencoder
from ldmlab.first_stage.latents import encode_dataset
from ldmlab.study.training.device import choose_device

CPU, CUDA = {4: 1.4, 8: 2.0}, {4: 1.5, 8: 2.7}
GIB = 2**30


class FromPictures:
    """A step whose latents come from `moments(indices)`; fresh noise and posterior samples each time."""

    def __init__(self, step: Step, moments, schedule: Schedule, c: int, num: int):
        self.step, self.moments, self.schedule, self.c, self.num = step, moments, schedule, c, num
        self.b = len(step.batch[0])

    def __call__(self) -> None:
        z0 = self.moments(torch.randint(self.num, (self.b,)).tolist()).to(self.step.batch[0])
        if z0.shape[1] == 2 * self.c:
            mean, logvar = z0.chunk(2, 1)
            z0 = mean + (0.5 * logvar.clamp(-30, 20)).exp() * torch.randn_like(mean)
        t, eps = torch.randint(1000, (self.b,), device=z0.device), torch.randn_like(z0)
        self.step.batch = self.schedule.q_sample(z0, t, eps), t, eps, None
        self.step()


def work(name: str, args, row_name: str, b: int) -> Work:
    row, device = released_row(row_name), choose_device()
    f, c = row.first_stage.config.f, row.denoiser.out_channels
    torch.manual_seed(0)
    model = filled(UNet(row.denoiser)).to(device)
    first_stage = build_autoencoder(row.first_stage.config).eval().to(device)
    images = open_dataset("scenes", size=256, num=16)
    pictures = images.images(range(len(images)))  # uint8, as a loader hands them over
    folder = tempfile.TemporaryDirectory()
    began = time.perf_counter()
    cached = encode_dataset(first_stage, images, Path(folder.name), batch_size=4, device=device)
    seconds = (time.perf_counter() - began) / len(cached)

    def encoding(encode):
        @torch.no_grad()
        def moments(indices: list[int]) -> Tensor:
            return encode(to_float(pictures[[i % len(images) for i in indices]]).to(device))
        return moments

    z = torch.randn(b, c, 256 // f, 256 // f, device=device)
    make = partial(Step, batch=(z, torch.zeros(b, dtype=torch.long, device=device), z, None), bf16=z.is_cuda)
    schedule = row.schedule.to(device)
    free = 0 if z.is_cuda else _free_memory()
    need = 20 * sum(p.numel() for p in model.parameters())  # weights, gradients, two moments, averages
    steps = {"ours": (make(model, call_ours, levers=True, average="ours"),
                      lambda indices: cached.__getitems__(indices)["moments"])}
    online = encoding(first_stage.moments)
    steps["ours, encoding each step"] = steps["ours"][0], online
    agreement = agree("cached moments, float16, against encoded", cached.__getitems__([0, 3])["moments"],
                      online([0, 3]).cpu(), 1e-3)
    if args.original:
        theirs = FirstStage(first_stage).eval()
        steps[ORIGINAL] = (make(unet(model), call_original, levers=False, average=ORIGINAL, backward_inside=z.is_cuda),
                           encoding(theirs.moments))
        agreement |= agree("moments, original", steps[ORIGINAL][1]([0, 3]), online([0, 3]), 1e-4)
    try:
        described = describe(model)
    except ValueError as error:
        print(f"  {name}: diffusers is left out, {error}")
        described = None
    if described and not (z.is_cuda or free > (2 + bool(args.original)) * need + 3 * GIB):
        print(f"  {name}: diffusers is left out, {free / GIB:.0f} GiB are free")
    elif described:
        twin = diffusers_twin(first_stage).eval()
        steps["diffusers"] = (make(diffusers_twin(model, 256 // f), call_diffusers, levers=False, average="diffusers"),
                              encoding(lambda x: twin.quant_conv(twin.encoder(x))))
        agreement |= agree("moments, diffusers", steps["diffusers"][1]([0, 3]), online([0, 3]), 1e-4)
    ways = [Way(way, FromPictures(step, moments, schedule, c, len(images)), "ours" if "ours" in way else "peer",
                note=f"{seconds:.3g} s a picture to fill the cache, both flips" if way == "ours" else "")
            for way, (step, moments) in steps.items()]
    ways[0].run.folder = folder  # lives as long as what reads from it
    least = (CUDA if z.is_cuda else CPU)[f]
    forward = count_flops(model, z[:1], torch.zeros(1, dtype=torch.long, device=device))
    return Work(name, ways, [Goal("ours", way.name, least) for way in ways if way.kind == "peer"], n=b,
                unit="pictures", flops=3 * b * forward, dtype="bfloat16" if z.is_cuda else "float32",
                agreement=agreement)


def _free_memory() -> float:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def main() -> None:
    args = parse(__doc__, "pictures", add_option)
    about = find_original(args.original)
    b = 16 if torch.cuda.is_available() else 1
    rows = {f"CelebA-HQ LDM-4 from 256 px pictures, batch {b}": "celeba256",
            f"LSUN-Churches LDM-8 from 256 px pictures, batch {b}": "lsun_churches256"}
    run_table("pictures", [(name, partial(work, name, args, row, b)) for name, row in rows.items()], args, **about)


if __name__ == "__main__":
    main()
