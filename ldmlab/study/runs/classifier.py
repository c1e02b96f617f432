"""The classifier of noisy latents that goes with a run's model: trained once, found again, ready to guide."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from ldmlab.checkpoints.files import load_model, load_weights, save_model
from ldmlab.diffusion.classifier import ClassifierModule, NoisyClassifier, accuracy_by_noise
from ldmlab.diffusion.guidance import classifier_guided
from ldmlab.diffusion.model import Guided
from ldmlab.diffusion.schedules import scaled_linear
from ldmlab.diffusion.unet.unet import count_params
from ldmlab.first_stage.latents import PixelLatents, encode_dataset, weights_hash
from ldmlab.study.config.paths import runs_dir
from ldmlab.study.config.presets import classifier_spec
from ldmlab.study.config.specs import ClassifierSpec, content_key
from ldmlab.study.runs.run import Run
from ldmlab.study.training.curve import Curve
from ldmlab.study.training.loop import fit
from ldmlab.study.training.state import check_meta, find_or_train

TIMES = (0, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 999)  # of the schedule's 1000, where accuracy is measured


@dataclass
class TrainedClassifier:
    """p_phi(y | z_t, t) of a run's latents, its curve, and its accuracy on validation pictures by noise level."""

    model: NoisyClassifier
    curve: Curve
    accuracy: list[tuple[int, float]]
    hash: str
    num_params: int

    def guide(self, run: Run, y: Int[Tensor, " n"], guidance_scale: float | int) -> Guided:
        """What `LatentDiffusion.sample` takes to be guided towards the classes `y`."""
        schedule = run.diffusion.model.schedule
        return lambda eps_model, rows: classifier_guided(eps_model, self.model, y[rows], schedule, guidance_scale)


def train_classifier(run: Run) -> TrainedClassifier:
    """Train the classifier for the run's latents, or load it; ValueError where the data has no classes."""
    num_classes = run.pictures.train.num_classes
    if num_classes < 2:
        raise ValueError(f"classifier guidance needs classes, and {run.pictures.train.name} has {num_classes}")
    plan, schedule = classifier_spec(run.spec, num_classes), run.spec.diffusion

    def place(fingerprint: str) -> Path:
        key = content_key(plan, run.first_stage.hash, fingerprint, run.spec.seed, schedule.T, schedule.beta,
                          schedule.scale_mode)
        return runs_dir() / f"classifier-{run.spec.name}-{key}"

    folder = run.pictures.train.find(place)
    path, name = folder / "classifier.safetensors", f"classifier on {run.first_stage.name}"

    def load(path: Path) -> TrainedClassifier:
        tensors, meta = load_model(path)
        check_meta(path, meta, {"kind": "classifier", "folder": folder.name, "first_stage": run.first_stage.hash})
        model = NoisyClassifier(plan.config, plan.pool)
        load_weights(path, model, tensors, meta)
        model.eval().requires_grad_(False).to(run.device)
        return TrainedClassifier(model, Curve(meta["curve"], meta["events"]), [(t, a) for t, a in meta["accuracy"]],
                                 meta["hash"], count_params(model))

    return find_or_train(path, name, lambda: _fit(run, plan, folder, path, name), load)


def _fit(run: Run, plan: ClassifierSpec, folder: Path, path: Path, name: str) -> None:
    latents, diffusion = run.latents, run.spec.diffusion
    torch.manual_seed(run.spec.seed)
    module = ClassifierModule(
        NoisyClassifier(plan.config, plan.pool), scaled_linear(diffusion.T, *diffusion.beta),
        scale_factor=run.first_stage.stats.scale_factor, lr=plan.lr, warmup_steps=plan.warmup_steps,
        weight_decay=plan.weight_decay, ema_decay=plan.ema_decay)
    curve = fit(module, latents, num_steps=plan.num_steps, batch_size=min(plan.batch_size, len(latents) // 2),
                seed=run.spec.seed, run_dir=folder, label=name, device=run.device, precision=plan.precision)
    val, first_stage = run.pictures.val, run.first_stage.model
    unseen = PixelLatents(val) if run.spec.f == 1 else encode_dataset(first_stage, val, runs_dir(), device=run.device)
    module.to(run.device)
    with module.ema.applied_to(module.trained):
        accuracy = accuracy_by_noise(module, unseen, TIMES)
        tensors = {key: value.clone() for key, value in module.classifier.state_dict().items()}
        identity = weights_hash(module.classifier)
    meta = {
        "kind": "classifier", "folder": folder.name, "classifier": asdict(plan.config), "pool": plan.pool,
        "hash": identity, "first_stage": run.first_stage.hash, "accuracy": accuracy,
        "curve": curve.values, "events": curve.events, "T": diffusion.T, "beta": diffusion.beta, "seed": run.spec.seed,
    }
    save_model(path, tensors, meta)
