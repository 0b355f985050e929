"""Turn the bytes of one image file into a square uint8 array."""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image, JpegImagePlugin, UnidentifiedImageError

from gan_fast.data.errors import BadFileError, reason_of

# Pillow is told these and no others: some of its further formats start external programs or fetch other files.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

# Where Pillow begins to warn. A constant of our own, so that neither the warning filters of the process nor its
# setting of Image.MAX_IMAGE_PIXELS decide what is refused here.
MAX_PIXELS = 89_478_485

_TIFF_BITS_PER_SAMPLE = 258
_TIFF_PHOTOMETRIC = 262
_TIFF_WHITE_IS_ZERO = 0
_TIFF_COLOR_MAP = 320
_TIFF_SAMPLE_FORMAT = 339
_TIFF_SIGNED = 2
_TIFF_YCBCR_SUBSAMPLING = 530

_ORIENTATION = 0x0112  # in EXIF as in TIFF
_EXIF_INTEGERS = {3: "H", 4: "I"}  # type code of a field: struct code
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_PNG_GREY_BITS = {"L;2": 2, "L;4": 4, "L": 8}  # by Pillow's raw mode


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
        The orientation in EXIF or, without one there, in XMP is applied; other EXIF fields are not read, so that damage
        to them does no harm. Transparency is composited over white. 16-bit grey is rescaled, round(value / 257);
        32-bit integer pixels are taken as 16-bit and float pixels as [0, 1], and are refused outside these ranges. Of
        16-bit color and 16-bit grey with alpha Pillow keeps the high byte. CMYK is converted without its colour
        profile, and other embedded profiles are ignored. Of an animation or a multi-page file the first frame is taken.
        Scaling is Lanczos with antialiasing; an image whose shorter side is already `image_size` is only cropped.
    """
    return decode(data, image_size, channels).pixels


def decode(data: bytes, image_size: int, channels: int) -> Decoded:
    """Decode as :func:`decode_image` does; the size that the image had comes along."""
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
            f"not an image, damaged at its start, of size 0 or of an unsupported pixel layout (read: {formats})"
        ) from None
    # On damaged bytes Pillow raises nearly anything: OSError, SyntaxError, struct.error, KeyError, MemoryError.
    except Exception as error:
        raise BadFileError(f"cannot be decoded: {reason_of(error)}") from error


class _Jpeg(JpegImagePlugin.JpegImageFile):
    """A JPEG, or the first frame of an MPO, whose EXIF Pillow does not parse."""

    def _read_dpi_from_exif(self) -> None:
        """Do nothing: on a resolution of the wrong type Pillow refuses the whole file."""


def _open(data: bytes) -> Image.Image:
    if data.startswith(b"\xff\xd8\xff"):
        try:
            return _Jpeg(io.BytesIO(data))
        except SyntaxError as error:
            raise UnidentifiedImageError from error
    return Image.open(io.BytesIO(data), formats=_FORMATS)


def _check_header(image: Image.Image) -> None:
    """Refuse, before any pixel is decoded, what would not fit in memory or would come out with wrong values."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadFileError(f"decompression bomb: {width}x{height} is more than {MAX_PIXELS} pixels")
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        # Pillow decodes each of these without an error, but to wrong values.
        white_is_zero = tags.get(_TIFF_PHOTOMETRIC, _TIFF_WHITE_IS_ZERO) == _TIFF_WHITE_IS_ZERO
        if image.mode.startswith("I;16") and (tags[_TIFF_BITS_PER_SAMPLE] != (16,) or white_is_zero):
            raise BadFileError("12-bit or white-is-zero TIFF is not read here; save it as 16-bit, black at zero")
        if image.mode == "F" and white_is_zero:
            raise BadFileError("white-is-zero float TIFF is not read here; save it black at zero")
        if image.mode == "L" and _TIFF_SIGNED in tags.get(_TIFF_SAMPLE_FORMAT, ()):
            raise BadFileError("signed 8-bit TIFF is not read here; save it unsigned")
        whole_colors = tags.get(_TIFF_YCBCR_SUBSAMPLING, (2, 2)) == (1, 1)  # (2, 2) is the default of the format
        if image.mode == "YCbCr" and not whole_colors:
            raise BadFileError("uncompressed YCbCr TIFF with subsampled color is not read here; save it as RGB")


def _load(image: Image.Image, data: bytes) -> Image.Image:
    """Decode the pixels of the file `data`, opened as `image`."""
    raw_mode = image.tile[0][3] if image.format == "PNG" and image.tile else None  # type: ignore[attr-defined]
    if image.format == "TIFF":
        # Pillow also follows pointers to EXIF directories here and fails on broken ones.
        exif = image.getexif()
        for tag in set(exif) - {_ORIENTATION}:
            del exif[tag]
    image.load()
    if image.format == "TIFF" and image.mode in ("P", "PA"):
        colors = image.tag_v2[_TIFF_COLOR_MAP]  # type: ignore[attr-defined]
        # Some programs write 8-bit values where TIFF has 16-bit ones, and Pillow takes the high byte: all black.
        if max(colors) < 256:
            image.putpalette(bytes(colors), "RGB;L")
    key = image.info.get("transparency")
    if key is None:
        return image
    # Pillow leaves the transparent value of a PNG in units of the file, of which the low bits count.
    if raw_mode in _PNG_GREY_BITS:
        largest = 2 ** _PNG_GREY_BITS[raw_mode] - 1
        image.info["transparency"] = (key & largest) * 255 // largest
    elif raw_mode == "RGB":
        image.info["transparency"] = tuple(value & 255 for value in key)
    elif raw_mode == "RGB;16B":
        # Pillow has decoded the high bytes only. Read as little-endian, the same file gives the low bytes.
        with Image.open(io.BytesIO(data), formats=("PNG",)) as low:
            low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
            values = np.asarray(image).astype(np.uint16) * 256 + np.asarray(low)
        del image.info["transparency"]
        image.putalpha(Image.fromarray(np.where((values == key).all(-1), 0, 255).astype(np.uint8)))
    return image


def _upright(image: Image.Image) -> Image.Image:
    """Turn the image by its orientation. Pillow has already turned a TIFF while decoding it."""
    turn = None if image.format == "TIFF" else _TURNS.get(_orientation(image.info))
    return image if turn is None else image.transpose(turn)


def _orientation(info: dict) -> int:
    """Return the orientation in the EXIF block, else that in the XMP packet, else 1.

    Pillow's reader stops at the first damaged field of EXIF, and real files have such fields before the orientation.
    """
    exif = info.get("exif", b"")
    if not exif and "Raw profile type exif" in info:  # how ImageMagick stores EXIF in PNG: three lines, then hex
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
    """Return the orientation in the first directory: None where there is none, 0 where it is not an integer."""
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
                # More than four bytes of values would lie elsewhere.
                if code is None or not 1 <= length <= 4 // struct.calcsize(code):
                    return 0
                return struct.unpack_from(order + code, exif, at + 8)[0]
    except struct.error:  # the block ends early
        pass
    return None


def _flatten(image: Image.Image) -> Image.Image:
    """Reduce to 8 bits a channel and composite transparency over white."""
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image).astype(np.int32)
        if values.min() < 0 or values.max() > 65535:
            raise BadFileError(f"integer pixels must lie in 0..65535, found {values.min()}..{values.max()}")
        levels = (values + 128) // 257
        if "transparency" in image.info:
            levels[values == image.info["transparency"]] = 255
        return Image.fromarray(levels.astype(np.uint8))
    if image.mode == "F":
        fractions = np.asarray(image)
        if not (fractions.min() >= 0 and fractions.max() <= 1):  # written so that NaN is refused too
            raise BadFileError(f"float pixels must lie in [0, 1], found {fractions.min()}..{fractions.max()}")
        return Image.fromarray(np.rint(fractions * 255).astype(np.uint8))
    if image.mode == "P" and image.palette is None:
        raise BadFileError("the palette is missing")
    # Pillow converts LAB to RGB and La to LA, but neither to anything else.
    if image.mode == "LAB":
        return image.convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image


def _resize_and_crop(image: Image.Image, image_size: int) -> Image.Image:
    """Resample the centre square only, so that a very long image never becomes a larger one on the way."""
    side = min(image.size)
    # Whole pixels: half a pixel of offset would blur an image that needs no scaling.
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return image.resize((image_size, image_size), Image.Resampling.LANCZOS, box=box)
