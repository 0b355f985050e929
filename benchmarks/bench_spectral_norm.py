"""Spectral normalization: of a critic's weights alone, and in the critic's forward and backward pass."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from benchmarks.harness import COMPILED, EAGER, GAN_FAST, Case, Work, compiled, default_device, forward_backward
from benchmarks.networks import eager_critic
from benchmarks.providers import LAYOUTS, in_layout, in_layouts
from gan_fast.models import DCGANDiscriminator
from gan_fast.nn import spectral_norm

TOLERANCE = 1e-3
BATCH = 32


def convolutions(critic: nn.Module) -> list[nn.Module]:
    return [module for module in critic.modules() if isinstance(module, nn.Conv2d)]


def normalized_critics() -> tuple[Callable[[bool], nn.Module], Callable[[], nn.Module]]:
    """Return what builds torch.nn's and gan_fast's critic with the same weights and the same singular vectors."""
    torch.manual_seed(0)
    source = spectral_norm(DCGANDiscriminator(norm="none"))

    def eager(inplace: bool) -> nn.Module:
        critic = eager_critic(64, 3, 64, inplace)
        for convolution in convolutions(critic):
            parametrizations.spectral_norm(convolution)
        for own, given in zip(_tensors(critic), _tensors(source), strict=True):
            own.data.copy_(given.data)
        return critic.to(default_device())

    return eager, lambda: copy.deepcopy(source).to(default_device())


def _tensors(critic: nn.Module) -> list[Tensor]:
    """Parameters and singular vectors, in an order that does not depend on the library."""
    return [t for module in convolutions(critic) for _, t in sorted(module.state_dict(keep_vars=True).items())]


def parameters(critic: nn.Module) -> dict[str, Tensor]:
    return {str(index): t for index, t in enumerate(_tensors(critic)) if isinstance(t, nn.Parameter)}


def bench_weights(compare: Callable[[Case], None]) -> None:
    """The normalized weights of DCGAN's 64-pixel critic and their backward pass; none is tuned by hand."""
    eager, gan_fast = normalized_critics()

    def work(critic: nn.Module, wrap: Callable[..., Callable[[], list[Tensor]]] = lambda function: function) -> Work:
        leaves = {name: p for name, p in parameters(critic).items() if p.dim() == 4}
        layers = convolutions(critic)
        weights_of = wrap(lambda: [layer.weight for layer in layers])

        def run() -> Mapping[str, Tensor]:
            for leaf in leaves.values():
                leaf.grad = None
            weights = weights_of()
            torch.autograd.backward(weights, [torch.ones_like(w) for w in weights])
            return {name: leaf.grad for name, leaf in leaves.items()}

        return run

    title = "spectral_norm forward + backward (weights of DCGAN's 64-pixel critic) float32"
    providers = {EAGER: work(eager(True)), COMPILED: work(eager(True), compiled), GAN_FAST: work(gan_fast())}
    compare(Case(title, providers, TOLERANCE, default_device()))


def bench_critic(compare: Callable[[Case], None]) -> None:
    """DCGAN's 64-pixel critic with spectral norm on every convolution, forward and backward; none is tuned by hand."""
    eager, gan_fast = normalized_critics()
    images = torch.randn(BATCH, 3, 64, 64, device=default_device())

    def work(
        critic: nn.Module,
        layout: torch.memory_format,
        wrap: Callable[..., Callable[[Tensor], Tensor]] = lambda function: function,
    ) -> Work:
        x = in_layout(images, layout)
        critic.to(memory_format=layout)
        forward = wrap(critic)
        return forward_backward(lambda: forward(x).sum(), parameters(critic))

    providers = {
        EAGER: {
            f"{name}{', in place' * inplace}": work(eager(inplace), layout)
            for name, layout in LAYOUTS.items()
            for inplace in (True, False)
        },
        COMPILED: work(eager(False), torch.channels_last, compiled),
        GAN_FAST: in_layouts(lambda layout: work(gan_fast(), layout)),
    }
    title = f"DCGAN critic with spectral norm, forward + backward ({BATCH}x3x64x64) float32"
    compare(Case(title, providers, TOLERANCE, default_device()))
