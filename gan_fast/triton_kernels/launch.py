"""Where kernels run."""

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

# Whether kernels are interpreted on the CPU, decided when triton is imported.
INTERPRETED: bool = triton.knobs.runtime.interpret


@triton.jit
def _nothing_kernel():
    pass


def nothing() -> None:
    """Launch a kernel that does nothing: an error where Triton cannot launch any."""
    _nothing_kernel[(1,)]()


def on(tensor: Tensor) -> AbstractContextManager[Any]:
    """The tensor's GPU as the current one; the interpreter runs where the tensor is."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def in_order_of(t: Tensor, like: Tensor) -> Tensor:
    """t with its values in memory as ``like`` has them; the stride of a single element says nothing."""
    same = all(size == 1 or own == other for size, own, other in zip(t.shape, t.stride(), like.stride()))
    return t if same and not t.is_neg() else torch.empty_like(like).copy_(t)


def sample_by_sample(t: Tensor) -> Tensor:
    """t where samples lie in memory one after the other, each without gaps in whatever order; else so copied."""
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(t.stride()[1:], t.shape[1:]) if size != 1):
        if stride != expected:
            return t.contiguous()
        expected *= size
    return t if t.size(0) <= 1 or t.stride(0) == expected else t.contiguous()


Function = TypeVar("Function", bound=Callable[..., Any])


def of_values(function: Function) -> Function:
    """Give a function that launches kernels what they can read.

    Tensors whose memory has their values, not those times minus one; numbers of Python's own types.
    """

    def readable(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.resolve_neg() if value.is_neg() else value
        return float(value) if isinstance(value, numbers.Real) and not isinstance(value, int) else value

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        return function(*map(readable, arguments), **options)

    return call  # type: ignore[return-value]
