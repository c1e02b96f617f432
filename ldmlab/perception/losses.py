"""Perceptual losses of the first stage [LDM v2, App. G]: LPIPS as published, and PSIM-lab, the shipped student."""

import warnings
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ldmlab.perception.files import freeze
from ldmlab.perception.lab_networks import FeatureNet, feature_net
from ldmlab.perception.pictures import check_pair
from ldmlab.perception.trunks import TRUNKS, load_trunk

LOSSES = ("student", "lpips")


def distance_maps(net: FeatureNet, x: Float[Tensor, "n 3 h w"], y: Float[Tensor, "n 3 h w"]) -> list[Tensor]:
    """Squared distance of unit-normalised features, weighed by channel, at each position (n, h', w') of each stage.

    The form of LPIPS [LPIPS, Eq. 1], with the weights `net.weights_by_stage()`.
    """
    # On a CPU, channels_last saves a seventh of the time.
    x, y = (p.contiguous(memory_format=torch.channels_last) for p in (x, y))
    maps = []
    for a, b, weights in zip(net.stage_maps(x), net.stage_maps(y), net.weights_by_stage(), strict=True):
        # The constant, 1 % of the squared norm of features of unit variance, keeps noise in dark or flat regions from
        # being normalised to full contrast.
        eps = 0.01 * a.shape[1]
        a, b = (m * (m.square().sum(1, keepdim=True) + eps).rsqrt() for m in (a, b))
        maps.append(torch.einsum("nchw,c->nhw", (a - b).square(), weights))
    return maps


def feature_distance(
    net: FeatureNet, x: Float[Tensor, "n 3 h w"], y: Float[Tensor, "n 3 h w"]
) -> Float[Tensor, " n"]:
    """`distance_maps`, averaged over positions and summed over stages; not negative."""
    return torch.stack([m.mean((1, 2)) for m in distance_maps(net, x, y)]).sum(0)


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
    """LPIPS v0.1 as published [LPIPS, Eq. 1]: "vgg" trains first stages, "alex" scores; heads of the package lpips.

    `weights_hash` is that of the trunk's tensors, of which `trunk` is a file: by default the one that `fetch lpips`
    writes. Raises FileNotFoundError where it is missing, and DamagedFile, as `load_trunk`.
    """

    def __init__(self, net: str = "vgg", trunk: Path | None = None):
        super().__init__()
        if net not in TRUNKS:
            raise ValueError(f"net must be one of {', '.join(map(repr, TRUNKS))}, got {net!r}")
        tensors, self.weights_hash = load_trunk(net, trunk)
        import lpips

        # On "meta" nothing is drawn at random, and VGG16's classifier of 0.5 GB, which LPIPS lacks, is never made.
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lpips uses deprecated arguments of torchvision
            model = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)
        file = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
        heads = torch.load(file, map_location="cpu", weights_only=True)
        heads |= {name.replace("lin", "lins.", 1): value for name, value in heads.items()}  # the package has two names
        keys = {f"net.{name}": f"features.{name.split('.', 1)[1]}" for name in model.net.state_dict()}
        scaling = {name: value for name, value in model.state_dict().items() if name.startswith("scaling_layer")}
        model.load_state_dict(scaling | heads | {ours: tensors[theirs] for ours, theirs in keys.items()}, assign=True)
        self.name = "LPIPS" if net == "vgg" else "LPIPS-Alex"
        self.model = freeze(model)

    def train(self, mode: bool = True) -> "LpipsLoss":
        """Keeps evaluation mode; in the released code, train() of the first stage switches on its dropout."""
        return super().train(False)

    def forward(self, x: Float[Tensor, "n 3 h w"], y: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
        """Distance of each pair of pictures in [-1, 1]."""
        check_pair(x, y, in_range=False)
        return self.model(x, y).flatten()


def loss_hash(kind: str) -> str:
    """Hash of the weights of `perceptual_loss(kind)`, which it raises errors as, without loading those of LPIPS."""
    trunk = TRUNKS["vgg"]
    return trunk.contents if kind == "lpips" and trunk.path.is_file() else perceptual_loss(kind).weights_hash


def perceptual_loss(kind: str) -> PsimLoss | LpipsLoss:
    """The perceptual loss of a first stage by its name: "student" (PSIM-lab) or "lpips", with VGG16.

    Raises ValueError for other names, and as `LpipsLoss` where its weights are not at hand.

    >>> loss, x = perceptual_loss("student"), torch.zeros(2, 3, 32, 32)
    >>> loss(x, x)
    tensor([0., 0.])
    """
    if kind not in LOSSES:
        raise ValueError(f"the perceptual loss must be one of {', '.join(map(repr, LOSSES))}, got {kind!r}")
    return LpipsLoss() if kind == "lpips" else PsimLoss(feature_net("psim-lab"))
