"""Notebook 16_evaluation: which metrics keep an order of pictures that is known by construction."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ldmlab.data.images import to_float
from ldmlab.evaluation.distortions import degrade
from ldmlab.evaluation.ranking.families import FAMILIES, Levels, Material
from ldmlab.evaluation.ranking.orders import (
    BROKEN,
    KEPT,
    UNDECIDED,
    Order,
    RankedMetric,
    pair_metrics,
    rank,
    set_metrics,
)
from ldmlab.perception.losses import LpipsLoss, perceptual_loss
from ldmlab.study.records.record import Record, as_metrics
from ldmlab.study.runs.run import Run
from ldmlab.study.runs.run_scoring import reconstruction_of
from ldmlab.study.runs.shipped_models import trained_first_stages
from ldmlab.study.training.progress import progress_callback

if TYPE_CHECKING:
    import pandas as pd

NUM, NUM_TRAIN = 256, 1024  # pictures of a level, and of the reference
AT_SMOKE = (16, 32)
SMOKE_FAMILIES = ("blur", "blurred, then no structure", "copies")
VALUE = {KEPT: 1, UNDECIDED: 0, BROKEN: -1}
STRUCTURE = "structure "  # "structure <pictures>, <metric>"
PREFIX = "order "  # of a record's metrics: "order <metric>, <family>"


def material_of(run: Run) -> Material:
    """True pictures of the run, with reconstructions by those of its first stages that are trained, f from 2 on."""
    num, num_train = AT_SMOKE if run.scorer.is_smoke else (NUM, NUM_TRAIN)
    val, train = run.pictures.val, run.pictures.train
    rows = val.subset(num)
    true = to_float(val.images(rows))
    labels = val.labels()[torch.tensor(rows)] if val.num_classes > 1 else None
    return Material(true, to_float(train.images(train.subset(num_train))), labels,
                    {} if run.scorer.is_smoke else _reconstructions(run, true), run.spec.seed)


def _reconstructions(run: Run, true: Tensor) -> Levels:
    found = {}
    for f, first_stage in trained_first_stages(run).items():
        if f > 1:
            rebuild = reconstruction_of(first_stage, run.device)
            found[f"f = {f}"] = torch.cat([rebuild(x).cpu() for x in true.split(128)])
    return found if len(found) > 1 else {}


def metrics_at_hand(run: Run, num: int) -> tuple[list[RankedMetric], dict[str, Any], dict[str, str], list[str]]:
    """(metrics, networks of sets by extractor, hashes of all networks, what was not at hand and why)."""
    nets: dict[str, Any] = {name: run.scorer.net(name) for name in ("effnet", "fd-lab", "referee")}
    missing = []
    try:
        nets["inception"] = run.scorer.inception
    except FileNotFoundError as error:
        missing.append(f"no KID: {error}")
    losses: dict[str, Any] = {"PSIM-lab": perceptual_loss("student")}
    try:
        losses["LPIPS-Alex"] = LpipsLoss("alex")  # that of VGG16, which trains, takes minutes: benchmarks/ranking.py
    except FileNotFoundError as error:
        missing.append(f"no LPIPS-Alex: {error}")
    hashes = {name: net.weights_hash for name, net in (nets | losses).items()}
    metrics = set_metrics(list(nets), num) + pair_metrics(losses, trains=("PSIM-lab",))
    return metrics, nets, hashes, missing


def measure_ranking(run: Run, record: Record) -> None:
    """The order of every metric and family as the record's metrics: 1 kept, 0 undecided, -1 broken, with its values."""
    material = material_of(run)
    metrics, nets, hashes, missing = metrics_at_hand(run, len(material.true))
    families = {name: FAMILIES[name] for name in SMOKE_FAMILIES} if run.scorer.is_smoke else FAMILIES
    with progress_callback("orders of pictures", "families") as progress:
        found = rank(material, metrics, nets, families, progress)
    record.events += missing
    record.protocol |= {"ranked_n": len(material.true), "ranked_n_train": len(material.train)}
    record.metrics |= ranking_entries(material, metrics, found, hashes)


def ranking_entries(
    material: Material, metrics: list[RankedMetric], found: Mapping[str, Mapping[str, Order]],
    hashes: Mapping[str, str],
) -> dict[str, dict[str, Any]]:
    """What a record keeps of `rank`: by metric and family, verdict, level names, values, and differences."""
    entries = {}
    by_key = {metric.key: metric for metric in metrics}
    for family, orders in found.items():
        names = list(FAMILIES[family].make(material))
        for key, order in orders.items():
            metric = by_key[key]
            network = metric.extractor or key.removeprefix("pairs_")
            entries[f"{PREFIX}{key}, {family}"] = {
                "value": VALUE[order.verdict], "unit": "1 kept, 0 undecided, -1 broken", "name": metric.label,
                "n_fake": len(material.true), "levels": names, "values": [round(v, 5) for v in order.values],
                "steps": [[round(v, 5) for v in step] for step in order.steps],
                "claims": FAMILIES[family].loses in metric.sees, "trains": metric.trains,
                **({"network": network, "network_hash": hashes[network]} if network in hashes else {})}
    return entries


# --- The same pictures by several networks ----------------------------------------------------------------------------


def structure_rows(run: Run, samples: Tensor) -> Levels:
    """Pictures with structure and without, by name; not in a known order, unlike those of a family."""
    true = to_float(run.pictures.val.images(run.pictures.val.subset(len(samples))))
    made = {name: FAMILIES[name].make(Material(true, true, seed=run.spec.seed)) for name in (
        "blur", "shuffled patches", "random phases")}
    scale, own = true.shape[-1] / 32, f"reconstructions, {run.first_stage.name}"
    rec = reconstruction_of(run.first_stage, run.device)(true).cpu()
    noise = {f"the same + noise of {std:g}": degrade(rec, "noise", std, run.spec.seed) for std in (0.05, 0.1)}
    return {"true pictures": true, "blurred": made["blur"][f"{scale:g} px"], own: rec, **noise,
            f"samples of {run.spec.name}": samples, "patches of 8 px shuffled": made["shuffled patches"]["8 px"],
            "phases of the spectrum randomised": made["random phases"]["100%"]}


def measure_structure(run: Run, record: Record, samples: Tensor) -> None:
    """KD-EffNet, FD-lab and FD-referee of `structure_rows` against training pictures, with their intervals."""
    for row, x in structure_rows(run, samples).items():
        scores = run.scorer.score(x, ("kd_effnet", "fd_lab", "fd_referee"))
        record.metrics |= as_metrics({f"{STRUCTURE}{row}, {key}": score for key, score in scores.items()})


def structure_table(record: Record) -> "pd.DataFrame":
    """The scores of `measure_structure`, a row for each set of pictures, with intervals."""
    import pandas as pd

    rows: dict[str, dict[str, str]] = {}
    for name, entry in record.metrics.items():
        if name.startswith(STRUCTURE):
            row, _, _ = name.removeprefix(STRUCTURE).rpartition(", ")
            interval = entry.get("interval") or {"low": entry["value"], "high": entry["value"]}
            rows.setdefault(row, {})[entry["name"]] = (
                f"{entry['value']:.3g}  [{interval['low']:.3g}, {interval['high']:.3g}]")
    return pd.DataFrame(rows).T


def example_rows(material: Material, row: int, most: int = 6) -> dict[str, Tensor]:
    """One picture at every level of each family, for a grid."""
    return {family.name: torch.stack([x[row] for x in levels.values()][:most])
            for family in FAMILIES.values() if (levels := family.make(material))}
