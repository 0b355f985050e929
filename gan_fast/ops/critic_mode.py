"""Run any critic on ops with a cheap double backward.

Gradient penalties differentiate a critic twice. While they run it, its calls of torch's convolutions, linear layers and
(leaky) ReLUs are redirected to gan_fast's ops, which return the same values.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gan_fast import backends
from gan_fast.ops import checks, conv, recompute
from gan_fast.ops.leaky_relu import Rectified, rectify_in_place
from gan_fast.ops.leaky_relu import leaky_relu as out_of_place
from gan_fast.ops.linear import linear


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    supported = weight.dim() == 2 and (bias is None or bias.shape == weight.shape[:1])
    return (
        linear(input, weight, bias) if supported and backends.requested() != "triton" else F.linear(input, weight, bias)
    )


def _leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    if type(negative_slope) not in (int, float):
        return F.leaky_relu(input, negative_slope, inplace)
    return rectify_in_place(input, negative_slope) if inplace else out_of_place(input, negative_slope)


def _leaky_relu_(input: Tensor, negative_slope: float = 0.01) -> Tensor:
    return _leaky_relu(input, negative_slope, True)


def _relu(input: Tensor, inplace: bool = False) -> Tensor:
    return rectify_in_place(input, None) if inplace else Rectified.apply(input, None, False)


def _relu_(input: Tensor) -> Tensor:
    return _relu(input, True)


_REPLACEMENTS: dict[Callable[..., Any], Callable[..., Tensor]] = {
    torch.conv1d: conv.conv1d, torch.conv2d: conv.conv2d, torch.conv3d: conv.conv3d,
    torch.conv_transpose1d: conv.conv_transpose1d, torch.conv_transpose2d: conv.conv_transpose2d,
    torch.conv_transpose3d: conv.conv_transpose3d,
    F.linear: _linear,
    F.leaky_relu: _leaky_relu, F.leaky_relu_: _leaky_relu_,
    F.relu: _relu, torch.relu: _relu, Tensor.relu: _relu, torch.relu_: _relu_, Tensor.relu_: _relu_,
}  # fmt: skip


class _ReplaceOps(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        replacement = _REPLACEMENTS.get(func)
        # Checkpointing recomputes outside this mode and must then record the same nodes, so it gets torch's own.
        if replacement is not None and recompute.allowed() and _is_supported(*args, **(kwargs or {})):
            return replacement(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _is_supported(*args: Any, **kwargs: Any) -> bool:
    """Whether gan_fast's ops accept the tensors among the arguments."""
    tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
    return bool(tensors) and all(
        type(t) in (Tensor, torch.nn.Parameter) and t.dtype in checks.FLOATING and t.layout is torch.strided
        for t in tensors
    )


@contextmanager
def critic_mode(critic: Callable[..., Any]) -> Iterator[None]:
    """Redirect what ``critic`` calls in this thread inside the block to ops with a cheap double backward.

    Notes:
        Compiled modules and functions run eagerly, since torch.compile has no double backward.
        Under use_backend("reference"), functorch transforms and checkpointing nothing is redirected.
    """
    redirects = backends.requested() != "reference" and not torch._C._are_functorch_transforms_active()
    with _eagerly(critic), _ReplaceOps() if redirects else nullcontext():
        yield


def _eagerly(critic: Callable[..., Any]) -> AbstractContextManager[Any]:
    """Run the compiled parts of a critic eagerly."""
    # Without torch._dynamo nothing can have been compiled, and importing it takes seconds.
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    if isinstance(critic, nn.Module) and not any(map(_is_compiled, critic.modules())):
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
