"""Load the compiled extension ``gan_fast._C``; importing it registers ``torch.ops.gan_fast``."""

from __future__ import annotations

import importlib
import logging
import os
from types import ModuleType

import torch

logger = logging.getLogger("gan_fast")

BUILD_COMMAND = "pip install torch pybind11 ninja setuptools wheel; in the clone: pip install --no-build-isolation ."

# csrc/cpu/isa.h uses at most the instruction set named by GAN_FAST_ISA.
INSTRUCTION_SETS = ("baseline", "avx2", "avx512")
if (_isa := os.environ.get("GAN_FAST_ISA", INSTRUCTION_SETS[-1])) not in INSTRUCTION_SETS:
    raise ValueError(f"GAN_FAST_ISA: expected one of {', '.join(INSTRUCTION_SETS)}, got {_isa!r}")


# All ops of csrc/schema.cpp.
OPS = (
    "batch_norm_act_forward", "batch_norm_act_normalize", "batch_norm_act_backward", "batch_norm_act_double_backward",
    "adversarial_loss_forward", "adversarial_loss_backward", "sample_norm_penalty_forward",
    "sample_norm_penalty_backward", "minibatch_discrimination_forward", "minibatch_discrimination_backward",
    "minibatch_discrimination_double_backward", "spectral_norm_forward", "spectral_norm_backward", "leaky_relu_over",
    "leaky_relu_backward", "im2col", "col2im", "sub_pixel_conv",
)  # fmt: skip


def _load() -> tuple[ModuleType | None, str]:
    try:
        module = importlib.import_module("gan_fast._C")
    except ImportError as error:
        # The import error tells a missing build from a build for another torch, which need different remedies.
        return None, str(error)
    missing = [op for op in OPS if not hasattr(torch.ops.gan_fast, op)]
    if missing:
        return None, f"gan_fast._C is older than the Python sources: it lacks {', '.join(missing)}; build it again"
    return module, ""


_C, load_error = _load()

if _C is None:
    logger.warning(
        "the compiled extension is not available, using the reference (plain PyTorch): %s (build: %s)",
        load_error,
        BUILD_COMMAND,
    )


def available() -> bool:
    return _C is not None


def build_info() -> dict[str, str]:
    """Return the build's compiler, torch, instruction sets and CUDA architectures; empty if there is no build."""
    return {} if _C is None else dict(_C.build_info())


_DISPATCH_KEYS = {"cpu": "CPU", "cuda": "CUDA"}


def has_kernel(op: str, device_type: str) -> bool:
    """Whether the dispatcher has a kernel of ``torch.ops.gan_fast.<op>`` for a device type such as "cpu"."""
    key = _DISPATCH_KEYS.get(device_type)
    return _C is not None and key is not None and torch._C._dispatch_has_kernel_for_dispatch_key(f"gan_fast::{op}", key)
