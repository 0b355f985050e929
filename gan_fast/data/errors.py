"""The exceptions of the data room, and the one argument check that its functions share."""

from __future__ import annotations


class DataError(ValueError):
    """A problem with the data themselves; the message names the file and the reason."""


class BadFileError(Exception):
    """One file that cannot be used; the text is the reason, and whoever catches it knows the name.

    Never leaves `gan_fast.data`: `load_images` turns it into a `DataError` or a skipped file.
    """


def printable(text: str) -> str:
    """Return a name as text that any UTF-8 stream takes on one line.

    A byte of a file name that is not UTF-8, which Python reads as a lone surrogate, becomes ``\\xNN``; where the file
    system is taken to be ASCII, what is UTF-8 all the same becomes readable. Control characters are escaped.
    """
    text = name_bytes(text).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def quoted(name: str) -> str:
    """Return :func:`printable` text in quotes, for error messages."""
    return f"'{printable(name)}'"


def name_bytes(name: str) -> bytes:
    """Return the bytes of a file name, the same in every locale."""
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a surrogate that is no byte's, of a name that came from elsewhere
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
        raise ValueError(f"{where}: expected {argument} >= {minimum}, got {value}")
