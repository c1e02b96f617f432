"""Released models as the sampler takes them: the file found, the condition wrapped; models written for diffusers."""

from pathlib import Path

import torch
from torch import Tensor

from ldmlab.checkpoints import manifest
from ldmlab.checkpoints.download import default_folder
from ldmlab.checkpoints.released_model import ReleasedModel
from ldmlab.checkpoints.transfer import mb
from ldmlab.diffusion.conditioning.boxes import BoxTokenizer
from ldmlab.diffusion.conditioning.captions import BERT, CaptionTokenizer, find_bert
from ldmlab.diffusion.conditioning.spatial import LabelMap, LowResolution, MaskedPicture, SpatialConditioner
from ldmlab.diffusion.conditioning.tokens import Conditioner, LayoutEmbedder, TextEmbedder
from ldmlab.diffusion.model import LatentDiffusion
from ldmlab.first_stage.latents import LatentStats

OPENIMAGES_CLASSES = 340  # of boxes, in the released code's list
FACTOR = 4  # of super-resolution [LDM v2, Sec. 4.4]


class AlwaysConditional(LatentDiffusion):
    """A latent diffusion model that was never trained without its condition: no guidance, nothing unconditional."""

    def _check_tokens(self, wanted: str) -> None:
        raise ValueError(unconditional_error(self.conditioner.kind, wanted))


def unconditional_error(kind: str, wanted: str) -> str:
    """Why a model whose condition was never dropped cannot be guided."""
    return (f"this model was always told its {kind} in training and has no item that says nothing, so there is nothing "
            f"to guide away from; asked was {wanted}")


def latent_diffusion(
    model: ReleasedModel, size: int, vocabulary: Path | None = None, device: torch.device | str = "cpu"
) -> LatentDiffusion:
    """A released latent diffusion model as the sampler takes it, for pictures of `size`, in eval mode on `device`.

    `vocabulary` is the folder of BERT's vocab.txt, for captions. ValueError for a first stage alone.
    """
    if model.denoiser is None:
        raise ValueError(f"{model.row.name} is a first stage: it reconstructs pictures and samples none")
    scale, device = model.scale_factor, torch.device(device)
    stats = LatentStats("none" if scale == 1 else "first_batch", (0.0,), (1 / scale,), (0.0,), 0)
    c = model.row.condition
    can_be_unconditional = c is None or c.has_nothing or c.enters == "channels"
    whole = (LatentDiffusion if can_be_unconditional else AlwaysConditional)(
        model.first_stage, stats, model.denoiser, model.schedule.to(device), _conditioner(model, stats, vocabulary),
        size, device)
    for module in (whole.first_stage, whole.trained):
        module.eval().requires_grad_(False).to(device)
    return whole


def _conditioner(
    model: ReleasedModel, stats: LatentStats, vocabulary: Path | None
) -> Conditioner | SpatialConditioner | None:
    c, first_stage = model.row.condition, model.first_stage
    match c and c.kind:
        case None | "class":
            return model.conditioner
        case "text":
            return TextEmbedder(CaptionTokenizer(vocabulary or bert_folder(), c.max_length), model.conditioner)
        case "layout":
            boxes = BoxTokenizer(OPENIMAGES_CLASSES, c.num_items, (c.max_length - 2) // 3, use_group=True,
                                 use_additional=True)
            return LayoutEmbedder(boxes, model.conditioner)
        case "low_resolution":
            return LowResolution(first_stage.f, FACTOR, "bsr")
        case "mask":
            def encode_picture(x: Tensor) -> Tensor:
                z = first_stage.encode(x)
                return stats.scale(z.mode() if first_stage.reg == "kl" else z)

            return MaskedPicture(first_stage.f, first_stage.z_channels, encode_picture)
        case "labels":
            labels = LabelMap(first_stage.f, c.num_items, c.channels)
            labels.rescaler = model.conditioner
            return labels
    raise ValueError(f"{model.row.name} has a condition of unknown kind {c.kind!r}")


def bert_folder() -> Path:
    """The folder of BERT's vocabulary; FileNotFoundError that says what is missing and where it is looked for."""
    if (folder := find_bert()) is None:
        raise FileNotFoundError(
            f"captions need BERT's vocabulary: vocab.txt of {BERT} (232 kB), in a folder that LDMLAB_BERT names, or in "
            f"transformers' cache after `huggingface-cli download {BERT} vocab.txt`")
    return folder


def find_file(name: str) -> Path:
    """The fetched file of a released model; FileNotFoundError that says how to get it, from where, and how large."""
    rows = [row for row in manifest.released().values() if row.preset == name]
    for row in rows:
        if (path := default_folder(row) / row.file).exists():
            return path
    row = rows[0]
    size = row.size or (row.copy and row.copy.size)
    about = "; ".join(filter(None, (f"about {mb(size)}" if size else "size not published", row.about, row.license)))
    where = f"{default_folder(row) / row.file}".replace(str(Path.home()), "~", 1)
    pipeline = manifest.DIFFUSERS.get(name)
    raise FileNotFoundError(
        f"there is no file of {name} at {where}. With a network, `python -m ldmlab fetch {row.name}` gets "
        f"it from {row.urls[0]} ({about}); or name a file you have: -p file PATH"
        + (f"; or a folder of diffusers, such as a copy of https://huggingface.co/{pipeline}" if pipeline else "")
        + ". At tier smoke a small file with random weights takes its place")




