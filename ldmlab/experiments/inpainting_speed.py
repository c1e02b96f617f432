"""What inpainting costs in pixels and in latents: training and sampling throughput side by side [LDM v2, Tab. 6].

Speed does not depend on the values of weights, so models of each row's shape are built and timed, none trained. All
rows are timed in turn, in a new random order each round, and a ratio is taken within its round: what slows the machine
for a while slows both.
"""

import random
import statistics
import time
from collections.abc import Callable

import torch

from ldmlab.diffusion.model import LatentDiffusion
from ldmlab.diffusion.schedules import scaled_linear
from ldmlab.diffusion.training import DiffusionModule
from ldmlab.diffusion.unet.unet import UNet
from ldmlab.evaluation.cost import synchronize
from ldmlab.first_stage.autoencoder import build_autoencoder
from ldmlab.first_stage.latents import LatentStats
from ldmlab.study.config.presets import study_spec
from ldmlab.study.config.specs import StudySpec, denoiser_config
from ldmlab.study.records.record import Record
from ldmlab.study.runs.conditioners import build_conditioner
from ldmlab.study.runs.first_stage import TrainedFirstStage
from ldmlab.study.runs.run import Run
from ldmlab.study.training.curve import Curve
from ldmlab.study.training.progress import progress

ROWS = {  # as in Tab. 6: f, regularizer, attention in the first stage
    "LDM-1": (1, "kl", True), "LDM-4 KL": (4, "kl", True), "LDM-4 VQ": (4, "vq", True),
    "LDM-4 VQ no attention": (4, "vq", False),
}
PASSES = {"train": "training", "small": "sampling", "large": "sampling, twice the size"}


def record_efficiency(run: Run, record: Record) -> None:
    """Pictures per second of each of ROWS in training and in sampling at two sizes, and ratios to LDM-1, in `record`.

    Training is a whole step, the condition encoded, latents given; sampling is as many DDIM steps as the tier takes,
    the condition encoded and the result decoded. Intervals are the least and the greatest of all rounds.
    """
    rounds, n = run.spec.budget.timed_rounds, run.spec.budget.timed_batch
    seconds: dict[tuple[str, str], list[float]] = {}
    jobs = [(row, name, make) for row in ROWS for name, make in _passes(run, row).items()]
    for row, name, job in jobs:
        job()  # warm-up
        seconds[row, name] = []
    order = random.Random(run.spec.seed)
    with progress(len(jobs) * rounds, "throughput", unit="timings") as bar:
        for _ in range(rounds):
            for row, name, job in order.sample(jobs, len(jobs)):
                seconds[row, name].append(_seconds(job))
                bar.update(1)
    for (row, name), times in seconds.items():
        rates = [n / t for t in times]
        ratios = [first / t for first, t in zip(seconds["LDM-1", name], times, strict=True)]
        for key, values, unit in (("per_s", rates, "pictures/s"), ("speedup", ratios, "1")):
            record.metrics[f"{name}_{key}_{row}"] = {
                "value": float(f"{statistics.median(values):.4g}"), "unit": unit,
                "interval": {"low": min(values), "high": max(values), "level": 1.0, "method": "range of the rounds"}}
    steps = run.spec.evaluation.num_steps
    record.protocol |= {"timed_batch": n, "timed_rounds": rounds, "timed_sampling": f"{steps} DDIM steps"}


def _seconds(job: Callable[[], object]) -> float:
    synchronize()
    start = time.perf_counter()
    job()
    synchronize()
    return time.perf_counter() - start


def _passes(run: Run, row: str) -> dict[str, Callable[[], object]]:
    """The jobs to be timed for one of ROWS."""
    f, reg, attention = ROWS[row]
    spec = study_spec(f, reg, run.spec.data.name, run.spec.tier, run.spec.seed, run.spec.data.size, condition="mask",
                      attention=attention)
    model = _untrained(run, spec)
    n, size = spec.budget.timed_batch, spec.data.size
    image = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, device=run.device)
    assert isinstance(model.denoiser, UNet) and model.conditioner is not None  # of `_untrained`
    module = DiffusionModule(model.denoiser, model.schedule, model.conditioner,
                             scale_factor=model.stats.scale_factor, lr=0.0).to(run.device)
    optimizer = module.configure_optimizers()
    latents = torch.randn(n, *model.latent_shape(model.conditioner.condition({"image": image})), device=run.device)

    def train() -> None:
        model.denoiser.train()
        optimizer.zero_grad(set_to_none=True)
        module.training_step({"moments": latents, "image": image, "label": torch.zeros(n)}, 0)["loss"].backward()
        optimizer.step()
        model.denoiser.eval()

    def sample(side: int) -> Callable[[], object]:
        y = torch.cat([torch.zeros(n, 3, side, side), torch.ones(n, 1, side, side)], 1)
        return lambda: model.sample(y, num_steps=run.spec.evaluation.num_steps, batch_size=n)

    return {"train": train, "small": sample(size), "large": sample(2 * size)}


def _untrained(run: Run, spec: StudySpec) -> LatentDiffusion:
    """A model of the spec's shapes as it is before training."""
    autoencoder = build_autoencoder(spec.first_stage.autoencoder).eval().requires_grad_(False).to(run.device)
    stats = LatentStats("none", (0.0,), (1.0,), (0.0,), 0)
    first_stage = TrainedFirstStage(autoencoder, stats, Curve(), spec.first_stage.name, "", 0, None)
    denoiser = UNet(denoiser_config(spec.diffusion, run.pictures.train.num_classes)).eval().to(run.device)
    schedule = scaled_linear(spec.diffusion.T, *spec.diffusion.beta).to(run.device)
    return LatentDiffusion(autoencoder, stats, denoiser, schedule,
                           build_conditioner(spec.diffusion, run.pictures, first_stage), spec.data.size, run.device)
