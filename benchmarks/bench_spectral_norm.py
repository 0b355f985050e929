"""Spectral normalisation: of a critic's weights alone, and in the critic's forward and backward pass."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from benchmarks.harness import OURS, Case, Work, default_device, forward_backward
from gan_fast.models import DCGANDiscriminator
from gan_fast.nn import spectral_norm

TOLERANCE = 1e-3
BATCH = 32


def critics() -> dict[str, DCGANDiscriminator]:
    torch.manual_seed(0)
    ours = DCGANDiscriminator(norm="none").to(default_device())
    theirs = copy.deepcopy(ours)
    spectral_norm(ours)
    for block in theirs.blocks:
        parametrizations.spectral_norm(block.conv)
    theirs.load_state_dict(ours.state_dict())
    return {"eager": theirs, OURS: ours}


def leaves(critic: nn.Module) -> dict[str, Tensor]:
    return dict(critic.named_parameters())


def bench_weights(compare: Callable[[Case], None]) -> None:
    def work(critic: DCGANDiscriminator) -> Work:
        convolutions = [block.conv for block in critic.blocks]
        parameters = leaves(critic)

        def run() -> Mapping[str, Tensor]:
            for parameter in parameters.values():
                parameter.grad = None
            weights = [conv.weight for conv in convolutions]
            torch.autograd.backward(weights, [torch.ones_like(w) for w in weights])
            return {name: p.grad for name, p in parameters.items() if p.grad is not None}

        return run

    title = "spectral_norm forward + backward (weights of DCGAN's 64-pixel critic) float32"
    providers = {name: work(critic) for name, critic in critics().items()}
    compare(Case(title, providers, TOLERANCE, default_device()))


def bench_critic(compare: Callable[[Case], None]) -> None:
    x = torch.randn(BATCH, 3, 64, 64, device=default_device())

    def work(critic: DCGANDiscriminator) -> Work:
        return forward_backward(lambda: critic(x).sum(), leaves(critic))

    title = f"DCGAN critic with spectral norm, forward + backward ({BATCH}x3x64x64) float32"
    compare(Case(title, {name: work(critic) for name, critic in critics().items()}, TOLERANCE, default_device()))
