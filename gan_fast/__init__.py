"""gan_fast: fused kernels and a lean trainer for GANs in PyTorch."""

from gan_fast import export, models, nn, ops
from gan_fast.backends import info, use_backend
from gan_fast.nn.fuse import fuse, fuse_report, unfuse
from gan_fast.version import __version__

__all__ = ["__version__", "export", "fuse", "fuse_report", "info", "models", "nn", "ops", "unfuse", "use_backend"]
