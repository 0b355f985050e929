"""Fast access to a module's tensors and hooks: nn.Module's attribute search is slow next to ops on small tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def weight_and_bias(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return ``module.weight, module.bias``."""
    parameters = module._parameters
    try:
        return parameters["weight"], parameters["bias"]  # type: ignore[return-value]
    except KeyError:
        # Pruning and nn.DataParallel's replicas make them plain attributes.
        return module.weight, module.bias  # type: ignore[return-value]


def running_statistics(module: nn.Module) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return ``module.running_mean, module.running_var, module.num_batches_tracked``."""
    buffers = module._buffers
    try:
        return buffers["running_mean"], buffers["running_var"], buffers["num_batches_tracked"]
    except KeyError:
        # A user may have made them parameters or plain attributes, and deleted the count.
        count = getattr(module, "num_batches_tracked", None)
        return module.running_mean, module.running_var, count  # type: ignore[return-value]


def has_hooks(module: nn.Module, before: bool = False) -> bool:
    """Whether calling a module runs more than its class's forward: hooks, a replaced forward, or torch.compile.

    Args:
        before: also count forward pre-hooks.
    """
    attributes = module.__dict__
    return bool(
        attributes["_forward_hooks"]
        or attributes["_backward_hooks"]
        or attributes["_backward_pre_hooks"]
        or (before and attributes["_forward_pre_hooks"])
        or "forward" in attributes
        or attributes.get("_compiled_call_impl") is not None
    )


def raise_torch_error(call: Callable[[], object]) -> None:
    """Run torch's version of a rejected call, so that a drop-in module raises torch's own error where torch has one."""
    try:
        with torch.no_grad():
            call()
    except Exception as error:
        raise error from None
