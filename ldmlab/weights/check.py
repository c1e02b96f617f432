"""Validate the networks of FD: `python -m ldmlab.weights.check --data scenes@32 photographs.tar@64`.

Degrades pictures at increasing strengths and computes Fréchet distances to other, undegraded pictures of the same data.
Under `fd-lab` each curve must increase at every step. `referee`, for comparison, was trained without degraded pictures
and is insensitive to weak noise. Block shuffle is new to both. Writes `degradations.json` and `degradations.png`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from ldmlab.data.images import open_dataset, to_float
from ldmlab.evaluation.distortions import LADDERS, UNITS, degradation_curves, is_increasing
from ldmlab.perception.lab_networks import feature_net

NETWORKS = ("fd-lab", "referee")
MUST_RISE = ("fd-lab",)
LABELS = {"fd-lab": "FD-lab", "referee": "FD-referee"}


def check(source: str, num: int, seed: int) -> dict[str, Any]:
    """Curves of every network on `source`, given as NAME_OR_PATH@SIZE, with up to `num` pictures in each set."""
    name, _, size = source.rpartition("@")
    data = open_dataset(name, size=int(size))
    # Archives may be sorted by class, so both sets are drawn at random.
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tolist()
    n = min(num, len(data) // 2)
    real, reference = (to_float(data.images(order[i * n : (i + 1) * n])) for i in (0, 1))
    curves = {name: degradation_curves(real, reference, feature_net(name), seed=seed) for name in NETWORKS}
    return {
        "data": f"{Path(name).name}, {size} px",
        "fingerprint": data.fingerprint,
        "n_real": n,
        "n_reference": n,
        "protocol": dict(data.protocol),
        "curves": {net: {k: [round(v, 4) for v in c] for k, c in by_kind.items()} for net, by_kind in curves.items()},
        "rises": {net: {k: is_increasing(c) for k, c in by_kind.items()} for net, by_kind in curves.items()},
    }


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Plot the curves, one row per data set and one column per degradation; logarithmic, over three decades."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 2.6 * len(results) + 0.6), layout="constrained")
    axes = figure.subplots(len(results), len(LADDERS), squeeze=False, sharey="row")
    for row, result in zip(axes, results, strict=True):
        for ax, (kind, ladder) in zip(row, LADDERS.items(), strict=True):
            for net, marker in zip(NETWORKS, "os", strict=True):
                ax.plot(result["curves"][net][kind], marker=marker, ms=4, label=LABELS[net])
            ax.set(yscale="log", xlabel=f"{kind}: {UNITS[kind]}")
            ax.set_xticks(range(len(ladder) + 1), ["original", *(f"{s:g}" for s in ladder)])
            ax.grid(alpha=0.3)
        row[0].set_ylabel(f"{result['data']}\nn = {result['n_real']}\n\nFréchet distance")
    axes[0][0].legend()
    figure.savefig(path, dpi=80)


def main(arguments: list[str] | None = None) -> None:
    """Compute and write the curves; SystemExit where one under MUST_RISE does not increase."""
    parser = argparse.ArgumentParser(prog="python -m ldmlab.weights.check", description=__doc__.split("\n")[0])
    parser.add_argument("--data", nargs="+", default=["scenes@32"], metavar="NAME_OR_PATH@SIZE")
    parser.add_argument("--num", type=int, default=2000, help="pictures in each set, at most (default: 2000)")
    parser.add_argument("--folder", type=Path, default=Path("results/perception"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)

    results = [check(source, args.num, args.seed) for source in args.data]
    args.folder.mkdir(parents=True, exist_ok=True)
    record = {
        "ladders": {kind: list(ladder) for kind, ladder in LADDERS.items()},
        "units": UNITS,
        "results": results,
        "seed": args.seed,
        "weights": {name: feature_net(name).weights_hash for name in NETWORKS},
    }
    (args.folder / "degradations.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    draw(results, args.folder / "degradations.png")
    failed = [
        f"{LABELS[net]} on {result['data']}: {kind} {result['curves'][net][kind]}"
        for result in results
        for net, by_kind in result["rises"].items()
        for kind, ok in by_kind.items()
        if net in MUST_RISE and not ok
    ]
    for result in results:
        for net, by_kind in result["curves"].items():
            for kind, curve in by_kind.items():
                print(f"{result['data']:32} {LABELS[net]:10} {kind:8}", " ".join(f"{v:9.3f}" for v in curve))
    if failed:
        raise SystemExit("does not increase:\n" + "\n".join(failed))


if __name__ == "__main__":
    main()
