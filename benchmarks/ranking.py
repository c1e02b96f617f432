"""The ranking suite: which orders of pictures, known by construction, each metric of the project keeps.

`python benchmarks/ranking.py --data scenes@32 scenes@64 pictures.tar@64 [--num N] [--num-train M] [--write]`. Each set
gives N pictures for every level and M others as reference. With `--write`, results/ranking/ gets the numbers, a figure
of verdicts and a sheet of one picture at every level, for each set. LPIPS and KID are taken where their networks are at
hand (`python -m ldmlab fetch lpips`). With 512 pictures a set takes about 10 minutes on two processors.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from ldmlab.atomic import atomic_write
from ldmlab.data.images import open_dataset, to_float
from ldmlab.evaluation.inception import InceptionNet
from ldmlab.evaluation.ranking.families import Material
from ldmlab.evaluation.ranking.orders import pair_metrics, rank, set_metrics
from ldmlab.experiments.metric_ranking import PREFIX, example_rows, ranking_entries
from ldmlab.figures.pictures import picture_grid
from ldmlab.figures.ranking import draw_orders
from ldmlab.perception.lab_networks import feature_net
from ldmlab.perception.losses import LpipsLoss, perceptual_loss

OUT = Path(__file__).parents[1] / "results" / "ranking"


def material_of(source: str, num: int, num_train: int, seed: int) -> tuple[str, Material]:
    """(name, pictures) of NAME_OR_PATH@SIZE; those of a set without a validation split are drawn from all."""
    name, _, size = source.rpartition("@")
    held_out = open_dataset(name, size=int(size), split="validation")
    train = open_dataset(name, size=int(size), num=num_train if name == "scenes" else None)
    generator = torch.Generator().manual_seed(seed)
    rows, rows_train = (torch.randperm(len(images), generator=generator)[:most].tolist()
                        for images, most in ((held_out, num), (train, num_train)))
    labels = held_out.labels()[torch.tensor(rows)] if held_out.num_classes > 1 else None
    material = Material(to_float(held_out.images(rows)), to_float(train.images(rows_train)), labels, seed=seed)
    return f"{Path(name).stem}, {size} px", material


def networks() -> tuple[dict[str, Any], dict[str, Any]]:
    """(of sets, of pairs): all that are at hand."""
    nets: dict[str, Any] = {name: feature_net(name) for name in ("effnet", "fd-lab", "referee")}
    losses: dict[str, Any] = {"PSIM-lab": perceptual_loss("student")}
    for found, name, load in ((nets, "inception", InceptionNet), (losses, "LPIPS-Alex", lambda: LpipsLoss("alex")),
                              (losses, "LPIPS-VGG", lambda: LpipsLoss("vgg"))):
        try:
            found[name] = load()
        except FileNotFoundError as error:
            print(f"no {name}: {error}", flush=True)
    return nets, losses


def main() -> None:
    """Rank, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", nargs="+", default=["scenes@32"], metavar="NAME_OR_PATH@SIZE")
    parser.add_argument("--num", type=int, default=512)
    parser.add_argument("--num-train", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    nets, losses = networks()
    hashes = {name: net.weights_hash for name, net in (nets | losses).items()}
    for source in args.data:
        name, material = material_of(source, args.num, args.num_train, args.seed)
        start = time.perf_counter()
        metrics = set_metrics(list(nets), len(material.true)) + pair_metrics(losses, ("PSIM-lab", "LPIPS-VGG"))
        entries = ranking_entries(material, metrics, rank(material, metrics, nets), hashes)
        about = f"{name}: n = {len(material.true)} against {len(material.train)} training pictures, seed {args.seed}."
        orders: dict[str, dict[str, Any]] = {}
        for key, entry in entries.items():
            metric, _, family = key.removeprefix(PREFIX).partition(", ")
            orders.setdefault(metric, {})[family] = entry
            verdict = {1: "kept", 0: "undecided", -1: "BROKEN"}[entry["value"]]
            print(f"{family:34}{entry['name']:14}{verdict:10}", " ".join(f"{v:9.3f}" for v in entry["values"]))
        print(f"{about} {time.perf_counter() - start:.0f} s\n", flush=True)
        if args.write:
            stem = name.replace(", ", "-").replace(" ", "")
            content = {"about": about, "networks": hashes, "orders": entries}
            atomic_write(OUT / f"{stem}.json", (json.dumps(content, indent=1) + "\n").encode())
            draw_orders(orders, about).savefig(OUT / f"{stem}.png", dpi=110)
            picture_grid(example_rows(material, 0), caption=f"One picture at the levels of each family, the true one "
                         f"first. {about}").savefig(OUT / f"{stem}-pictures.png", dpi=90)


if __name__ == "__main__":
    main()
