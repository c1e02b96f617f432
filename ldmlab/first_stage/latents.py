"""Latents for the diffusion model: their statistics and scale, and the cache of encoded moments."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import Dataset

from ldmlab.atomic import (
    atomic_write,
    is_abandoned,
    make_folder,
    move_into_place,
    part_of,
    parts_of,
    release_part,
    remove_abandoned,
)
from ldmlab.damage import DamagedFile, read_json, read_or_set_aside, seal
from ldmlab.data.images import ImageSet, to_float
from ldmlab.first_stage.autoencoder import FirstStage
from ldmlab.first_stage.rows_file import RowsFile, open_rows
from ldmlab.progress import Progress

SCALE_MODES = ("none", "first_batch", "dataset", "channel")


@dataclass(frozen=True)
class LatentStats:
    """Mean and standard deviation of a first stage's latents, with the standard error of the standard deviation.

    One entry for all channels, or one per channel in mode "channel". z is multiplied by 1/std before diffusion
    [LDM v2, App. G]; mode "none" leaves z unscaled, as released for VQ, and std is only reported.
    """

    mode: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    std_error: tuple[float, ...]
    num_images: int

    @property
    def scale_factor(self) -> tuple[float, ...]:
        """Factor of z: 1/std, or 1 in mode "none"; one entry, or one per channel."""
        return (1.0,) * len(self.std) if self.mode == "none" else tuple(1 / std for std in self.std)

    def scale(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Scale a first-stage latent to the diffusion model's z_0; the mean is not subtracted, as in the paper."""
        return z * self._factor(z)

    def unscale(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Inverse of `scale`: from the diffusion model's z_0 to a first-stage latent."""
        return z / self._factor(z)

    def _factor(self, z: Tensor) -> Tensor | float:
        factor = self.scale_factor
        return factor[0] if len(factor) == 1 else torch.tensor(factor, dtype=z.dtype, device=z.device)[:, None, None]

    def to_json(self) -> dict:
        """Values for a JSON file."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict) -> "LatentStats":
        """Inverse of `to_json`."""
        lists = {name: tuple(values[name]) for name in ("mean", "std", "std_error")}
        return cls(**{**values, **lists})


def latent_stats(z: Float[Tensor, "n c h w"], mode: str = "first_batch") -> LatentStats:
    """Statistics of latents: over all entries, or per channel in mode "channel".

    sigma^2 = 1/(bchw) sum (z - mu)^2 [LDM v2, App. G], in its unbiased form as released. The standard error takes
    pictures, not entries, as independent. Raises ValueError for an unknown `mode` and for fewer than 2 pictures.
    """
    if mode not in SCALE_MODES:
        raise ValueError(f"scale_mode is one of {', '.join(SCALE_MODES)}; got {mode!r}")
    if len(z) < 2:
        raise ValueError(f"statistics need at least 2 pictures, got {len(z)}")
    z = z.double()
    groups = z.movedim(1, 0).flatten(2) if mode == "channel" else z.flatten(1)[None]  # (g, n, entries)
    mean, std = groups.mean((1, 2)), groups.flatten(1).std(1)
    # Delta method: var is a mean over pictures of their mean squares, and std = sqrt(var).
    per_image = (groups - mean[:, None, None]).square().mean(2)  # (g, n)
    error = per_image.std(1) / len(z) ** 0.5 / (2 * std)
    return LatentStats(mode, tuple(mean.tolist()), tuple(std.tolist()), tuple(error.tolist()), len(z))


def weights_hash(module: nn.Module) -> str:
    """sha256 of the names, shapes and values of a module's parameters."""
    digest = hashlib.sha256()
    for name, value in sorted(module.named_parameters()):
        digest.update(f"{name} {tuple(value.shape)} ".encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class Latents(Dataset):
    """Training data of a diffusion model: cached moments of n pictures, and of their horizontal flips at index i + n.

    `first_stage` is the hash of the first stage's weights.
    """

    is_decoded = True  # no picture has to be decoded for a batch

    def __init__(self, moments: np.ndarray, labels: np.ndarray, first_stage: str):
        self.moments, self.labels, self.first_stage = moments, labels, first_stage

    def __len__(self) -> int:
        return len(self.moments)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """A batch: moments (b, c, h, w) float32, labels (b,)."""
        picked = np.asarray(indices)
        moments = torch.from_numpy(np.ascontiguousarray(self.moments[picked], dtype=np.float32))
        return {"moments": moments, "label": torch.from_numpy(self.labels[picked % len(self.labels)])}

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: value[0] for name, value in self.__getitems__([index]).items()}


class MirroredImages(Dataset):
    """Training batches of pictures; index i + n is the horizontal flip of picture i."""

    def __init__(self, images: ImageSet):
        self.images, self._labels = images, images.labels()

    @property
    def is_decoded(self) -> bool:
        """Whether no picture has to be decoded for a batch."""
        return self.images.is_decoded

    def __len__(self) -> int:
        return 2 * len(self.images)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """A batch: images (b, 3, H, W) uint8, labels (b,)."""
        n = len(self.images)
        picked = torch.as_tensor(indices)
        x = self.images.images((picked % n).tolist())
        x = torch.where((picked >= n)[:, None, None, None], x.flip(3), x)
        return {"image": x, "label": self._labels[picked % n]}

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: value[0] for name, value in self.__getitems__([index]).items()}


@torch.inference_mode()
def encode_dataset(
    first_stage: FirstStage,
    images: ImageSet,
    cache_dir: Path,
    *,
    batch_size: int = 128,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Latents:
    """Encode every picture and its horizontal flip once, into a memory-mapped file of moments (float16).

    The file is keyed by the hashes of weights and data. It is written under a name of this process's own, so that two
    processes may lose time, but never rows; what an interrupted encoding, or another process, has encoded is copied
    from its file. A damaged file is set aside. `progress` is called with (done, total). Raises OSError, before any
    work, where the file does not fit on the disk, and ValueError for moments that are not finite in float16.
    """
    identity, file = _cache_file(first_stage, images, cache_dir)
    if (known := read_or_set_aside(file, partial(_open_moments, num=2 * len(images)))) is not None:
        return Latents(known, images.labels().numpy(), identity)
    make_folder(file.parent)
    mirrored, first_stage = MirroredImages(images), first_stage.eval().to(device)
    shape = first_stage.moments(to_float(mirrored.__getitems__([0])["image"]).to(device)).shape[1:]

    def rows_of(path: Path) -> RowsFile:
        return RowsFile(path, _key(file), (len(mirrored), *shape))

    def encode_rows(numbers: range) -> np.ndarray:
        batches = (list(numbers[i : i + batch_size]) for i in range(0, len(numbers), batch_size))
        moments = torch.cat([first_stage.moments(to_float(mirrored.__getitems__(batch)["image"]).to(device)).cpu()
                             for batch in batches]).half()
        if not (finite := moments.isfinite().flatten(1).all(1)).all():
            bad = numbers[int(finite.logical_not().nonzero()[0])] % len(images)
            raise ValueError(f"first stage {identity[:12]} has latents that are not finite in float16, first for "
                             f"picture {bad} of {images.name}: train it with another seed")
        return moments.numpy()

    rows = rows_of(part_of(file))
    rows.path.touch()
    for other in map(rows_of, parts_of(file)):
        if rows.path != other.path and is_abandoned(other.path, rows.path.stat().st_mtime) and other.move_to(rows.path):
            break
    else:
        rows.create()
    try:
        for block in range(rows.num_blocks):
            if rows.read(block) is None:
                copies = (other.read(block) for other in map(rows_of, parts_of(file)))
                found = next((copy for copy in copies if copy is not None), None)
                rows.write(block, encode_rows(rows.rows(block)) if found is None else found)
            if progress is not None:
                progress(rows.rows(block).stop, len(mirrored))
    except BaseException:
        release_part(rows.path)
        raise
    remove_abandoned(file, rows.path)
    move_into_place(rows.path, file)
    about = {"done": len(mirrored), "first_stage": identity, "data": images.fingerprint, "checked": True}
    atomic_write(file.with_name("done.json"), seal(json.dumps(about)))
    return Latents(_open_moments(file, len(mirrored)), images.labels().numpy(), identity)


def cached_latents(first_stage: FirstStage, images: ImageSet, cache_dir: Path) -> Latents:
    """What `encode_dataset` has encoded before; FileNotFoundError if nothing or not all, DamagedFile if damaged."""
    identity, file = _cache_file(first_stage, images, cache_dir)
    return Latents(_open_moments(file, 2 * len(images)), images.labels().numpy(), identity)


def _cache_file(first_stage: FirstStage, images: ImageSet, cache_dir: Path) -> tuple[str, Path]:
    identity = weights_hash(first_stage)

    def place(fingerprint: str) -> Path:
        key = hashlib.sha256(f"{identity} {fingerprint}".encode()).hexdigest()[:16]
        return Path(cache_dir) / f"latents-{key}"

    return identity, images.find(place) / "moments.npy"


def _key(file: Path) -> str:
    return file.parent.name.removeprefix("latents-")


def _open_moments(file: Path, num: int) -> np.ndarray:
    moments, checked = open_rows(file, _key(file), num)
    about = {} if checked else read_or_set_aside(file.with_name("done.json"), read_json) or {}
    if not checked and (about.get("done") != num or about.get("checked")):
        raise DamagedFile(file, "it is incomplete, or another program's")
    return moments


class PixelLatents(MirroredImages):
    """Pictures in the format of `Latents`, for LDM-1."""

    first_stage = "identity"

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        batch = super().__getitems__(indices)
        return {"moments": to_float(batch["image"]), "label": batch["label"]}
