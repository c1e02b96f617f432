"""The report of notebook 20_report, from records alone: coverage, figures, tables beside the paper's, claims.

Nothing is trained or scored. Missing records cause no errors; the command that makes them is printed instead.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ldmlab.claims.claims import frame
from ldmlab.claims.judging import SUPPORTED, Verdict, ledger
from ldmlab.figures.index import DRAWINGS, Drawing
from ldmlab.paper import numbers as paper
from ldmlab.study.config.budgets import is_smoke
from ldmlab.study.config.data_names import labels_of
from ldmlab.study.config.notebooks import FS, NOTEBOOKS
from ldmlab.study.config.presets import study_spec
from ldmlab.study.records.compare import commits, comparison_key, data_name, device_of, grouped, spec_of, throughput
from ldmlab.study.records.record import Record, environment, load_records, now, save_figure
from ldmlab.study.training.device import choose_device


class Report:
    """All records of one data set and tier, for tables, figures and verdicts on the paper's claims.

    `params` are those of notebook 20_report: `size` = 0 takes the size of most records, `tier` = "auto" the tier of
    most records of the data, laptop if there are none. With `quiet` nothing is printed.
    """

    def __init__(self, notebook: str, params: dict[str, Any], quiet: bool = False):
        self.notebook, self.started, self._clock = notebook, now(), time.monotonic()
        self.given = str(params["data"])
        tier, size, names = params["tier"], params["size"], labels_of(self.given)
        found = [r for name in NOTEBOOKS if name != notebook for r in load_records(name) if data_name(r) in names]
        data = _most([data_name(r) for r in found], Path(self.given).stem)
        if tier == "auto":
            tier = _most([r.params["tier"] for r in found if not is_smoke(r.params["tier"])], "laptop")
        found = [r for r in found if r.params["tier"] == tier]
        size = size or _most([r.params["size"] for r in found], study_spec(1, tier=tier).data.size)
        self.records = [r for r in found if r.params["size"] == size]
        self.params = {"data": data, "size": size, "tier": tier}
        if not quiet:
            print(f"{notebook}: {len(self.records)} records of {data} at {size} px, tier {tier}", flush=True)

    @property
    def about(self) -> str:
        """Data, size, tier, number of records and commits, in words for the small print."""
        p, made = self.params, f" git {commits(self.records)}." if self.records else ""
        return f"{p['data']} at {p['size']} px, tier {p['tier']}; {len(self.records)} records.{made}"

    def of(self, notebook: str) -> list[Record]:
        """The records of one notebook."""
        return [record for record in self.records if record.notebook == notebook]

    def comparable(self, drawing: Drawing) -> list[Record]:
        """The largest group of comparable records that have the drawing's metric; [] if there are none."""
        groups: dict[tuple, list[Record]] = {}
        for record in self.of(drawing.notebook):
            if drawing.metric in record.metrics or drawing.metric in record.curves:
                key = tuple(comparison_key(record, drawing.metric).values())
                groups.setdefault((record.params["f"] if drawing.per_f else 0, *key), []).append(record)
        return max(groups.values(), key=len, default=[])

    def figure(self, name: str) -> Figure | None:
        """Draw one of `DRAWINGS`; if there are no records for it, print how to get them and return None."""
        drawing = DRAWINGS[name]
        records = self.comparable(drawing)
        if not records:
            print(f"no figure for {drawing.shows}: no record of {drawing.notebook} has its metric. To get one:\n"
                  f"  {self.command(drawing.notebook)}")
            return None
        try:
            return drawing.draw(records)
        except (ValueError, KeyError) as error:
            print(f"no figure for {drawing.shows} from {len(records)} records of {drawing.notebook}: {error}")
            return None

    def keep(self, name: str, fig: Figure) -> Figure:
        """Write a figure to results/figures/ and return it for display."""
        save_figure(fig, name, *(self.params[key] for key in ("data", "tier", "size")))
        return fig

    def command(self, notebook: str, f: int = 8, reg: str = "kl", seed: int = 0) -> str:
        """The papermill command that makes a record; only parameters other than the defaults are given."""
        if notebook not in NOTEBOOKS:
            return f"{notebook} is no notebook of this version"
        values = {"f": f, "reg": reg, "data": self.given, "size": self.params["size"], "tier": self.params["tier"],
                  "seed": seed}
        plain = {"f": None, "reg": "kl" if f > 1 else reg, "data": "scenes", "seed": 0,
                 "size": study_spec(1, tier=self.params["tier"]).data.size}
        options = " ".join(f"-p {key} {value}" for key, value in values.items()
                           if key in NOTEBOOKS[notebook].parameters and value != plain.get(key))
        return f"papermill notebooks/{notebook}.ipynb out.ipynb {options}"

    def missing(self) -> pd.DataFrame:
        """The records that the claims need and that do not exist, one per row with the command that makes it."""
        rows = []
        for name, row in NOTEBOOKS.items():
            if not row.wanted:
                continue
            there = Counter((r.params["f"], r.params.get("reg", "kl"), r.params.get("seed", 0))
                            for r in self.of(name))
            rows += [{"notebook": name, "f": f, "reg": reg, "seed": seed,
                      "command": self.command(name, f, reg, seed)}
                     for seed in range(row.seeds) for f, reg in row.wanted if not there[f, reg, seed]]
        return pd.DataFrame(rows, columns=["notebook", "f", "reg", "seed", "command"])

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """A verdict on every claim; at tier smoke without evidence, since its numbers are no results."""
        if is_smoke(self.params["tier"]):
            return ledger(self.params["data"], "laptop", [])
        return ledger(self.params["data"], self.params["tier"], self.records)

    def environments(self) -> pd.DataFrame:
        """Device, software and commits of the records, with their number and hours."""
        by_place: dict[tuple, list[Record]] = {}
        for r in self.records:
            place = (device_of(r), r.env.get("torch"), r.env.get("python"), r.env.get("platform"))
            by_place.setdefault(place, []).append(r)
        rows = [{"device": device, "torch": torch, "python": python, "system": system, "records": len(records),
                 "hours": round(sum(r.wall_s for r in records) / 3600, 2), "commits": commits(records)}
                for (device, torch, python, system), records in by_place.items()]
        return pd.DataFrame(rows, columns=["device", "torch", "python", "system", "records", "hours", "commits"])

    def new_record(self, findings: int) -> Record:
        """The report's own record: verdict, effect, runs and power of every claim; `findings` of the linter."""
        record = Record(self.notebook, "report", self.params, started=self.started,
                        env=environment(choose_device("cpu")))
        record.inputs = {f"{r.notebook}/{r.file_name}": r.started for r in self.records}
        for v in self.verdicts:
            record.metrics[f"claim {v.claim.id}"] = {
                "verdict": v.verdict, "uncorrected": v.raw, "value": v.effect,
                "interval": v.interval and list(v.interval), "runs": v.runs, "scores": v.scores,
                "samplers": v.samplers, "level": v.p, "power": v.power}
        record.metrics["records"] = {"value": len(self.records), "unit": "1"}
        record.metrics["contradictions in the paper"] = {"value": findings, "unit": "1"}
        return record

    def finish(self, record: Record) -> Path:
        """Save the report's record."""
        record.wall_s = round(time.monotonic() - self._clock, 1)
        path = record.save()
        print(f"record: {path}", flush=True)
        return path


def _most(values: Sequence[Any], otherwise: Any) -> Any:
    return Counter(values).most_common(1)[0][0] if values else otherwise


# --- The paper's numbers beside ours ----------------------------------------------------------------------------------


def first_stages(records: Sequence[Record]) -> pd.DataFrame:
    """Tab. 8 beside ours, means over seeds; R-FID and rKD-EffNet are different scales."""
    ours, rows = {(s.f, s.reg): s for s in grouped(records)}, []
    for reg in ("kl", "vq"):
        for row in paper.first_stages(reg):
            mean = {m: _mean(ours.get((row.f, reg)), m) for m in ("psnr", "ssim", "rkd_effnet")}
            rows.append({"model": f"{reg.upper()}-f{row.f}", "PSNR, paper": row.psnr, "PSNR, ours": mean["psnr"],
                         "SSIM, paper": row.ssim, "SSIM, ours": mean["ssim"], "R-FID, paper": row.r_fid,
                         "rKD-EffNet, ours": mean["rkd_effnet"],
                         "seeds": len(ours[row.f, reg].runs) if (row.f, reg) in ours else 0})
    return pd.DataFrame(rows).set_index("model").round(2)


def models(records: Sequence[Record]) -> pd.DataFrame:
    """Tab. 13 beside ours: parameters, batch size and steps of the denoisers of the sweep over f."""
    ours = {s.f: s for s in grouped(records) if s.reg != "vq"}
    rows = []
    for name, row in paper.table("Tab. 13").items():
        s = ours.get(row["f"])
        plan = spec_of(s).diffusion if s else None
        rows.append({"model": name, "parameters, paper": row["num_params"], "parameters, ours": _mean(s, "num_params"),
                     "batch, paper": row["batch_size"], "batch, ours": plan and plan.batch_size,
                     "steps, paper": row["num_steps"], "steps, ours": plan and plan.num_steps,
                     "KD-EffNet, ours": _mean(s, "kd_effnet"), "seeds": len(s.runs) if s else 0})
    return pd.DataFrame(rows).set_index("model").convert_dtypes().round(2)


def efficiency(records: Sequence[Record]) -> pd.DataFrame:
    """Tab. 6 beside ours: speed-up over LDM-1 in training and sampling; ours are KL runs on the most used device."""
    here = _most([device_of(r) for r in records], None)
    runs = {s.f: s.runs for s in grouped([r for r in records if device_of(r) == here]) if s.reg != "vq"}
    theirs = paper.table("Tab. 6")

    def rate(f: int, read: Callable[[Record], float | None]) -> float | None:
        values = [value for r in runs.get(f, ()) if (value := read(r))]
        return float(np.mean(values)) if values else None

    def factor(f: int, read: Callable[[Record], float | None]) -> float | None:
        fast, slow = rate(f, read), rate(1, read)
        return fast / slow if fast and slow else None

    def ratio(metric: str) -> float:
        return theirs["LDM-4 KL"][metric] / theirs["LDM-1"][metric]

    def steps_per_s(r: Record) -> float | None:
        return r.curves["train_s"][-1][0] / r.curves["train_s"][-1][1] if r.curves.get("train_s") else None

    rows = [{"model": f"LDM-{f}", "training, paper": ratio("train_images_per_s") if f == 4 else None,
             "training, ours": factor(f, steps_per_s), "sampling, paper": ratio("images_per_s") if f == 4 else None,
             "sampling, ours": factor(f, throughput)} for f in FS[1:]]
    return pd.DataFrame(rows).set_index("model").astype(float).round(2)


def _mean(s: Any, metric: str) -> float | None:
    return float(s.values(metric).mean()) if s is not None and len(s.values(metric)) else None


# --- In words ---------------------------------------------------------------------------------------------------------


def explained(verdicts: Sequence[Verdict]) -> list[str]:
    """One sentence per claim that is not supported: what was measured, and the reason."""
    rows, said = frame(verdicts), []
    for v in verdicts:
        if v.verdict == SUPPORTED:
            continue
        row = rows.loc[v.claim.id]
        found = (f"{row['effect of']} is {row['effect']}, 95 % interval {row['interval']}, against a threshold of "
                 f"{row['threshold']} ({v.claim.reason})" if v.effect is not None else "nothing was measured")
        basis = f"; it rests on {v.runs} ({v.basis})" if v.runs else ""
        said.append(f"{v.claim.id} [{row['place']}], {v.verdict}: \"{v.claim.statement}\" "
                    f"{found[0].upper()}{found[1:]}: {v.why}{basis}.")
    return said

