"""GPU kernels in Triton: one file per op, whose functions have the signatures of the op's compiled kernels.

Importing this package does not import Triton: gan_fast/backends.py imports a file when a call first uses its kernels.
With TRITON_INTERPRET=1 the kernels run on CPU tensors, slowly; tests use this where there is no GPU.
"""

import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DTYPE_NAMES = "float32, bfloat16 or float16"
