"""Activations by name, on plain ATen."""

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
    """Apply the activation called ``activation``; ``negative_slope`` matters to "leaky_relu" alone."""
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
    """As :func:`apply`, written over ``output``, which nobody else has seen."""
    if activation == "relu":
        return torch.relu_(output)
    if activation == "leaky_relu" and negative_slope > 0:
        return F.leaky_relu_(output, negative_slope)
    if activation == "tanh":
        return torch.tanh_(output)
    if activation == "sigmoid":
        return torch.sigmoid_(output)
    return apply(output, activation, negative_slope)


def apply_to_result(output: Tensor, activation: str, negative_slope: float) -> Tensor:
    """As :func:`apply_over`, but what the gradient needs outlives a later write to the result where it does in eager.

    ``F.leaky_relu`` keeps its input; the others keep their result.
    """
    by_input = activation == "leaky_relu" and output.requires_grad
    return (apply if by_input else apply_over)(output, activation, negative_slope)


def describe(activation: str, negative_slope: float) -> str:
    """Return what a module with an activation adds to its repr."""
    slope = f", negative_slope={negative_slope}" if activation == "leaky_relu" else ""
    return f"activation={activation!r}{slope}"
