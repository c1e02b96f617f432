"""Train PSIM-lab, the shipped student of LPIPS: `python -m ldmlab.weights.train_student --pictures PATH@SIDE ...`.

The student learns the distance of two pictures at each position of each layer, and its gradient, from LPIPS with
VGG16. It starts on distorted pictures. Then, in rounds, it is used as a loss, on pictures and to train small
autoencoders, and learns from what comes out, where it is most often wrong.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ldmlab.atomic import atomic_write
from ldmlab.data.scenes.scene import VERSION
from ldmlab.first_stage.autoencoder import AutoencoderKL
from ldmlab.first_stage.networks import AutoencoderConfig
from ldmlab.perception.files import WEIGHTS, file_hash, freeze
from ldmlab.perception.lab_networks import PsimNet
from ldmlab.perception.losses import LpipsLoss, distance_maps, feature_distance, perceptual_loss
from ldmlab.weights.student_pairs import (
    HELD_OUT,
    TRAINED,
    Pairs,
    distort,
    joined,
    label,
    mean_distance,
    photographs,
    scene_pictures,
)

SEED = 71
NUM_PICTURES = {32: 3_000, 64: 800}  # by size, from each source
NUM_PAIRS = {32: 6_000, 64: 800}  # distorted
NUM_MINED = {32: 1_920, 64: 240}  # by round
NUM_VALIDATION = {32: 400, 64: 100}  # from each source
BATCH = {32: 32, 64: 8}
STEPS = (400, 500)  # on distorted pictures: without and with the gradient
STEPS_ROUND, ROUNDS, STEPS_AUTOENCODER = 900, 2, 120
MAX_LR = 2e-3
FACTORS = (4, 8, 16)  # of the autoencoders


def disagreement(found: Tensor, wanted: Tensor, k: int) -> Tensor:
    """1 - cosine of gradients that are averaged over squares of k px: an autoencoder follows coarse parts first.

    Their squared error would make the student's gradient, and with it its distances, too small.
    """
    found, wanted = (F.avg_pool2d(g, k).flatten(1) for g in (found, wanted))
    return 1 - F.cosine_similarity(found, wanted).mean()


def mistakes(net: PsimNet, pairs: Pairs, scales: list[float], gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Mean errors: of the root of the maps, by their mean; of the distance's logarithm, both squared; of its gradient.

    The gradient's is `disagreement` over three scales, and 0 without `gradient`, which saves half of the time.
    """
    y = pairs.y.clone().requires_grad_(gradient)
    maps = distance_maps(net, pairs.x, y)
    map_errors = [((a + 0.03 * c).sqrt() - (b + 0.03 * c).sqrt()).square().mean() / c
                  for a, b, c in zip(maps, pairs.maps, scales, strict=True)]
    distance = mean_distance(maps)
    # The constant, about the distance of faint noise, keeps pairs that are nearly equal from dominating.
    log_error = ((distance + 0.01).log() - (pairs.distance + 0.01).log()).square().mean()
    gradient_error = torch.zeros(())
    if gradient:
        (found,) = torch.autograd.grad(distance.sum(), y, create_graph=True)
        gradient_error = torch.stack([disagreement(found, pairs.gradient, k) for k in (1, 2, 4)]).mean()
    return torch.stack(map_errors).mean(), log_error, gradient_error


def fit(
    net: PsimNet, pairs: dict[int, list[Pairs]], steps: int, lr: float, generator: torch.Generator, *, gradient: bool
) -> None:
    """Train the student; every fourth batch is of 64 px, and sets of pairs are drawn from alike."""
    scales = [m.mean().item() for m in pairs[32][0].maps]
    net.train().requires_grad_(True)
    params = [*net.parameters()]
    optimizer = torch.optim.Adam(params, lr=lr, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    start, sums = time.perf_counter(), torch.zeros(4)
    for step in range(1, steps + 1):
        size = 64 if step % 4 == 0 else 32
        share = BATCH[size] // len(pairs[size])
        batch = joined([p[torch.randint(len(p.x), (share,), generator=generator)] for p in pairs[size]])
        errors = mistakes(net, batch.mirrored() if step % 2 else batch, scales, gradient)
        loss = 10 * errors[0] + errors[1] + errors[2]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(params, 5.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            net.channel_weights.clamp_(min=0)
        sums += torch.tensor([1.0, *(e.item() for e in errors)])
        if step % 50 == 0 or step == steps:
            maps, distance, slope = (sums[1:] / sums[0]).tolist()
            print(f"step {step}/{steps}  errors of maps {maps:.4f}, distance {distance:.4f}, gradient {slope:.3f}"
                  f"  {time.perf_counter() - start:.0f} s", flush=True)
            sums.zero_()
    freeze(net)


def optimised(net: PsimNet, x: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures that minimise the student's distance to `x`, from distorted ones; each group stops at a random step."""
    parts = []
    for part in x.split(40):
        start = distort(part, TRAINED, generator, two=0.5)[0]
        y, lr = start.clone().requires_grad_(), 0.01 + 0.04 * torch.rand((), generator=generator).item()
        optimizer = torch.optim.Adam([y], lr=lr)
        for _ in range(int(torch.randint(5, 60, (), generator=generator))):
            optimizer.zero_grad()
            feature_distance(net, part, y).sum().backward()
            optimizer.step()
        parts.append(y.detach().clamp(-1, 1))
    return torch.cat(parts)


def reconstructions(
    net: PsimNet, pictures: dict[int, Tensor], num: dict[int, int], steps: int, generator: torch.Generator
) -> dict[int, tuple[Tensor, Tensor]]:
    """Pairs (x, reconstruction) by size, from autoencoders that train on L1 and the student, taken on the way."""
    pairs: dict[int, list[tuple[Tensor, Tensor]]] = {size: [] for size in num}
    for f in FACTORS:
        config = AutoencoderConfig(f=f, z_channels={4: 3, 8: 4, 16: 8}[f], ch=32, patch=4, num_res_blocks=1,
                                   ch_mult={4: (1,), 8: (1, 2), 16: (1, 2, 4)}[f], resolution=32, linear_shortcut=True,
                                   norm_groups=8, mid_attn=False)
        model = AutoencoderKL(config)
        optimizer = torch.optim.Adam(model.parameters(), 4e-3, betas=(0.5, 0.9))
        weight = 0.3 + 2 * torch.rand((), generator=generator).item()
        marks = torch.linspace(30, steps, 8).long().tolist()
        for step in range(1, steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = 4e-3 * min(1.0, step / 50, (steps - step + 1) / steps * 1.5)
            x = pictures[32][torch.randint(len(pictures[32]), (16,), generator=generator)]
            y = model(x, generator).x_rec
            loss = F.l1_loss(y, x) + weight * feature_distance(net, x, y).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if step in marks:
                for size, n in num.items():
                    share = n // len(marks) // len(FACTORS)
                    x = pictures[size][torch.randint(len(pictures[size]), (share,), generator=generator)]
                    with torch.no_grad():
                        pairs[size].append((x, model(x, generator).x_rec.clamp(-1.2, 1.2)))
        print(f"autoencoder f = {f}, weight {weight:.2f}: loss {loss.item():.3f}", flush=True)
    return {size: (torch.cat([x for x, _ in p]), torch.cat([y for _, y in p])) for size, p in pairs.items()}


def rank_correlations(net: PsimNet, teacher: LpipsLoss, x: Tensor, y: Tensor, kinds: list[str]) -> dict[str, float]:
    """Spearman's correlation with the teacher over all pairs, and within each kind."""
    pairs = label(teacher, x, y)
    with torch.no_grad():
        ours = torch.cat([feature_distance(net, a, b) for a, b in zip(x.split(100), y.split(100), strict=True)])
    rows = {"all": list(range(len(x)))} | {k: [i for i, of in enumerate(kinds) if of == k] for k in sorted(set(kinds))}
    return {k: round(float(spearmanr(ours[i], pairs.distance[i]).statistic), 4) for k, i in rows.items()}


def sources_of(args: argparse.Namespace, size: int, num: int, generator: torch.Generator, *, held_out: bool
               ) -> dict[str, Tensor]:
    """Pictures by source: `scenes` and each of `--pictures`."""
    found = {"scenes": scene_pictures(SEED, "validation" if held_out else "train", num, size)}
    for source in args.pictures:
        pictures = photographs(source, size, num, generator, held_out=held_out)
        if pictures is not None:
            found[Path(source).name] = pictures
    return found


def new_student(start: Path | None) -> PsimNet:
    """A student with He's random weights; its first convolutions are those of the file `start`, if there is one."""
    net = PsimNet()
    convs = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    for conv in convs:
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
    state = load_file(start) if start else {}
    names = sorted(name for name in state if name.startswith("stages.") and name.endswith(".weight"))
    for conv, name in zip(convs, names, strict=False):
        conv.load_state_dict({"weight": state[name], "bias": state[name.replace(".weight", ".bias")]})
    return net


def first_pairs(teacher: LpipsLoss, args: argparse.Namespace, size: int) -> tuple[Tensor, Pairs]:
    """Pictures of one size, from all sources, and labelled pairs of them and their distortions."""
    generator = torch.Generator().manual_seed(SEED + size)
    pictures = torch.cat([*sources_of(args, size, NUM_PICTURES[size], generator, held_out=False).values()])
    x = pictures[torch.randint(len(pictures), (NUM_PAIRS[size],), generator=generator)]
    return pictures, label(teacher, x, distort(x, TRAINED, generator, two=0.3)[0])


def validate(net: PsimNet, teacher: LpipsLoss, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Spearman's correlations on held-out pictures under held-out kinds, by source and size, and over all sources."""
    results = {}
    for size, num in NUM_VALIDATION.items():
        generator = torch.Generator().manual_seed(SEED + 1000 + size)
        xs, ys, kinds = [], [], []
        for name, x in sources_of(args, size, num, generator, held_out=True).items():
            y, of = distort(x, HELD_OUT, generator)
            results[f"{name}, {size}px"] = rank_correlations(net, teacher, x, y, of)
            xs.append(x)
            ys.append(y)
            kinds += of
        results[f"all sources, {size}px"] = rank_correlations(net, teacher, torch.cat(xs), torch.cat(ys), kinds)
    return results


@torch.no_grad()
def multiplications(net: PsimNet | LpipsLoss) -> float:
    """Millions of multiplications of one forward pass of a picture of 32 px."""
    forward = net.model.net if isinstance(net, LpipsLoss) else net.stage_maps
    with FlopCounterMode(display=False) as counter:
        forward(torch.zeros(1, 3, 32, 32))
    return counter.get_total_flops() / 2e6


def seconds_of(loss: Callable[[Tensor, Tensor], Tensor], num: int = 16, repeats: int = 5) -> float:
    """Least time of distance and gradient by `y` of `num` pairs of 32 px."""
    generator, times = torch.Generator().manual_seed(0), []
    x, y = torch.rand(2, num, 3, 32, 32, generator=generator) * 2 - 1
    for _ in range(repeats):
        start = time.perf_counter()
        loss(x, y.requires_grad_()).sum().backward()
        times.append(time.perf_counter() - start)
    return min(times)


def cost(net: PsimNet, teacher: LpipsLoss) -> dict[str, float]:
    """How many times LPIPS costs more than the student, at 32 px."""
    seconds = seconds_of(teacher) / seconds_of(partial(feature_distance, net), repeats=40)
    return {"lpips_multiplications": round(multiplications(teacher) / multiplications(net), 1),
            "lpips_seconds": round(seconds, 1)}


def main(arguments: list[str] | None = None) -> None:
    """Train, validate, and write weights and card."""
    parser = argparse.ArgumentParser(prog="python -m ldmlab.weights.train_student", description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", nargs="*", default=[], metavar="PATH@SIDE",
                        help="folders or tar files of pictures, read at SIDE px, beside `scenes`")
    parser.add_argument("--start", type=Path, help="convolutions to start from, as of version 1 (default: random)")
    parser.add_argument("--folder", type=Path, default=WEIGHTS, help="where to write (default: beside this script)")
    args = parser.parse_args(arguments)
    teacher = perceptual_loss("lpips")
    assert isinstance(teacher, LpipsLoss)
    torch.manual_seed(SEED)
    generator, begin = torch.Generator().manual_seed(SEED), time.perf_counter()

    def clock(what: str) -> None:
        print(f"{time.perf_counter() - begin:6.0f} s  {what}", flush=True)

    pictures, pairs = {}, {}
    for size in NUM_PAIRS:
        pictures[size], distorted = first_pairs(teacher, args, size)
        pairs[size] = [distorted]
        clock(f"{len(pictures[size])} pictures and {len(distorted.x)} pairs of {size} px")
    net = new_student(args.start)
    for steps, gradient in zip(STEPS, (False, True), strict=True):
        fit(net, pairs, steps, MAX_LR, generator, gradient=gradient)
    for part in range(ROUNDS):
        half = {size: num // 2 for size, num in NUM_MINED.items()}
        made = reconstructions(net, pictures, half, STEPS_AUTOENCODER, generator)
        for size, num in half.items():
            x = pictures[size][torch.randint(len(pictures[size]), (num,), generator=generator)]
            x, y = torch.cat([made[size][0], x]), torch.cat([made[size][1], optimised(net, x, generator)])
            mined = label(teacher, x, y)
            pairs[size] = [pairs[size][0], joined([*pairs[size][1:], mined])]
            with torch.no_grad():
                ours = feature_distance(net, x, y)
            print(f"mined at {size} px: teacher {mined.distance.mean():.3f}, student {ours.mean():.3f}", flush=True)
        clock(f"round {part + 1} mined")
        fit(net, pairs, STEPS_ROUND, MAX_LR, generator, gradient=True)
    seconds = time.perf_counter() - begin
    write(net, args, {"spearman_with_lpips": validate(net, teacher, args), "cost_at_32px": cost(net, teacher)}, seconds)


def write(net: PsimNet, args: argparse.Namespace, measured: dict[str, Any], seconds: float) -> None:
    """Write weights and card."""
    path = args.folder / "psim-lab.safetensors"
    atomic_write(path, save({key: value.contiguous() for key, value in net.state_dict().items()}))
    card = {
        "name": "psim-lab",
        "version": 2,
        "teacher": "LPIPS v0.1, VGG16",
        "task": "LPIPS of distorted and reconstructed pictures at each position of each layer, and its gradient",
        "data": ["scenes", *(Path(source).name for source in args.pictures)],
        "scenes_version": VERSION,
        "started_from": file_hash(args.start) if args.start else "random",
        "num_params": sum(p.numel() for p in net.parameters()),
        "dim": net.dim,
        "seed": SEED,
        "steps": sum(STEPS) + ROUNDS * STEPS_ROUND,
        **measured,
        "training_seconds": round(seconds),
        "torch": torch.__version__,
        "sha256": file_hash(path),
    }
    atomic_write(path.with_suffix(".json"), (json.dumps(card, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
