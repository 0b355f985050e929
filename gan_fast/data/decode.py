"""Turn the bytes of one image file into a square uint8 array."""

from __future__ import annotations

import contextlib
import io
import re
import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from gan_fast.data.errors import BadFileError, reason_of

# Pillow is told these and no others: some of its further formats start external programs or fetch other files.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

# Where Pillow begins to warn. A constant of our own, so that neither the warning filters of the process nor its
# setting of Image.MAX_IMAGE_PIXELS decide what is refused here.
MAX_PIXELS = 89_478_485

_TIFF_BITS_PER_SAMPLE = 258
_TIFF_PHOTOMETRIC = 262
_TIFF_WHITE_IS_ZERO = 0

_EXIF_ORIENTATION = 0x0112
_EXIF_INTEGERS = {1: "B", 3: "H", 4: "I"}
_XMP_ORIENTATION = re.compile(rb"""tiff:Orientation(?:\s*=\s*["']|>)\s*([0-9])""")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What Pillow multiplies a grey PNG's samples of few bits by, but not the sample that is transparent.
_GREY_SCALES = {"L;2": 85, "L;4": 17, "L": 1}


@dataclass(frozen=True)
class Decoded:
    """A decoded image: uint8 `pixels` (channels, image_size, image_size), and the `size` (width, height) it had."""

    pixels: np.ndarray
    size: tuple[int, int]


def decode_image(data: bytes, image_size: int, channels: int) -> np.ndarray:
    """Decode one image, scale its shorter side to `image_size` and crop the centre square.

    Args:
        data: The whole file. Its content, not its name, decides the format.
        image_size: Side of the result in pixels, >= 1.
        channels: 1 (ITU-R 601 luma) or 3 (RGB).

    Returns:
        uint8 array (channels, image_size, image_size).

    Raises:
        BadFileError: The bytes are not an image, are damaged, or have no defined 8-bit RGB value.

    Notes:
        EXIF or XMP orientation is applied, whatever else is in the block. Transparency is composited over white.
        16-bit grey is rescaled, round(value / 257); 32-bit integer pixels are taken as 16-bit and float pixels as
        [0, 1], and are refused outside these ranges. Of 16-bit colour Pillow keeps the high byte. CMYK is converted
        without its colour profile, and other embedded profiles are ignored. Of an animation or a multi-page file the
        first frame is taken.
        Scaling is Lanczos with antialiasing; an image whose shorter side is already `image_size` is only cropped.
    """
    return decode(data, image_size, channels).pixels


def decode(data: bytes, image_size: int, channels: int) -> Decoded:
    """Decode as :func:`decode_image` does; the size that the image had comes along."""
    if not data:
        raise BadFileError("the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_header(image)
            flat = _turn(_flatten(image, data), _orientation(image))
        square = _resize_and_crop(flat.convert("L" if channels == 1 else "RGB"), image_size)
        pixels = np.asarray(square).reshape(image_size, image_size, channels).transpose(2, 0, 1)
        return Decoded(pixels, flat.size)
    except BadFileError:
        raise
    except UnidentifiedImageError:
        raise BadFileError(f"not an image, damaged at its start, or of size 0 (read: {', '.join(_FORMATS)})") from None
    # On damaged bytes Pillow raises nearly anything: OSError, SyntaxError, struct.error, KeyError, MemoryError.
    except Exception as error:
        raise BadFileError(f"cannot be decoded: {reason_of(error)}") from error


def _check_header(image: Image.Image) -> None:
    """Refuse, before any pixel is decoded, what would not fit in memory or would come out with wrong values."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadFileError(f"decompression bomb: {width}x{height} is more than {MAX_PIXELS} pixels")
    if image.format == "TIFF" and image.mode.startswith("I;16"):
        tags = image.tag_v2  # type: ignore[attr-defined]
        # Pillow hands both through as if they were 16-bit, black at zero: dark or negative, with no sign of it.
        if tags[_TIFF_BITS_PER_SAMPLE] != (16,) or tags[_TIFF_PHOTOMETRIC] == _TIFF_WHITE_IS_ZERO:
            raise BadFileError("12-bit or white-is-zero TIFF is not read here; save it as 16-bit, black at zero")


def _orientation(image: Image.Image) -> int:
    """Return the EXIF or XMP orientation of an image that is loaded; 1, upright, where there is none to be read."""
    if image.format == "TIFF":
        return 1  # Pillow turns these as it loads them
    block = image.info.get("exif")
    if block is None and "Raw profile type exif" in image.info:
        with contextlib.suppress(ValueError):
            block = bytes.fromhex("".join(image.info["Raw profile type exif"].split("\n")[3:]))
    orientation = _exif_orientation(block or b"")
    if orientation is None:
        xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp") or b""
        found = _XMP_ORIENTATION.search(xmp if isinstance(xmp, bytes) else xmp.encode())
        orientation = int(found[1]) if found else 1
    return orientation


def _exif_orientation(block: bytes) -> int | None:
    """Find the orientation in an EXIF block.

    Pillow stops at the first tag whose data are not there, and warns, which a process may have made an error.
    """
    block = block.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return None
    with contextlib.suppress(struct.error):  # of a block that is cut short
        (start,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", block, at)
            if tag == _EXIF_ORIENTATION and kind in _EXIF_INTEGERS:
                return struct.unpack_from(order + _EXIF_INTEGERS[kind], block, at + 8)[0]
    return None


def _turn(image: Image.Image, orientation: int) -> Image.Image:
    # ImageOps.exif_transpose would write the other tags again, which fails for some that it has read.
    method = _UPRIGHT.get(orientation)
    return image if method is None else image.transpose(method)


def _flatten(image: Image.Image, data: bytes) -> Image.Image:
    """Reduce to 8 bits a channel and composite transparency over white."""
    raw_mode = image.tile[0].args if image.format == "PNG" and image.tile else None  # type: ignore[attr-defined]
    image.load()
    transparent = image.info.get("transparency")
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image).astype(np.int32)
        if values.min() < 0 or values.max() > 65535:
            raise BadFileError(f"integer pixels must lie in 0..65535, found {values.min()}..{values.max()}")
        grey = ((values + 128) // 257).astype(np.uint8)
        if isinstance(transparent, int):
            grey[values == transparent] = 255
        return Image.fromarray(grey)
    if image.mode == "F":
        fractions = np.asarray(image)
        if not (fractions.min() >= 0 and fractions.max() <= 1):  # written so that NaN is refused too
            raise BadFileError(f"float pixels must lie in [0, 1], found {fractions.min()}..{fractions.max()}")
        return Image.fromarray(np.rint(fractions * 255).astype(np.uint8))
    if raw_mode == "RGB;16B" and transparent is not None:
        colours = np.asarray(image).copy()
        key = np.array(transparent)
        matches = (colours == key >> 8) & (_low_bytes(data) == key & 255)
        colours[matches.all(axis=-1)] = 255
        return Image.fromarray(colours)
    if raw_mode in _GREY_SCALES and isinstance(transparent, int):
        # Above the sample's bits a PNG may hold anything.
        scale = _GREY_SCALES[raw_mode]
        image.info["transparency"] = (transparent & 255 // scale) * scale
    elif raw_mode == "RGB" and isinstance(transparent, tuple):
        image.info["transparency"] = tuple(value & 255 for value in transparent)
    if image.has_transparency_data:
        if image.mode == "La":
            image = image.convert("LA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image


def _low_bytes(data: bytes) -> np.ndarray:
    """Return the low bytes of a 16-bit RGB PNG, of which Pillow keeps the high ones."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        # Read as little-endian, the low byte is the one that is kept.
        image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]
        return np.asarray(image)


def _resize_and_crop(image: Image.Image, image_size: int) -> Image.Image:
    """Resample the centre square only, so that a very long image never becomes a larger one on the way."""
    side = min(image.size)
    # Whole pixels: half a pixel of offset would blur an image that needs no scaling.
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return image.resize((image_size, image_size), Image.Resampling.LANCZOS, box=box)
