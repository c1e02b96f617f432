"""Drawing primitives of `scenes`: reproducible random numbers, antialiased shapes, patterns, 1/f textures.

Positions are fractions of the picture, x to the right and y down, so that a scene is the same at every size. Every edge
is one pixel wide and every texture averaged over one, so a smaller picture is the larger one downsampled.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Field = Any  # float32 array that broadcasts to (h, w), or a Python float; colours are (3, 1, 1) or (3, h, w)
Number = int | float
TAU = 2 * math.pi
_WAVES = 72  # of a 1/f field, nine an octave
_OCTAVE = np.arange(_WAVES, dtype=np.float32) / 9


class Stream:
    """Uniform numbers in [0, 1) that depend on a text key alone: SHAKE-256, so no library version can change them."""

    def __init__(self, key: str, count: int = 640) -> None:
        raw = hashlib.shake_256(key.encode()).digest(4 * count)
        self._floats = ((np.frombuffer(raw, "<u4") >> 8) * 2.0**-24).astype(np.float32)
        self._values = self._floats.tolist()
        self._next = 0

    def uniform(self, low: Number = 0.0, high: Number = 1.0) -> float:
        """One number in [low, high)."""
        self._next += 1
        return low + (high - low) * self._values[self._next - 1]

    def chance(self, p: Number) -> bool:
        """True with probability p."""
        return self.uniform() < p

    def choice(self, options: Sequence) -> Any:
        """One of the options, drawn uniformly."""
        return options[int(self.uniform() * len(options))]

    def take(self, count: int) -> np.ndarray:
        """The next `count` numbers as a float32 array; IndexError where the stream has no more."""
        self._next += count
        if self._next > len(self._values):
            raise IndexError(f"a scene's stream has {len(self._values)} numbers, {self._next} were requested")
        return self._floats[self._next - count : self._next]


def rgb(r: Number, g: Number, b: Number) -> np.ndarray:
    """A colour as a (3, 1, 1) array."""
    return np.array([r, g, b], np.float32).reshape(3, 1, 1)


def mix(a: Field, b: Field, t: Field) -> Field:
    """Linear interpolation: `a` where `t` is 0, `b` where it is 1."""
    return a + (b - a) * t


def step(value: Field, low: Number, high: Number) -> Field:
    """Smooth step: 0 below `low`, 1 above `high`, a cubic between."""
    t = np.clip((value - low) * (1 / (high - low)), 0, 1)
    return t * t * (3 - 2 * t)


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Matrix product (h, k) @ (k, w) in blocks below the size at which BLAS starts threads, which can cost 10x."""
    work, columns = 1 << 18, 128
    rows = max(1, work // (len(b) * min(columns, b.shape[1])))
    out = np.empty((len(a), b.shape[1]), np.float32)
    for i in range(0, len(a), rows):
        for j in range(0, b.shape[1], columns):
            np.matmul(a[i : i + rows], b[:, j : j + columns], out=out[i : i + rows, j : j + columns])
    return out


class Canvas:
    """A square canvas: colours, the number of the object at each pixel, and two 1/f textures."""

    def __init__(self, size: int) -> None:
        centres = (np.arange(size, dtype=np.float32) + 0.5) / size
        self.size = size
        self.px = 1.0 / size
        self.x = centres[None, :]  # (1, w)
        self.y = centres[:, None]  # (h, 1)
        self.rgb = np.zeros((3, size, size), np.float32)
        self.ids = np.zeros((size, size), np.uint8)
        self.grain = np.zeros((size, size), np.float32)  # for surfaces
        self.drift = self.grain  # smoother, for edges

    def noise(self, stream: Stream, *slopes: Number, stretch: Number = 1.0, lowest: Number = 1.5) -> np.ndarray:
        """Random 1/f fields, one per slope, mean 0 and standard deviation 1 before the pixels average them: (n, h, w).

        At slope 0 the amplitude falls as 1/f in two dimensions, i.e. every octave carries the same variance; a slope
        s weakens each octave by 2**-s against the one below. The fields share their phases, so one is a smoother view
        of another. `stretch` > 1 draws them out along x. Components above Nyquist are left out.
        """
        angle, phase = stream.take(_WAVES) * np.float32(math.pi), stream.take(_WAVES) * np.float32(TAU)
        freq = lowest * 2**_OCTAVE
        num = int((freq < 0.5 * self.size).sum())
        fx, fy = freq[:num] * np.cos(angle[:num]) / stretch, freq[:num] * np.sin(angle[:num])
        seen = np.sinc(fx * self.px) * np.sinc(fy * self.px)  # averaging over a pixel
        octaves = [2 ** (-slope * _OCTAVE) for slope in slopes]
        weights = np.stack([w[:num] * seen * math.sqrt(2 / float((w * w).sum())) for w in octaves])  # (n, k)
        ax, ay = TAU * fx[:, None] * self.x + phase[:num, None], TAU * self.y * fy  # (k, w), (h, k)
        along_x = np.concatenate([np.cos(ax), -np.sin(ax)]) * np.concatenate([weights, weights], 1)[..., None]
        along_y = np.concatenate([np.cos(ay), np.sin(ay)], 1, dtype=np.float32)
        return np.stack([product(along_y, field) for field in along_x.astype(np.float32)])

    def ridge(self, stream: Stream, lowest: Number, octaves: int, roughness: Number) -> np.ndarray:
        """A random profile (1, w), about -1 to 1, each octave `roughness` times as high as the one below."""
        k = np.arange(int(octaves * 2), dtype=np.float32)[:, None]
        amplitude = roughness ** (k / 2)
        waves = np.sin(TAU * lowest * 2 ** (k / 2) * self.x + TAU * stream.take(len(k))[:, None])
        return (waves * amplitude).sum(0, keepdims=True) * (1.2 / math.sqrt(float((amplitude**2).sum())))

    def specks(self, x: np.ndarray, y: np.ndarray, radius: Number, strength: Field) -> np.ndarray:
        """Sum of soft round dots (h, w); a dot smaller than a pixel gets fainter, not wider."""
        var = radius**2 + self.px**2 / 12
        across = np.exp((self.x - x[:, None]) ** 2 * (-0.5 / var)) * strength * np.float32(radius**2 / var)
        return product(np.exp((self.y - y[None, :]) ** 2 * (-0.5 / var)), across.astype(np.float32))

    def paint(self, cover: Field, colour: Field, number: int | None = None) -> None:
        """Blend a colour over the whole canvas with opacity `cover` (0 to 1); sets `number` where it is above 1/2."""
        self.rgb += (colour - self.rgb) * cover
        if number is not None:
            self.ids[np.broadcast_to(cover > 0.5, self.ids.shape)] = number

    def frame(
        self, number: int, cx: Number, cy: Number, scale: Number, angle: Number = 0.0, flip: bool = False
    ) -> "Frame":
        """The window around an object at (cx, cy); in its coordinates the object's square is (-1, -1) to (1, 1)."""
        return Frame(self, number, cx, cy, scale, angle, flip)


class Frame:
    """An object's window on the canvas: coordinates `u`, `v` in the object's units, and shapes in them.

    A shape is a signed distance, negative inside, in the thing's units.
    """

    def __init__(
        self, canvas: Canvas, number: int, cx: Number, cy: Number, scale: Number, angle: Number, flip: bool
    ) -> None:
        n, reach = canvas.size, 1.45 * scale if angle else 1.12 * scale
        x0, x1 = max(0, math.floor((cx - reach) * n)), min(n, math.ceil((cx + reach) * n))
        y0, y1 = max(0, math.floor((cy - reach) * n)), min(n, math.ceil((cy + reach) * n))
        window = (slice(y0, max(y0, y1)), slice(x0, max(x0, x1)))
        x, y = (canvas.x[:, window[1]] - cx) / scale, (canvas.y[window[0]] - cy) / scale
        if angle:
            c, s = math.cos(angle), math.sin(angle)
            x, y = x * c + y * s, y * c - x * s
        self.u: np.ndarray = -x if flip else x
        self.v: np.ndarray = y
        self.px = canvas.px / scale
        self.number = number
        self.rgb, self.ids = canvas.rgb[:, window[0], window[1]], canvas.ids[window]
        self.grain, self.drift = canvas.grain[window], canvas.drift[window]

    # Shapes: signed distances -----------------------------------------------------------------------------------------
    def ellipse(self, cx: Number, cy: Number, rx: Number, ry: Number) -> Field:
        """An upright ellipse; the distance is exact to first order at the edge."""
        du, dv = (self.u - cx) / rx, (self.v - cy) / ry
        if rx == ry:
            return np.sqrt(du * du + dv * dv) * rx - rx
        k = np.sqrt(du * du + dv * dv)
        return k * (k - 1) / (np.sqrt((du / rx) ** 2 + (dv / ry) ** 2) + 1e-6)

    def box(self, cx: Number, cy: Number, hx: Number, hy: Number, round_by: Number = 0.0) -> Field:
        """An upright rectangle of half-sizes hx, hy, corners rounded by a radius."""
        qx, qy = np.abs(self.u - cx) - (hx - round_by), np.abs(self.v - cy) - (hy - round_by)
        if not round_by:
            return np.maximum(qx, qy)
        return np.hypot(np.maximum(qx, 0), np.maximum(qy, 0)) + np.minimum(np.maximum(qx, qy), 0) - round_by

    def polygon(self, *corners: tuple[Number, Number]) -> Field:
        """A convex polygon; corners clockwise as seen on the picture (y down)."""
        distance: Field = -np.inf
        for (ua, va), (ub, vb) in zip(corners, (*corners[1:], corners[0]), strict=True):
            length = math.hypot(ub - ua, vb - va)
            nu, nv = (vb - va) / length, -(ub - ua) / length
            distance = np.maximum(distance, self.u * nu + (self.v * nv - (ua * nu + va * nv)))
        return distance

    def line(self, ua: Number, va: Number, ub: Number, vb: Number) -> Field:
        """The (unsigned) distance to a straight line between two points."""
        du, dv = ub - ua, vb - va
        t = np.clip((self.u * du + (self.v * dv - (ua * du + va * dv))) / (du * du + dv * dv), 0, 1)
        return np.hypot(self.u - ua - t * du, self.v - va - t * dv)

    # Covers: how much of a pixel a shape fills ------------------------------------------------------------------------
    def inside(self, distance: Field) -> Field:
        """Cover of a shape: 1 inside, 0 outside, a ramp one pixel wide between."""
        return np.clip(0.5 - distance / self.px, 0, 1)

    def stroke(self, distance: Field, width: Number) -> Field:
        """Cover of a stroke of that width along distance 0; one thinner than a pixel gets fainter, not wider."""
        d, half = np.abs(distance) / self.px, 0.5 * width / self.px
        return np.clip(half - d + 0.5, 0, 1) - np.clip(-half - d + 0.5, 0, 1)

    def paint(self, cover: Field, colour: Field, claim: bool = True) -> None:
        """Blend a colour over the window; `claim` assigns pixels more than half covered to the object."""
        self.rgb += (colour - self.rgb) * cover
        if claim:
            self.ids[np.broadcast_to(cover > 0.5, self.ids.shape)] = self.number

    # Patterns: 0 to 1, to mix two colours -----------------------------------------------------------------------------
    def stripes(self, coordinate: Field, period: Number, share: Number = 0.5, slope: Number = 1.0) -> Field:
        """Bands along a coordinate, `share` of each period; `slope` is its gradient."""
        return bands(coordinate, period, self.px * slope, share)

    def checks(self, period: Number, u: Field | None = None, v: Field | None = None) -> Field:
        """A chessboard; a period is two squares long."""
        a, b = self.stripes(self.u if u is None else u, period), self.stripes(self.v if v is None else v, period)
        return a + b - 2 * a * b

    def dots(self, period: Number, radius: Number, u: Field | None = None, v: Field | None = None) -> Field:
        """Round dots on a square grid, every second row shifted."""
        u, v = self.u if u is None else u, self.v if v is None else v
        row = np.floor(v / period)
        du = (u / period + 0.5 * (row % 2)) % 1 - 0.5
        dv = v / period - row - 0.5
        sharp = self.inside(np.hypot(du, dv) * period - radius)
        return mix(math.pi * (radius / period) ** 2, sharp, min(1.0, max(0.0, period / self.px / 2 - 0.8)))

    def scales(self, period: Number, width: Number) -> Field:
        """The thin rims of a fish's scales."""
        row = np.floor(self.v / period)
        du = (self.u / period + 0.5 * (row % 2)) % 1 - 0.5
        return self.stroke((np.hypot(du, self.v / period - row) - 0.6) * period, width)

    def bricks(self, length: Number, height: Number, joint: Number) -> Field:
        """The thin joints of a brick wall."""
        row = np.floor(self.v / height)
        v = self.v / height - row
        u = (self.u / length + 0.5 * (row % 2)) % 1
        flat, upright = (self.stroke((0.5 - np.abs(t - 0.5)) * side, joint) for t, side in ((v, height), (u, length)))
        return np.maximum(flat, upright)


def bands(coordinate: Field, period: Field, px: Field, share: Number = 0.5) -> Field:
    """Bands of a coordinate, antialiased over `px` of it; where a period nears two pixels they fade to their mean."""
    phase = np.abs((coordinate / period) % 1 - 0.5)  # 0 in the middle of a band, 0.5 between bands
    sharp = np.clip((0.5 * share - phase) * (period / px) + 0.5, 0, 1)
    return share + (sharp - share) * np.clip(period / px * 0.5 - 0.6, 0, 1)
