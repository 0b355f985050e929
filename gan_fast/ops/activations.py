"""Apply an activation by its name, with ATen's ops."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_fast.choices import ACTIVATIONS
from gan_fast.ops import checks


def check(op: str, activation: str, negative_slope: float) -> None:
    checks.one_of(op, "activation", activation, ACTIVATIONS)
    checks.number(op, "negative_slope", negative_slope)


def apply(input: Tensor, activation: str, negative_slope: float) -> Tensor:
    """Return the activation of ``input``; only "leaky_relu" uses ``negative_slope``."""
    if activation == "relu":
        return F.relu(input)
    if activation == "leaky_relu":
        return F.leaky_relu(input, negative_slope)
    if activation == "tanh":
        return torch.tanh(input)
    if activation == "sigmoid":
        return torch.sigmoid(input)
    return input


def apply_over(output: Tensor, activation: str, negative_slope: float) -> Tensor:
    """Like :func:`apply`, but overwrite ``output``, to which the caller must hold the only reference."""
    if activation == "relu":
        return torch.relu_(output)
    # The gradient of leaky ReLU follows from its result only if the slope is positive.
    if activation == "leaky_relu" and negative_slope > 0:
        return F.leaky_relu_(output, negative_slope)
    if activation == "tanh":
        return torch.tanh_(output)
    if activation == "sigmoid":
        return torch.sigmoid_(output)
    return apply(output, activation, negative_slope)


def apply_to_result(output: Tensor, activation: str, negative_slope: float) -> Tensor:
    """Like :func:`apply_over`, but keep ``output`` where eager mode would save it for the gradient.

    ``F.leaky_relu`` saves its input, so that its result may be overwritten later; the others save their result.
    """
    by_input = activation == "leaky_relu" and output.requires_grad
    return (apply if by_input else apply_over)(output, activation, negative_slope)


def describe(activation: str, negative_slope: float) -> str:
    """Return the part of a module's repr that describes its activation."""
    slope = f", negative_slope={negative_slope}" if activation == "leaky_relu" else ""
    return f"activation={activation!r}{slope}"
