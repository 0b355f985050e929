"""Functions that make image files and archives for the tests in this folder."""

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
    color_type: int = 0,
    chunks: dict[bytes, bytes] | None = None,
    interlaced: bool = False,
) -> bytes:
    """Return a PNG with any header and chunks, also ones that no encoder would write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, interlaced)
    body = chunk(b"IHDR", header) + b"".join(chunk(kind, content) for kind, content in (chunks or {}).items())
    body += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]


def packed(samples: np.ndarray, depth: int) -> list[bytes]:
    """Return the rows with `depth` bits per sample, each padded to whole bytes."""
    bits = np.unpackbits(samples.astype(">u2").reshape(len(samples), -1, 1).view(np.uint8), axis=2)[..., 16 - depth :]
    return [row.tobytes() for row in np.packbits(bits.reshape(len(samples), -1), axis=1)]


def png_of(
    samples: np.ndarray,
    depth: int,
    color_type: int,
    chunks: dict[bytes, bytes] | None = None,
    *,
    interlaced: bool = False,
) -> bytes:
    """Return a PNG of `samples`, (height, width, samples per pixel), of `depth` bits each."""
    height, width = samples.shape[:2]
    passes = ADAM7 if interlaced else [(0, 0, 1, 1)]
    parts = [samples[top::down, left::right] for top, left, down, right in passes]
    rows = b"".join(b"\0" + row for part in parts if part.size for row in packed(part, depth))
    return png(width, height, rows, depth=depth, color_type=color_type, chunks=chunks, interlaced=interlaced)


def field(tag: int, kind: int, count: int, value: int | bytes, order: str = "<") -> bytes:
    """Return one entry of an EXIF or TIFF directory."""
    if isinstance(value, int):
        value = struct.pack(order + {3: "H", 4: "I", 9: "i"}[kind], value)
    return struct.pack(order + "HHI", tag, kind, count) + value.ljust(4, b"\0")


def exif(*fields: bytes, order: str = "<") -> bytes:
    """Return an EXIF block with one directory."""
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IH", 8, len(fields))
    return b"Exif\0\0" + head + b"".join(fields) + bytes(4)


def tiff(
    pixels: np.ndarray,
    *,
    order: str = "<",
    bits: int | None = None,
    photometric: int = 1,
    extra_samples: int | None = None,
    fields: tuple[bytes, ...] = (),
) -> bytes:
    """Return a TIFF with one strip that has the dtype of `pixels`; Pillow cannot write all of these.

    `pixels` is (height, width) or (height, width, samples per pixel). `fields` come last in the directory.
    """
    strip = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    height, width = pixels.shape[:2]
    samples = 1 if pixels.ndim == 2 else pixels.shape[2]
    sample_format = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    tags = {
        256: width,
        257: height,
        258: bits or pixels.dtype.itemsize * 8,
        259: 1,
        262: photometric,
        273: 8,
        277: samples,
        278: height,
        279: len(strip),
        339: sample_format,
    }
    if extra_samples is not None:
        tags[338] = extra_samples
    data = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", 42, 8 + len(strip)) + strip
    data += struct.pack(order + "H", len(tags) + len(fields))
    for tag, value in tags.items():
        data += field(tag, 3, 1, value, order)
    return data + b"".join(fields) + bytes(4)


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
    """Overwrite bytes at an offset in every local header and in every central header of a zip."""
    data = bytearray(path.read_bytes())
    for signature, (offset, value) in ((b"PK\3\4", local), (b"PK\1\2", central)):
        at = data.find(signature)
        while at >= 0:
            data[at + offset : at + offset + len(value)] = value
            at = data.find(signature, at + 4)
    path.write_bytes(data)
    return path
