"""Decode the bytes of one image file into a square uint8 array."""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image, JpegImagePlugin, UnidentifiedImageError

from gan_fast.data.errors import BadFileError, reason_of

# Pillow may open only these: some of its other formats start external programs or read further files.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

# Equal to Pillow's default limit, above which it warns. Pillow's own check depends on the warning filters of the
# process and on Image.MAX_IMAGE_PIXELS, which the caller may have changed.
MAX_PIXELS = 89_478_485

_TIFF_BITS_PER_SAMPLE = 258
_TIFF_PHOTOMETRIC = 262
_TIFF_WHITE_IS_ZERO = 0
_TIFF_COLOR_MAP = 320
_TIFF_SAMPLE_FORMAT = 339
_TIFF_SIGNED = 2
_TIFF_YCBCR_SUBSAMPLING = 530

_ORIENTATION = 0x0112  # the same tag in EXIF and TIFF
_EXIF_INTEGERS = {3: "H", 4: "I"}  # EXIF type code of a field: code of the struct module
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_PNG_GRAY_BITS = {"L;2": 2, "L;4": 4, "L": 8}  # bits of a pixel by Pillow's raw mode


@dataclass(frozen=True)
class Decoded:
    """A decoded image.

    Attributes:
        pixels: uint8 (channels, image_size, image_size).
        size: (width, height) of the upright image before it is scaled.
    """

    pixels: np.ndarray
    size: tuple[int, int]


def decode_image(data: bytes, image_size: int, channels: int) -> np.ndarray:
    """Decode one image, scale its shorter side to `image_size`, and crop the square in its center.

    Args:
        data: content of the file, which also determines the format.
        image_size: side of the result in pixels, at least 1.
        channels: 1 (gray: ITU-R 601 luma) or 3 (RGB).

    Returns:
        uint8 array (channels, image_size, image_size).

    Raises:
        BadFileError: the bytes are not an image, are damaged, or have no defined 8-bit RGB value.

    Notes:
        Orientation: the one in EXIF is applied, or the one in XMP if EXIF has none. Other EXIF fields are not read, so
        damage to them has no effect.
        Transparency: the image is composited over white.
        Depth: 16-bit gray becomes round(value / 257). 32-bit integers must lie in 0..65535 and are treated as 16-bit;
        floats must lie in [0, 1]. Of 16-bit color, and of 16-bit gray with alpha, Pillow keeps only the high byte.
        Color: embedded color profiles are ignored, also in CMYK.
        Frames: the first one of an animation or of a file with several pages.
        Scaling: Lanczos with antialiasing. An image whose shorter side is `image_size` is only cropped.
    """
    return decode(data, image_size, channels).pixels


def decode(data: bytes, image_size: int, channels: int) -> Decoded:
    """Decode like :func:`decode_image`, and also return the size of the image before it is scaled."""
    if not data:
        raise BadFileError("the file is empty")
    try:
        with _open(data) as image:
            _check_header(image)
            upright = _upright(_load(image, data))
        square = _resize_and_crop(_flatten(upright).convert("L" if channels == 1 else "RGB"), image_size)
        return Decoded(np.asarray(square).reshape(image_size, image_size, channels).transpose(2, 0, 1), upright.size)
    except BadFileError:
        raise
    except UnidentifiedImageError:
        formats = ", ".join(_FORMATS)
        raise BadFileError(
            f"not an image, damaged at its start, of size 0 or of an unsupported pixel layout (supported: {formats})"
        ) from None
    # For damaged bytes Pillow raises almost any error: OSError, SyntaxError, struct.error, KeyError, MemoryError.
    except Exception as error:
        raise BadFileError(f"cannot be decoded: {reason_of(error)}") from error


class _Jpeg(JpegImagePlugin.JpegImageFile):
    """A JPEG, or the first frame of an MPO, whose resolution is not read from EXIF."""

    def _read_dpi_from_exif(self) -> None:
        """Do nothing: Pillow refuses the whole file if the resolution has the wrong type."""


def _open(data: bytes) -> Image.Image:
    if data.startswith(b"\xff\xd8\xff"):
        try:
            return _Jpeg(io.BytesIO(data))
        except SyntaxError as error:
            raise UnidentifiedImageError from error
    return Image.open(io.BytesIO(data), formats=_FORMATS)


def _check_header(image: Image.Image) -> None:
    """Refuse images that are too large or that Pillow decodes to wrong values, before any pixel is decoded."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadFileError(
            f"{width}x{height} pixels are above the limit of {MAX_PIXELS}, as in a decompression bomb; save it smaller"
        )
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        # Pillow decodes each of the following without an error, but to wrong values.
        white_is_zero = tags.get(_TIFF_PHOTOMETRIC, _TIFF_WHITE_IS_ZERO) == _TIFF_WHITE_IS_ZERO
        if image.mode.startswith("I;16") and (tags[_TIFF_BITS_PER_SAMPLE] != (16,) or white_is_zero):
            raise BadFileError("12-bit or white-is-zero TIFF is not supported; save it as 16-bit with black at zero")
        if image.mode == "F" and white_is_zero:
            raise BadFileError("white-is-zero float TIFF is not supported; save it with black at zero")
        if image.mode == "L" and _TIFF_SIGNED in tags.get(_TIFF_SAMPLE_FORMAT, ()):
            raise BadFileError("signed 8-bit TIFF is not supported; save it as unsigned")
        whole_colors = tags.get(_TIFF_YCBCR_SUBSAMPLING, (2, 2)) == (1, 1)  # (2, 2) is the default of the format
        if image.mode == "YCbCr" and not whole_colors:
            raise BadFileError("uncompressed YCbCr TIFF with subsampled color is not supported; save it as RGB")


def _load(image: Image.Image, data: bytes) -> Image.Image:
    """Decode the pixels of `image`, which was opened from the bytes `data`."""
    raw_mode = image.tile[0][3] if image.format == "PNG" and image.tile else None  # type: ignore[attr-defined]
    if image.format == "TIFF":
        # Pillow would also follow pointers to EXIF directories, and fail if they are broken.
        exif = image.getexif()
        for tag in set(exif) - {_ORIENTATION}:
            del exif[tag]
    image.load()
    if image.format == "TIFF" and image.mode in ("P", "PA"):
        colors = image.tag_v2[_TIFF_COLOR_MAP]  # type: ignore[attr-defined]
        # Some programs write 8-bit values into the 16-bit color map. Pillow keeps the high byte, so all would be black.
        if max(colors) < 256:
            image.putpalette(bytes(colors), "RGB;L")
    key = image.info.get("transparency")
    if key is None:
        return image
    # Pillow scales the pixels of a PNG to 8 bits, but not its transparent value, of which only the low bits count.
    if raw_mode in _PNG_GRAY_BITS:
        largest = 2 ** _PNG_GRAY_BITS[raw_mode] - 1
        image.info["transparency"] = (key & largest) * 255 // largest
    elif raw_mode == "RGB":
        image.info["transparency"] = tuple(value & 255 for value in key)
    elif raw_mode == "RGB;16B":
        # Pillow keeps only the high bytes of big-endian pixels. Decoded as little-endian, it keeps the low bytes.
        with Image.open(io.BytesIO(data), formats=("PNG",)) as low:
            low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
            values = np.asarray(image).astype(np.uint16) * 256 + np.asarray(low)
        del image.info["transparency"]
        image.putalpha(Image.fromarray(np.where((values == key).all(-1), 0, 255).astype(np.uint8)))
    return image


def _upright(image: Image.Image) -> Image.Image:
    """Apply the orientation stored in the file. Pillow applies that of a TIFF while decoding."""
    transpose = None if image.format == "TIFF" else _TRANSPOSES.get(_orientation(image.info))
    return image if transpose is None else image.transpose(transpose)


def _orientation(info: dict) -> int:
    """Return the orientation in the EXIF block, else that in the XMP packet, else 1.

    Pillow's EXIF parser is not used: it stops at the first damaged field, and real files have such fields before the
    orientation.
    """
    exif = info.get("exif", b"")
    if not exif and "Raw profile type exif" in info:  # ImageMagick stores EXIF in PNG as three lines of text, then hex
        try:
            exif = bytes.fromhex("".join(info["Raw profile type exif"].split("\n")[3:]))
        except ValueError:
            exif = b""
    found = _exif_orientation(exif)
    if found is None:
        xmp = info.get("XML:com.adobe.xmp") or info.get("xmp") or b""
        match = re.search(rb'tiff:Orientation(?:="|>)([0-9])', xmp.encode() if isinstance(xmp, str) else xmp)
        found = int(match[1]) if match else 1
    return found


def _exif_orientation(exif: bytes) -> int | None:
    """Return the orientation in the first directory: None if it has none, 0 if it is not an integer."""
    exif = re.sub(rb"^(Exif\0\0)+", b"", exif)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, length = struct.unpack_from(order + "HHI", exif, at)
            if tag == _ORIENTATION:
                code = _EXIF_INTEGERS.get(kind)
                # Values of more than four bytes are stored elsewhere.
                if code is None or not 1 <= length <= 4 // struct.calcsize(code):
                    return 0
                return struct.unpack_from(order + code, exif, at + 8)[0]
    except struct.error:  # the block is truncated
        pass
    return None


def _flatten(image: Image.Image) -> Image.Image:
    """Reduce each channel to 8 bits and composite transparency over white."""
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image).astype(np.int32)
        if values.min() < 0 or values.max() > 65535:
            raise BadFileError(f"integer pixels must lie in 0..65535, got {values.min()}..{values.max()}")
        levels = (values + 128) // 257
        if "transparency" in image.info:
            levels[values == image.info["transparency"]] = 255
        return Image.fromarray(levels.astype(np.uint8))
    if image.mode == "F":
        fractions = np.asarray(image)
        if not (fractions.min() >= 0 and fractions.max() <= 1):  # also true for NaN
            raise BadFileError(f"float pixels must lie in [0, 1], got {fractions.min()}..{fractions.max()}")
        return Image.fromarray(np.rint(fractions * 255).astype(np.uint8))
    if image.mode == "P" and image.palette is None:
        raise BadFileError("the palette is missing")
    # Pillow converts LAB only to RGB, and La (premultiplied alpha) only to LA.
    if image.mode == "LAB":
        return image.convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image


def _resize_and_crop(image: Image.Image, image_size: int) -> Image.Image:
    """Scale only the square in the center: scaling a very long image as a whole could exhaust the memory."""
    side = min(image.size)
    # Whole pixels, as an offset of half a pixel would blur an image that needs no scaling.
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return image.resize((image_size, image_size), Image.Resampling.LANCZOS, box=box)
