"""Part 3: pictures per second and share of the measured peak, in training and sampling at the paper's sizes.

A row is the median of windows of at least two seconds, after warm-up; the graphics clock and power of these seconds
stand beside. The peak is that of a large bf16 matrix product in the same run, sustained as long. Rows run one after the
other, since their models together would not leave room for large batches; the peak is measured again at the end.
"""

import contextlib
import gc
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from gpu.models import released_attention, sampling, training_step
from gpu.parts import Context, Save, attempt
from gpu.profile import shares
from gpu.project import paper_first_stage
from ldmlab.checkpoints.released import LDMS
from ldmlab.diffusion.unet.acceleration import accelerate
from ldmlab.evaluation.cost import peak_jobs, synchronize
from ldmlab.experiments.compute.flops import count_first_stage
from ldmlab.first_stage.autoencoder import build_autoencoder
from ldmlab.first_stage.networks import AutoencoderConfig
from ldmlab.study.training.device import choose_device

DATASHEET = 989e12  # dense bf16 of H100 and H200, SXM
WINDOWS = 3
GOALS = {"share": 0.45, "over_released": 1.8}  # training of LDM-4


@dataclass
class Bench:
    """What the rows share: where they are kept, how long windows last, what is left of the time."""

    context: Context
    save: Save
    device: torch.device = field(default_factory=choose_device)
    result: dict[str, Any] = field(default_factory=lambda: {"rows": [], "profiles": {}, "goals": GOALS})

    def __post_init__(self) -> None:
        self.window_s = 0.0 if self.context.rehearse else 2.0
        self.backend = "eager" if self.context.rehearse else "inductor"
        self.clocks = Clocks(self.device)

    def row(self, work: str, variant: str, seconds: float, make: Callable[[], tuple[Callable, float, int]], *,
            profile: bool = False, benchmark: bool = False, tf32: bool = True, **about: Any) -> None:
        """One row, if `seconds` are left for it; `make` gives what to call, its FLOP and its pictures."""
        row = {"work": work, "variant": variant, **about}
        if not self.context.rehearse and self.context.left < seconds:
            row["error"] = f"left out: {self.context.left:.0f} s were left, it needs about {seconds:.0f}"
        else:
            torch.backends.cudnn.benchmark = benchmark
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
            row |= attempt(partial(self._measure, make, f"{work}, {variant}" if profile else ""))
            torch._dynamo.reset()
            gc.collect()
            if self.device.type == "cuda":
                attempt(torch.cuda.empty_cache)
        self.result["rows"].append(row)
        self.save(self.result)
        print(row, flush=True)

    def _measure(self, make: Callable[[], tuple[Callable, float, int]], profile: str) -> dict[str, Any]:
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        step, flop, n = make()
        synchronize()
        built = time.perf_counter()
        step()
        synchronize()
        first = time.perf_counter()
        found = {"build_s": built - began, "first_call_s": first - built}
        seconds, (start, end) = windows(step, self.window_s)
        median = statistics.median(seconds)
        found |= {"batch": n, "step_s": median, "windows_s": seconds, "per_s": n / median, "flops_per_s": flop / median,
                  "share_of_peak": flop / median / self.result["peak"]["flops_per_s"],
                  "share_of_datasheet": flop / median / DATASHEET, **self.clocks.between(start, end)}
        if cuda:
            found["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        if profile:
            self.result["profiles"][profile] = attempt(partial(shares, step, self.device))
        return found


def windows(step: Callable[[], object], seconds: float) -> tuple[list[float], tuple[float, float]]:
    """Seconds a call in each of WINDOWS windows of at least `seconds`, and when (time.time()) these began and ended."""
    step()
    synchronize()
    began = time.perf_counter()
    for _ in range(2):
        step()
    synchronize()
    calls = max(1, round(1.1 * seconds / ((time.perf_counter() - began) / 2)))
    found, start = [], time.time()
    for _ in range(WINDOWS):
        synchronize()
        began = time.perf_counter()
        for _ in range(calls):
            step()
        synchronize()
        found.append((time.perf_counter() - began) / calls)
    return found, (start, time.time())


class Clocks:
    """Graphics clock, power and temperature, read every 0.4 s by nvidia-smi in the background."""

    def __init__(self, device: torch.device):
        self.samples: list[tuple[float, float, float, float]] = []
        if device.type != "cuda":
            return
        try:
            query = ["nvidia-smi", "--query-gpu=clocks.sm,power.draw,temperature.gpu", "-i", "0",
                     "--format=csv,noheader,nounits", "-lms", "400"]
            self.process = subprocess.Popen(query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            threading.Thread(target=self._read, daemon=True).start()
        except OSError:
            pass

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):
                clock, power, temperature = (float(part) for part in line.split(","))
                self.samples.append((time.time(), clock, power, temperature))

    def between(self, start: float, end: float) -> dict[str, float]:
        """Medians of the samples of that time."""
        inside = [sample[1:] for sample in list(self.samples) if start + 0.3 < sample[0] < end]
        if not inside:
            return {}
        return dict(zip(("clock_mhz", "power_w", "celsius"), map(statistics.median, zip(*inside, strict=True)),
                        strict=True))


def peak(bench: Bench, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """Sustained rates of large operations; `flops_per_s` is that of the large matrix product."""
    names = ("matrix product, small", "matrix product, large", "convolution, wide map", "convolution, small map")
    found: dict[str, Any] = {"datasheet": DATASHEET}
    jobs, calls = peak_jobs(bench.device, torch.float32 if bench.context.rehearse else dtype), 10
    if bench.context.rehearse:
        jobs, calls = [(job, flop) for job, flop in jobs[:2]], 1
    for name, (job, flop) in zip(names, jobs, strict=False):
        def several(job: Callable = job) -> None:
            for _ in range(calls):
                job()

        several()
        synchronize()
        began = time.perf_counter()
        several()
        synchronize()
        burst = (time.perf_counter() - began) / calls
        seconds, span = windows(several, bench.window_s if "large" in name else bench.window_s / 4)
        median = statistics.median(seconds) / calls
        found[name] = {"flops_per_s": flop / median, "burst_flops_per_s": flop / burst, **bench.clocks.between(*span)}
    found["flops_per_s"] = found[names[1]]["flops_per_s"]
    source = torch.randn((2**22 if bench.context.rehearse else 2**29), device=bench.device)
    target = torch.empty_like(source)
    seconds, _ = windows(lambda: target.copy_(source), bench.window_s / 4)
    found["bytes_per_s"] = 2 * source.nbytes / statistics.median(seconds)
    return found


def run(context: Context, save: Save) -> None:
    bench = Bench(context, save)
    bench.result["peak"] = peak(bench)
    save(bench.result)
    train_rows(bench)
    sample_rows(bench)
    first_stage_rows(bench)
    bench.result["peak at the end"] = attempt(partial(peak, bench))
    save(bench.result)


# --- Rows
def train(bench: Bench, name: str, batch: int, variant: str, seconds: float, *, kind: str = "ours", **options: Any
          ) -> None:
    """A row of training; `options` are those of `models.training_step`, and of `Bench.row`."""
    settings = {key: options.pop(key) for key in ("profile", "benchmark") if key in options}
    batch = 1 if bench.context.rehearse else batch
    released = kind == "released structure"

    def make() -> tuple[Callable, float, int]:
        return *training_step(name, batch, bench.device, bench.context.rehearse, released, **options), batch

    with released_attention() if released else contextlib.nullcontext():
        bench.row(f"training {name}", variant, seconds, make, kind=kind, batch=batch, **settings)


def train_rows(bench: Bench) -> None:
    four, eight, compiled = partial(train, bench, "LDM-4"), partial(train, bench, "LDM-8"), {"backend": bench.backend}
    released = {"kind": "released structure"}
    four(48, "float32 (TF32)", 14, bf16=False, **released)
    four(48, "bf16 autocast", 12, bf16=True, **released)
    four(48, "bf16, channels last", 14, profile=True)
    four(48, "bf16, channels last, compiled", 50, profile=True, benchmark=True, **compiled)
    four(48, "bf16, channels last, cudnn.benchmark", 18, benchmark=True)
    eight(96, "float32 (TF32)", 12, bf16=False, **released)
    eight(96, "bf16, channels last", 12)
    eight(96, "bf16, channels last, compiled", 50, profile=True, benchmark=True, **compiled)
    four(128, "bf16, channels last, compiled", 55, benchmark=True, **compiled)
    four(48, "bf16, not channels last", 10, channels_last=False)
    four(48, "float32 (TF32), channels last", 10, bf16=False)


def draw(bench: Bench, name: str, batch: int, num_steps: int, variant: str, seconds: float, *,
         kind: str = "ours", bf16: bool = False, channels_last: bool = False, **options: Any) -> None:
    """A row of sampling; `options` are those of `accelerate`, none for the model as it is."""
    if bench.context.rehearse:
        num_steps = 2
    released = kind == "released structure"

    def change(model: torch.nn.Module) -> Callable:
        if channels_last:
            model.to(memory_format=torch.channels_last)
        return accelerate(model, **options) if options else model

    def make() -> tuple[Callable, float, int]:
        found = sampling(name, n, num_steps, bench.device, bench.context.rehearse, released, bf16, change)
        return *found, n

    n = 1 if bench.context.rehearse else batch
    with released_attention() if released else contextlib.nullcontext():
        bench.row(f"sampling {name}, batch {batch}", variant, seconds, make, kind=kind, num_steps=num_steps)


def sample_rows(bench: Bench) -> None:
    half, last = {"dtype": torch.bfloat16}, {"channels_last": True}
    compiled = {"compile": True, "backend": bench.backend}
    one, many = partial(draw, bench, "LDM-4", 1, 50), partial(draw, bench, "LDM-4", 64, 10)
    many("float32 (TF32)", 14, kind="released structure")
    many("bf16 autocast", 12, kind="released structure", bf16=True)
    many("float32 (TF32)", 12)
    many("bf16 weights, channels last", 12, **half, **last)
    one("float32 (TF32)", 14, kind="released structure")
    one("float32 (TF32)", 12)
    one("bf16 weights", 12, **half)
    one("bf16 weights, CUDA graphs", 12, cuda_graphs=True, **half)
    many("bf16 weights, compiled", 50, **half, **last, **compiled)
    many("bf16 weights", 12, **half)
    one("bf16 weights, compiled, CUDA graphs", 50, cuda_graphs=True, **half, **compiled)


def first_stage_rows(bench: Bench) -> None:
    """Training of KL-f4 at 256 px with its adversary by the project's own loop, and decoding by VQ-f4."""
    seconds = 1.0 if bench.context.rehearse else 7.0
    if bench.context.rehearse or bench.context.left > 30:
        for adversary in (False,) if bench.context.rehearse else (False, True):
            name = f"training KL-f4{', with adversary' if adversary else ''}"
            row = attempt(partial(paper_first_stage, bench.device, seconds, bench.context, adversary))
            bench.result["rows"].append({"work": name, "variant": "ours, fp32 (TF32) as released", "kind": "ours",
                                         **row})
            bench.save(bench.result)
    for label, bf16 in (("float32 (TF32)", False), ("bf16 weights, channels last", True)):
        bench.row("decoding VQ-f4", label, 10, partial(decoder, bench, bf16), kind="ours")


@torch.no_grad()
def decoder(bench: Bench, bf16: bool) -> tuple[Callable, float, int]:
    config, batch, size = LDMS["celeba256"].first_stage.config, 32, 256
    if bench.context.rehearse:
        config, batch, size = AutoencoderConfig(4, 3, "kl", ch=32, ch_mult=(1, 1, 1), num_res_blocks=1), 1, 32
    model = build_autoencoder(config).to(bench.device).eval()
    z = torch.randn(batch, 3, size // 4, size // 4, device=bench.device)
    narrow = accelerate(model.decoder.to(memory_format=torch.channels_last), dtype=torch.bfloat16)

    @torch.inference_mode()
    def run() -> None:
        narrow(model.from_latent(z)) if bf16 else model.decode(z)

    return run, batch * count_first_stage(config, size)[1], batch


# --- In the background of the parts that time nothing
def compile_ahead(context: Context, save: Save) -> None:
    """Compile what part 3 will compile, into inductor's cache on disk; the seconds of a first, cold compilation."""
    device, found = choose_device(), {}
    backend = "eager" if context.rehearse else "inductor"
    small = context.rehearse
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True

    def steps(name: str, batch: int) -> Callable:
        return training_step(name, 2 if small else batch, device, small, backend=backend)[0]

    def samples() -> Callable:
        def change(model: torch.nn.Module) -> Callable:
            model.to(memory_format=torch.channels_last)
            return accelerate(model, dtype=torch.bfloat16, compile=True, backend=backend)
        return sampling("LDM-4", 2 if small else 64, 2, device, small, change=change)[0]

    jobs = {"training LDM-4, batch 48": partial(steps, "LDM-4", 48), "training LDM-8, batch 96":
            partial(steps, "LDM-8", 96), "sampling LDM-4, batch 64": samples,
            "training LDM-4, batch 128": partial(steps, "LDM-4", 128)}
    for name, make in jobs.items():
        def once(make: Callable = make) -> float:
            run = make()
            synchronize()
            began = time.perf_counter()
            run()
            synchronize()
            return time.perf_counter() - began

        found[name] = attempt(once)
        save({"compile_s": found})
        torch._dynamo.reset()
        gc.collect()
        if device.type == "cuda":
            attempt(torch.cuda.empty_cache)
