"""Training and sampling throughput of every f at one tier, untrained weights, with the models' FLOPs beside.

`python benchmarks/throughput.py [--tier laptop] [--data-classes 12] [--rounds 5] [--out FILE.json]`. All f take
turns in one process, in shuffled order; the first round warms up and is dropped; medians are reported.
"""

import argparse
import json
import random
import statistics
import time
from pathlib import Path

import torch

from ldmlab.diffusion.conditioning.tokens import ClassEmbedder
from ldmlab.diffusion.samplers import ddim
from ldmlab.diffusion.schedules import scaled_linear
from ldmlab.diffusion.unet.unet import UNet, count_params
from ldmlab.evaluation.cost import count_flops, synchronize
from ldmlab.first_stage.autoencoder import build_autoencoder
from ldmlab.study.config.budgets import TIERS
from ldmlab.study.config.notebooks import FS
from ldmlab.study.config.presets import study_spec
from ldmlab.study.config.specs import denoiser_config
from ldmlab.study.records.record import environment
from ldmlab.study.training.device import choose_device

NUM_STEPS = 10  # DDIM; the rest scales with it


class Bench:
    """One f: a denoiser training step on given latents, a first-stage forward and backward pass, sampling."""

    def __init__(self, f: int, tier: str, num_classes: int, device: torch.device):
        spec = study_spec(f, tier=tier)
        self.f, self.spec, self.device = f, spec, device
        torch.manual_seed(0)
        self.first_stage = build_autoencoder(spec.first_stage.autoencoder).to(device)
        config = denoiser_config(spec.diffusion, num_classes)
        self.unet, self.tau = UNet(config).to(device), ClassEmbedder(num_classes, config.context_dim).to(device)
        self.optimizer = torch.optim.AdamW(self.unet.parameters(), fused=device.type in ("cuda", "cpu"))
        self.schedule, side = scaled_linear().to(device), spec.data.size // f
        self.z0 = torch.randn(spec.diffusion.batch_size, config.in_channels, side, side, device=device)
        self.x = torch.rand(spec.first_stage.batch_size, 3, spec.data.size, spec.data.size, device=device) * 2 - 1
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled="bf16" in spec.diffusion.precision)

    def train(self) -> int:
        n = len(self.z0)
        t = torch.randint(1000, (n,), device=self.device)
        eps = torch.randn_like(self.z0)
        with self.autocast:
            context = self.tau(t % self.tau.num_classes)
            loss = (self.unet(self.schedule.q_sample(self.z0, t, eps), t, context) - eps).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return n

    def train_first_stage(self) -> int:
        if self.f > 1:
            (self.first_stage(self.x).x_rec - self.x).abs().mean().backward()
        return len(self.x)

    @torch.inference_mode()
    def sample(self) -> int:
        y = torch.zeros(self.spec.evaluation.speed_batch, dtype=torch.long, device=self.device)
        context = self.tau(y)
        z_T = self.z0[:1].expand(len(y), -1, -1, -1)
        z = ddim(lambda z, t: self.unet(z, t, context), z_T, self.schedule, NUM_STEPS)
        self.first_stage.decode(z)
        return len(y)

    def flops(self) -> dict[str, float]:
        z, t = self.z0[:1], torch.zeros(1, dtype=torch.long, device=self.device)
        return {"denoiser_mflop": count_flops(self.unet, z, t, self.tau(t)) / 1e6,
                "first_stage_mflop": count_flops(self.first_stage, self.x[:1]) / 1e6 if self.f > 1 else 0.0}


def measure(tier: str, num_classes: int, rounds: int, device: torch.device) -> list[dict]:
    """One row per f: pictures per second of each kind of work, parameters, FLOPs."""
    benches = {f: Bench(f, tier, num_classes, device) for f in FS}
    kinds = ("train", "train_first_stage", "sample")
    rates: dict[tuple[int, str], list[float]] = {(f, kind): [] for f in FS for kind in kinds}
    order = list(rates)
    for round_ in range(rounds + 1):
        random.Random(round_).shuffle(order)
        for f, kind in order:
            synchronize()
            began = time.perf_counter()
            n = getattr(benches[f], kind)()
            synchronize()
            if round_:
                rates[f, kind].append(n / (time.perf_counter() - began))
    return [{"f": f, "denoiser_params": count_params(bench.unet), **bench.flops(),
             "train_images_per_s": statistics.median(rates[f, "train"]),
             "first_stage_images_per_s": statistics.median(rates[f, "train_first_stage"]) if f > 1 else None,
             f"ddim{NUM_STEPS}_images_per_s": statistics.median(rates[f, "sample"])} for f, bench in benches.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tier", default="laptop", choices=TIERS)
    parser.add_argument("--data-classes", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    import pandas as pd

    device = choose_device()
    rows = measure(args.tier, args.data_classes, args.rounds, device)
    print(pd.DataFrame(rows).set_index("f").round(1).to_string())
    if args.out:
        result = {"tier": args.tier, "rounds": args.rounds, "env": environment(device), "rows": rows}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
