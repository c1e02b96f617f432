"""Feature networks for the perceptual loss [LDM v2, App. G] and for scores; no network serves both.

Scores from the network that a model was trained with would not show its blind spots. So ldmlab ships three small
networks of different architecture, seed and training task: `psim-lab` for losses, `fd-lab` for scores, and `referee` to
check the ranking by `fd-lab`. `python -m ldmlab.weights.train` trains them. LPIPS replaces `psim-lab` where its
published weights are on disk; nothing is downloaded here.
"""

import hashlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from ldmlab.damage import read_json

Module = TypeVar("Module", bound=nn.Module)

WEIGHTS = Path(__file__).parent / "weights"
MIN_SIZE = 16  # pixels; on smaller pictures the deepest feature maps are one pixel
LPIPS_TRUNK = "vgg16-397923af.pth"  # file name of VGG16 in torchvision and lpips


def check_pictures(x: Tensor, what: str = "x", *, in_range: bool = True) -> None:
    """Check that `x` is a batch of pictures: float (n, 3, h, w), sides >= 16, values in [-1, 1] if `in_range`.

    Raises TypeError for other dtypes and ValueError for other shapes and values; `what` names the argument.
    """
    if not x.is_floating_point():
        raise TypeError(f"{what} must be float in [-1, 1], got {x.dtype}; to_float() of ldmlab.data.images converts")
    if x.ndim != 4 or x.shape[1] != 3 or min(x.shape[2:]) < MIN_SIZE:
        raise ValueError(f"{what} must be (n, 3, h, w) with h, w >= {MIN_SIZE}, got {tuple(x.shape)}")
    if in_range and x.numel():
        low, high = x.detach().aminmax()
        if not (low >= -1.001 and high <= 1.001):  # also catches NaN
            raise ValueError(f"{what} must lie in [-1, 1], got values from {low:.3g} to {high:.3g}")


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
    """Network of the perceptual loss PSIM-lab: pairs of 3x3 convolutions with ReLU between average pools, as in VGG."""

    name = "psim-lab"
    mean_of = (0, 1, 2, 3)

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 96)):
        stages, c_in = [], 3
        for i, c in enumerate(widths):
            # Average pooling spreads the gradient evenly over pixels; strides and max pooling cause dot artefacts.
            pool = [nn.AvgPool2d(2)] if i else []
            stages.append(nn.Sequential(*pool, _conv(c_in, c, nn.ReLU), _conv(c, c, nn.ReLU)))
            c_in = c
        super().__init__(widths, stages)


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


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def freeze(module: Module) -> Module:
    """Put a module into evaluation mode, without gradients for its parameters; returns the module."""
    return module.eval().requires_grad_(False)


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


class PsimLoss(nn.Module):
    """PSIM-lab: squared distance of unit-normalised features, averaged over positions and layers; in [0, 4]."""

    name = "PSIM-lab"
    net: FeatureNet

    def __init__(self, net: FeatureNet):
        super().__init__()
        self.net, self.weights_hash = freeze(net).to(memory_format=torch.channels_last), net.weights_hash
        self._range_checked = False

    def train(self, mode: bool = True) -> "PsimLoss":
        """Keeps evaluation mode, also where the module that contains it switches to training."""
        return super().train(False)

    def forward(self, x: Float[Tensor, "n 3 h w"], y: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
        """Distance of each pair of pictures in [-1, 1]; only the range of `x` at the first call is checked.

        Deviation: LPIPS weighs its channels by human judgements; here all layers and channels count alike.
        """
        check_pair(x, y, in_range=not self._range_checked)
        self._range_checked = True
        # On a CPU, channels_last saves a seventh of the time.
        x, y = (p.contiguous(memory_format=torch.channels_last) for p in (x, y))
        distances = []
        for a, b in zip(self.net.stage_maps(x), self.net.stage_maps(y), strict=True):
            # Features have unit variance per channel. The constant, 1 % of a typical squared norm, keeps noise in dark
            # or flat regions from being normalised to full contrast.
            eps = 0.01 * a.shape[1]
            a, b = (m * (m.square().sum(1, keepdim=True) + eps).rsqrt() for m in (a, b))
            distances.append((a - b).square().sum(1).mean((1, 2)))
        return torch.stack(distances).mean(0)


class LpipsLoss(nn.Module):
    """LPIPS v0.1 with the VGG16 trunk, as published [LPIPS, Eq. 1]; trunk weights from a local file."""

    name = "LPIPS"

    def __init__(self, trunk: Path):
        super().__init__()
        import lpips

        # Building VGG16 draws random weights, all replaced below; the caller's random state stays as it was.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lpips uses deprecated arguments of torchvision
            model = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
        state = torch.load(trunk, map_location="cpu", weights_only=True)
        keys = {key: key.replace(key.split(".")[0], "features", 1) for key in model.net.state_dict()}
        if missing := sorted(set(keys.values()) - set(state)):
            raise ValueError(f"{trunk} does not hold torchvision's VGG16: it lacks {', '.join(missing[:3])}")
        model.net.load_state_dict({ours: state[theirs] for ours, theirs in keys.items()})
        self.model, self.weights_hash = freeze(model), file_hash(trunk)

    def train(self, mode: bool = True) -> "LpipsLoss":
        """Keeps evaluation mode; in the released code, train() of the first stage switches on its dropout."""
        return super().train(False)

    def forward(self, x: Float[Tensor, "n 3 h w"], y: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
        """Distance of each pair of pictures in [-1, 1]."""
        check_pair(x, y, in_range=False)
        return self.model(x, y).flatten()


def check_pair(x: Tensor, y: Tensor, *, in_range: bool) -> None:
    """Check two batches of pictures of one shape; `y` may leave [-1, 1], as reconstructions do in training.

    Raises ValueError for different shapes, and as `check_pictures`.
    """
    if x.shape != y.shape:
        raise ValueError(f"x and y must have one shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    check_pictures(x, in_range=in_range)
    check_pictures(y, "y", in_range=False)


def lpips_trunk() -> Path:
    """Path of the VGG16 weights that LPIPS needs, in torch's hub folder ($TORCH_HOME)."""
    return Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_TRUNK


def perceptual_loss(kind: str = "auto") -> PsimLoss | LpipsLoss:
    """The perceptual loss of the first stage: "lpips", "psim-lab", or "auto": LPIPS if its weights are on disk.

    `name` of the result is "LPIPS" or "PSIM-lab". Raises FileNotFoundError for "lpips" without weights and ValueError
    for other kinds.

    >>> loss, x = perceptual_loss("psim-lab"), torch.zeros(2, 3, 32, 32)
    >>> loss(x, x)
    tensor([0., 0.])
    """
    if kind not in ("auto", "lpips", "psim-lab"):
        raise ValueError(f"kind must be 'auto', 'lpips' or 'psim-lab', got {kind!r}")
    trunk = lpips_trunk()
    if kind == "lpips" and not trunk.exists():
        raise FileNotFoundError(
            f"LPIPS needs torchvision's VGG16 weights at {trunk} (553.4 MB). With a network, `python -m "
            "ldmlab fetch vgg16` gets them; or put the file there yourself, or use 'psim-lab'")
    if kind != "psim-lab" and trunk.exists():
        return LpipsLoss(trunk)
    return PsimLoss(feature_net("psim-lab"))
