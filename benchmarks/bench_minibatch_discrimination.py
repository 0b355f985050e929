"""Minibatch discrimination, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.harness import COMPILED, EAGER, GAN_FAST, TUNED, Case, Work, compiled, default_device, forward_backward
from gan_fast import ops

TOLERANCE = 1e-4
IN_FEATURES = 512


def project(x: Tensor, weight: Tensor) -> Tensor:
    return (x @ weight.flatten(1)).view(x.size(0), *weight.shape[1:])


def by_pairs(x: Tensor, weight: Tensor) -> Tensor:
    m = project(x, weight)
    closeness = torch.exp(-(m.unsqueeze(0) - m.unsqueeze(1)).abs().sum(3)).sum(0) - 1
    return torch.cat([x, closeness], 1)


def by_cdist(x: Tensor, weight: Tensor) -> Tensor:
    m = project(x, weight).transpose(0, 1)
    closeness = torch.exp(-torch.cdist(m, m, 1)).sum(2) - 1
    return torch.cat([x, closeness.T], 1)


@pytest.mark.parametrize(("n", "b", "c"), [(64, 100, 5), (128, 64, 16)], ids=str)
def bench_minibatch_discrimination(compare: Callable[[Case], None], n: int, b: int, c: int) -> None:
    """Eager: the usual formula over all pairs. Tuned by hand: torch.cdist, which has no second derivative."""
    device = default_device()
    torch.manual_seed(0)
    x, weight = (torch.randn(shape, device=device) / 10 for shape in ((n, IN_FEATURES), (IN_FEATURES, b, c)))
    grad = torch.randn(n, IN_FEATURES + b, device=device)

    def work(function: Callable[[Tensor, Tensor], Tensor]) -> Work:
        leaves = {"x": x.clone().requires_grad_(), "weight": weight.clone().requires_grad_()}
        return forward_backward(lambda: function(*leaves.values()), leaves, grad)

    functions = {
        EAGER: by_pairs,
        TUNED: by_cdist,
        COMPILED: compiled(by_pairs),
        GAN_FAST: ops.minibatch_discrimination,
    }
    title = f"minibatch_discrimination forward + backward (N={n}, B={b}, C={c}) float32"
    compare(Case(title, {name: work(function) for name, function in functions.items()}, TOLERANCE, device))
