"""Check the optimizers of a trainer, and skip an update on the device."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import optimizer as optim

from gan_fast.train.undo import SavedValues


def checked_optimizer(owner: str, optimizer: Any, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer, after checking that it can train a model.

    Args:
        owner: the start of each error message.
        optimizer: any torch optimizer whose step needs no closure.
        model: the optimizer must hold all of its parameters that require gradients, and no parameter of another model.

    Raises:
        TypeError: not an optimizer.
        ValueError: its step needs a closure, or its parameters are not those of the model.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"{owner}: expected an optimizer (torch.optim.Optimizer), got {type(optimizer).__name__}")
    name = type(optimizer).__name__
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(f"{owner}: expected an optimizer whose step needs no closure, got {name}")
    names = {id(p): name for name, p in model.named_parameters()}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    held_ids = {id(p) for p in held}
    foreign = [tuple(p.shape) for p in held if id(p) not in names]
    missing = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in held_ids]
    if foreign:
        raise ValueError(
            f"{owner}: expected the parameters of the trainer's {type(model).__name__}, got {len(foreign)} of "
            f"{len(held)} that are not (shapes {_first_five(foreign)}); missing {_first_five(missing) or 'none'}"
        )
    if missing:
        raise ValueError(
            f"{owner}: expected all parameters that require gradients, missing {_first_five(missing)}; "
            "call requires_grad_(False) on parameters that should not be trained"
        )
    return optimizer


def update_if_finite(optimizer: torch.optim.Optimizer) -> Tensor:
    """Step an optimizer unless a gradient is NaN or infinite, which is decided on the device.

    Returns:
        float32 scalar: 1 if the step was skipped, so that weights, moments and step count are unchanged; else 0.

    Notes:
        torch's fused optimizers skip the update themselves if ``found_inf`` is set, as under
        ``torch.amp.GradScaler``. Any other optimizer makes its step, and what the step changed is restored: parameters
        and state are copied before each step. The host waits in each step for state that is not on the device (Python
        numbers; the step count of Adam on a GPU, unless ``capturable=True``) and for new entries, such as the moments
        in the first step.

        A finite gradient above 1e19 counts as infinite, because its square overflows.
    """
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    grads = [g.coalesce().values() if g.layout is torch.sparse_coo else g for g in grads]
    found_inf = 1.0 - torch.nn.utils.get_total_norm(grads).isfinite().float()
    if _obeys_found_inf(optimizer):
        optimizer.found_inf = found_inf  # type: ignore[attr-defined]
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf  # type: ignore[attr-defined]
    else:
        saved = SavedValues(state_containers(optimizer))
        optimizer.step()
        saved.restore_if(found_inf > 0)
    return found_inf


def state_containers(optimizer: torch.optim.Optimizer) -> list[dict[Any, Any] | list[Any]]:
    """Return the dicts and lists that hold an optimizer's parameters, settings, state and counters."""
    found: list[dict[Any, Any] | list[Any]] = []
    seen: set[int] = set()
    stack: list[Any] = [vars(optimizer)]
    while stack:
        value = stack.pop()
        if isinstance(value, torch.optim.Optimizer):
            # An optimizer that wraps another one keeps it in an attribute.
            value = vars(value)
        if id(value) in seen or not isinstance(value, (dict, list, tuple)):
            continue
        seen.add(id(value))
        if not isinstance(value, tuple):
            found.append(value)
        stack += value.values() if isinstance(value, dict) else value
    return found


def state_values(optimizer: torch.optim.Optimizer) -> list[Any]:
    """Return the values of an optimizer's state, such as moments and step counts: tensors and others."""
    values: list[Any] = []
    stack: list[Any] = list(optimizer.state.values())
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            stack += value.values()
        elif isinstance(value, (list, tuple)):
            stack += value
        else:
            values.append(value)
    return values


def type_name(optimizer: torch.optim.Optimizer) -> str:
    """Return the qualified name of the optimizer's class, as saved in a checkpoint."""
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"


def _obeys_found_inf(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether setting ``found_inf`` makes a whole step do nothing."""
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        return False
    # The code of a subclass or a hook runs even if torch's own step does nothing.
    if not inspect.unwrap(type(optimizer).step).__module__.startswith("torch.optim."):
        return False
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return False
    if optim._global_optimizer_pre_hooks or optim._global_optimizer_post_hooks:
        return False
    if isinstance(optimizer, torch.optim.SGD):
        # A first step that is skipped would leave the momentum buffer uninitialized.
        for group in optimizer.param_groups:
            if group["momentum"] and any(p not in optimizer.state for p in group["params"]):
                return False
    return all(group.get("fused") for group in optimizer.param_groups)


def _first_five(items: list[Any]) -> str:
    return ", ".join(map(str, items[:5])) + (f" and {len(items) - 5} more" if len(items) > 5 else "")
