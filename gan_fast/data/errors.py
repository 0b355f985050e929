"""The exceptions of this package, and helpers for its error messages.

>>> from gan_fast.data import DataError, load_images
>>> try:
...     load_images("no-such-folder", image_size=32)
... except DataError as error:
...     print(error)
load_images: expected source to be "digits", an image folder or a .zip file, got 'no-such-folder', which does not exist
"""

from __future__ import annotations


class DataError(ValueError):
    """The data cannot be used; the message names the file and the reason."""


class BadFileError(Exception):
    """A file cannot be used; the text is the reason, without the file's name.

    Internal to `gan_fast.data`: `load_images` turns it into a `DataError` or a skipped file.
    """


def printable(text: str) -> str:
    r"""Return a file name as text on one line that can be written to any UTF-8 stream.

    Python reads a byte of a file name that is not valid UTF-8 as a lone surrogate, which becomes `\xNN` here. If Python
    takes the file system to be ASCII, the bytes of valid UTF-8 names become readable again. Control characters are
    escaped.
    """
    text = name_bytes(text).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def quoted(name: str) -> str:
    """Return :func:`printable` text in quotes, for error messages."""
    return f"'{printable(name)}'"


def name_bytes(name: str) -> bytes:
    """Return the bytes of a file name, which are the same in every locale."""
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a surrogate that does not encode a byte, so the name is not from a file system
        return name.encode("utf-8", "surrogatepass")


def reason_of(error: Exception) -> str:
    """Return the shortest text that says what went wrong."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


def require_int(where: str, argument: str, value: object, minimum: int) -> None:
    """Raise unless `value` is an integer of at least `minimum`.

    Raises:
        TypeError: `value` is not an int, or is a bool.
        ValueError: `value` is below `minimum`.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{where}: expected {argument} type int, got {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{where}: expected {argument} at least {minimum}, got {value}")
