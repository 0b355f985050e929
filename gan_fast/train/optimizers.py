"""Optimizers in a trainer: which are taken, and an update that is skipped on the device."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import optimizer as optim

from gan_fast.train.undo import Kept


def checked_optimizer(owner: str, optimizer: Any, model: nn.Module) -> torch.optim.Optimizer:
    """Return an optimizer that can train a model.

    Args:
        owner: what the errors begin with.
        optimizer: any of torch.optim's, or derived from it, whose step needs no closure.
        model: the optimizer must have all of its parameters that require gradients, and no others.

    Raises:
        TypeError: not an optimizer.
        ValueError: it needs a closure; its parameters are not the model's.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"{owner}: expected type torch.optim.Optimizer, got {type(optimizer).__name__}")
    kind = type(optimizer).__name__
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(f"{owner}: expected an optimizer whose step needs no closure, got {kind}")
    names = {id(p): name for name, p in model.named_parameters()}
    own = [p for group in optimizer.param_groups for p in group["params"]]
    held = {id(p) for p in own}
    foreign = [tuple(p.shape) for p in own if id(p) not in names]
    missing = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in held]
    if foreign:
        raise ValueError(
            f"{owner}: expected the parameters of the trainer's {type(model).__name__}, got {len(foreign)} of "
            f"{len(own)} that are not (shapes {_some(foreign)}); missing {_some(missing) or 'none'}"
        )
    if missing:
        raise ValueError(
            f"{owner}: expected all parameters that require gradients, missing {_some(missing)}; "
            "requires_grad_(False) freezes those that are not to be trained"
        )
    return optimizer


def update_if_finite(optimizer: torch.optim.Optimizer) -> Tensor:
    """Step an optimizer unless a gradient is NaN or infinite, decided on the device.

    Returns:
        float32 scalar: 1 where nothing was updated, weights, moments and step count alike; else 0.

    Notes:
        torch's fused optimizers skip the update themselves, by ``found_inf``, as under ``torch.amp.GradScaler``. Any
        other runs, and what it changed is put back: parameters and state are copied before each of its steps. State
        that is not on the device (Python numbers; the step count of Adam on a GPU, unless capturable=True) makes the
        host wait at each step, and so do entries that appear, as moments do in the first step.

        A finite gradient of more than 1e19, whose square overflows, counts as infinite.
    """
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    grads = [g.coalesce().values() if g.layout is torch.sparse_coo else g for g in grads]
    found_inf = 1.0 - torch.nn.utils.get_total_norm(grads).isfinite().float()
    if _skips_by_itself(optimizer):
        optimizer.found_inf = found_inf  # type: ignore[attr-defined]
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf  # type: ignore[attr-defined]
    else:
        kept = Kept(containers(optimizer))
        optimizer.step()
        kept.undo(found_inf > 0)
    return found_inf


def containers(optimizer: torch.optim.Optimizer) -> list[dict[Any, Any] | list[Any]]:
    """Return the dicts and lists that hold an optimizer's parameters, settings, state and counters."""
    found: list[dict[Any, Any] | list[Any]] = []
    seen: set[int] = set()
    stack: list[Any] = [vars(optimizer)]
    while stack:
        value = stack.pop()
        if isinstance(value, torch.optim.Optimizer):
            # One that wraps another.
            value = vars(value)
        if id(value) in seen or not isinstance(value, (dict, list, tuple)):
            continue
        seen.add(id(value))
        if not isinstance(value, tuple):
            found.append(value)
        stack += value.values() if isinstance(value, dict) else value
    return found


def moments(optimizer: torch.optim.Optimizer) -> list[Any]:
    """Return the values of an optimizer's state: tensors and others, without the parameters."""
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


def kind_of(optimizer: torch.optim.Optimizer) -> str:
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"


def _skips_by_itself(optimizer: torch.optim.Optimizer) -> bool:
    """Whether ``found_inf`` makes all of a step do nothing."""
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        return False
    # What a subclass or a hook does in a step is not skipped.
    if not inspect.unwrap(type(optimizer).step).__module__.startswith("torch.optim."):
        return False
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return False
    if optim._global_optimizer_pre_hooks or optim._global_optimizer_post_hooks:
        return False
    if isinstance(optimizer, torch.optim.SGD):
        # Its first step leaves a momentum buffer without values where it is skipped.
        for group in optimizer.param_groups:
            if group["momentum"] and any(p not in optimizer.state for p in group["params"]):
                return False
    return all(group.get("fused") for group in optimizer.param_groups)


def _some(items: list[Any]) -> str:
    return ", ".join(map(str, items[:5])) + (f" and {len(items) - 5} more" if len(items) > 5 else "")
