"""The embedded data set `scenes`: procedural pictures with class, caption, boxes and label map.

A scene is a pure function of (seed, split, index) and shows the same at every size. The split is part of the key of its
random stream, so splits are disjoint by construction.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from ldmlab.data.annotations.annotation import Box
from ldmlab.data.dataset_names import SPLITS
from ldmlab.data.scenes.canvas import Canvas, Stream, mix, rgb
from ldmlab.data.scenes.objects import CLASSES as DRAWINGS
from ldmlab.data.scenes.places import HOURS, PLACES, STUFF, Place
from ldmlab.data.scenes.props import COMPANIONS
from ldmlab.data.scenes.styles import BRIGHT, COLOURS_OF, PATTERNS, Style, style

VERSION = 2  # incremented by any change of a pixel
SIZES = (32, 512)
CLASSES: tuple[str, ...] = tuple(DRAWINGS)
LABELS: tuple[str, ...] = (*STUFF, *CLASSES, *COMPANIONS)
NUM_SCENES = {"train": 50_000, "validation": 5_000, "test": 5_000}

_FIRST_THING = 100  # canvas numbers of objects start here, in painting order; those below are labels of STUFF
_LAND = ("meadow", "desert", "snow")
_PLACES_OF = {
    "balloon": (*_LAND, "sea"),
    "boat": ("sea",),
    "butterfly": ("meadow", "desert"),
    "car": _LAND,
    "cup": ("room",),
    "fish": ("under water",),
    "flower": ("meadow", "room"),
    "house": _LAND,
    "lighthouse": ("sea", "sea", "meadow"),
    "mushroom": ("meadow", "room"),
    "rocket": ("desert", "meadow", "sea"),
    "tree": _LAND,
}
_FLYING = ("balloon", "butterfly", "fish", "rocket")
_PATTERN_WORDS = {
    "plain": "",
    "striped": "striped ",
    "banded": "banded ",
    "checked": "checked ",
    "dotted": "dotted ",
    "wavy": "wavy ",
}
_PATTERN_SHOWS = ("balloon", "boat", "butterfly", "cup", "fish", "rocket", "house", "ball")
_BESIDE = {"sea": ("ball", "crate", "rock"), "room": ("ball", "crate"), "under water": ("rock", "ball", "crate")}


@dataclass(frozen=True)
class Scene:
    """A rendered picture with its annotations.

    `label` indexes CLASSES; `segmentation` and the boxes' labels index LABELS. The main object's box comes first.
    """

    image: UInt8[Tensor, "3 h w"]
    label: int
    caption: str
    boxes: tuple[Box, ...]
    segmentation: UInt8[Tensor, "h w"]


@dataclass(frozen=True)
class _Thing:
    name: str
    style: Style
    cx: float
    cy: float
    scale: float
    angle: float
    flip: bool
    shadow: float  # height of the foot on the ground, 0 for none


def _key(seed: int, split: str, index: int) -> str:
    return f"ldmlab scenes/{seed}/{split}/{index}"


def scene_label(seed: int, split: str, index: int) -> int:
    """The class of a scene, without rendering it: the first number of its stream decides it."""
    return int(Stream(_key(seed, split, index), 1).uniform() * len(CLASSES))


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _phrase(thing: _Thing) -> str:
    """Noun phrase of an object as it is drawn: "a striped red and white balloon"."""
    if thing.name in ("sun", "moon"):
        return f"the {thing.name}"
    if thing.name == "cloud":
        return "a cloud"
    pattern = thing.style.pattern if thing.name in _PATTERN_SHOWS else "plain"
    if thing.name == "lighthouse":
        return _article(f"banded {thing.style.colour} and white lighthouse")
    if thing.name == "house":
        return _article(f"house with a {_PATTERN_WORDS[pattern]}{thing.style.colour} roof")
    second = f" and {thing.style.second}" if pattern != "plain" else ""
    return _article(f"{_PATTERN_WORDS[pattern]}{thing.style.colour}{second} {thing.name}")


def _compose(r: Stream, canvas: Canvas) -> tuple[list[_Thing], int, str, Place]:
    """Paint the place and choose the objects: (objects back to front, index of the main one, caption, place)."""
    name = r.choice(CLASSES)
    place_name = r.choice(_PLACES_OF[name])
    canvas.grain, canvas.drift = canvas.noise(r, 0.15, 0.8)
    place = PLACES[place_name](canvas, r)
    light = r.choice((-1.0, 1.0)) * r.uniform(0.3, 0.9)

    def dress(thing: str) -> Style:
        return style(r, light, COLOURS_OF.get(thing, BRIGHT), PATTERNS)

    flying = name in _FLYING
    scale = r.uniform(0.29, 0.40)
    cx, angle = r.uniform(0.36, 0.64), 0.0
    if flying:
        foot = 0.0
        cy = max(r.uniform(0.38, 0.50), scale + 0.03)
        if name in ("butterfly", "fish", "rocket"):
            angle = r.uniform(-0.5, 0.5) if name != "fish" else r.uniform(-0.25, 0.25)
    else:
        foot = max(place.horizon + 0.10, r.uniform(0.78, 0.90))
        cy = foot - scale * (0.62 if name == "boat" else 0.80 if name == "car" else 0.96)
    main = _Thing(name, dress(name), cx, cy, scale, angle, r.chance(0.5), foot if name != "boat" else 0.0)

    behind: list[_Thing] = []
    front: list[_Thing] = []
    extras: list[str] = []
    if place.hour is not None and r.chance(0.55):  # an object in the sky, on the side opposite to the main one
        kind = (
            "moon"
            if place.hour == "night"
            else r.choice(("sun", "cloud", "cloud"))
            if place.hour != "overcast"
            else "cloud"
        )
        white = mix(HOURS[place.hour].cloud, rgb(1.0, 1.0, 1.0), 0.4)
        glow = {"sun": rgb(1.0, 0.90, 0.55), "moon": rgb(1.25, 1.22, 1.1), "cloud": white}[kind]
        side = -1.0 if cx > 0.5 else 1.0
        size = r.uniform(0.14, 0.20) if kind == "cloud" else r.uniform(0.06, 0.10)
        at = 0.5 + side * r.uniform(0.30, 0.38)
        dress_sky = Style("white", "white", "plain", glow, glow, light)
        behind.append(_Thing(kind, dress_sky, at, r.uniform(0.11, 0.17), size, 0.0, r.chance(0.5), 0.0))
        extras.append(f"{_phrase(behind[-1])} in the sky")
    if r.chance(0.75):
        kind = r.choice(_BESIDE.get(place_name, ("ball", "bush", "crate", "rock", "post")))
        size = r.uniform(0.09, 0.14)
        side = -1.0 if cx > 0.5 else 1.0
        low = 0.02 if flying else r.uniform(-0.03, 0.08)
        stands = min(0.97, max(place.horizon + 0.08, (0.90 if flying else foot) + low))
        at = min(max(cx + side * (0.62 * scale + r.uniform(0.05, 0.16)), 0.11), 0.89)
        companion = _Thing(kind, dress(kind), at, stands - 0.95 * size, size, 0.0, r.chance(0.5), stands)
        (front if low > 0 else behind).append(companion)
        if flying:
            relation = "below the" if companion.cy > cy + scale else "beside the"
        elif low > 0.05:
            relation = "in front of the"
        elif low < -0.015:
            relation = "behind the"
        else:
            relation = "to the left of the" if side < 0 else "to the right of the"
        extras.append(f"{_phrase(companion)} {relation} {name}")
    hour = HOURS[place.hour].words if place.hour else ""
    where = place.words
    if flying:
        where = {
            "on a meadow": "above a meadow",
            "in the desert": "above the desert",
            "in the snow": "above the snow",
        }.get(where, where)
        where = "above the sea" if where == "on the sea" else where
    elif name == "lighthouse" and place_name == "sea":
        where = "by the sea"
    caption = " ".join(part for part in (_phrase(main), where, hour) if part)
    if extras:
        caption += ", with " + " and ".join(extras)
    return [*behind, main, *front], len(behind), caption[0].upper() + caption[1:] + ".", place


def _render(seed: int, split: str, index: int, size: int) -> tuple[np.ndarray, int, str, list[_Thing], int, np.ndarray]:
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown: give one of {', '.join(SPLITS)}")
    if not SIZES[0] <= size <= SIZES[1]:
        raise ValueError(f"scenes have sizes from {SIZES[0]} to {SIZES[1]}, got {size}")
    if index < 0:
        raise ValueError(f"index counts from 0, got {index}")
    r = Stream(_key(seed, split, index))
    canvas = Canvas(size)
    things, main, caption, place = _compose(r, canvas)
    for k, t in enumerate(things):
        if t.name in ("sun", "moon"):
            at = np.array([[t.cx], [t.cy]], np.float32)
            canvas.rgb += canvas.specks(at[0], at[1], 0.13, 0.35) * t.style.main
        if t.shadow:
            dark = np.exp(-(((canvas.x - t.cx + 0.25 * t.style.light * t.scale) / t.scale) ** 2) * 1.3)
            canvas.rgb *= 1 - 0.45 * dark * np.exp(-(((canvas.y - t.shadow) / (0.20 * t.scale)) ** 2))
        draw = DRAWINGS.get(t.name) or COMPANIONS[t.name]
        draw(canvas.frame(_FIRST_THING + k, t.cx, t.cy, t.scale, t.angle, t.flip), t.style, r)
    edge = (canvas.x - 0.5) ** 2 + (canvas.y - 0.5) ** 2
    canvas.rgb *= place.grade * 255
    canvas.rgb *= 1.04 - 0.30 * edge
    canvas.rgb += 0.5
    image = np.clip(canvas.rgb, 0, 255).astype(np.uint8)
    return image, CLASSES.index(things[main].name), caption, things, main, canvas.ids


def render_scene(seed: int, split: str, index: int, size: int) -> Scene:
    """Render a scene with its annotations at `size` x `size` pixels (32 to 512).

    Raises ValueError for an unknown split, a size out of range, or a negative index.
    """
    image, label, caption, things, main, ids = _render(seed, split, index, size)
    names = np.arange(256)
    boxes = []
    for k, t in sorted(enumerate(things), key=lambda item: item[0] != main):
        names[_FIRST_THING + k] = LABELS.index(t.name)
        mask = ids == _FIRST_THING + k
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(rows):
            ends = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            boxes.append(Box(t.name, LABELS.index(t.name), *(float(e) / size for e in ends)))
    segmentation = torch.from_numpy(names.astype(np.uint8)[ids])
    return Scene(torch.from_numpy(image), label, caption, tuple(boxes), segmentation)


def render_images(seed: int, split: str, indices: Iterable[int], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Render pictures (n, 3, size, size) uint8 and labels (n,) int64, without annotations; pixels as `render_scene`."""
    rendered = [_render(seed, split, int(i), size)[:2] for i in indices]
    if not rendered:
        return np.zeros((0, 3, size, size), np.uint8), np.zeros(0, np.int64)
    return np.stack([image for image, _ in rendered]), np.array([label for _, label in rendered], np.int64)
