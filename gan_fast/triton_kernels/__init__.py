"""GPU kernels in Triton, one file per op, each with the functions and signatures of the op's native kernels.

Importing this package does not import triton; a file is imported when its kernels first serve, which
gan_fast/backends.py decides. With TRITON_INTERPRET=1 they run on CPU tensors too, slowly: how tests prove them where
there is no GPU.
"""

import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DTYPE_NAMES = "float32, bfloat16 or float16"
