"""A penalty of each sample's norm, forward and backward, on the gradients of a batch of images."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.harness import COMPILED, EAGER, GAN_FAST, TUNED, Case, Work, compiled, default_device, forward_backward
from gan_fast import ops

SHAPE = (32, 3, 64, 64)
TOLERANCE = 1e-5


def wgan_gp(grad: Tensor) -> Tensor:
    return ((grad.flatten(1).norm(dim=1) - 1) ** 2).mean()


def wgan_gp_tuned(grad: Tensor) -> Tensor:
    return (torch.linalg.vector_norm(grad, dim=(1, 2, 3)) - 1).square_().mean()


def r1(grad: Tensor) -> Tensor:
    return 0.5 * grad.square().sum(dim=(1, 2, 3)).mean()


def r1_tuned(grad: Tensor) -> Tensor:
    flat = grad.flatten()
    return torch.dot(flat, flat) * (0.5 / len(grad))


PENALTIES: dict[str, tuple[Callable[[Tensor], Tensor], ...]] = {
    "center 1": (wgan_gp, wgan_gp_tuned, lambda grad: ops.sample_norm_penalty(grad, center=1.0)[0]),
    "center 0": (r1, r1_tuned, lambda grad: ops.sample_norm_penalty(grad, scale=0.5)[0]),
}


@pytest.mark.parametrize("name", PENALTIES)
def bench_sample_norm_penalty(compare: Callable[[Case], None], name: str) -> None:
    """Tuned by hand: one norm over all dimensions (center 1), one dot product (center 0)."""
    device = default_device()
    torch.manual_seed(0)
    grad = torch.randn(SHAPE, device=device) / 100
    eager, tuned, gan_fast = PENALTIES[name]

    def work(penalty: Callable[[Tensor], Tensor]) -> Work:
        leaf = grad.clone().requires_grad_()
        return forward_backward(lambda: penalty(leaf), {"grad": leaf})

    penalties = {EAGER: eager, TUNED: tuned, COMPILED: compiled(eager), GAN_FAST: gan_fast}
    title = f"sample_norm_penalty {name} forward + backward ({'x'.join(map(str, SHAPE))}) float32"
    compare(Case(title, {provider: work(penalty) for provider, penalty in penalties.items()}, TOLERANCE, device))
