"""A user's own pictures, of any size: open them with their masks, pad them to a model's stride, and crop back."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ldmlab.data.annotations.label_maps import map_labels
from ldmlab.data.dataset_names import PICTURES
from ldmlab.data.decode import open_rgb, to_rgb
from ldmlab.data.file_lists import Entry, file_entry, scan_folder, scan_tar
from ldmlab.data.formats import named_errors, open_picture_file
from ldmlab.data.images import to_float

NEAR = 32  # grey levels by which compression may change 0 and 255
LONGEST_NAME = 20  # letters of a row's name
EDGE = 4  # pixels from the border of a hole within which resizing leaves any grey level
Where = str | Path | Entry | bytes | memoryview  # a file, an entry of `find_pairs`, or an uploaded file's bytes


def open_picture(where: Where) -> Float[Tensor, "3 h w"]:
    """Open a picture in its own size, in [-1, 1]: EXIF orientation applied, RGB, alpha over white.

    Raises ValueError, with the reason, for a file that is missing or not a picture.
    """
    return decode_bytes(_bytes(where), _name(where))


def decode_bytes(raw: bytes | memoryview, name: str = "the upload") -> Float[Tensor, "3 h w"]:
    """Decode the bytes of a picture file as `open_picture` does; `name` stands in error messages."""
    return to_float(torch.from_numpy(np.array(open_rgb(raw, name))).permute(2, 0, 1).contiguous())


def open_mask(where: Where, size: tuple[int, int]) -> Float[Tensor, "1 h w"]:
    """Open the mask of a picture of `size` (h, w): 1 in the hole (white), 0 elsewhere (black).

    The file is grey, or RGB with equal channels, and binary: levels within NEAR of 0 or 255; others only within EDGE
    pixels of the border of a hole, where resizing smooths it. Levels of 128 and above are hole.
    Raises ValueError for another size, other levels, colours or transparency, and for a mask without a hole.
    """
    name = _name(where)
    with named_errors(name), open_picture_file(_bytes(where), name) as picture:
        transparent, levels = _is_transparent(picture), np.asarray(to_rgb(picture)).astype(np.int16)  # (h, w, 3)
    if transparent:
        raise ValueError(f"mask {name} is transparent in places; a mask is opaque, white where the hole is")
    if levels.shape[:2] != tuple(size):
        raise ValueError(f"mask {name} is {levels.shape[0]} x {levels.shape[1]}, its picture {size[0]} x {size[1]}")
    spread = int(np.ptp(levels, axis=2).max())
    if spread > NEAR:
        raise ValueError(f"mask {name} has colours: its channels differ by {spread} levels; masks are black and white")
    return _binary(levels[..., 1], name)


def _is_transparent(picture: Image.Image) -> bool:
    """Whether any pixel is, in part."""
    colour = picture.info.get("transparency")
    if picture.mode.startswith("I"):
        return colour is not None and bool((np.asarray(picture) == colour).any())
    if "A" not in picture.getbands() and colour is None:
        return False
    return bool(np.asarray(picture.convert("RGBA").getchannel("A")).min() < 255)


def _binary(levels: np.ndarray, name: str) -> Float[Tensor, "1 h w"]:
    hole = torch.from_numpy(levels >= 128)[None].float()
    if not hole.any():
        raise ValueError(f"mask {name} has no hole: its levels go up to {levels.max()}, and a hole is white, 255")
    near_hole, near_rest = (F.max_pool2d(part, 2 * EDGE + 1, 1, EDGE) for part in (hole, 1 - hole))
    border = (near_hole * near_rest)[0].numpy() > 0
    grey = (levels > NEAR) & (levels < 255 - NEAR)
    if (grey & ~border).any() or grey[border].sum() > 0.5 * border.sum():
        raise ValueError(
            f"mask {name} is not binary: {grey.mean():.1%} of its pixels have levels from {levels[grey].min()} to "
            f"{levels[grey].max()}; accepted are 0 to {NEAR} and {255 - NEAR} to 255, others along a hole's border only"
        )
    return hole


def find_pairs(path: str | Path) -> list[tuple[Entry, Entry | None]]:
    """List a picture, or those of a folder or .tar by name, each with its mask or None: `a_mask.png` beside `a.png`.

    `open_picture` and `open_mask` open the entries. Raises ValueError where there is no picture, or a mask has none.
    """
    root = Path(path).expanduser()
    if root.is_dir():
        entries = scan_folder(root)
    elif root.suffix == ".tar" and root.is_file():
        entries = scan_tar(str(root))
    elif root.is_file():
        candidates = (root.with_name(f"{root.stem}_mask{ending}") for ending in (root.suffix, *PICTURES))
        mask = next((m for m in candidates if m.is_file()), None)
        return [(file_entry(root, root.name), file_entry(mask, mask.name) if mask else None)]
    else:
        what = "is a device or a FIFO" if root.exists() else "does not exist"
        raise ValueError(f"{str(path)!r} {what}; give a picture, a folder of pictures or a .tar of them")
    entries.sort(key=lambda e: e.name)
    pictures = [e for e in entries if not _stem(e).endswith("_mask")]
    masks = {_stem(e).removesuffix("_mask"): e for e in entries if _stem(e).endswith("_mask")}
    if not pictures:
        raise ValueError(f"{str(path)!r} holds no picture; accepted are {', '.join(PICTURES)}")
    if alone := [mask.name for stem, mask in masks.items() if stem not in map(_stem, pictures)]:
        raise ValueError(f"{', '.join(alone)} of {str(path)!r}: masks without a picture of that name")
    return [(e, masks.get(_stem(e))) for e in pictures]


def open_user_pictures(
    path: str | Path, wants: str = "picture", smallest: int = 1
) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
    """Open the pictures under a path, one after the other: a name for its row, and what `wants` says.

    "picture" is (picture,), "mask" (picture, mask), "labels" (a label map,): as of `open_picture`, `open_mask` and
    `map_labels`. No two rows have the same name. Of several files those that cannot be used are passed over, and
    printed with the reason. ValueError where there are none, or all are passed over, and for sides below `smallest`.
    """
    pairs = find_pairs(path)
    problems = []
    for name, (entry, mask) in zip(row_names([e.name for e, _ in pairs]), pairs, strict=True):
        try:
            opened = _open_as(wants, entry, mask)
            if min(opened[0].shape[-2:]) < smallest:
                raise ValueError(f"{entry.name} is {_sides(opened[0].shape[-2:])}; sides are {smallest} or more")
        except ValueError as error:
            problems.append(str(error))
            continue
        yield name, opened
    if len(problems) == len(pairs):
        raise ValueError(f"no picture under {str(path)!r} can be used: {_first(problems)}")
    if problems:
        print(f"{len(problems)} of {len(pairs)} pictures under {str(path)!r} are passed over: {_first(problems)}",
              flush=True)


def _open_as(wants: str, entry: Entry, mask: Entry | None) -> tuple[Tensor, ...]:
    if wants == "labels":
        return (torch.from_numpy(map_labels(bytes(_bytes(entry)), entry.name)).long(),)
    if wants == "mask" and mask is None:
        raise ValueError(f"{entry.name} has no mask; add {_stem(entry)}_mask.png beside it")
    picture = open_picture(entry)
    if wants == "mask" and mask is not None:
        return picture, open_mask(mask, (picture.shape[1], picture.shape[2]))
    return (picture,)


def row_names(files: Sequence[str]) -> list[str]:
    """A short name for each file, all different: without folder and ending if that tells them apart.

    >>> row_names(["a/set.v1.png", "a/set.v2.png"]), row_names(["a/x.png", "b/x.png"])
    (['set.v1', 'set.v2'], ['a/x', 'b/x'])
    """
    forms = ([f.rpartition("/")[2].rpartition(".")[0] for f in files], [f.rpartition(".")[0] for f in files])
    names = next((form for form in forms if len(set(form)) == len(files)), list(files))
    short = [n if len(n) <= LONGEST_NAME else f"{n[: LONGEST_NAME // 2 - 1]}…{n[-LONGEST_NAME // 2 :]}" for n in names]
    taken: set[str] = set()
    for i, name in enumerate(short):
        short[i] = next(s for s in chain([name], (f"{name} ({k})" for k in count(2))) if s not in taken)
        taken.add(short[i])
    return short


def _first(problems: list[str]) -> str:
    return "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")


@dataclass(frozen=True)
class Padding:
    """The size (h, w) of a picture, and its size after padding at the right and the bottom."""

    size: tuple[int, int]
    padded: tuple[int, int]

    def crop(self, x: Float[Tensor, "*b c h w"]) -> Float[Tensor, "*b c h2 w2"]:
        """Remove the padding, also from a picture enlarged by a whole factor since; ValueError for other sizes."""
        factor = x.shape[-1] // self.padded[1]
        if factor < 1 or tuple(x.shape[-2:]) != tuple(side * factor for side in self.padded):
            size = _sides(x.shape[-2:])
            raise ValueError(f"cannot crop {size}: the padded size is {_sides(self.padded)} or a multiple of it")
        return x[..., : self.size[0] * factor, : self.size[1] * factor]

    def __str__(self) -> str:
        """A description of the padding, "" where there is none."""
        if self.size == self.padded:
            return ""
        return f"padded from {_sides(self.size)} to {_sides(self.padded)}, cropped back"


def pad_to_multiple(x: Float[Tensor, "*b c h w"], multiple: int) -> tuple[Float[Tensor, "*b c h2 w2"], Padding]:
    """Pad pictures or masks by reflection, at the right and the bottom, to multiples of a model's stride.

    Raises ValueError where a side is shorter than `multiple`.
    """
    h, w = x.shape[-2:]
    if multiple < 1:
        raise ValueError(f"multiple must be at least 1, got {multiple}")
    if min(h, w) < multiple:
        raise ValueError(f"picture of {h} x {w} is smaller than the model's stride: sides are {multiple} or more")
    down, right = -h % multiple, -w % multiple  # each less than its side, so there is enough to reflect
    padded = F.pad(x.reshape(-1, h, w), (0, right, 0, down), mode="reflect")
    return padded.reshape(*x.shape[:-2], h + down, w + right), Padding((h, w), (h + down, w + right))


def _sides(size: tuple[int, ...] | torch.Size) -> str:
    return " x ".join(map(str, size))


def _stem(entry: Entry) -> str:
    return entry.name.rsplit(".", 1)[0]


def _name(where: Where) -> str:
    if isinstance(where, bytes | memoryview):
        return "the upload"
    return where.name if isinstance(where, Entry) else str(where)


def _bytes(where: Where) -> bytes | memoryview:
    if isinstance(where, bytes | memoryview):
        return where
    name = _name(where)
    try:
        entry = where if isinstance(where, Entry) else file_entry(Path(where).expanduser(), name)
        return entry.bytes()
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror or error}") from error
