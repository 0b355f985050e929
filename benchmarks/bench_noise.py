"""Images moved at random, forward: on a CPU the generator takes most of the time, and what it draws is the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.harness import OURS, Case, Work, default_device
from gan_fast import ops

SHAPE = (32, 3, 64, 64)
# Providers draw the same numbers in the same order; on a GPU ours are others.
TOLERANCE = 1e-6 if default_device().type == "cpu" else 2.0


def interpolate(real: Tensor, fake: Tensor) -> Tensor:
    u = torch.rand(len(real), 1, 1, 1, device=real.device)
    return real + u * (fake - real)


def perturb(real: Tensor, fake: Tensor) -> Tensor:
    u = torch.rand(len(real), 1, 1, 1, device=real.device)
    return real + u * 0.5 * real.std() * torch.rand_like(real)


def add_noise(real: Tensor, fake: Tensor) -> Tensor:
    return real + 0.1 * torch.randn_like(real)


OPS: dict[str, dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "interpolate": {"eager": interpolate, OURS: ops.interpolate_samples},
    "perturb": {"eager": perturb, OURS: lambda real, fake: ops.perturb(real)},
    "add_noise": {"eager": add_noise, OURS: lambda real, fake: ops.add_noise(real, 0.1)},
}


@pytest.mark.parametrize("op", OPS)
def bench_noise(compare: Callable[[Case], None], op: str) -> None:
    device = default_device()
    torch.manual_seed(0)
    real, fake = torch.randn(2, *SHAPE, device=device)

    def work(function: Callable[[Tensor, Tensor], Tensor]) -> Work:
        return lambda: {"output": function(real, fake)}

    title = f"{op} forward ({'x'.join(map(str, SHAPE))}) float32"
    compare(Case(title, {provider: work(function) for provider, function in OPS[op].items()}, TOLERANCE, device))
