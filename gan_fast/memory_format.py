"""Choose the memory format of results.

csrc/common/tensor.h implements the same rule for kernels, so that fake tensors have the strides of real results.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def _is_dense(t: Tensor, order: tuple[int, ...]) -> bool:
    """Whether t is dense with its dims in ``order``, innermost first; dims of size one may have any stride."""
    expected = 1
    for d in order:
        if t.size(d) != 1 and t.stride(d) != expected:
            return False
        expected *= t.size(d)
    return True


def suggest_memory_format(t: Tensor) -> torch.memory_format:
    """Return the memory format that ATen's batch norm gives its output for input ``t``.

    Only the order of the strides matters; ``t`` may have gaps between its elements.
    """
    innermost_first = tuple(range(t.dim() - 1, -1, -1))
    if t.dim() not in CHANNELS_LAST or t.numel() == 0 or _is_dense(t, innermost_first):
        return torch.contiguous_format
    if _is_dense(t, (1, *innermost_first[:-2], 0)) or is_ordered_channels_last(t.shape, t.stride()):
        return CHANNELS_LAST[t.dim()]
    return torch.contiguous_format


def is_ordered_channels_last(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether strides are in channels-last order, with or without gaps: the test that ATen's convolutions use."""
    if len(shape) not in CHANNELS_LAST or strides[1] == 0:
        return False
    least = 0
    for d in (1, *range(len(shape) - 1, 1, -1), 0):
        if strides[d] < least or (d == 0 and least == strides[1]):
            return False
        least = strides[d] * max(shape[d], 1)
    return True


def empty_output_like(t: Tensor) -> Tensor:
    """Return an uninitialized tensor like ``t``, in the format that ATen's batch norm gives its output for ``t``."""
    return torch.empty_like(t, memory_format=suggest_memory_format(t))


def to_channels_last(t: Tensor) -> Tensor:
    """Return a 4-d tensor with the strides of channels-last: ``t`` itself or a copy."""
    n, c, h, w = t.shape
    if c == 1 or (h, w) == (1, 1):
        # With one channel or one pixel any strides count as channels-last, and `contiguous` returns t unchanged. But
        # convolutions read the strides, so build the standard ones.
        return t.reshape(n, h, w, c).movedim(-1, 1)
    return t.contiguous(memory_format=torch.channels_last)
