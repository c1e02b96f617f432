"""The twelve main objects of the scenes, which are its classes.

Each is drawn by a function of a frame (the object's coordinates, about -1 to 1, y down), a style and the stream.
"""

import math
from collections.abc import Callable

import numpy as np

from ldmlab.data.scenes.canvas import Field, Frame, Stream, mix, rgb, step
from ldmlab.data.scenes.styles import CREAM, INK, METAL, WOOD, Style, ball_shade, fill, shade, tint


def draw_balloon(f: Frame, s: Style, r: Stream) -> None:
    """A hot-air balloon: gores on a globe, ropes, a woven basket."""
    v = f.v + 0.27
    width = 0.70 * np.sqrt(np.clip(1 - (v / 0.72) ** 2, 0.02, 1)) * (1 - 0.32 * np.clip(v, 0, 1))
    gores = np.arcsin(np.clip(f.u / width, -1, 1))
    envelope = f.inside(np.maximum((np.abs(f.u) - width) * 0.8, np.abs(v) - 0.71))
    colour = fill(f, s, 0.42 if s.pattern == "striped" else 0.3, gores * (0.6 if s.pattern == "striped" else 0.5), f.v)
    for side in (-1, 1):
        f.paint(f.stroke(f.line(0.26 * side, 0.38, 0.13 * side, 0.76), 0.025), INK, claim=False)
    f.paint(envelope, colour * (ball_shade(f, s, 0, -0.27, 0.8) * (0.86 + 0.14 * np.cos(gores))))
    f.paint(f.inside(f.box(0, 0.44, 0.2, 0.03)), s.main * 0.6)
    weave = mix(WOOD * 1.25, WOOD * 0.7, f.checks(0.1))
    f.paint(f.inside(f.box(0, 0.86, 0.17, 0.12, 0.03)), weave)


def draw_boat(f: Frame, s: Style, r: Stream) -> None:
    """A sailing boat: patterned main sail, plain jib, planked hull."""
    f.paint(f.stroke(f.line(0.0, -0.95, 0.0, 0.5), 0.045), WOOD * 0.6)
    main = f.inside(f.polygon((0.05, -0.85), (0.72, 0.38), (0.05, 0.38)))
    f.paint(main, fill(f, s, 0.3) * shade(f, s, 0.22))
    jib = f.inside(f.polygon((-0.06, -0.7), (-0.06, 0.38), (-0.62, 0.38)))
    f.paint(jib, s.other * shade(f, s, 0.25))
    f.paint(f.inside(f.polygon((0.0, -0.98), (0.26, -0.9), (0.0, -0.82))), s.main)
    hull = f.inside(np.maximum(f.ellipse(0, 0.42, 0.92, 0.5), 0.47 - f.v))
    planks = f.stripes(f.v, 0.12, 0.25)
    f.paint(hull, mix(WOOD * 1.3, WOOD * 0.6, planks) * shade(f, s, 0.25))
    f.paint(hull * f.stroke(f.v - 0.5, 0.08), s.main, claim=False)


def draw_butterfly(f: Frame, s: Style, r: Stream) -> None:
    """A butterfly seen from above: two pairs of bordered wings with eyes, a body, feelers."""
    f.u = np.abs(f.u)  # both sides at once
    spots = r.uniform(0.09, 0.15)
    for cx, cy, rx, ry, turn in ((0.42, 0.36, 0.33, 0.47, -0.55), (0.52, -0.32, 0.40, 0.60, 0.75)):
        c, n = math.cos(turn), math.sin(turn)
        du, dv = f.u - cx, f.v - cy
        wing = np.sqrt(((du * c + dv * n) / rx) ** 2 + ((dv * c - du * n) / ry) ** 2)
        distance = (wing - 1) * (0.85 * rx)
        f.paint(f.inside(distance), INK + 0.1 * s.main)
        veins = 1 - 0.25 * f.stripes(np.arctan2(f.v, f.u + 0.05), 0.28, 0.2, 2.0)
        inner = f.inside(distance + 0.075)
        f.paint(inner, fill(f, s, 0.36) * (veins * shade(f, s, 0.15) * (1.15 - 0.3 * wing)))
        f.paint(f.inside(f.ellipse(cx + 0.06, cy, spots, spots)), INK)
        f.paint(f.inside(f.ellipse(cx + 0.06, cy, 0.6 * spots, 0.6 * spots)), s.other)
    f.paint(f.stroke(f.line(0.02, -0.45, 0.24, -0.92), 0.035), INK, claim=False)
    f.paint(f.inside(f.ellipse(0, 0.05, 0.085, 0.58)), INK * (1 + f.stripes(f.v, 0.14)))


def draw_car(f: Frame, s: Style, r: Stream) -> None:
    """A car from the side: cabin with windows, body with a patterned band, two wheels."""
    cabin = f.polygon((-0.36, -0.42), (0.26, -0.42), (0.56, 0.06), (-0.62, 0.06))
    f.paint(f.inside(cabin - 0.05), s.main * shade(f, s, 0.25))
    glass = mix(rgb(0.62, 0.80, 0.90), rgb(0.22, 0.32, 0.42), np.clip(0.5 + 0.9 * f.v + 0.6 * f.u, 0, 1))
    f.paint(f.inside(cabin + 0.06) * (1 - f.stroke(f.u + 0.06, 0.09)), glass)
    body = f.inside(f.box(0, 0.28, 0.97, 0.26, 0.13))
    f.paint(body, s.main * (shade(f, s, 0.3) + 0.25 * step(f.v, 0.2, 0.02)))
    band = f.inside(f.box(0, 0.26, 0.95, 0.1))
    f.paint(body * band, fill(f, s, 0.26) * shade(f, s, 0.2), claim=False)
    f.paint(f.inside(f.ellipse(0.88, 0.18, 0.08, 0.08)), rgb(1.0, 0.95, 0.65))
    f.paint(f.stroke(f.line(-0.96, 0.48, 0.96, 0.48), 0.07), METAL)
    f.u = np.abs(f.u)
    f.paint(f.inside(f.ellipse(0.54, 0.54, 0.28, 0.28)), INK)
    hub = np.hypot(f.u - 0.54, f.v - 0.54)
    spokes = f.stripes(np.arctan2(f.v - 0.54, f.u - 0.54), math.tau / 6, 0.4, 7.0)
    f.paint(f.inside(hub - 0.16), mix(METAL * 1.35, METAL * 0.6, spokes))


def draw_cup(f: Frame, s: Style, r: Stream) -> None:
    """A steaming cup on a saucer."""
    f.paint(f.inside(f.ellipse(0, 0.80, 0.95, 0.18)), s.other * shade(f, s, 0.2))
    f.paint(f.inside(f.ellipse(0, 0.76, 0.62, 0.10)), s.other * 0.7)
    f.paint(f.stroke(f.ellipse(0.66, 0.22, 0.25, 0.27), 0.12), s.main * shade(f, s, 0.35))
    wall = 0.66 - 0.25 * np.clip(f.v - 0.1, 0, 1) ** 1.5 / 0.55
    cup = f.inside(np.maximum((np.abs(f.u) - wall) * 0.9, np.maximum(-0.12 - f.v, f.v - 0.78)))
    round_u = np.arcsin(np.clip(f.u / wall, -1, 1)) * 0.6
    curved = f.v + 0.1 * (f.u / 0.66) ** 2
    f.paint(
        cup, fill(f, s, 0.28, round_u, curved) * (0.72 + 0.4 * np.cos(round_u * 1.6 - 0.5 * s.light) + 0.05 * f.grain)
    )
    f.paint(f.inside(f.ellipse(0, -0.12, 0.66, 0.15)), s.main * 1.08)
    f.paint(f.inside(f.ellipse(0, -0.11, 0.57, 0.11)), mix(WOOD * 0.5, WOOD, 0.5 - f.u))
    for k in range(3):
        sway = 0.07 * np.sin(7 * f.v + 2 * k + r.uniform(0, 6))
        fade = step(f.v, -0.98, -0.6) * step(f.v, -0.14, -0.3)
        f.paint(f.stroke(f.u - 0.26 * (k - 1) - sway, 0.07) * fade * 0.55, CREAM, claim=False)


def draw_fish(f: Frame, s: Style, r: Stream) -> None:
    """A fish from the side: forked tail, fins, scales over the pattern."""
    tail = np.maximum(
        f.polygon((-0.98, -0.5), (-0.42, -0.06), (-0.42, 0.06), (-0.98, 0.5)), 0.3 - np.hypot(f.u + 1.1, f.v)
    )
    rays = 1 - 0.35 * f.stripes(f.v / (0.12 - f.u), 0.16, 0.3, 1.6)
    f.paint(f.inside(tail), s.other * (rays * shade(f, s, 0.2)))
    fin = np.maximum(f.ellipse(-0.02, -0.30, 0.42, 0.38), f.v + 0.15)
    f.paint(f.inside(fin), s.other * (1 - 0.35 * f.stripes(f.u - 0.5 * f.v, 0.13, 0.3)))
    body = f.ellipse(0.14, 0, 0.80, 0.44)
    cover = f.inside(body)
    scales = 1 - 0.28 * f.scales(0.15, 0.035)
    belly = 1.1 - 0.45 * f.v + 0.3 * np.exp(-8 * (f.v + 0.22) ** 2) + 0.08 * f.grain
    f.paint(cover, fill(f, s, 0.34) * (scales * belly))
    f.paint(cover * f.inside(0.52 - f.u), s.main * (belly * 0.9), claim=False)
    f.paint(f.stroke(f.ellipse(0.22, 0.0, 0.32, 0.40), 0.04) * f.inside(0.36 - f.u), s.main * 0.5, claim=False)
    f.paint(f.inside(f.ellipse(0.12, 0.12, 0.18, 0.10)), s.other * 0.9, claim=False)
    f.paint(f.inside(f.ellipse(0.68, -0.09, 0.11, 0.11)), CREAM)
    f.paint(f.inside(f.ellipse(0.71, -0.09, 0.06, 0.06)), INK)
    f.paint(f.stroke(f.line(0.78, 0.14, 0.92, 0.11), 0.04), s.main * 0.4, claim=False)


def draw_flower(f: Frame, s: Style, r: Stream) -> None:
    """A flower on a stem: a rose curve of petals, a seeded heart, two leaves."""
    bend = 0.1 * s.light
    stem = f.u - bend * (f.v - 0.05) * (1 - f.v) * 2
    green = rgb(0.20, 0.48, 0.18) * shade(f, s, 0.25)
    f.paint(f.stroke(stem, 0.085) * f.inside(0.1 - f.v) * f.inside(f.v - 1), green)
    for side in (-1, 1):
        u, v = (f.u - 0.30 * side) * side, f.v - 0.66
        a, b = u * 0.80 - v * 0.60, u * 0.60 + v * 0.80
        leaf = np.hypot(a / 0.36, b / 0.13)
        f.paint(f.inside((leaf - 1) * 0.12), green * (1.15 - 0.5 * f.stroke(b, 0.035)))
    petals = r.choice((5, 6, 7, 8, 10, 12))
    du, dv = f.u, f.v + 0.28
    radius, turn = np.hypot(du, dv), np.arctan2(dv, du) + r.uniform(0, 6)
    lobe = np.abs(np.cos(turn * (petals / 2)))
    edge = 0.36 + 0.34 * np.sqrt(lobe)
    cover = f.inside((radius - edge) * 0.75)
    colour = (
        fill(f, s, 0.22, turn * 0.3, radius)
        if s.pattern in ("banded", "dotted")
        else mix(s.other, s.main, step(radius, 0.22, 0.5))
    )
    streak = 1 - 0.3 * (1 - lobe) ** 2 - 0.12 * f.stripes(turn, math.tau / (4 * petals), 0.5, 2.2)
    f.paint(cover, colour * (streak * (1.08 - 0.15 * dv + 0.15 * s.light * du)))
    heart = rgb(0.45, 0.24, 0.10) if s.second == "yellow" or s.colour == "yellow" else rgb(0.95, 0.74, 0.15)
    f.paint(f.inside(radius - 0.22), heart * (1.1 - 0.45 * f.dots(0.11, 0.035)) * (1.2 - 1.2 * radius))


def draw_house(f: Frame, s: Style, r: Stream) -> None:
    """A house: tiled roof in the named colour, walls of bricks, boards or plaster, door, windows, chimney."""
    wall_colour = tint(r, r.choice(("white", "yellow", "brown", "grey", "pink", "white")))
    kind = r.choice(("brick", "board", "plaster"))
    f.paint(f.inside(f.box(0.42, -0.58, 0.11, 0.30)), WOOD * (1 - 0.35 * f.bricks(0.12, 0.07, 0.02)))
    wall = f.inside(f.box(0, 0.47, 0.74, 0.53))
    marks: Field = 0.0
    if kind == "brick":
        marks = 0.4 * f.bricks(0.24, 0.115, 0.03)
    elif kind == "board":
        marks = 0.3 * f.stripes(f.u, 0.15, 0.2)
    f.paint(wall, wall_colour * ((1 - marks) * (shade(f, s, 0.2) - 0.35 * step(f.v, 0.12, -0.06))))
    roof = f.inside(f.polygon((0, -0.95), (0.98, 0.02), (-0.98, 0.02)))
    tiles = 1 - 0.35 * f.bricks(0.19, 0.125, 0.035) if s.pattern == "plain" else 1.0
    f.paint(roof, fill(f, s, 0.28) * (tiles * shade(f, s, 0.3)))
    door = r.choice((-0.38, 0.0, 0.38))
    f.paint(f.inside(f.box(door, 0.70, 0.17, 0.30)), s.other * (0.75 - 0.25 * f.stripes(f.u, 0.09, 0.3)))
    f.paint(f.inside(f.ellipse(door + 0.1, 0.72, 0.03, 0.03)), INK)
    lamp = rgb(1.0, 0.86, 0.45) if r.chance(0.5) else rgb(0.45, 0.66, 0.80)
    for at in (-0.42, 0.0, 0.42):
        if at * door > 0 or (door == 0.0 and at == 0.0):
            continue
        pane = f.box(at, 0.42, 0.13, 0.165)
        f.paint(f.inside(pane - 0.04), CREAM)
        cross = np.maximum(f.stroke(f.u - at, 0.04), f.stroke(f.v - 0.42, 0.04))
        f.paint(f.inside(pane) * (1 - cross), lamp * (1 - 0.4 * (f.v - 0.42) + 0.4 * (f.u - at)))


def draw_lighthouse(f: Frame, s: Style, r: Stream) -> None:
    """A lighthouse on a rock: a banded tower, a gallery, the lantern under its cap."""
    rock = f.ellipse(0, 1.0, 0.78, 0.30) - 0.08 * f.drift
    f.paint(f.inside(np.maximum(rock, f.v - 1)), rgb(0.40, 0.38, 0.38) * (1.1 - 0.6 * (f.v - 0.9) + 0.25 * f.grain))
    half = 0.30 + 0.10 * f.v
    tower = f.inside(np.maximum(np.abs(f.u) - half, np.maximum(-0.56 - f.v, f.v - 0.86)))
    round_u = np.clip(f.u / half, -1, 1)
    t = f.stripes(f.v + 0.06 * round_u**2 - (0.35 * f.u if s.pattern == "wavy" else 0), 0.44)
    f.paint(tower, mix(s.main, CREAM, t) * (0.98 + 0.32 * s.light * round_u - 0.28 * round_u**2 + 0.06 * f.grain))
    for v in (-0.2, 0.28):
        f.paint(f.inside(f.box(0.02, v, 0.055, 0.09, 0.05)), INK)
    f.paint(f.inside(f.box(0, -0.68, 0.17, 0.13)), mix(rgb(1.0, 0.92, 0.55), INK, f.stripes(f.u, 0.115, 0.25)))
    f.paint(f.inside(f.box(0, -0.56, 0.34, 0.035)), INK + 0.1)
    f.paint(f.inside(f.polygon((0, -0.98), (0.24, -0.78), (-0.24, -0.78))), s.main * 0.8)


def draw_mushroom(f: Frame, s: Style, r: Stream) -> None:
    """A mushroom: a spotted cap over gills, a pale stem with a skirt."""
    stem = 0.20 + 0.10 * step(f.v, 0.4, 1.0)
    shadow = 1.0 - 0.4 * step(f.v, 0.25, 0.0)
    f.paint(
        f.inside(np.maximum(np.abs(f.u) - stem, np.maximum(-f.v, f.v - 0.98))), CREAM * (shadow * shade(f, s, 0.35))
    )
    f.paint(
        f.inside(np.maximum(f.ellipse(0, 0.36, 0.33, 0.12), 0.30 - f.v)),
        CREAM * (0.95 - 0.3 * f.stripes(f.u, 0.1, 0.4)),
    )
    gills = f.inside(f.ellipse(0, 0.02, 0.86, 0.17))
    f.paint(gills, CREAM * (0.72 - 0.30 * f.stripes(f.u / (0.5 + f.v), 0.14, 0.4, 2.0)))
    cap = f.inside(np.maximum(f.ellipse(0, 0.05, 0.94, 0.98), f.v - 0.05 + 0.12 * (f.u * f.u - 0.2)))
    curved = np.arcsin(np.clip(f.u / 0.96, -1, 1)) * 0.9
    spotted = s if s.pattern not in ("plain", "wavy") else None
    colour = (
        fill(f, spotted, 0.40, curved, f.v) if spotted else mix(s.main, CREAM, f.dots(0.40, 0.12, curved, f.v + 0.08))
    )
    f.paint(cap, colour * ball_shade(f, s, 0, 0.1, 1.05))


def draw_rocket(f: Frame, s: Style, r: Stream) -> None:
    """A rocket under power: pointed hull, fins, a porthole, the flame."""
    flame = f.ellipse(0, 0.72, 0.17, 0.36) - 0.05 * f.drift
    f.paint(
        f.inside(flame),
        mix(rgb(1.0, 0.93, 0.5), rgb(0.98, 0.38, 0.08), np.clip(2.2 * (f.v - 0.52) + np.abs(f.u), 0, 1)),
    )
    f.paint(f.inside(f.ellipse(0, 0.62, 0.08, 0.16)), rgb(1.0, 0.99, 0.9))
    u = np.abs(f.u)
    f.paint(
        f.inside(
            np.maximum(u - 0.16 - 0.55 * np.clip(f.v - 0.05, 0, 1), np.maximum(0.1 - f.v, f.v - 0.72 + 0.3 * (0.5 - u)))
        ),
        s.other * shade(f, s, 0.3),
    )
    half = 0.32 * np.sqrt(np.clip(1 - (np.abs(f.v + 0.02) / 0.96) ** 1.8, 0, 1))
    hull = f.inside(np.maximum((u - half) * 0.9, np.abs(f.v + 0.23) - 0.75))
    round_u = np.clip(f.u / np.maximum(half, 0.05), -1, 1)
    light = 1.0 + 0.35 * s.light * round_u - 0.30 * round_u**2 + 0.05 * f.grain
    f.paint(hull, fill(f, s, 0.24, np.arcsin(round_u) * 0.25, f.v) * light)
    f.paint(hull * f.inside(f.v + 0.52), s.other * light, claim=False)
    f.paint(hull * np.maximum(f.stroke(f.v + 0.52, 0.05), f.stroke(f.v - 0.46, 0.07)), METAL * 0.7, claim=False)
    f.paint(f.inside(f.ellipse(0, -0.20, 0.17, 0.17)), METAL * 1.2)
    f.paint(
        f.inside(f.ellipse(0, -0.20, 0.115, 0.115)),
        mix(rgb(0.20, 0.45, 0.65), rgb(0.75, 0.92, 1.0), np.clip(-2 * (f.v + 0.2) + 0.4, 0, 1)),
    )


def draw_tree(f: Frame, s: Style, r: Stream) -> None:
    """A tree: a fir of tiers or a crown of rounds with fruit; its foliage has the named colour."""
    bark = WOOD * ((0.85 - 0.3 * f.stripes(f.u + 0.03 * f.grain, 0.07, 0.4)) * shade(f, s, 0.3))
    f.paint(f.inside(np.maximum(np.abs(f.u) - 0.09 - 0.06 * np.clip(f.v, 0, 1), np.maximum(-f.v, f.v - 1))), bark)
    leaf, edge = 0.13 * f.grain, 0.15 * f.drift
    if r.chance(0.35):
        for top, base, half in ((-0.1, 0.72, 0.66), (-0.52, 0.30, 0.54), (-0.95, -0.12, 0.40)):
            tier = f.polygon((0, top), (half, base), (-half, base)) - 0.35 * edge
            needles = 1 - 0.3 * f.stripes(f.v - 0.5 * np.abs(f.u), 0.16, 0.4, 1.1)
            f.paint(
                f.inside(tier),
                s.main * (needles * (1.05 + 1.6 * leaf - 0.5 * step(f.v, base - 0.6, base) + 0.4 * s.light * f.u)),
            )
        return
    for cx, cy, size in (
        (-0.42, 0.02, 0.42),
        (0.42, 0.0, 0.42),
        (0.0, 0.08, 0.48),
        (-0.26, -0.42, 0.42),
        (0.26, -0.46, 0.40),
    ):
        crown = f.inside(f.ellipse(cx, cy, size, size) - 0.6 * edge)
        f.paint(crown, s.main * (0.84 + 1.9 * leaf + 0.5 * (s.light * (f.u - cx) - (f.v - cy)) - 0.15 * f.v))
    if s.pattern != "plain":
        fruit = f.dots(0.34, 0.06) * f.inside(f.ellipse(0, -0.15, 0.66, 0.6))
        f.paint(fruit, s.other, claim=False)


CLASSES: dict[str, Callable[[Frame, Style, Stream], None]] = {
    "balloon": draw_balloon,
    "boat": draw_boat,
    "butterfly": draw_butterfly,
    "car": draw_car,
    "cup": draw_cup,
    "fish": draw_fish,
    "flower": draw_flower,
    "house": draw_house,
    "lighthouse": draw_lighthouse,
    "mushroom": draw_mushroom,
    "rocket": draw_rocket,
    "tree": draw_tree,
}
