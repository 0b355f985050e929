"""The average of a model, and which of a model's tensors are values that training moves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gan_fast.nn.fuse import copied
from gan_fast.train.undo import alike, dense, storage_of

_STATISTICS = ("running_mean", "running_var")
_LERP = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128}


def average_of(op: str, model: nn.Module) -> nn.Module:
    """Return a copy of a model in evaluation mode, without gradients, for :func:`move_average`.

    Raises:
        ValueError: the model cannot be copied.
    """
    return copied(op, model).eval().requires_grad_(False)


@torch.no_grad()
def move_average(average: nn.Module, model: nn.Module, weight: Tensor) -> None:
    """Move the average of a model one step: average = (1 - weight) * average + weight * model.

    Args:
        average: a copy of the model, written in place.
        model: its parameters and running statistics are averaged; every other buffer is copied.
        weight: scalar on their device: a number would be frozen in a CUDA graph.

    Notes:
        A mask, a counter or a unit vector of spectral norm is no average of its past values. Running statistics are
        those of torch.nn's batch and instance norms and the norms derived from them; a running mean that a layer keeps
        in a buffer of its own is copied. A parameter that does not require gradients keeps its value where that of the
        model is the same, an infinity included. What the model replaced by a tensor of another shape, or added, the
        average takes over as it is.
    """
    weights: dict[torch.dtype, Tensor] = {}
    averaged: set[int] = set()
    moved: set[Any] = set()
    rest: list[tuple[nn.Module, nn.Module, str]] = []
    for mean, module in _pairs(average, model):
        for name, now in module._parameters.items():
            have: Tensor | None = mean._parameters.get(name)
            if now is None:
                continue
            if have is None or not alike(have, now):
                mean.register_parameter(name, nn.Parameter(now.detach().clone(), requires_grad=False))
            elif id(have) not in moved:
                moved.add(id(have))
                averaged.add(storage_of(have))
                _move(have, now, weight, weights, constant=not now.requires_grad)
        for name, buffer in module._buffers.items():
            have = mean._buffers.get(name)
            if is_statistic(module, name) and buffer is not None and have is not None and alike(have, buffer):
                # Two statistics can be views of the same memory.
                if (have.data_ptr(), have.shape) not in moved:
                    moved.add((have.data_ptr(), have.shape))
                    averaged.add(storage_of(have))
                    _move(have, buffer, weight, weights)
            elif buffer is not have:
                rest.append((mean, module, name))
    for mean, module, name in rest:
        have = mean._buffers.get(name)
        if have is None or storage_of(have) not in averaged:
            put_buffer(mean, name, module._buffers[name], name not in module._non_persistent_buffers_set)


def put_buffer(owner: nn.Module, name: str, value: Tensor | None, persistent: bool = True) -> None:
    """Give a buffer a value: in place where the buffer can hold it, else as a new tensor."""
    have = owner._buffers.get(name)
    if have is not None and value is not None and alike(have, value):
        target, source = dense(have, have), dense(value, have)
        # A value of an expanded buffer stands for many, so the new one must be expanded alike.
        if target is have or value.stride() == have.stride():
            target.copy_(source)
            return
    owner.__dict__.pop(name, None)
    owner._buffers[name] = None if value is None else value.detach().clone()
    (owner._non_persistent_buffers_set.discard if persistent else owner._non_persistent_buffers_set.add)(name)


def is_statistic(module: nn.Module, name: str) -> bool:
    """Whether a buffer of a module holds the running statistics of a norm."""
    return name in _STATISTICS and isinstance(module, nn.modules.batchnorm._NormBase)


def moving_tensors(model: nn.Module, average: nn.Module | None = None) -> list[Tensor]:
    """Return what training moves by small steps, and what must stay finite for it to go on.

    Parameters that require gradients and running statistics. A mask in a buffer or a frozen parameter may hold
    infinities. Of ``average``, if given: the tensors that average these of ``model``.
    """
    tensors: dict[int, Tensor] = {}
    for holder, module in _pairs(average or model, model):
        for name, p in module._parameters.items():
            if p is not None and p.requires_grad:
                tensors[id(p)] = holder._parameters[name]  # type: ignore[assignment]
        for name, b in module._buffers.items():
            if b is not None and is_statistic(module, name):
                tensors[id(b)] = holder._buffers[name]  # type: ignore[assignment]
    return list(tensors.values())


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Tell whether all values are finite; waits for the device."""
    return bool(torch.stack([t.detach().isfinite().all() for t in tensors if t.dtype in _LERP]).all())


def _pairs(average: nn.Module, model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Each module of a model once, with its counterpart in the average; a module that is new gets one."""
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
                mean._modules[name] = other = average_of("Trainer", child)
            stack.append((other, child))


def _move(
    average: Tensor, now: Tensor, weight: Tensor, weights: dict[torch.dtype, Tensor], constant: bool = False
) -> None:
    if average.dtype not in _LERP:
        average.copy_(now)
        return
    if average.dtype not in weights:
        weights[average.dtype] = weight.to(average.dtype)
    step = weights[average.dtype]
    if constant:
        # Infinity minus infinity is not 0.
        average.copy_(torch.where(average == now, average, average.lerp(now, step)))
    else:
        average.lerp_(now, step)
