"""Argument checks that all backends share, with the wording of csrc/common/checks.h."""

from __future__ import annotations

import numbers

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from gan_fast import backends

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
FLOATING_NAMES = "float64, float32, bfloat16 or float16"


class ArgumentError(ValueError, RuntimeError):
    """An invalid shape, size or device; a RuntimeError too, which is what the replaced torch function raises."""


class DtypeError(TypeError, RuntimeError):
    """An invalid dtype; a RuntimeError too, which is what the replaced torch function raises."""


def name_of(value: torch.dtype | torch.layout) -> str:
    return str(value).removeprefix("torch.")


def tensor(op: str, argument: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: expected {argument} type Tensor, got {type(value).__name__}")
    return value


_EXACT = (Tensor, torch.nn.Parameter)


def subclassed(*tensors: object) -> bool:
    """Whether a tensor is of a subclass, which may override torch's functions; fake tensors count as plain."""
    for t in tensors:  # noqa: SIM110 (runs on every call, and a generator is slower)
        if type(t) not in _EXACT and isinstance(t, Tensor) and not isinstance(t, FakeTensor):
            return True
    return False


def is_for_torch(op: str, *tensors: object) -> bool:
    """Whether ``op`` must run on torch's own functions because one of its tensors is of a subclass.

    Raises:
        RuntimeError: it must, but use_backend selected a kernel backend.
    """
    if not subclassed(*tensors):
        return False
    name = backends.requested()
    if name not in ("auto", "reference"):
        found = next(type(t).__name__ for t in tensors if subclassed(t))
        raise RuntimeError(f"{op}: expected input type Tensor for backend {name}, got {found}")
    return True


def floating(op: str, argument: str, value: object) -> Tensor:
    value = tensor(op, argument, value)
    if value.dtype not in FLOATING:
        raise DtypeError(f"{op}: expected {argument} dtype {FLOATING_NAMES}, got {name_of(value.dtype)}")
    if value.layout is not torch.strided or value.is_nested:
        have = "nested" if value.is_nested else name_of(value.layout)
        raise DtypeError(f"{op}: expected {argument} layout strided, got {have}")
    return value


def same_device(op: str, argument: str, value: Tensor, other: str, like: Tensor) -> None:
    if value.device != like.device:
        raise ArgumentError(f"{op}: expected {argument} device {like.device} to match {other}, got {value.device}")


def dtype(op: str, argument: str, value: Tensor, *wanted: torch.dtype) -> None:
    if value.dtype not in wanted:
        names = " or ".join(name_of(w) for w in wanted)
        raise DtypeError(f"{op}: expected {argument} dtype {names}, got {name_of(value.dtype)}")


def shape(op: str, argument: str, value: Tensor, wanted: tuple[int, ...]) -> None:
    if tuple(value.shape) != wanted:
        raise ArgumentError(f"{op}: expected {argument} shape {wanted}, got {tuple(value.shape)}")


def one_of(op: str, argument: str, value: str, wanted: tuple[str, ...]) -> None:
    if value not in wanted:
        raise ArgumentError(f"{op}: expected {argument} one of {', '.join(wanted)}, got {value!r}")


def number(op: str, argument: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{op}: expected {argument} type float, got {type(value).__name__}")


def in_range(op: str, argument: str, value: float, low: float, high: float) -> None:
    number(op, argument, value)
    if not low <= value <= high:
        wanted = f"at least {low:g}" if high == float("inf") else f"between {low:g} and {high:g}"
        raise ValueError(f"{op}: expected {argument} {wanted}, got {value!r}")
