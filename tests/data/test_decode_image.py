"""decode_image: the exact pixels of every kind of file, where the right answer is known."""

import struct
import warnings

import numpy as np
import pytest
from data.image_bytes import encode, exif, field, picture, png, png_of, tiff
from PIL import Image, PngImagePlugin

from gan_fast.data.decode import decode_image
from gan_fast.data.errors import BadFileError

DEEP = np.array([[0, 128], [129, 65535]], dtype=np.uint16)  # round(x / 257): 0, 0, 1, 255
DEEP_AS_8_BIT = [[0, 0], [1, 255]]


def gray(values):
    """Return three equal channels."""
    return np.broadcast_to(np.array(values, dtype=np.uint8), (3, *np.shape(values)))


def solid_color(*pixel):
    """Return the pixels of a 2x2 image of one color."""
    return np.broadcast_to(np.array(pixel, dtype=np.uint8)[:, None, None], (3, 2, 2))


def solid(mode, value, image_format="PNG", **options):
    return encode(Image.new(mode, (2, 2), value), image_format, **options)


def palette(transparency=None):
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    return encode(image, "PNG", **({} if transparency is None else {"transparency": transparency}))


def deep_ppm():
    return b"P5 2 2 65535\n" + DEEP.astype(">u2").tobytes()


def deep_color_png():
    pixel = struct.pack(">3H", 0x0A00, 0x14FF, 0x1E80)
    return png(2, 2, (b"\0" + 2 * pixel) * 2, depth=16, color_type=2)


EXACT = {
    "16-bit png": (encode(DEEP), gray(DEEP_AS_8_BIT)),
    "16-bit png, nothing above 300": (encode(np.full((2, 2), 300, np.uint16)), gray([[1, 1], [1, 1]])),
    "16-bit tiff": (tiff(DEEP), gray(DEEP_AS_8_BIT)),
    "16-bit tiff, big-endian": (tiff(DEEP, order=">"), gray(DEEP_AS_8_BIT)),
    "16-bit tiff, signed": (tiff(np.full((2, 2), 257 * 9, np.int16)), gray([[9, 9], [9, 9]])),
    "16-bit pgm": (deep_ppm(), gray(DEEP_AS_8_BIT)),
    "16-bit color png": (deep_color_png(), solid_color(10, 20, 30)),
    "32-bit integer tiff": (tiff(DEEP.astype(np.int32)), gray(DEEP_AS_8_BIT)),
    "float tiff": (tiff(np.array([[0, 0.2], [0.5, 1]], np.float32)), gray([[0, 51], [128, 255]])),
    "1-bit": (solid("1", 1), solid_color(255, 255, 255)),
    "palette": (palette(), solid_color(10, 20, 30)),
    "palette, one index transparent": (palette(transparency=1), solid_color(255, 255, 255)),
    "palette, half transparent": (palette(transparency=b"\xff\x80"), solid_color(132, 137, 142)),
    "rgb, one color transparent": (solid("RGB", (1, 2, 3), transparency=(1, 2, 3)), solid_color(255, 255, 255)),
    "rgba, opaque": (solid("RGBA", (10, 20, 30, 255)), solid_color(10, 20, 30)),
    "rgba, half": (solid("RGBA", (10, 20, 30, 128)), solid_color(132, 137, 142)),
    "rgba, invisible": (solid("RGBA", (10, 20, 30, 0)), solid_color(255, 255, 255)),
    "gray and alpha": (solid("LA", (55, 0)), solid_color(255, 255, 255)),
    "cmyk tiff": (solid("CMYK", (255, 0, 0, 0), "TIFF"), solid_color(0, 255, 255)),
    # With the Adobe marker and inverted ink values, as Photoshop writes it.
    "cmyk jpeg": (solid("CMYK", (0, 255, 255, 0), "JPEG", quality=100), solid_color(255, 0, 0)),
    "gif, first frame": (
        encode(Image.new("L", (2, 2), 7), "GIF", save_all=True, append_images=[Image.new("L", (2, 2), 99)]),
        solid_color(7, 7, 7),
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_pixels_are_exact(name):
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
def test_exif_orientation_is_applied(mode, orientation):
    upright = np.arange(4 * 4, dtype=np.uint8).reshape(4, 4) * 15
    # What a camera stores for each orientation, written out so that the test does not rely on Pillow.
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
    block = Image.Exif()
    block[0x0112] = orientation
    got = decode_image(encode(np.ascontiguousarray(pixels), exif=block), 4, 1)
    np.testing.assert_array_equal(got[0], upright)


# Further fields that Pillow cannot write, cannot read, or at which it stops reading.
DAMAGED_FIELDS = {
    "empty text for a resolution": field(0x011A, 2, 1, b"\0"),
    "a byte for a resolution": field(0x011A, 1, 1, b"\7"),
    "a negative resolution": field(0x011A, 9, 1, -5),
    "text for a size": field(0x0100 + 0x0F00, 2, 4, b"abc\0"),
    "an endless text": field(0x010F, 2, 0xFFFFFFF0, b"\x08\0\0\0"),
    "text beyond the end": field(0x0110, 2, 100, b"\0\0\xff\x7f"),
    "an unknown type": field(0x010E, 99, 1, b"abcd"),
    "a directory beyond the end": field(0x8769, 4, 1, 0xFFFFFFF0),
    "a directory of negative offset": field(0x8769, 9, 1, -9),
    "a directory of text": field(0x8769, 2, 4, b"abc\0"),
    "a directory within itself": field(0x8825, 4, 1, 8),
    "interoperability without EXIF": field(0xA005, 4, 1, 8),
    "a maker's note": field(0x927C, 7, 4, b"FUJI"),
    "wrong text encoding": field(0x010D, 2, 4, b"\xff\xfe\xfd\0"),
}
QUADRANTS = np.kron(np.array([[16, 80], [144, 240]], np.uint8), np.ones((8, 8), np.uint8))  # each is one JPEG block
STORED = {
    1: QUADRANTS,
    2: QUADRANTS[:, ::-1],
    3: QUADRANTS[::-1, ::-1],
    4: QUADRANTS[::-1],
    5: QUADRANTS.T,
    6: np.rot90(QUADRANTS),
    7: QUADRANTS[::-1, ::-1].T,
    8: np.rot90(QUADRANTS, -1),
}
EXIF_FORMATS = {"JPEG": {"quality": 100}, "PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}}


def with_fields(pixels, image_format, *fields):
    pixels = np.ascontiguousarray(pixels)
    if image_format == "TIFF":
        return tiff(pixels, fields=fields)
    return encode(pixels, image_format, exif=exif(*fields), **EXIF_FORMATS[image_format])


def assert_near(got, want):
    assert np.abs(got.astype(int) - want).max() <= 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DAMAGED_FIELDS)
@pytest.mark.parametrize("image_format", EXIF_FORMATS)
def test_orientation_is_found_beside_damaged_fields(image_format, name):
    damaged = DAMAGED_FIELDS[name]
    for orientation, stored in STORED.items():
        stated = field(0x0112, 3, 1, orientation)
        assert_near(decode_image(with_fields(stored, image_format, stated, damaged), 16, 1)[0], QUADRANTS)
        if image_format != "TIFF":  # its directory also has the size and place of the pixels
            assert_near(decode_image(with_fields(stored, image_format, damaged, stated), 16, 1)[0], QUADRANTS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("image_format", EXIF_FORMATS)
@pytest.mark.parametrize(
    "stated",
    [
        field(0x0112, 3, 1, 0),
        field(0x0112, 3, 1, 9),
        field(0x0112, 3, 1, 65535),
        field(0x0112, 2, 2, b"6\0"),
        field(0x0112, 7, 1, b"\6"),
    ],
    ids=["0", "9", "65535", "text", "undefined"],
)
def test_orientation_out_of_range_is_ignored(image_format, stated):
    assert_near(decode_image(with_fields(QUADRANTS, image_format, stated), 16, 1)[0], QUADRANTS)


ROTATED = exif(field(0x0112, 3, 1, 6))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "block",
    [
        b"Exif\0\0",
        b"Exif\0\0II",
        b"Exif\0\0XX*\0" + ROTATED[10:],
        ROTATED[:14],
        ROTATED[:20],
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"noise" * 9,
        exif(field(0x010F, 2, 4, b"abc\0"))[:-5],
    ],
)
def test_broken_exif_block_is_ignored(image_format, block):
    data = encode(QUADRANTS, image_format, exif=block, **EXIF_FORMATS[image_format])
    assert_near(decode_image(data, 16, 1)[0], QUADRANTS)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [3, 4])
def test_orientation_is_read_in_both_byte_orders_and_integer_types(order, kind):
    block = exif(field(0x0112, kind, 1, 6, order), order=order)
    data = encode(np.ascontiguousarray(STORED[6]), exif=block)
    np.testing.assert_array_equal(decode_image(data, 16, 1)[0], QUADRANTS)


def xmp(orientation):
    return f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()


@pytest.mark.parametrize("image_format", EXIF_FORMATS)
def test_orientation_in_xmp_is_used_if_exif_has_none(image_format):
    options = dict(EXIF_FORMATS[image_format])
    if image_format == "TIFF":
        options["tiffinfo"] = {700: xmp(6)}
    elif image_format == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp(6).decode())
        options["pnginfo"] = text
    else:
        options["xmp"] = xmp(6)
    stored = np.ascontiguousarray(STORED[6])
    assert_near(decode_image(encode(stored, image_format, **options), 16, 1)[0], QUADRANTS)
    if image_format == "TIFF":
        options["tiffinfo"] = {700: xmp(6), 0x0112: 1}
    else:
        options["exif"] = exif(field(0x0112, 3, 1, 1))
    assert_near(decode_image(encode(QUADRANTS, image_format, **options), 16, 1)[0], QUADRANTS)


def test_orientation_in_png_text_of_imagemagick_is_applied():
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", f"\nexif\n{len(ROTATED):8}\n{ROTATED.hex()}\n")
    got = decode_image(encode(np.ascontiguousarray(STORED[6]), pnginfo=text), 16, 1)
    np.testing.assert_array_equal(got[0], QUADRANTS)


def test_orientation_of_a_tiff_is_applied_once():
    upright = picture(4, 6, 1)
    data = tiff(np.ascontiguousarray(np.rot90(upright)), fields=(field(0x0112, 3, 1, 6), field(0xA005, 4, 1, 8)))
    np.testing.assert_array_equal(decode_image(data, 4, 1)[0], upright[:, 1:5])


def over_white(color, alpha, largest=255):
    """Return a pixel with opacity `alpha` / `largest` composited over white."""
    return np.rint((np.array(color) * alpha + 255.0 * (largest - alpha)) / largest)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_transparent_value_of_a_gray_png_becomes_white(depth):
    largest = 2**depth - 1
    values = np.array([[0, 1], [largest - 1, largest]])
    for key in {0, 1, largest - 1, largest}:
        data = png_of(values[..., None], depth, 0, {b"tRNS": struct.pack(">H", key)})
        want = np.where(values == key, 255, np.rint(values * 255 / largest))
        np.testing.assert_array_equal(decode_image(data, 2, 1)[0], want)


def test_transparent_value_of_a_rotated_16_bit_png_becomes_white():
    values = np.array([[1, 2], [3, 4]]) * 257
    chunks = {b"eXIf": ROTATED[6:], b"tRNS": struct.pack(">H", 257)}
    np.testing.assert_array_equal(decode_image(png_of(values[..., None], 16, 0, chunks), 2, 1)[0], [[3, 255], [4, 2]])


@pytest.mark.parametrize("depth", [8, 16])
def test_transparent_color_of_an_rgb_png_becomes_white(depth):
    step = 257 if depth == 16 else 1
    key = np.array([10, 20, 30]) * step
    # One neighbor differs only in the lowest bit, which Pillow drops from 16-bit color.
    values = np.array([[key, [10 * step, 20 * step, 30 * step + 1]], [key[::-1], [0, 0, 0]]])
    got = decode_image(png_of(values, depth, 2, {b"tRNS": struct.pack(">3H", *key)}), 2, 3)
    want = values // step
    want[0, 0] = 255
    np.testing.assert_array_equal(got, want.transpose(2, 0, 1))


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("alphas", [b"\0", b"\xff\0", b"\x40\x80", b"\0\0"])
def test_transparent_palette_entries_are_composited_over_white(depth, alphas):
    palette = np.array([[10, 20, 30], [200, 100, 50]])
    values = np.array([[0, 1], [1, 0]])
    data = png_of(values[..., None], depth, 3, {b"PLTE": palette.astype(np.uint8).tobytes(), b"tRNS": alphas})
    opacity = list(alphas.ljust(2, b"\xff"))
    want = np.array([over_white(color, alpha) for color, alpha in zip(palette, opacity, strict=True)])[values]
    assert np.abs(decode_image(data, 2, 3).astype(int) - want.transpose(2, 0, 1)).max() <= 1


@pytest.mark.parametrize("alpha", [0, 1, 100, 255])
@pytest.mark.parametrize(
    ("depth", "color_type", "pixel"), [(8, 4, [50]), (16, 4, [50]), (8, 6, [50, 60, 70]), (16, 6, [50, 60, 70])]
)
def test_alpha_of_a_png_is_composited_over_white(depth, color_type, pixel, alpha):
    step = 257 if depth == 16 else 1
    values = np.broadcast_to(np.array([*pixel, alpha]) * step, (2, 2, len(pixel) + 1))
    got = decode_image(png_of(values, depth, color_type), 2, 3)
    assert np.abs(got.astype(int).transpose(1, 2, 0) - over_white(pixel, alpha)).max() <= 1


@pytest.mark.parametrize(("alpha", "premultiplied"), [(0, True), (0, False), (100, True), (100, False), (255, True)])
@pytest.mark.parametrize(("dtype", "pixel"), [(np.uint8, [50]), (np.uint8, [50, 60, 70]), (np.uint16, [50, 60, 70])])
def test_alpha_of_a_tiff_is_composited_over_white(dtype, pixel, alpha, premultiplied):
    stored = np.rint(np.array(pixel) * alpha / 255) if premultiplied else np.array(pixel)
    values = np.broadcast_to(np.array([*stored, alpha]) * (np.iinfo(dtype).max // 255), (2, 2, len(pixel) + 1))
    data = tiff(values.astype(dtype), photometric=1 if len(pixel) == 1 else 2, extra_samples=2 - premultiplied)
    got = decode_image(data, 2, 3)
    assert np.abs(got.astype(int).transpose(1, 2, 0) - over_white(pixel, alpha)).max() <= 2


def test_alpha_of_a_palette_image_is_composited_over_white():
    image = Image.new("PA", (2, 2), (1, 128))
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert np.abs(decode_image(encode(image, "TIFF"), 2, 3).astype(int) - solid_color(132, 137, 142)).max() <= 1


@pytest.mark.parametrize("factor", [1, 256, 257], ids=["8 bits", "high byte", "16 bits"])
def test_palette_of_a_tiff_is_read_in_8_and_16_bits(factor):
    palette = np.zeros((3, 256), "<u2")
    palette[:, :2] = np.array([[10, 200], [20, 100], [30, 50]]) * factor
    values = np.array([[0, 1], [1, 1]], np.uint8)
    length = len(tiff(values, photometric=3, fields=(bytes(12),)))
    data = tiff(values, photometric=3, fields=(field(320, 3, 768, struct.pack("<I", length)),)) + palette.tobytes()
    np.testing.assert_array_equal(decode_image(data, 2, 3)[:, 0], [[10, 200], [20, 100], [30, 50]])


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation_is_decoded(image_format):
    colors = np.array([[10, 20, 30], [200, 100, 50]])[picture(8, 8, 1) % 2]
    first = np.dstack([colors, np.kron([[0, 255], [255, 0]], np.ones((4, 4)))]).astype(np.uint8)
    later = [Image.new("RGBA", (8, 8), (200, 0, 0, 128)), Image.new("RGBA", (8, 8), (0, 200, 0, 255))]
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = encode(first, image_format, save_all=True, append_images=later, **options)
    want = np.where(first[..., 3:] == 0, 255, first[..., :3])
    np.testing.assert_array_equal(decode_image(data, 8, 3), want.transpose(2, 0, 1))


def test_first_image_of_an_mpo_is_decoded_and_rotated():
    frames = [Image.fromarray(np.ascontiguousarray(STORED[6])), Image.new("L", (16, 16), 99)]
    data = encode(frames[0], "MPO", save_all=True, append_images=frames[1:], quality=100, exif=ROTATED)
    assert_near(decode_image(data, 16, 1)[0], QUADRANTS)


@pytest.mark.parametrize("rgb", [(255, 0, 0), (20, 200, 90), (250, 250, 250), (0, 0, 0)])
@pytest.mark.parametrize("black", [0, 60])
def test_ycck_jpeg_has_the_right_colors(rgb, black):
    # Adobe stores 255 - ink, and YCCK applies the YCC transform to 255 minus the stored values, that is, to the ink.
    red, green, blue = 255 - np.array(rgb)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    ycc = [luma, 128 + (blue - luma) / 1.772, 128 + (red - luma) / 1.402]
    # Pillow stores CMYK inverted, with a marker that says CMYK. The marker is changed to YCCK below.
    pixel = tuple(255 - round(min(max(value, 0), 255)) for value in (*ycc, 255 - black))
    data = bytearray(encode(Image.new("CMYK", (16, 16), pixel), "JPEG", quality=100, subsampling=0))
    marker = data.index(b"\xff\xee\0\x0eAdobe")
    assert data[marker + 15] == 0
    data[marker + 15] = 2
    want = np.array(rgb) * (255 - black) / 255
    got = decode_image(bytes(data), 16, 3).astype(int)
    assert np.abs(got - want[:, None, None]).max() <= 4


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("mode", "pixel"), [("LAB", (128, 128, 128)), ("CMYK", (10, 20, 30, 40)), ("YCbCr", (90, 120, 140))]
)
def test_every_color_space_becomes_rgb_or_gray(mode, pixel, channels):
    data = encode(Image.new(mode, (2, 2), pixel), "TIFF")
    red, green, blue = decode_image(data, 2, 3).astype(int)
    luma = np.rint(0.299 * red + 0.587 * green + 0.114 * blue)
    got = decode_image(data, 2, channels).astype(int)
    assert np.abs(got - (luma if channels == 1 else [red, green, blue])).max() <= 1


@pytest.mark.parametrize(("magic", "samples"), [(b"P5", 1), (b"P6", 3)])
@pytest.mark.parametrize("largest", [1, 15, 200, 255, 256, 1023, 4095, 65535])
def test_largest_value_of_a_pgm_or_ppm_is_white(magic, samples, largest):
    values = np.linspace(0, largest, 4).astype(int).repeat(samples).reshape(2, 2, samples)
    raw = values.astype(np.uint8 if largest < 256 else ">u2").tobytes()
    got = decode_image(magic + b" 2 2 %d\n" % largest + raw, 2, samples)
    assert np.abs(got.transpose(1, 2, 0) - values * 255 / largest).max() <= 0.51


def test_alpha_of_a_bmp_is_composited_over_white():
    pixels = np.array([[[10, 20, 30, 0], [10, 20, 30, 255]]] * 2, np.uint8)
    masks = struct.pack("<4I", 0xFF, 0xFF00, 0xFF0000, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, 2, -2, 1, 32, 3, 16, 0, 0, 0, 0) + masks + b"BGRs" + bytes(48)
    data = b"BM" + struct.pack("<IHHI", 14 + 108 + 16, 0, 0, 14 + 108) + header + pixels.tobytes()
    np.testing.assert_array_equal(decode_image(data, 2, 3)[:, 0], [[255, 10], [255, 20], [255, 30]])


REFUSED = {
    "float, not a number": (tiff(np.array([[0, np.nan], [1, 1]], np.float32)), r"in \[0, 1\]"),
    "float, white at zero": (tiff(np.ones((2, 2), np.float32), photometric=0), "white-is-zero"),
    "signed 8-bit": (tiff(np.full((2, 2), -1, np.int8)), "signed 8-bit"),
    "YCbCr, subsampled": (
        tiff(np.full((2, 2, 3), 9, np.uint8), photometric=6, fields=(field(530, 3, 2, b"\2\0\2\0"),)),
        "subsampled",
    ),
    "png without its palette": (png_of(np.ones((2, 2, 1), int), 8, 3), "palette is missing"),
    "png of no width": (png(0, 2), "size 0"),
    "pgm of size 0": (b"P5 0 0 255\n", "size 0"),
    "jpeg, cut in its header": (encode(QUADRANTS, "JPEG")[:60], "Truncated File Read"),
    "progressive jpeg, cut": (encode(picture(40, 40), "JPEG", progressive=True)[:-30], "truncated"),
    "baseline jpeg, cut": (encode(picture(40, 40), "JPEG")[:-30], "truncated"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_file_without_defined_pixel_values_is_refused(name):
    data, reason = REFUSED[name]
    with pytest.raises(BadFileError, match=reason):
        decode_image(data, 2, 3)


@pytest.mark.parametrize("shape", [(8, 12), (12, 8), (8, 13), (13, 8)])
def test_center_is_cropped_without_blur(shape):
    pixels = picture(*shape, channels=1)
    top, left = (shape[0] - 8) // 2, (shape[1] - 8) // 2
    got = decode_image(encode(pixels), 8, 1)
    np.testing.assert_array_equal(got[0], pixels[top : top + 8, left : left + 8])


def test_downscaling_is_antialiased():
    checkerboard = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    got = decode_image(encode(checkerboard), 8, 1).astype(int)
    assert np.abs(got - 127.5).max() < 10


def test_very_long_image_is_not_scaled_as_a_whole():
    # Scaling the whole image would give 256 x 25,600,000 pixels.
    got = decode_image(encode(np.full((1, 100_000), 9, np.uint8)), 256, 1)
    assert (got == 9).all()


def test_color_becomes_luma_with_one_channel():
    got = decode_image(encode(np.array([[[255, 0, 0], [0, 255, 0]]] * 2, np.uint8)), 2, 1)
    np.testing.assert_array_equal(got, [[[76, 150], [76, 150]]])


def test_format_outside_of_the_list_is_not_opened():
    # Pillow would run Ghostscript for it.
    with pytest.raises(BadFileError, match="not an image"):
        decode_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n", 8, 3)


@pytest.mark.parametrize("width", [9_500, 40_000])
@pytest.mark.parametrize("pillow_limit", [None, 1, 89_478_485])
def test_bomb_is_refused_with_any_pillow_setting(monkeypatch, width, pillow_limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillow_limit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        filters = list(warnings.filters)
        with pytest.raises(BadFileError, match="decompression bomb"):
            decode_image(png(width, 9_500), 8, 3)
        assert warnings.filters == filters
    assert pillow_limit == Image.MAX_IMAGE_PIXELS
