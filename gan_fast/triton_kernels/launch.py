"""Where kernels run."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor


def on(tensor: Tensor) -> AbstractContextManager[Any]:
    """The tensor's GPU as the current one; the interpreter runs where the tensor is."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
