"""Leaky ReLU whose second backward ends where ATen's goes on with zeros."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_fast import backends
from gan_fast.ops import autograd, checks

OP = "leaky_relu"
backends.register(OP, None)


class LeakyReLU(torch.autograd.Function):
    """aten::leaky_relu."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, negative_slope: float) -> Tensor:
        ctx.save_for_backward(input)
        ctx.negative_slope = negative_slope
        ctx.set_materialize_grads(False)
        return F.leaky_relu(input, negative_slope)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple[Tensor | None, None]:
        if grad_output is None:
            return None, None
        autograd.recording("leaky_relu_backward", grad_output)
        (input,) = ctx.saved_tensors
        return LeakyReLUBackward.apply(grad_output, input.detach(), ctx.negative_slope), None


class LeakyReLUBackward(torch.autograd.Function):
    """grad_output, times negative_slope where the input is not above zero: linear in grad_output, flat in the input."""

    @staticmethod
    def forward(ctx: Any, grad_output: Tensor, input: Tensor, negative_slope: float) -> Tensor:
        ctx.save_for_backward(input)
        ctx.negative_slope = negative_slope
        ctx.set_materialize_grads(False)
        return torch.ops.aten.leaky_relu_backward(grad_output, input, negative_slope, False)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor | None) -> tuple[Tensor | None, None, None]:
        if cotangent is None:
            return None, None, None
        autograd.recording("leaky_relu_backward", cotangent)
        (input,) = ctx.saved_tensors
        # None by the input, not zeros: a penalty's second backward then does not walk the first forward again.
        return LeakyReLUBackward.apply(cotangent, input, ctx.negative_slope), None, None


def leaky_relu(input: Tensor, negative_slope: float = 0.01) -> Tensor:
    """Return input where it is above zero, negative_slope * input elsewhere.

    Args:
        input: any shape and strides, float64, float32, bfloat16 or float16.
        negative_slope: slope below zero; 0 is ReLU.

    Returns:
        Tensor of input's shape, dtype and strides, as ``F.leaky_relu`` gives it.

    Raises:
        TypeError: wrong type or dtype.

    Notes:
        Derivatives: of any order. From the second on there is no gradient by ``input``, where ATen has zeros that all
        layers before it are then walked with.
        Values, NaN and infinities are ATen's.
    """
    checks.floating(OP, "input", input)
    if not isinstance(negative_slope, (int, float)):
        raise TypeError(f"{OP}: expected negative_slope type float, got {type(negative_slope).__name__}")
    if backends.native(OP, input.device.type) and not autograd.captured():
        output: Tensor = LeakyReLU.apply(input, negative_slope)
        return output
    return F.leaky_relu(input, negative_slope)
