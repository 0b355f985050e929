"""What tests of derivatives share: a function's output, gradients and gradients of gradients, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def cotangent(like: Tensor, seed: int, dtype: torch.dtype) -> Tensor:
    """Drawn in float64, rounded to ``dtype``, and of ``like``'s own dtype and device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(dtype).to(like)


def differentiated(arguments: dict[str, Any]) -> dict[str, Tensor]:
    """The arguments that require a gradient."""
    return {name: t for name, t in arguments.items() if isinstance(t, Tensor) and t.requires_grad}


def in_double(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.detach().double().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }


def with_own_buffers(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same, but for copies of the tensors that a function may change: those without a gradient."""
    return {
        name: value.clone() if isinstance(value, Tensor) and not value.requires_grad else value
        for name, value in arguments.items()
    }


def second_order(
    function: Callable[..., Tensor], arguments: dict[str, Any], dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Output, first gradients, and gradients of <first gradients, directions representable in dtype>; by name."""
    named = differentiated(arguments)
    output = function(**arguments)
    dtype = dtype or output.dtype
    grad_output = cotangent(output, 1, dtype).requires_grad_()
    first = torch.autograd.grad(output, list(named.values()), grad_output, create_graph=True)
    scalar = sum((g * cotangent(g, seed, dtype)).sum() for seed, g in enumerate(first, 2))
    second = torch.autograd.grad(scalar, [grad_output, *named.values()], allow_unused=True)
    result = {"output": output.detach()}
    result |= {f"grad_{name}": g.detach() for name, g in zip(named, first)}
    result |= {f"second_{name}": g for name, g in zip(["grad_output", *named], second) if g is not None}
    return result


def second_order_and_statistics(
    function: Callable[..., Tensor], arguments: dict[str, Any], dtype: torch.dtype
) -> dict[str, Tensor]:
    """What :func:`second_order` gives, and the running statistics that ``function`` left in copies of its own."""
    arguments = with_own_buffers(arguments)
    named = second_order(function, arguments, dtype)
    return named | {n: arguments[n] for n in ("running_mean", "running_var") if arguments.get(n) is not None}


def strides(t: Tensor) -> list[int]:
    """Of the dims that have one: the stride of a single element says nothing."""
    return [stride for size, stride in zip(t.shape, t.stride()) if size > 1]
