"""Names of data sets, checked with the standard library alone, before slow packages are imported."""

import glob
import os
import re
from pathlib import Path

SPLITS: tuple[str, ...] = ("train", "validation", "test")
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
TORCHVISION: dict[str, str] = {
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "mnist": "MNIST",
    "fashionmnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "svhn": "SVHN",
    "stl10": "STL10",
    "celeba": "CelebA",
    "flowers102": "Flowers102",
    "food101": "Food101",
    "oxfordiiitpet": "OxfordIIITPet",
}
ACCEPTED = (
    "'scenes' (the embedded data set), a folder of pictures, a .tar of pictures, WebDataset shards (.tar "
    "files in a folder, or a pattern such as 'shards/{000..007}.tar' or 'shards/*.tar'), or one of torchvision's "
    + ", ".join(TORCHVISION)
)


def expand_shards(pattern: str) -> list[str]:
    """Paths that a shard pattern stands for: {000..007} is a range, {a,b} a list, * and ? are wildcards; [] if none."""
    brace = re.search(r"\{([^{}]*)\}", pattern)
    if brace:
        span = re.fullmatch(r"(\d+)\.\.(\d+)", brace[1])
        options = brace[1].split(",")
        if span:
            options = [str(k).zfill(len(span[1])) for k in range(int(span[1]), int(span[2]) + 1)]
        head, tail = pattern[: brace.start()], pattern[brace.end() :]
        return [path for option in options for path in expand_shards(head + option + tail)]
    if re.search(r"[*?\[]", pattern):
        return sorted(glob.glob(pattern))
    return [pattern] if Path(pattern).is_file() else []


def check_data_name(name_or_path: str | Path) -> str:
    """Kind of a data set: "scenes", "folder", "tar" or "torchvision"; ValueError with what is accepted if unknown."""
    if not isinstance(name_or_path, str | Path) or not str(name_or_path).strip():
        raise ValueError(f"data {name_or_path!r} is not a name or path; accepted: {ACCEPTED}")
    text = str(name_or_path)
    if text == "scenes":
        return "scenes"
    path = Path(text).expanduser()
    if path.is_dir():
        if any(path.glob("*.tar")):
            return "tar"
        if any(file.lower().endswith(PICTURES) for _, _, files in os.walk(path, followlinks=True) for file in files):
            return "folder"
        raise ValueError(f"data {text!r} is a folder without a picture ({', '.join(PICTURES)}); accepted: {ACCEPTED}")
    if text.lower() in TORCHVISION:
        return "torchvision"
    if text.endswith(".tar"):
        if expand_shards(str(path)):
            return "tar"
        raise ValueError(f"data {text!r}: no such .tar file; accepted: {ACCEPTED}")
    if path.exists():
        raise ValueError(f"data {text!r} is a file but no .tar; accepted: {ACCEPTED}")
    raise ValueError(f"data {text!r} is neither a known name nor an existing path; accepted: {ACCEPTED}")
