"""What a critic of DCGAN-64's layers, without norm, costs with penalties: values and the gradients by its weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import steps
from benchmarks.harness import OURS, Case, Work, default_device
from benchmarks.networks import eager_critic
from gan_fast import ops
from gan_fast.models import DCGANDiscriminator

BATCH_SIZE, IMAGE_SIZE = 32, 64
WEIGHT = 10.0
# Of some four million values under the kinks of activations about one lies so near that two orders of a sum put it
# on either side, which changes a gradient by up to a thousandth: also of eager, from one memory format to the other.
# Where none does, gradients agree to 2e-6; tests/ops/test_penalties.py holds them to 1e-10 in float64.
TOLERANCE = 5e-3

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def r1(grad: Tensor) -> Tensor:
    return 0.5 * grad.square().sum(dim=(1, 2, 3)).mean()


def eager_logistic_r1(critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    logits, penalty = steps.penalized(critic, real, r1)
    return F.softplus(-logits).mean() + WEIGHT * penalty


def our_logistic_r1(critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    logits, penalty = ops.logits_and_r1(critic, real)
    return F.softplus(-logits).mean() + WEIGHT * penalty


LOSSES: dict[str, tuple[Loss, Loss]] = {
    "gradient penalty": (steps.gradient_penalty, ops.gradient_penalty),
    "WGAN-GP critic iteration": (steps.wgan_gp, steps.our_wgan_gp),
    "logistic loss and R1 on real images": (eager_logistic_r1, our_logistic_r1),
}


def work_of(loss: Loss, critic: nn.Module, images: tuple[Tensor, Tensor]) -> Work:
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
    device = default_device()
    torch.manual_seed(0)
    weights = eager_critic(IMAGE_SIZE, 3, 64)
    with torch.no_grad():
        for p in weights.parameters():
            # Not 0.02 as in training: gradients of five layers would be too small beside the 1 they are compared with.
            p.mul_(0.5) if p.dim() == 1 else p.normal_(0, (2 / p[0].numel()) ** 0.5)
    real, fake = (torch.rand(BATCH_SIZE, 3, IMAGE_SIZE, IMAGE_SIZE, device=device) * 2 - 1 for _ in range(2))
    eager, ours = LOSSES[name]

    def provider(loss: Loss, critic: nn.Module, memory_format: torch.memory_format = torch.contiguous_format) -> Work:
        for parameter, value in zip(critic.parameters(), weights.parameters(), strict=True):
            parameter.data.copy_(value)
        critic.to(device, memory_format=memory_format)
        images = [x.contiguous(memory_format=memory_format) for x in (real, fake)]
        return work_of(loss, critic, (images[0], images[1]))

    make = functools.partial(eager_critic, IMAGE_SIZE, 3, 64)
    providers = {
        "eager": provider(eager, make()),
        "eager, channels_last": provider(eager, make(), torch.channels_last),
        f"{OURS}, critic of torch.nn": provider(ours, make()),
        OURS: provider(ours, DCGANDiscriminator(3, IMAGE_SIZE, 64, norm="none")),
    }
    title = f"{name}, DCGAN-64 critic without norm, batch {BATCH_SIZE} float32"
    compare(Case(title, providers, TOLERANCE, device))
