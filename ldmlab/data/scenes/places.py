"""Settings of the scenes: skies at five hours, meadow, desert, snow, sea, the sea bed, a room.

Each place paints the whole canvas, labels its pixels by STUFF, and returns where objects can stand.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ldmlab.data.scenes.canvas import Canvas, Field, Stream, bands, mix, rgb, step
from ldmlab.data.scenes.styles import tint

STUFF: tuple[str, ...] = ("sky", "hill", "grass", "sand", "snow", "water", "wall", "floor")
SKY, HILL, GRASS, SAND, SNOW, WATER, WALL, FLOOR = range(len(STUFF))


@dataclass(frozen=True)
class Hour:
    """The light of an hour: sky colours from zenith to horizon, the clouds, and the tint of the whole picture."""

    zenith: np.ndarray
    horizon: np.ndarray
    cloud: np.ndarray
    grade: np.ndarray
    words: str


HOURS: dict[str, Hour] = {
    "day": Hour(
        rgb(0.22, 0.50, 0.88), rgb(0.72, 0.87, 0.97), rgb(1.0, 1.0, 1.0), rgb(1.0, 1.0, 0.98), "under a blue sky"
    ),
    "dawn": Hour(rgb(0.48, 0.55, 0.82), rgb(0.99, 0.80, 0.74), rgb(1.0, 0.88, 0.86), rgb(1.0, 0.94, 0.95), "at dawn"),
    "sunset": Hour(
        rgb(0.36, 0.27, 0.56), rgb(1.0, 0.62, 0.26), rgb(1.0, 0.58, 0.45), rgb(1.03, 0.88, 0.76), "at sunset"
    ),
    "overcast": Hour(
        rgb(0.52, 0.57, 0.63), rgb(0.80, 0.82, 0.83), rgb(0.90, 0.91, 0.92), rgb(0.90, 0.93, 0.95), "under a grey sky"
    ),
    "night": Hour(
        rgb(0.03, 0.05, 0.16), rgb(0.18, 0.22, 0.44), rgb(0.25, 0.28, 0.45), rgb(0.62, 0.68, 0.92), "at night"
    ),
}


@dataclass(frozen=True)
class Place:
    """Properties of a painted place on which the composition depends."""

    horizon: float  # the height at which the ground begins
    words: str  # "on a meadow"
    hour: str | None  # None indoors and under water
    grade: np.ndarray


def paint_sky(c: Canvas, r: Stream, horizon: float) -> str:
    """A graded sky with 1/f clouds, stars at night; returns the hour's name."""
    name = r.choice(("day", "day", "dawn", "sunset", "overcast", "night"))
    hour = HOURS[name]
    height = np.clip(c.y / horizon, 0, 1)
    c.rgb[:] = mix(hour.zenith, hour.horizon, height**1.4)
    if name == "night":
        x, y, strength = r.take(40), r.take(40) * horizon, r.take(40)
        c.rgb += c.specks(x, y, 0.0045, 2.2 * strength[:, None] ** 2)
    amount = r.uniform(-0.3, 0.9) + (0.5 if name == "overcast" else 0.0)
    clouds = step(c.noise(r, 0.5, stretch=2.2)[0] + amount, 0.3, 1.7) * (0.85 - 0.35 * height)
    c.rgb += (hour.cloud - c.rgb) * clouds
    c.ids[:] = SKY
    return name


def paint_ridge(c: Canvas, line: Field, colour: Field, number: int) -> None:
    """Paint everything below a profile line."""
    c.paint(np.clip((c.y - line) / c.px + 0.5, 0, 1), colour, number)


def paint_hills(c: Canvas, r: Stream, horizon: float, colour: np.ndarray, haze: np.ndarray) -> None:
    """Paint one or two hazy ranges behind the ground."""
    for k in range(r.choice((1, 2))):
        line = (
            horizon
            - 0.05
            + 0.05 * k
            - r.uniform(0.02, 0.09) * (1.2 + c.ridge(r, r.uniform(0.6, 1.4), 5, r.uniform(0.35, 0.6)))
        )
        near = 0.4 + 0.3 * k
        paint_ridge(c, line, mix(haze, colour, near) * (1 + 0.10 * c.grain + 0.5 * (line - c.y + 0.1)), HILL)


def paint_blades(c: Canvas, r: Stream, number: int, base: np.ndarray) -> None:
    """Paint thin blades of grass along the lower edge."""
    top = int(0.78 * c.size)
    x, y = c.x[None], c.y[None, top:]  # (1, 1, w), (1, h, 1)
    root, lean, tall = (r.take(14)[:, None, None] for _ in range(3))
    t = np.clip((1.02 - y) / (0.08 + 0.13 * tall), 0, 1.2)
    off = np.abs(x - root - (lean - 0.5) * 0.14 * t * t) / c.px
    half = 0.007 * (1 - t) / c.px
    cover = (np.clip(half - off + 0.5, 0, 1) - np.clip(-half - off + 0.5, 0, 1)).max(0) * (
        half[..., 0].max(0)[:, None] > 0
    )
    c.rgb[:, top:] += (base - c.rgb[:, top:]) * cover


def meadow(c: Canvas, r: Stream) -> Place:
    """Hills, grass with flowers in it, blades in front."""
    horizon = r.uniform(0.48, 0.66)
    name = paint_sky(c, r, horizon)
    haze = HOURS[name].horizon
    green = mix(rgb(0.30, 0.55, 0.16), rgb(0.52, 0.62, 0.20), r.uniform()) * r.uniform(0.85, 1.1)
    paint_hills(c, r, horizon, green * rgb(0.6, 0.8, 1.1), haze)
    line = horizon + 0.02 * c.ridge(r, 0.5, 3, 0.4)
    depth = np.clip((c.y - horizon) / (1 - horizon), 0, 1)
    turf = (1.2 - 0.45 * depth) * (1 + 0.16 * c.grain) + 0.10 * depth * bands(c.x + 0.05 * c.drift, 0.034, c.px)
    paint_ridge(c, line, green * turf, GRASS)
    num = r.choice((0, 14, 28))
    if num:
        bloom = tint(r, r.choice(("red", "yellow", "white", "pink", "purple")))
        y = horizon + 0.05 + (1 - horizon) * r.take(num) ** 0.7
        c.paint(np.minimum(c.specks(r.take(num), y, 0.010, 1.4), 1) * (c.ids == GRASS), bloom)
    paint_blades(c, r, GRASS, green * 0.62)
    return Place(horizon, "on a meadow", name, HOURS[name].grade)


def desert(c: Canvas, r: Stream) -> Place:
    """Dunes with wind ripples."""
    horizon = r.uniform(0.48, 0.66)
    name = paint_sky(c, r, horizon)
    sand = mix(rgb(0.93, 0.74, 0.46), rgb(0.86, 0.54, 0.32), r.uniform())
    paint_hills(c, r, horizon, sand * rgb(0.85, 0.62, 0.55), HOURS[name].horizon)
    depth = np.clip((c.y - horizon) / (1 - horizon), 0, 1)
    ripple = bands(np.sqrt(depth + 0.02) + 0.03 * c.drift + 0.04 * np.sin(7 * c.x), r.uniform(0.045, 0.09), 1.2 * c.px)
    paint_ridge(c, horizon + 0.03 * c.ridge(r, 0.5, 2, 0.4), sand * (1.04 - 0.15 * ripple + 0.09 * c.grain), SAND)
    return Place(horizon, "in the desert", name, HOURS[name].grade)


def snow(c: Canvas, r: Stream) -> Place:
    """Peaks, a field of snow, flakes in the air."""
    horizon = r.uniform(0.50, 0.66)
    name = paint_sky(c, r, horizon)
    line = horizon - 0.10 - 0.10 * c.ridge(r, r.uniform(0.8, 1.5), 7, 0.62)
    rock = mix(rgb(0.33, 0.36, 0.45), HOURS[name].horizon, 0.35)
    cap = step(line + 0.07 + 0.05 * c.drift - c.y, -0.01, 0.01)
    paint_ridge(c, line, mix(rock * (1 + 0.25 * c.grain), rgb(0.94, 0.96, 1.0), cap), HILL)
    drift = rgb(0.90, 0.94, 1.0) * (1.0 + 0.07 * c.grain) - 0.10 * bands(
        c.y + 0.05 * np.sin(5 * c.x) + 0.02 * c.drift, 0.11, c.px
    )
    paint_ridge(c, horizon + 0.03 * c.ridge(r, 0.5, 3, 0.45), drift, SNOW)
    if r.chance(0.5):
        c.paint(np.minimum(c.specks(r.take(48), r.take(48), 0.0075, 1.2), 1), rgb(1.0, 1.0, 1.0))
    return Place(horizon, "in the snow", name, HOURS[name].grade)


def sea(c: Canvas, r: Stream) -> Place:
    """Open water with waves and glitter, some with an island."""
    horizon = r.uniform(0.45, 0.62)
    name = paint_sky(c, r, horizon)
    hour = HOURS[name]
    if r.chance(0.6):
        at, width = r.uniform(), r.uniform(0.12, 0.35)
        isle = horizon + 0.01 - 0.13 * np.exp(-(((c.x - at) / width) ** 2)) * (1 + 0.4 * c.ridge(r, 1.5, 5, 0.6))
        paint_ridge(c, isle, mix(rgb(0.20, 0.34, 0.26), hour.horizon, 0.35) * (1 + 0.2 * c.grain), HILL)
    deep = mix(rgb(0.06, 0.30, 0.50), rgb(0.05, 0.45, 0.50), r.uniform())
    depth = np.clip((c.y - horizon) / (1 - horizon), 0, 1)
    swell = c.noise(r, 0.1, stretch=3.5, lowest=3.0)[0]
    crest = bands(
        np.sqrt(depth + 0.01) + 0.010 * swell + 0.010 * np.sin(19 * c.x), r.uniform(0.07, 0.12), 1.4 * c.px, 0.22
    )
    base = mix(hour.horizon * 0.85, deep, 0.35 + 0.65 * np.sqrt(depth))
    paint_ridge(
        c, horizon, base * (1 + 0.10 * swell) + hour.horizon * (0.20 * crest + 0.25 * step(swell, 1.2, 2.2)), WATER
    )
    return Place(horizon, "on the sea", name, hour.grade)


def under_water(c: Canvas, r: Stream) -> Place:
    """Blue depth with rays from above, a sandy bed, weed."""
    bed = r.uniform(0.80, 0.88)
    top, deep = mix(rgb(0.35, 0.80, 0.85), rgb(0.30, 0.62, 0.90), r.uniform()), rgb(0.02, 0.20, 0.38)
    lean = r.uniform(-0.7, 0.7)
    rays = 0.5 + 0.5 * np.sin((c.x - lean * c.y) * r.uniform(14, 24) + 2.5 * np.sin((c.x - lean * c.y) * 5))
    c.rgb[:] = mix(top, deep, np.sqrt(c.y)) * (1 + 0.10 * c.grain + 0.30 * rays * np.clip(1 - 1.2 * c.y, 0, 1))
    c.ids[:] = WATER
    for _ in range(r.choice((2, 3, 4))):
        root, tall, bend = r.uniform(0.04, 0.96), r.uniform(0.25, 0.55), r.uniform(0, 6)
        t = np.clip((bed + 0.05 - c.y) / tall, 0, 1)
        off = np.abs(c.x - root - 0.03 * np.sin(9 * t + bend) * t) / c.px
        half = 0.018 * np.sqrt(1 - t) * (c.y < bed + 0.05) / c.px
        weed = rgb(0.10, 0.42, 0.30) * (0.75 + 0.6 * t)
        c.paint(np.clip(half - off + 0.5, 0, 1) - np.clip(-half - off + 0.5, 0, 1), weed)
    sand = rgb(0.80, 0.74, 0.52) * (
        0.95 + 0.16 * c.grain - 0.12 * bands(c.y + 0.03 * c.drift + 0.02 * np.sin(9 * c.x), 0.045, c.px)
    )
    paint_ridge(c, bed + 0.03 * c.ridge(r, 0.7, 3, 0.5), sand * rgb(0.72, 0.92, 0.95), SAND)
    x, y = r.take(10), r.take(10) * bed
    c.paint(np.minimum(c.specks(x, y, 0.010, 0.9), 1), rgb(0.85, 0.97, 1.0))
    return Place(bed, "under water", None, rgb(0.90, 1.0, 1.03))


def room(c: Canvas, r: Stream) -> Place:
    """Papered wall, a skirting board, a floor of checks or planks in perspective."""
    horizon = r.uniform(0.55, 0.66)
    first, second = r.choice(
        (
            ("teal", "white"),
            ("grey", "white"),
            ("pink", "white"),
            ("yellow", "white"),
            ("blue", "grey"),
            ("brown", "yellow"),
            ("green", "white"),
        )
    )
    a, b = mix(tint(r, first), rgb(0.85, 0.83, 0.78), 0.45), mix(tint(r, second), rgb(0.85, 0.83, 0.78), 0.35)
    pattern, period = r.choice(("stripe", "check", "diamond", "wave")), r.uniform(0.07, 0.16)
    if pattern == "stripe":
        t = bands(c.x, period, c.px)
    elif pattern == "wave":
        t = bands(c.y + 0.25 * period * np.sin(c.x * (6.3 / period)), period, 1.5 * c.px)
    else:
        p, q = (c.x, c.y) if pattern == "check" else (c.x + c.y, c.x - c.y)
        wide = c.px if pattern == "check" else 1.41 * c.px
        s, u = bands(p, period, wide), bands(q, period, wide)
        t = s + u - 2 * s * u
    lamp = r.uniform(0.0, 1.0)
    c.rgb[:] = mix(a, b, t) * (1.06 - 0.45 * ((c.x - lamp) ** 2 + 0.6 * (c.y - 0.2) ** 2) + 0.03 * c.grain)
    c.ids[:] = WALL
    away = np.maximum(c.y - horizon + 0.10, 0.02)  # distance from the vanishing line
    across, along = (c.x - 0.5) / away, 0.30 / away
    u_px, v_px = c.px / away, 0.30 * c.px / away**2
    light, dark = (
        (CREAM_TILE, tint(r, r.choice(("black", "red", "blue", "brown", "green"))))
        if r.chance(0.6)
        else (OAK, OAK * 0.8)
    )
    if light is CREAM_TILE:
        s, u = bands(across, 1.1, u_px), bands(along, 0.8, v_px)
        floor = mix(light, dark, s + u - 2 * s * u)
    else:
        floor = mix(light, dark, bands(across, 0.9, u_px)) * (1 - 0.35 * bands(across, 0.45, u_px, 0.08))
    cover = np.clip((c.y - horizon) / c.px + 0.5, 0, 1)
    c.paint(cover, floor * (0.80 + 0.35 * (c.y - horizon) / (1 - horizon) + 0.06 * c.grain), FLOOR)
    board = np.clip(0.5 + (0.018 - np.abs(c.y - horizon + 0.018)) / c.px, 0, 1)
    c.paint(board, rgb(0.93, 0.92, 0.88))
    return Place(horizon, "in a room", None, rgb(1.0, 0.98, 0.95))


CREAM_TILE, OAK = rgb(0.93, 0.90, 0.83), rgb(0.70, 0.48, 0.28)
PLACES: dict[str, Callable[[Canvas, Stream], Place]] = {
    "meadow": meadow,
    "desert": desert,
    "snow": snow,
    "sea": sea,
    "under water": under_water,
    "room": room,
}
