"""Where kernels run."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
import triton
from torch import Tensor

# Whether kernels are interpreted on the CPU, decided when triton is imported.
INTERPRETED: bool = triton.knobs.runtime.interpret


def on(tensor: Tensor) -> AbstractContextManager[Any]:
    """The tensor's GPU as the current one; the interpreter runs where the tensor is."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


Function = TypeVar("Function", bound=Callable[..., Any])


def of_values(function: Function) -> Function:
    """Give a function that hands memory to kernels tensors whose memory has their values, not those times minus one."""

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        values = (a.resolve_neg() if isinstance(a, Tensor) and a.is_neg() else a for a in arguments)
        return function(*values, **options)

    return call  # type: ignore[return-value]
