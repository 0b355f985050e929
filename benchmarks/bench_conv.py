"""A gradient penalty through a critic of five convolutions: where the lean double backward pays."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import OURS, Case, Work, default_device
from gan_fast import ops

BATCH_SIZE, IMAGE_SIZE = 32, 64
CHANNELS = (3, 64, 128, 256, 512, 1)
NEGATIVE_SLOPE = 0.2
TOLERANCE = 1e-4

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def penalty(functions: Any, real: Tensor, weights: list[Tensor]) -> Work:
    """mean (||grad_x critic(x)|| - 1)^2 and its gradients by the weights, by ``functions``' conv2d and leaky_relu."""

    def critic(x: Tensor) -> Tensor:
        for weight in weights[:-1]:
            x = functions.leaky_relu(functions.conv2d(x, weight, None, 2, 1), NEGATIVE_SLOPE)
        return functions.conv2d(x, weights[-1])

    def work() -> dict[str, Tensor]:
        for weight in weights:
            weight.grad = None
        x = real.clone().requires_grad_()
        (grad,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
        loss = (grad.flatten(1).norm(dim=1) - 1).square().mean()
        loss.backward()
        return {"penalty": loss.detach(), **{f"weight{i}.grad": w.grad for i, w in enumerate(weights)}}

    return work


@pytest.mark.parametrize("layout", LAYOUTS)
def bench_penalty(compare: Callable[[Case], None], layout: str) -> None:
    device = default_device()
    torch.manual_seed(0)
    real = torch.randn(BATCH_SIZE, CHANNELS[0], IMAGE_SIZE, IMAGE_SIZE, device=device)
    shapes = [(after, before, 4, 4) for before, after in itertools.pairwise(CHANNELS)]
    drawn = [torch.randn(shape, device=device) * 0.02 for shape in shapes]

    def provider(functions: Any, memory_format: torch.memory_format) -> Work:
        weights = [w.clone(memory_format=memory_format).requires_grad_() for w in drawn]
        return penalty(functions, real.contiguous(memory_format=memory_format), weights)

    providers = {"eager": provider(F, LAYOUTS[layout]), OURS: provider(ops, LAYOUTS[layout])}
    name = f"gradient penalty, critic of 5 convolutions ({BATCH_SIZE}x3x{IMAGE_SIZE}x{IMAGE_SIZE}) float32 {layout}"
    compare(Case(name, providers, TOLERANCE, device))
