"""Train or load: every model is filed under the content of its spec, trained once, and found again."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ldmlab.checkpoints.files import load_model, load_weights, save_model
from ldmlab.damage import DamagedFile, read_json
from ldmlab.data.images import ImageSet
from ldmlab.diffusion.conditioning.spatial import SpatialConditioner, WithPictures
from ldmlab.diffusion.conditioning.tokens import Conditioned
from ldmlab.diffusion.model import LatentDiffusion
from ldmlab.diffusion.schedules import scaled_linear
from ldmlab.diffusion.unet.unet import UNet, count_params
from ldmlab.evaluation.metrics import METRICS
from ldmlab.first_stage.latents import (
    Latents,
    MirroredImages,
    PixelLatents,
    weights_hash,
)
from ldmlab.perception.files import WEIGHTS
from ldmlab.study.config.conditions import condition_kind
from ldmlab.study.config.paths import runs_dir
from ldmlab.study.config.specs import StudySpec, content_key, denoiser_config
from ldmlab.study.runs.conditioners import build_conditioner, read_conditions
from ldmlab.study.runs.first_stage import TrainedFirstStage
from ldmlab.study.runs.pictures import Pictures
from ldmlab.study.training.curve import Curve
from ldmlab.study.training.device import as_device
from ldmlab.study.training.loop import fit
from ldmlab.study.training.state import check_meta, find_or_train
from ldmlab.study.training.threads import one_thread_if_busy

Milestone = Callable[[LatentDiffusion, int], dict[str, float]]  # (model with EMA weights, step) -> its scores


@dataclass
class TrainedDiffusion:
    """A diffusion model ready to sample, with its curve."""

    model: LatentDiffusion
    curve: Curve
    name: str
    hash: str
    num_params: int
    path: Path
    first_stage: TrainedFirstStage = field(repr=False)


def diffusion_folder(spec: StudySpec, images: ImageSet, first_stage: TrainedFirstStage) -> Path:
    """Where the diffusion model of a spec, on this first stage, is kept; how it is scored is no part of its name."""
    config = denoiser_config(spec.diffusion, images.num_classes)

    def folder(fingerprint: str) -> Path:
        key = content_key(spec.diffusion, asdict(config), first_stage.hash, fingerprint, spec.seed)
        return runs_dir() / f"diffusion-{spec.name}-{key}"

    return images.find(folder)


def train_diffusion(
    spec: StudySpec,
    pictures: Pictures,
    first_stage: TrainedFirstStage,
    latents: Latents | PixelLatents,
    device: torch.device | str = "auto",
    on_milestone: Milestone | None = None,
) -> TrainedDiffusion:
    """Train the diffusion model of `spec` on `latents`, or load it.

    `on_milestone(model with EMA weights, step)` scores samples along the way; its numbers join the curve. Raises
    ValueError if the latents are another first stage's.
    """
    if latents.first_stage != first_stage.hash:
        raise ValueError(f"these latents were encoded by first stage {latents.first_stage[:12]}, not by "
                         f"{first_stage.name} {first_stage.hash[:12]}: encode the pictures with this one")
    device = as_device(device)
    path = _diffusion_path(spec, pictures, first_stage)
    return find_or_train(
        path, spec.name,
        lambda: _fit_diffusion(spec, pictures, first_stage, latents, device, path, on_milestone),
        lambda path: _load_own(spec, pictures, first_stage, path, device))


def find_diffusion(
    spec: StudySpec, pictures: Pictures, first_stage: TrainedFirstStage, device: torch.device | str = "auto"
) -> TrainedDiffusion | None:
    """The diffusion model of `spec` if it has been trained, for which no latents are needed; else None."""
    try:
        return _load_own(spec, pictures, first_stage, _diffusion_path(spec, pictures, first_stage), as_device(device))
    except (FileNotFoundError, DamagedFile):  # `train_diffusion` sets a damaged one aside
        return None


def _diffusion_path(spec: StudySpec, pictures: Pictures, first_stage: TrainedFirstStage) -> Path:
    return diffusion_folder(spec, pictures.train, first_stage) / "diffusion.safetensors"


def _load_own(
    spec: StudySpec, pictures: Pictures, first_stage: TrainedFirstStage, path: Path, device: torch.device
) -> TrainedDiffusion:
    stated = {"folder": path.parent.name, "name": spec.name, "seed": spec.seed}
    return load_diffusion(spec, pictures, first_stage, path, device, stated)


def load_diffusion(
    spec: StudySpec, pictures: Pictures, first_stage: TrainedFirstStage, path: Path, device: torch.device,
    stated: dict[str, Any] | None = None,
) -> TrainedDiffusion:
    """The diffusion model of `spec` from a file that `train_diffusion` wrote, whose metadata must have `stated` values.

    FileNotFoundError for a missing file; DamagedFile, a ValueError, for a damaged one or one of another first stage.
    """
    tensors, meta = load_model(path)
    check_meta(path, meta, {"kind": "diffusion", "first_stage": first_stage.hash, **(stated or {})})
    model = _new_diffusion(spec, pictures, first_stage, device)
    load_weights(path, model.trained, tensors, meta)
    model.trained.eval().requires_grad_(False).to(device)
    model.schedule = model.schedule.to(device)
    values = meta["curve"]
    if (taken := meta.get("milestones")) is not None and taken != _milestones(spec):
        scores = [name for name in values if name in METRICS]
        print(f"{path.parent.name}: {', '.join(scores)} over training left out: taken under {taken}", flush=True)
        values = {name: points for name, points in values.items() if name not in scores}
    return TrainedDiffusion(model, Curve(values, meta["events"]), spec.name, meta["hash"],
                            count_params(model.trained), path, first_stage)


def _milestones(spec: StudySpec) -> dict[str, Any]:
    """What scores over training have to be compared under, as a model's file states it."""
    plan = spec.evaluation
    networks = {row.extractor for row in METRICS.values() if row.at_milestones}
    hashes = {name: read_json(WEIGHTS / f"{name}.json")["sha256"] for name in sorted(networks)}
    return {"num_samples": plan.num_samples, "num_steps": plan.num_steps, "num_reference": plan.num_reference, **hashes}


def _new_diffusion(
    spec: StudySpec, pictures: Pictures, first_stage: TrainedFirstStage, device: torch.device
) -> LatentDiffusion:
    plan, num_classes = spec.diffusion, pictures.train.num_classes
    config = denoiser_config(plan, num_classes)
    torch.manual_seed(spec.seed)
    denoiser = UNet(config)
    return LatentDiffusion(first_stage.model, first_stage.stats, denoiser, scaled_linear(plan.T, *plan.beta),
                           build_conditioner(plan, pictures, first_stage), spec.data.size, device, one_thread_if_busy)


def _fit_diffusion(
    spec: StudySpec, pictures: Pictures, first_stage: TrainedFirstStage, latents: Latents | PixelLatents,
    device: torch.device, path: Path, on_milestone: Milestone | None,
) -> None:
    from ldmlab.diffusion.training import DiffusionModule

    model, folder = _new_diffusion(spec, pictures, first_stage, device), path.parent
    plan, denoiser = spec.diffusion, model.denoiser
    assert isinstance(denoiser, UNet)
    module = DiffusionModule(
        denoiser, model.schedule, model.conditioner, scale_factor=first_stage.stats.scale_factor,
        loss=plan.loss, lr=plan.lr, warmup_steps=plan.warmup_steps, weight_decay=plan.weight_decay,
        ema_decay=plan.ema_decay, channels_last=device.type == "cuda", accumulate=plan.accumulate)

    def milestone(module: DiffusionModule, step: int, curve: Curve) -> None:
        assert on_milestone is not None  # else there are no marks
        began = time.perf_counter()
        module.trained.eval()
        model.schedule = module.schedule
        eager = torch.compiler.set_stance("force_eager") if plan.compile else nullcontext()
        with eager, module.ema.applied_to(module.trained):
            curve.add(step, **on_milestone(model, step))
        module.trained.train()
        curve.add(step, scoring_s=time.perf_counter() - began)

    marks = {*plan.milestones, plan.num_steps} if on_milestone else ()
    dataset: Latents | PixelLatents | WithPictures | Conditioned = latents
    if isinstance(model.conditioner, SpatialConditioner):
        maps = condition_kind(model.conditioner.kind).maps
        dataset = WithPictures(latents, MirroredImages(pictures.train), maps)
    elif plan.condition is not None and model.conditioner is not None:
        dataset = Conditioned(latents, read_conditions(model.conditioner, pictures))
    curve = fit(module, dataset, num_steps=plan.num_steps, batch_size=min(plan.batch_size, len(latents) // 2),
                seed=spec.seed, run_dir=folder, label=f"{spec.name} on {first_stage.name}", device=device,
                precision=plan.precision, at_steps={step: [milestone] for step in marks},
                compiled=model.denoiser if plan.compile else None)
    with module.ema.applied_to(module.trained):
        tensors = {name: value.clone() for name, value in module.trained.state_dict().items()}
        identity = weights_hash(module.trained)
    meta = {
        "kind": "diffusion", "folder": folder.name, "name": spec.name, "denoiser": asdict(model.denoiser_config),
        "hash": identity, "first_stage": first_stage.hash,
        "first_stage_file": first_stage.path and first_stage.path.parent.name,
        "latent_stats": first_stage.stats.to_json(), "curve": curve.values, "events": curve.events,
        "milestones": _milestones(spec), "num_classes": pictures.train.num_classes, "beta": plan.beta, "T": plan.T,
        "seed": spec.seed,
    }
    save_model(path, tensors, meta)


def has_diffusion(spec: StudySpec, pictures: Pictures, first_stage: TrainedFirstStage) -> bool:
    """Whether the diffusion model of a spec, on this first stage, is on disk."""
    return _diffusion_path(spec, pictures, first_stage).exists()
