"""The memory format that results have, told to fake tensors as csrc/common/tensor.h tells it to kernels."""

from __future__ import annotations

import torch
from torch import Tensor

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def suggest_memory_format(t: Tensor) -> torch.memory_format:
    """Return the format of ATen's batch norm result for input ``t``: by the order of its strides, gaps or not."""
    if t.dim() not in _CHANNELS_LAST or t.numel() == 0 or t.stride(1) == 0:
        return torch.contiguous_format
    least = 0
    for d in (1, *range(t.dim() - 1, 1, -1), 0):
        if t.stride(d) < least or (d == 0 and least == t.stride(1)):
            return torch.contiguous_format
        least = t.stride(d) * max(t.size(d), 1)
    return _CHANNELS_LAST[t.dim()]


def empty_like(t: Tensor) -> Tensor:
    return torch.empty_like(t, memory_format=suggest_memory_format(t))
