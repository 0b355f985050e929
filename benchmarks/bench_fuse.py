"""Networks as people write them (tests/zoo), before and after ``gan_fast.fuse``, at the widths of their papers."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree

import gan_fast
from benchmarks.harness import COMPILED, EAGER, GAN_FAST, TUNED, Case, Work, compiled, default_device
from benchmarks.providers import channels_last, in_place_in_sequentials
from benchmarks.table import FUSED_KINDS
from tests.zoo import ZOO, Entry

# Sums of float32 in another order; a value near a kink may fall on either side of it.
TOLERANCE = 5e-3
# Strided blocks, a U-Net, residual blocks with instance norm, blocks without norm, PReLU and pixel shuffle, spectral
# norm, 1-d, 3-d. ``--all-networks`` measures every network of tests/zoo instead.
NETWORKS = (
    "handwritten_discriminator",
    "pix2pix_unet",
    "cyclegan_generator",
    "stargan_discriminator",
    "srgan_generator",
    "sngan_discriminator",
    "wavegan_generator",
    "vgan_discriminator",
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    everything = metafunc.config.getoption("--all-networks")
    chosen = [entry for entry in ZOO if everything or entry.name in NETWORKS]
    metafunc.parametrize("entry", chosen, ids=lambda entry: entry.name)


def _work(
    model: nn.Module, inputs: tuple[Tensor, ...], wrap: Callable[..., Callable[..., object]] = lambda model: model
) -> Work:
    parameters = dict(model.named_parameters())
    forward = wrap(model)

    def run() -> Mapping[str, Tensor]:
        random.seed(0)  # some networks use Python's generator
        for parameter in parameters.values():
            parameter.grad = None
        outputs = [t for t in _pytree.tree_leaves(forward(*inputs)) if isinstance(t, Tensor) and t.requires_grad]
        torch.autograd.backward(outputs, [torch.ones_like(t) for t in outputs])
        return {f"output {i}": t for i, t in enumerate(outputs)}

    return run


def bench_network(entry: Entry, compare: Callable[[Case], None]) -> None:
    """Forward and backward.

    Eager: as written, contiguous or channels-last. Tuned by hand: channels-last, and in place every activation that
    follows a convolution or a norm in a Sequential. torch.compile: channels-last. gan_fast: the network as written
    after ``fuse``, contiguous or channels-last.
    """
    device = default_device()

    def build() -> tuple[nn.Module, tuple[Tensor, ...]]:
        torch.manual_seed(0)
        model, inputs = entry.workload()
        return model.to(device), tuple(t.to(device) for t in inputs)

    def in_channels_last(
        change: Callable[[nn.Module], nn.Module] = lambda model: model,
        wrap: Callable[..., Callable[..., object]] = lambda model: model,
    ) -> Work:
        model, inputs = build()
        return _work(channels_last(change(model)), tuple(channels_last(t) for t in inputs), wrap)

    def contiguous(change: Callable[[nn.Module], nn.Module] = lambda model: model) -> Work:
        model, inputs = build()
        return _work(change(model), inputs)

    providers = {
        EAGER: {"contiguous": contiguous(), "channels_last": in_channels_last()},
        TUNED: in_channels_last(in_place_in_sequentials),
        COMPILED: in_channels_last(wrap=compiled),
        GAN_FAST: {"contiguous": contiguous(gan_fast.fuse), "channels_last": in_channels_last(gan_fast.fuse)},
    }
    kind = FUSED_KINDS[0 if entry.conv_blocks else 1]
    compare(Case(f"fuse: {entry.name}, {kind}, float32", providers, TOLERANCE, device))
