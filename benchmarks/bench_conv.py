"""A gradient penalty through a critic of five convolutions: convolutions with a cheaper double backward."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import COMPILED, EAGER, GAN_FAST, TUNED, Case, Work, compiled, default_device
from benchmarks.providers import LAYOUTS, in_layouts
from gan_fast import ops

BATCH_SIZE, IMAGE_SIZE = 32, 64
CHANNELS = (3, 64, 128, 256, 512, 1)
NEGATIVE_SLOPE = 0.2
# Rounding may put a value on the other side of an activation's kink, which changes gradients by up to a thousandth.
TOLERANCE = 5e-3

# Computes a penalty from a critic and the points at which to take its gradient.
Penalty = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]


def penalty(critic: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """Return mean (||grad_x critic(x)|| - 1)^2 as people write it."""
    points = points.clone().requires_grad_()
    (grad,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
    return (grad.flatten(1).norm(dim=1) - 1).square().mean()


def penalty_tuned(critic: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    points = points.detach().requires_grad_()
    (grad,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
    return (torch.linalg.vector_norm(grad, dim=(1, 2, 3)) - 1).square_().mean()


def penalty_by_func(critic: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """Return the same with torch.func.grad, which torch.compile can trace: it supports no other double backward."""
    grad = torch.func.grad(lambda x: critic(x).sum())(points)
    return (torch.linalg.vector_norm(grad, dim=(1, 2, 3)) - 1).square().mean()


def bench_penalty(compare: Callable[[Case], None]) -> None:
    """The penalty and its gradients with respect to the weights.

    Tuned by hand: contiguous or channels-last, activations in place, one norm over all dimensions.
    torch.compile: the whole penalty with torch.func.grad, since compiled functions have no double backward.
    """
    device = default_device()
    torch.manual_seed(0)
    real = torch.randn(BATCH_SIZE, CHANNELS[0], IMAGE_SIZE, IMAGE_SIZE, device=device)
    shapes = [(after, before, 4, 4) for before, after in itertools.pairwise(CHANNELS)]
    drawn = [torch.randn(shape, device=device) * 0.02 for shape in shapes]

    def provider(
        functions: Any,
        layout: torch.memory_format,
        activation: Callable[[Tensor, float], Tensor],
        value: Penalty,
        wrap: Callable[..., Callable[[Tensor], Tensor]] = lambda function: function,
    ) -> Work:
        weights = [w.clone(memory_format=layout).requires_grad_() for w in drawn]
        points = real.contiguous(memory_format=layout)

        def critic(x: Tensor) -> Tensor:
            for weight in weights[:-1]:
                x = activation(functions.conv2d(x, weight, None, 2, 1), NEGATIVE_SLOPE)
            return functions.conv2d(x, weights[-1])

        loss = wrap(lambda x: value(critic, x))

        def work() -> dict[str, Tensor]:
            for weight in weights:
                weight.grad = None
            result = loss(points)
            result.backward()
            return {"penalty": result.detach(), **{f"weight{i}.grad": w.grad for i, w in enumerate(weights)}}

        return work

    providers = {
        EAGER: {
            f"{name}{words}": provider(F, layout, activation, penalty)
            for name, layout in LAYOUTS.items()
            for words, activation in (("", F.leaky_relu), (", in place", F.leaky_relu_))
        },
        TUNED: in_layouts(lambda layout: provider(F, layout, F.leaky_relu_, penalty_tuned)),
        COMPILED: provider(F, torch.channels_last, F.leaky_relu, penalty_by_func, compiled),
        GAN_FAST: in_layouts(lambda layout: provider(ops, layout, ops.leaky_relu, penalty)),
    }
    name = f"gradient penalty, critic of 5 convolutions ({BATCH_SIZE}x3x{IMAGE_SIZE}x{IMAGE_SIZE}) float32"
    compare(Case(name, providers, TOLERANCE, device))
