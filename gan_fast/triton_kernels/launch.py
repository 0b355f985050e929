"""Where kernels run."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch
import triton
from torch import Tensor

# Whether kernels are interpreted on the CPU, decided when triton is imported.
INTERPRETED: bool = triton.knobs.runtime.interpret


def on(tensor: Tensor) -> AbstractContextManager[Any]:
    """The tensor's GPU as the current one; the interpreter runs where the tensor is."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
