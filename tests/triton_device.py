"""Where the tests of Triton kernels run (on a GPU, or interpreted on the CPU), and under which marks."""

from __future__ import annotations

import importlib.util

import pytest
import torch

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
# The interpreter computes with NumPy, which warns of NaN and infinities that a kernel only passes on.
interpreted = [needs_triton, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

# Both sides of a comparison in single precision.
torch.backends.cudnn.allow_tf32 = False
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
