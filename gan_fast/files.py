"""Files that hold either their old or their complete new content, whatever happens while they are written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


class FileError(RuntimeError):
    """A file cannot be written or cannot be used; the message names the file and the reason."""


def previous_of(path: Path) -> Path:
    """Return where the checkpoint before the one at ``path`` is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def write_safely(path: Path, write: Callable[[BinaryIO], None], *, keep_previous: bool = False) -> None:
    """Write a file so that ``path`` holds either the old or the complete new content, whatever happens.

    Args:
        path: the file; its folder must exist.
        write: writes the content to the open file that it is given.
        keep_previous: keep the file that was there as :func:`previous_of`.

    Raises:
        FileError: the disk is full, or another fault; the old file stands.
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
        # The new names are safe only when the folder is on the disk too.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    # A full disk is an OSError from a file and a RuntimeError from torch.save.
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FileError(f"{path}: cannot be saved ({reason}); what was there before stands") from error


def write_bytes_safely(path: Path, content: bytes | str) -> None:
    """As :func:`write_safely`, for content that is there already; text becomes UTF-8."""
    data = content.encode() if isinstance(content, str) else content

    def write(file: BinaryIO) -> None:
        file.write(data)

    write_safely(path, write)
