"""Small networks of ldmlab, of different architecture, seed and training task; `python -m ldmlab.weights.train`.

`psim-lab` is for losses, `fd-lab` for scores, and `referee` checks the ranking by `fd-lab`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from ldmlab.damage import read_json
from ldmlab.perception.files import WEIGHTS, Module, file_hash, freeze
from ldmlab.perception.pictures import check_pictures


class FeatureNet(nn.Module):
    """Base class of feature networks: a chain of `stages`, each with a feature map, and an embedding pooled from them.

    The shipped networks are frozen, with their BatchNorms folded into the convolutions; `weights_hash` is the sha256 of
    the weights file.
    """

    name = "feature-net"
    mean_of: tuple[int, ...] = ()  # stages whose spatial mean is part of the embedding
    std_of: tuple[int, ...] = ()  # stages whose spatial standard deviation is part of the embedding

    embed_mean: Tensor
    embed_std: Tensor
    weights_hash: str

    def __init__(self, widths: tuple[int, ...], stages: Sequence[nn.Module]):
        super().__init__()
        self.widths, self.stages = widths, nn.ModuleList(stages)
        self.dim = sum(widths[i] for i in (*self.mean_of, *self.std_of))
        # They standardise each entry of an embedding over the training pictures, so that no stage dominates.
        self.register_buffer("embed_mean", torch.zeros(self.dim))
        self.register_buffer("embed_std", torch.ones(self.dim))
        self.weights_hash = ""

    def stage_maps(self, x: Float[Tensor, "n 3 h w"]) -> list[Tensor]:
        """Feature maps of all stages, without checking the input."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def maps(self, x: Float[Tensor, "n 3 h w"]) -> list[Tensor]:
        """Feature maps of all stages, fine to coarse, of pictures in [-1, 1]."""
        check_pictures(x)
        return self.stage_maps(x)

    def weights_by_stage(self) -> list[Tensor]:
        """Weights of the channels of each stage in the distance of `PsimLoss`: all alike."""
        return [self.embed_mean.new_full((c,), 1 / len(self.widths)) for c in self.widths]

    def pool(self, maps: list[Tensor]) -> Float[Tensor, "n d"]:
        """The embedding before standardisation: spatial means of `mean_of` stages, deviations of `std_of` stages."""
        means = [maps[i].mean((2, 3)) for i in self.mean_of]
        # The small constant keeps the gradient finite where a map is flat.
        stds = [(maps[i].var((2, 3), correction=0) + 1e-6).sqrt() for i in self.std_of]
        return torch.cat(means + stds, 1)

    def embed(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Standardised embeddings, in float32, of pictures in [-1, 1] of any size from 16 px."""
        check_pictures(x)
        with torch.autocast(x.device.type, enabled=False):
            return (self.pool(self.stage_maps(x.float())) - self.embed_mean) / self.embed_std


def _conv(c_in: int, c_out: int, act: type[nn.Module], k: int = 3, stride: int = 1) -> nn.Sequential:
    pad = (k - 1) // 2
    return nn.Sequential(nn.Conv2d(c_in, c_out, k, stride, pad, bias=False), nn.BatchNorm2d(c_out), act())


class PsimNet(FeatureNet):
    """Network of the perceptual loss PSIM-lab: 3x3 convolutions with ReLU between average pools, as in VGG.

    Without BatchNorm, so that the distance of one pair depends on no other. `channel_weights` are non-negative.
    """

    name = "psim-lab"
    mean_of = (0, 1, 2, 3, 4)

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 96, 96)):
        stages, c_in = [], 3
        for i, c in enumerate(widths):
            # Average pooling spreads the gradient evenly over pixels; strides and max pooling cause dot artefacts.
            pool = [nn.AvgPool2d(2)] if i else []
            convs = (nn.Conv2d(c_in, c, 3, padding=1), nn.ReLU(), nn.Conv2d(c, c, 3, padding=1), nn.ReLU())
            stages.append(nn.Sequential(*pool, *convs))
            c_in = c
        super().__init__(widths, stages)
        self.channel_weights = nn.Parameter(torch.full((sum(widths),), 1 / len(widths)))

    def weights_by_stage(self) -> list[Tensor]:
        """Weights of the channels in the distance, learned, as in LPIPS."""
        return list(self.channel_weights.split(self.widths))


class _Residual(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(_conv(c_in, c_out, nn.SiLU, stride=stride), _conv(c_out, c_out, nn.Identity))
        self.skip = nn.Identity() if c_in == c_out and stride == 1 else _conv(c_in, c_out, nn.Identity, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.body(x) + self.skip(x))


class FdNet(FeatureNet):
    """Network of FD-lab: residual, with SiLU; the embedding joins statistics of the finest stage with deep features."""

    name = "fd-lab"
    mean_of = (0, 1, 3)
    std_of = (0,)

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 64)):
        stages: list[nn.Module] = [nn.Sequential(_conv(3, widths[0], nn.SiLU, 5), _Residual(widths[0], widths[0], 1))]
        stages += [_Residual(c_in, c, 2) for c_in, c in zip(widths, widths[1:], strict=False)]
        super().__init__(widths, stages)


class RefereeNet(FeatureNet):
    """Network of FD-referee: strided 4x4 convolutions with leaky ReLU; the embedding joins two depths."""

    name = "referee"
    mean_of = (1, 3)

    def __init__(self, widths: tuple[int, ...] = (32, 64, 96, 128)):
        stages, c_in = [], 3
        for i, c in enumerate(widths):
            k, stride = (4, 2) if i < 3 else (3, 1)
            norm = nn.GroupNorm(8, c)
            stages.append(nn.Sequential(nn.Conv2d(c_in, c, k, stride, 1), norm, nn.LeakyReLU(0.2)))
            c_in = c
        super().__init__(widths, stages)


ARCHITECTURES: dict[str, Callable[[], FeatureNet]] = {net.name: net for net in (PsimNet, FdNet, RefereeNet)}


def fold_batchnorm(module: Module) -> Module:
    """Fold every BatchNorm into the convolution before it, in place and for evaluation; returns the module."""
    for name, child in module.named_children():
        conv, norm = (child[0], child[1]) if isinstance(child, nn.Sequential) and len(child) > 1 else (None, None)
        if isinstance(child, nn.Sequential) and isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            child[0], child[1] = torch.nn.utils.fuse_conv_bn_eval(conv.eval(), norm.eval()), nn.Identity()
        else:
            fold_batchnorm(child)
        module.register_module(name, child)
    return module


def feature_net(name: str, folder: Path | str | None = None) -> FeatureNet:
    """Load a shipped feature network, frozen: "psim-lab" for losses, "fd-lab" for scores, "referee" for checks.

    `folder` holds `<name>.safetensors` and `<name>.json` (default: the shipped ones). Raises ValueError for an unknown
    name, and for a file whose sha256 differs from that in its JSON.

    >>> net = feature_net("fd-lab")
    >>> net.embed(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 128])
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"no feature network {name!r}; accepted are {', '.join(map(repr, ARCHITECTURES))}")
    path = Path(folder or WEIGHTS) / f"{name}.safetensors"
    card = read_json(path.with_suffix(".json"))
    digest = file_hash(path)
    if digest != card["sha256"]:
        raise ValueError(f"{path} has sha256 {digest}, but {path.stem}.json states {card['sha256']}; restore the file")
    net = fold_batchnorm(ARCHITECTURES[name]())
    net.load_state_dict(load_file(path))
    net.weights_hash = digest
    return freeze(net)
