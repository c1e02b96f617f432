"""Train the judge on `scenes` alone: `python -m ldmlab.weights.train_judge`.

It is trained on rendered pictures, flipped at random (left and right are exchanged in the targets); half of a batch is
degraded in the manner of a weak first stage: blurred by down- and upsampling, with some noise and JPEG. Nothing is
downloaded. A run takes about twelve minutes on one core and overwrites `judge.safetensors`
(half precision) and `judge.json`.
"""

import argparse
import json
import time
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from ldmlab.atomic import atomic_write
from ldmlab.data.annotations.annotation import Box
from ldmlab.data.images import to_float
from ldmlab.data.scenes.captions import ATTRIBUTES, parse_caption
from ldmlab.data.scenes.scene import VERSION, render_scene
from ldmlab.evaluation.distortions import degrade
from ldmlab.evaluation.judge import SIZE, Judge, JudgeNet, caption_fulfilment, layout_scores
from ldmlab.perception.files import WEIGHTS, file_hash, freeze
from ldmlab.perception.lab_networks import fold_batchnorm

SEED, STEPS, BATCH, MAX_LR = 53, 1500, 128, 3e-3
NUM_TRAIN, NUM_VAL = 40_000, 2_000
TASK = "what a caption states, by kind; class of every pixel; half of the pictures spoiled"


class Pictures(NamedTuple):
    """Pictures with label maps, attributes, captions and boxes."""

    image: Tensor  # (n, 3, s, s) uint8
    regions: Tensor  # (n, s, s) uint8
    answers: Tensor  # (n, kinds) int64: index into the kind's ATTRIBUTES; one past the last: not stated
    captions: list[str]
    boxes: list[tuple[Box, ...]]


def attribute_indices(caption: str) -> list[int]:
    """The attributes of a caption as indices, in the order of ATTRIBUTES; one past the last where not stated."""
    stated = parse_caption(caption)
    return [answers.index(stated[kind]) if kind in stated else len(answers) for kind, answers in ATTRIBUTES.items()]


def render(split: str, num: int) -> Pictures:
    """Render pictures 0 to num - 1 of a split of `scenes`."""
    scenes = [render_scene(SEED, split, index, SIZE) for index in range(num)]
    return Pictures(
        torch.stack([s.image for s in scenes]),
        torch.stack([s.segmentation for s in scenes]),
        torch.tensor([attribute_indices(s.caption) for s in scenes]),
        [s.caption for s in scenes],
        [s.boxes for s in scenes],
    )


def degrade_as_reconstructed(x: Tensor, generator: torch.Generator) -> Tensor:
    """Degrade pictures in [-1, 1]: down- and upsampling by 1.2 to 4, noise, JPEG; a random strength per quarter."""
    parts = []
    for part in x.tensor_split(4):
        factor, noise, jpeg = torch.rand(3, generator=generator).tolist()
        small = round(SIZE / (1.2 + 2.8 * factor))
        y = F.interpolate(part, (small, small), mode="bilinear", antialias=True)
        y = F.interpolate(y, part.shape[2:], mode="bicubic").clamp(-1, 1)
        seed = int(torch.randint(2**31, (), generator=generator))
        y = degrade(y, "noise", 0.1 * noise, seed)
        parts.append(degrade(y, "jpeg", 30 + 120 * jpeg) if jpeg < 0.5 else y)
    return torch.cat(parts)


def mirror(x: Tensor, regions: Tensor, answers: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Flip the chosen pictures horizontally, with their label maps and relations."""
    kind, names = list(ATTRIBUTES).index("relation"), ATTRIBUTES["relation"]
    left, right = names.index("left"), names.index("right")
    relation = answers[:, kind]
    swapped = torch.where(relation == left, right, torch.where(relation == right, left, relation))
    answers = answers.clone()
    answers[:, kind] = torch.where(chosen, swapped, relation)
    x = torch.where(chosen[:, None, None, None], x.flip(3), x)
    return x, torch.where(chosen[:, None, None], regions.flip(2), regions), answers


def fit(data: Pictures, steps: int) -> JudgeNet:
    """Train a network; the forward pass runs in bfloat16, twice as fast on CPUs with support for it."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    net = JudgeNet().train().to(memory_format=torch.channels_last)
    # Objects are small, so their pixels have three times the weight of others.
    weights = torch.where(net.groups.sum(0) > 0, 3.0, 1.0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=MAX_LR, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, MAX_LR, total_steps=steps, pct_start=0.2)
    start = time.perf_counter()
    for step in range(1, steps + 1):
        rows = torch.randint(len(data.image), (BATCH,), generator=generator)
        x, regions, answers = to_float(data.image[rows]), data.regions[rows].long(), data.answers[rows]
        x, regions, answers = mirror(x, regions, answers, torch.rand(BATCH, generator=generator) < 0.5)
        x = torch.cat([degrade_as_reconstructed(x[: BATCH // 2], generator), x[BATCH // 2 :]])
        with torch.autocast("cpu", torch.bfloat16):
            maps, logits = net(x.contiguous(memory_format=torch.channels_last))
        map_loss = F.cross_entropy(maps, regions, weights)
        losses = [F.cross_entropy(logits[kind], answers[:, i]) for i, kind in enumerate(ATTRIBUTES)]
        loss = map_loss + 0.3 * sum(losses)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 2.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps:
            seconds = time.perf_counter() - start
            each = " ".join(f"{kind} {value:.2f}" for kind, value in zip(ATTRIBUTES, losses, strict=True))
            print(f"step {step}/{steps}  map {map_loss:.3f}  {each}  {seconds:.0f} s", flush=True)
    return net


@torch.inference_mode()
def validate(judge: Judge, pictures: Pictures) -> dict[str, dict[str, float]]:
    """The judge's scores on held-out rendered pictures, "clean" and "spoiled" (degraded); 1 is perfect.

    Beside the scores of `judge`: `pixels`, the share of pixels labelled correctly, and `unstated`, the share of
    attributes missing in the captions that the judge predicts as missing.
    """
    clean, generator = to_float(pictures.image), torch.Generator().manual_seed(SEED)
    degraded = torch.cat([degrade_as_reconstructed(part, generator) for part in clean.split(BATCH // 2)])
    accuracy = {}
    for name, x in {"clean": clean, "spoiled": degraded}.items():
        predicted = judge.predict(x)
        scores = caption_fulfilment(predicted, pictures.captions) | layout_scores(predicted, pictures.boxes)
        values = {key: score.value for key, score in scores.items()}
        values["pixels"] = (predicted.regions == pictures.regions).float().mean().item()
        found = torch.stack([predicted.answers[kind].argmax(1) for kind in ATTRIBUTES], 1)
        unstated = pictures.answers == torch.tensor([len(answers) for answers in ATTRIBUTES.values()])
        values["unstated"] = (found == pictures.answers)[unstated].float().mean().item()
        accuracy[name] = {key: round(value, 4) for key, value in values.items()}
    return accuracy


def write(net: JudgeNet, steps: int, seconds: float, folder: Path = WEIGHTS) -> None:
    """Fold BatchNorms, round to half precision, validate the result, and write weights and card."""
    fold_batchnorm(freeze(net).to(memory_format=torch.contiguous_format))
    state = {key: value.half().contiguous() for key, value in net.state_dict().items()}
    net.load_state_dict(state)
    accuracy = validate(Judge(net), render("validation", NUM_VAL))
    path = atomic_write(folder / "judge.safetensors", save(state))
    card = {
        "name": "judge",
        "task": TASK,
        "data": {f"scenes {SIZE}px": NUM_TRAIN},
        "scenes_version": VERSION,
        "num_params": sum(p.numel() for p in net.parameters()),
        "seed": SEED,
        "steps": steps,
        "batch": BATCH,
        "validation_pictures": NUM_VAL,
        "validation_accuracy": accuracy,
        "training_seconds": round(seconds),
        "torch": torch.__version__,
        "sha256": file_hash(path),
    }
    atomic_write(path.with_suffix(".json"), (json.dumps(card, indent=2) + "\n").encode())
    print(json.dumps(card, indent=2))


def main(arguments: list[str] | None = None) -> None:
    """Train and validate the judge, and write its weights and card."""
    parser = argparse.ArgumentParser(prog="python -m ldmlab.weights.train_judge", description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=WEIGHTS, help="where to write (default: beside this script)")
    parser.add_argument("--steps", type=int, default=STEPS, help="number of steps (default: %(default)s)")
    args = parser.parse_args(arguments)
    data = render("train", NUM_TRAIN)
    print(f"{NUM_TRAIN} pictures rendered", flush=True)
    begin = time.perf_counter()
    net = fit(data, args.steps)
    write(net, args.steps, time.perf_counter() - begin, args.folder)


if __name__ == "__main__":
    main()
