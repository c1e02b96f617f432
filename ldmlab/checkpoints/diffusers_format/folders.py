"""Write and read models in diffusers' format (folders of config.json and safetensors), without diffusers.

`write_pipeline(run.diffusion.model, folder)` writes a folder for `DiffusionPipeline.from_pretrained`; `read_pipeline`
loads the model in one. diffusers has three pipelines for latent diffusion models: unconditional, text-to-image, and
super-resolution. Of other models, `write_parts` writes the parts that diffusers has classes for, to be combined by
hand: a class-conditional denoiser takes `encoder_hidden_states` (b, 1, d), the token of the class, whose embedding
table is not among the parts.

First stages of the tiers below `paper` have patches and a shortcut that diffusers lacks. `exportable_run` of
`ldmlab.study.runs.export` trains a model that diffusers can run: its first stage is `configs.exportable_config` of the
tier's, and text models have f = 8 and `max_length` = 77, which are built into the pipeline.

Reading runs no code in a folder: weights come from safetensors, else from a .bin, opened as by `opening`.
"""

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors.torch import save
from torch import nn

from ldmlab.atomic import atomic_write
from ldmlab.checkpoints.diffusers_format import configs
from ldmlab.checkpoints.diffusers_format.keys import load_theirs, to_theirs
from ldmlab.checkpoints.diffusers_format.weights import read_weights
from ldmlab.checkpoints.foreign import class_in, read_json
from ldmlab.diffusion.conditioning.captions import MAX_LENGTH, CaptionTokenizer, write_vocabulary
from ldmlab.diffusion.conditioning.spatial import LowResolution
from ldmlab.diffusion.conditioning.tokens import LayoutEmbedder, TextEmbedder
from ldmlab.diffusion.conditioning.transformer import TokenTransformer
from ldmlab.diffusion.model import LatentDiffusion
from ldmlab.diffusion.schedules import Schedule
from ldmlab.diffusion.unet.unet import UNet
from ldmlab.first_stage.autoencoder import (
    AutoencoderKL,
    AutoencoderVQ,
    FirstStage,
    IdentityAutoencoder,
    build_autoencoder,
)
from ldmlab.first_stage.latents import LatentStats

T = TypeVar("T")
LAYOUT = "0.30.0"  # version of diffusers whose fields are written; newer ones add defaults for later fields
FIRST_STAGES, UNETS = ("AutoencoderKL", "VQModel"), ("UNet2DModel", "UNet2DConditionModel")
TEXT = "LDMBertModel"
PIPELINES = ("LDMPipeline", "LDMTextToImagePipeline", "LDMSuperResolutionPipeline")


class Part(NamedTuple):
    """A part that was read: the module, with the scale factor of a first stage or the latents' side of a denoiser."""

    module: FirstStage | UNet | TokenTransformer
    scale_factor: float | None = None
    sample_size: int | None = None


# --- Writing ---------------------------------------------------------------------------------------------------------
def pipeline_name(model: LatentDiffusion) -> str:
    """The pipeline of diffusers for this model; ValueError, with the reason, if there is none."""
    first_stage: Any = model.first_stage
    tau: Any = model.conditioner
    f = first_stage.f
    if tau is None:
        return "LDMPipeline"
    match tau.kind:
        case "text":
            if (f, tau.tokenizer.max_length) != (8, MAX_LENGTH):
                raise ValueError(f"LDMTextToImagePipeline has f = 8 and captions of {MAX_LENGTH} word pieces built in; "
                                 f"this model has f = {f} and {tau.tokenizer.max_length}")
            return "LDMTextToImagePipeline"
        case "low_resolution":
            if f != tau.factor or _scale_factor(model.stats) != 1:
                raise ValueError(f"LDMSuperResolutionPipeline takes pictures smaller by f and unscaled latents; this "
                                 f"model has f = {f}, pictures smaller by {tau.factor} and latents scaled by "
                                 f"{_scale_factor(model.stats):g}")
            return "LDMSuperResolutionPipeline"
    raise ValueError(f"diffusers has no pipeline for a latent diffusion model with a condition of kind {tau.kind}; "
                     f"write_parts writes its first stage, denoiser and scheduler")


def write_pipeline(model: LatentDiffusion, folder: Path | str) -> str:
    """Write a model for `DiffusionPipeline.from_pretrained(folder)`; returns the name of the pipeline.

    The scheduler takes the steps of our DDIM where their number divides T. Raises ValueError, before anything is
    written, for what diffusers cannot express.
    """
    name = pipeline_name(model)
    parts = write_parts(model, folder)
    if isinstance(model.conditioner, TextEmbedder):
        _write_tokenizer(model.conditioner.tokenizer, Path(folder) / "tokenizer")
        parts |= {"tokenizer": ("transformers", "BertTokenizer")}
    _write_json(Path(folder) / "model_index.json", {"_class_name": name, "_diffusers_version": LAYOUT, **parts})
    return name


def write_parts(model: LatentDiffusion, folder: Path | str) -> dict[str, tuple[str, str]]:
    """Write first stage, denoiser, scheduler and text transformer, each to a folder: name -> (library, class).

    Raises ValueError, before anything is written, for what diffusers cannot express.
    """
    scale_factor = _scale_factor(model.stats)
    modules: dict[str, nn.Module] = {"vqvae": model.first_stage, "unet": model.denoiser}
    if isinstance(model.conditioner, TextEmbedder | LayoutEmbedder):
        modules["bert"] = model.conditioner.transformer
    first_stage: Any = model.first_stage
    sample_size = model.size // first_stage.f
    described = {name: describe(module, scale_factor=scale_factor, sample_size=sample_size)
                 for name, module in modules.items()}
    scheduler = configs.schedule_to_theirs(model.schedule)
    parts = {"scheduler": ("diffusers", scheduler["_class_name"])}
    for name, config in described.items():
        _write(modules[name], config, Path(folder) / name)
        parts[name] = ("latent_diffusion", TEXT) if name == "bert" else ("diffusers", config["_class_name"])
    _write_json(Path(folder) / "scheduler" / "scheduler_config.json", {**scheduler, "_diffusers_version": LAYOUT})
    return parts


def write_part(
    module: nn.Module, folder: Path | str, *, scale_factor: float | int = 1.0, sample_size: int = 32
) -> None:
    """Write a first stage, denoiser or text transformer for the class of diffusers that corresponds to it.

    The config of a first stage has the `scale_factor` of z, that of a denoiser the side of its latents, `sample_size`.
    """
    _write(module, describe(module, scale_factor=scale_factor, sample_size=sample_size), Path(folder))


def describe(module: nn.Module, *, scale_factor: float | int = 1.0, sample_size: int = 32) -> configs.Json:
    """The config.json of a module; ValueError for what diffusers cannot express, TypeError for other modules."""
    match module:
        case UNet():
            return configs.denoiser_to_theirs(module.config, sample_size)
        case TokenTransformer():
            return configs.text_to_theirs(module)
        case AutoencoderKL() | AutoencoderVQ() | IdentityAutoencoder():
            return configs.autoencoder_to_theirs(module.config, float(scale_factor))
    raise TypeError(f"diffusers has first stages, denoisers and text transformers; got a {type(module).__name__}")


def _write(module: nn.Module, config: configs.Json, folder: Path) -> None:
    tensors = {key: value.detach().cpu().contiguous() for key, value in to_theirs(module).items()}
    weights = "model.safetensors" if isinstance(module, TokenTransformer) else "diffusion_pytorch_model.safetensors"
    atomic_write(folder / weights, save(tensors, metadata={"format": "pt"}))
    _write_json(folder / "config.json", {**config, "_diffusers_version": LAYOUT})


def _write_json(path: Path, values: configs.Json) -> None:
    atomic_write(path, (json.dumps(values, indent=2) + "\n").encode())


def _write_tokenizer(tokenizer: CaptionTokenizer, folder: Path) -> None:
    tokenizer.save(folder)
    _write_json(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "do_lower_case": True,
                                                   "model_max_length": tokenizer.max_length})


def _scale_factor(stats: LatentStats) -> float:
    if len(stats.scale_factor) > 1:
        raise ValueError(f"diffusers has one scale for all channels of z, and this model has one per channel "
                         f"(scale_mode = {stats.mode!r})")
    return stats.scale_factor[0]


# --- Reading ---------------------------------------------------------------------------------------------------------
class _Read(NamedTuple):
    """The parts of a pipeline's folder."""

    first_stage: Any
    denoiser: Any
    schedule: Schedule
    scale_factor: float
    side: int
    conditioner: TextEmbedder | LowResolution | None


def read_pipeline(folder: Path | str, device: torch.device | str = "cpu") -> LatentDiffusion:
    """Load the model in a folder of one of `PIPELINES`, in eval mode; samplers here choose their own steps.

    What was done to the names of weights is printed. Raises ValueError or FileNotFoundError, naming the file, for parts
    that are missing, damaged or not supported, and for weights that are NaN or infinite.
    """
    on, notes = torch.device(device), list[str]()
    read = _read_parts(snapshot(folder), notes)
    for note in notes:
        print(note, flush=True)
    scale = read.scale_factor
    stats = LatentStats("none" if scale == 1 else "first_batch", (0.0,), (1 / scale,), (0.0,), 0)
    model = LatentDiffusion(read.first_stage, stats, read.denoiser, read.schedule.to(on), read.conditioner,
                            read.side * read.first_stage.f, on)
    for module in (read.first_stage, model.trained):
        module.eval().requires_grad_(False).to(on)
    return model


def check_folder(folder: Path, is_pipeline: bool) -> list[str]:
    """Check a pipeline's or a part's folder as `read_pipeline` does, without building the model; notes on its names."""
    notes: list[str] = []
    if is_pipeline:
        _read_parts(folder, notes, "meta")
    else:
        read_part(folder, device="meta", notes=notes)
    return notes


def snapshot(folder: Path | str) -> Path:
    """The folder itself, or the snapshot in a folder of the hub's cache; ValueError where there are several."""
    folder = Path(folder)
    if not (folder / "snapshots").is_dir() or (folder / "model_index.json").exists():
        return folder
    found = sorted(path for path in (folder / "snapshots").iterdir() if path.is_dir())
    main = folder / "refs" / "main"
    named = folder / "snapshots" / main.read_text("ascii", "replace").strip() if main.is_file() else None
    if named in found:
        return named
    if len(found) != 1:
        raise ValueError(f"{folder} is a folder of the hub's cache with {len(found)} snapshots; give one of them: "
                         f"{', '.join(str(path) for path in found[:3])}")
    return found[0]


def _read_parts(folder: Path, notes: list[str], device: str = "cpu") -> _Read:
    name = _read_json(folder / "model_index.json", PIPELINES)["_class_name"]
    latent = "vae" if (folder / "vae").is_dir() and not (folder / "vqvae").is_dir() else "vqvae"
    parts: tuple[Any, Any] = (read_part(folder / latent, FIRST_STAGES, device=device, notes=notes),
                              read_part(folder / "unet", UNETS, device=device, notes=notes))
    (first_stage, scale, _), (denoiser, _, side) = parts
    conditioner: TextEmbedder | LowResolution | None = None
    context = None
    if name == "LDMTextToImagePipeline":
        transformer: Any = read_part(folder / "bert", (TEXT,), device=device, notes=notes).module
        conditioner = TextEmbedder(_read_tokenizer(folder / "tokenizer", transformer.max_length), transformer)
        context = transformer.dim
    elif name == "LDMSuperResolutionPipeline":
        conditioner = LowResolution(first_stage.f, first_stage.f)
        scale = 1.0  # also where the file has another: this pipeline does not scale
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"{folder / latent / 'config.json'} has scaling_factor = {scale!r}; accepted is a number "
                         "above 0")
    z, extra = first_stage.z_channels, conditioner.channels if isinstance(conditioner, LowResolution) else 0
    given = (denoiser.config.in_channels, denoiser.config.out_channels, denoiser.config.context_dim)
    if given != (z + extra, z, context):
        raise ValueError(f"{folder}: for {name} with this first stage, the denoiser must have (in_channels, "
                         f"out_channels, context_dim) = {(z + extra, z, context)}; unet/ has {given}")
    return _Read(first_stage, denoiser, read_schedule(folder / "scheduler"), scale, side, conditioner)


def read_part(
    folder: Path | str, accepted: Sequence[str] = (*FIRST_STAGES, *UNETS, TEXT), *, device: torch.device | str = "cpu",
    notes: list[str] | None = None,
) -> Part:
    """Read a first stage, denoiser or text transformer from its folder; raises as `read_pipeline`.

    On device "meta" all is checked and no weights are loaded. `notes` gets what was done to names of weights.
    """
    path = Path(folder) / "config.json"
    config = _read_json(path, accepted)
    with torch.device(device):
        part = _described(path, lambda: _build(config, str(path)))
    tensors, source, said = read_weights(Path(folder), config["_class_name"] == TEXT)
    said = [*said, *load_theirs(part.module, tensors, source)]
    if notes is not None:
        notes += [f"{source}: {note}" for note in said]
    return part


def read_schedule(folder: Path | str) -> Schedule:
    """Read beta_t from a scheduler's folder."""
    path = Path(folder) / "scheduler_config.json"
    if not path.is_file() and (other := path.with_name("config.json")).is_file():
        path = other
    values = _read_json(path)
    return _described(path, lambda: configs.schedule_to_ours(values, str(path)))


def _described(path: Path, build: Callable[[], T]) -> T:
    """What `build` makes of a configuration; ValueError, naming its file, for any error: values may be anything."""
    try:
        return build()
    except Exception as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise ValueError(f"{path} does not describe a model that can be built: {error!r}") from error


def _build(config: configs.Json, source: str) -> Part:
    if config["_class_name"] in FIRST_STAGES:
        ours, scale_factor = configs.autoencoder_to_ours(config, source)
        return Part(build_autoencoder(ours), scale_factor=scale_factor)
    if config["_class_name"] in UNETS:
        unet, sample_size = configs.denoiser_to_ours(config, source)
        return Part(UNet(unet), sample_size=sample_size)
    return Part(TokenTransformer(**configs.text_to_ours(config, source)))


def _read_json(path: Path, accepted: Sequence[str] = ()) -> dict[str, Any]:
    """Read a JSON file; the result has its class as `_class_name`, whatever the library's name of the field is."""
    if not path.is_file():
        there = ", ".join(sorted(p.name for p in path.parent.iterdir())) if path.parent.is_dir() else "no such folder"
        raise FileNotFoundError(f"{path} is missing, so this is not a folder in diffusers' format; it has: {there}")
    values = read_json(path)
    name = class_in(values)
    if accepted and name not in accepted:
        raise ValueError(f"{path} describes a {name}; accepted are {', '.join(accepted)}")
    return {**values, "_class_name": name}


def _read_tokenizer(folder: Path, max_length: int) -> CaptionTokenizer:
    """Read a tokenizer from vocab.txt, or from the tokenizer.json of newer versions of transformers."""
    if (folder / "vocab.txt").is_file():
        return CaptionTokenizer(folder, max_length)
    path = folder / "tokenizer.json"
    model = _read_json(path).get("model")
    pieces = model.get("vocab") if isinstance(model, dict) and model.get("type") == "WordPiece" else None
    if not isinstance(pieces, dict) or sorted(pieces.values()) != list(range(len(pieces))):
        raise ValueError(f"{path} does not hold a WordPiece vocabulary")
    with tempfile.TemporaryDirectory() as copy:
        write_vocabulary(pieces, copy)
        if (settings := folder / "tokenizer_config.json").is_file():
            shutil.copy(settings, copy)
        return CaptionTokenizer(copy, max_length)
