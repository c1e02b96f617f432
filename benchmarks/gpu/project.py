"""Parts 4 and 5: resume after SIGKILL, and the tier `gpu` timed; and the paper's first stage for part 3."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpu.parts import Context, Save, attempt
from ldmlab.checkpoints.files import load_model
from ldmlab.diffusion.conditioning.tokens import ClassEmbedder
from ldmlab.diffusion.samplers import ddim
from ldmlab.diffusion.schedules import scaled_linear
from ldmlab.diffusion.training import DiffusionModule
from ldmlab.diffusion.unet.unet import UNet
from ldmlab.evaluation.cost import synchronize
from ldmlab.experiments.compute.flops import costs_of_spec
from ldmlab.first_stage.autoencoder import build_autoencoder
from ldmlab.first_stage.latents import Latents
from ldmlab.first_stage.losses import FirstStageLoss, PatchDiscriminator
from ldmlab.first_stage.training import FirstStageModule
from ldmlab.perception.losses import perceptual_loss
from ldmlab.study.config.presets import study_spec
from ldmlab.study.config.specs import StudySpec, denoiser_config
from ldmlab.study.runs.diffusion import train_diffusion
from ldmlab.study.runs.first_stage import encode, train_first_stage
from ldmlab.study.runs.pictures import open_pictures
from ldmlab.study.training import callbacks
from ldmlab.study.training.device import choose_device
from ldmlab.study.training.loop import fit

NUM_CLASSES = 12


# --- Part 4
KILLS = ("first stage", 7), ("diffusion", 9)  # of 12 and 16 steps at tier smoke


def run_resume(context: Context, save: Save) -> None:
    """The project's train-or-load, killed twice and started again, against a run that nobody disturbed.

    Processes are forked from this one, which has not touched the GPU, so that each start costs no imports.
    """
    began, result = time.monotonic(), {"kills": [f"{what} at step {step}" for what, step in KILLS]}
    for name, deterministic in (("deterministic algorithms", True), ("as shipped", False)):
        for method in ("fork", "spawn"):  # the latter imports anew in each process
            parent = context.scratch / "resume" / f"{name.replace(' ', '_')}_{method}"
            folders = {run: parent / run for run in ("whole", "killed")}
            result[name] = attempt(partial(compare_runs, folders, deterministic, context, method))
            if "error" not in result[name]:
                break
        result["seconds"] = time.monotonic() - began
        save(result)


def compare_runs(folders: dict[str, Path], deterministic: bool, context: Context, method: str) -> dict[str, Any]:
    processes = multiprocessing.get_context(method)

    def start(folder: Path, kill: tuple[str, int] | None) -> Any:
        process = processes.Process(target=one_run, args=(folder, deterministic, kill))
        process.start()
        return process

    whole = start(folders["whole"], None)
    codes = []
    for kill in (*KILLS, None):
        process = start(folders["killed"], kill)
        process.join(max(context.left - 2, 1))
        codes.append(process.exitcode)
        if process.exitcode not in (0, -signal.SIGKILL):
            break
    whole.join(max(context.left - 2, 1))
    codes.append(whole.exitcode)
    expected = [-signal.SIGKILL] * len(KILLS) + [0, 0]
    if codes != expected:
        raise RuntimeError(f"exit codes {codes}, expected {expected}")
    return {"exit_codes": codes} | {part: difference(*(weights(folder, part) for folder in folders.values()))
                                    for part in ("first_stage", "diffusion")}


def one_run(folder: Path, deterministic: bool, kill: tuple[str, int] | None) -> None:
    """Train or load at tier smoke in `folder`, with a checkpoint after every step; dies by SIGKILL where told."""
    os.environ["LDMLAB_ROOT"] = str(folder)
    if deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    callbacks.CHECKPOINT_EVERY_S = 0.0
    if kill is not None:
        module = FirstStageModule if kill[0] == "first stage" else DiffusionModule
        module.training_step = dying(module.training_step, kill[1])  # type: ignore[method-assign]
    spec = study_spec(8, tier="smoke")
    spec = replace(spec, data=replace(spec.data, num_train=64, num_val=16))
    pictures, device = open_pictures(spec), choose_device()
    first_stage = train_first_stage(spec, pictures, device)
    train_diffusion(spec, pictures, first_stage, encode(spec, first_stage, pictures, device), device)


def dying(step: Callable, at: int) -> Callable:
    """`step`, which kills its process in its `at`-th call."""
    calls = 0

    def run(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*args)

    return run


def weights(folder: Path, part: str) -> dict[str, Tensor]:
    (path,) = folder.glob(f"results/runs/{part}-*/{part}.safetensors" if part == "diffusion" else
                          f"results/runs/{part}-*/first_stage.safetensors")
    return load_model(path)[0]


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, Any]:
    """Whether all weights are equal bit for bit, and the largest difference over the largest weight."""
    off = max(float((a[name].double() - b[name].double()).abs().max()) for name in a)
    largest = max(float(value.double().abs().max()) for value in a.values())
    return {"bit_equal": all(torch.equal(a[name], b[name]) for name in a), "max_error": off / largest}


# --- Part 5
class Enough(Exception):
    """The time for timing is over."""


class RandomPictures(torch.utils.data.Dataset):
    """Pictures of random pixels, in memory: a speed does not depend on what they show."""

    is_decoded = True

    def __init__(self, n: int, size: int):
        self.x = torch.randint(256, (n, 3, size, size), dtype=torch.uint8)

    def __len__(self) -> int:
        return 2 * len(self.x)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        picked = torch.as_tensor(indices) % len(self.x)
        return {"image": self.x[picked], "label": picked % NUM_CLASSES}


def timed_fit(module: Any, dataset: Any, batch_size: int, seconds: float, device: torch.device, precision: str,
              folder: Path, every: int = 10) -> dict[str, float]:
    """Steps per second of the project's own loop, wall clock, after 20 steps, for about `seconds`; nothing is kept."""
    marks: list[tuple[int, float]] = []

    def mark(module: Any, step: int, curve: Any) -> None:
        synchronize()
        marks.append((step, time.perf_counter()))
        if len(marks) > 2 and marks[-1][1] - marks[1][1] > seconds:
            raise Enough

    num = 1_000_000
    try:
        fit(module, dataset, num_steps=num, batch_size=batch_size, seed=0, run_dir=folder, label="timed",
            device=device, precision=precision, log_every=every,
            at_steps={step: [mark] for step in range(every, 200_000, every)})
    except Enough:
        pass
    # The median of stretches of steps, since the loop also writes checkpoints, every 20 s.
    rates = [(b[0] - a[0]) / (b[1] - a[1]) for a, b in zip(marks[1:], marks[2:], strict=False)]
    return {"steps_per_s": float(np.median(rates)), "slowest": min(rates), "fastest": max(rates), "stretches":
            len(rates), "memory_gb": torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0.0}


def first_stage_module(spec: StudySpec, perceptual: str, adversary: bool) -> FirstStageModule:
    """As `study.runs` makes it, at a step before or after the adversary joins in."""
    plan = spec.first_stage
    loss = FirstStageLoss(
        perceptual_loss(perceptual), PatchDiscriminator(plan.disc_layers, plan.disc_ch), disc_start=plan.disc_start,
        reduction="sum" if spec.reg == "kl" else "mean", reg_weight=plan.kl_weight,
        perceptual_weight=plan.perceptual_weight, disc_weight=plan.disc_weight)
    module = FirstStageModule(
        build_autoencoder(plan.autoencoder), loss, lr=plan.lr, num_steps=10 * plan.num_steps,
        warmup_steps=plan.warmup_steps, decay_from=plan.decay_from, final_lr=plan.final_lr, clip_norm=plan.clip_norm,
        exact=plan.exact)
    module.step = plan.disc_start if adversary else 0
    return module


def paper_first_stage(device: torch.device, seconds: float, context: Context, adversary: bool) -> dict[str, Any]:
    """Training of KL-f4 at the paper's size, but for its perceptual network: PSIM-lab, since VGG's weights may lack."""
    spec = study_spec(4, tier="smoke" if context.rehearse else "paper")
    module = first_stage_module(spec, "student", adversary)
    plan, size = spec.first_stage, spec.data.size
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    timed = timed_fit(module, RandomPictures(64, size), plan.batch_size, seconds, device, plan.precision,
                      context.scratch / f"kl-f4-{adversary}", every=5)
    work = plan.batch_size * costs_of_spec(spec).first_stage_training * timed["steps_per_s"]
    return {**timed, "batch": plan.batch_size, "per_s": plan.batch_size * timed["steps_per_s"], "flops_per_s": work,
            "step_s": 1 / timed["steps_per_s"]}


def run_tier(context: Context, save: Save) -> None:
    """Steps of tier gpu at f = 4 and 8, by the project's own loop, and the minutes of a whole run from them."""
    device, tier = choose_device(), "smoke" if context.rehearse else "gpu"
    seconds = 0.5 if context.rehearse else 4.5
    result: dict[str, Any] = {"tier": tier}
    for f in (8, 4):
        spec = study_spec(f, tier=tier)
        rows: dict[str, Any] = {}
        result[f"f = {f}"] = rows
        jobs = {"first stage": partial(tier_first_stage, spec, False), "first stage, adversary":
                partial(tier_first_stage, spec, True), "denoiser": partial(tier_denoiser, spec)}
        for name, job in jobs.items():
            rows[name] = attempt(partial(job, seconds, device, context.scratch / f"tier-{f}-{name.replace(' ', '-')}"))
            save(result)
        rows["sampling"] = attempt(partial(tier_sampling, spec, device))
        rows["predicted_minutes"] = attempt(partial(predicted, spec, rows))
        save(result)


def tier_first_stage(spec: StudySpec, adversary: bool, seconds: float, device: torch.device, folder: Path
                     ) -> dict[str, Any]:
    plan = spec.first_stage
    return timed_fit(first_stage_module(spec, plan.perceptual, adversary), RandomPictures(2048, spec.data.size),
                     plan.batch_size, seconds, device, plan.precision, folder)


def tier_denoiser(spec: StudySpec, seconds: float, device: torch.device, folder: Path) -> dict[str, Any]:
    plan, side = spec.diffusion, spec.data.size // spec.f
    config = denoiser_config(plan, NUM_CLASSES)
    assert config.context_dim is not None  # conditioned on a class
    module = DiffusionModule(
        UNet(config), scaled_linear(plan.T, *plan.beta), ClassEmbedder(NUM_CLASSES, config.context_dim, plan.p_uncond),
        lr=plan.lr, warmup_steps=plan.warmup_steps, ema_decay=plan.ema_decay, channels_last=device.type == "cuda")
    moments = np.random.default_rng(0).standard_normal((4096, 2 * config.in_channels, side, side), np.float32)
    data = Latents(moments, np.arange(2048) % NUM_CLASSES, "random")
    return timed_fit(module, data, plan.batch_size, seconds, device, plan.precision, folder, every=25)


@torch.inference_mode()
def tier_sampling(spec: StudySpec, device: torch.device) -> dict[str, float]:
    """Pictures per second of scoring's samples: DDIM and decoding, float32, as shipped."""
    scoring, config = spec.evaluation, denoiser_config(spec.diffusion, NUM_CLASSES)
    unet = UNet(config).to(device).eval()
    first_stage = build_autoencoder(spec.first_stage.autoencoder).to(device).eval()
    n, side = scoring.batch_size, spec.data.size // spec.f
    z_T = torch.randn(n, config.in_channels, side, side, device=device)
    context = torch.randn(n, 1, config.context_dim or 1, device=device)
    schedule = scaled_linear().to(device)

    def draw(num_steps: int) -> None:
        first_stage.decode(ddim(lambda z, t: unet(z, t, context), z_T, schedule, num_steps))
        synchronize()

    draw(2)
    began = time.perf_counter()
    draw(scoring.num_steps)
    return {"per_s": n / (time.perf_counter() - began), "num_steps": scoring.num_steps}


def predicted(spec: StudySpec, rows: dict[str, Any]) -> dict[str, float]:
    """Minutes of the first stage, the denoiser and its scored samples; without drawing and encoding the pictures."""
    plan, before = spec.first_stage, min(spec.first_stage.disc_start, spec.first_stage.num_steps)
    stage = before / rows["first stage"]["steps_per_s"]
    stage += (plan.num_steps - before) / rows["first stage, adversary"]["steps_per_s"]
    denoiser = spec.diffusion.num_steps / rows["denoiser"]["steps_per_s"]
    scoring = (len(spec.diffusion.milestones) + 1) * spec.evaluation.num_samples / rows["sampling"]["per_s"]
    found = {"first stage": stage / 60, "denoiser": denoiser / 60, "scored samples": scoring / 60}
    return found | {"all": sum(found.values())}
