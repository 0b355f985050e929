"""Which implementation serves an op here, and why.

Device choice is PyTorch's dispatcher's. What is chosen here is whether an op runs on our kernels at all: they need the
native module and a kernel for the tensors' device; else the reference (plain ATen) serves, and says so once.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch.autograd import forward_ad

from gan_fast import extension

logger = logging.getLogger("gan_fast")

NAMES = ("auto", "reference", "cpu", "cuda", "triton")

# Looked up once: this module stands before every call of an op.
_functorch_active = torch._C._are_functorch_transforms_active
_tracing = torch._C._get_tracing_state

# Public op -> the native op whose kernel serves it, or None where ours are autograd nodes that serve without one; ops/
# registers its entries at import.
_native_ops: dict[str, str | None] = {}


def register(op: str, native_op: str | None) -> None:
    _native_ops[op] = native_op


def _check_name(name: str, origin: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{origin}: expected name one of {', '.join(NAMES)}, got {name!r}")
    return name


_requested = _check_name(os.environ.get("GAN_FAST_BACKEND", "auto"), "GAN_FAST_BACKEND")


def use_backend(name: str) -> AbstractContextManager[None]:
    """Ask for one implementation of every op inside the ``with`` block.

    Args:
        name: "auto" (our kernel where there is one, else the reference), "reference" (plain ATen), or "cpu", "cuda",
            "triton": that kernel or an error, never a silent fallback.

    Raises:
        ValueError: for another name.

    Notes:
        The choice is made when an op is called, for the whole process; backward runs on what its forward chose.
        ``GAN_FAST_BACKEND`` sets the choice outside of any block.
    """
    # Now, not on entering: a call without `with` does nothing else.
    return _use(_check_name(name, "use_backend"))


@contextlib.contextmanager
def _use(name: str) -> Iterator[None]:
    global _requested
    previous, _requested = _requested, name
    try:
        yield
    finally:
        _requested = previous


def _unavailable(op: str, device_type: str) -> str | None:
    """Why our kernels cannot serve ``op`` on a device, or None where they can."""
    native_op = _native_ops[op]
    if native_op is None:
        return None
    if not extension.available():
        return f"the native module is not built (build: {extension.BUILD_COMMAND})"
    if not extension.has_kernel(native_op, device_type):
        return f"no kernel for device {device_type}"
    return None


# Answers of automatic choice, so that each falling back is logged once.
_served: dict[tuple[str, str], bool] = {}


@torch.compiler.assume_constant_result
def _served_natively(op: str, device_type: str) -> bool:
    key = (op, device_type)
    if key not in _served:
        reason = _unavailable(op, device_type)
        # Without a native module extension.py has said so already, for all ops.
        if reason is not None and extension.available():
            logger.warning("%s on %s: the reference serves, because %s", op, device_type, reason)
        _served[key] = reason is None
    return _served[key]


def native(op: str, device_type: str) -> bool:
    """Whether our kernel serves this call; False sends it to the reference.

    Raises:
        RuntimeError: the backend asked for by name is not there; the message says how to get it.
    """
    requested = _requested
    if requested == "auto":
        # functorch (vmap, grad, jvp) and forward-mode AD cannot look into our autograd nodes; the reference is correct
        # under all of them.
        transformed = _functorch_active() or forward_ad._current_level >= 0
        return _served_natively(op, device_type) and not transformed
    if requested == "reference":
        return False
    if requested == "triton":
        raise RuntimeError(f"{op}: expected backend triton to be available, got no Triton kernel for this op")
    if requested != device_type:
        raise RuntimeError(f"{op}: expected input device {requested} for backend {requested}, got {device_type}")
    reason = _unavailable(op, device_type)
    if reason is not None:
        raise RuntimeError(f"{op}: expected backend {requested} to be available, got: {reason}")
    return True


# Up to so many values ATen's own chain of ops is the quicker one: nodes in Python cost more than our kernels save.
SMALL = 8192


def small(input: object, beside: object = None) -> bool:
    """Whether automatic choice leaves a call to ATen: one or two tensors on one device, of a few values each."""
    if _requested != "auto" or not isinstance(input, torch.Tensor) or _tracing() or torch.compiler.is_compiling():
        # Sizes that are looked at become part of a trace or a graph.
        return False
    if input.numel() > SMALL or not input.dtype.is_floating_point:
        return False
    return beside is None or (
        isinstance(beside, torch.Tensor) and beside.numel() <= SMALL and beside.device == input.device
    )


def _explain(op: str, device_type: str) -> str:
    if _requested == "reference":
        return "reference: asked for by name"
    reason = _unavailable(op, device_type)
    small = f"up to {SMALL} values ATen's own op"
    if _requested == "auto" and _native_ops[op] is None:
        return f"our autograd nodes around the kernel that is quicker, ATen's or ours; {small}"
    if _requested == "auto":
        return f"reference: {reason}" if reason else f"{device_type} kernel: native kernel registered; {small}"
    try:
        native(op, device_type)
    except RuntimeError as error:
        return f"error: {error}"
    return f"{device_type} kernel: asked for by name"


def info() -> str:
    """Tell what serves each op on this machine and why, as text; also ``gan-fast info``."""
    build = extension.build_info()
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    lines = [f"torch {torch.__version__}, {torch.get_num_threads()} CPU threads"]
    if build:
        lines.append(
            f"native module: {build['compiler']}, built with torch {build['torch']}, "
            f"CPU instruction set {build['instruction_set']} (best here: {build['best_instruction_set']}), "
            f"CUDA {build['cuda_architectures'] or 'not built'}"
        )
    else:
        lines.append(f"native module: not loaded: {extension.load_error}")
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        lines.append(f"GPU {index}: {torch.cuda.get_device_name(index)}")
    lines.append(f"backend asked for: {_requested}")
    width = max(len(op) for op in _native_ops)
    for op in sorted(_native_ops):
        for device in devices:
            lines.append(f"  {op:<{width}}  {device:<4}  {_explain(op, device)}")
    return "\n".join(lines)
