"""A critic of DCGAN-64's layers, without norm, with penalties: the loss and its gradients with respect to weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import steps
from benchmarks.harness import COMPILED, EAGER, GAN_FAST, TUNED, Case, Work, compiled, default_device
from benchmarks.networks import eager_critic
from benchmarks.providers import LAYOUTS, in_layouts
from gan_fast import ops
from gan_fast.models import DCGANDiscriminator

BATCH_SIZE, IMAGE_SIZE = 32, 64
WEIGHT = 10.0
# About one of four million values lies so near an activation's kink that the order of a sum decides its side, which
# changes a gradient by up to a thousandth, in eager, too, from one memory format to the other. Otherwise gradients
# agree to 2e-6; tests/ops/test_penalties.py checks them to 1e-10 in float64.
TOLERANCE = 5e-3

Critic = Callable[[Tensor], Tensor]
Loss = Callable[[Critic, Tensor, Tensor], Tensor]


def points_between(real: Tensor, fake: Tensor) -> Tensor:
    u = torch.rand(len(real), 1, 1, 1, device=real.device)
    return u * fake + (1 - u) * real


def norm_penalty(grad: Tensor) -> Tensor:
    return (torch.linalg.vector_norm(grad, dim=(1, 2, 3)) - 1).square().mean()


def r1(grad: Tensor) -> Tensor:
    return 0.5 * grad.square().sum(dim=(1, 2, 3)).mean()


def r1_tuned(grad: Tensor) -> Tensor:
    flat = grad.flatten()
    return torch.dot(flat, flat) * (0.5 / len(grad))


def gradient_penalty_tuned(critic: Critic, real: Tensor, fake: Tensor) -> Tensor:
    return steps.penalized(critic, points_between(real, fake), norm_penalty)[1]


def wgan_gp_tuned(critic: Critic, real: Tensor, fake: Tensor) -> Tensor:
    fake_logits, real_logits = critic(torch.cat([fake, real])).chunk(2)
    return fake_logits.mean() - real_logits.mean() + WEIGHT * gradient_penalty_tuned(critic, real, fake)


def logistic_r1(critic: Critic, real: Tensor, fake: Tensor) -> Tensor:
    logits, penalty = steps.penalized(critic, real, r1)
    return F.softplus(-logits).mean() + WEIGHT * penalty


def logistic_r1_tuned(critic: Critic, real: Tensor, fake: Tensor) -> Tensor:
    logits, penalty = steps.penalized(critic, real, r1_tuned)
    return F.softplus(-logits).mean() + WEIGHT * penalty


def gan_fast_logistic_r1(critic: Critic, real: Tensor, fake: Tensor) -> Tensor:
    logits, penalty = ops.logits_and_r1(critic, real)
    return F.softplus(-logits).mean() + WEIGHT * penalty


def penalized_by_func(critic: Critic, points: Tensor, penalty: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Return logits and penalty with torch.func.grad, which torch.compile can trace."""

    def summed(x: Tensor) -> tuple[Tensor, Tensor]:
        logits = critic(x)
        return logits.sum(), logits

    grad, logits = torch.func.grad(summed, has_aux=True)(points)
    return logits, penalty(grad)


def compiled_gradient_penalty(critic: Critic) -> Loss:
    penalty = compiled(lambda points: penalized_by_func(critic, points, norm_penalty)[1])
    return lambda _, real, fake: penalty(points_between(real, fake))


def compiled_wgan_gp(critic: Critic) -> Loss:
    @compiled
    def loss(real: Tensor, fake: Tensor, points: Tensor) -> Tensor:
        fake_logits, real_logits = critic(torch.cat([fake, real])).chunk(2)
        return fake_logits.mean() - real_logits.mean() + WEIGHT * penalized_by_func(critic, points, norm_penalty)[1]

    return lambda _, real, fake: loss(real, fake, points_between(real, fake))


def compiled_logistic_r1(critic: Critic) -> Loss:
    @compiled
    def loss(real: Tensor) -> Tensor:
        logits, penalty = penalized_by_func(critic, real, r1)
        return F.softplus(-logits).mean() + WEIGHT * penalty

    return lambda _, real, fake: loss(real)


class Losses(NamedTuple):
    eager: Loss
    tuned: Loss
    compiled: Callable[[Critic], Loss]
    gan_fast: Loss


LOSSES = {
    "gradient penalty": Losses(
        steps.gradient_penalty, gradient_penalty_tuned, compiled_gradient_penalty, ops.gradient_penalty
    ),
    "WGAN-GP critic iteration": Losses(steps.wgan_gp, wgan_gp_tuned, compiled_wgan_gp, steps.gan_fast_wgan_gp),
    "logistic loss and R1 on real images": Losses(
        logistic_r1, logistic_r1_tuned, compiled_logistic_r1, gan_fast_logistic_r1
    ),
}


def work_of(loss: Loss, critic: nn.Module, images: list[Tensor]) -> Work:
    def work() -> Mapping[str, Tensor]:
        # All providers draw the same points between real and fake.
        torch.manual_seed(0)
        critic.zero_grad()
        value = loss(critic, *images)
        value.backward()
        grads = {f"{i}.grad": p.grad for i, p in enumerate(critic.parameters()) if p.dim() == 4}
        return {"loss": value.detach(), **grads}

    return work


@pytest.mark.parametrize("name", LOSSES)
def bench_loss(compare: Callable[[Case], None], name: str) -> None:
    """Loss and backward pass, without an optimizer.

    Tuned by hand: contiguous or channels-last, activations in place, real and generated images in one pass, one norm
    over all dimensions or one dot product. torch.compile: the same loss as one function with torch.func.grad, since a
    compiled critic has no double backward.
    """
    device = default_device()
    torch.manual_seed(0)
    weights = eager_critic(IMAGE_SIZE, 3, 64)
    with torch.no_grad():
        for p in weights.parameters():
            # DCGAN's 0.02 would make the gradient of five layers too small compared with the 1 in the penalty.
            p.mul_(0.5) if p.dim() == 1 else p.normal_(0, (2 / p[0].numel()) ** 0.5)
    real, fake = (torch.rand(BATCH_SIZE, 3, IMAGE_SIZE, IMAGE_SIZE, device=device) * 2 - 1 for _ in range(2))
    losses = LOSSES[name]

    def provider(loss: Loss, critic: nn.Module, layout: torch.memory_format) -> Work:
        for parameter, value in zip(critic.parameters(), weights.parameters(), strict=True):
            parameter.data.copy_(value)
        critic.to(device, memory_format=layout)
        return work_of(loss, critic, [x.contiguous(memory_format=layout) for x in (real, fake)])

    def eager(inplace: bool) -> nn.Module:
        return eager_critic(IMAGE_SIZE, 3, 64, inplace)

    def gan_fast() -> nn.Module:
        return DCGANDiscriminator(3, IMAGE_SIZE, 64, norm="none")

    to_compile = eager(inplace=False)
    providers = {
        EAGER: {
            f"{layout}{', in place' * inplace}": provider(losses.eager, eager(inplace), LAYOUTS[layout])
            for layout in LAYOUTS
            for inplace in (True, False)
        },
        TUNED: in_layouts(lambda layout: provider(losses.tuned, eager(inplace=True), layout)),
        COMPILED: provider(losses.compiled(to_compile), to_compile, torch.channels_last),
        GAN_FAST: in_layouts(lambda layout: provider(losses.gan_fast, gan_fast(), layout)),
    }
    if name == "gradient penalty":
        providers[f"{GAN_FAST}, critic of torch.nn"] = in_layouts(
            lambda layout: provider(losses.gan_fast, eager(inplace=True), layout)
        )
    title = f"{name}, DCGAN-64 critic without norm, batch {BATCH_SIZE} float32"
    compare(Case(title, providers, TOLERANCE, device))
