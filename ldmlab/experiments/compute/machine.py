"""Peak and attained rates of machines: published peaks, and a measurement of this machine in about a minute.

The peak is the rate of large matrix products and convolutions. Training and sampling steps attain less, and how much
less depends on the model: small models are limited by launch overhead, wide ones come closer. Both are timed.
"""

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from ldmlab.diffusion.conditioning.tokens import ClassEmbedder
from ldmlab.diffusion.samplers import ddim
from ldmlab.diffusion.schedules import scaled_linear
from ldmlab.diffusion.training import DiffusionModule
from ldmlab.diffusion.unet.unet import DenoiserConfig, UNet
from ldmlab.evaluation.cost import peak_jobs, synchronize
from ldmlab.experiments.compute.flops import PASSES, costs_of_spec, count_denoiser
from ldmlab.first_stage.autoencoder import build_autoencoder
from ldmlab.perception.losses import perceptual_loss
from ldmlab.study.config.budgets import auto_tier
from ldmlab.study.config.presets import study_spec
from ldmlab.study.config.specs import StudySpec, denoiser_config
from ldmlab.study.records.compare import device_of
from ldmlab.study.records.record import Record, environment
from ldmlab.study.training.device import usable_precision
from ldmlab.study.training.progress import progress

NUM_CLASSES, SAMPLING_STEPS = 12, 10
# Two parts of the denoiser of CelebA-HQ: its two outer levels at 64 x 64 and its innermost at 8 x 8 [LDM v2, Tab. 12].
OUTER = DenoiserConfig(3, 3, (224, 448), attention_at=(2,), num_head_channels=32)
INNER = DenoiserConfig(3, 3, (896,), attention_at=(1,), num_head_channels=32)


@dataclass(frozen=True)
class Machine:
    """Peak rates of a device: FLOP/s in `precision`, memory bandwidth in byte/s, and their source."""

    name: str
    precision: str
    flops_per_s: float
    bytes_per_s: float
    source: str


_SHEET = "NVIDIA data sheet, dense"
PUBLISHED = (
    Machine("V100", "fp16", 125e12, 0.90e12, f"{_SHEET}, SXM2"),
    Machine("A100, TF32", "tf32", 156e12, 1.555e12, f"{_SHEET}, 40 GB"),
    Machine("A100", "bf16", 312e12, 1.555e12, f"{_SHEET}, 40 GB"),
    Machine("H100", "bf16", 989e12, 3.35e12, f"{_SHEET}, SXM"),
    Machine("H200", "bf16", 989e12, 4.8e12, f"{_SHEET}, SXM"),
)


@dataclass(frozen=True)
class Rate:
    """FLOP/s (or byte/s) of a job: median over its calls, slowest and fastest call."""

    value: float
    low: float
    high: float
    seconds: float  # per call, median
    precision: str = "fp32"


@dataclass
class Measured:
    """Measured rates of a device: peaks by precision, memory bandwidth, and attained rates of steps.

    `training` and `first_stage` are training steps of a tier's denoisers and autoencoders by f, `sampling` is sampling
    at one f, `wide` are forward and backward passes through parts of UNets of the paper's width.
    """

    device: str  # as named by `compare.device_of`
    tier: str
    peaks: dict[str, Rate]
    bandwidth: Rate
    training: dict[int, Rate]
    first_stage: dict[int, Rate]
    sampling: Rate
    wide: dict[str, Rate]

    @property
    def machine(self) -> Machine:
        """This device as a `Machine`, in its fastest precision."""
        name, rate = max(self.peaks.items(), key=lambda peak: peak[1].value)
        return Machine("this machine", name, rate.value, self.bandwidth.value, f"measured: {self.device}")

    @property
    def jobs(self) -> dict[str, Rate]:
        """Attained rates by job."""
        steps = {f"train LDM-{f}": rate for f, rate in self.training.items()}
        steps |= {f"train first stage, f = {f}": rate for f, rate in self.first_stage.items()}
        steps |= {f"sample, {SAMPLING_STEPS} steps": self.sampling}
        return steps | {f"paper's width, {name}": rate for name, rate in self.wide.items()}

    def share(self, rate: Rate) -> float:
        """A rate as a share of the peak in its precision."""
        return rate.value / self.peaks[rate.precision].value

    def metrics(self) -> dict[str, dict]:
        """Metrics as stored in a record."""
        found = {f"peak_{name}": (rate, "FLOP/s") for name, rate in self.peaks.items()}
        found |= {"bandwidth": (self.bandwidth, "byte/s")}
        found |= {f"attained {name}": (rate, "FLOP/s") for name, rate in self.jobs.items()}
        return {name: {"value": float(f"{rate.value:.4g}"), "unit": unit, "precision": rate.precision,
                       "interval": {"low": float(f"{rate.low:.4g}"), "high": float(f"{rate.high:.4g}"), "level": 1.0,
                                    "method": "range of the calls"}} for name, (rate, unit) in found.items()}


# --- Measuring --------------------------------------------------------------------------------------------------------
def measure_machine(spec: StudySpec, device: torch.device | str, seconds: float | int) -> Measured:
    """Measure peak, memory bandwidth, and steps of the tier and f of `spec` on this machine, for about `seconds`.

    Weights and pictures are random, since speed does not depend on them. Every job runs at least three times, so that
    slow machines take longer. ValueError unless seconds > 0.
    """
    if not seconds > 0:
        raise ValueError(f"seconds must be positive, got {seconds}")
    device, large = torch.device(device), torch.device(device).type == "cuda"
    if spec.budget.paper_scale:  # its own steps need larger machines; `wide` replaces them
        spec = study_spec(spec.f, spec.reg, tier=auto_tier(device.type), seed=spec.seed)
    precisions = {"fp32": torch.float32} | ({"bf16": torch.bfloat16} if _has_bf16(device) else {})
    fs, stages = sorted({1, 4, 16, spec.f}), sorted({2, 4, 8, 32, spec.f} - {1})
    jobs = len(fs) + len(stages) + 4
    budget = seconds / (4 * len(precisions) + jobs)
    with progress(len(precisions) + jobs, "measuring", unit="jobs") as bar:
        def timed(job: Callable[[], object], work: float | int, precision: str = "fp32") -> Rate:
            rate = _rate(job, work, budget, precision)
            bar.update(1)
            return rate

        peaks = {}
        for name, dtype in precisions.items():
            # The fastest call of the best job, which other load on the machine affects least.
            found = [_rate(job, work, budget, name) for job, work in peak_jobs(device, dtype)]
            best = max(found, key=lambda rate: rate.high)
            peaks[name] = replace(best, value=best.high)
            bar.update(1)
        source = torch.ones(2**28 if large else 2**26, device=device)
        target = torch.empty_like(source)
        bandwidth = timed(lambda: target.copy_(source), 2 * source.nbytes)
        bandwidth = replace(bandwidth, value=bandwidth.high)
        del source, target
        training, first_stage = {}, {}
        for f in fs:
            plan = _at(spec, f)
            precision = _precision(plan.diffusion.precision, device)
            work = plan.diffusion.batch_size * costs_of_spec(plan).training()
            training[f] = timed(_training_step(plan, device), work, precision)
        for f in stages:
            plan = _at(spec, f)
            precision = _precision(plan.first_stage.precision, device)
            work = plan.first_stage.batch_size * costs_of_spec(plan).first_stage_training
            first_stage[f] = timed(_first_stage_step(plan, device), work, precision)
        n = spec.evaluation.speed_batch
        sampling = timed(_sampling(spec, device, n), n * costs_of_spec(spec).sampling(SAMPLING_STEPS))
        wide, batch = {}, 48 if large else 1
        for name, config, side, n in (("outer levels", OUTER, 64, batch), ("innermost level", INNER, 8, 4 * batch)):
            if spec.budget.is_smoke:
                config = replace(config, widths=tuple(width // 7 for width in config.widths))
            precision = _precision("bf16-mixed", device)
            wide[name] = timed(_passes(config, side, n, precision, device), n * PASSES * count_denoiser(config, side),
                               precision)
    here = device_of(Record("", "", {}, env=environment(device)))
    return Measured(here, spec.tier, peaks, bandwidth, training, first_stage, sampling, wide)


def _at(spec: StudySpec, f: int) -> StudySpec:
    """The class-conditional run of the same tier at another f, of the same size if f divides it, else of the tier's."""
    size = spec.data.size if spec.data.size % f == 0 else 0
    return study_spec(f, "kl" if spec.reg == "none" else spec.reg, tier=spec.tier, size=size)


def _precision(requested: str, device: torch.device) -> str:
    """The precision that training would use on a device: bf16 or fp32."""
    return "bf16" if "bf16" in usable_precision(requested, device) else "fp32"


def _has_bf16(device: torch.device) -> bool:
    return _precision("bf16-mixed", device) == "bf16"


def _rate(job: Callable[[], object], work: float | int, budget: float, precision: str = "fp32") -> Rate:
    """Rate of a job of `work` operations, from the calls that fit into `budget` seconds, at least two, after a warm-up.
    """
    job()
    synchronize()
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 2 or time.perf_counter() - began < budget:
        start = time.perf_counter()
        job()
        synchronize()
        times.append(time.perf_counter() - start)
    median = statistics.median(times)
    return Rate(work / median, work / max(times), work / min(times), median, precision)


def _autocast(precision: str, device: torch.device) -> AbstractContextManager:
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def _training_step(spec: StudySpec, device: torch.device) -> Callable[[], object]:
    """A complete training step on given latents: loss, gradient, AdamW, EMA."""
    plan = spec.diffusion
    unet, schedule = UNet(denoiser_config(plan, NUM_CLASSES)), scaled_linear(plan.T, *plan.beta)
    assert plan.denoiser.context_dim is not None  # class-conditional, see _at
    tau = ClassEmbedder(NUM_CLASSES, plan.denoiser.context_dim, plan.p_uncond)
    module = DiffusionModule(unet, schedule, tau, lr=plan.lr).to(device)
    module.on_fit_start()
    optimizer, n, side = module.configure_optimizers(), plan.batch_size, spec.data.size // spec.f
    batch = {"moments": torch.randn(n, plan.denoiser.in_channels, side, side, device=device),
             "label": torch.arange(n, device=device) % NUM_CLASSES}
    precision = _precision(plan.precision, device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with _autocast(precision, device):
            loss = module.training_step(batch, 0)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.trained.parameters(), module.clip_norm)
        optimizer.step()
        module.ema.update(module.trained)

    return step


def _first_stage_step(spec: StudySpec, device: torch.device) -> Callable[[], object]:
    """A training step of the autoencoder with perceptual loss, without discriminator."""
    plan, perceptual = spec.first_stage, perceptual_loss("student").to(device)
    model = build_autoencoder(plan.autoencoder).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=plan.lr, fused=device.type in ("cuda", "cpu"))
    x = torch.rand(plan.batch_size, 3, spec.data.size, spec.data.size, device=device) * 2 - 1
    precision = _precision(plan.precision, device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with _autocast(precision, device):
            out = model(x)
            loss = F.l1_loss(out.x_rec, x) + plan.perceptual_weight * perceptual(x, out.x_rec).mean()
            (loss + plan.kl_weight * out.reg_loss).backward()
        optimizer.step()

    return step


def _sampling(spec: StudySpec, device: torch.device, n: int) -> Callable[[], object]:
    """DDIM sampling and decoding of `n` pictures in float32."""
    spec = _at(spec, spec.f)
    plan, side = spec.diffusion, spec.data.size // spec.f
    unet = UNet(denoiser_config(plan, NUM_CLASSES)).eval().to(device)
    model = build_autoencoder(spec.first_stage.autoencoder).eval().to(device)
    schedule = scaled_linear(plan.T, *plan.beta).to(device)
    assert plan.denoiser.context_dim is not None  # class-conditional, see _at
    context = torch.randn(n, 1, plan.denoiser.context_dim, device=device)
    z_T = torch.randn(n, plan.denoiser.in_channels, side, side, device=device)

    @torch.inference_mode()
    def sample() -> None:
        model.decode(ddim(lambda z, t: unet(z, t, context), z_T, schedule, SAMPLING_STEPS))

    return sample


def _passes(config: DenoiserConfig, side: int, n: int, precision: str, device: torch.device) -> Callable[[], object]:
    """Forward and backward pass, without optimizer, whose share is small at the paper's batch sizes."""
    unet = UNet(config).to(device)
    z, t = torch.randn(n, config.in_channels, side, side, device=device), torch.arange(n, device=device)

    def step() -> None:
        unet.zero_grad(set_to_none=True)
        with _autocast(precision, device):
            loss = unet(z, t).square().mean()
        loss.backward()

    return step
