"""First and second derivatives of a function, by name: what the tests of ops compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def cotangent(like: Tensor, seed: int, dtype: torch.dtype) -> Tensor:
    """Return normal numbers of ``like``'s shape, dtype and device that ``dtype`` represents exactly."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(dtype).to(like)


def differentiated(arguments: dict[str, Any]) -> dict[str, Tensor]:
    """Return the arguments that require a gradient."""
    return {name: t for name, t in arguments.items() if isinstance(t, Tensor) and t.requires_grad}


def in_double(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments in float64, contiguous, as new leaves.

    ATen's own batch norm is wrong for some strides, such as (1, 2, 1, 2), with a contiguous gradient.
    """
    return {
        name: value.detach().double().contiguous().requires_grad_(value.requires_grad)
        if isinstance(value, Tensor)
        else value
        for name, value in arguments.items()
    }


def with_own_buffers(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments with copies of those tensors that a function may update: those without a gradient."""
    return {
        name: value.clone() if isinstance(value, Tensor) and not value.requires_grad else value
        for name, value in arguments.items()
    }


def second_order(
    function: Callable[..., Tensor], arguments: dict[str, Any], dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Return the output, the first gradients and the gradients of the first gradients along random directions.

    Args:
        dtype: directions are rounded to it, so that a float64 oracle sees the values that a lower precision sees.
    """
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
    """Return :func:`second_order` and the running statistics after the call; ``arguments`` keep theirs."""
    arguments = with_own_buffers(arguments)
    named = second_order(function, arguments, dtype)
    return named | {n: arguments[n] for n in ("running_mean", "running_var") if arguments.get(n) is not None}


def strides(t: Tensor) -> list[int]:
    """Return the strides of the dims of more than one element: the others have no meaning."""
    return [stride for size, stride in zip(t.shape, t.stride()) if size > 1]
