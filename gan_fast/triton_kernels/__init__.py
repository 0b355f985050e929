"""GPU kernels in Triton, one file per op, each with the functions and signatures of the op's native kernels.

Importing this package imports nothing; a file is imported when its kernels first serve (gan_fast/backends.py chooses).
With TRITON_INTERPRET=1 they run on CPU tensors too, slowly: how tests prove them where there is no GPU.
"""
