"""Decode picture files of any colour mode to uint8 RGB squares, and label maps to match: resize, then centre crop."""

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from ldmlab.data.formats import EXTREME, PictureError, bits_of_tiff, named_errors, open_picture_file, upright

BACKGROUND = "white"  # under transparent pixels
OVERSHOOT = 0.1  # of float levels beyond 0 to 1, which is clipped
_STRIP = 1 << 20  # pixels that are converted at a time
PROTOCOL = {
    "resize": "shorter side to size, PIL bicubic, antialiased",
    "crop": "centre square",
    "colour": f"RGB, alpha over {BACKGROUND}, 16-bit scaled to 8",
    "orientation": "EXIF applied",
}
# Decoders, and the entries of PROTOCOL that each changes: all but "pil" are faster and give slightly other pixels.
DECODERS: dict[str, dict[str, str]] = {
    "pil": {},
    "pil-draft": {
        "decoder": "pil-draft",
        "resize": "JPEG decoded at 1/2, 1/4 or 1/8 if both sides keep size pixels; " + PROTOCOL["resize"],
    },
    "torch": {"decoder": "torch", "resize": "shorter side to size, torch bicubic, antialiased"},
}


def to_rgb(picture: Image.Image) -> Image.Image:
    """Convert a PIL picture of any mode to 8-bit RGB: EXIF orientation applied, alpha over BACKGROUND, first frame.

    Levels of 16 bits are divided by 65535, whatever the highest one is. Floats are levels from 0 to 1; up to OVERSHOOT
    beyond, as sharp filters leave it, they are clipped. ValueError for others, for NaN, and for integers of 32 bits.
    """
    picture = upright(picture)
    if picture.mode.startswith(("I", "F")):  # 16-bit and float greyscale, which PIL's conversion would clip to white
        picture = _to_8_bits(picture)
    if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
        return _over_background(picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _strips(picture: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Boxes that cover a picture from top to bottom, so that a conversion need not hold it several times."""
    rows = max(1, _STRIP // max(1, picture.width))
    for top in range(0, picture.height, rows):
        yield 0, top, picture.width, min(top + rows, picture.height)


def _to_8_bits(picture: Image.Image) -> Image.Image:
    top, clear = 1.0, picture.info.get("transparency")
    if picture.mode.startswith("I"):
        if picture.mode == "I" and bits_of_tiff(picture) == 32:
            raise PictureError("the picture", "has integers of 32 bits, of which none is known to be white; save the "
                                              "set with 8 or 16 bits, or as floats from 0 to 1")
        top = 65535.0
    out = np.empty((picture.height, picture.width), np.uint8)
    for box in _strips(picture):
        values = np.asarray(picture.crop(box), np.float64)
        low, high = (values.min(), values.max()) if values.size else (0.0, 0.0)
        if not (low >= -OVERSHOOT * top and high <= (1 + OVERSHOOT) * top):  # also true for NaN
            kind = "floats" if top == 1 else "integers"
            raise PictureError("the picture", f"has {kind} from {low:.4g} to {high:.4g}, and accepted are 0 to "
                                              f"{top:g}; scale the whole set alike, or save it with 8 or 16 bits")
        levels = (values.clip(0, top) * (255 / top) + 0.5).astype(np.uint8)
        if isinstance(clear, int):
            levels[values == clear] = 255  # BACKGROUND
        out[box[1] : box[3]] = levels
    return Image.fromarray(out)


def _over_background(picture: Image.Image) -> Image.Image:
    """A picture with alpha, or a transparent colour, over BACKGROUND."""
    out = Image.new("RGB", picture.size)
    for box in _strips(picture):
        layer = picture.crop(box).convert("RGBA")
        out.paste(Image.alpha_composite(Image.new("RGBA", layer.size, BACKGROUND), layer).convert("RGB"), box)
    return out


def center_crop(picture: Image.Image, size: int) -> np.ndarray:
    """Resize the shorter side to `size` (bicubic, antialiased) and crop the centre: (3, size, size) uint8."""
    picture = _resize_and_crop(to_rgb(picture), size, Image.Resampling.BICUBIC)
    return np.stack([np.asarray(band) for band in picture.split()])


def center_crop_map(labels: np.ndarray, size: int) -> np.ndarray:
    """Resize (nearest neighbour) and crop a label map (h, w) uint8 as `center_crop`: (size, size) uint8."""
    return np.array(_resize_and_crop(Image.fromarray(labels), size, Image.Resampling.NEAREST))


def _sides(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height after resizing the shorter side to `size`."""
    scale = size / min(width, height)
    return max(size, round(width * scale)), max(size, round(height * scale))


def _is_extreme(picture: Image.Image) -> bool:
    return max(picture.size) > EXTREME * min(picture.size)


def _resize_and_crop(picture: Image.Image, size: int, resampling: Image.Resampling) -> Image.Image:
    """Equal, bit for bit, to one resize and one crop, but PIL's vertical pass runs on the cropped columns only.

    Of pictures that are more than EXTREME times as long as wide, only the part that the square shows is resized; levels
    may differ by rounding.
    """
    width, height = _sides(*picture.size, size)
    left, top = (width - size) // 2, (height - size) // 2
    if _is_extreme(picture):
        across, down = picture.width / width, picture.height / height
        margin = 3 + int(2 * max(1.0, down))  # rows beyond the square that the filter reaches
        first, last = max(0, int(top * down) - margin), min(picture.height, int((top + size) * down) + margin)
        right, bottom = min((left + size) * across, picture.width), min((top + size) * down - first, last - first)
        rows = picture.crop((0, first, picture.width, last))
        columns = rows.resize((size, rows.height), resampling, (left * across, 0, right, rows.height))
        return columns.resize((size, size), resampling, (0, max(0.0, top * down - first), size, bottom))
    if width > size:
        columns = picture.resize((width, picture.height), resampling)
        picture = columns.crop((left, 0, left + size, picture.height))
    if picture.size != (size, height):
        picture = picture.resize((size, height), resampling)
    return picture.crop((0, top, size, top + size)) if height > size else picture


def decode(raw: bytes | memoryview, size: int, decoder: str = "pil", name: str = "the picture") -> np.ndarray:
    """Decode the bytes of a picture file to (3, size, size) uint8 by one of DECODERS.

    Raises ValueError, with `name` and the reason, for what is damaged, too large, or of levels that `to_rgb` refuses.
    """
    with named_errors(name), open_picture_file(raw, name, size, draft=decoder == "pil-draft") as picture:
        picture.load()
        by_torch = decoder == "torch" and size != min(picture.size) and not _is_extreme(picture)
        return _center_crop_by_torch(picture, size) if by_torch else center_crop(picture, size)


def open_rgb(raw: bytes | memoryview, name: str) -> Image.Image:
    """The bytes of a picture file as 8-bit RGB of its own size; ValueError as `decode`."""
    with named_errors(name), open_picture_file(raw, name) as picture:
        return to_rgb(picture)


def _center_crop_by_torch(picture: Image.Image, size: int) -> np.ndarray:
    """`center_crop` with torch's resize, 10 times as fast; 1 value in 200 differs by a level, 1 in 200 000 by two."""
    picture = to_rgb(picture)
    x = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(1, picture.height, picture.width, 3)
    width, height = _sides(picture.width, picture.height, size)
    x = F.interpolate(x.movedim(3, 1), (height, width), mode="bicubic", antialias=True)
    left, top = (width - size) // 2, (height - size) // 2
    return np.ascontiguousarray(x[0, :, top : top + size, left : left + size].numpy())
