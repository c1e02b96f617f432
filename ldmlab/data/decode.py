"""One picture file -> one square of uint8 RGB, its label map with it: every colour mode, one resize, one crop."""

import io

import numpy as np
from PIL import Image, ImageOps

BACKGROUND = "white"  # under transparent pixels
PROTOCOL = {
    "resize": "shorter side to size, PIL bicubic, antialiased",
    "crop": "centre square",
    "colour": f"RGB, alpha over {BACKGROUND}, 16-bit scaled to 8",
    "orientation": "EXIF applied",
}


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any PIL picture, upright as its EXIF says, as 8-bit RGB; alpha over BACKGROUND, first frame only."""
    deep = picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG")
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith(("I", "F")):  # 16-bit and float greyscale: PIL's own conversion would clip it to white
        values = np.asarray(picture, np.float64)
        top = 65535.0 if deep or values.max() > 255 else 255.0
        if picture.mode == "F" and values.max() <= 1:
            top = 1.0
        picture = Image.fromarray((values.clip(0, top) * (255 / top) + 0.5).astype(np.uint8))
    if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, BACKGROUND), layer).convert("RGB")
    return picture.convert("RGB")


def square(picture: Image.Image, size: int) -> np.ndarray:
    """Resize the shorter side to `size`, crop the centre: (3, size, size) uint8."""
    picture = _resize_and_crop(to_rgb(picture), size, Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))


def square_map(labels: np.ndarray, size: int) -> np.ndarray:
    """The same resize and crop of a label map (h, w) uint8, nearest neighbour: (size, size) uint8."""
    return np.array(_resize_and_crop(Image.fromarray(labels), size, Image.Resampling.NEAREST))


def _resize_and_crop(picture: Image.Image, size: int, resampling: Image.Resampling) -> Image.Image:
    scale = size / min(picture.size)
    if scale != 1:
        width, height = (max(size, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), resampling)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    if picture.size != (size, size):
        picture = picture.crop((left, top, left + size, top + size))
    return picture


def decode(raw: bytes, size: int) -> np.ndarray:
    """The bytes of a picture file as (3, size, size) uint8; whatever PIL raises where they are damaged."""
    with Image.open(io.BytesIO(raw)) as picture:
        picture.load()
        return square(picture, size)
