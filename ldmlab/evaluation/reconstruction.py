"""How well a first stage gives back its pictures: PSNR, SSIM, perceptual distance, rFD [LDM v2, Tab. 8]."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ldmlab.data.images import quantize_8bit, to_float
from ldmlab.evaluation.distances import FeatureMoments, Score, check_enough, frechet_score
from ldmlab.evaluation.uncertainty import frechet_interval, mean_interval
from ldmlab.perception import FeatureNet


def psnr(x: Float[Tensor, "n 3 h w"], x_rec: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
    """Peak signal-to-noise ratio of each picture, in dB; pictures in [-1, 1], so the peak is 2. Equal ones give inf."""
    mse = (x.double() - x_rec.double()).square().flatten(1).mean(1)
    return (10 * torch.log10(4 / mse)).float()


def ssim(x: Float[Tensor, "n 3 h w"], x_rec: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
    """Structural similarity of each picture, at most 1: Gaussian window, 11 px; pictures in [-1, 1], sides >= 11 px."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(x.shape[2:]) < 11:
        raise ValueError(f"ssim needs pictures of at least 11 x 11, got {tuple(x.shape)}")
    # Its luminance term compares mean intensities, which must not be negative: hence [0, 1].
    x, x_rec = (x + 1) / 2, (x_rec + 1) / 2
    return structural_similarity_index_measure(x_rec, x, data_range=1.0, reduction="none").reshape(len(x))


@torch.inference_mode()
def reconstruction_scores(
    reconstruct: Callable[[Tensor], Tensor],
    dataset,
    net: FeatureNet,
    perceptual: nn.Module,
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    protocol: Mapping[str, Any] | None = None,
    num_resamples: int = 0,
    allow_few: bool = False,
) -> dict[str, Score]:
    """`psnr`, `ssim`, `perceptual` (means over pictures) and `rfd` of `reconstruct(x) -> x_rec` on an `ImageSet`.

    The means carry their intervals; that of rFD is drawn from `num_resamples` resamples of pairs, and left out at 0.
    `rfd` of no more pictures than `net` has features is refused unless `allow_few`.

    Batches are streamed; the scores do not depend on their size. Reconstructions are scored as they would be saved:
    clamped and rounded to 8 bits. rFD compares the reconstructed pictures with the very same real ones (validation
    against validation), under `net`, which must not be the network of `perceptual`.
    """
    if len(dataset) < 2:
        raise ValueError(f"scores need at least 2 pictures, got {len(dataset)}")
    check_enough(net.dim, allow_few, validation=len(dataset))
    net, perceptual = net.to(device), perceptual.to(device)
    about = {"keep": len(dataset), "extractor": net.name, "weights_hash": net.weights_hash}
    moments = [FeatureMoments(net.dim, **about) for _ in range(2)]
    per_picture: dict[str, list[Tensor]] = {"psnr": [], "ssim": [], "perceptual": []}
    for start in range(0, len(dataset), batch_size):
        x = to_float(dataset.images(range(start, min(start + batch_size, len(dataset))))).to(device)
        x_rec = quantize_8bit(reconstruct(x).float())
        for name, function in (("psnr", psnr), ("ssim", ssim), ("perceptual", perceptual)):
            per_picture[name].append(function(x, x_rec).double().cpu())
        for m, pictures in zip(moments, (x, x_rec), strict=True):
            m.update(net.embed(pictures))

    n = len(dataset)
    protocol = {
        **dataset.protocol,
        "data": dataset.fingerprint,
        "split": dataset.split,
        "quantization": "clamped to [-1, 1], rounded to 8 bits",
        **(protocol or {}),
    }
    extractors = {"perceptual": (perceptual.name, perceptual.weights_hash)}
    names = {"psnr": ("PSNR", "dB"), "ssim": ("SSIM", "1"), "perceptual": (perceptual.name, "1")}
    scores = {}
    for key, batches in per_picture.items():
        values = torch.cat(batches)
        by = extractors.get(key, ("", ""))
        scores[key] = Score(values.mean().item(), *names[key], n, n, *by, protocol, mean_interval(values))
    fd = frechet_score(*moments, protocol, allow_few=allow_few)
    interval = frechet_interval(*moments, over="pairs", num_resamples=num_resamples) if num_resamples else None
    return scores | {"rfd": replace(fd, name=f"r{fd.name}", interval=interval)}
