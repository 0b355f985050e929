"""The adversarial losses, forward and backward: tiny work, where calls cost more than arithmetic."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import steps
from benchmarks.harness import OURS, Case, Work, default_device, forward_backward
from gan_fast import ops
from gan_fast.ops.adversarial_loss import d_loss_and_means

TOLERANCE = 1e-5


def d_softplus(real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def g_softplus(fake: Tensor) -> Tensor:
    return F.softplus(-fake).mean()


def case(
    name: str, shape: tuple[int, ...], arguments: tuple[str, ...], losses: dict[str, Callable[..., Tensor]]
) -> Case:
    device = default_device()
    torch.manual_seed(0)
    logits = torch.randn(len(arguments), *shape, device=device)

    def work(loss: Callable[..., Tensor]) -> Work:
        leaves = {argument: x.clone().requires_grad_() for argument, x in zip(arguments, logits)}
        return forward_backward(lambda: loss(*leaves.values()), leaves)

    title = f"{name} forward + backward ({'x'.join(map(str, shape))}) float32"
    return Case(title, {provider: work(loss) for provider, loss in losses.items()}, TOLERANCE, device)


@pytest.mark.parametrize("shape", [(128,), (16, 1, 30, 30)], ids=["vector", "patches"])
def bench_d_loss(compare: Callable[[Case], None], shape: tuple[int, ...]) -> None:
    ones, zeros = torch.ones(shape, device=default_device()), torch.zeros(shape, device=default_device())

    def targets_made_once(real: Tensor, fake: Tensor) -> Tensor:
        bce = F.binary_cross_entropy_with_logits
        return bce(real, ones) + bce(fake, zeros)

    losses = {
        "eager": steps.d_loss,
        "eager, targets made once": targets_made_once,
        "eager, softplus": d_softplus,
        "torch.compile": torch.compile(steps.d_loss),
        OURS: ops.minimax_d_loss,
    }
    compare(case("minimax_d_loss", shape, ("real_logits", "fake_logits"), losses))


def logged_beside(loss: Tensor, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """What a training loop logs: mean D(x), mean D(G(z)), and the share that D places rightly."""
    with torch.no_grad():
        right = ((real > 0).float().mean() + (fake < 0).float().mean()) / 2
        return loss, torch.stack((torch.sigmoid(real).mean(), torch.sigmoid(fake).mean(), right))


@pytest.mark.parametrize("shape", [(128,), (16, 1, 30, 30)], ids=["vector", "patches"])
def bench_d_loss_and_means(compare: Callable[[Case], None], shape: tuple[int, ...]) -> None:
    def eager(real: Tensor, fake: Tensor) -> Tensor:
        return logged_beside(steps.d_loss(real, fake), real, fake)[0]

    def ours(real: Tensor, fake: Tensor) -> Tensor:
        return d_loss_and_means(real, fake)[0]

    losses = {"eager": eager, OURS: ours}
    compare(case("minimax_d_loss and what is logged with it,", shape, ("real_logits", "fake_logits"), losses))


@pytest.mark.parametrize(
    ("name", "eager", "ours"),
    [
        ("hinge_d_loss", steps.hinge_d_loss, ops.hinge_d_loss),
        ("least_squares_d_loss", steps.least_squares_d_loss, ops.least_squares_d_loss),
        (
            "relativistic_d_loss average",
            steps.relativistic_average_d_loss,
            functools.partial(ops.relativistic_d_loss, average=True),
        ),
    ],
)
def bench_other_d_losses(
    compare: Callable[[Case], None], name: str, eager: Callable[..., Tensor], ours: Callable[..., Tensor]
) -> None:
    losses = {"eager": eager, "torch.compile": torch.compile(eager), OURS: ours}
    compare(case(name, (128,), ("real_logits", "fake_logits"), losses))


def bench_g_loss(compare: Callable[[Case], None]) -> None:
    shape = (128,)
    ones = torch.ones(shape, device=default_device())
    losses = {
        "eager": steps.g_loss,
        "eager, targets made once": lambda fake: F.binary_cross_entropy_with_logits(fake, ones),
        "eager, softplus": g_softplus,
        "torch.compile": torch.compile(steps.g_loss),
        OURS: ops.minimax_g_loss,
    }
    compare(case("minimax_g_loss", shape, ("fake_logits",), losses))
