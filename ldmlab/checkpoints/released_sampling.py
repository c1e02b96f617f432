"""Prepare released models for sampling: find the file, and wrap the condition's network into a conditioner."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldmlab.checkpoints.downloads import manifest
from ldmlab.checkpoints.downloads.download import default_folder
from ldmlab.checkpoints.downloads.transfer import megabytes
from ldmlab.checkpoints.released import Condition, LdmRow
from ldmlab.checkpoints.released_model import ReleasedModel
from ldmlab.diffusion.conditioning.boxes import BoxTokenizer
from ldmlab.diffusion.conditioning.captions import BERT, CaptionTokenizer, find_bert
from ldmlab.diffusion.conditioning.spatial import LabelMap, LowResolution, MaskedPicture, SpatialConditioner
from ldmlab.diffusion.conditioning.tokens import Conditioner, LayoutEmbedder, TextEmbedder
from ldmlab.diffusion.model import LatentDiffusion
from ldmlab.first_stage.latents import LatentStats

OPENIMAGES_CLASSES = 340  # classes of boxes in the released code
FACTOR = 4  # of super-resolution [LDM v2, Sec. 4.4]


class ConditionalOnly(LatentDiffusion):
    """A latent diffusion model trained with its condition only: no guidance and no unconditional samples."""

    @staticmethod
    def _droppable(conditioner: Conditioner | SpatialConditioner, wanted: str) -> Conditioner:
        raise ValueError(unconditional_error(conditioner.kind, wanted))


def unconditional_error(kind: str, wanted: str) -> str:
    """Message of the error for guidance of a model whose condition was never dropped in training."""
    return (f"this model was always trained with its {kind} and has no null condition, so it has no unconditional "
            f"prediction for guidance; got {wanted}")


def latent_diffusion(
    model: ReleasedModel, size: int, vocabulary: Path | None = None, device: torch.device | str = "cpu"
) -> LatentDiffusion:
    """Wrap a released latent diffusion model for sampling pictures of `size` pixels, in eval mode on `device`.

    `vocabulary` is the folder of BERT's vocab.txt, for captions. Raises ValueError for a first stage alone.
    """
    if model.denoiser is None or model.schedule is None or not isinstance(model.row, LdmRow):
        raise ValueError(f"{model.row.name} is a first stage, which cannot sample; give a latent diffusion model")
    scale, device = model.scale_factor, torch.device(device)
    stats = LatentStats("none" if scale == 1 else "first_batch", (0.0,), (1 / scale,), (0.0,), 0)
    c = model.row.condition
    can_be_unconditional = c is None or c.has_null_condition or c.enters == "channels"
    whole = (LatentDiffusion if can_be_unconditional else ConditionalOnly)(
        model.first_stage, stats, model.denoiser, model.schedule.to(device), _conditioner(model, c, stats, vocabulary),
        size, device)
    for module in (whole.first_stage, whole.trained):
        module.eval().requires_grad_(False).to(device)
    return whole


def _conditioner(
    model: ReleasedModel, c: Condition | None, stats: LatentStats, vocabulary: Path | None
) -> Conditioner | SpatialConditioner | None:
    network: Any = model.conditioner  # of the class that belongs to the kind
    first_stage = model.first_stage
    if c is None:
        return None
    match c.kind:
        case "class":
            return network
        case "text":
            return TextEmbedder(CaptionTokenizer(vocabulary or bert_folder(), c.max_length), network)
        case "layout":
            boxes = BoxTokenizer(OPENIMAGES_CLASSES, c.num_items, (c.max_length - 2) // 3, use_group=True,
                                 use_additional=True)
            return LayoutEmbedder(boxes, network)
        case "low_resolution":
            return LowResolution(first_stage.f, FACTOR, "bsr")
        case "mask":
            def encode_picture(x: Tensor) -> Tensor:
                return stats.scale(first_stage.most_probable_latent(x))

            return MaskedPicture(first_stage.f, first_stage.z_channels, encode_picture)
        case "labels":
            labels = LabelMap(first_stage.f, c.num_items, c.channels)
            labels.rescaler = network
            return labels
    raise ValueError(f"{model.row.name} has a condition of unknown kind {c.kind!r}")


def bert_folder() -> Path:
    """The folder of BERT's vocabulary; FileNotFoundError, with the missing file and how to get it, if not found."""
    if (folder := find_bert()) is None:
        raise FileNotFoundError(
            f"captions need BERT's vocabulary: vocab.txt of {BERT} (232 kB), in a folder that LDMLAB_BERT names, or in "
            f"transformers' cache after `huggingface-cli download {BERT} vocab.txt`")
    return folder


def find_checkpoint(name: str) -> Path:
    """The downloaded file of a released model; FileNotFoundError, with how to get it, if there is none."""
    rows = [row for row in manifest.released_files().values() if row.preset == name]
    for row in rows:
        if (path := default_folder(row) / row.file).exists():
            return path
    row = rows[0]
    size = row.size or (row.copy and row.copy.size)
    volume = f"about {megabytes(size)}" if size else "size not published"
    about = "; ".join(filter(None, (volume, row.about, row.license)))
    where = f"{default_folder(row) / row.file}".replace(str(Path.home()), "~", 1)
    pipeline = manifest.DIFFUSERS.get(name)
    raise FileNotFoundError(
        f"there is no file of {name} at {where}. With a network, `python -m ldmlab fetch {row.name}` gets "
        f"it from {row.urls[0]} ({about}); or name a file you have: -p file PATH"
        + (f"; or a folder of diffusers, such as a copy of https://huggingface.co/{pipeline}" if pipeline else "")
        + ". Tier smoke uses a small file with random weights")

