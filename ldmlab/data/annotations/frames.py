"""The frame that boxes are measured in: a picture's pixels as they are stored, or as EXIF turns them."""

from dataclasses import dataclass

from ldmlab.data.formats import read_header

Ends = tuple[float, float, float, float]  # x0, y0, x1, y1 in fractions of a frame


@dataclass(frozen=True)
class Frame:
    """Width and height of a picture as it is stored, in pixels, and its EXIF orientation, 1 to 8."""

    width: int
    height: int
    orientation: int = 1

    @classmethod
    def of_file(cls, path: str, offset: int, length: int, name: str = "") -> "Frame":
        """From the header of a picture; OSError where it cannot be read, ValueError where it is damaged."""
        (width, height), turned = read_header(path, offset, length, name)
        return cls(width, height, turned)

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height after the orientation is applied."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)

    def stated(self, width: float | int, height: float | int) -> str:
        """Which frame of the picture has the stated size: "upright", "stored", or "" for neither.

        Sizes of the same shape but for rounding also fit, since boxes are taken in fractions. Where both frames fit,
        it is the upright one.
        """
        if (width, height) == self.upright:
            return "upright"
        frames = {"upright": self.upright, "stored": (self.width, self.height)}
        exact = [name for name, size in frames.items() if size == (width, height)]
        return next(iter(exact or [name for name, size in frames.items() if _same_shape((width, height), size)]), "")

    def turn(self, ends: Ends) -> Ends:
        """A box in fractions of the stored picture, in fractions of the upright one."""
        x0, y0, x1, y1 = ends
        if self.orientation >= 5:
            x0, y0, x1, y1 = y0, x0, y1, x1
        if self.orientation in (2, 3, 6, 7):
            x0, x1 = 1 - x1, 1 - x0
        if self.orientation in (3, 4, 7, 8):
            y0, y1 = 1 - y1, 1 - y0
        return x0, y0, x1, y1


def _same_shape(a: tuple[float | int, float | int], b: tuple[float | int, float | int]) -> bool:
    """Whether one size is the other, enlarged and rounded to whole pixels."""
    scale = max(a[0] / b[0], a[1] / b[1])
    rounding = max(1.0, scale)  # of a pixel, of the larger one
    return abs(a[0] - b[0] * scale) <= rounding and abs(a[1] - b[1] * scale) <= rounding
