"""List the image files in a folder or a zip, each with a function that reads its bytes."""

from __future__ import annotations

import json
import os
import stat
import zipfile
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from gan_fast.data.errors import BadFileError, DataError, name_bytes, printable, quoted, reason_of

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")

# Limit on the size of a file and on the unpacked size of a zip entry. It exceeds the pixel limit of decode.py times
# three bytes, so it refuses no uncompressed 8-bit RGB image.
MAX_FILE_BYTES = 256 * 2**20

# The configuration in the folder of a gan_fast run. Other programs use this name too, so its content is checked.
_RUN_RECORD = "config.json"
_MAX_RECORD_BYTES = 2**20
# What `gan-fast train` and `gan-fast sample` write into the folder of a run and must not be trained on.
_RUN_PICTURES = ("samples", "tensorboard", "curves.png", "samples.png")


@dataclass(frozen=True)
class SkippedFile:
    """A file that was skipped.

    Attributes:
        name: path inside the source, with forward slashes.
        reason: what is wrong with it.
    """

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{printable(self.name)}: {self.reason}"


@dataclass(frozen=True)
class ImageFile:
    """An image file that is not read yet; `read` returns its bytes or raises `BadFileError`."""

    name: str
    read: Callable[[], bytes]

    @property
    def parts(self) -> list[str]:
        return self.name.split("/")


@dataclass
class Listing:
    """The files of one source, each list sorted by path.

    Attributes:
        files: the image files.
        refused: files refused because of their name, and folders that cannot be listed.
        runs: folders of gan_fast runs, whose pictures are not training data.
    """

    files: list[ImageFile] = field(default_factory=list)
    refused: list[SkippedFile] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)

    def sort(self) -> Listing:
        # Sort by path components, so that a class "a-b" does not come between two files of a class "a", and by bytes,
        # so that the order is the same in every locale.
        self.files.sort(key=lambda file: [name_bytes(part) for part in file.parts])
        self.refused.sort(key=lambda skipped: name_bytes(skipped.name))
        self.runs.sort(key=name_bytes)
        return self


def list_folder(root: str) -> Listing:
    """List a folder and its subfolders without runs; links are followed, and each real folder is visited once."""
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
                children = sorted(entries, key=lambda entry: name_bytes(entry.name))
        except OSError as error:
            listing.refused.append(SkippedFile(folder or ".", f"the folder cannot be read: {reason_of(error)}"))
            continue
        if any(
            child.name == _RUN_RECORD and _is_record(partial(_read_path, child.path, _MAX_RECORD_BYTES))
            for child in children
        ):
            listing.runs.append(folder or ".")
            if folder:
                continue
            children = [child for child in children if child.name not in _RUN_PICTURES]
        for child in children:
            name = f"{folder}/{child.name}" if folder else child.name
            if _is_junk(child.name):
                continue
            if os.path.isdir(child.path):
                # Links come last, so that a folder is listed under its real name and not under that of a link to it.
                if child.is_symlink():
                    pending.append(name)
                else:
                    pending.appendleft(name)
            elif _is_image(name):
                listing.files.append(ImageFile(name, partial(_read_path, child.path)))
    return listing.sort()


def _read_path(path: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    try:
        status = os.stat(path)
        # Opening a named pipe would wait for a writer, and a device may be endless.
        if not stat.S_ISREG(status.st_mode):
            raise BadFileError("not a regular file, but a device or a pipe")
        if status.st_size > max_bytes:
            raise BadFileError(f"{status.st_size} bytes are above the limit of {max_bytes} bytes for a file")
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise BadFileError(f"cannot be read: {reason_of(error)}") from error


def open_zip(path: str) -> zipfile.ZipFile:
    """Open a zip for reading.

    Raises:
        DataError: the file cannot be opened or is not a zip.
    """
    try:
        return zipfile.ZipFile(path)
    # A damaged directory of a zip raises BadZipFile, struct.error, UnicodeDecodeError or NotImplementedError.
    except Exception as error:
        want = f"{quoted(path)} to be a folder or an undamaged zip file"
        raise DataError(f"load_images: expected source {want}, got: {reason_of(error)}") from error


def list_zip(archive: zipfile.ZipFile) -> Listing:
    """List a zip, which is never extracted; names that point outside of it are refused nevertheless."""
    listing = Listing()
    runs = {
        _zip_parts(info.filename)[:-1]
        for info in archive.infolist()
        if _zip_parts(info.filename)[-1:] == (_RUN_RECORD,)
        and info.file_size <= _MAX_RECORD_BYTES
        and _is_record(partial(_read_entry, archive, info))
    }
    listing.runs.extend("/".join(run) or "." for run in runs)
    for info in archive.infolist():
        raw = info.filename.replace("\\", "/")  # some Windows tools write backslashes
        parts = _zip_parts(info.filename)
        if raw.startswith("/") or raw[1:2] == ":" or ".." in parts:
            listing.refused.append(SkippedFile(info.filename, "its path leads out of the archive"))
        elif not info.is_dir() and _is_image(raw) and not any(map(_is_junk, parts)) and not _in_run(parts, runs):
            listing.files.append(ImageFile("/".join(parts), partial(_read_entry, archive, info)))
    return listing.sort()


def _zip_parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def _in_run(parts: tuple[str, ...], runs: set[tuple[str, ...]]) -> bool:
    if any(parts[:depth] in runs for depth in range(1, len(parts))):
        return True
    return () in runs and parts[0] in _RUN_PICTURES


def _is_record(read: Callable[[], bytes]) -> bool:
    """Return whether a config.json was written by a gan_fast run and not by another program."""
    try:
        record = json.loads(read())
    # JSON that is nested too deeply raises RecursionError.
    except (BadFileError, ValueError, RecursionError):
        return False
    if not isinstance(record, dict):
        return False
    config, versions = record.get("config"), record.get("versions")
    return isinstance(config, dict) and "data" in config and isinstance(versions, dict) and "gan_fast" in versions


def _read_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    # zipfile limits how much it unpacks at once for these methods only; a bomb in another one could fill the memory.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BadFileError(
            f"zip compression method {info.compress_type} is not supported; use the method store or deflate"
        )
    if info.file_size > MAX_FILE_BYTES:
        raise BadFileError(f"unpacks to {info.file_size} bytes, above the limit of {MAX_FILE_BYTES} bytes for a file")
    try:
        with archive.open(info) as entry:
            # Reading one byte more than declared makes zipfile check the CRC. It also stops at an entry that unpacks to
            # more than it declares; read() without a size would first unpack up to 2 GiB of it.
            return entry.read(info.file_size + 1)
    # A damaged entry raises BadZipFile, zlib.error, EOFError, OSError, struct.error, NotImplementedError, RuntimeError.
    except Exception as error:
        raise BadFileError(reason_of(error)) from error


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _is_junk(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"
