"""Time of trainings on a machine: lower bounds at its peak, estimates from measured rates, and their errors.

A lower bound divides the counted operations by the peak rate, which no training reaches. An estimate divides them by
the rate that similar training steps attained when they were timed.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import log2

import numpy as np
import pandas as pd

from ldmlab.experiments.compute.flops import DAY, Model, model_of_spec
from ldmlab.experiments.compute.machine import PUBLISHED, Machine, Measured, Rate, measure_machine
from ldmlab.study.records.compare import data_name, device_of, grouped, spec_of
from ldmlab.study.records.record import Record, environment, load_records
from ldmlab.study.runs.run import Run


def time_lower_bounds(models: Iterable[Model], machines: Sequence[Machine] = PUBLISHED) -> pd.DataFrame:
    """Lower bounds on the days of each denoiser's training: operations, with cached latents, at each machine's peak.

    Models whose training is not stated are omitted.
    """
    rows = {m.name: {machine.name: m.training() / machine.flops_per_s / DAY for machine in machines}
            for m in models if m.num_steps}
    return pd.DataFrame(rows).T.rename_axis("days at the peak of")


def forward_lower_bounds(
    models: Iterable[Model], machines: Sequence[Machine] = PUBLISHED, num_bytes: int = 2
) -> pd.DataFrame:
    """Lower bounds on the milliseconds of one denoiser call at batch size 1.

    The longer of two times: operations at the peak, and reading all weights of `num_bytes` each from memory.
    """
    rows = {m.name: {k.name: 1e3 * max(m.costs.denoiser / k.flops_per_s, num_bytes * m.costs.num_params / k.bytes_per_s)
                     for k in machines} for m in models}
    return pd.DataFrame(rows).T.rename_axis("ms per call at batch size 1")


@dataclass(frozen=True)
class TimeEstimate:
    """Estimated seconds of a training on this machine: at the median, fastest (`low`) and slowest (`high`) rate."""

    seconds: float
    low: float
    high: float


def estimate_time(model: Model, measured: Measured, wide: bool) -> tuple[TimeEstimate, TimeEstimate | None]:
    """Estimated times of training the denoiser, with cached latents, and the first stage (None if its steps are not
    stated) on the measured machine.

    `wide` uses the rates at the paper's widths, otherwise those of the measured tier, log-interpolated over f. Time
    outside of training steps (loading, encoding, scoring) is not included.
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

    def between(name: str) -> float:
        return float(np.exp(np.interp(log2(f), at, [np.log(getattr(rates[k], name)) for k in fs])))

    return replace(rates[fs[0]], value=between("value"), low=between("low"), high=between("high"))


def _seconds(work: float | int, rate: Rate) -> TimeEstimate:
    return TimeEstimate(work / rate.value, work / rate.high, work / rate.low)


def estimates(models: Iterable[Model], measured: Measured, wide: bool) -> pd.DataFrame:
    """Estimated training times on the measured machine, in hours, or in days for the paper's widths (`wide`).

    "from" and "to" are the range for the denoiser. Lower bounds at the machine's peak, and the share of the peak that
    the estimate assumes, are given beside. Models whose training is not stated are omitted.
    """
    rows, peak, unit = [], measured.machine.flops_per_s, "d" if wide else "h"
    per = DAY if wide else 3600
    for m in models:
        if not m.num_steps:
            continue
        denoiser, stage = estimate_time(m, measured, wide)
        rows.append({"model": m.name, f"lower bound [{unit}]": m.training() / peak / per,
                     f"denoiser [{unit}]": denoiser.seconds / per, "from": denoiser.low / per,
                     "to": denoiser.high / per,
                     f"first stage [{unit}]": stage.seconds / per if stage else None,
                     "share of peak": m.training() / denoiser.seconds / peak})
    return pd.DataFrame(rows).set_index("model")


# --- Estimates and records --------------------------------------------------------------------------------------------
def recorded_and_estimated(measured: Measured, data: str) -> pd.DataFrame:
    """Recorded and estimated seconds of every training of 04_tradeoff on this data at the measured tier.

    `ratio` is recorded over estimated. Records of other devices are included and named; for them it compares machines
    rather than testing the estimate. At tier `gpu`, half of a first stage's steps use a discriminator, which estimates
    do not include.
    """
    rows = []
    for record in load_records("04_tradeoff", tier=measured.tier):
        if data_name(record) != data:
            continue
        model = model_of_spec(spec_of(grouped([record])[0]), record.name)
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


def estimate_errors(frame: pd.DataFrame, measured: Measured) -> pd.DataFrame:
    """Recorded over estimated time by device and part: median, extremes, and the share of trainings in the range."""
    inside = frame["recorded [s]"].between(frame["from"], frame["to"])
    groups = frame.assign(inside=inside).groupby(["device", "part"])
    table = groups.agg(trainings=("ratio", "size"), median=("ratio", "median"), least=("ratio", "min"),
                       greatest=("ratio", "max"), inside=("inside", "mean")).reset_index()
    table.insert(1, "this machine", table["device"] == measured.device)
    return table.rename(columns={"inside": "share within the range"}).set_index("device")


def record_compute(run: Run) -> tuple[Record, Measured]:
    """Measure this machine and estimate the training time of this run on it; nothing is trained.

    The measurement is repeated at each call, since the load of a machine changes.
    """
    seconds = run.spec.budget.machine_s
    measured = measure_machine(run.spec, run.device, seconds)
    record = Record(run.notebook, run.spec.name, run.params, started=run.started, env=environment(run.device))
    record.metrics = measured.metrics()
    model = model_of_spec(run.spec, run.spec.name)
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
