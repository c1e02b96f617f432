"""Layouts, which are boxes of objects, as tokens [LDM v2, App. D.3, E.2.1]."""

import difflib
import math
from collections.abc import Sequence
from enum import IntFlag
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ldmlab.data.annotations.annotation import WHOLE, Box, Crop

Rect = tuple[float, float, float, float]  # x0, y0, width, height
ROUNDING = 0.01  # in data sets, boxes exceed their picture by up to about a pixel


class BoxFlag(IntFlag):
    """Attributes of an object besides its class, as in OpenImages; the values are those of the released tokens."""

    GROUP = 1
    OCCLUDED = 2
    DEPICTION = 4
    INSIDE = 8


class BoxTokenizer:
    """Boxes <-> tokens (c, l, b): class, corner top left, corner bottom right [LDM v2, App. E.2.1; Tab. 17].

    A corner is one of `side` x `side` positions, counted by rows, where `side` is the integer part of sqrt(num_tokens).
    The last token, `padding`, fills up to `max_objects` boxes; with `encode_crop` the crop's two corners follow.
    Classes are tokens 0 to num_classes - 1; attributes add num_classes times their BoxFlag: GROUP with `use_group`, the
    others with `use_additional`. ValueError if the classes do not fit below the padding.

    Deviation: [LDM v2] writes (l, b, c); the released code has the class first.

    >>> tokenizer = BoxTokenizer(num_classes=3, num_tokens=17, max_objects=2, encode_crop=False)
    >>> tokenizer.encode([Box("cube", 1, 0.0, 0.0, 1.0, 1.0)])  # class, corners, padding
    tensor([ 1,  0, 15, 16, 16, 16])
    """

    def __init__(
        self,
        num_classes: int,
        num_tokens: int = 8192,
        max_objects: int = 30,
        encode_crop: bool = True,
        use_group: bool = False,
        use_additional: bool = False,
    ):
        if min(num_classes, max_objects) < 1 or num_tokens < 4:
            raise ValueError(
                f"need num_classes >= 1, max_objects >= 1 and num_tokens >= 4, got {num_classes=}, {max_objects=}, "
                f"{num_tokens=}"
            )
        additional = BoxFlag.OCCLUDED | BoxFlag.DEPICTION | BoxFlag.INSIDE
        self.flags = (BoxFlag.GROUP if use_group else BoxFlag(0)) | (additional if use_additional else BoxFlag(0))
        self.num_classes, self.num_tokens, self.max_objects = num_classes, num_tokens, max_objects
        self.encode_crop, self.side, self.padding = encode_crop, math.isqrt(num_tokens), num_tokens - 1
        if num_classes * (self.flags + 1) > self.padding:
            raise ValueError(f"{num_classes} classes with {self.flags!r} need {num_classes * (self.flags + 1)} tokens "
                             f"and one for padding, got num_tokens={num_tokens}")

    @property
    def length(self) -> int:
        """The number of tokens of a layout: 92 as released."""
        return 3 * self.max_objects + 2 * self.encode_crop

    @property
    def null(self) -> Int[Tensor, " length"]:
        """The null condition of classifier-free guidance: padding alone, without a crop."""
        return torch.full((self.length,), self.padding)

    def encode(
        self,
        boxes: Sequence[Box],
        crop: Crop = WHOLE,
        *,
        flip: bool = False,
        order: Sequence[int] | None = None,
        flags: Sequence[int] | None = None,
    ) -> Int[Tensor, " length"]:
        """The tokens of boxes in fractions of the whole picture, of which `crop` (x0, y0, width, height) is visible.

        As released: of more than `max_objects` boxes the first are taken; then they are permuted by `order`; then those
        that do not intersect the crop are dropped. With `encode_crop` boxes remain fractions of the whole picture,
        otherwise they become fractions of the crop; then a box that begins before the crop is moved into it at its full
        width. `flip` mirrors boxes and crop. `flags` are BoxFlags, one a box. ValueError for an unknown class, boxes or
        crop outside of the picture, flags of another number, and an `order` that is no permutation.
        """
        self._check(boxes, crop, flags)
        given = [0] * len(boxes) if flags is None else flags
        rows = [(b.label, int(f) & self.flags, (b.x0, b.y0, b.x1 - b.x0, b.y1 - b.y0))
                for b, f in zip(boxes, given, strict=True)][: self.max_objects]
        order = range(len(rows)) if order is None else order
        if sorted(order) != list(range(len(rows))):
            raise ValueError(f"order must be a permutation of 0 to {len(rows) - 1}, got {list(order)}")
        tokens = []
        for label, flag, rect in (rows[i] for i in order):
            if _intersect(rect, crop):
                rect = _within(rect, WHOLE if self.encode_crop else crop, flip)
                tokens += [label + self.num_classes * flag, *self._corners(rect)]
        tokens += [self.padding] * (3 * self.max_objects - len(tokens))
        if self.encode_crop:
            tokens += self._corners(_mirrored(crop) if flip else crop)
        return torch.tensor(tokens)

    def decode(self, tokens: Int[Tensor, " length"]) -> list[tuple[int, tuple[float, float, float, float]]]:
        """(class token, (x0, y0, x1, y1)) of each box, to a precision of 1 / (side - 1); padding is left out.

        Class tokens are labels, plus num_classes times the flags if these are used.
        """
        rows = self._checked(tokens)[: 3 * self.max_objects].view(-1, 3).tolist()
        return [(c, (*self._place(first), *self._place(last))) for c, first, last in rows if c != self.padding]

    def decode_crop(self, tokens: Int[Tensor, " length"]) -> Crop | None:
        """The crop (x0, y0, width, height); None for tokens without one, as in `null`."""
        corners = self._checked(tokens)[3 * self.max_objects :].tolist()
        if corners in ([], [self.padding] * 2):
            return None
        (x0, y0), (x1, y1) = map(self._place, corners)
        return x0, y0, x1 - x0, y1 - y0

    def _check(self, boxes: Sequence[Box], crop: Crop, flags: Sequence[int] | None) -> None:
        for box in boxes:
            if not 0 <= box.label < self.num_classes:
                raise ValueError(f"labels of boxes must lie in 0 to {self.num_classes - 1}, got {box}")
            low, high = -ROUNDING, 1 + ROUNDING
            if not (low <= box.x0 <= box.x1 <= high and low <= box.y0 <= box.y1 <= high):
                raise ValueError(f"boxes are fractions of the picture with x0 <= x1 and y0 <= y1, got {box}; "
                                 f"check_boxes cuts boxes to the picture")
        x, y, width, height = crop
        if not (x >= 0 and y >= 0 and min(width, height) > 0 and max(x + width, y + height) <= 1 + ROUNDING):
            raise ValueError(f"crop must be x0, y0, width, height within 0 to 1, got {crop}")
        if flags is not None and len(flags) != len(boxes):
            raise ValueError(f"flags must be one a box, got {len(flags)} for {len(boxes)} boxes")

    def _checked(self, tokens: Tensor) -> Tensor:
        if len(tokens) != self.length or (len(tokens) and not 0 <= tokens.min() <= tokens.max() <= self.padding):
            raise ValueError(f"a layout has {self.length} tokens in 0 to {self.padding}, got {len(tokens)}: {tokens}")
        return tokens

    def _token(self, x: float, y: float) -> int:
        # A corner just halfway goes to the even place, as Python rounds and so the released code.
        return round(min(y, 1.0) * (self.side - 1)) * self.side + round(min(x, 1.0) * (self.side - 1))

    def _corners(self, rect: Rect) -> list[int]:
        x, y, width, height = rect
        return [self._token(x, y), self._token(x + width, y + height)]

    def _place(self, token: int) -> tuple[float, float]:
        y, x = divmod(token, self.side)
        return x / (self.side - 1), y / (self.side - 1)


def _intersect(a: Rect, b: Rect) -> bool:
    """Whether the intersection of two rectangles has an area."""
    across = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    down = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return across > 0 and down > 0


def _within(rect: Rect, crop: Crop, flip: bool) -> Rect:
    """A rectangle in fractions of the crop, mirrored with `flip`."""
    x, y = (min(max((rect[i] - crop[i]) / crop[i + 2], 0.0), 1.0) for i in (0, 1))
    width, height = min(rect[2] / crop[2], 1 - x), min(rect[3] / crop[3], 1 - y)
    return _mirrored((x, y, width, height)) if flip else (x, y, width, height)


def _mirrored(rect: Rect) -> Rect:
    return 1 - (rect[0] + rect[2]), *rect[1:]


def check_boxes(
    boxes: Sequence[Box | Sequence[str | float | int]], names: Sequence[str], max_objects: int = 30
) -> tuple[tuple[Box, ...], list[str]]:
    """A user's boxes, `Box` or (name, x0, y0, x1, y1) in fractions, corrected; and a note on each correction.

    Boxes partly outside are cut to the picture; of more than `max_objects` the largest are kept, in their order.
    ValueError for a box that is entirely outside or has no size, and for an unknown name, with the nearest known ones.
    """
    fit: list[Box] = []
    notes: list[str] = []
    for given in boxes:
        row: Sequence[Any] = (given.name, given.x0, given.y0, given.x1, given.y1) if isinstance(given, Box) else given
        name, *ends = row
        if len(ends) != 4:
            raise ValueError(f"a box is (name, x0, y0, x1, y1), got {given!r}")
        text = f"box {name!r} ({', '.join(f'{end:g}' for end in ends)})"
        if name not in names:
            near = difflib.get_close_matches(str(name).lower(), names, n=3, cutoff=0.5)
            hint = f"nearest are {', '.join(near)}" if near else f"known are {', '.join(names[:10])}, ..."
            raise ValueError(f"{text}: class {name!r} is unknown; {hint}")
        x0, y0, x1, y1 = ends
        if not (x0 < x1 and y0 < y1):  # also true for NaN
            raise ValueError(f"{text} has no size; a box is x0, y0, x1, y1 with x0 < x1 and y0 < y1")
        cut = [min(max(float(end), 0.0), 1.0) for end in ends]
        if not (cut[0] < cut[2] and cut[1] < cut[3]):
            raise ValueError(f"{text} lies outside of the picture, which goes from 0 to 1 across and down")
        if cut != list(ends):
            notes.append(f"{text} is cut to the picture: ({', '.join(f'{end:g}' for end in cut)})")
        fit.append(Box(name, list(names).index(name), *cut))
    if len(fit) > max_objects:
        notes.append(f"{len(fit)} boxes, more than {max_objects}: the largest {max_objects} are kept")
        by_size = sorted(range(len(fit)), key=lambda i: -(fit[i].x1 - fit[i].x0) * (fit[i].y1 - fit[i].y0))
        fit = [fit[i] for i in sorted(by_size[:max_objects])]
    return tuple(fit), notes
