"""Turn the bytes of one image file into a square uint8 array."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from gan_fast.data.errors import BadFileError, reason_of

# Pillow is told these and no others: some of its further formats start external programs or fetch other files.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

# Where Pillow begins to warn. A constant of our own, so that neither the warning filters of the process nor its
# setting of Image.MAX_IMAGE_PIXELS decide what is refused here.
MAX_PIXELS = 89_478_485

_TIFF_BITS_PER_SAMPLE = 258
_TIFF_PHOTOMETRIC = 262
_TIFF_WHITE_IS_ZERO = 0


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
        EXIF orientation is applied. Transparency is composited over white. 16-bit grey is rescaled,
        round(value / 257); 32-bit integer pixels are taken as 16-bit and float pixels as [0, 1], and are refused
        outside these ranges. Of 16-bit colour Pillow keeps the high byte. CMYK is converted without its colour
        profile, and other embedded profiles are ignored. Of an animation or a multi-page file the first frame is taken.
        Scaling is Lanczos with antialiasing; an image whose shorter side is already `image_size` is only cropped.
    """
    if not data:
        raise BadFileError("the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_header(image)
            upright = ImageOps.exif_transpose(image)
        square = _resize_and_crop(_flatten(upright).convert("L" if channels == 1 else "RGB"), image_size)
        return np.asarray(square).reshape(image_size, image_size, channels).transpose(2, 0, 1)
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


def _flatten(image: Image.Image) -> Image.Image:
    """Reduce to 8 bits a channel and composite transparency over white."""
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image).astype(np.int32)
        if values.min() < 0 or values.max() > 65535:
            raise BadFileError(f"integer pixels must lie in 0..65535, found {values.min()}..{values.max()}")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        fractions = np.asarray(image)
        if not (fractions.min() >= 0 and fractions.max() <= 1):  # written so that NaN is refused too
            raise BadFileError(f"float pixels must lie in [0, 1], found {fractions.min()}..{fractions.max()}")
        return Image.fromarray(np.rint(fractions * 255).astype(np.uint8))
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
