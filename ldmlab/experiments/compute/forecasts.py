"""What trainings cost on a machine: floors at its peak, estimates from a minute's measurement, how far these are off.

A floor is the time that a count of operations takes at the peak, which no training reaches. An estimate divides the
same count by the rate that steps like the training's own attained when they were timed.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import log2

import numpy as np
import pandas as pd

from ldmlab.experiments.compute.flops import DAY, Model, planned
from ldmlab.experiments.compute.machine import PUBLISHED, Machine, Measured, Rate, measure_machine
from ldmlab.study.records.compare import data_name, device_of, grouped, spec_of
from ldmlab.study.records.record import Record, environment, load_records
from ldmlab.study.runs.run import Run


def floors(models: Iterable[Model], machines: Sequence[Machine] = PUBLISHED) -> pd.DataFrame:
    """Days of each denoiser's training at each machine's peak, latents given: the least that it can take.

    Models whose training nobody states are left out.
    """
    rows = {m.name: {machine.name: m.training() / machine.flops_per_s / DAY for machine in machines}
            for m in models if m.num_steps}
    return pd.DataFrame(rows).T.rename_axis("days at the peak of")


def forward_floors(models: Iterable[Model], machines: Sequence[Machine] = PUBLISHED, num_bytes: int = 2
                   ) -> pd.DataFrame:
    """Milliseconds of one denoiser call at batch 1: operations at the peak, or weights of `num_bytes` each through
    memory, whichever takes longer."""
    rows = {m.name: {k.name: 1e3 * max(m.costs.denoiser / k.flops_per_s, num_bytes * m.costs.num_params / k.bytes_per_s)
                     for k in machines} for m in models}
    return pd.DataFrame(rows).T.rename_axis("ms a call at batch 1")


@dataclass(frozen=True)
class TimeEstimate:
    """Seconds of a training here: likely, and between the fastest and the slowest rates that were measured for it."""

    seconds: float
    low: float
    high: float


def estimate_time(model: Model, measured: Measured, wide: bool) -> tuple[TimeEstimate, TimeEstimate | None]:
    """Training here of the denoiser, latents given, and of the first stage, None where nobody states its steps.

    `wide` takes the rates at the paper's widths, else those of the tier that was measured, for an f in between by
    interpolation in the logarithms. What is not a step (loading, encoding, scoring) comes on top.
    """
    if wide:
        rates = list(measured.wide.values())
        middle = statistics.geometric_mean(rate.value for rate in rates)
        denoiser = stage = replace(rates[0], value=middle, low=min(rate.low for rate in rates),
                                   high=max(rate.high for rate in rates))
    else:
        denoiser, stage = _between(measured.training, model.f), _between(measured.first_stage, model.f)
    return (_seconds(model.training(), denoiser),
            _seconds(model.first_stage_training, stage) if model.first_stage_steps else None)


def _between(rates: Mapping[int, Rate], f: int) -> Rate:
    fs = sorted(rates)
    at = [log2(k) for k in fs]
    ends = {name: float(np.exp(np.interp(log2(f), at, [np.log(getattr(rates[k], name)) for k in fs])))
            for name in ("value", "low", "high")}
    return replace(rates[fs[0]], **ends)


def _seconds(work: float | int, rate: Rate) -> TimeEstimate:
    return TimeEstimate(work / rate.value, work / rate.high, work / rate.low)


def estimates(models: Iterable[Model], measured: Measured, wide: bool) -> pd.DataFrame:
    """Each training that is stated, here: hours of a tier's, days of the paper's (`wide`); the range is the denoiser's.

    Beside it the floor at this machine's peak, and the share of that peak which the estimate assumes.
    """
    rows, peak, unit = [], measured.machine.flops_per_s, "d" if wide else "h"
    per = DAY if wide else 3600
    for m in models:
        if not m.num_steps:
            continue
        denoiser, stage = estimate_time(m, measured, wide)
        rows.append({"model": m.name, f"floor [{unit}]": m.training() / peak / per,
                     f"denoiser [{unit}]": denoiser.seconds / per, "from": denoiser.low / per,
                     "to": denoiser.high / per,
                     f"first stage [{unit}]": stage.seconds / per if stage else None,
                     "share of peak": m.training() / denoiser.seconds / peak})
    return pd.DataFrame(rows).set_index("model")


# --- Estimates and records --------------------------------------------------------------------------------------------
def compared(measured: Measured, data: str) -> pd.DataFrame:
    """Every recorded training of this data and of the measured tier beside its estimate from this machine.

    `ratio` is recorded over estimated. Records of other devices are there too, marked by their device: for them it
    says which machine is faster, and not how good the estimate is. Training of a laptop's first stage is all steps;
    at tier `gpu` half of them have a discriminator, which the estimate leaves out.
    """
    rows = []
    for record in load_records("04_tradeoff", tier=measured.tier):
        if data_name(record) != data:
            continue
        model = planned(spec_of(grouped([record])[0]), record.name)
        for part, metric, found in zip(("denoiser", "first stage"), ("train_s", "first_stage_train_s"),
                                       estimate_time(model, measured, wide=False), strict=True):
            recorded = record.metrics.get(metric, {}).get("value")
            if found is None or not recorded:
                continue
            rows.append({"model": f"{record.name} {record.params['reg']}", "seed": record.params["seed"], "part": part,
                         "recorded [s]": recorded, "estimated [s]": found.seconds, "from": found.low, "to": found.high,
                         "ratio": recorded / found.seconds, "device": device_of(record)})
    return pd.DataFrame(rows, columns=["model", "seed", "part", "recorded [s]", "estimated [s]", "from", "to", "ratio",
                                       "device"])


def how_far_off(frame: pd.DataFrame, measured: Measured) -> pd.DataFrame:
    """By device and part: recorded over estimated, median and extremes, and the share of trainings within the range."""
    inside = frame["recorded [s]"].between(frame["from"], frame["to"])
    groups = frame.assign(inside=inside).groupby(["device", "part"])
    table = groups.agg(trainings=("ratio", "size"), median=("ratio", "median"), least=("ratio", "min"),
                       greatest=("ratio", "max"), inside=("inside", "mean")).reset_index()
    table.insert(1, "this machine", table["device"] == measured.device)
    return table.rename(columns={"inside": "share within the range"}).set_index("device")


def record_compute(run: Run) -> tuple[Record, Measured]:
    """Measure this machine, and what this run's training would take on it; nothing is trained.

    It is measured anew each time: a machine has other work at other times.
    """
    seconds = run.spec.budget.machine_s
    measured = measure_machine(run.spec, run.device, seconds)
    record = Record(run.notebook, run.spec.name, run.params, started=run.started, env=environment(run.device))
    record.metrics = measured.metrics()
    model = planned(run.spec, run.spec.name)
    record.metrics |= {
        "flops_denoiser": {"value": model.costs.denoiser, "unit": "FLOP a picture, forward"},
        "flops_training": {"value": model.training(), "unit": "FLOP, latents given"},
        "flops_first_stage_training": {"value": model.first_stage_training, "unit": "FLOP, autoencoder alone"}}
    if run.spec.tier == measured.tier:
        parts = zip(("denoiser", "first_stage"), estimate_time(model, measured, wide=False), strict=True)
        record.metrics |= {
            f"estimate_{part}_s": {"value": float(f"{found.seconds:.4g}"), "unit": "s", "interval": {
                "low": found.low, "high": found.high, "level": 1.0, "method": "slowest and fastest calls"}}
            for part, found in parts if found}
    record.protocol = {"timed_s": seconds, "tier_measured": measured.tier}
    return record, measured
