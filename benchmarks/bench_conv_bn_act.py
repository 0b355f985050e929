"""Blocks of convolution, batch norm and activation: DCGAN-64's two networks, single blocks, tiny tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import providers, saved_memory
from benchmarks.harness import EAGER, GAN_FAST, Case, default_device
from benchmarks.networks import eager_models
from gan_fast import nn as fused

BATCH_SIZE = 32
EVAL_TOLERANCE = 1e-4
# The tolerance is wide because rounding can move a value across an activation's kink, which changes the gradients of
# all earlier layers: eager's two layouts differ by 1e-3. The results file records each provider's distance.
TOLERANCE = {torch.float32: 5e-3, torch.bfloat16: 0.3}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("network", saved_memory.NETWORKS)
def bench_network(compare: Callable[[Case], dict[str, Any]], network: str, dtype: torch.dtype) -> None:
    """DCGAN-64's generator and discriminator, forward and backward.

    Tuned by hand: contiguous or channels-last, activations in place, ATen called without modules. In bfloat16
    every provider runs under autocast; eager's variants include float32, which some CPUs multiply faster.
    """
    device = default_device()
    torch.manual_seed(0)
    input = saved_memory.network_input(network, BATCH_SIZE).to(device)
    with torch.no_grad():
        output = saved_memory.network(network, EAGER).to(device)(input)
    grad = torch.randn(output.shape).to(device)

    def build_eager(inplace: bool) -> nn.Sequential:
        return eager_models(64, 3, 64, inplace)[saved_memory.NETWORKS.index(network)]

    def build_gan_fast() -> nn.Module:
        torch.manual_seed(0)
        return saved_memory.network(network, GAN_FAST)

    half = dtype != torch.float32
    make_work = providers.training_work(input, grad, dtype if half else None)
    every = providers.network_providers(build_eager, build_gan_fast, make_work, device)
    if half:
        in_float32 = providers.eager_providers(
            build_eager, build_gan_fast(), providers.training_work(input, grad), device
        )
        every[EAGER] = {**{f"float32 {k}": v for k, v in in_float32.items()}, **every[EAGER]}
    name = f"DCGAN-64 {network} forward + backward, batch {BATCH_SIZE} {'bfloat16 autocast' if half else 'float32'}"
    figures = compare(Case(name, every, TOLERANCE[dtype], device))
    if not half and device.type == "cpu":
        figures["held"] = {
            provider: saved_memory.measure_in_process(network, provider, BATCH_SIZE)
            for provider in saved_memory.PROVIDERS
        }


# Name -> gan_fast's module, the same block of torch.nn layers (given whether its activation is in place), input shape.
BLOCKS: dict[str, tuple[Callable[[], nn.Module], Callable[[bool], nn.Sequential], tuple[int, ...]]] = {
    "transposed 4x4/2 block 512 -> 256 channels": (
        lambda: fused.ConvTransposeBNAct2d(512, 256, 4, 2, 1, activation="relu"),
        lambda inplace: nn.Sequential(
            nn.ConvTranspose2d(512, 256, 4, 2, 1, bias=False), nn.BatchNorm2d(256), nn.ReLU(inplace)
        ),
        (BATCH_SIZE, 512, 4, 4),
    ),
    "transposed 4x4/2 block 128 -> 64 channels": (
        lambda: fused.ConvTransposeBNAct2d(128, 64, 4, 2, 1, activation="relu"),
        lambda inplace: nn.Sequential(
            nn.ConvTranspose2d(128, 64, 4, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace)
        ),
        (BATCH_SIZE, 128, 16, 16),
    ),
    "4x4/2 block 256 -> 512 channels": (
        lambda: fused.ConvBNAct2d(256, 512, 4, 2, 1, negative_slope=0.2),
        lambda inplace: nn.Sequential(
            nn.Conv2d(256, 512, 4, 2, 1, bias=False), nn.BatchNorm2d(512), nn.LeakyReLU(0.2, inplace)
        ),
        (BATCH_SIZE, 256, 8, 8),
    ),
    "4x4/2 block 64 -> 128 channels": (
        lambda: fused.ConvBNAct2d(64, 128, 4, 2, 1, negative_slope=0.2),
        lambda inplace: nn.Sequential(
            nn.Conv2d(64, 128, 4, 2, 1, bias=False), nn.BatchNorm2d(128), nn.LeakyReLU(0.2, inplace)
        ),
        (BATCH_SIZE, 64, 32, 32),
    ),
    "last layer of G, transposed 4x4/2 64 -> 3 channels, tanh": (
        lambda: fused.ConvTransposeAct2d(64, 3, 4, 2, 1, bias=False, activation="tanh"),
        lambda inplace: nn.Sequential(nn.ConvTranspose2d(64, 3, 4, 2, 1, bias=False), nn.Tanh()),
        (BATCH_SIZE, 64, 32, 32),
    ),
    "instance norm and relu, 64 channels": (
        lambda: fused.InstanceNormAct2d(64, affine=True, activation="relu"),
        lambda inplace: nn.Sequential(nn.InstanceNorm2d(64, affine=True), nn.ReLU(inplace)),
        (8, 64, 64, 64),
    ),
    "tiny 3x3 block 16 -> 16 channels": (
        lambda: fused.ConvBNAct2d(16, 16, 3, 1, 1, activation="relu"),
        lambda inplace: nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace)),
        (1, 16, 8, 8),
    ),
}


@pytest.mark.parametrize("block", BLOCKS)
def bench_block(compare: Callable[[Case], dict[str, Any]], block: str) -> None:
    """A block, forward and backward, with the gradient of its input.

    Tuned by hand: contiguous or channels-last, activations in place, ATen called without modules.
    """
    device = default_device()
    torch.manual_seed(0)
    build_gan_fast, build_eager, shape = BLOCKS[block]
    input = torch.randn(shape, device=device)
    output = build_gan_fast().to(device)(input)
    grad = torch.linspace(-1, 1, output.numel(), device=device).view(output.shape)
    make_work = providers.training_work(input, grad, input_grad=True)
    every = providers.network_providers(build_eager, build_gan_fast, make_work, device)
    name = f"{block}, forward + backward ({'x'.join(map(str, shape))}) float32"
    compare(Case(name, every, TOLERANCE[torch.float32], device))


@pytest.mark.parametrize("block", [name for name in BLOCKS if name.startswith(("last", "tiny", "4x4/2 block 64"))])
def bench_block_sampling(compare: Callable[[Case], dict[str, Any]], block: str) -> None:
    """A block in evaluation mode, forward without gradients.

    Tuned by hand: batch norm folded into the convolution's weights, contiguous or channels-last, activation in place,
    ATen called without modules.
    """
    device = default_device()
    torch.manual_seed(0)
    build_gan_fast, build_eager, shape = BLOCKS[block]
    input = torch.randn(shape, device=device)
    make_work = providers.sampling_work(input)
    every = providers.network_providers(build_eager, build_gan_fast, make_work, device, providers.folded)
    compare(Case(f"{block}, forward eval ({'x'.join(map(str, shape))}) float32", every, EVAL_TOLERANCE, device))
