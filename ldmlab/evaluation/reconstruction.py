"""Quality of reconstructions: PSNR, SSIM, LPIPS of AlexNet, the training's perceptual distance, rFD [LDM v2, Tab. 8].
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ldmlab.data.images import quantize_8bit, to_float
from ldmlab.evaluation.distances import FeatureMoments, Score, check_enough, frechet_score
from ldmlab.evaluation.uncertainty import frechet_interval, mean_interval
from ldmlab.perception.lab_networks import FeatureNet
from ldmlab.perception.losses import LpipsLoss, PsimLoss
from ldmlab.perception.pictures import check_range_of_set


def psnr(x: Float[Tensor, "n 3 h w"], x_rec: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
    """Peak signal-to-noise ratio of each picture in dB, for pictures in [-1, 1] (peak 2); inf for equal ones.

    >>> psnr(torch.zeros(2, 3, 16, 16), torch.full((2, 3, 16, 16), 0.2))
    tensor([20., 20.])
    """
    mse = (x.double() - x_rec.double()).square().flatten(1).mean(1)
    return (10 * torch.log10(4 / mse)).float()


def ssim(x: Float[Tensor, "n 3 h w"], x_rec: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
    """Structural similarity of each picture in [-1, 1], at most 1; Gaussian window of 11 px, sides >= 11 px."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(x.shape[2:]) < 11:
        raise ValueError(f"ssim needs pictures of at least 11 x 11, got {tuple(x.shape)}")
    # Its luminance term compares mean intensities, which must not be negative: hence [0, 1].
    x, x_rec = (x + 1) / 2, (x_rec + 1) / 2
    values = structural_similarity_index_measure(x_rec, x, data_range=1.0, reduction="none")
    assert isinstance(values, Tensor)  # a tuple only with return_full_image
    return values.reshape(len(x))


@torch.inference_mode()
def reconstruction_scores(
    reconstruct: Callable[[Tensor], Tensor],
    dataset: Any,  # an `ImageSet`, or what has its `images`, `protocol`, `fingerprint` and `split`
    net: FeatureNet,
    perceptual: PsimLoss | LpipsLoss,
    *,
    lpips: LpipsLoss | None = None,
    trained_on: bool = False,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    protocol: Mapping[str, Any] | None = None,
    num_resamples: int = 0,
    allow_few: bool = False,
) -> dict[str, Score]:
    """`psnr`, `ssim`, `perceptual` (means over pictures) and `rfd` of `reconstruct(x) -> x_rec` on an `ImageSet`.

    With `lpips`, LPIPS of AlexNet, also `lpips_alex`. Where `reconstruct` was `trained_on` the network of `perceptual`,
    that score's name says so; it is no evidence.

    The means have intervals; that of rFD is a bootstrap over pairs, without one if `num_resamples` is 0. Raises
    ValueError for fewer than 2 pictures, for no more pictures than `net` has features unless `allow_few`, and for
    reconstructions that lie in [0, 1] beside pictures that do not.

    Batches are streamed; the scores do not depend on their size. Reconstructions are clamped and rounded to 8 bits, as
    if saved. rFD compares them with the same real pictures (validation against validation), under `net`, which must not
    be the network of `perceptual`.
    """
    if len(dataset) < 2:
        raise ValueError(f"scores need at least 2 pictures, got {len(dataset)}")
    check_enough(net.dim, allow_few, validation=len(dataset))
    net, perceptual = net.to(device), perceptual.to(device)
    functions: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"psnr": psnr, "ssim": ssim, "perceptual": perceptual}
    if lpips is not None:
        functions["lpips_alex"] = lpips.to(device)
    real, fake = (FeatureMoments(net.dim, keep=len(dataset), extractor=net.name, weights_hash=net.weights_hash)
                  for _ in range(2))
    per_picture: dict[str, list[Tensor]] = {name: [] for name in functions}
    extremes = []
    for start in range(0, len(dataset), batch_size):
        x = to_float(dataset.images(range(start, min(start + batch_size, len(dataset))))).to(device)
        x_rec = quantize_8bit(reconstruct(x).float())
        extremes.append([torch.stack(pictures.aminmax()).cpu() for pictures in (x, x_rec)])
        for name, function in functions.items():
            per_picture[name].append(function(x, x_rec).double().cpu())
        for m, pictures in zip((real, fake), (x, x_rec), strict=True):
            m.update(net.embed(pictures))

    low_and_high, of_rec = (torch.stack(pair) for pair in zip(*extremes, strict=True))
    if low_and_high.min() < 0:
        check_range_of_set(low_and_high, of_rec)
    n = len(dataset)
    protocol = {
        **dataset.protocol,
        "data": dataset.fingerprint,
        "split": dataset.split,
        "quantization": "clamped to [-1, 1], rounded to 8 bits",
        **(protocol or {}),
    }
    names = {"psnr": ("PSNR", "dB"), "ssim": ("SSIM", "1"),
             "perceptual": (f"{perceptual.name}{' (trained on)' if trained_on else ''}", "1")}
    scores = {}
    for key, batches in per_picture.items():
        values = torch.cat(batches)
        by = {"perceptual": perceptual, "lpips_alex": lpips}.get(key)
        extractor, digest = (by.name, by.weights_hash) if by else ("", "")
        name, unit = names.get(key, (extractor, "1"))
        scores[key] = Score(values.mean().item(), name, unit, n, n, extractor, digest, protocol, mean_interval(values))
    fd = frechet_score(real, fake, protocol, allow_few=allow_few)
    interval = frechet_interval(real, fake, over="pairs", num_resamples=num_resamples) if num_resamples else None
    return scores | {"rfd": replace(fd, name=f"r{fd.name}", interval=interval)}
