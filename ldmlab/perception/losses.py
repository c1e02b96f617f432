"""The perceptual loss of the first stage [LDM v2, App. G]: LPIPS, or PSIM-lab where its weights are not at hand."""

import warnings
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ldmlab.perception.files import file_hash, freeze
from ldmlab.perception.lab_networks import FeatureNet, feature_net
from ldmlab.perception.pictures import check_pair

LPIPS_TRUNK = "vgg16-397923af.pth"  # file name of VGG16 in torchvision and lpips


def feature_distance(
    net: FeatureNet, x: Float[Tensor, "n 3 h w"], y: Float[Tensor, "n 3 h w"]
) -> Float[Tensor, " n"]:
    """Squared distance of unit-normalised features, weighed by channel and averaged over positions; not negative.

    The form of LPIPS [LPIPS, Eq. 1], with the weights `net.weights_by_stage()`.
    """
    # On a CPU, channels_last saves a seventh of the time.
    x, y = (p.contiguous(memory_format=torch.channels_last) for p in (x, y))
    distances = []
    for a, b, weights in zip(net.stage_maps(x), net.stage_maps(y), net.weights_by_stage(), strict=True):
        # The constant, 1 % of the squared norm of features of unit variance, keeps noise in dark or flat regions from
        # being normalised to full contrast.
        eps = 0.01 * a.shape[1]
        a, b = (m * (m.square().sum(1, keepdim=True) + eps).rsqrt() for m in (a, b))
        distances.append(((a - b).square().mean((2, 3)) * weights).sum(1))
    return torch.stack(distances).sum(0)


class PsimLoss(nn.Module):
    """`feature_distance` of a frozen network: PSIM-lab, a student of LPIPS, where the network is `psim-lab`."""

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
        """Distance of each pair of pictures in [-1, 1]; only the range of `x` at the first call is checked."""
        check_pair(x, y, in_range=not self._range_checked)
        self._range_checked = True
        return feature_distance(self.net, x, y)


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
