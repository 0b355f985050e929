"""Image files and archives made in memory, for the tests of this folder."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(pixels: np.ndarray | Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def png(
    width: int,
    height: int,
    rows: bytes = b"",
    *,
    depth: int = 8,
    colour_type: int = 0,
    palette: bytes = b"",
    transparency: bytes = b"",
) -> bytes:
    """A PNG with a header of our choice, such as sizes that no encoder would write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    optional = [chunk(kind, content) for kind, content in ((b"PLTE", palette), (b"tRNS", transparency)) if content]
    body = chunk(b"IHDR", header) + b"".join(optional) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def exif_block(*entries: tuple[int, int, int, int]) -> bytes:
    """EXIF of one directory of (tag, type, count, value or offset), sound or not."""
    body = b"Exif\0\0II" + struct.pack("<HIH", 42, 8, len(entries))
    return body + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)


def tiff(pixels: np.ndarray, *, order: str = "<", bits: int | None = None, photometric: int = 1) -> bytes:
    """A one-strip grey TIFF of the depth and sign of `pixels`, which Pillow itself cannot write in every case."""
    strip = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    height, width = pixels.shape
    sample_format = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    tags = {
        256: width,
        257: height,
        258: bits or pixels.dtype.itemsize * 8,
        259: 1,
        262: photometric,
        273: 8,
        277: 1,
        278: height,
        279: len(strip),
        339: sample_format,
    }
    data = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", 42, 8 + len(strip)) + strip
    data += struct.pack(order + "H", len(tags))
    for tag, value in tags.items():
        data += struct.pack(order + "HHIHH", tag, 3, 1, value, 0)
    return data + bytes(4)


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def write_zip(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def patch_zip(path: Path, local: tuple[int, bytes], central: tuple[int, bytes]) -> Path:
    """Overwrite bytes at an offset inside every local and every central header."""
    data = bytearray(path.read_bytes())
    for signature, (offset, value) in ((b"PK\3\4", local), (b"PK\1\2", central)):
        at = data.find(signature)
        while at >= 0:
            data[at + offset : at + offset + len(value)] = value
            at = data.find(signature, at + 4)
    path.write_bytes(data)
    return path
