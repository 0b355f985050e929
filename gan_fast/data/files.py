"""List the image files of a folder or a zip, each with a function that reads its bytes."""

from __future__ import annotations

import os
import stat
import zipfile
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from gan_fast.data.errors import BadFileError, DataError, reason_of

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")

# Room for any image below the pixel limit of decode.py in 8-bit RGB; what a zip entry may unpack to.
MAX_FILE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class SkippedFile:
    """A file that was left out.

    Attributes:
        name: Path inside the source, with forward slashes.
        reason: What is wrong with it.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class ImageFile:
    """An image file not yet read; `read` returns its bytes or raises `BadFileError`."""

    name: str
    read: Callable[[], bytes]

    @property
    def parts(self) -> list[str]:
        return self.name.split("/")


@dataclass
class Listing:
    """The image files of one source, sorted by path, and what was refused by its name or could not be listed."""

    files: list[ImageFile] = field(default_factory=list)
    refused: list[SkippedFile] = field(default_factory=list)

    def sort(self) -> Listing:
        # By components, so that a class "a-b" does not come between two files of a class "a".
        self.files.sort(key=lambda file: file.parts)
        self.refused.sort(key=lambda skipped: skipped.name)
        return self


def list_folder(root: str) -> Listing:
    """List a folder and everything below it; each real folder is visited once, so loops of links end."""
    listing = Listing()
    visited: set[tuple[int, int]] = set()
    pending = deque([""])
    while pending:
        folder = pending.popleft()
        try:
            status = os.stat(os.path.join(root, folder))
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(os.path.join(root, folder)) as entries:
                children = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            listing.refused.append(SkippedFile(folder or ".", f"the folder cannot be read: {reason_of(error)}"))
            continue
        for child in children:
            name = f"{folder}/{child.name}" if folder else child.name
            if _is_junk(child.name):
                continue
            if os.path.isdir(child.path):
                # Links last: a real folder keeps its own name even where a link beside it sorts first.
                if child.is_symlink():
                    pending.append(name)
                else:
                    pending.appendleft(name)
            elif _is_image(name):
                listing.files.append(ImageFile(name, partial(_read_path, child.path)))
    return listing.sort()


def _read_path(path: str) -> bytes:
    try:
        status = os.stat(path)
        # Opening a named pipe would wait for a writer for ever, and a device may have no end.
        if not stat.S_ISREG(status.st_mode):
            raise BadFileError("not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise BadFileError(f"{status.st_size} bytes is above the limit of {MAX_FILE_BYTES}")
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise BadFileError(f"cannot be read: {reason_of(error)}") from error


def open_zip(path: str) -> zipfile.ZipFile:
    """Open a zip for reading.

    Raises:
        DataError: The file cannot be opened or is not a zip.
    """
    try:
        return zipfile.ZipFile(path)
    # A damaged directory gives BadZipFile, but also struct.error, UnicodeDecodeError, NotImplementedError.
    except Exception as error:
        raise DataError(f"load_images: expected source {path!r} to be a sound zip, got: {reason_of(error)}") from error


def list_zip(archive: zipfile.ZipFile) -> Listing:
    """List a zip; nothing is ever extracted, and names that would leave the archive are refused all the same."""
    listing = Listing()
    for info in archive.infolist():
        raw = info.filename.replace("\\", "/")  # some Windows tools write backslashes
        parts = [part for part in raw.split("/") if part not in ("", ".")]
        if raw.startswith("/") or raw[1:2] == ":" or ".." in parts:
            listing.refused.append(SkippedFile(info.filename, "the path leads out of the archive"))
        elif not info.is_dir() and _is_image(raw) and not any(map(_is_junk, parts)):
            listing.files.append(ImageFile("/".join(parts), partial(_read_entry, archive, info)))
    return listing.sort()


def _read_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    # zipfile bounds what it unpacks at once for these two only, so a bomb in another method could fill the memory.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BadFileError(f"zip compression method {info.compress_type} is not read here; use store or deflate")
    if info.file_size > MAX_FILE_BYTES:
        raise BadFileError(f"unpacks to {info.file_size} bytes, above the limit of {MAX_FILE_BYTES}")
    try:
        with archive.open(info) as entry:
            # Asking for one byte more than declared makes zipfile check the CRC, and stops an entry that unpacks to
            # more than it declares; read() without a size would unpack up to 2 GiB of it first.
            return entry.read(info.file_size + 1)
    # Beside BadZipFile: zlib.error, EOFError, OSError, struct.error, NotImplementedError, RuntimeError.
    except Exception as error:
        raise BadFileError(reason_of(error)) from error


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _is_junk(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"
