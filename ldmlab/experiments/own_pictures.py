"""Pictures of one's own through a run's model: of any size, padded and cropped back, large ones in tiles."""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from ldmlab.data.images import quantize_8bit
from ldmlab.data.user_pictures import Padding, pad_to_multiple
from ldmlab.diffusion.conditioning.spatial_ops import fill, masked
from ldmlab.diffusion.model import LatentDiffusion
from ldmlab.experiments.super_resolution import enlarge
from ldmlab.first_stage.tiling import Tiled
from ldmlab.study.runs.conditioners import as_spatial, build_conditioner
from ldmlab.study.runs.run import Run

FILLINGS = 3


def tiled(run: Run) -> LatentDiffusion:
    """The run's model with a first stage that takes pictures beyond the training size in tiles.

    The denoiser sees the whole latent at once: in tiles, distant parts of a picture would be sampled independently.
    """
    model, trained = run.diffusion.model, run.diffusion.first_stage
    if run.spec.f == 1:
        return model
    first_stage = Tiled(model.first_stage)
    conditioner = build_conditioner(run.spec.diffusion, run.pictures, replace(trained, model=first_stage))
    assert conditioner is not None and model.conditioner is not None  # all models that take pictures have one
    conditioner.load_state_dict(model.conditioner.state_dict())
    return replace(model, first_stage=first_stage, conditioner=conditioner.eval().to(run.device))


def stride(run: Run) -> int:
    """What sides of a picture have to be multiples of: f, times what the denoiser halves."""
    return run.spec.f * 2 ** (len(run.diffusion.model.denoiser_config.widths) - 1)


def _sample(run: Run, y: Tensor, padding: Padding, seed: int) -> Tensor:
    said = [str(padding)] if str(padding) else []
    side = run.spec.data.size
    if max(as_spatial(run.diffusion.model.conditioner).picture_size(y)) > side:
        said.append(f"larger than the {side} px of training: sampled convolutionally, encoded and decoded in tiles")
    print(*said, sep="; ", end="\n" if said else "", flush=True)
    x = tiled(run).sample(y, num_steps=run.spec.evaluation.num_steps, batch_size=1, seed=seed)
    return padding.crop(quantize_8bit(x))


def upscale_own(run: Run, picture: Float[Tensor, "3 h w"]) -> dict[str, Tensor]:
    """A small picture, its bicubic enlargement, and a sample of the run's model for it, rows for `picture_grid`."""
    factor = run.params["factor"]
    padded, padding = pad_to_multiple(picture[None], max(1, stride(run) // factor))
    sample = _sample(run, padded, padding, run.spec.seed)
    given = F.interpolate(picture[None], scale_factor=factor, mode="nearest")
    return {"given": given, "bicubic": enlarge(picture[None], factor), run.spec.name: sample}


def inpaint_own(run: Run, picture: Float[Tensor, "3 h w"], mask: Float[Tensor, "1 h2 w2"]) -> dict[str, Tensor]:
    """A picture with its hole, and FILLINGS fillings of it; known pixels are as they were."""
    if mask.shape[1:] != picture.shape[1:]:
        raise ValueError(f"a mask has the size of its picture: {tuple(picture.shape[1:])}, {tuple(mask.shape[1:])}")
    x, padding = pad_to_multiple(picture[None], stride(run))
    hole, _ = pad_to_multiple(mask[None], stride(run))
    rows = {"given": masked(picture[None], mask[None])}
    for i in range(FILLINGS):
        sample = _sample(run, torch.cat([x, hole], 1), padding, run.spec.seed + 1000 * i)
        rows[f"filling {i + 1}"] = fill(picture[None], sample, mask[None])
    return rows


def synthesize_own(run: Run, labels: Int[Tensor, "h w"]) -> dict[str, Tensor]:
    """Samples for a label map of one's own, the same labels as in the data."""
    padded, padding = pad_to_multiple(labels[None, None].float(), stride(run))
    y = padded[:, 0].long()
    as_spatial(run.diffusion.model.conditioner).check(y)
    return {f"sample {i + 1}": _sample(run, y, padding, run.spec.seed + 1000 * i) for i in range(FILLINGS)}
