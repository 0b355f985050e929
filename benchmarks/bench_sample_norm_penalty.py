"""The penalty of samples' norms, forward and backward, on gradients by a batch of images."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.harness import OURS, Case, Work, default_device, forward_backward
from gan_fast import ops

SHAPE = (32, 3, 64, 64)
TOLERANCE = 1e-5


def wgan_gp(grad: Tensor) -> Tensor:
    return ((grad.flatten(1).norm(dim=1) - 1) ** 2).mean()


def wgan_gp_by_hand(grad: Tensor) -> Tensor:
    return (torch.linalg.vector_norm(grad, dim=(1, 2, 3)) - 1).square_().mean()


def r1(grad: Tensor) -> Tensor:
    return 0.5 * grad.square().sum(dim=(1, 2, 3)).mean()


def r1_by_hand(grad: Tensor) -> Tensor:
    flat = grad.flatten()
    return torch.dot(flat, flat) * (0.5 / len(grad))


PENALTIES: dict[str, dict[str, Callable[[Tensor], Tensor]]] = {
    "center 1": {
        "eager": wgan_gp,
        "eager, vector_norm": wgan_gp_by_hand,
        OURS: lambda grad: ops.sample_norm_penalty(grad, center=1.0)[0],
    },
    "center 0": {
        "eager": r1,
        "eager, dot": r1_by_hand,
        OURS: lambda grad: ops.sample_norm_penalty(grad, scale=0.5)[0],
    },
}


@pytest.mark.parametrize("name", PENALTIES)
def bench_sample_norm_penalty(compare: Callable[[Case], None], name: str) -> None:
    device = default_device()
    torch.manual_seed(0)
    grad = torch.randn(SHAPE, device=device) / 100

    def work(penalty: Callable[[Tensor], Tensor]) -> Work:
        leaf = grad.clone().requires_grad_()
        return forward_backward(lambda: penalty(leaf), {"grad": leaf})

    providers = {**PENALTIES[name], "torch.compile": torch.compile(PENALTIES[name]["eager"])}
    title = f"sample_norm_penalty {name} forward + backward ({'x'.join(map(str, SHAPE))}) float32"
    compare(Case(title, {provider: work(penalty) for provider, penalty in providers.items()}, TOLERANCE, device))
