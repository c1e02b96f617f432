"""Names of data sets, checked before slow packages are imported."""

import glob
import re
import tarfile
from collections import Counter
from pathlib import Path

from ldmlab.data.formats import readable_suffixes
from ldmlab.data.listing.names import PICTURE_LIKE, is_litter_file
from ldmlab.data.listing.walk import walk

SPLITS: tuple[str, ...] = ("train", "validation", "test")
PICTURES = readable_suffixes()
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
    """Files that a shard pattern stands for: {000..007} is a range, {a,b} a list, * and ? are wildcards; [] if none."""
    return [path for path in _expand(pattern) if Path(path).is_file()]


def missing_shards(pattern: str) -> list[str]:
    """The files that braces of a pattern name and that do not exist."""
    if not re.search(r"\{[^{}]*\}", pattern) or re.search(r"[*?\[]", pattern):
        return []
    return [path for path in _expand(pattern) if not Path(path).is_file()]


def _expand(pattern: str) -> list[str]:
    brace = re.search(r"\{([^{}]*)\}", pattern)
    if brace and not Path(pattern).exists():
        span = re.fullmatch(r"(\d+)\.\.(\d+)", brace[1])
        options = brace[1].split(",")
        if span:
            options = [str(k).zfill(len(span[1])) for k in range(int(span[1]), int(span[2]) + 1)]
        head, tail = pattern[: brace.start()], pattern[brace.end() :]
        return [path for option in options for path in _expand(head + option + tail)]
    if re.search(r"[*?\[]", pattern) and not Path(pattern).exists():
        return sorted(glob.glob(pattern))
    return [pattern]


def tars_in(folder: Path) -> list[Path]:
    """The tar files in a folder, without hidden ones."""
    return [tar for tar in sorted(folder.glob("*.tar")) if not tar.name.startswith(".") and tar.is_file()]


def is_picture(name: str) -> bool:
    """Whether a file's name has the ending of a picture that is read, and is no litter."""
    return name.lower().endswith(PICTURES) and not is_litter_file(name)


def _folder_kind(path: Path) -> str:
    """What holds the data of a folder: "tar" or "folder", by pictures where there are both; ValueError for neither."""
    tars, unread, num_pictures = tars_in(path), Counter[str](), 0
    for found in walk(path, is_picture):
        if found.stat is None and (ending := Path(found.name).suffix.lower()) in PICTURE_LIKE:
            unread[ending] += found.kind == "file"
        num_pictures += found.stat is not None
        if num_pictures and not tars:
            return "folder"
    if tars:
        return "folder" if num_pictures and not _holds_more(tars, num_pictures) else "tar"
    others = ", ".join(f"{count:,} {ending} files" for ending, count in unread.most_common())
    raise ValueError(f"data {str(path)!r} is a folder without a picture ({', '.join(PICTURES)}); "
                     f"{f'it holds {others}, formats that are not read: convert them; ' if others else ''}"
                     f"accepted: {ACCEPTED}")


def _holds_more(tars: list[Path], num: int) -> bool:
    """Whether tar files hold more than `num` pictures, which are counted only as far as that."""
    for tar in tars:
        try:
            with tarfile.open(tar, "r:") as archive:
                for member in archive:
                    num -= is_picture(member.name.rpartition("/")[2])
                    if num < 0:
                        return True
        except tarfile.TarError:
            continue
    return False


def check_data_name(name_or_path: str | Path) -> str:
    """Kind of a data set: "scenes", "folder", "tar" or "torchvision"; ValueError with what is accepted if unknown.

    A folder with tar files and pictures is of the kind that has more pictures.
    """
    if not isinstance(name_or_path, str | Path) or not str(name_or_path).strip():
        raise ValueError(f"data {name_or_path!r} is not a name or path; accepted: {ACCEPTED}")
    text = str(name_or_path)
    if text == "scenes":
        return "scenes"
    path = Path(text).expanduser()
    if path.is_dir():
        return _folder_kind(path)
    if text.lower() in TORCHVISION:
        return "torchvision"
    if text.endswith(".tar"):
        missing = missing_shards(str(path))
        if found := expand_shards(str(path)):
            if missing:
                raise ValueError(
                    f"data {text!r}: {len(missing)} of {len(missing) + len(found)} shards do not exist, such as "
                    f"{missing[0]}; copy them there, or name those that exist, by * or {{a,b}}")
            return "tar"
        raise ValueError(f"data {text!r}: no such .tar file; accepted: {ACCEPTED}")
    if path.exists():
        raise ValueError(f"data {text!r} is a file but no .tar; accepted: {ACCEPTED}")
    raise ValueError(f"data {text!r} is neither a known name nor an existing path; accepted: {ACCEPTED}")
