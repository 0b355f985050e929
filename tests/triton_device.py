"""The device and pytest marks of tests of Triton kernels: a GPU, or the CPU with Triton's interpreter."""

from __future__ import annotations

import importlib.util

import pytest
import torch

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
# The interpreter uses NumPy, which warns about the NaN and infinity that these tests pass to kernels.
interpreted = [needs_triton, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

# Results are compared with eager PyTorch's, which must be in full float32.
torch.backends.cudnn.allow_tf32 = False
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
