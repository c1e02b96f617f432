"""Random masks for inpainting: strokes and boxes, thin, medium or thick [LaMa, Sec. 2.3; LDM v2, App. E.2.2]."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

Range = tuple[float | int, float | int]
UNIT = 512  # lengths below are in pixels of a picture whose shorter side is this long
MAX_SEGMENTS = 5  # of one stroke
MAX_TURN = 4.0  # radians
MAX_DRAWS = 1000
LAMA_COVERED = (0.0, 0.5)
SIZES = (8, 4096)  # shorter and longer side, pixels


@dataclass(frozen=True)
class MaskKind:
    """Distribution of masks: number and size of strokes and boxes, and the covered share; ranges include both ends.

    Lengths are in pixels of a picture whose shorter side is UNIT. A mask has boxes with probability `box_probability`,
    at a distance of `margin` or more from the border of the picture.
    """

    covered: Range
    strokes: tuple[int, int]
    width: Range
    length: Range
    box_probability: float = 0.0
    boxes: tuple[int, int] = (0, 0)
    box_side: Range = (0.0, 0.0)
    margin: float | int = 0


# The published settings of LaMa's test masks at 512 x 512, but for `covered`, which is LAMA_COVERED for all of them.
KINDS: dict[str, MaskKind] = {
    "thin": MaskKind(covered=(0, 0.2), strokes=(4, 70), width=(5, 25), length=(10, 110)),
    "medium": MaskKind(covered=(0.1, 0.35), strokes=(4, 10), width=(5, 105), length=(10, 210),
                       box_probability=0.3, boxes=(1, 5), box_side=(30, 150)),
    "thick": MaskKind(covered=(0.2, 0.5), strokes=(1, 5), width=(5, 255), length=(10, 460),
                      box_probability=0.3, boxes=(1, 4), box_side=(30, 300), margin=10),
}


def inpainting_masks(
    n: int, size: int | tuple[int, int], kind: str = "medium", seed: int = 0,
    covered: Range | None = None,
) -> Float[Tensor, "n 1 h w"]:
    """Draw `n` masks of `size`, a side or (h, w) in pixels: 1 in the hole, 0 where the picture is known.

    Mask i depends on i, size, kind, seed and `covered`, not on `n`. Lengths scale with the shorter side; strokes are at
    least a pixel wide. A mask is redrawn until the share of the picture that it covers is within `covered` (default:
    the range of the kind). No mask is empty or covers the whole picture.

    Deviation: LaMa's kinds all cover up to a half (LAMA_COVERED) and differ in the width of the holes but hardly in
    coverage, means about 0.27, 0.32 and 0.30; here coverage grows from kind to kind. [LDM v2, Tab. 7] evaluates
    (0.4, 0.5) separately. Deviation: a stroke has one width; LaMa's code changes it at every bend.

    Raises ValueError for arguments out of range, and where 1000 draws give no mask with that coverage.

    >>> masks = inpainting_masks(4, size=64, kind="thick", seed=0)
    >>> masks.shape, bool((coverage(masks) >= 0.2).all())
    (torch.Size([4, 1, 64, 64]), True)
    """
    h, w = (size, size) if isinstance(size, int) else size
    if kind not in KINDS:
        raise ValueError(f"kind is one of {', '.join(KINDS)}; got {kind!r}")
    if n < 1 or seed < 0:
        raise ValueError(f"need n >= 1 and seed >= 0, got n={n}, seed={seed}")
    if min(h, w) < SIZES[0] or max(h, w) > SIZES[1]:
        raise ValueError(f"masks have sides of {SIZES[0]} to {SIZES[1]} pixels, got {h} x {w}")
    covered = KINDS[kind].covered if covered is None else covered
    if not 0 <= covered[0] < covered[1] <= 1:
        raise ValueError(f"covered is a range within 0 to 1, got {covered}")
    masks = [_mask(np.random.default_rng([seed, i]), h, w, kind, covered) for i in range(n)]
    return torch.from_numpy(np.stack(masks))[:, None].float()


def coverage(mask: Float[Tensor, "n 1 h w"]) -> Float[Tensor, " n"]:
    """Share of each picture that the hole covers, 0 to 1."""
    return mask.mean((1, 2, 3))


def _mask(rng: np.random.Generator, h: int, w: int, kind: str, covered: Range) -> np.ndarray:
    for _ in range(MAX_DRAWS):
        hole = _draw(rng, h, w, KINDS[kind])
        if covered[0] <= hole.mean() <= covered[1] and 0 < hole.mean() < 1:
            return hole
    raise ValueError(f"none of {MAX_DRAWS} {kind} masks of {h} x {w} covers {covered[0]:.0%} to {covered[1]:.0%}")


def _draw(rng: np.random.Generator, h: int, w: int, kind: MaskKind) -> np.ndarray:
    """Draw one mask (h, w) of any coverage."""
    picture = Image.new("L", (w, h))
    draw, scale = ImageDraw.Draw(picture), min(h, w) / UNIT
    for _ in range(rng.integers(*kind.strokes, endpoint=True)):
        _stroke(rng, draw, h, w, kind, scale)
    if rng.random() < kind.box_probability:
        for _ in range(rng.integers(*kind.boxes, endpoint=True)):
            margin = kind.margin * scale
            bw, bh = (max(1.0, side * scale) for side in rng.uniform(*kind.box_side, 2))
            x0, y0 = rng.uniform(margin, (w - margin - bw, h - margin - bh))
            draw.rectangle((round(x0), round(y0), round(x0 + bw) - 1, round(y0 + bh) - 1), fill=1)
    return np.array(picture, bool)


def _stroke(rng: np.random.Generator, draw: ImageDraw.ImageDraw, h: int, w: int, kind: MaskKind, scale: float) -> None:
    """Draw a polyline, clipped at the border; the sign of the angle alternates, so that it zigzags."""
    width = max(1, round(rng.uniform(*kind.width) * scale))
    x, y = rng.uniform(0, (w, h))
    for i in range(rng.integers(1, MAX_SEGMENTS, endpoint=True)):
        angle = rng.uniform(0, MAX_TURN) * (-1) ** i
        length = rng.uniform(*kind.length) * scale
        x1 = min(max(x + length * math.sin(angle), 0.0), w)  # np.clip of two numbers takes ten times as long
        y1 = min(max(y + length * math.cos(angle), 0.0), h)
        draw.line((x, y, x1, y1), fill=1, width=width)
        if width > 2:
            for cx, cy in ((x, y), (x1, y1)):
                draw.ellipse((cx - width / 2, cy - width / 2, cx + width / 2, cy + width / 2), fill=1)
        x, y = x1, y1
