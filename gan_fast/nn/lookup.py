"""Parameters of a module without nn.Module's search for them, which small tensors would feel."""

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
