"""First stages by the content of their spec: trained once, found again; and the latents of a training set."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ldmlab.atomic import check_free_space, locked
from ldmlab.checkpoints.files import load_model, load_weights, save_model
from ldmlab.damage import DamagedFile
from ldmlab.data.images import ImageSet, to_float
from ldmlab.diffusion.unet.unet import count_params
from ldmlab.first_stage.autoencoder import FirstStage, IdentityAutoencoder, build_autoencoder
from ldmlab.first_stage.latents import (
    Latents,
    LatentStats,
    MirroredImages,
    PixelLatents,
    cached_latents,
    encode_dataset,
    latent_stats,
    weights_hash,
)
from ldmlab.perception.losses import loss_hash, perceptual_loss
from ldmlab.study.config.paths import runs_dir
from ldmlab.study.config.specs import StudySpec, content_key
from ldmlab.study.runs.pictures import Pictures
from ldmlab.study.training.curve import Curve
from ldmlab.study.training.device import as_device
from ldmlab.study.training.loop import fit
from ldmlab.study.training.progress import progress_callback
from ldmlab.study.training.state import check_meta, find_or_train

FLAT_DB = 0.3  # a first stage is called flat if the second half of its training gained less validation PSNR


@dataclass
class TrainedFirstStage:
    """A first stage with its latent statistics, its curve and its name."""

    model: FirstStage
    stats: LatentStats
    curve: Curve
    name: str
    hash: str
    num_params: int
    flat: bool | None  # None for the identity, which was not trained
    path: Path | None = None
    perceptual: str = ""


def first_stage_folder(spec: StudySpec, images: ImageSet) -> Path:
    """Where the first stage of a spec is kept."""
    perceptual = loss_hash(spec.first_stage.perceptual)

    def folder(fingerprint: str) -> Path:
        key = content_key(spec.first_stage, perceptual, fingerprint, spec.seed)
        return runs_dir() / f"first_stage-{spec.first_stage.name}-{key}"

    return images.find(folder)


def train_first_stage(spec: StudySpec, pictures: Pictures, device: torch.device | str = "auto") -> TrainedFirstStage:
    """Train the first stage of `spec`, or load it; f = 1 is the identity and needs neither."""
    device, plan = as_device(device), spec.first_stage
    if spec.f == 1:
        model = build_autoencoder(plan.autoencoder).to(device)
        stats = measure_latents(model, pictures, "none", device)
        return TrainedFirstStage(model, stats, Curve(), plan.name, PixelLatents.first_stage, 0, None)
    folder = first_stage_folder(spec, pictures.train)
    path = folder / "first_stage.safetensors"
    return find_or_train(
        path, plan.name, lambda: _fit_first_stage(spec, pictures, device, folder, path),
        lambda path: load_first_stage(spec, pictures, path, device, {
            "folder": folder.name, "name": plan.name, "seed": spec.seed}))


def load_first_stage(
    spec: StudySpec, pictures: Pictures, path: Path, device: torch.device, stated: dict[str, Any] | None = None
) -> TrainedFirstStage:
    """The first stage of `spec` from a file that `train_first_stage` wrote, whose metadata must have `stated` values.

    FileNotFoundError for a missing file, DamagedFile for a damaged one or that of another first stage.
    """
    tensors, meta = load_model(path)
    check_meta(path, meta, {"kind": "first_stage", **(stated or {})})
    model = build_autoencoder(spec.first_stage.autoencoder)
    load_weights(path, model, tensors, meta)
    model.eval().requires_grad_(False).to(device)
    curve, stats = Curve(meta["curve"], meta["events"]), LatentStats.from_json(meta["latent_stats"])
    if stats.mode != spec.diffusion.scale_mode:  # the file keeps those of the run that trained it
        stats = measure_latents(model, pictures, spec.diffusion.scale_mode, device)
    return TrainedFirstStage(model, stats, curve, spec.first_stage.name, meta["hash"], count_params(model),
                             is_flat(curve), path, meta["perceptual"])


def _fit_first_stage(spec: StudySpec, pictures: Pictures, device: torch.device, folder: Path, path: Path) -> None:
    from ldmlab.first_stage.losses import FirstStageLoss, PatchDiscriminator
    from ldmlab.first_stage.training import FirstStageModule

    plan = spec.first_stage
    torch.manual_seed(spec.seed)
    model = build_autoencoder(plan.autoencoder)
    assert not isinstance(model, IdentityAutoencoder)  # f = 1 is never trained
    with torch.inference_mode():
        moments = model.moments(to_float(pictures.train.images([0])))
    check_free_space(folder, 2 * len(pictures.train) * 2 * moments.numel(), f"the latents of {plan.name}")
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

    def validate(module: FirstStageModule, step: int, curve: Curve) -> None:
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
    stats = measure_latents(model.to(device), pictures, spec.diffusion.scale_mode, device)
    meta = {
        "kind": "first_stage", "folder": folder.name, "name": plan.name, "autoencoder": asdict(plan.autoencoder),
        "latent_stats": stats.to_json(), "curve": curve.values, "events": curve.events, "hash": weights_hash(model),
        "perceptual": perceptual.name, "seed": spec.seed,
        "data": {"name": spec.data.name, "fingerprint": pictures.train.fingerprint},
    }
    save_model(path, model.state_dict(), meta)


def is_flat(curve: Curve) -> bool:
    """Whether validation PSNR rose by less than FLAT_DB over the second half of training.

    The half, because a learning rate that decays to nothing flattens the end of any curve: what counts is whether
    doubling the training was still worth it.
    """
    steps, psnr = curve.steps("val_psnr"), curve["val_psnr"]
    before = psnr[steps <= 0.5 * steps[-1]]
    return bool(len(before) and psnr[-1] - before[-1] < FLAT_DB)


@torch.inference_mode()
def measure_latents(
    model: FirstStage, pictures: Pictures, mode: str, device: torch.device, num: int = 256
) -> LatentStats:
    """Statistics of sampled training latents; `num` = 0 takes the whole set, as modes "dataset" and "channel" do."""
    num = len(pictures.train) if mode in ("dataset", "channel") else min(num, len(pictures.train))
    generator = torch.Generator().manual_seed(0)
    parts = [model.sample_latent(model.moments(to_float(pictures.train.images(range(i, min(i + 128, num)))).to(device)),
                                 generator).cpu() for i in range(0, num, 128)]
    return latent_stats(torch.cat(parts), mode)


def encode(
    spec: StudySpec, first_stage: TrainedFirstStage, pictures: Pictures, device: torch.device | str = "auto"
) -> Latents | PixelLatents:
    """The training set's latents, encoded once; pixels at f = 1 are their own latents."""
    if spec.f == 1:
        return PixelLatents(pictures.train)
    try:
        return cached_latents(first_stage.model, pictures.train, runs_dir())  # without a lock: it may be read-only
    except (FileNotFoundError, DamagedFile):
        pass
    name = f"latents of {first_stage.name}"
    lock = locked(runs_dir() / f"latents-lock-{first_stage.hash[:12]}", name)
    with lock, progress_callback(name, "pictures") as report:
        return encode_dataset(first_stage.model, pictures.train, runs_dir(), device=as_device(device), progress=report)


def has_first_stage(spec: StudySpec, pictures: Pictures) -> bool:
    """Whether the first stage of a spec is on disk; the identity always is."""
    return spec.f == 1 or (first_stage_folder(spec, pictures.train) / "first_stage.safetensors").exists()
