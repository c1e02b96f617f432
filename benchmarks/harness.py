"""How the tables of this folder are measured: side by side, in one process, and void where the machine is not quiet.

A `Work` is one thing to do and the ways to do it. All ways run once untimed, then in rounds, each round in a new
shuffled order. What counts is the ratio of two ways within a round: the median over rounds, with an interval of at
least 95 % by order statistics. The first way runs twice a round, the second time as its own rival ("A/A"): where that
ratio leaves CONTROL, the work is measured again, and after `--tries` such rounds its rows are marked void. Outputs of
ways that claim to do the same are compared before any clock starts.
"""

import argparse
import gc
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CONTROL = (0.97, 1.03)
LEVEL = 0.95
LEAST_S = 1.0  # a timing takes at least this long, of as many calls as that needs
# glibc gives large blocks back to the system and takes the first touch of new ones into the next timing.
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "20000000000"}


@dataclass
class Way:
    """One way to do a work. `kind` is "ours" or "peer"; what is not `exact` may give another result, and says how."""

    name: str
    run: Callable[[], object]
    kind: str = "ours"
    exact: bool = True
    note: str = ""
    prepare: Callable[[], object] | None = None  # untimed, before every timing
    prepare_s: float | None = None  # compilation, building a cache: paid once


@dataclass(frozen=True)
class Goal:
    """`ours` is to be `at_least` times as fast as `peer`: the lower end of the interval counts."""

    ours: str
    peer: str
    at_least: float


@dataclass
class Work:
    """A thing to do, in how many pieces (`n` `unit`s a call), the ways to do it, and what is asked of them.

    `flops` of one call and `dtype` add the floor: the time at the rate of this machine's fastest large operation. Of
    works that only move memory it is that of their `num_bytes`, read and written.
    """

    name: str
    ways: list[Way]
    goals: list[Goal] = field(default_factory=list)
    n: int = 1
    unit: str = "calls"
    flops: float = 0.0
    dtype: str = "float32"
    num_bytes: float = 0.0
    agreement: dict[str, float] = field(default_factory=dict)  # what was compared, and how far it was off


def tuned_allocator() -> None:
    """Start this process again with an allocator that keeps its memory; for all ways alike."""
    if sys.platform == "linux" and any(os.environ.get(key) != value for key, value in ALLOCATOR.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **ALLOCATOR})


def parse(doc: str, table: str, add: Callable[[argparse.ArgumentParser], None] | None = None) -> argparse.Namespace:
    """The options that all tables share, and those that `add` adds; starts the process again with `tuned_allocator`."""
    from ldmlab.study.config.paths import results_dir

    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11, help="timed rounds, 6 or more for an interval of 95 %%")
    parser.add_argument("--tries", type=int, default=3, help="how often a work may be measured until its A/A is quiet")
    parser.add_argument("--only", default="", help="works whose name contains this; the other rows of --out stay")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=results_dir() / "benchmarks" / f"{table}.json")
    if add is not None:
        add(parser)
    args = parser.parse_args()
    if args.rounds < 1 or args.tries < 1:
        parser.error(f"--rounds and --tries are at least 1, got {args.rounds} and {args.tries}")
    tuned_allocator()
    return args


def agree(name: str, a: Any, b: Any, rtol: float) -> dict[str, float]:
    """{name: max |a - b| / max |b|} over tensors or sequences of them; AssertionError where it exceeds `rtol`."""
    import torch

    pairs = [(a, b)] if torch.is_tensor(a) else list(zip(a, b, strict=True))
    scale = max(float(y.detach().abs().max()) for _, y in pairs)
    off = max(float((x.detach().double() - y.detach().double()).abs().max()) for x, y in pairs) / max(scale, 1e-30)
    if not off <= rtol:
        raise AssertionError(f"{name}: differs by {off:.2g} of its largest entry, accepted is {rtol:g}")
    return {name: off}


def interval(ratios: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """An interval that holds the median with probability `level` or more, by order statistics; wide if too few."""
    from scipy import stats

    n = len(ratios)
    k = int(stats.binom.ppf((1 - level) / 2, n, 0.5))  # k of n below the median happens with less than (1 - level) / 2
    ordered = sorted(ratios)
    return (ordered[k - 1], ordered[n - k]) if k >= 1 else (0.0, float("inf"))


def _seconds(way: Way, calls: int) -> float:
    from ldmlab.evaluation.cost import synchronize

    if way.prepare is not None:
        way.prepare()
    synchronize()
    began = time.perf_counter()
    for _ in range(calls):
        way.run()
    synchronize()
    return (time.perf_counter() - began) / calls


def _rounds(work: Work, rounds: int, rng: random.Random) -> dict[str, list[float]]:
    import torch

    cuda = torch.cuda.is_available()
    ways, calls = [*work.ways, Way("A/A", work.ways[0].run, "control", prepare=work.ways[0].prepare)], {}
    for way in ways:
        _seconds(way, 20 if cuda else 1)
        calls[way.name] = max(50 if cuda else 1, round(LEAST_S / _seconds(way, 1)))
    seconds: dict[str, list[float]] = {way.name: [] for way in ways}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for way in rng.sample(ways, len(ways)):
                seconds[way.name].append(_seconds(way, calls[way.name]))
    finally:
        gc.enable()
    return seconds


def _ratio(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    paired = [a / b for a, b in zip(slow, fast, strict=True)]
    low, high = interval(paired)
    return {"ratio": statistics.median(paired), "low": low, "high": high}


def peak_flops(dtype: str) -> float:
    """FLOP/s of this machine's fastest large matrix product or convolution: the floor that no way can pass."""
    import torch

    from ldmlab.evaluation.cost import peak_jobs

    device = "cuda" if torch.cuda.is_available() else "cpu"
    calls = 20 if device == "cuda" else 2
    jobs = [(Way("", job), work) for job, work in peak_jobs(device, getattr(torch, dtype))]
    return max(work / _seconds(way, calls) for way, work in jobs for _ in range(6))


def peak_bandwidth() -> float:
    """Bytes per second, read and written, of a large copy or of a sum in place, which need not fetch what it writes."""
    import torch

    source = torch.ones(2**26, device="cuda" if torch.cuda.is_available() else "cpu")
    target = torch.empty_like(source)
    jobs = [(Way("", lambda: target.copy_(source)), 2), (Way("", lambda: target.add_(source)), 3)]
    return max(passes * source.nbytes / _seconds(way, 2) for way, passes in jobs for _ in range(6))


def measure(work: Work, args: argparse.Namespace) -> list[dict]:
    """The rows of one work: seconds of each way, and how many times as fast as each other way it is."""
    rng = random.Random(args.seed)
    for tries in range(1, args.tries + 1):
        print(f"{work.name} ..." + f" (try {tries})" * (tries > 1), flush=True)
        seconds = _rounds(work, args.rounds, rng)
        control = _ratio(seconds[work.ways[0].name], seconds["A/A"])
        void = not CONTROL[0] <= control["ratio"] <= CONTROL[1]
        if not void:
            break
        print(f"  A/A reads {control['ratio']:.3f}, not within {CONTROL}: the machine is not quiet", flush=True)
    rows = []
    for way in work.ways:
        over = {other.name: _ratio(seconds[other.name], seconds[way.name]) for other in work.ways if other is not way}
        row = {"work": work.name, "variant": way.name, "kind": way.kind, "exact": way.exact, "note": way.note,
               "min_s": min(seconds[way.name]), "median_s": statistics.median(seconds[way.name]),
               "per_s": work.n / statistics.median(seconds[way.name]), "unit": work.unit, "over": over,
               "rounds": args.rounds, "control": control, "void": void, "tries": tries,
               "agreement": work.agreement}
        if way.prepare_s is not None:
            saved = statistics.median(seconds[work.ways[0].name]) - row["median_s"]
            row |= {"prepare_s": way.prepare_s, "pays_after_calls": way.prepare_s / saved if saved > 0 else None}
        row["goals"] = [{"peer": goal.peer, "at_least": goal.at_least, **over[goal.peer],
                         "met": None if void else over[goal.peer]["low"] >= goal.at_least}
                        for goal in work.goals if goal.ours == way.name]
        rows.append(row)
    if work.flops or work.num_bytes:
        if work.flops:
            amount, peak, unit, name = work.flops, peak_flops(work.dtype), "FLOP", f"floor, {work.dtype}"
        else:
            amount, peak, unit, name = work.num_bytes, peak_bandwidth(), "byte", "floor, memory"
        for row in rows:
            row["share_of_peak"] = amount / row["median_s"] / peak
        rows.append({"work": work.name, "variant": name, "kind": "floor", "exact": True, "goals": [],
                     "note": f"{amount / 1e9:.4g} G{unit} at {peak / 1e9:.4g} G{unit}/s, this machine's peak",
                     "min_s": amount / peak, "median_s": amount / peak, "per_s": work.n * peak / amount,
                     "unit": work.unit, "over": {}, "void": False})
    _print(rows)
    return rows


def _print(rows: list[dict]) -> None:
    base = rows[0]["variant"]
    for row in rows:
        over = row["over"].get(base)
        ratio = f"{over['ratio']:6.2f} ({over['low']:.2f} to {over['high']:.2f})" if over else f"{1:6.2f}" + " " * 15
        goals = "; ".join(f"goal {goal['at_least']:g} over {goal['peer']}: {goal['ratio']:.2f} ({goal['low']:.2f} to "
                          f"{goal['high']:.2f}), {'met' if goal['met'] else 'not met'}" for goal in row["goals"])
        print(f"  {row['variant']:44s} {row['median_s'] * 1e3:10.2f} ms {ratio}  {goals}", flush=True)


def _rounded(value: Any) -> Any:
    """Five digits: timings have fewer."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if value not in (float("inf"), float("-inf")) else None
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def run_table(table: str, works: Sequence[tuple[str, Callable[[], Work]]], args: argparse.Namespace,
              **about: Any) -> None:
    """Measure works one after the other, each built only when its turn comes, and keep the table after each."""
    from ldmlab.atomic import atomic_write
    from ldmlab.study.records.record import environment
    from ldmlab.study.training.device import choose_device

    chosen = [(name, build) for name, build in works if args.only in name]
    if not chosen:
        raise SystemExit(f"no work's name contains {args.only!r}; there are: {'; '.join(name for name, _ in works)}")
    stored = json.loads(args.out.read_text())["rows"] if args.out.exists() else []
    order, env = [name for name, _ in works], {**environment(choose_device()), **_versions(), **about}
    for name, build in chosen:
        rows = [{**row, "env": env} for row in measure(build(), args)]
        stored = [row for row in stored if row["work"] != name and row["work"] in order] + _rounded(rows)
        stored.sort(key=lambda row: order.index(row["work"]))
        args.out.parent.mkdir(parents=True, exist_ok=True)
        content = {"table": table, "rows": stored}
        atomic_write(args.out, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
        gc.collect()
    print(f"written: {args.out}")


def _versions() -> dict[str, str]:
    """Of the peers that are installed."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("diffusers", "torch-fidelity", "scipy", "pillow", "torchvision"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
