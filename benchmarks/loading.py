"""From JPEG files to tensors of 256 px in [-1, 1] on one core, and from cached moments to batches.

`python benchmarks/loading.py [--rounds N] [--only WORK] [--out FILE]`. The original's way is that of its ImageNet
loader, written anew: PIL decodes, an array of bytes, shorter side to 256, centre crop, then to [-1, 1] picture by
picture, in float64; for the comparison it resizes as we do, by PIL's bicubic. Files are made here (gradients with
grain, quality 95) and lie in the page cache. Decoders other than "pil" give other bytes, so theirs are inexact rows.
"""

import os
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from harness import Goal, Way, Work, agree, parse, run_table
from PIL import Image
from torch import Tensor

from ldmlab.data.decode import decode
from ldmlab.data.images import open_dataset, to_float
from ldmlab.first_stage.latents import Latents

ORIGINAL = "as the original's ImageNet loader"


def make_pictures(folder: Path, width: int, height: int, n: int) -> list[Path]:
    """JPEG files of gradients, waves and grain: about as many bytes as photographs of that size."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    paths = [folder / f"{k:03}.jpg" for k in range(n)]
    folder.mkdir(parents=True)
    for path in paths:
        a, b, c = rng.uniform(15, 90, 3)
        planes = [128 + 90 * np.sin(x / a) * np.cos(y / b), 128 + 90 * np.sin(x / c + y / a), 255 * x / width]
        pixels = np.stack(planes, 2) + rng.normal(0, 9, (height, width, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=95)
    return paths


def original(paths: list[Path], size: int) -> Tensor:
    """(n, 3, size, size) float32, through float arrays (size, size, 3) that are collated and turned."""
    batch = []
    for path in paths:
        picture = Image.open(path)
        if picture.mode != "RGB":
            picture = picture.convert("RGB")
        picture = Image.fromarray(np.array(picture).astype(np.uint8))
        if size != min(picture.size):
            sides = (max(size, round(side * size / min(picture.size))) for side in picture.size)
            picture = picture.resize(tuple(sides), Image.Resampling.BICUBIC)
        left, top = (picture.width - size) // 2, (picture.height - size) // 2
        pixels = np.array(picture)[top : top + size, left : left + size]
        batch.append((pixels / 127.5 - 1.0).astype(np.float32))
    return torch.stack([torch.from_numpy(x) for x in batch]).movedim(3, 1).contiguous()


def ours(paths: list[Path], size: int, decoder: str = "pil") -> Tensor:
    """(n, 3, size, size) float32: bytes until the batch is whole."""
    return to_float(torch.from_numpy(np.stack([decode(path.read_bytes(), size, decoder) for path in paths])))


def levels(name: str, x: Tensor, expected: Tensor, most: float) -> dict[str, float]:
    """{name: largest difference, in levels of 8 bits}; AssertionError where that is above `most`."""
    off = round(float((x - expected).abs().max()) * 127.5, 3)
    if off > most:
        raise AssertionError(f"{name}: {off} levels from {ORIGINAL}, accepted are {most}")
    return {f"{name}, levels": off}


def pictures(name: str, folder: Path, width: int, height: int, n: int, quick: str = "", size: int = 256) -> Work:
    """n files, decoded each time; and as of the second epoch of a set that fits into memory. `quick` has a goal."""
    paths = make_pictures(folder / name / "train", width, height, n)
    make_pictures(folder / name / "val", width, height, 1)  # or some of train would be held out
    began = time.perf_counter()
    kept = open_dataset(folder / name, size=size).in_memory()
    prepare_s = time.perf_counter() - began

    def from_memory() -> Tensor:
        return to_float(kept.images(range(n)))

    expected = original(paths, size)
    ways = [
        Way(ORIGINAL, lambda: original(paths, size), "peer"),
        Way("ours", lambda: ours(paths, size)),
        Way("ours, decoded before", from_memory, note="the set is kept as bytes", prepare_s=prepare_s),
        Way("ours, torch", lambda: ours(paths, size, "torch"), exact=False, note="its resampler: within two levels"),
        Way("ours, pil-draft", lambda: ours(paths, size, "pil-draft"), exact=False,
            note="JPEG at a reduced scale, where there is one"),
    ]
    agreement = levels("ours", ours(paths, size), expected, 1) | levels("decoded before", from_memory(), expected, 1)
    agreement |= levels("ours, torch", ours(paths, size, "torch"), expected, 2)
    agreement |= levels("ours, pil-draft", ours(paths, size, "pil-draft"), expected, 64)
    agreement["bytes a file"] = sum(path.stat().st_size for path in paths) / n
    goals = [Goal("ours", ORIGINAL, 1.1)]
    if quick:
        goals.append(Goal(quick, ORIGINAL, 2))
    return Work(name, ways, goals, n, "pictures", agreement=agreement)


def cached_moments(name: str, folder: Path, n: int = 2048, shape: tuple[int, ...] = (8, 32, 32), b: int = 128) -> Work:
    """Batches in random order from a file of float16 moments, and from as many files as pictures."""
    rng = np.random.default_rng(0)
    moments = rng.normal(size=(n, *shape)).astype(np.float16)
    single = folder / "single"
    single.mkdir()
    np.save(folder / "moments.npy", moments)
    for k, values in enumerate(moments):
        np.save(single / f"{k}.npy", values)
    latents = Latents(np.load(folder / "moments.npy", mmap_mode="r"), np.zeros(n // 2, np.int64), "")
    batches = rng.permutation(n)[: n - n % b].reshape(-1, b).tolist()

    def one_file() -> list[Tensor]:
        return [latents.__getitems__(indices)["moments"] for indices in batches]

    def many_files() -> list[Tensor]:
        return [torch.from_numpy(np.stack([np.load(single / f"{k}.npy") for k in indices]).astype(np.float32))
                for indices in batches]

    agreement = agree("ours", one_file(), many_files(), 0.0)
    ways = [Way("a file of NumPy a picture", many_files, "peer"), Way("ours", one_file, note="one memory-mapped file")]
    return Work(name, ways, n=len(batches) * b, unit="latents", agreement=agreement)


def main() -> None:
    args = parse(__doc__, "loading")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the harness would make as many calls as a GPU needs
    torch.set_num_threads(1)
    sources = {"500 x 375 JPEG to 256 px": (500, 375, 16, "ours, torch"),
               "1024 x 1024 JPEG to 256 px": (1024, 1024, 6, "ours, pil-draft"),
               "256 x 256 JPEG to 256 px": (256, 256, 32)}
    with tempfile.TemporaryDirectory() as folder:
        works = [(name, partial(pictures, name, Path(folder), *given)) for name, given in sources.items()]
        name = "cached moments of 256 px pictures, f = 8, batch 128"
        run_table("loading", [*works, (name, partial(cached_moments, name, Path(folder)))], args, threads=1)


if __name__ == "__main__":
    main()
