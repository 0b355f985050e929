"""Drawn image files: each decodes to what its pixels say, or is refused with its name and a reason."""

import os
import struct

import numpy as np
import pytest
from data.image_bytes import encode, exif_block, png
from drawn import seeds
from PIL import Image

from gan_fast.data import DataError, load_images

LOSSLESS = ("PNG", "TIFF", "WEBP", "BMP", "PPM")
DAMAGE = ("none", "none", "none", "cut", "flipped", "empty", "text")
NAMES = (b"a", b"caf\xc3\xa9", b"caf\xe9", b"\xff\xfe", b"two words", b"tab\there", b"%s{}\\")
TRANSPOSES = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
    8: lambda p: np.rot90(p, 1),
}


def draw_pixels(rng, channels):
    """Blocks of 8 pixels, which JPEG keeps nearly as they are."""
    small = rng.integers(0, 256, (*rng.integers(1, 6, 2), channels), dtype=np.uint8)
    return small.repeat(8, 0).repeat(8, 1)


def over_white(colour, alpha):
    alpha = alpha.astype(float) / 255
    return np.rint(colour * alpha + 255 * (1 - alpha))


def draw_file(rng):
    """Return the bytes, the RGB values they stand for (H, W, 3), and how far a pixel may be off."""
    kind = rng.choice(["grey", "colour", "alpha", "palette", "deep", "deep key", "few bits", "cmyk", "jpeg"])
    orientation = int(rng.integers(0, 10))
    upright = TRANSPOSES.get(orientation, TRANSPOSES[1])
    other = [(0x8769, 2, 1, 65), (0x010F, 2, 500, 9_999), (0x9999, 99, 1, 6)][rng.integers(3)]
    block = exif_block(*((other,) if rng.random() < 0.5 else ()), (0x0112, 3, 1, orientation))
    with_exif = {"exif": block} if rng.random() < 0.7 else {}
    if kind == "grey":
        pixels = draw_pixels(rng, 1)
        image_format = rng.choice(["PNG", "TIFF", "BMP", "PPM", "GIF"])
        options = with_exif if image_format == "PNG" else {}
        turned = upright(pixels) if options else pixels
        return encode(pixels[..., 0], str(image_format), **options), turned.repeat(3, 2), 0
    if kind == "colour":
        pixels, image_format = draw_pixels(rng, 3), str(rng.choice(LOSSLESS))
        options = with_exif if image_format in ("PNG", "WEBP") else {}
        if image_format == "TIFF" and 1 <= orientation <= 8:
            options = {"tiffinfo": {274: orientation}}
        turned = upright(pixels) if options else pixels
        return (
            encode(pixels, image_format, **options, **({"lossless": True} if image_format == "WEBP" else {})),
            turned,
            0,
        )
    if kind == "alpha":
        channels = int(rng.choice([2, 4]))
        pixels, image_format = draw_pixels(rng, channels), str(rng.choice(["PNG", "TIFF"]))
        options = with_exif if image_format == "PNG" else {}
        want = over_white(pixels[..., :-1], pixels[..., -1:])
        want = want.repeat(3, 2) if channels == 2 else want
        return encode(pixels, image_format, **options), upright(want) if options else want, 1
    if kind == "palette":
        indices, palette = draw_pixels(rng, 1) % 16, rng.integers(0, 256, (16, 3), dtype=np.uint8)
        alpha = rng.integers(0, 256, (16, 1), dtype=np.uint8)
        rows = b"".join(b"\0" + row.tobytes() for row in indices[..., 0])
        height, width = indices.shape[:2]
        data = png(width, height, rows, colour_type=3, palette=palette.tobytes(), transparency=alpha.tobytes())
        return data, over_white(palette, alpha)[indices[..., 0]], 1
    if kind in ("deep", "deep key"):
        channels = int(rng.choice([1, 3]))
        values = draw_pixels(rng, channels).astype(np.uint16) * 257 ^ rng.integers(0, 2, dtype=np.uint16)
        height, width = values.shape[:2]
        key = values[rng.integers(height), rng.integers(width)]
        want = (values.astype(int) + 128) // 257 if channels == 1 else values >> 8
        if kind == "deep key":
            want = np.where((values == key).all(-1, keepdims=True), 255, want)
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
        transparency = struct.pack(f">{channels}H", *map(int, key)) if kind == "deep key" else b""
        colour_type = 0 if channels == 1 else 2
        data = png(width, height, rows, depth=16, colour_type=colour_type, transparency=transparency)
        return data, want.repeat(3, 2) if channels == 1 else want, 0
    if kind == "few bits":
        depth = int(rng.choice([1, 2, 4]))
        values = draw_pixels(rng, 1)[..., 0] % 2**depth
        key = int(rng.integers(2**depth))
        bits = np.unpackbits(values[..., None], axis=-1)[..., 8 - depth :].reshape(len(values), -1)
        rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(bits, axis=1))
        want = np.where(values == key, 255, values.astype(int) * (255 // (2**depth - 1)))
        data = png(values.shape[1], values.shape[0], rows, depth=depth, transparency=struct.pack(">H", key))
        return data, want[..., None].repeat(3, 2), 0
    if kind == "cmyk":
        ink = draw_pixels(rng, 4)
        dark = 255 - ink[..., 3:].astype(int)
        return encode(Image.fromarray(ink, "CMYK"), "TIFF"), np.rint((255 - ink[..., :3].astype(int)) * dark / 255), 1
    pixels = draw_pixels(rng, 3)
    options = {"quality": 100, "subsampling": 0, "progressive": bool(rng.random() < 0.5)}
    return encode(pixels, "JPEG", **options, **with_exif), upright(pixels) if with_exif else pixels, 4


def damaged(rng, data, damage):
    if damage == "cut":
        return data[: rng.integers(1, len(data))]
    if damage == "flipped":
        at = int(rng.integers(len(data)))
        return data[:at] + bytes([data[at] ^ int(rng.integers(1, 256))]) + data[at + 1 :]
    return {"none": data, "empty": b"", "text": b"no image"}[damage]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", seeds(40))
def test_drawn_file(tmp_path, seed):
    rng = np.random.default_rng(seed)
    data, want, bound = draw_file(rng)
    damage = str(rng.choice(DAMAGE))
    name = NAMES[rng.integers(len(NAMES))] + b".png"
    with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:
        file.write(damaged(rng, data, damage))
    side = min(want.shape[:2])
    message = None
    try:
        loaded = load_images(tmp_path, image_size=side, channels=3)
    except DataError as error:
        message = str(error)
    if message is not None:
        assert damage != "none", message
        assert message.encode()  # any UTF-8 stream takes it
        assert repr(os.fsdecode(name)) in message
        assert "got: " in message
        return
    assert damage not in ("empty", "text")
    if damage == "none":
        top, left = (want.shape[0] - side) // 2, (want.shape[1] - side) // 2
        middle = want[top : top + side, left : left + side].transpose(2, 0, 1)
        got = loaded.images[0].numpy().astype(int)
        assert np.abs(got - middle).max() <= bound
