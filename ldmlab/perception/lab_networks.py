"""Small networks of ldmlab, of different architecture, seed and training task; `python -m ldmlab.weights.train`.

`psim-lab` is for losses. `fd-lab` and `referee` were the networks of scores before EfficientNet-Lite0, which
`feature_net` loads as well: they do not see structure, and are kept to show that.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from ldmlab.damage import read_json
from ldmlab.perception.base import FeatureNet
from ldmlab.perception.efficientnet import EffNet
from ldmlab.perception.files import WEIGHTS, Module, file_hash, freeze


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


ARCHITECTURES: dict[str, Callable[[], FeatureNet]] = {net.name: net for net in (EffNet, PsimNet, FdNet, RefereeNet)}


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
    """Load a shipped feature network, frozen: "effnet" for scores, "psim-lab" for losses, and the former networks
    of scores, "fd-lab" and "referee".

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
