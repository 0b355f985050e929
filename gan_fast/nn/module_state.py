"""What a module has, without nn.Module's search for it, which small tensors would feel."""

from __future__ import annotations

from torch import Tensor, nn


def weight_and_bias(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """``module.weight, module.bias``."""
    own = module._parameters
    try:
        return own["weight"], own["bias"]  # type: ignore[return-value]
    except KeyError:
        # Pruned, or a replica of nn.DataParallel: they are plain attributes.
        return module.weight, module.bias  # type: ignore[return-value]


def running_statistics(module: nn.Module) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """``module.running_mean, module.running_var, module.num_batches_tracked``."""
    own = module._buffers
    try:
        return own["running_mean"], own["running_var"], own["num_batches_tracked"]
    except KeyError:
        # Made parameters or plain attributes; the count may be gone where nobody counts.
        count = getattr(module, "num_batches_tracked", None)
        return module.running_mean, module.running_var, count  # type: ignore[return-value]


def has_hooks(module: nn.Module, before: bool = False) -> bool:
    """Whether somebody looks at what a module returns, or with ``before`` also at what it is given."""
    own = module.__dict__
    return bool(
        own["_forward_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or (before and own["_forward_pre_hooks"])
        or "forward" in own
        or own.get("_compiled_call_impl") is not None
    )
