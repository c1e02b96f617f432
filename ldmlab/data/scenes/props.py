"""Small objects beside the main one, drawn as in `objects`."""

from collections.abc import Callable

import numpy as np

from ldmlab.data.scenes.canvas import Field, Frame, Stream, mix, step
from ldmlab.data.scenes.styles import WOOD, Style, ball_shade, fill, shade


def draw_ball(f: Frame, s: Style, r: Stream) -> None:
    """A ball with its pattern wrapped around it."""
    wrapped = np.arcsin(np.clip(f.u, -1, 1)) * 0.8
    f.paint(f.inside(f.ellipse(0, 0, 0.98, 0.98)), fill(f, s, 0.7, wrapped, f.v) * ball_shade(f, s, 0, 0, 1))


def draw_crate(f: Frame, s: Style, r: Stream) -> None:
    """A wooden crate painted in its colour: planks, a frame, a brace."""
    planks = 1 - 0.35 * f.stripes(f.v, 0.36, 0.14)
    box = f.box(0, 0.02, 0.95, 0.95)
    f.paint(f.inside(box), s.main * (planks * shade(f, s, 0.2)))
    brace = np.maximum(f.stroke(f.line(-0.9, 0.9, 0.9, -0.9), 0.24), f.inside(-0.24 - box)) * f.inside(box)
    f.paint(brace, s.main * (0.72 * shade(f, s, 0.3)))


def draw_bush(f: Frame, s: Style, r: Stream) -> None:
    """A low bush, some with berries."""
    leaf, edge = 0.16 * f.grain, 0.16 * f.drift
    for cx, cy, size in ((-0.5, 0.5, 0.46), (0.5, 0.52, 0.44), (0.0, 0.28, 0.56)):
        crown = np.maximum(f.ellipse(cx, cy, size, size) - 0.6 * edge, f.v - 0.95)
        f.paint(f.inside(crown), s.main * (0.85 + 2.0 * leaf + 0.5 * (s.light * (f.u - cx) - (f.v - cy))))
    if s.pattern != "plain":
        f.paint(f.dots(0.5, 0.09) * f.inside(f.ellipse(0, 0.4, 0.7, 0.5)), s.other, claim=False)


def draw_rock(f: Frame, s: Style, r: Stream) -> None:
    """A boulder with facets and cracks."""
    crag = f.polygon((-0.35, -0.45), (0.30, -0.62), (0.85, 0.1), (0.95, 0.9), (-0.95, 0.9), (-0.85, 0.2))
    facet = step(f.u * 0.7 + f.v - 0.2 * f.grain, -0.12, 0.12)
    f.paint(f.inside(crag - 0.12 * f.drift), s.main * (1.12 - 0.3 * facet + 0.25 * f.grain + 0.2 * s.light * f.u))


def draw_post(f: Frame, s: Style, r: Stream) -> None:
    """A signpost with a coloured board."""
    f.paint(f.inside(f.box(0, 0.1, 0.10, 0.88)), WOOD * shade(f, s, 0.4))
    board = f.inside(f.polygon((-0.85, -0.80), (0.55, -0.80), (0.95, -0.42), (0.55, -0.04), (-0.85, -0.04)))
    lines = f.stripes(f.v, 0.25, 0.3) * f.inside(np.abs(f.u + 0.15) - 0.5)
    f.paint(board, mix(s.main, s.other, lines) * shade(f, s, 0.2))


def draw_cloud(f: Frame, s: Style, r: Stream) -> None:
    """A heap cloud with a flat, shaded base."""
    cover: Field = 0.0
    for cx, cy, size in ((-0.55, 0.12, 0.30), (-0.15, -0.08, 0.42), (0.32, 0.02, 0.36), (0.68, 0.16, 0.24)):
        cover = np.maximum(cover, f.inside(f.ellipse(cx, cy, size, size) - 0.10 * f.drift))
    f.paint(cover * f.inside(np.maximum(f.v - 0.30, np.abs(f.u) - 0.97)), s.main * (0.96 - 0.35 * f.v + 0.07 * f.grain))


def draw_sun(f: Frame, s: Style, r: Stream) -> None:
    """The disc of the sun (or the full moon), with its own soft shade."""
    f.paint(f.inside(f.ellipse(0, 0, 0.95, 0.95)), s.main * (1.02 + 0.06 * f.grain))


COMPANIONS: dict[str, Callable[[Frame, Style, Stream], None]] = {
    "ball": draw_ball,
    "bush": draw_bush,
    "cloud": draw_cloud,
    "crate": draw_crate,
    "moon": draw_sun,
    "post": draw_post,
    "rock": draw_rock,
    "sun": draw_sun,
}
