"""Write files so that a crash, a kill or a full disk never leaves a partly written one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


class FileError(RuntimeError):
    """A file cannot be written or cannot be used; the message names the file and the reason."""


def previous_of(path: Path) -> Path:
    """Return the path of the backup that ``write_safely(path, ..., keep_previous=True)`` keeps."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def write_safely(path: Path, write: Callable[[BinaryIO], None], *, keep_previous: bool = False) -> None:
    """Replace a file atomically: ``path`` always holds either the old or the complete new content.

    Args:
        path: the file; its folder must exist.
        write: called with the open file to write the content.
        keep_previous: keep the old file as :func:`previous_of`. Between the two renames only that backup exists.

    Raises:
        FileError: the file cannot be written, for example because the disk is full; the old file is unchanged.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if keep_previous and path.exists():
            os.replace(path, previous_of(path))
        os.replace(temporary, path)
        _flush_folder(path.parent)
    # On a full disk, file methods raise OSError, torch.save raises RuntimeError.
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FileError(f"{path}: cannot be saved ({reason}); an existing file is unchanged") from error


def _flush_folder(folder: Path) -> None:
    """Write a folder's entries to the disk: until then, a power failure could undo the renames."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # folders cannot be opened on Windows, nor without read permission
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes_safely(path: Path, content: bytes | str) -> None:
    """Replace a file atomically, like :func:`write_safely`, by bytes or by text in UTF-8."""
    data = content.encode() if isinstance(content, str) else content

    def write(file: BinaryIO) -> None:
        file.write(data)

    write_safely(path, write)
