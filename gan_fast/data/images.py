"""Load a whole image data set from wherever it is."""

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

# Decoding releases the GIL; each worker may hold a full-size image, so more would cost memory before it gains time.
_MAX_WORKERS = 8

# Files handed to the workers at once: bounds what waits in the queue when there are millions of them.
_CHUNK_FILES = 1024

# Enlarged by more than this an image has little of its own to show; digits of 8 pixels at 32 are still fine.
_MAX_ENLARGEMENT = 4

_DIGITS = 1797


@dataclass(frozen=True, eq=False)
class ImageData:
    """A decoded data set; `str()` of it is one line for a log.

    Attributes:
        images: uint8 (N, C, H, W), contiguous, on the CPU.
        labels: int64 (N,), index into `class_names`; None where there are no classes.
        class_names: Sorted; () where there are no classes. Bytes that are not UTF-8 are written as `\\xNN`.
        skipped: Files left out, each with `.name` and `.reason`.
        source: What was asked for.
        notes: What a person should know of the data, a line each: runs that were left out, images that are too small.
    """

    images: torch.Tensor
    labels: torch.Tensor | None
    class_names: tuple[str, ...]
    skipped: tuple[SkippedFile, ...]
    source: str
    notes: tuple[str, ...] = ()

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of a SHA-256 over pixels, labels and class names: equal data have equal ones anywhere."""
        digest = hashlib.sha256()
        for tensor in (self.images, self.labels):
            # A header before each part, so that no two data sets are the same bytes.
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
    """Decode every image of a source once, to squares of one size.

    Args:
        source: "digits" (handwritten digits that come with scikit-learn; "./digits" is a folder of that name), an
            image folder, or a zip of one, which is read in place and never extracted.
        image_size: Side of the result in pixels, >= 1. The shorter side is scaled to it and the centre is cropped.
        channels: 1, 3, or None: 1 if red, green and blue are equal in every decoded pixel of the source, else 3.
        bad_files: "raise" stops at the first file that cannot be used; "skip" leaves it out and records it.
        max_skipped: With "skip", how many bad files are tolerated, >= 0.
        min_images: How many the caller needs, as for one batch, >= 1; fewer files are refused before any is decoded.
        progress: Show a tqdm bar.

    Returns:
        `ImageData` in sorted path order, the same for a folder and a zip of it, on any number of cores.

    Raises:
        DataError: The source does not exist or holds fewer than `min_images` images, a file is bad, or more than
            `max_skipped` are, or the decoded images would not fit into memory.
        TypeError, ValueError: An argument has the wrong type or is out of range.

    Notes:
        Files: .png .jpg .jpeg .webp .bmp .gif .tif .tiff .ppm .pgm in any case. Other files, hidden ones and
        __MACOSX are passed over in silence, and so are the folders of runs of gan_fast, which `notes` names. Links
        are followed; a folder reached twice is read once.
        Classes: the first folder on the way to an image is its class, however deep the image lies. If any image lies
        directly in the source there are no classes. A class keeps its index even if all of its files were skipped.
        Refused as bad files: over 89,478,485 pixels, over 256 MiB, zip entries that are encrypted, fail their CRC,
        use another compression than store or deflate, or whose path leads out of the archive.
        Pixel conversions: see `gan_fast.data.decode.decode_image`.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"load_images: expected source type str or os.PathLike, got {type(source).__name__}")
    require_int("load_images", "image_size", image_size, minimum=1)
    require_int("load_images", "max_skipped", max_skipped, minimum=0)
    require_int("load_images", "min_images", min_images, minimum=1)
    if channels not in (None, 1, 3):
        raise ValueError(f"load_images: expected channels to be 1, 3 or None, got {channels!r}")
    if bad_files not in ("raise", "skip"):
        raise ValueError(f'load_images: expected bad_files to be "raise" or "skip", got {bad_files!r}')

    path = os.fsdecode(source)
    if path == "digits":
        _require_count(path, _DIGITS, min_images)
        # Scaled in float32, with a copy on the way.
        _require_memory(_DIGITS, image_size, 8 + (channels or 1))
        images, labels = load_digits(image_size, channels or 1)
        return ImageData(images, labels, tuple(map(str, range(10))), (), path)
    faults = _Faults(path, max_skipped if bad_files == "skip" else None)
    load = partial(
        _decode_all,
        path,
        image_size=image_size,
        channels=channels,
        faults=faults,
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


class _Faults:
    """What to do about bad files: `max_skipped` None raises at the first, a number at the first above it."""

    def __init__(self, source: str, max_skipped: int | None) -> None:
        self.source = source
        self.max_skipped = max_skipped
        self.skipped: list[SkippedFile] = []

    def add(self, bad: SkippedFile) -> None:
        if self.max_skipped is None:
            raise DataError(
                f"load_images: expected source {quoted(self.source)} file {quoted(bad.name)} to be a usable image, "
                f'got: {bad.reason}; repair or remove it, or pass bad_files="skip"'
            )
        self.skipped.append(bad)
        if len(self.skipped) > self.max_skipped:
            raise DataError(
                f"load_images: expected source {quoted(self.source)} to hold at most max_skipped={self.max_skipped} "
                f"bad files, got {len(self.skipped)} and stopped: {self.summary()}"
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
    faults: _Faults,
    min_images: int,
    progress: bool,
) -> ImageData:
    for refused in listing.refused:
        faults.add(refused)
    files = listing.files
    in_classes = all(len(file.parts) > 1 for file in files)
    class_names = sorted({file.parts[0] for file in files}) if in_classes else []
    class_index = {name: index for index, name in enumerate(class_names)}

    # Before the first image is decoded: all of them may take hours.
    if files:
        _require_count(source, len(files), min_images)
    _require_memory(len(files), image_size, channels or 3)
    pixels = np.empty((len(files), channels or 3, image_size, image_size), dtype=np.uint8)
    labels: list[int] = []
    small = _SmallImages(image_size)
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
                    faults.add(decoded)
                else:
                    pixels[len(labels)] = decoded.pixels
                    small.add(file.name, decoded.size)
                    labels.append(class_index.get(file.parts[0], -1))
    if not labels:
        found = f"{len(faults.skipped)} bad files only: {faults.summary()}" if faults.skipped else "none"
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
        tuple(faults.skipped),
        source,
        tuple(notes + small.notes()),
    )


def _run_name(folder: str) -> str:
    if folder == ".":
        return "the samples and curves of the run that is in the source itself"
    return f"{printable(folder)}: the folder of a run of gan_fast"


class _SmallImages:
    """Counts the images that are much smaller than what is made of them, for one line about all."""

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
            f"{_count(self.count, 'image is', 'images are')} enlarged more than {_MAX_ENLARGEMENT}-fold to "
            f"{self.image_size} pixels, the smallest {self.image_size / side:.3g}-fold: {printable(name)} of "
            f"{width}x{height} pixels"
        ]


def _require_count(source: str, count: int, min_images: int) -> None:
    if count < min_images:
        raise DataError(
            f"load_images: expected source {quoted(source)} to hold at least {min_images} images, which a batch needs, "
            f"got {count}; add images, or lower batch_size to at most {count}"
        )


def _require_memory(count: int, image_size: int, bytes_per_pixel: int) -> None:
    # The kernel grants more memory than there is and ends the process when it is written, an hour into decoding.
    needed, available = count * image_size**2 * bytes_per_pixel, available_bytes()
    if available is not None and needed > available:
        raise DataError(
            f"load_images: expected source to fit into memory, got {count} images at image_size {image_size}, which "
            f"take {in_words(needed)} where this process may take {in_words(available)} more; lower image_size, or "
            "train on fewer images"
        )


def _decode_file(file: ImageFile, image_size: int, channels: int) -> Decoded | SkippedFile:
    try:
        return decode(file.read(), image_size, channels)
    except BadFileError as error:
        return SkippedFile(file.name, str(error))


def _count(number: int, singular: str, plural: str) -> str:
    return f"{number} {singular if number == 1 else plural}"
