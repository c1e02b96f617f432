"""Train or load: every model is filed under the content of its spec, trained once, and found again."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from ldmlab.checkpoints.files import load_model, save_model
from ldmlab.data.images import ImageSet, to_float
from ldmlab.diffusion.conditioning import Conditioned
from ldmlab.diffusion.denoiser import DenoiserConfig, UNet, count_params, match_widths
from ldmlab.diffusion.model import LatentDiffusion
from ldmlab.diffusion.schedules import scaled_linear
from ldmlab.diffusion.spatial_conditioning import WithPictures
from ldmlab.first_stage.autoencoder import build_autoencoder
from ldmlab.first_stage.latents import Latents, LatentStats, MirroredImages, encode_dataset, latent_stats, weights_hash
from ldmlab.perception import feature_net, perceptual_loss
from ldmlab.study.conditions import KINDS, build_conditioner, read_conditions
from ldmlab.study.fit import Curve, choose_device, fit
from ldmlab.study.paths import runs_dir
from ldmlab.study.pictures import Pictures
from ldmlab.study.progress import reports
from ldmlab.study.specs import DiffusionSpec, StudySpec, content_key

FLAT_DB = 0.3  # a first stage is called flat if the second half of its training gained less validation PSNR


@dataclass
class TrainedFirstStage:
    """A first stage with its latent statistics, its curve and its name."""

    model: nn.Module
    stats: LatentStats
    curve: Curve
    name: str
    hash: str
    num_params: int
    flat: bool | None  # None for the identity, which was not trained
    path: Path | None = None
    perceptual: str = ""


@dataclass
class TrainedDiffusion:
    """A diffusion model ready to sample, with its curve."""

    model: LatentDiffusion
    curve: Curve
    name: str
    hash: str
    num_params: int
    path: Path
    first_stage: TrainedFirstStage = field(repr=False, default=None)


@contextmanager
def locked(folder: Path, label: str) -> Iterator[None]:
    """Hold the folder of one model: a second run of the same waits, and then finds it trained."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{label}: another run is training it; waiting for that one", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def first_stage_folder(spec: StudySpec, images: ImageSet) -> Path:
    """Where the first stage of a spec is kept."""
    perceptual = perceptual_loss(spec.first_stage.perceptual).weights_hash
    key = content_key(spec.first_stage, perceptual, images.fingerprint, spec.seed)
    return runs_dir() / f"first_stage-{spec.first_stage.name}-{key}"


def train_first_stage(spec: StudySpec, pictures: Pictures, device: torch.device | str = "auto") -> TrainedFirstStage:
    """Train the first stage of `spec`, or load it; f = 1 is the identity and needs neither."""
    device, plan = _device(device), spec.first_stage
    if spec.f == 1:
        model = build_autoencoder(plan.autoencoder).to(device)
        stats = _measure(model, pictures, "none", device)
        return TrainedFirstStage(model, stats, Curve(), plan.name, PixelLatents.first_stage, 0, None)
    folder = first_stage_folder(spec, pictures.train)
    path = folder / "first_stage.safetensors"
    with locked(folder, plan.name):
        if not path.exists():
            _fit_first_stage(spec, pictures, device, folder, path)
    return load_first_stage(spec, pictures, path, device)


def load_first_stage(spec: StudySpec, pictures: Pictures, path: Path, device: torch.device) -> TrainedFirstStage:
    """The first stage of `spec` from a file that `train_first_stage` wrote."""
    tensors, meta = load_model(path)
    model = build_autoencoder(spec.first_stage.autoencoder)
    model.load_state_dict(tensors)
    model.eval().requires_grad_(False).to(device)
    curve, stats = Curve(meta["curve"], meta["events"]), LatentStats.from_json(meta["latent_stats"])
    if stats.mode != spec.diffusion.scale_mode:  # the file keeps those of the run that trained it
        stats = _measure(model, pictures, spec.diffusion.scale_mode, device)
    return TrainedFirstStage(model, stats, curve, spec.first_stage.name, meta["hash"], count_params(model),
                             is_flat(curve), path, meta["perceptual"])


def _fit_first_stage(spec: StudySpec, pictures: Pictures, device: torch.device, folder: Path, path: Path) -> None:
    from ldmlab.first_stage.losses import FirstStageLoss, PatchDiscriminator
    from ldmlab.first_stage.training import FirstStageModule

    plan = spec.first_stage
    torch.manual_seed(spec.seed)
    model = build_autoencoder(plan.autoencoder)
    perceptual = perceptual_loss(plan.perceptual)
    loss = FirstStageLoss(
        perceptual, PatchDiscriminator(plan.disc_layers, plan.disc_ch), disc_start=plan.disc_start,
        reduction="sum" if spec.reg == "kl" else "mean",
        reg_weight=plan.kl_weight if spec.reg == "kl" else plan.codebook_weight,
        perceptual_weight=plan.perceptual_weight, disc_weight=plan.disc_weight)
    module = FirstStageModule(
        model, loss, lr=plan.lr, disc_lr=plan.disc_lr, num_steps=plan.num_steps, warmup_steps=plan.warmup_steps,
        decay_from=plan.decay_from, final_lr=plan.final_lr, clip_norm=plan.clip_norm, revive_every=plan.revive_every,
        exact=plan.exact)
    val = pictures.val.images(range(min(256, len(pictures.val))))

    def validate(module, step: int, curve: Curve) -> None:
        measured = module.validate(val)
        curve.add(step, **measured)
        sentence = module.watch(measured["val_psnr"])
        if sentence is not None:
            curve.events.append(sentence)
            print(f"{plan.name}: {sentence}", flush=True)

    marks = {*range(plan.val_every, plan.num_steps, plan.val_every), plan.num_steps}
    curve = fit(module, MirroredImages(pictures.train), num_steps=plan.num_steps,
                batch_size=min(plan.batch_size, len(pictures.train)), seed=spec.seed, run_dir=folder,
                label=f"first stage {plan.name}", device=device, precision=plan.precision,
                at_steps={step: [validate] for step in marks})
    model.eval()
    stats = _measure(model.to(device), pictures, spec.diffusion.scale_mode, device)
    meta = {
        "kind": "first_stage", "name": plan.name, "autoencoder": asdict(plan.autoencoder),
        "latent_stats": stats.to_json(), "curve": curve.values, "events": curve.events, "hash": weights_hash(model),
        "perceptual": perceptual.name, "seed": spec.seed,
        "data": {"name": spec.data.name, "fingerprint": pictures.train.fingerprint},
    }
    save_model(path, model.state_dict(), meta)
    (folder / "state.pt").unlink(missing_ok=True)


def is_flat(curve: Curve) -> bool:
    """Whether validation PSNR rose by less than FLAT_DB over the second half of training.

    The half, because a learning rate that decays to nothing flattens the end of any curve: what counts is whether
    doubling the training was still worth it.
    """
    steps, psnr = curve.steps("val_psnr"), curve["val_psnr"]
    before = psnr[steps <= 0.5 * steps[-1]]
    return bool(len(before) and psnr[-1] - before[-1] < FLAT_DB)


@torch.inference_mode()
def _measure(model: nn.Module, pictures: Pictures, mode: str, device: torch.device, num: int = 256) -> LatentStats:
    """Statistics of sampled training latents; `num` = 0 takes the whole set, as modes "dataset" and "channel" do."""
    num = len(pictures.train) if mode in ("dataset", "channel") else min(num, len(pictures.train))
    generator = torch.Generator().manual_seed(0)
    parts = [model.sample_latent(model.moments(to_float(pictures.train.images(range(i, min(i + 128, num)))).to(device)),
                                 generator).cpu() for i in range(0, num, 128)]
    return latent_stats(torch.cat(parts), mode)


def encode(spec: StudySpec, first_stage: TrainedFirstStage, pictures: Pictures, device: torch.device | str = "auto"):
    """The training set's latents, encoded once; pixels at f = 1 are their own latents."""
    if spec.f == 1:
        return PixelLatents(pictures.train)
    name = f"latents of {first_stage.name}"
    with locked(runs_dir() / f"latents-lock-{first_stage.hash[:12]}", name), reports(name, "pictures") as report:
        return encode_dataset(first_stage.model, pictures.train, runs_dir(), device=_device(device), progress=report)


class PixelLatents(MirroredImages):
    """Pictures in the shape of latents, for LDM-1."""

    first_stage = "identity"

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        batch = super().__getitems__(indices)
        return {"moments": to_float(batch["image"]), "label": batch["label"]}


def denoiser_config(plan: DiffusionSpec, num_classes: int) -> DenoiserConfig:
    """The denoiser of a spec for this data: of the size asked for within 3 %, unconditional if nothing is known."""
    conditional, target = num_classes or plan.condition, plan.target_params
    config = plan.denoiser if conditional else replace(plan.denoiser, context_dim=None)
    if target is None or abs(count_params(config) / target - 1) <= 0.03:
        return config
    return match_widths(config, target)


def diffusion_folder(spec: StudySpec, images: ImageSet, first_stage: TrainedFirstStage) -> Path:
    """Where the diffusion model of a spec, on this first stage, is kept."""
    config = denoiser_config(spec.diffusion, images.num_classes)
    judge = feature_net("fd-lab").weights_hash  # its scores are part of the curve
    key = content_key(spec.diffusion, asdict(config), spec.evaluation, judge, first_stage.hash, images.fingerprint,
                      spec.seed)
    return runs_dir() / f"diffusion-{spec.name}-{key}"


def train_diffusion(
    spec: StudySpec,
    pictures: Pictures,
    first_stage: TrainedFirstStage,
    latents: Latents | PixelLatents,
    device: torch.device | str = "auto",
    on_milestone: Callable[[LatentDiffusion, int], dict[str, float]] | None = None,
) -> TrainedDiffusion:
    """Train the diffusion model of `spec` on `latents`, or load it.

    `on_milestone(model with EMA weights, step)` scores samples along the way; its numbers join the curve. Raises
    ValueError if the latents are another first stage's.
    """
    if latents.first_stage != first_stage.hash:
        raise ValueError(f"these latents were encoded by first stage {latents.first_stage[:12]}, not by "
                         f"{first_stage.name} {first_stage.hash[:12]}: encode the pictures with this one")
    device = _device(device)
    folder = diffusion_folder(spec, pictures.train, first_stage)
    path = folder / "diffusion.safetensors"
    with locked(folder, spec.name):
        if not path.exists():
            model = _new_diffusion(spec, pictures, first_stage, device)
            _fit_diffusion(spec, pictures, first_stage, latents, model, device, folder, path, on_milestone)
    return load_diffusion(spec, pictures, first_stage, path, device)


def load_diffusion(
    spec: StudySpec, pictures: Pictures, first_stage: TrainedFirstStage, path: Path, device: torch.device
) -> TrainedDiffusion:
    """The diffusion model of `spec` from a file that `train_diffusion` wrote; ValueError if of another first stage."""
    tensors, meta = load_model(path)
    if meta["first_stage"] != first_stage.hash:
        raise ValueError(f"{path} was trained on first stage {meta['first_stage'][:12]}, not on {first_stage.name} "
                         f"{first_stage.hash[:12]}")
    model = _new_diffusion(spec, pictures, first_stage, device)
    model.trained.load_state_dict(tensors)
    model.trained.eval().requires_grad_(False).to(device)
    model.schedule = model.schedule.to(device)
    return TrainedDiffusion(model, Curve(meta["curve"], meta["events"]), spec.name, meta["hash"],
                            count_params(model.trained), path, first_stage)


def _new_diffusion(spec: StudySpec, pictures: Pictures, first_stage: TrainedFirstStage, device) -> LatentDiffusion:
    plan, num_classes = spec.diffusion, pictures.train.num_classes
    config = denoiser_config(plan, num_classes)
    torch.manual_seed(spec.seed)
    denoiser = UNet(config)
    return LatentDiffusion(first_stage.model, first_stage.stats, denoiser, scaled_linear(plan.T, *plan.beta),
                           build_conditioner(plan, pictures, first_stage), spec.data.size, device)


def _fit_diffusion(spec, pictures, first_stage, latents, model: LatentDiffusion, device, folder, path, on_milestone):
    from ldmlab.diffusion.training import DiffusionModule

    plan = spec.diffusion
    module = DiffusionModule(
        model.denoiser, model.schedule, model.conditioner, scale_factor=first_stage.stats.scale_factor,
        loss=plan.loss, lr=plan.lr, warmup_steps=plan.warmup_steps, weight_decay=plan.weight_decay,
        ema_decay=plan.ema_decay, channels_last=device.type == "cuda", accumulate=plan.accumulate)

    def milestone(module, step: int, curve: Curve) -> None:
        began = time.perf_counter()
        module.trained.eval()
        model.schedule = module.schedule
        eager = torch.compiler.set_stance("force_eager") if plan.compile else nullcontext()
        with eager, module.ema.applied_to(module.trained):
            curve.add(step, **on_milestone(model, step))
        module.trained.train()
        curve.add(step, scoring_s=time.perf_counter() - began)

    marks = {*plan.milestones, plan.num_steps} if on_milestone else ()
    if plan.condition is not None:
        if model.conditioner.enters == "channels":
            latents = WithPictures(latents, MirroredImages(pictures.train), KINDS[plan.condition.kind].maps)
        else:
            latents = Conditioned(latents, read_conditions(model.conditioner, pictures))
    curve = fit(module, latents, num_steps=plan.num_steps, batch_size=min(plan.batch_size, len(latents) // 2),
                seed=spec.seed, run_dir=folder, label=f"{spec.name} on {first_stage.name}", device=device,
                precision=plan.precision, at_steps={step: [milestone] for step in marks},
                compiled=model.denoiser if plan.compile else None)
    with module.ema.applied_to(module.trained):
        tensors = {name: value.clone() for name, value in module.trained.state_dict().items()}
        identity = weights_hash(module.trained)
    meta = {
        "kind": "diffusion", "name": spec.name, "denoiser": asdict(model.denoiser.config), "hash": identity,
        "first_stage": first_stage.hash, "first_stage_file": first_stage.path and first_stage.path.parent.name,
        "latent_stats": first_stage.stats.to_json(), "curve": curve.values, "events": curve.events,
        "num_classes": pictures.train.num_classes, "beta": plan.beta, "T": plan.T, "seed": spec.seed,
    }
    save_model(path, tensors, meta)
    (folder / "state.pt").unlink(missing_ok=True)


def _device(device: torch.device | str) -> torch.device:
    return choose_device(device) if isinstance(device, str) else device
