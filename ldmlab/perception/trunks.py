"""Convolutions of torchvision's VGG16 and AlexNet, under LPIPS: files of the project's own in its cache folder.

`python -m ldmlab fetch lpips` writes them. Nothing is downloaded here.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ldmlab.damage import DamagedFile
from ldmlab.tensor_files import load_tensors

CURE = "`python -m ldmlab fetch lpips` gets them; `-p perceptual student` does without"


@dataclass(frozen=True)
class Trunk:
    """A convolutional network of torchvision without its classifier.

    `layers` are its convolutions, from the position in torchvision's `features` to (c_in, c_out, side of the kernel);
    tensors are named `features.<position>.weight` and `.bias`, in float32.
    """

    net: str  # its name in the package lpips
    about: str
    file: str  # name in the cache folder
    layers: Mapping[int, tuple[int, int, int]]
    contents: str  # `contents_hash` of its tensors, whichever source they came from

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all tensors, in the order of the layers."""
        shapes: dict[str, tuple[int, ...]] = {}
        for position, (c_in, c_out, k) in self.layers.items():
            shapes |= {f"features.{position}.weight": (c_out, c_in, k, k), f"features.{position}.bias": (c_out,)}
        return shapes

    @property
    def path(self) -> Path:
        """Where `fetch lpips` writes it."""
        return cache_folder() / self.file


TRUNKS: dict[str, Trunk] = {trunk.net: trunk for trunk in (
    Trunk("vgg", "VGG16", "lpips-vgg16.safetensors", {
        0: (3, 64, 3), 2: (64, 64, 3), 5: (64, 128, 3), 7: (128, 128, 3), 10: (128, 256, 3), 12: (256, 256, 3),
        14: (256, 256, 3), 17: (256, 512, 3), 19: (512, 512, 3), 21: (512, 512, 3), 24: (512, 512, 3),
        26: (512, 512, 3), 28: (512, 512, 3)},
        "2b58255240d1d562d872ec8d67977548e79b4a1faa92f521a4aca6cf4779f49b"),
    Trunk("alex", "AlexNet", "lpips-alexnet.safetensors", {
        0: (3, 64, 11), 3: (64, 192, 5), 6: (192, 384, 3), 8: (384, 256, 3), 10: (256, 256, 3)},
        "6a6c75500cf386eaca282c39b8f612821433edfd28562528c18f62467deacbbb"),
)}


def cache_folder() -> Path:
    """The folder of downloaded files: $LDMLAB_CHECKPOINTS, else ~/.cache/ldmlab/checkpoints."""
    named = os.environ.get("LDMLAB_CHECKPOINTS")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "ldmlab" / "checkpoints"


def contents_hash(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of the names, types, shapes and bytes of tensors on the CPU, in the order of their names."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_trunk(net: str, path: Path | None = None) -> tuple[dict[str, Tensor], str]:
    """Tensors of a trunk and their `contents_hash`; `path` is a file of other weights of this shape, for trials.

    Raises FileNotFoundError, with the cure, where `fetch lpips` has not been run, and DamagedFile for a file with
    other tensors, or with other contents than the published ones.
    """
    trunk = TRUNKS[net]
    if path is None and not trunk.path.exists():
        folder = str(trunk.path.parent).replace(str(Path.home()), "~", 1)  # the message may be stored in a record
        raise FileNotFoundError(f"LPIPS needs the weights of {trunk.about}, {trunk.file} in {folder}: {CURE}")
    tensors, _ = load_tensors(path or trunk.path)
    if (found := {name: tuple(value.shape) for name, value in tensors.items()}) != trunk.shapes:
        wrong = sorted(dict(found.items() ^ trunk.shapes.items()))
        raise DamagedFile(path or trunk.path, f"it does not hold {trunk.about}; see {', '.join(wrong[:3])}")
    digest = contents_hash(tensors)
    if path is None and digest != trunk.contents:
        raise DamagedFile(trunk.path, f"its tensors have sha256 {digest}, those of {trunk.about} {trunk.contents}; "
                                      "remove the file and run `python -m ldmlab fetch lpips` again")
    return tensors, digest
