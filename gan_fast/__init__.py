"""gan_fast: fused kernels for generative adversarial networks in PyTorch, and a trainer built on them.

:func:`fuse` runs an existing model on the kernels. :mod:`gan_fast.nn` has drop-in layers and blocks,
:mod:`gan_fast.ops` their functions, :mod:`gan_fast.models` networks, and :mod:`gan_fast.export` ONNX export.
:mod:`gan_fast.train`, with :mod:`gan_fast.data` and :mod:`gan_fast.objectives`, trains in Python, ``gan-fast train``
from the command line.

>>> import gan_fast
>>> import torch
>>> from torch import nn
>>> critic = nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(8, 1, 4), nn.Flatten())
>>> fused = gan_fast.fuse(critic)
>>> images = torch.randn(2, 3, 16, 16)
>>> torch.allclose(fused(images), critic(images), atol=1e-6)
True
"""

import importlib
import sys
from typing import TYPE_CHECKING

from gan_fast.version import __version__


def _is_command_line() -> bool:
    """Whether this process is ``gan-fast`` or ``python -m gan_fast``, whose --help must not wait for torch."""
    if sys.argv[:1] == ["-m"]:
        index = sys.orig_argv.index("-m") if "-m" in sys.orig_argv else len(sys.orig_argv)
        return sys.orig_argv[index + 1 : index + 2] == ["gan_fast"]
    return any(sys.argv[:1]) and sys.argv[0].replace("\\", "/").rpartition("/")[2] in ("gan-fast", "gan-fast.exe")


if TYPE_CHECKING:
    from gan_fast import data, objectives, train
    from gan_fast.train.trained import load

if TYPE_CHECKING or not _is_command_line():
    from gan_fast import export, models, nn, ops
    from gan_fast.backends import info, use_backend
    from gan_fast.nn.fuse import fuse, fuse_report, unfuse

__all__ = [
    "__version__",
    "data",
    "export",
    "fuse",
    "fuse_report",
    "info",
    "load",
    "models",
    "nn",
    "objectives",
    "ops",
    "train",
    "unfuse",
    "use_backend",
]


def __getattr__(name: str) -> object:
    # The command line imports each name on first use. Elsewhere `import gan_fast` registers the ops; only `load` and
    # the packages for training are imported on first use.
    if name in ("data", "export", "models", "nn", "objectives", "ops", "train"):
        return importlib.import_module(f"gan_fast.{name}")
    if name in ("info", "use_backend"):
        return getattr(importlib.import_module("gan_fast.backends"), name)
    if name in ("fuse", "fuse_report", "unfuse"):
        return getattr(importlib.import_module("gan_fast.nn.fuse"), name)
    if name == "load":
        return importlib.import_module("gan_fast.train.trained").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
