"""A convolution and LeakyReLU as one op: a critic's first layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from benchmarks import providers
from benchmarks.harness import Case, default_device
from gan_fast.nn import ConvAct2d

TOLERANCE = 1e-3
BATCH, WIDTH, SLOPE = 32, 64, 0.2


def bench_first_layer(compare: Callable[[Case], None]) -> None:
    """Forward and backward, without the gradient of the images.

    Tuned by hand: channels-last, activation in place, ATen called without modules.
    """
    device = default_device()
    torch.manual_seed(0)
    images, grad = torch.randn(BATCH, 3, 64, 64, device=device), torch.randn(BATCH, WIDTH, 32, 32, device=device)
    every = providers.network_providers(
        lambda inplace: nn.Sequential(nn.Conv2d(3, WIDTH, 4, 2, 1), nn.LeakyReLU(SLOPE, inplace)),
        lambda: ConvAct2d(3, WIDTH, 4, 2, 1, activation="leaky_relu", negative_slope=SLOPE),
        providers.training_work(images, grad),
        device,
    )
    name = f"conv2d_act (leaky_relu), forward + backward ({BATCH}x3x64x64 to {WIDTH} channels) float32"
    compare(Case(name, every, TOLERANCE, device))
