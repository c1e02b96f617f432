"""Picture files: which formats can be read here, and opening one within a bound of memory, whatever its bytes are."""

import io
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from PIL import ContainerIO, ExifTags, Image, features

MAX_DECODED_BYTES = 1 << 30  # that decoding one picture may take, as `decoded_bytes` counts
MAX_FILE_BYTES = 1 << 29  # of one picture or label map as it is stored
EXTREME = 32  # longer over shorter side from which pictures are cropped before they are resized
# Formats that are read, and the suffixes of their files. Pillow knows more, among them some that run other programs.
SUFFIXES: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif", ".hif"),
    "JPEG2000": (".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc"),
}
_CODECS = {"AVIF": "avif", "WEBP": "webp", "JPEG2000": "jpg_2000"}  # Pillow may have been built without them
_CURES = {
    "HEIF": "`pip install pillow-heif`",
    "AVIF": "`pip install --upgrade pillow`, from 11.3 on with AVIF",
}
_BYTES_OF_MODE = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}  # of a pixel in Pillow; others take 4
# Bytes that a decoder takes for each pixel besides the picture, as measured with Pillow 13.
_BYTES_OF_DECODER = {"WEBP": 12, "JPEG2000": 16, "AVIF": 10, "HEIF": 8, "GIF": 4}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PictureError(ValueError):
    """A picture that is not read: its name, and the reason with its cure."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # both, so that it can be pickled
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name} {self.reason}"


@cache
def _formats() -> tuple[str, ...]:
    """The formats of SUFFIXES that this installation reads."""
    try:
        import pillow_heif

        pillow_heif.register_heif_opener()
    except ImportError:
        pass
    Image.init()
    return tuple(f for f in SUFFIXES if f in Image.OPEN and (f not in _CODECS or features.check(_CODECS[f])))


def readable_suffixes() -> tuple[str, ...]:
    """Suffixes, in lower case, of the picture files that this installation of Pillow and its plug-ins reads."""
    return tuple(suffix for name in _formats() for suffix in SUFFIXES[name])


def unreadable_suffixes() -> dict[str, str]:
    """Suffixes of known picture formats that this installation does not read, each with what would make it."""
    missing = (name for name in SUFFIXES if name not in _formats())
    return {suffix: _CURES.get(name, f"a Pillow with {name}") for name in missing for suffix in SUFFIXES[name]}


def read_part(path: str, offset: int, length: int, name: str = "") -> bytes:
    """Read `length` bytes of a regular file from `offset` on; OSError where that fails.

    Raises PictureError, of this name or the path, for a FIFO, a device or a folder, which could block or never end,
    and for more than MAX_FILE_BYTES.
    """
    _check_regular(path, length, name or path)
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(length)


def _check_regular(path: str, length: int, name: str) -> None:
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise PictureError(name, "is no regular file but a folder, a device or a FIFO; put a file in its place")
    if length > MAX_FILE_BYTES:
        raise PictureError(name, f"has {length:,} bytes, and the limit of a picture file is {MAX_FILE_BYTES:,}; make "
                                 "it smaller")


@contextmanager
def named_errors(name: str) -> Iterator[None]:
    """Raise everything that Pillow lets out, but for a lack of memory, as a PictureError of this name."""
    try:
        yield
    except MemoryError:
        raise
    except PictureError as error:
        raise PictureError(name, error.reason) from error
    except Image.UnidentifiedImageError as error:
        raise PictureError(name, "is not a picture, or of a format that Pillow does not read") from error
    except Image.DecompressionBombError as error:
        raise PictureError(name, f"is too large: {error}; make it smaller, or cut it into parts") from error
    except Exception as error:  # RuntimeError, SyntaxError, TypeError, struct.error and others on damaged files
        # Without the addresses of objects, which differ at each use and would list a file twice.
        said = re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(str(error).split()))[:120]
        raise PictureError(name, f"is damaged: {said or type(error).__name__}") from error


def open_picture_file(
    raw: bytes | memoryview, name: str, size: int | None = None, draft: bool = False
) -> Image.Image:
    """Open the bytes of a picture file and read its header; pixels are read at first use. PictureError of this name.

    Pictures whose decoding, and resizing to a shorter side of `size`, would take more than MAX_DECODED_BYTES are
    refused; JPEG files are decoded at half their scale instead, where that keeps both sides at `size` or more. With
    `draft`, JPEG files are decoded at the smallest scale that does.
    """
    with named_errors(name):
        try:
            picture: Image.Image = Image.open(io.BytesIO(raw), formats=_formats())
        except Image.UnidentifiedImageError as error:
            raise PictureError(name, _why_unidentified(bytes(raw[:12]))) from error
        _scale_transparency(picture, raw)
        needed = decoded_bytes(picture, size)
        half = picture.width // 2, picture.height // 2
        halved = needed > MAX_DECODED_BYTES and size and min(half) >= size and not picture.info.get("progressive")
        if size and (draft or halved):
            picture.draft(None, (size, size) if draft else half)  # nothing for formats other than JPEG
            needed = decoded_bytes(picture, size)
        if needed > MAX_DECODED_BYTES:
            raise PictureError(
                name, f"is too large: {picture.width} x {picture.height} pixels of {picture.format}, mode "
                f"{picture.mode}, take {needed:,} bytes to decode, and the limit is {MAX_DECODED_BYTES:,}; make it "
                "smaller, or cut it into parts")
        return picture


def read_header(path: str, offset: int, length: int, name: str = "") -> tuple[tuple[int, int], int]:
    """Width and height of a picture as it is stored, and its EXIF orientation; errors as of `open_picture_file`.

    A PNG may state its orientation after the pixels, and is decoded to find it.
    """
    _check_regular(path, length, name or path)
    with named_errors(name or path), open(path, "rb") as file:
        with Image.open(ContainerIO.ContainerIO(file, offset, length), formats=_formats()) as picture:
            return stored_size(picture), orientation(picture)


def _why_unidentified(start: bytes) -> str:
    """Why a file of these first bytes is not read, with what would make it readable."""
    if start[4:8] == b"ftyp":
        suffix = ".avif" if start[8:11] == b"avi" else ".heic"
        if cure := unreadable_suffixes().get(suffix):
            return f"is of the format {suffix[1:].upper()}, which is not read here; it is with {cure}"
    return "is not a picture, or of a format that Pillow does not read"


def decoded_bytes(picture: Image.Image, size: int | None = None) -> int:
    """Bytes that decoding takes at its peak: Pillow's pixels, its decoder, a turned copy, 8 bits of deep ones, RGB.

    With `size`, also the columns that `decode.center_crop` makes first.
    """
    width, height = picture.size
    stored = _BYTES_OF_MODE.get(picture.mode, 4)
    decoder = _BYTES_OF_DECODER.get(picture.format or "", 0)
    if picture.info.get("progressive"):
        decoder = 6  # the coefficients of a whole JPEG
    elif picture.format == "TIFF":  # libtiff decodes a strip at once
        rows = int(picture.tag_v2.get(278, height))  # type: ignore[attr-defined]
        decoder = bits_of_tiff(picture) * min(rows, height) // (8 * max(1, height))
    # A PNG that states its orientation after the pixels would be decoded to find it.
    turned = (picture.format != "PNG" or "exif" in picture.info) and orientation(picture) != 1
    other = picture.mode != "RGB" or "transparency" in picture.info
    converted = stored * turned + 4 * other + 2 * picture.mode.startswith(("I", "F"))
    shorter = max(1, min(width, height))
    columns = 4 * height * round(width * size / shorter) if size and max(width, height) <= EXTREME * shorter else 0
    return width * height * (stored + max(decoder, converted)) + columns


def bits_of_tiff(picture: Image.Image) -> int:
    """Bits of a pixel of a TIFF file, of all channels together; 0 for other files."""
    return sum(picture.tag_v2.get(258, (1,))) if picture.format == "TIFF" else 0  # type: ignore[attr-defined]


def _scale_transparency(picture: Image.Image, raw: bytes | memoryview) -> None:
    """Bring the transparent colour of a PNG of 2, 4 or 16 bits to the 8 bits of its pixels, which Pillow does not."""
    colour = picture.info.get("transparency")
    if picture.format != "PNG" or colour is None or isinstance(colour, bytes):
        return
    depth, kind = raw[24], raw[25]  # of the header, which comes first
    if kind == 0 and depth in (2, 4):
        picture.info["transparency"] = colour * 255 // (2**depth - 1)
    elif kind == 2 and depth == 16:
        picture.info["transparency"] = tuple(level >> 8 for level in colour)


def orientation(picture: Image.Image) -> int:
    """EXIF orientation of a picture, 1 to 8; 1 where there is none, or it is damaged or no whole number."""
    try:
        value = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # what is wrong with EXIF data does not make the pixels unreadable
        return 1
    return int(value) if isinstance(value, int | float) and value in _TURNS else 1


def upright(picture: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says; itself where that is upright."""
    picture.load()  # Pillow turns TIFF files by itself, and removes their tag
    turned = orientation(picture)
    return picture if turned == 1 else picture.transpose(_TURNS[turned])


def stored_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height of the pixels as they are stored, before `orientation` turns them; from the header."""
    if picture.format == "TIFF":  # Pillow's size is of the turned picture, and in earlier versions of the stored one
        tags = picture.tag_v2  # type: ignore[attr-defined]
        return int(tags[256]), int(tags[257])
    return picture.size
