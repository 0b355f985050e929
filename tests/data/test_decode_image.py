"""What each kind of file becomes: exact pixels, for content that has one right answer."""

import struct
import warnings

import numpy as np
import pytest
from data.image_bytes import encode, exif_block, picture, png, tiff
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


SIDEWAYS = (0x0112, 3, 1, 6)
# With Pillow 13 these can be read and not all of them be written again.
EXIF_BLOCKS = {
    "no other tag": (exif_block(SIDEWAYS), True),
    "a tag of unknown type": (exif_block(SIDEWAYS, (0x9999, 99, 1, 6)), True),
    "a directory that is text": (exif_block(SIDEWAYS, (0x8769, 2, 1, 65)), True),
    "a directory beyond the end": (exif_block(SIDEWAYS, (0x8769, 4, 1, 99_999)), True),
    "a directory within itself": (exif_block(SIDEWAYS, (0x8825, 4, 1, 8)), True),
    "text beyond the end": (exif_block((0x010F, 2, 500, 9_999), SIDEWAYS), True),
    "orientation as a byte": (exif_block((0x0112, 1, 1, 6)), True),
    "fewer tags than it counts": (exif_block(SIDEWAYS)[:14] + b"\xff" + exif_block(SIDEWAYS)[15:], True),
    "cut short": (exif_block((0x010F, 2, 500, 9_999), SIDEWAYS)[:-12], False),
    "orientation as a long": (exif_block((0x0112, 4, 1, 6)), True),
    "orientation 0": (exif_block((0x0112, 3, 1, 0)), False),
    "orientation 9": (exif_block((0x0112, 3, 1, 9)), False),
    "orientation as text": (exif_block((0x0112, 2, 1, ord("6"))), False),
    "no block": (b"", False),
    "a signature only": (b"Exif\0\0", False),
    "no TIFF": (b"Exif\0\0XX", False),
    "a first directory beyond the end": (b"Exif\0\0II*\0\xff\xff\xff\xff", False),
    "not EXIF": (b"garbage" * 9, False),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, when it opens a JPEG
@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("case", EXIF_BLOCKS)
def test_orientation_counts_whatever_else_is_in_the_block(case, image_format):
    block, turned = EXIF_BLOCKS[case]
    upright = np.kron(np.arange(16, dtype=np.uint8).reshape(4, 4) * 15, np.ones((16, 16), np.uint8))
    stored = np.ascontiguousarray(np.rot90(upright))
    options = {"lossless": True} if image_format == "WEBP" else {"quality": 100}
    got = decode_image(encode(stored, image_format, exif=block, **options), 64, 1)[0]
    np.testing.assert_allclose(got, upright if turned else stored, atol=12)  # JPEG


@pytest.mark.parametrize("image_format", ["JPEG", "WEBP", "TIFF"])
def test_orientation_in_xmp(image_format):
    upright = np.kron(np.arange(16, dtype=np.uint8).reshape(4, 4) * 15, np.ones((16, 16), np.uint8))
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    options = {"tiffinfo": {700: xmp}} if image_format == "TIFF" else {"xmp": xmp, "quality": 100}
    got = decode_image(encode(np.ascontiguousarray(np.rot90(upright)), image_format, **options), 64, 1)[0]
    np.testing.assert_allclose(got, upright, atol=16)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_orientation(orientation):
    upright = np.arange(16, dtype=np.uint8).reshape(4, 4) * 15
    turned_back = {6: 1, 8: -1, 3: 2}
    stored = np.rot90(upright, turned_back[orientation]) if orientation in turned_back else upright
    got = decode_image(encode(np.ascontiguousarray(stored), "TIFF", tiffinfo={274: orientation}), 4, 1)[0]
    want = {2: upright[:, ::-1], 4: upright[::-1], 5: upright.T, 7: upright[::-1, ::-1].T}.get(orientation, upright)
    np.testing.assert_array_equal(got, want)


def samples(depth, *values):
    """Two rows of two pixels, each row with its filter byte."""
    if depth == 16:
        return b"".join(b"\0" + struct.pack(f">{len(values) // 2}H", *row) for row in halves(values))
    if depth == 8:
        return b"".join(b"\0" + bytes(row) for row in halves(values))
    return b"".join(bytes([0, a << 8 - depth | b << 8 - 2 * depth]) for a, b in halves(values))


def halves(values):
    return values[: len(values) // 2], values[len(values) // 2 :]


def trns(*values):
    return struct.pack(f">{len(values)}H", *values)


# depth, colour type, samples, tRNS, palette; the red channel of the four pixels.
TRANSPARENT_PNGS = {
    "1-bit grey": (1, 0, (0, 1, 1, 0), trns(0), b"", [255, 255, 255, 255]),
    "2-bit grey": (2, 0, (0, 1, 2, 3), trns(1), b"", [0, 255, 170, 255]),
    "4-bit grey": (4, 0, (0, 1, 2, 15), trns(2), b"", [0, 17, 255, 255]),
    "4-bit grey, bits above the depth": (4, 0, (0, 1, 2, 15), trns(0x7712), b"", [0, 17, 255, 255]),
    "8-bit grey": (8, 0, (0, 9, 10, 11), trns(9), b"", [0, 255, 10, 11]),
    "8-bit grey, bits above the depth": (8, 0, (0, 9, 10, 11), trns(0x0109), b"", [0, 255, 10, 11]),
    "16-bit grey": (16, 0, (0, 257 * 9, 257 * 9 + 1, 257 * 50), trns(257 * 9), b"", [0, 255, 9, 50]),
    "16-bit grey, black": (16, 0, (0, 1, 257, 65535), trns(0), b"", [255, 0, 1, 255]),
    "8-bit colour": (8, 2, (1, 2, 3, 1, 2, 4, 9, 9, 9, 0, 0, 0), trns(1, 2, 3), b"", [255, 1, 9, 0]),
    "16-bit colour": (
        *(16, 2, (0x0A01, 2, 3, 0x0A02, 2, 3, 0x0A01, 2, 4, 0x0A00, 0, 0), trns(0x0A01, 2, 3), b""),
        [255, 10, 10, 10],
    ),
    "palette": (2, 3, (0, 1, 2, 3), b"\xff\0\x80", b"abcdefghijkl", [97, 255, 179, 106]),
    "8-bit grey and alpha": (8, 4, (9, 255, 9, 0, 9, 128, 0, 255), b"", b"", [9, 255, 132, 0]),
    "16-bit grey and alpha": (
        *(16, 4, (257 * 9, 65535, 257 * 9, 0, 257 * 9, 257 * 128, 0, 65535), b"", b""),
        [9, 255, 132, 0],
    ),
    "16-bit colour and alpha": (
        *(16, 6, (*(257 * v for v in (9, 9, 9, 255, 9, 9, 9, 0, 9, 9, 9, 128, 0, 0, 0, 255)),), b"", b""),
        [9, 255, 132, 0],
    ),
}


@pytest.mark.parametrize("name", TRANSPARENT_PNGS)
@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_pngs(name, channels):
    depth, colour_type, values, transparency, palette, want = TRANSPARENT_PNGS[name]
    rows = samples(depth, *values)
    data = png(2, 2, rows, depth=depth, colour_type=colour_type, palette=palette, transparency=transparency)
    got = decode_image(data, 2, channels)
    if channels == 3:
        assert got[0].flatten().tolist() == want
    else:
        assert ((got.flatten() == 255) == (np.array(want) == 255)).all()


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
