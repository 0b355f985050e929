"""The moving average of a model, and the tensors of a model that training changes in small steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gan_fast.nn.fuse import copied
from gan_fast.train.undo import same_metadata, storage_id, unexpanded

_RUNNING_STATISTICS = ("running_mean", "running_var")
_AVERAGED_DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128}


def make_average(op: str, model: nn.Module) -> nn.Module:
    """Return a copy of a model in evaluation mode, without gradients, for :func:`update_average`.

    Raises:
        ValueError: the model cannot be copied.
    """
    return copied(op, model).eval().requires_grad_(False)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, weight: Tensor) -> None:
    """Update the average of a model by one step: average = (1 - weight) * average + weight * model.

    Args:
        average: a copy of the model, updated in place.
        model: its parameters and running statistics are averaged; its other buffers are copied.
        weight: scalar tensor on their device. A Python number would be frozen in a CUDA graph.

    Notes:
        Other buffers are copied because averaging a mask, a counter or the unit vector of spectral norm gives no valid
        value. Running statistics are those of torch.nn's batch and instance norms and of their subclasses; a running
        mean in a buffer of any other layer is copied.

        A frozen parameter stays equal to the model's where the two already agree, even at infinity. A tensor that the
        model added, or replaced by one of another shape, is copied.
    """
    weights: dict[torch.dtype, Tensor] = {}
    averaged_storages: set[int] = set()
    updated: set[Any] = set()
    copied_later: list[tuple[nn.Module, nn.Module, str]] = []
    for mean, module in _module_pairs(average, model):
        for name, now in module._parameters.items():
            have: Tensor | None = mean._parameters.get(name)
            if now is None:
                continue
            if have is None or not same_metadata(have, now):
                mean.register_parameter(name, nn.Parameter(now.detach().clone(), requires_grad=False))
            elif id(have) not in updated:
                updated.add(id(have))
                averaged_storages.add(storage_id(have))
                _lerp(have, now, weight, weights, frozen=not now.requires_grad)
        for name, buffer in module._buffers.items():
            have = mean._buffers.get(name)
            if (
                is_running_statistic(module, name)
                and buffer is not None
                and have is not None
                and same_metadata(have, buffer)
            ):
                # Two statistics can be views of the same memory.
                if (have.data_ptr(), have.shape) not in updated:
                    updated.add((have.data_ptr(), have.shape))
                    averaged_storages.add(storage_id(have))
                    _lerp(have, buffer, weight, weights)
            elif buffer is not have:
                copied_later.append((mean, module, name))
    # A buffer that is a view of an averaged tensor has its value already.
    for mean, module, name in copied_later:
        have = mean._buffers.get(name)
        if have is None or storage_id(have) not in averaged_storages:
            set_buffer(mean, name, module._buffers[name], name not in module._non_persistent_buffers_set)


def set_buffer(owner: nn.Module, name: str, value: Tensor | None, persistent: bool = True) -> None:
    """Set a buffer: in place if its tensor can hold the value, else as a new tensor."""
    have = owner._buffers.get(name)
    if have is not None and value is not None and same_metadata(have, value):
        target, source = unexpanded(have, have), unexpanded(value, have)
        # An expanded buffer holds only values that are expanded in the same dims.
        if target is have or value.stride() == have.stride():
            target.copy_(source)
            return
    owner.__dict__.pop(name, None)
    owner._buffers[name] = None if value is None else value.detach().clone()
    (owner._non_persistent_buffers_set.discard if persistent else owner._non_persistent_buffers_set.add)(name)


def is_running_statistic(module: nn.Module, name: str) -> bool:
    """Return whether a buffer of a module is a running mean or variance of a norm of torch.nn."""
    return name in _RUNNING_STATISTICS and isinstance(module, nn.modules.batchnorm._NormBase)


def trained_tensors(model: nn.Module, average: nn.Module | None = None) -> list[Tensor]:
    """Return the parameters that require gradients and the running statistics of a model.

    These must stay finite for training to continue; a frozen parameter or a mask in a buffer may hold infinities.

    Args:
        model: decides which tensors are returned.
        average: its tensors are returned in place of the model's.
    """
    tensors: dict[int, Tensor] = {}
    for source, module in _module_pairs(average or model, model):
        for name, p in module._parameters.items():
            if p is not None and p.requires_grad:
                tensors[id(p)] = source._parameters[name]  # type: ignore[assignment]
        for name, b in module._buffers.items():
            if b is not None and is_running_statistic(module, name):
                tensors[id(b)] = source._buffers[name]  # type: ignore[assignment]
    return list(tensors.values())


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether all values of floating point or complex tensors are finite; waits for the device."""
    return bool(torch.stack([t.detach().isfinite().all() for t in tensors if t.dtype in _AVERAGED_DTYPES]).all())


def _module_pairs(average: nn.Module, model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yield each module of a model once, with its counterpart in the average, which is added if it is missing."""
    seen: set[int] = set()
    stack = [(average, model)]
    while stack:
        mean, module = stack.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield mean, module
        for name, child in module._modules.items():
            if child is None:
                continue
            other = mean._modules.get(name)
            if other is None:
                mean._modules[name] = other = make_average("Trainer", child)
            stack.append((other, child))


def _lerp(
    average: Tensor, now: Tensor, weight: Tensor, weights: dict[torch.dtype, Tensor], frozen: bool = False
) -> None:
    """Move ``average`` towards ``now`` by ``weight``, of which ``weights`` caches a copy for each dtype."""
    if average.dtype not in _AVERAGED_DTYPES:
        average.copy_(now)
        return
    if average.dtype not in weights:
        weights[average.dtype] = weight.to(average.dtype)
    step = weights[average.dtype]
    if frozen:
        # A frozen mask may hold infinities, and infinity minus infinity is NaN.
        average.copy_(torch.where(average == now, average, average.lerp(now, step)))
    else:
        average.lerp_(now, step)
