"""What the functions that launch Triton kernels share: the device, and arguments that kernels can read."""

from __future__ import annotations

import contextlib
import functools
import numbers
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
import triton
from torch import Tensor

# Whether kernels are interpreted on the CPU; Triton decides it when it is imported.
INTERPRETED: bool = triton.knobs.runtime.interpret


@triton.jit
def _empty_kernel():
    pass


def launch_empty_kernel() -> None:
    """Launch a kernel that does nothing; raises if Triton cannot launch kernels."""
    _empty_kernel[(1,)]()


def on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Make the tensor's GPU the current device, on which Triton launches; nothing to do for the interpreter."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def in_memory_order_of(t: Tensor, like: Tensor) -> Tensor:
    """Return t with the strides of ``like``, copied if needed; strides of dims of size one do not matter."""
    same = all(size == 1 or own == other for size, own, other in zip(t.shape, t.stride(), like.stride()))
    return t if same and not t.is_neg() else torch.empty_like(like).copy_(t)


def with_contiguous_samples(t: Tensor) -> Tensor:
    """Return t, or a copy, whose samples follow each other in memory, each without gaps and with any order of dims."""
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(t.stride()[1:], t.shape[1:]) if size != 1):
        if stride != expected:
            return t.contiguous()
        expected *= size
    return t if t.size(0) <= 1 or t.stride(0) == expected else t.contiguous()


Function = TypeVar("Function", bound=Callable[..., Any])


def readable_arguments(function: Function) -> Function:
    """Convert the arguments of a function that launches kernels to what Triton can read.

    Negative views (``Tensor.is_neg``) are resolved, since their memory holds the negated values. Numbers other than
    ints, such as NumPy's, become floats.
    """

    def readable(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.resolve_neg() if value.is_neg() else value
        return float(value) if isinstance(value, numbers.Real) and not isinstance(value, int) else value

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        return function(*map(readable, arguments), **options)

    return call  # type: ignore[return-value]
