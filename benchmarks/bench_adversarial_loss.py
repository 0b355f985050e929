"""The adversarial losses, forward and backward: tiny work, in which calls cost more than arithmetic."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import steps
from benchmarks.harness import COMPILED, EAGER, GAN_FAST, TUNED, Case, Work, compiled, default_device, forward_backward
from gan_fast import ops
from gan_fast.ops.adversarial_loss import d_loss_and_means

TOLERANCE = 1e-5
VECTOR, PATCHES = (128,), (16, 1, 30, 30)

Loss = Callable[..., Tensor]


def d_softplus(real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def g_softplus(fake: Tensor) -> Tensor:
    return F.softplus(-fake).mean()


def case(
    name: str, shape: tuple[int, ...], arguments: tuple[str, ...], losses: Mapping[str, Loss | Mapping[str, Loss]]
) -> Case:
    device = default_device()
    torch.manual_seed(0)
    logits = torch.randn(len(arguments), *shape, device=device)

    def work(loss: Loss) -> Work:
        leaves = {argument: x.clone().requires_grad_() for argument, x in zip(arguments, logits)}
        return forward_backward(lambda: loss(*leaves.values()), leaves)

    providers = {
        provider: {k: work(v) for k, v in loss.items()} if isinstance(loss, Mapping) else work(loss)
        for provider, loss in losses.items()
    }
    return Case(f"{name} forward + backward ({'x'.join(map(str, shape))}) float32", providers, TOLERANCE, device)


@pytest.mark.parametrize("shape", [VECTOR, PATCHES], ids=["vector", "patches"])
def bench_d_loss(compare: Callable[[Case], None], shape: tuple[int, ...]) -> None:
    """Eager: binary cross-entropy with targets made in each call or once. Tuned by hand: softplus."""
    ones, zeros = torch.ones(shape, device=default_device()), torch.zeros(shape, device=default_device())

    def targets_made_once(real: Tensor, fake: Tensor) -> Tensor:
        bce = F.binary_cross_entropy_with_logits
        return bce(real, ones) + bce(fake, zeros)

    losses = {
        EAGER: {"targets made in each call": steps.d_loss, "targets made once": targets_made_once},
        TUNED: d_softplus,
        COMPILED: compiled(steps.d_loss),
        GAN_FAST: ops.minimax_d_loss,
    }
    compare(case("minimax_d_loss", shape, ("real_logits", "fake_logits"), losses))


def with_logged_values(loss: Loss) -> Loss:
    """Add what a training loop logs: mean D(x), mean D(G(z)), and the share of images that D classifies correctly."""

    def run(real: Tensor, fake: Tensor) -> Tensor:
        value = loss(real, fake)
        with torch.no_grad():
            right = ((real > 0).float().mean() + (fake < 0).float().mean()) / 2
            torch.stack((torch.sigmoid(real).mean(), torch.sigmoid(fake).mean(), right))
        return value

    return run


def bench_d_loss_and_means(compare: Callable[[Case], None]) -> None:
    """The loss with the values that a training loop logs. Tuned by hand: softplus.

    The compiled function returns the logged values with the loss; otherwise the compiler would remove them.
    """

    def loss_and_logged(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        value = steps.d_loss(real, fake)
        right = ((real > 0).float().mean() + (fake < 0).float().mean()) / 2
        return value, torch.stack((torch.sigmoid(real).mean(), torch.sigmoid(fake).mean(), right)).detach()

    both = compiled(loss_and_logged)
    losses = {
        EAGER: with_logged_values(steps.d_loss),
        TUNED: with_logged_values(d_softplus),
        COMPILED: lambda real, fake: both(real, fake)[0],
        GAN_FAST: lambda real, fake: d_loss_and_means(real, fake)[0],
    }
    compare(case("minimax_d_loss and what is logged with it,", VECTOR, ("real_logits", "fake_logits"), losses))


@pytest.mark.parametrize(
    ("name", "eager", "gan_fast"),
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
def bench_other_d_losses(compare: Callable[[Case], None], name: str, eager: Loss, gan_fast: Loss) -> None:
    """The usual formulas; none is tuned by hand."""
    losses = {EAGER: eager, COMPILED: compiled(eager), GAN_FAST: gan_fast}
    compare(case(name, VECTOR, ("real_logits", "fake_logits"), losses))


def bench_g_loss(compare: Callable[[Case], None]) -> None:
    """Eager: binary cross-entropy with targets made in each call or once. Tuned by hand: softplus."""
    ones = torch.ones(VECTOR, device=default_device())
    losses = {
        EAGER: {
            "targets made in each call": steps.g_loss,
            "targets made once": lambda fake: F.binary_cross_entropy_with_logits(fake, ones),
        },
        TUNED: g_softplus,
        COMPILED: compiled(steps.g_loss),
        GAN_FAST: ops.minimax_g_loss,
    }
    compare(case("minimax_g_loss", VECTOR, ("fake_logits",), losses))
