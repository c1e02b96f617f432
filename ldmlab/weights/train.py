"""Train a feature network of ldmlab on `scenes`: `python -m ldmlab.weights.train {fd-lab,referee}`.

Each network learns to classify pictures and a task of its own, with its own pictures and seed:

- `fd-lab` predicts the objects in each quarter, and the strength of blur, noise or JPEG, so that its embedding is
  sensitive to degradations;
- `referee` predicts by how many quarter turns a picture was rotated, and its fine-scale statistics; it is trained
  without degraded pictures.

Nothing is downloaded. A run takes about five minutes on one core and overwrites
`<name>.safetensors` and `<name>.json`.
"""

import argparse
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from ldmlab.atomic import atomic_write
from ldmlab.data.images import to_float
from ldmlab.data.scenes.scene import CLASSES, LABELS, VERSION, render_scene
from ldmlab.evaluation.distortions import degrade
from ldmlab.perception.files import WEIGHTS, file_hash, freeze
from ldmlab.perception.lab_networks import ARCHITECTURES, FeatureNet, fold_batchnorm

SIZES = {32: (16_000, 96), 64: (4_000, 32)}  # number of training pictures, batch size
NUM_VAL = 1_000
MAX_LR = 4e-3


class Recipe(NamedTuple):
    """Seed and number of steps of a training, and a description of the task for the card."""

    seed: int
    steps: int
    task: str


RECIPES = {
    "fd-lab": Recipe(23, 700, "class of the picture, things in each quarter, strength of blur, noise or JPEG"),
    "referee": Recipe(37, 1600, "class of the picture, quarter turns, fine-scale statistics"),
}


class Pictures(NamedTuple):
    """Pictures with their classes and label maps."""

    image: Tensor  # (n, 3, s, s) uint8
    label: Tensor  # (n,) int64
    regions: Tensor  # (n, s, s) uint8


def render(seed: int, split: str, num: int, size: int) -> Pictures:
    """Render pictures 0 to num - 1 of a split of `scenes`."""
    scenes = [render_scene(seed, split, index, size) for index in range(num)]
    return Pictures(
        torch.stack([s.image for s in scenes]),
        torch.tensor([s.label for s in scenes]),
        torch.stack([s.segmentation for s in scenes]),
    )


Batch = tuple[Tensor, Tensor, Tensor]  # pictures, labels, label maps


def batches(data: dict[int, Pictures], steps: int, generator: torch.Generator) -> Iterator[Batch]:
    """Random batches, flipped and shifted by up to an eighth at random; every fourth is of 64 px, the others of 32."""
    for step in range(steps):
        size = 64 if step % 4 == 3 else 32
        pictures, batch = data[size], SIZES[size][1]
        chosen = torch.randint(len(pictures.label), (batch,), generator=generator)
        x, regions = to_float(pictures.image[chosen]), pictures.regions[chosen][:, None].float()
        pad = size // 8
        dy, dx = torch.randint(2 * pad + 1, (2,), generator=generator).tolist()
        mirrored = torch.rand(batch, 1, 1, 1, generator=generator) < 0.5
        both = torch.cat([x, regions], 1)
        both = F.pad(torch.where(mirrored, both.flip(3), both), [pad] * 4, mode="reflect")
        both = both[:, :, dy : dy + size, dx : dx + size]
        yield both[:, :3].contiguous(), pictures.label[chosen], both[:, 3].long()


class Task(nn.Module, ABC):
    """The additional training task of a feature network: its input, targets, loss and accuracy."""

    @abstractmethod
    def prepare(self, x: Tensor, regions: Tensor, generator: torch.Generator) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The network's input made from pictures `x` (n, 3, h, w) and their label maps, and the targets."""

    @abstractmethod
    def loss(self, net: FeatureNet, maps: list[Tensor], targets: tuple[Tensor, ...]) -> Tensor:
        """The loss of the task, added to that of the class."""

    @abstractmethod
    def accuracy(self, net: FeatureNet, maps: list[Tensor], targets: tuple[Tensor, ...]) -> Tensor:
        """Share of correct predictions, in [0, 1]."""


class Degraded(Task):
    """Task of `fd-lab`: strength of blur, noise or JPEG, predicted from the embedding; objects in each quarter."""

    KINDS = ("blur", "noise", "jpeg")

    def __init__(self, net: FeatureNet):
        super().__init__()
        self.amounts, self.things = nn.Linear(net.dim, len(self.KINDS)), nn.Conv2d(net.widths[-1], len(LABELS), 1)

    def prepare(self, x: Tensor, regions: Tensor, generator: torch.Generator) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Degrade half of the batch: each kind twice, at two random strengths, 0 to 1 on a logarithmic scale."""
        amounts, x, share = torch.zeros(len(x), len(self.KINDS)), x.clone(), len(x) // 12
        for part in range(6):
            i, rows = part % 3, slice(part * share, (part + 1) * share)
            t = torch.rand((), generator=generator).item()
            strength = (0.4 * 6**t, 0.03 * 20**t, round(90 * 0.06**t))[i]
            seed = int(torch.randint(2**31, (), generator=generator))
            x[rows], amounts[rows, i] = degrade(x[rows], self.KINDS[i], strength, seed), 0.2 + 0.8 * t
        seen = F.one_hot(regions, len(LABELS)).permute(0, 3, 1, 2).float()
        return x, (amounts, (F.adaptive_avg_pool2d(seen, 2) > 0.02).float())

    def loss(self, net: FeatureNet, maps: list[Tensor], targets: tuple[Tensor, ...]) -> Tensor:
        amounts, seen = targets
        things = self.things(F.adaptive_avg_pool2d(maps[-1], 2))
        wrong = F.binary_cross_entropy_with_logits(things, seen)
        return 24 * F.mse_loss(self.amounts(net.pool(maps)), amounts) + 4 * wrong

    def accuracy(self, net: FeatureNet, maps: list[Tensor], targets: tuple[Tensor, ...]) -> Tensor:
        things = self.things(F.adaptive_avg_pool2d(maps[-1], 2)) > 0
        return (things == targets[1].bool()).float().mean()


class Rotated(Task):
    """Task of `referee`: number of quarter turns; mean colour, and contrast in three octaves."""

    def __init__(self, net: FeatureNet):
        super().__init__()
        self.turns, self.statistics = nn.Linear(net.dim, 4), nn.Linear(net.dim, 6)

    def prepare(self, x: Tensor, regions: Tensor, generator: torch.Generator) -> tuple[Tensor, tuple[Tensor, ...]]:
        turns = torch.randint(4, (len(x),), generator=generator)
        x = torch.stack([torch.rot90(picture, k, (1, 2)) for picture, k in zip(x, turns.tolist(), strict=True)])
        octaves, level = [], x
        for _ in range(3):
            coarser = F.avg_pool2d(level, 2)
            octaves.append((level - F.interpolate(coarser, scale_factor=2)).std((1, 2, 3)).add(1e-3).log() / 2 + 1)
            level = coarser
        return x, (turns, torch.cat([x.mean((2, 3)), torch.stack(octaves, 1)], 1))

    def loss(self, net: FeatureNet, maps: list[Tensor], targets: tuple[Tensor, ...]) -> Tensor:
        pooled, (turns, statistics) = net.pool(maps), targets
        return F.cross_entropy(self.turns(pooled), turns) + 4 * F.mse_loss(self.statistics(pooled), statistics)

    def accuracy(self, net: FeatureNet, maps: list[Tensor], targets: tuple[Tensor, ...]) -> Tensor:
        return (self.turns(net.pool(maps)).argmax(1) == targets[0]).float().mean()


TASKS: dict[str, type[Task]] = {"fd-lab": Degraded, "referee": Rotated}


def fit(name: str, data: dict[int, Pictures], steps: int) -> tuple[FeatureNet, nn.Linear, Task]:
    """Train a network with its classifier and task; returns all three."""
    torch.manual_seed(RECIPES[name].seed)
    generator = torch.Generator().manual_seed(RECIPES[name].seed)
    net = ARCHITECTURES[name]().train()
    classifier, task = nn.Linear(net.widths[-1], len(CLASSES)), TASKS[name](net)
    params = [p for module in (net, classifier, task) for p in module.parameters()]
    # The learning rate rises during the first fifth of the run, then decays to 0.
    optimizer = torch.optim.AdamW(params, lr=MAX_LR, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, MAX_LR, total_steps=steps, pct_start=0.2)
    start = time.perf_counter()
    for step, (x, label, regions) in enumerate(batches(data, steps, generator), 1):
        x, targets = task.prepare(x, regions, generator)
        maps = net.stage_maps(x)
        class_loss = F.cross_entropy(classifier(maps[-1].mean((2, 3))), label)
        loss = class_loss + task.loss(net, maps, targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps:
            seconds = time.perf_counter() - start
            print(f"step {step}/{steps}  class {class_loss:.3f}  all {loss:.3f}  {seconds:.0f} s", flush=True)
    return net, classifier, task


@torch.inference_mode()
def validate(net: FeatureNet, classifier: nn.Module, task: Task, pictures: Pictures) -> dict[str, float]:
    """Accuracy on held-out pictures: `class`, on undegraded pictures, and `own_task`."""
    generator = torch.Generator().manual_seed(0)
    x = to_float(pictures.image)
    classes = torch.cat([classifier(net.stage_maps(part)[-1].mean((2, 3))).argmax(1) for part in x.split(100)])
    accuracies = []
    for part, regions in zip(x.split(100), pictures.regions.split(100), strict=True):
        inputs, targets = task.prepare(part, regions.long(), generator)
        accuracies.append(task.accuracy(net, net.stage_maps(inputs), targets))
    own = torch.stack(accuracies).mean().item()
    return {"class": round((classes == pictures.label).float().mean().item(), 4), "own_task": round(own, 4)}


@torch.inference_mode()
def standardise(net: FeatureNet, task: Task, pictures: Pictures) -> None:
    """Set mean and standard deviation of the embedding from the task's inputs, so that its entries are standardised.

    For `fd-lab` half of these pictures are degraded, so that entries that respond to noise alone do not dominate. The
    standard deviation has a lower bound, so that constant entries are not amplified.
    """
    generator = torch.Generator().manual_seed(0)
    parts = zip(to_float(pictures.image).split(240), pictures.regions.long().split(240), strict=True)
    raw = torch.cat([net.pool(net.stage_maps(task.prepare(x, regions, generator)[0])) for x, regions in parts])
    std = raw.std(0)
    net.embed_mean.copy_(raw.mean(0))
    net.embed_std.copy_(std.clamp(min=0.1 * std.median().item()))


def main(arguments: list[str] | None = None) -> None:
    """Train one network, validate it, and write its weights and card."""
    parser = argparse.ArgumentParser(prog="python -m ldmlab.weights.train", description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--folder", type=Path, default=WEIGHTS, help="where to write (default: beside this script)")
    parser.add_argument("--steps", type=int, help="number of steps (default: those of the shipped network)")
    args = parser.parse_args(arguments)
    recipe = RECIPES[args.name]
    steps = args.steps or recipe.steps

    begin = time.perf_counter()
    data = {size: render(recipe.seed, "train", num, size) for size, (num, _) in SIZES.items()}
    held_out = {size: render(recipe.seed, "validation", NUM_VAL, size) for size in SIZES}
    rendered = time.perf_counter() - begin
    print(f"{args.name}: pictures rendered in {rendered:.0f} s", flush=True)
    net, classifier, task = fit(args.name, data, steps)
    trained = time.perf_counter() - begin - rendered
    for module in (net, classifier, task):
        freeze(module)
    fold_batchnorm(net)
    standardise(net, task, Pictures(*(tensor[:4800] for tensor in data[32])))
    accuracy = {f"{size}px": validate(net, classifier, task, pictures) for size, pictures in held_out.items()}

    path = args.folder / f"{args.name}.safetensors"
    atomic_write(path, save({key: value.contiguous() for key, value in net.state_dict().items()}))
    card = {
        "name": args.name,
        "task": recipe.task,
        "data": {f"scenes {size}px": num for size, (num, _) in SIZES.items()},
        "scenes_version": VERSION,
        "num_params": sum(p.numel() for p in net.parameters()),
        "dim": net.dim,
        "seed": recipe.seed,
        "steps": steps,
        "validation_accuracy": accuracy,
        "training_seconds": round(trained),
        "torch": torch.__version__,
        "sha256": file_hash(path),
    }
    atomic_write(path.with_suffix(".json"), (json.dumps(card, indent=2) + "\n").encode())
    print(json.dumps(card, indent=2))


if __name__ == "__main__":
    main()
