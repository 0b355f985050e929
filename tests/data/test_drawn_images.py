"""Random image files decode to their known pixels; randomly damaged files decode or are refused."""

import struct

import numpy as np
import pytest
from data.image_bytes import encode, exif, field, packed, png_of, tiff
from drawn import seeds
from PIL import Image

from gan_fast.data.decode import decode_image
from gan_fast.data.errors import BadFileError

pytestmark = [
    pytest.mark.usefixtures("end_the_run_on_a_hang"),
    # Pillow warns about many of these files.
    pytest.mark.filterwarnings("ignore"),
]


class RandomFile:
    """A random file.

    `data` are its bytes, `levels` the stored pixels (0..255) composited over white, `bound` the largest error that
    decoding may have, and `orientation` is the EXIF orientation.
    """

    def __init__(self, name, data, levels, bound=0.0, orientation=1):
        levels = np.asarray(levels, float)
        self.name, self.data, self.bound, self.orientation = name, data, bound, orientation
        self.levels = levels if levels.shape[-1] == 3 else np.repeat(levels, 3, -1)


def over_white(levels, alpha):
    """Composite levels (..., channels) over white with opacity (..., 1) in 0..1."""
    return levels * alpha + 255 * (1 - alpha)


def upright(stored, orientation):
    swapped = stored.swapaxes(0, 1)
    return {
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: swapped,
        6: swapped[:, ::-1],
        7: swapped[::-1, ::-1],
        8: swapped[::-1],
    }.get(orientation, stored)


def draw_exif(rng, order="<"):
    """Draw an orientation, which may be out of range, the field that states it, and other fields."""
    orientation = int(rng.integers(0, 11))
    others = []
    for _ in range(rng.integers(0, 4)):
        tag = int(rng.choice([0x010E, 0x010F, 0x011A, 0x0128, 0x0132, 0x8298, 0x8769, 0x8825, 0x927C, 0xA005, 0xC4A5]))
        count = int(rng.choice([0, 1, 2, 5, 0xFFFF, 0xFFFFFFFF]))
        others.append(field(tag, int(rng.integers(0, 14)), count, rng.bytes(4)))
    stated = [field(0x0112, int(rng.integers(3, 5)), 1, orientation, order)] if orientation != 10 else []
    return orientation, stated, others


def draw_exif_block(rng):
    order = str(rng.choice(["<", ">"]))
    orientation, stated, others = draw_exif(rng, order)
    fields = [*stated, *others]
    rng.shuffle(fields)
    return orientation, exif(*fields, order=order)


def draw_png(rng, shape):
    color_type = int(rng.choice([0, 0, 2, 2, 3, 4, 6]))
    depth = int(rng.choice({0: [1, 2, 4, 8, 16], 3: [1, 2, 4, 8]}.get(color_type, [8, 16])))
    largest = 2**depth - 1
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color_type]
    values = rng.integers(0, largest + 1, (*shape, samples))
    chunks, orientation, bound = {}, 1, 0.0
    levels = values * 255 / largest
    if depth == 16 and color_type != 0:
        levels = values // 256  # Pillow keeps only the high byte
    if rng.random() < 0.5:
        orientation, block = draw_exif_block(rng)
        chunks[b"eXIf"] = block[6:]
    if color_type == 3:
        palette = rng.integers(0, 256, (largest + 1, 3))
        chunks[b"PLTE"] = palette.astype(np.uint8).tobytes()
        opacity = np.full(largest + 1, 255)
        if rng.random() < 0.7:
            stated = int(rng.integers(1, largest + 2))
            opacity[:stated] = rng.choice([0, 255], stated) if rng.random() < 0.5 else rng.integers(0, 256, stated)
            chunks[b"tRNS"] = opacity[:stated].astype(np.uint8).tobytes()
            bound = 1.0
        levels = over_white(palette[values[..., 0]], opacity[values] / 255)
    elif color_type in (4, 6):
        levels, bound = over_white(levels[..., :-1], levels[..., -1:] / 255), 1.0
    elif rng.random() < 0.7:
        key = values[rng.integers(0, shape[0]), rng.integers(0, shape[1])].copy()
        chunks[b"tRNS"] = struct.pack(f">{samples}H", *key)
        if rng.random() < 0.5:  # a color that differs only in the lowest bit
            values[0, 0] = key ^ np.eye(samples, dtype=int)[0]
            levels[0, 0] = values[0, 0] // 256 if depth == 16 and samples == 3 else values[0, 0] * 255 / largest
        levels = np.where((values == key).all(-1, keepdims=True), 255, levels)
    interlaced = bool(rng.random() < 0.3)
    data = png_of(values, depth, color_type, chunks, interlaced=interlaced)
    return RandomFile(f"png {depth} bit, type {color_type}, {sorted(chunks)}", data, levels, bound, orientation)


def draw_tiff(rng, shape):
    order = str(rng.choice(["<", ">"]))
    kind = rng.choice(["u1", "u2", "i2", "i4", "f4", "white is zero", "la", "rgb", "rgb16", "rgba", "rgba16"])
    orientation, stated, others = draw_exif(rng, order) if rng.random() < 0.5 else (1, [], [])
    options = {"order": order, "fields": (*stated, *others)}
    bound = 0.0
    if kind in ("u1", "u2", "i2", "i4"):
        dtype = np.dtype(kind)
        largest = min(np.iinfo(dtype).max, 65535)
        values = rng.integers(0, largest + 1, shape)
        levels = values / (1 if kind == "u1" else 257)
        values = values.astype(dtype)
    elif kind == "f4":
        values = rng.random(shape, np.float32)
        levels = values * 255
    elif kind == "white is zero":
        values = rng.integers(0, 256, shape).astype(np.uint8)
        levels, options["photometric"] = 255 - values.astype(int), 0
    else:
        deep = kind.endswith("16")
        values = rng.integers(0, 65536 if deep else 256, (*shape, {"l": 2, "r": 4 if "a" in kind else 3}[kind[0]]))
        levels = values // 256 if deep else values
        options["photometric"] = 1 if kind == "la" else 2
        if "a" in kind:
            premultiplied = bool(rng.random() < 0.5)
            options["extra_samples"] = 2 - premultiplied
            if premultiplied:
                values = np.minimum(values, values[..., -1:])  # a premultiplied color is at most its opacity
                levels = values // 256 if deep else values
                levels, bound = levels[..., :-1] + 255 - levels[..., -1:], 2.0
            else:
                levels, bound = over_white(levels[..., :-1], levels[..., -1:] / 255), 1.0
        values = values.astype(np.uint16 if deep else np.uint8)
    levels = levels if np.ndim(levels) == 3 else np.asarray(levels)[..., None]
    return RandomFile(f"tiff {kind} {options}", tiff(values, **options), levels, bound, orientation)


def draw_packed_tiff(rng, shape):
    compression = str(rng.choice(["tiff_lzw", "tiff_adobe_deflate", "packbits"]))
    kind = rng.choice(["L", "RGB", "I;16"])
    if kind == "I;16":
        values = rng.integers(0, 65536, shape).astype(np.uint16)
        levels = values[..., None] / 257
    else:
        values = rng.integers(0, 256, shape if kind == "L" else (*shape, 3)).astype(np.uint8)
        levels = values[..., None] if kind == "L" else values
    orientation = int(rng.integers(1, 9))
    data = encode(values, "TIFF", compression=compression, tiffinfo={0x0112: orientation})
    return RandomFile(f"tiff {compression} {kind} {orientation}", data, levels, orientation=orientation)


def draw_ppm(rng, shape):
    height, width = shape
    magic = int(rng.integers(1, 7))
    samples = 3 if magic in (3, 6) else 1
    largest = 1 if magic in (1, 4) else int(rng.choice([1, 15, 254, 255, 256, 1023, 4095, 65535]))
    values = rng.integers(0, largest + 1, (*shape, samples))
    levels = 255 * (1 - values) if magic in (1, 4) else values * 255 / largest
    head = f"P{magic}\n# a comment\n{width} {height}\n" + (f"{largest}\n" if magic not in (1, 4) else "")
    if magic < 4:
        body = " ".join(map(str, values.ravel())).encode()
    elif magic == 4:
        body = b"".join(packed(values, 1))
    else:
        body = values.astype(np.uint8 if largest < 256 else ">u2").tobytes()
    # Gray with more than 8 bits is rounded twice: to 16 and to 8 bits.
    bound = 0.51 if largest > 255 and samples == 1 else 0.0
    return RandomFile(f"P{magic} {largest}", head.encode() + body, levels, bound)


def draw_gif(rng, shape):
    values = rng.integers(0, 8, shape).astype(np.uint8)
    palette = rng.integers(0, 256, (8, 3))
    image = Image.frombytes("P", shape[::-1], values.tobytes())
    image.putpalette(palette.astype(np.uint8).tobytes())
    levels = palette[values].astype(float)
    options = {"interlace": int(rng.integers(0, 2)), "optimize": False}
    if rng.random() < 0.5:
        options["transparency"] = int(rng.integers(0, 8))
        levels[values == options["transparency"]] = 255
    if rng.random() < 0.5:
        options |= {"save_all": True, "append_images": [Image.new("RGB", shape[::-1], (200, 0, 0))]}
    return RandomFile(f"gif {sorted(options)}", encode(image, "GIF", **options), levels)


def draw_bmp(rng, shape):
    height, width = shape
    if rng.random() < 0.5:
        values = rng.integers(0, 256, shape if rng.random() < 0.5 else (*shape, 3)).astype(np.uint8)
        return RandomFile(
            f"bmp {values.shape}", encode(values, "BMP"), values if values.ndim == 3 else values[..., None]
        )
    values = rng.integers(0, 256, (*shape, 4)).astype(np.uint8)  # blue, green, red, alpha
    down = bool(rng.random() < 0.5)
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, width, -height if down else height, 1, 32, 3, 0, 0, 0, 0, 0) + masks
    rows = values if down else values[::-1]
    data = b"BM" + struct.pack("<IHHI", 122 + values.size, 0, 0, 122) + header + b"BGRs" + bytes(48) + rows.tobytes()
    return RandomFile("bmp with alpha", data, over_white(values[..., 2::-1], values[..., 3:] / 255), 1.0)


def draw_webp(rng, shape):
    alpha = bool(rng.random() < 0.5)
    values = rng.integers(0, 256, (*shape, 4 if alpha else 3)).astype(np.uint8)
    options = {"lossless": True, "exact": True}
    orientation = 1
    if rng.random() < 0.5:
        orientation, options["exif"] = draw_exif_block(rng)
    levels = over_white(values[..., :3], values[..., 3:] / 255) if alpha else values
    return RandomFile(f"webp alpha {alpha}", encode(values, "WEBP", **options), levels, float(alpha), orientation)


def draw_jpeg(rng, shape):
    mode = str(rng.choice(["L", "RGB", "CMYK"]))
    bands = {"L": 1, "RGB": 3, "CMYK": 4}[mode]
    corners = rng.integers(0, 256, (2, 2, bands))  # smooth in between, so that compression loses little
    down, right = (np.stack([1 - part, part], -1) for part in (np.linspace(0, 1, size) for size in shape))
    values = np.rint(np.einsum("yi,xj,ijc->yxc", down, right, corners)).astype(np.uint8)
    levels = values if mode != "CMYK" else (255 - values[..., :3].astype(float)) * (255.0 - values[..., 3:]) / 255
    options = {"quality": 100, "progressive": bool(rng.random() < 0.5)}
    if mode == "RGB":
        options["subsampling"] = 0
    orientation = 1
    if rng.random() < 0.7:
        orientation, options["exif"] = draw_exif_block(rng)
    image = Image.frombytes(mode, shape[::-1], values.tobytes())
    return RandomFile(f"jpeg {mode} {sorted(options)}", encode(image, "JPEG", **options), levels, 5.0, orientation)


KINDS = [draw_png, draw_tiff, draw_packed_tiff, draw_ppm, draw_gif, draw_bmp, draw_webp, draw_jpeg]


def drawn(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(int(size) for size in rng.integers(1, 41, 2))
    return KINDS[seed % len(KINDS)](rng, shape), rng


@pytest.mark.parametrize("seed", seeds(64))
def test_random_file_has_the_right_pixels(seed):
    file, _ = drawn(seed)
    want = upright(file.levels, file.orientation)
    side = min(want.shape[:2])
    top, left = (want.shape[0] - side) // 2, (want.shape[1] - side) // 2
    want = want[top : top + side, left : left + side]
    got = decode_image(file.data, side, 3).astype(int).transpose(1, 2, 0)
    # A value halfway between two levels may be rounded either way.
    assert np.abs(got - want).max() <= max(file.bound, 0.5 + 1e-4), file.name
    luma = want @ [0.299, 0.587, 0.114]
    assert np.abs(decode_image(file.data, side, 1)[0] - luma).max() <= file.bound + 1, file.name


def damaged(data, rng):
    data = bytearray(data)
    at = int(rng.integers(0, len(data)))
    match int(rng.integers(0, 5)):
        case 0:
            del data[at:]
        case 1:
            for place in rng.integers(0, len(data), rng.integers(1, 6)):
                data[place] = int(rng.integers(0, 256))
        case 2:
            del data[at : at + int(rng.integers(1, 40))]
        case 3:
            data[at:at] = rng.bytes(int(rng.integers(1, 40)))
        case 4:  # in the header, which has sizes and types
            for place in rng.integers(0, min(len(data), 64), rng.integers(1, 4)):
                data[place] = int(rng.choice([0, 1, 127, 128, 255]))
    return bytes(data)


@pytest.mark.parametrize("seed", seeds(64))
def test_randomly_damaged_file_is_decoded_or_refused(seed):
    file, rng = drawn(seed)
    for channels in (1, 3):
        data = damaged(file.data, rng)
        try:
            got = decode_image(data, 8, channels)
        except BadFileError:
            continue
        assert got.shape == (channels, 8, 8)
        assert got.dtype == np.uint8
