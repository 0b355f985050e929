"""What each kind of file becomes: exact pixels, for content that has one right answer."""

import struct
import warnings

import numpy as np
import pytest
from data.image_bytes import encode, picture, png, tiff
from PIL import Image

from gan_fast.data.decode import decode_image
from gan_fast.data.errors import BadFileError

DEEP = np.array([[0, 128], [129, 65535]], dtype=np.uint16)  # round(x / 257): 0, 0, 1, 255
DEEP_AS_8_BIT = [[0, 0], [1, 255]]


def grey(values):
    """Three equal channels."""
    return np.broadcast_to(np.array(values, dtype=np.uint8), (3, *np.shape(values)))


def colour(*pixel):
    """A 2x2 image of one colour."""
    return np.broadcast_to(np.array(pixel, dtype=np.uint8)[:, None, None], (3, 2, 2))


def solid(mode, value, image_format="PNG", **options):
    return encode(Image.new(mode, (2, 2), value), image_format, **options)


def palette(transparency=None):
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    return encode(image, "PNG", **({} if transparency is None else {"transparency": transparency}))


def deep_ppm():
    return b"P5 2 2 65535\n" + DEEP.astype(">u2").tobytes()


def deep_colour_png():
    pixel = struct.pack(">3H", 0x0A00, 0x14FF, 0x1E80)
    return png(2, 2, (b"\0" + 2 * pixel) * 2, depth=16, colour_type=2)


EXACT = {
    "16-bit png": (encode(DEEP), grey(DEEP_AS_8_BIT)),
    "16-bit png, nothing above 300": (encode(np.full((2, 2), 300, np.uint16)), grey([[1, 1], [1, 1]])),
    "16-bit tiff": (tiff(DEEP), grey(DEEP_AS_8_BIT)),
    "16-bit tiff, big-endian": (tiff(DEEP, order=">"), grey(DEEP_AS_8_BIT)),
    "16-bit tiff, signed": (tiff(np.full((2, 2), 257 * 9, np.int16)), grey([[9, 9], [9, 9]])),
    "16-bit pgm": (deep_ppm(), grey(DEEP_AS_8_BIT)),
    "16-bit colour png": (deep_colour_png(), colour(10, 20, 30)),
    "32-bit integer tiff": (tiff(DEEP.astype(np.int32)), grey(DEEP_AS_8_BIT)),
    "float tiff": (tiff(np.array([[0, 0.2], [0.5, 1]], np.float32)), grey([[0, 51], [128, 255]])),
    "1-bit": (solid("1", 1), colour(255, 255, 255)),
    "palette": (palette(), colour(10, 20, 30)),
    "palette, one index transparent": (palette(transparency=1), colour(255, 255, 255)),
    "palette, half transparent": (palette(transparency=b"\xff\x80"), colour(132, 137, 142)),
    "rgb, one colour transparent": (solid("RGB", (1, 2, 3), transparency=(1, 2, 3)), colour(255, 255, 255)),
    "rgba, opaque": (solid("RGBA", (10, 20, 30, 255)), colour(10, 20, 30)),
    "rgba, half": (solid("RGBA", (10, 20, 30, 128)), colour(132, 137, 142)),
    "rgba, invisible": (solid("RGBA", (10, 20, 30, 0)), colour(255, 255, 255)),
    "grey and alpha": (solid("LA", (55, 0)), colour(255, 255, 255)),
    "cmyk tiff": (solid("CMYK", (255, 0, 0, 0), "TIFF"), colour(0, 255, 255)),
    # With the Adobe marker and inverted ink, as Photoshop writes them.
    "cmyk jpeg": (solid("CMYK", (0, 255, 255, 0), "JPEG", quality=100), colour(255, 0, 0)),
    "gif, first frame": (
        encode(Image.new("L", (2, 2), 7), "GIF", save_all=True, append_images=[Image.new("L", (2, 2), 99)]),
        colour(7, 7, 7),
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_pixels(name):
    data, want = EXACT[name]
    got = decode_image(data, 2, 3)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_formats_are_exact(image_format, channels):
    pixels = picture(8, 8, channels)
    options = {"lossless": True} if image_format == "WEBP" else {}
    got = decode_image(encode(pixels, image_format, **options), 8, channels)
    np.testing.assert_array_equal(got, pixels.reshape(8, 8, channels).transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(mode, orientation):
    upright = np.arange(4 * 4, dtype=np.uint8).reshape(4, 4) * 15
    # What a camera stores for each orientation, written out here rather than taken from Pillow.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    pixels = {"L": stored, "RGB": np.stack([stored] * 3, -1), "I;16": stored.astype(np.uint16) * 257}[mode]
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = decode_image(encode(np.ascontiguousarray(pixels), exif=exif), 4, 1)
    np.testing.assert_array_equal(got[0], upright)


@pytest.mark.parametrize("shape", [(8, 12), (12, 8), (8, 13), (13, 8)])
def test_the_centre_is_cropped_without_blur(shape):
    pixels = picture(*shape, channels=1)
    top, left = (shape[0] - 8) // 2, (shape[1] - 8) // 2
    got = decode_image(encode(pixels), 8, 1)
    np.testing.assert_array_equal(got[0], pixels[top : top + 8, left : left + 8])


def test_downscaling_is_antialiased():
    checkerboard = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    got = decode_image(encode(checkerboard), 8, 1).astype(int)
    assert np.abs(got - 127.5).max() < 10


def test_a_very_long_image_needs_little_memory():
    # Scaling it whole before the crop would make 256 x 25,600,000 pixels.
    got = decode_image(encode(np.full((1, 100_000), 9, np.uint8)), 256, 1)
    assert (got == 9).all()


def test_forced_grey_is_luma():
    got = decode_image(encode(np.array([[[255, 0, 0], [0, 255, 0]]] * 2, np.uint8)), 2, 1)
    np.testing.assert_array_equal(got, [[[76, 150], [76, 150]]])


def test_only_image_formats_of_the_list_are_parsed():
    # Pillow would run Ghostscript on this one.
    with pytest.raises(BadFileError, match="not an image"):
        decode_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n", 8, 3)


@pytest.mark.parametrize("width", [9_500, 40_000])
@pytest.mark.parametrize("pillow_limit", [None, 1, 89_478_485])
def test_a_bomb_is_refused_whatever_pillow_is_set_to(monkeypatch, width, pillow_limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillow_limit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        filters = list(warnings.filters)
        with pytest.raises(BadFileError, match="decompression bomb"):
            decode_image(png(width, 9_500), 8, 3)
        assert warnings.filters == filters
    assert pillow_limit == Image.MAX_IMAGE_PIXELS
