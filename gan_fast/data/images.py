"""Decode a whole image data set into one tensor.

>>> from gan_fast.data import load_images
>>> data = load_images("digits", image_size=16)
>>> print(data)
1797 images, 1x16x16, 10 classes, from digits
>>> data.images.shape, data.labels.shape
(torch.Size([1797, 1, 16, 16]), torch.Size([1797]))
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from gan_fast.data.decode import Decoded, decode
from gan_fast.data.digits import load_digits
from gan_fast.data.errors import BadFileError, DataError, printable, quoted, require_int
from gan_fast.data.files import EXTENSIONS, ImageFile, Listing, SkippedFile, list_folder, list_zip, open_zip
from gan_fast.data.memory import available_bytes, in_words

# Threads that decode at the same time, which works because decoding releases the GIL. Each may hold one image at full
# size, so more of them would cost memory before they save time.
_MAX_WORKERS = 8

# Files in the threads' queue at a time, so that it stays short for millions of files.
_CHUNK_FILES = 1024

# Images that are enlarged by more than this factor are reported: little detail remains. Digits enlarged from 8 to 32
# pixels still look good.
_MAX_ENLARGEMENT = 4

_DIGITS_COUNT = 1797


@dataclass(frozen=True, eq=False)
class ImageData:
    r"""A decoded data set. `str()` of it is a one-line summary.

    Attributes:
        images: uint8 (N, C, H, W), contiguous, on the CPU. Pixels are 0..255; batches of them are scaled to [-1, 1].
        labels: int64 (N,), indices into `class_names`; None if there are no classes.
        class_names: sorted; () if there are no classes. Bytes that are not UTF-8 are written as `\xNN`.
        skipped: files that could not be used, each with `.name` and `.reason`.
        source: the argument of `load_images`.
        notes: one line each about runs of gan_fast that were left out, and about images that were enlarged a lot.
    """

    images: torch.Tensor
    labels: torch.Tensor | None
    class_names: tuple[str, ...]
    skipped: tuple[SkippedFile, ...]
    source: str
    notes: tuple[str, ...] = ()

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of a SHA-256 over pixels, labels and class names: equal for equal data, on any machine."""
        digest = hashlib.sha256()
        for tensor in (self.images, self.labels):
            # Dtype and shape come first, as data of different shapes can have the same bytes.
            digest.update(repr(None if tensor is None else (str(tensor.dtype), tuple(tensor.shape))).encode())
            if tensor is not None:
                digest.update(tensor.cpu().contiguous().numpy().data)
        digest.update(ascii(self.class_names).encode())
        return digest.hexdigest()[:16]

    def __str__(self) -> str:
        count, *shape = self.images.shape
        classes = _count(len(self.class_names), "class", "classes") if self.class_names else "no classes"
        skipped = f", {_count(len(self.skipped), 'file', 'files')} skipped" if self.skipped else ""
        size = "x".join(map(str, shape))
        return f"{_count(count, 'image', 'images')}, {size}, {classes}, from {printable(self.source)}{skipped}"


def load_images(
    source: str | os.PathLike[str],
    *,
    image_size: int,
    channels: int | None = None,
    bad_files: Literal["raise", "skip"] = "raise",
    max_skipped: int = 100,
    min_images: int = 1,
    progress: bool = False,
) -> ImageData:
    """Decode every image of a folder or zip to a square of the given size.

    Args:
        source: an image folder, a zip of one (read in place, never extracted), or "digits", the handwritten digits
            that are included in scikit-learn. A folder named digits is "./digits".
        image_size: side of the result in pixels, at least 1. The shorter side of an image is scaled to it, and the
            square in the center is cropped.
        channels: 1 (gray), 3 (RGB), or None: 1 if red, green and blue are equal in every pixel of all images, else 3.
        bad_files: "raise" stops at the first file that cannot be used; "skip" continues without it and records it.
        max_skipped: with "skip", the largest number of files to skip, at least 0.
        min_images: the smallest number of images that the caller can use, such as one batch, at least 1. If there are
            fewer files, none is decoded.
        progress: show a progress bar.

    Returns:
        `ImageData` in the order of the sorted paths: equal for a folder and a zip of it, on any number of cores.

    Raises:
        DataError: the source does not exist or has fewer than `min_images` images; a file cannot be used, or more than
            `max_skipped` files cannot; or the decoded images would not fit into memory.
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Notes:
        Files: those that end in .png .jpg .jpeg .webp .bmp .gif .tif .tiff .ppm .pgm, in upper or lower case. Other
        files, hidden files and __MACOSX are ignored. Folders of gan_fast runs are left out and listed in `notes`.
        Links are followed; a folder that is reached twice is read once.
        Classes: the class of an image is the first folder of its path inside the source, however many follow. If any
        image lies directly in the source, there are no classes. A class keeps its index if all its files are skipped.
        Files that cannot be used: damaged ones; more than 89,478,485 pixels or 256 MiB; zip entries that are encrypted,
        fail their CRC, are not compressed with store or deflate, or have a path that leads out of the archive.
        Pixel values: `gan_fast.data.decode.decode_image` documents orientation, transparency, bit depth and color.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"load_images: expected source type str or os.PathLike, got {type(source).__name__}")
    require_int("load_images", "image_size", image_size, minimum=1)
    require_int("load_images", "max_skipped", max_skipped, minimum=0)
    require_int("load_images", "min_images", min_images, minimum=1)
    if channels not in (None, 1, 3):
        raise ValueError(f"load_images: expected channels to be 1 (gray), 3 (RGB) or None, got {channels!r}")
    if bad_files not in ("raise", "skip"):
        raise ValueError(f'load_images: expected bad_files to be "raise" or "skip", got {bad_files!r}')

    path = os.fsdecode(source)
    if path == "digits":
        _require_count(path, _DIGITS_COUNT, min_images)
        # While they are scaled there are two copies in float32.
        _require_memory(_DIGITS_COUNT, image_size, 8 + (channels or 1))
        images, labels = load_digits(image_size, channels or 1)
        return ImageData(images, labels, tuple(map(str, range(10))), (), path)
    bad = _BadFiles(path, max_skipped if bad_files == "skip" else None)
    load = partial(
        _decode_all,
        path,
        image_size=image_size,
        channels=channels,
        bad_files=bad,
        min_images=min_images,
        progress=progress,
    )
    if os.path.isdir(path):
        return load(list_folder(path))
    if os.path.isfile(path):
        with open_zip(path) as archive:
            return load(list_zip(archive))
    have = quoted(path) if os.path.exists(path) else f"{quoted(path)}, which does not exist"
    raise DataError(f'load_images: expected source to be "digits", an image folder or a .zip file, got {have}')


class _BadFiles:
    """Collects the files that cannot be used, and raises above `max_skipped` of them; None allows none."""

    def __init__(self, source: str, max_skipped: int | None) -> None:
        self.source = source
        self.max_skipped = max_skipped
        self.skipped: list[SkippedFile] = []

    def add(self, bad: SkippedFile) -> None:
        if self.max_skipped is None:
            raise DataError(
                f"load_images: expected source {quoted(self.source)} to hold usable images only, got "
                f'{quoted(bad.name)}: {bad.reason}; repair or remove the file, or pass bad_files="skip"'
            )
        self.skipped.append(bad)
        if len(self.skipped) > self.max_skipped:
            raise DataError(
                f"load_images: expected source {quoted(self.source)} to hold at most max_skipped={self.max_skipped} "
                f"files that cannot be used, got {len(self.skipped)} and stopped: {self.summary()}"
            )

    def summary(self) -> str:
        shown = [f"{quoted(bad.name)}: {bad.reason}" for bad in self.skipped[:3]]
        more = len(self.skipped) - len(shown)
        return "; ".join(shown + [f"and {more} more"] * (more > 0))


def _decode_all(
    source: str,
    listing: Listing,
    *,
    image_size: int,
    channels: int | None,
    bad_files: _BadFiles,
    min_images: int,
    progress: bool,
) -> ImageData:
    for refused in listing.refused:
        bad_files.add(refused)
    files = listing.files
    in_classes = all(len(file.parts) > 1 for file in files)
    class_names = sorted({file.parts[0] for file in files}) if in_classes else []
    class_index = {name: index for index, name in enumerate(class_names)}

    # Check these before decoding, which may take hours.
    if files:
        _require_count(source, len(files), min_images)
    _require_memory(len(files), image_size, channels or 3)
    pixels = np.empty((len(files), channels or 3, image_size, image_size), dtype=np.uint8)
    labels: list[int] = []
    enlarged = _EnlargedImages(image_size)
    decode_one = partial(_decode_file, image_size=image_size, channels=channels or 3)
    with (
        ThreadPoolExecutor(min(_MAX_WORKERS, os.cpu_count() or 1)) as pool,
        tqdm(total=len(files), desc="decode", unit="file", disable=not progress) as bar,
    ):
        for start in range(0, len(files), _CHUNK_FILES):
            chunk = files[start : start + _CHUNK_FILES]
            for file, decoded in zip(chunk, pool.map(decode_one, chunk), strict=True):
                bar.update()
                if isinstance(decoded, SkippedFile):
                    bad_files.add(decoded)
                else:
                    pixels[len(labels)] = decoded.pixels
                    enlarged.add(file.name, decoded.size)
                    labels.append(class_index.get(file.parts[0], -1))
    if not labels:
        found = (
            f"only {len(bad_files.skipped)} files that cannot be used: {bad_files.summary()}"
            if bad_files.skipped
            else "none"
        )
        if listing.runs:
            found += f"; left out {', '.join(map(_run_name, listing.runs[:3]))}"
        raise DataError(
            f"load_images: expected source {quoted(source)} to hold at least one image "
            f"({' '.join(EXTENSIONS)}), got {found}"
        )

    _require_count(source, len(labels), min_images)
    images = torch.from_numpy(pixels[: len(labels)])
    if channels is None and torch.equal(images[:, 0], images[:, 1]) and torch.equal(images[:, 0], images[:, 2]):
        images = images[:, :1].contiguous()
    notes = [f"left out {_run_name(run)}" for run in listing.runs]
    return ImageData(
        images,
        torch.tensor(labels) if class_names else None,
        tuple(map(printable, class_names)),
        tuple(bad_files.skipped),
        source,
        tuple(notes + enlarged.notes()),
    )


def _run_name(folder: str) -> str:
    if folder == ".":
        return "the samples and curves of the gan_fast run in the source folder itself"
    return f"{printable(folder)}: the folder of a gan_fast run"


class _EnlargedImages:
    """Counts the images that were enlarged more than `_MAX_ENLARGEMENT` times, for one note about all of them."""

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size
        self.count = 0
        self.smallest: tuple[int, str, tuple[int, int]] | None = None

    def add(self, name: str, size: tuple[int, int]) -> None:
        side = min(size)
        if side * _MAX_ENLARGEMENT >= self.image_size:
            return
        self.count += 1
        if self.smallest is None or side < self.smallest[0]:
            self.smallest = side, name, size

    def notes(self) -> list[str]:
        if self.smallest is None:
            return []
        side, name, (width, height) = self.smallest
        return [
            f"{_count(self.count, 'image is', 'images are')} enlarged more than {_MAX_ENLARGEMENT} times to "
            f"{self.image_size} pixels, the smallest {self.image_size / side:.3g} times: {printable(name)} of "
            f"{width}x{height} pixels"
        ]


def _require_count(source: str, count: int, min_images: int) -> None:
    if count < min_images:
        raise DataError(
            f"load_images: expected source {quoted(source)} to hold at least {min_images} images, which a batch needs, "
            f"got {count}; add images, or lower batch_size to at most {count}"
        )


def _require_memory(count: int, image_size: int, bytes_per_pixel: int) -> None:
    # Otherwise the kernel would grant the memory, and kill the process when it runs out in the middle of decoding.
    needed, available = count * image_size**2 * bytes_per_pixel, available_bytes()
    if available is not None and needed > available:
        raise DataError(
            f"load_images: expected source to fit into memory, got {count} images at image_size {image_size}, which "
            f"need {in_words(needed)}, while {in_words(available)} are available; lower image_size, or use fewer images"
        )


def _decode_file(file: ImageFile, image_size: int, channels: int) -> Decoded | SkippedFile:
    try:
        return decode(file.read(), image_size, channels)
    except BadFileError as error:
        return SkippedFile(file.name, str(error))


def _count(number: int, singular: str, plural: str) -> str:
    return f"{number} {singular if number == 1 else plural}"
