"""Checkpoints and generator files that survive a kill and a full disk, and whose damage is detected.

A checkpoint is the output of ``torch.save``, followed by its SHA-256 (32 bytes) and 8 bytes that name the format. A new
checkpoint replaces the last one only once it is completely on the disk; the last one is kept as a backup.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save
from torch import Tensor, nn

from gan_fast.files import FileError, previous_of, write_bytes_safely, write_safely
from gan_fast.models import DCGANGenerator

_MAGIC = b"GANFAST1"
_DIGEST_BYTES = hashlib.sha256().digest_size
_MODEL_KEY = "gan_fast.generator"
_DIGEST_KEY = "gan_fast.sha256"


class CheckpointError(FileError):
    """A checkpoint or a generator file is missing, damaged, or not written by gan_fast; the message names the file."""


class _HashingWriter(io.RawIOBase):
    """A file that computes the SHA-256 of the data written through it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.hash = file, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.hash.update(data)
        self._file.write(data)
        return len(data)


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Save a checkpoint, and keep the one that was at ``path`` as a backup.

    Args:
        path: the file; its folder must exist.
        state: nested dicts of tensors, numbers and strings.

    Raises:
        FileError: the file cannot be written; the existing checkpoint is unchanged.
    """

    def write(file: BinaryIO) -> None:
        hashing = _HashingWriter(file)
        torch.save(state, hashing)  # type: ignore[arg-type]
        file.write(hashing.hash.digest() + _MAGIC)

    write_safely(path, write, keep_previous=True)


def load_checkpoint(path: Path, warn: Callable[[str], None] = print) -> dict[str, Any]:
    """Load the checkpoint at ``path``, or its backup if the checkpoint is missing or damaged.

    Args:
        path: the path that was given to :func:`save_checkpoint`.
        warn: called with one line that gives the reason if the backup is used.

    Returns:
        The state, on the CPU.

    Raises:
        CheckpointError: neither file can be used; the message names both and the reasons.

    Notes:
        The SHA-256 is verified before the content is decoded, and decoding runs no code (``weights_only``).
    """
    try:
        return _load_verified(path)
    except CheckpointError as error:
        try:
            state = _load_verified(previous_of(path))
        except CheckpointError as previous_error:
            raise CheckpointError(f"{error}; {previous_error}; start a new run in another folder") from error
        warn(f"{error}; using the previous checkpoint, {previous_of(path).name}")
        return state


def _load_verified(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    payload, digest, magic = (
        memoryview(content)[: -_DIGEST_BYTES - len(_MAGIC)],
        content[-_DIGEST_BYTES - len(_MAGIC) : -len(_MAGIC)],
        content[-len(_MAGIC) :],
    )
    if magic != _MAGIC:
        raise CheckpointError(f"{path}: not a gan_fast checkpoint, or truncated")
    found = hashlib.sha256(payload)
    if found.digest() != digest:
        have, want = found.hexdigest()[:16], digest.hex()[:16]
        raise CheckpointError(f"{path}: damaged: its SHA-256 is {have}..., but was {want}... when it was saved")
    try:
        return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    # weights_only raises UnpicklingError; content with a valid hash that torch.save did not write can raise anything.
    except Exception as error:
        raise CheckpointError(f"{path}: cannot be loaded safely: {str(error).splitlines()[0]}") from error


def save_generator(path: Path, generator: nn.Module, model: Mapping[str, int]) -> None:
    """Save a generator as safetensors, with the arguments to rebuild it and a SHA-256 of its tensors.

    Args:
        path: the file; its folder must exist.
        generator: the module whose state dict is saved.
        model: the arguments of ``DCGANGenerator``.

    Raises:
        FileError: the file cannot be written; an existing file is unchanged.
    """
    state = {name: t.detach().cpu().contiguous() for name, t in generator.state_dict().items()}
    metadata = {"format": "pt", _MODEL_KEY: json.dumps(dict(model)), _DIGEST_KEY: _digest(state)}
    write_bytes_safely(path, _with_sorted_metadata(safetensors_save(state, metadata)))


def load_generator(path: Path) -> DCGANGenerator:
    """Rebuild the generator that :func:`save_generator` saved, on the CPU and in evaluation mode.

    Raises:
        CheckpointError: the file is missing, damaged, or not written by :func:`save_generator`.
    """
    try:
        content = path.read_bytes()
        state = safetensors_load(content)
        header_bytes = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + header_bytes]).get("__metadata__", {})
        if _MODEL_KEY not in metadata:
            raise CheckpointError(f"{path}: not a generator saved by gan_fast")
        if metadata.get(_DIGEST_KEY) != _digest(state):
            raise CheckpointError(f"{path}: damaged: its SHA-256 differs from the one it was saved with")
        generator = DCGANGenerator(**json.loads(metadata[_MODEL_KEY]))
        generator.load_state_dict(state)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    # A damaged header raises SafetensorError, ValueError, TypeError, KeyError or RuntimeError.
    except Exception as error:
        raise CheckpointError(f"{path}: damaged: {str(error).splitlines()[0]}") from error
    return generator.eval()


def _with_sorted_metadata(content: bytes) -> bytes:
    """Sort the metadata of a safetensors file: the library's order varies, and equal runs must write equal bytes."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    # Padding keeps the tensors aligned to 8 bytes.
    text = text.ljust(-(-len(text) // 8) * 8)
    return len(text).to_bytes(8, "little") + text + content[start:]


def _digest(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, dtypes, shapes and bytes, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
