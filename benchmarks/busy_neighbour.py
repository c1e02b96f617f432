"""A busy neighbour: what sampling and a training step keep of their rate while another process takes a processor.

`python benchmarks/busy_neighbour.py [--without-before] [--rounds N] [--only WORK] [--out FILE]`, on two quiet
processors, with none of OpenMP's variables set. The denoiser of the study's tier `laptop` at f = 8: DDIM with 20 steps
for 128 pictures, and a training step. "before" is torch as it comes, with a thread a processor that spin; "now" has
`share_processors` watch, and sampling take one thread beside the neighbour; "one thread" is there to compare. A loop in
another process is the neighbour, stopped and continued before each timing. The outputs of "before" and "now" are equal,
to the bit. Takes about 3 minutes; where "before" freezes beside the neighbour, some more: `--without-before` leaves
that out.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from harness import Goal, Way, Work, agree, parse, run_table

from ldmlab.diffusion.samplers import ddim
from ldmlab.diffusion.schedules import scaled_linear
from ldmlab.diffusion.unet.unet import UNet
from ldmlab.study.config.presets import study_spec
from ldmlab.study.config.specs import denoiser_config
from ldmlab.study.training.threads import CALM, DECIDED, ProcessorWatch, num_processors

BATCH, NUM_STEPS = 128, 20
INTERVAL_S = 0.2  # of the watch: shorter than in a run, so that rounds are short
AT_LEAST, UNCHANGED = 0.6, 0.97  # of the undisturbed rate, beside the neighbour and without it


class Neighbour:
    """A loop in another process, which takes one processor while it is not stopped."""

    def __init__(self) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        self.set(False)

    def set(self, busy: bool) -> None:
        self._process.send_signal(signal.SIGCONT if busy else signal.SIGSTOP)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


class Machine:
    """Brings neighbour, watch and the number of threads into the state that a timing needs."""

    def __init__(self, neighbour: Neighbour):
        self.neighbour, self.num_threads = neighbour, torch.get_num_threads()
        self.watch: ProcessorWatch | None = None

    def set(self, busy: bool, watched: bool, num_threads: int = 0) -> None:
        torch.set_num_threads(num_threads or self.num_threads)
        self.neighbour.set(busy)
        if self.watch is not None:
            self.watch.stop()
            self.watch = None
        if watched:
            self.watch = ProcessorWatch(self.num_threads, INTERVAL_S)
            self.watch.start()
            time.sleep((CALM + 1) * INTERVAL_S)


def denoiser() -> UNet:
    torch.manual_seed(0)
    return UNet(denoiser_config(study_spec(8, tier="laptop").diffusion, 0))


def sampling(machine: Machine) -> Callable[[], torch.Tensor]:
    model, side = denoiser().eval(), study_spec(8, tier="laptop").data.size // 8
    z_T, schedule = torch.randn(BATCH, model.config.in_channels, side, side), scaled_linear()

    @torch.inference_mode()
    def run() -> torch.Tensor:
        with machine.watch.one_thread_if_busy() if machine.watch is not None else nullcontext():
            return ddim(lambda z, t: model(z, t, None), z_T, schedule, NUM_STEPS)
    return run


def training_step(machine: Machine) -> Callable[[], torch.Tensor]:
    """Forward, backward and update; the gradients, laid end to end."""
    model, side = denoiser(), study_spec(8, tier="laptop").data.size // 8
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0, fused=True)  # weights stay, for `agree`
    z, t = torch.randn(BATCH, model.config.in_channels, side, side), torch.randint(0, 1000, (BATCH,))

    def run() -> torch.Tensor:
        optimizer.zero_grad()
        (model(z, t, None) - z).square().mean().backward()
        optimizer.step()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return run


def beside(
    name: str, make: Callable[[Machine], Callable], unit: str, n: int, machine: Machine, with_before: bool
) -> Work:
    run = make(machine)
    states = {"before, undisturbed": (False, False), "now, undisturbed": (False, True), "now, beside": (True, True),
              "one thread, beside": (True, False, 1)}
    if with_before:
        states["before, beside"] = (True, False)
    machine.set(False, False)
    expected = run()
    machine.set(True, True)
    agreement = agree("now, beside the neighbour", run(), expected, 0.0)
    ways = [Way(state, run, exact=len(settings) == 2, prepare=partial(machine.set, *settings))
            for state, settings in states.items()]
    goals = [Goal("now, beside", "before, undisturbed", AT_LEAST),
             Goal("now, undisturbed", "before, undisturbed", UNCHANGED)]
    return Work(name, ways, goals, n=n, unit=unit, agreement=agreement)


def main() -> None:
    args = parse(__doc__, "busy_neighbour", lambda parser: parser.add_argument(
        "--without-before", action="store_true", help="do not time threads that spin beside the neighbour"))
    if decided := [name for name in DECIDED if os.environ.get(name)]:
        raise SystemExit(f"{', '.join(decided)} decides how threads wait: unset it for this table")
    neighbour = Neighbour()
    try:
        machine, before = Machine(neighbour), not args.without_before
        works = [(f"DDIM-{NUM_STEPS}, batch {BATCH}", sampling, "pictures", BATCH),
                 (f"training step, batch {BATCH}", training_step, "steps", 1)]
        run_table("busy_neighbour", [(name, partial(beside, name, make, unit, n, machine, before))
                                     for name, make, unit, n in works], args, processors=num_processors())
    finally:
        neighbour.end()


if __name__ == "__main__":
    main()
