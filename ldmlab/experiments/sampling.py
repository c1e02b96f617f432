"""Quality against speed of sampling, one f at a time: DDIM by number of steps, samplers side by side [LDM v2, Fig. 7].

Curves of the record run over the number of steps: `kd_effnet_by_steps` is DDIM's at eta = 0,
`kd_effnet_by_steps_eta1` at eta = 1, `kd_effnet_by_steps_plms` that of another of `variants`; `..._low` and `..._high`
are the ends of its intervals over samples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from statistics import median

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ldmlab.diffusion.samplers import SAMPLERS
from ldmlab.diffusion.schedules import Schedule
from ldmlab.diffusion.solvable import convergence, random_field
from ldmlab.study.config.specs import EvaluationSpec
from ldmlab.study.records.record import Record, add_points, as_metrics
from ldmlab.study.runs.conditioners import sample_labels
from ldmlab.study.runs.run import Run
from ldmlab.study.training.progress import duration, progress

KD = "kd_effnet"
BY_STEPS = f"{KD}_by_steps"
NAMES = {"ddim": BY_STEPS, "ddpm": f"{BY_STEPS}_eta1"}  # of the curves over all numbers of steps
MOST_COMPARED = 50  # steps up to which samplers stand side by side: beyond, there is little to tell them apart
BUDGET_S = {"DDIM by steps": 1800, "samplers side by side": 300}  # seconds, as timed; no limit at tier paper
ORDER_STEPS = (5, 10, 20, 40, 50, 100, 200)  # divisors of 1000, so that all strides of a sampler are equal
ORDER_RANGE = (20, 100)  # steps over which an order of convergence is fitted
ETAS = {"": 0.0, "_half": 0.5}  # at which a sampler that takes eta is compared, by the end of its curves' names


@dataclass(frozen=True)
class Variant:
    """A sampler of `SAMPLERS` with its noise, and its name in figures."""

    name: str
    sampler: str
    eta: float  # 1 for the ancestral noise of a sampler that takes no eta


def variants() -> dict[str, Variant]:
    """What is compared, by its key in the names of curves: every sampler, at each of `ETAS` if it takes eta.

    "ddpm" is ancestral sampling on the steps that remain. That is DDIM at eta = 1, so there is no second curve for it.
    """
    found: dict[str, Variant] = {}
    for name, row in SAMPLERS.items():
        if row.takes_eta:
            found |= {variant_key(name) + end: Variant(f"{row.title}, eta {eta:g}", name, eta)
                      for end, eta in ETAS.items()}
        else:
            found[variant_key(name)] = Variant(row.title, name, 0.0 if row.deterministic else 1.0)
    return found


def variant_key(sampler: str) -> str:
    """A sampler's name as part of a curve's: dpm_solver_pp of dpm-solver++."""
    return sampler.replace("-", "_").replace("++", "_pp")


def deterministic() -> list[str]:
    """The samplers that follow the ODE, at eta = 0."""
    return [name for name, row in SAMPLERS.items() if row.deterministic]


def curve_name(key: str) -> str:
    """What a record calls the KD-EffNet of one of `variants` over steps."""
    return NAMES.get(key, f"{BY_STEPS}_{key}")


def compared_steps(plan: EvaluationSpec) -> tuple[int, ...]:
    """Numbers of steps at which samplers stand side by side: half of DDIM's fewest, then DDIM's up to MOST_COMPARED."""
    steps = plan.speed_steps
    return (min(steps) // 2, *(s for s in steps if s <= MOST_COMPARED))


def sample_with(
    run: Run, key: str, y: Int[Tensor, " n"], num_steps: int, on_pictures: Callable[[int], None] | None = None
) -> Float[Tensor, "n 3 H W"]:
    """Samples by one of `variants` from the noise of the run's seed; `on_pictures` hears how many are done."""
    variant = variants()[key]
    eta = variant.eta if SAMPLERS[variant.sampler].takes_eta else 0.0
    return run.diffusion.model.sample(y, num_steps=num_steps, sampler=variant.sampler, eta=eta, seed=run.spec.seed,
                                      batch_size=run.spec.evaluation.batch_size, progress=on_pictures)


def side_by_side(run: Run, y: Int[Tensor, " n"], num_steps: int) -> dict[str, Float[Tensor, "n 3 H W"]]:
    """Samples of every variant in `num_steps` steps, by its name; a column of them starts from the same noise."""
    compared = variants()
    with progress(len(compared), f"samples in {num_steps} steps", unit="samplers") as bar:
        rows = {}
        for key, variant in compared.items():
            rows[variant.name] = sample_with(run, key, y, num_steps)
            bar.update()
    return rows


# --- What is measured -------------------------------------------------------------------------------------------------


def record_sampling(run: Run) -> Record:
    """KD-EffNet and pictures a second of one model over DDIM steps, eta 0 and 1, and KD-EffNet of the other samplers.

    What was measured before, on the same model and by the same network, is loaded. Numbers of steps that would exceed
    BUDGET_S are left out, and the record's events say which; none up to that of the tier's protocol is.
    """
    diffusion, scorer, plan = run.diffusion, run.scorer, run.spec.evaluation
    record = run.new_record()
    record.inputs |= {"denoiser": diffusion.hash} | scorer.inputs(KD)
    if (known := run.measured_before(record)) is not None:
        return known
    record.protocol |= scorer.protocol | {
        "timed_batch": plan.speed_batch, "timed_repeats": plan.speed_repeats,
        "curves": {curve_name(key): {"sampler": v.sampler, "eta": v.eta} for key, v in variants().items()}}
    print(f"{diffusion.name}: timing {', '.join(map(str, plan.speed_steps))} steps", flush=True)
    record.curves["images_per_s"] = scorer.speed(diffusion.model)
    jobs, notes = plan_jobs(plan, record.curves["images_per_s"], limited=not run.spec.budget.paper_scale)
    for note in notes:
        print(note, flush=True)
    record.events += diffusion.curve.events + notes

    y = sample_labels(run.pictures.train.num_classes, plan.num_samples)
    with progress(len(y) * sum(map(calls, jobs)), f"{diffusion.name}, all samplers", unit="picture steps") as bar:
        for job in jobs:
            _score_job(record, run, y, job, bar.update)
    return record


Job = tuple[str, int]  # one of `variants`, and a number of steps


def calls(job: Job) -> int:
    """Calls of the denoiser for one picture."""
    key, num_steps = job
    return SAMPLERS[variants()[key].sampler].num_calls(num_steps)


def plan_jobs(
    plan: EvaluationSpec, images_per_s: Sequence[Sequence[float | int]], limited: bool = True
) -> tuple[list[Job], list[str]]:
    """What to score, fewer steps first; and a sentence on each number of steps that the budgets leave out."""
    rate = median(steps * value for steps, value in images_per_s)
    few = compared_steps(plan)
    others = [key for key in variants() if key not in NAMES]
    parts = zip(BUDGET_S.items(), ((tuple(NAMES), {*few, *plan.speed_steps}), (others, few)), strict=True)
    jobs: list[Job] = []
    notes: list[str] = []
    for (part, budget), (keys, steps) in parts:
        spent = 0.0
        for num_steps in sorted(steps):
            new = [(key, num_steps) for key in keys]
            seconds = plan.num_samples * sum(map(calls, new)) / rate
            if spent + seconds > (budget if limited else inf) and num_steps > plan.num_steps:
                notes.append(f"{part}: {num_steps} steps left out: {duration(seconds)} on top of {duration(spent)} are "
                             f"over the budget of {duration(budget)} (timed: {rate:.3g} picture steps/s)")
                continue
            jobs, spent = jobs + new, spent + seconds
    return jobs, notes


def _score_job(record: Record, run: Run, y: Tensor, job: Job, advance: Callable[[int], None]) -> None:
    """Sample, score, and put value and interval into the curves; the protocol's own DDIM point is a metric, too."""
    (key, num_steps), done = job, 0

    def on_pictures(now: int) -> None:
        nonlocal done
        advance((now - done) * calls(job))
        done = now

    scores = run.scorer.score(sample_with(run, key, y, num_steps, on_pictures), (KD,))
    if (key, num_steps) == ("ddim", run.spec.evaluation.num_steps):
        record.metrics |= as_metrics(scores)
    add_points(record, {curve_name(key): scores[KD]}, num_steps)


# --- What is read off it ----------------------------------------------------------------------------------------------


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (speed, distance) that none other beats in one and matches in the other, fastest first."""
    front, best = [], inf
    for i in sorted(range(len(points)), key=lambda i: (-points[i][0], points[i][1])):
        if points[i][1] < best:
            front.append(i)
            best = points[i][1]
    return front


def convergence_curves(schedule: Schedule, seed: int = 0) -> dict[str, list[tuple[int, float]]]:
    """(steps, error) of each deterministic sampler on a Gaussian random field of 8 x 8, whose best denoiser is known.

    The error is the RMS distance to the exact solution of the ODE from the same noise: the sampler's own, and no other.
    """
    z_T = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    curves, field, names = {}, random_field(8), deterministic()
    with progress(len(names), "solvable world", unit="samplers") as bar:
        for name in names:
            curves[name] = convergence(SAMPLERS[name].draw, field, schedule, ORDER_STEPS, z_T)
            bar.update()
    return curves


def order(curve: Sequence[tuple[int, float]]) -> float:
    """The k of error ~ steps^-k, by least squares over the steps of ORDER_RANGE."""
    low, high = ORDER_RANGE
    x, y = np.log([(steps, error) for steps, error in curve if low <= steps <= high]).T
    return float(-np.polyfit(x, y, 1)[0])


def enough_steps(record: Record) -> Mapping[str, int | None]:
    """For each variant, the fewest steps whose KD-EffNet lies within DDIM's interval at its most steps, or below it."""
    _, high = max(record.curves[f"{BY_STEPS}_high"])
    found: dict[str, int | None] = {}
    for key, variant in variants().items():
        good = [int(steps) for steps, value in record.curves.get(curve_name(key), ()) if value <= high]
        found[variant.name] = min(good, default=None)
    return found
