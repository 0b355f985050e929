"""The memory format that results have, told to fake tensors as csrc/common/tensor.h tells it to kernels."""

from __future__ import annotations

import torch
from torch import Tensor

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def _is_dense(t: Tensor, order: tuple[int, ...]) -> bool:
    """Whether t is dense with its dims in memory as ``order`` says, innermost first; sizes of one do not count."""
    expected = 1
    for d in order:
        if t.size(d) != 1 and t.stride(d) != expected:
            return False
        expected *= t.size(d)
    return True


def suggest_memory_format(t: Tensor) -> torch.memory_format:
    """Return the format of ATen's batch norm result for input ``t``: by the order of its strides, gaps or not."""
    innermost_first = tuple(range(t.dim() - 1, -1, -1))
    if t.dim() not in _CHANNELS_LAST or t.numel() == 0 or _is_dense(t, innermost_first):
        return torch.contiguous_format
    channels_last = (1, *innermost_first[:-2], 0)
    if _is_dense(t, channels_last):
        return _CHANNELS_LAST[t.dim()]
    if t.stride(1) == 0:
        return torch.contiguous_format
    least = 0
    for d in channels_last:
        if t.stride(d) < least or (d == 0 and least == t.stride(1)):
            return torch.contiguous_format
        least = t.stride(d) * t.size(d)
    return _CHANNELS_LAST[t.dim()]


def empty_like(t: Tensor) -> Tensor:
    return torch.empty_like(t, memory_format=suggest_memory_format(t))
