"""Appearance of objects: named colours, patterns, and shading."""

from dataclasses import dataclass

import numpy as np

from ldmlab.data.scenes.canvas import Field, Frame, Number, Stream, mix, rgb

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.83, 0.16, 0.15),
    "orange": (0.95, 0.50, 0.12),
    "yellow": (0.98, 0.82, 0.22),
    "green": (0.25, 0.62, 0.27),
    "teal": (0.08, 0.60, 0.60),
    "blue": (0.16, 0.38, 0.82),
    "purple": (0.50, 0.26, 0.70),
    "pink": (0.96, 0.52, 0.70),
    "white": (0.95, 0.94, 0.91),
    "black": (0.15, 0.15, 0.18),
    "brown": (0.50, 0.31, 0.18),
    "grey": (0.55, 0.56, 0.58),
}
BRIGHT = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink")
PATTERNS = ("plain", "striped", "banded", "checked", "dotted", "wavy")
INK, CREAM, WOOD, METAL = rgb(0.10, 0.09, 0.11), rgb(0.97, 0.94, 0.86), rgb(0.46, 0.29, 0.16), rgb(0.60, 0.63, 0.67)


@dataclass(frozen=True)
class Style:
    """Appearance of an object: its named colour, a second one, their pattern, and the direction of the light."""

    colour: str
    second: str
    pattern: str
    main: np.ndarray
    other: np.ndarray
    light: float  # -1 from the left, 1 from the right


def tint(stream: Stream, name: str, spread: Number = 0.05) -> np.ndarray:
    """A named colour, varied a little, (3, 1, 1)."""
    return np.clip(rgb(*COLOURS[name]) + (stream.take(3).reshape(3, 1, 1) - 0.5) * np.float32(2 * spread), 0, 1)


def style(
    stream: Stream, light: Number, colours: tuple[str, ...] = BRIGHT, patterns: tuple[str, ...] = PATTERNS
) -> Style:
    """A random style; the second colour is white, cream yellow or another bright one, never the first."""
    colour = stream.choice(colours)
    second = stream.choice([c for c in ("white", "white", "yellow", *BRIGHT) if c != colour])
    return Style(colour, second, stream.choice(patterns), tint(stream, colour), tint(stream, second), light)


def fill(f: Frame, s: Style, period: Number, u: Field | None = None, v: Field | None = None) -> Field:
    """The style's pattern as a colour field; `period` is in the object's units."""
    u, v = f.u if u is None else u, f.v if v is None else v
    if s.pattern == "plain":
        return s.main
    if s.pattern == "striped":
        t = f.stripes(u, period)
    elif s.pattern == "banded":
        t = f.stripes(v, period)
    elif s.pattern == "checked":
        t = f.checks(period, u, v)
    elif s.pattern == "dotted":
        t = f.dots(0.8 * period, 0.25 * period, u, v)
    else:
        t = f.stripes(v + 0.2 * period * np.sin(u * (6.0 / period)), period, slope=1.3)
    return mix(s.main, s.other, t)


def shade(f: Frame, s: Style, depth: Number = 0.3) -> Field:
    """Shading by soft light from one side and above, with the picture's grain."""
    return 1 + depth * (s.light * f.u - 0.6 * f.v) + (0.35 * depth) * f.grain


def ball_shade(f: Frame, s: Style, cx: Number, cy: Number, r: Number) -> Field:
    """Shading of a ball: brighter towards the light, darker at the far edge, with a highlight."""
    du, dv = (f.u - cx) * (1 / r), (f.v - cy) * (1 / r)
    lit = 0.45 * s.light * du - 0.45 * dv
    far = np.minimum(du * du + dv * dv, 1.0)
    shine = np.exp(((du - 0.4 * s.light) ** 2 + (dv + 0.4) ** 2) * -14)
    return 0.95 + 0.45 * lit - 0.22 * far + 0.45 * shine + 0.06 * f.grain


COLOURS_OF = {
    "tree": ("green", "green", "green", "orange", "red", "yellow", "pink"),
    "bush": ("green", "green", "orange", "purple"),
    "rock": ("grey", "brown"),
    "crate": ("brown", "red", "blue", "yellow", "green"),
    "mushroom": ("red", "orange", "brown", "purple", "pink", "yellow"),
}
