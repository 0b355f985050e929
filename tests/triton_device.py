"""Where the tests of Triton kernels run: on a GPU, or interpreted on the CPU."""

from __future__ import annotations

import torch

# Both sides of a comparison in single precision.
torch.backends.cudnn.allow_tf32 = False
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
