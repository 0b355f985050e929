"""A convolution and LeakyReLU as one op: a critic's first layer, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.harness import OURS, Case, Work, default_device, forward_backward
from gan_fast.nn import ConvAct2d

TOLERANCE = 1e-3
BATCH, WIDTH = 32, 64


def bench_first_layer(compare: Callable[[Case], None]) -> None:
    torch.manual_seed(0)
    ours = ConvAct2d(3, WIDTH, 4, 2, 1, negative_slope=0.2).to(default_device())
    eager = nn.Sequential(nn.Conv2d(3, WIDTH, 4, 2, 1), nn.LeakyReLU(0.2)).to(default_device())
    eager[0].load_state_dict(ours.conv.state_dict())
    x = torch.randn(BATCH, 3, 64, 64, device=default_device())

    def work(layer: nn.Module) -> Work:
        leaves: dict[str, Tensor] = {name.rsplit(".", 1)[-1]: parameter for name, parameter in layer.named_parameters()}
        return forward_backward(lambda: layer(x).square().sum(), leaves)

    title = f"conv2d_act (leaky_relu), forward + backward ({BATCH}x3x64x64 to {WIDTH} channels) float32"
    compare(Case(title, {"eager": work(eager), OURS: work(ours)}, TOLERANCE, default_device()))
