"""What names of files and folders mean: splits, masks, companions of a picture, litter of systems and tools.

Standard library only: data sets are checked by name before slow packages are imported.
"""

import hashlib
import re
from collections.abc import Iterable
from functools import lru_cache

SPLIT_WORDS: dict[str, str] = {
    **dict.fromkeys(("train", "training", "trn", "tr"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev", "development", "vl"), "validation"),
    **dict.fromkeys(("test", "testing", "tst", "ts", "te", "eval", "evaluation"), "test"),
}
# Words that a folder's name may hold beside its split without meaning anything: train_images, val2017, "test set".
_NEUTRAL = frozenset(
    "images image imgs img pictures picture pics pic photos photo jpegimages jpegs jpeg jpg png set sets data dataset "
    "datasets split splits subset part folder files raw full all final the of and for".split())
IMAGE_FOLDERS = frozenset("images image imgs img jpegimages pictures pics photos rgb".split())
# Folders beside an image folder that hold something else than pictures to train on.
MASK_FOLDERS = frozenset(
    "masks mask labels label labelids annotations annotation annots gt gts gtfine groundtruth ground_truth "
    "ground-truth segmentation segmentations segmentationclass segmentationobject segs seg depth depths edges trimaps "
    "trimap instances semantic alpha mattes matte".split())
# Of these, names that are left out without an image folder beside them, since no class is called so.
_NEVER_CLASSES = frozenset(
    "masks labels labelids annotations annots gt gts gtfine groundtruth ground_truth ground-truth segmentations "
    "segmentationclass segmentationobject trimaps mattes".split())
# Middle parts of a name that make a file a companion of the picture beside it: a.seg.png of a.jpg.
_COMPANIONS = frozenset(
    "seg segmentation semantic mask masks map label labels instance instances depth disparity normal normals edge "
    "edges canny hed sketch pose alpha matte trimap thumb thumbnail preview small lowres lr gt target output outputs "
    "result hint control cond".split())
_MAIN = ("input", "image", "img", "rgb", "color", "colour", "photo", "picture", "original", "source", "hr")
_LITTER_FOLDERS = frozenset((
    "@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "$recycle.bin", "recycler", "recycled",
    "system volume information", "lost+found", "network trash folder", "temporary items", "node_modules"))
_LITTER_FILES = frozenset((
    "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini", "icon\r", "albumart.jpg"))
MAX_NAME = 80  # bytes of a data set's name in the names of files
# Endings of pictures; those that this version reads are `dataset_names.PICTURES`.
PICTURE_LIKE = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
    ".pbm", ".pnm", ".pfm", ".avif", ".avifs", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".jpf", ".jpx", ".jxl", ".jxr",
    ".tga", ".dds", ".exr", ".hdr", ".ico", ".icns", ".psd", ".psb", ".xcf", ".svg", ".eps", ".pcx", ".sgi", ".ras",
    ".qoi", ".fits", ".dcm", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2", ".pef", ".srw"))
TEXTS = (".txt", ".json", ".cls", ".jsonl", ".caption", ".xml", ".csv")  # read beside pictures, or kept by people there


def printable(name: str) -> str:
    r"""A name for messages, records and JSON: bytes that are not UTF-8 and control characters as escapes.

    >>> printable(b"caf\xe9.png".decode("utf-8", "surrogateescape"))
    'caf\\xe9.png'
    """
    if name.isascii() and name.isprintable():
        return name
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() or c == " " else c.encode("unicode_escape").decode() for c in text)


def fit_name(name: str, max_bytes: int) -> str:
    """A name cut to `max_bytes` of UTF-8, with a hash of the whole in place of what was cut."""
    raw = name.encode("utf-8", "surrogateescape")
    if len(raw) <= max_bytes:
        return name
    return f"{raw[: max_bytes - 9].decode('utf-8', 'ignore')}-{hashlib.sha256(raw).hexdigest()[:8]}"


def file_label(name: str, fingerprint: str) -> str:
    """A data set's name and fingerprint as part of a file's name."""
    safe = "".join(c if c.isalnum() or c in " ._+=@,()[]{}~-" else "_" for c in name).strip() or "data"
    return f"{fit_name(safe, MAX_NAME)}-{fingerprint[:8]}"


def is_litter_folder(name: str) -> bool:
    """Whether a folder is hidden, or one that systems and tools leave behind."""
    lower = name.lower()
    return name.startswith((".", "__")) or lower in _LITTER_FOLDERS or bool(re.fullmatch(r"found\.\d{3}", lower))


def is_litter_file(name: str) -> bool:
    """Whether a file is hidden, or one that systems and tools leave behind."""
    return name.startswith(".") or name.lower() in _LITTER_FILES


def _words(name: str) -> list[str]:
    """The words of a name in lower case: at separators, digits, and before capitals (trainA, TrainImages)."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_A-Za-z]+", name)]


@lru_cache(4096)
def split_of(name: str) -> tuple[str, str] | None:
    """(split, what else the name says) of a folder or shard; None where it names no split, or several.

    >>> split_of("Train_Images"), split_of("val2017"), split_of("trainA"), split_of("train_station"), split_of("cat")
    (('train', ''), ('validation', ''), ('train', 'A'), ('train', 'station'), None)
    """
    words = _words(name)
    found = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
    if len(found) != 1:
        return None
    rest = [word for word in words if word not in SPLIT_WORDS and word not in _NEUTRAL]
    label = " ".join(rest)
    return found.pop(), label.upper() if len(label) == 1 else label


def shard_split(stem: str) -> str | None:
    """The split that the name of a shard states, such as imagenet-train-000123; None where it states none."""
    return found[0] if (found := split_of(stem)) else None


def splits_among(folders: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Which of these folders are splits: folder -> (split, what else its name says); {} where they are no splits.

    They are where two splits are named alike apart from the split: train and val, seg_train and seg_test, trainA and
    testA. A class called "train" beside "bus", or "train_station" beside "test_tube", is none.
    """
    named = {name: found for name in folders if (found := split_of(name))}
    by_rest: dict[str, set[str]] = {}
    for split, rest in named.values():
        by_rest.setdefault(rest, set()).add(split)
    shared = {rest for rest, splits in by_rest.items() if len(splits) > 1}
    return {name: found for name, found in named.items() if found[1] in shared}


def mask_folders(folders: Iterable[str]) -> set[str]:
    """Which of these sibling folders hold masks, labels or annotations, going by their names and their siblings'."""
    folders = set(folders)
    masks = {name for name in folders if name.lower() in MASK_FOLDERS}
    if not any(name.lower() in IMAGE_FOLDERS for name in folders):
        masks = {name for name in masks if name.lower() in _NEVER_CLASSES}
    return masks if masks != folders else set()


def is_companion(middle: str) -> bool:
    """Whether the part of a name between its first and last dot makes the file a companion, as in a.seg.png."""
    return bool(set(_words(middle)) & _COMPANIONS)


def main_rank(middle: str) -> int:
    """How likely a part of a sample's name marks its picture: 0 for none at all, then `input`, `image` and so on."""
    words = _words(middle)
    return 0 if not middle else next((k for k, word in enumerate(_MAIN, 1) if word in words), len(_MAIN) + 1)


def odd_class(name: str) -> str:
    """What a class's name looks like instead of a class; "" for an ordinary name."""
    lower = name.lower()
    if lower in MASK_FOLDERS or lower in ("images_mask", "image_masks"):
        return "a folder of masks or labels"
    if (found := split_of(name)) and not found[1]:
        return "a split"
    return "a system folder" if name.startswith(("@", "#", "$")) else ""
