"""Parameters and buffers of a module without nn.Module's search for them, which small tensors would feel."""

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
