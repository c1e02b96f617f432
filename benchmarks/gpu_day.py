"""A GPU day: one command, nine minutes on one data-centre GPU, no network; one JSON and one page of figures.

`python benchmarks/gpu_day.py [--rehearse] [--out FOLDER] [--parts 1,3]`. Parts: 1 environment and parity, 2 the suite's
GPU tests, 3 throughput and share of peak at the paper's sizes, 4 resume after SIGKILL, 5 tier `gpu` timed, 6 several
GPUs. Each runs in a process of its own with a limit of its own and is saved as it ends: a cut leaves what was done.
`--rehearse` runs all parts on a CPU, with tiny models. `--page` only draws the page again.
"""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpu.parts import PARTS, TOTAL_S, Context, Part, end_session, run_parts, this_part, write_json

from ldmlab.study.config.paths import results_dir

SCRIPT = Path(__file__).resolve()
# In the background of parts 1 and 2, which time nothing: what part 3 compiles comes from inductor's cache then.
AHEAD = Part(0, "compilation", "throughput", "compile_ahead", 120)
UNTIMED = (1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rehearse", action="store_true", help="all parts on a CPU, with tiny models")
    parser.add_argument("--out", type=Path, default=None,
                        help="default: results/gpu_day; results/runs/gpu_day_rehearsal")
    parser.add_argument("--parts", default="", help="numbers, such as 1,3; default: all")
    parser.add_argument("--seconds", type=float, default=TOTAL_S, help="for everything")
    parser.add_argument("--commit", default="", help="named in the results where the checkout has no git")
    parser.add_argument("--page", action="store_true", help="draw the page of --out again, and measure nothing")
    for hidden, kind in (("--one", int), ("--into", Path), ("--deadline", float)):
        parser.add_argument(hidden, type=kind, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a part that is running ends as well
    if args.one is not None:
        return run_one(args)
    out = args.out or (results_dir() / "runs" / "gpu_day_rehearsal" if args.rehearse else results_dir() / "gpu_day")
    if args.page:
        return draw_page(json.loads((out / "gpu_day.json").read_text()), out)
    known = {str(part.number) for part in PARTS}
    chosen = [part for part in args.parts.split(",") if part] or sorted(known)
    if unknown := set(chosen) - known:
        parser.error(f"--parts are of {', '.join(sorted(known))}; got {', '.join(sorted(unknown))}")
    measure(args, out.resolve(), [part for part in PARTS if str(part.number) in chosen])


def measure(args: argparse.Namespace, out: Path, parts: list[Part]) -> None:
    """Parts one after the other, and the page after each; parts of an earlier call that are not chosen stay."""
    file = out / "gpu_day.json"
    result: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"table": "gpu_day", "parts": {}}
    result |= {"made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "rehearsal": args.rehearse,
               "commit": args.commit or commit()}
    os.environ |= {"TORCHINDUCTOR_CACHE_DIR": str(out / "scratch" / "inductor"), "TOKENIZERS_PARALLELISM": "false",
                   "LDMLAB_ROOT": str(out / "scratch" / "root"), "PYTHONUNBUFFERED": "1",
                   "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # part 4 forks after asking whether there is a GPU
                   "PYTHONPATH": os.pathsep.join([str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH", "")])}
    if args.rehearse:
        os.environ["OMP_NUM_THREADS"] = "1"
        parts = [replace(part, seconds=4 * part.seconds) for part in parts]  # none is to be cut
        args.seconds *= 4
    ahead = None
    before = [part for part in parts if part.number in UNTIMED]
    if before and any(part.number == 3 for part in parts) and not args.rehearse:
        ahead = out / "scratch" / "part0.json"
        ahead.parent.mkdir(parents=True, exist_ok=True)
        ahead.unlink(missing_ok=True)
        with (out / "scratch" / "part0.log").open("wb") as log:
            process = subprocess.Popen(this_part(AHEAD, SCRIPT, args.rehearse, ahead, time.time() + AHEAD.seconds),
                                       stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    def command(part: Part, into: Path, deadline: float) -> list[str]:
        nonlocal ahead
        if ahead is not None and part.number not in UNTIMED:
            end_session(process)
            content = json.loads(ahead.read_text()) if ahead.exists() else {}
            result["parts"]["0"] = {"title": AHEAD.title, "result": content}
            ahead = None
        return this_part(part, SCRIPT, args.rehearse, into, deadline)

    run_parts(parts, result, out, command, args.seconds)
    draw_page(result, out)
    print(f"written: {file} and {out / 'gpu_day.png'}")


def commit() -> str:
    done = subprocess.run(["git", "-C", str(SCRIPT.parent), "rev-parse", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip()


def run_one(args: argparse.Namespace) -> None:
    """A part in this process, which `run_part` started."""
    part = next(part for part in (AHEAD, *PARTS) if part.number == args.one)
    context = Context(args.rehearse, args.into.parent, args.deadline)
    run = getattr(importlib.import_module(f"gpu.{part.module}"), part.function)
    run(context, lambda result: write_json(args.into, result))


def draw_page(result: dict[str, Any], out: Path) -> None:
    from gpu.page import page

    from ldmlab.atomic import atomic_write

    fig = page(result)
    atomic_write(out / "gpu_day.png", lambda part: fig.savefig(part, format="png"))


if __name__ == "__main__":
    sys.exit(main())
