"""Blocks of convolution, batch norm and activation: DCGAN-64's two networks, single blocks, tiny tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import held
from benchmarks.harness import OURS, Case, Work, default_device, forward_backward
from gan_fast import nn as fused

BATCH_SIZE = 32
TOLERANCE = 1e-4
# Whole networks: rounding may put a value on the other side of an activation's kink, and every gradient behind it
# then has another summand; eager's own two layouts differ by 1e-3. The figures have each provider's distance.
NETWORK_TOLERANCE = {torch.float32: 5e-3, torch.bfloat16: 0.3}

EAGER = "eager"
CHANNELS_LAST = "eager, channels_last"


def with_weights(model: nn.Module, source: nn.Module, device: torch.device) -> nn.Module:
    for own, given in zip((*model.parameters(),), (*source.parameters(),), strict=True):
        own.data.copy_(given.data)
    return model.to(device)


def pass_through(model: nn.Module, input: Tensor, dtype: torch.dtype = torch.float32) -> Work:
    """One forward and backward pass of a network, all gradients of its parameters among the results."""
    autocast = contextlib.nullcontext if dtype == torch.float32 else lambda: torch.autocast(input.device.type, dtype)
    with torch.no_grad():
        output = model(input)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(input.device)

    def forward() -> Tensor:
        with autocast():
            return model(input).float()

    return forward_backward(forward, dict(model.named_parameters()), grad)


def by_order(work: Work) -> Work:
    """Results numbered instead of named: the same network has other names in another library."""
    return lambda: {f"{index}": value for index, value in enumerate(work().values())}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("network", held.NETWORKS)
def bench_network(compare: Callable[[Case], dict[str, Any]], network: str, dtype: torch.dtype) -> None:
    device = default_device()
    torch.manual_seed(0)
    input = held.network_input(network, BATCH_SIZE).to(device)
    source = held.network(network, OURS)

    def make(provider: str) -> nn.Module:
        return with_weights(held.network(network, provider), source, device)

    channels_last = make(EAGER).to(memory_format=torch.channels_last)
    last_input = input.contiguous(memory_format=torch.channels_last)
    half = dtype != torch.float32
    providers = {EAGER: pass_through(make(EAGER), input)}
    if half:
        providers["eager, bfloat16 autocast"] = pass_through(make(EAGER), input, dtype)
        providers["eager, bfloat16 autocast, channels_last"] = pass_through(channels_last, last_input, dtype)
    else:
        providers[CHANNELS_LAST] = pass_through(channels_last, last_input)
    providers[OURS] = pass_through(make(OURS), input, dtype)
    name = f"DCGAN-64 {network} forward + backward, batch {BATCH_SIZE} {'bfloat16 autocast' if half else 'float32'}"
    case = Case(name, {k: by_order(v) for k, v in providers.items()}, NETWORK_TOLERANCE[dtype], device)
    figures = compare(case)
    if not half and device.type == "cpu":
        figures["held"] = {provider: held.in_a_process(network, provider, BATCH_SIZE) for provider in held.PROVIDERS}


BLOCKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], tuple[int, ...]]] = {
    "transposed 4x4/2 block 512 -> 256 channels": (
        lambda: fused.ConvTransposeBNAct2d(512, 256, 4, 2, 1, activation="relu"),
        lambda: nn.Sequential(nn.ConvTranspose2d(512, 256, 4, 2, 1, bias=False), nn.BatchNorm2d(256), nn.ReLU(True)),
        (BATCH_SIZE, 512, 4, 4),
    ),
    "transposed 4x4/2 block 128 -> 64 channels": (
        lambda: fused.ConvTransposeBNAct2d(128, 64, 4, 2, 1, activation="relu"),
        lambda: nn.Sequential(nn.ConvTranspose2d(128, 64, 4, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(True)),
        (BATCH_SIZE, 128, 16, 16),
    ),
    "4x4/2 block 256 -> 512 channels": (
        lambda: fused.ConvBNAct2d(256, 512, 4, 2, 1, negative_slope=0.2),
        lambda: nn.Sequential(nn.Conv2d(256, 512, 4, 2, 1, bias=False), nn.BatchNorm2d(512), nn.LeakyReLU(0.2, True)),
        (BATCH_SIZE, 256, 8, 8),
    ),
    "4x4/2 block 64 -> 128 channels": (
        lambda: fused.ConvBNAct2d(64, 128, 4, 2, 1, negative_slope=0.2),
        lambda: nn.Sequential(nn.Conv2d(64, 128, 4, 2, 1, bias=False), nn.BatchNorm2d(128), nn.LeakyReLU(0.2, True)),
        (BATCH_SIZE, 64, 32, 32),
    ),
    "last layer of G, transposed 4x4/2 64 -> 3 channels, tanh": (
        lambda: fused.ConvTransposeAct2d(64, 3, 4, 2, 1, bias=False, activation="tanh"),
        lambda: nn.Sequential(nn.ConvTranspose2d(64, 3, 4, 2, 1, bias=False), nn.Tanh()),
        (BATCH_SIZE, 64, 32, 32),
    ),
    "instance norm and relu, 64 channels": (
        lambda: fused.InstanceNormAct2d(64, affine=True, activation="relu"),
        lambda: nn.Sequential(nn.InstanceNorm2d(64, affine=True), nn.ReLU(True)),
        (8, 64, 64, 64),
    ),
    "tiny 3x3 block 16 -> 16 channels": (
        lambda: fused.ConvBNAct2d(16, 16, 3, 1, 1, activation="relu"),
        lambda: nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(True)),
        (1, 16, 8, 8),
    ),
    "tiny 3x3 block without norm 16 -> 16 channels": (
        lambda: fused.ConvAct2d(16, 16, 3, 1, 1, activation="relu"),
        lambda: nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU(True)),
        (1, 16, 8, 8),
    ),
}


def block_providers(
    name: str, layout: torch.memory_format, device: torch.device
) -> tuple[dict[str, nn.Module], Tensor]:
    ours, eager, shape = BLOCKS[name]
    torch.manual_seed(0)
    source = ours()
    models = {EAGER: with_weights(eager(), source, device), OURS: source.to(device)}
    return models, torch.randn(shape, device=device).contiguous(memory_format=layout)


LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("block", BLOCKS)
def bench_block(compare: Callable[[Case], dict[str, Any]], block: str, layout: str) -> None:
    device = default_device()
    models, input = block_providers(block, LAYOUTS[layout], device)
    input.requires_grad_()

    def work(model: nn.Module) -> Work:
        output = model(input)
        grad = torch.linspace(-1, 1, output.numel(), device=device).view(output.shape)
        return by_order(
            forward_backward(lambda: model(input), {"input": input, **dict(model.named_parameters())}, grad)
        )

    providers = {name: work(model) for name, model in models.items()}
    shape = "x".join(map(str, input.shape))
    compare(Case(f"{block}, forward + backward ({shape}) float32 {layout}", providers, TOLERANCE, device))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("block", [name for name in BLOCKS if name.startswith(("last", "tiny", "4x4/2 block 64"))])
def bench_block_sampling(compare: Callable[[Case], dict[str, Any]], block: str, layout: str) -> None:
    """Forward in evaluation mode, no gradients."""
    device = default_device()
    models, input = block_providers(block, LAYOUTS[layout], device)

    def work(model: nn.Module) -> Work:
        model.eval()

        def run() -> dict[str, Tensor]:
            with torch.no_grad():
                return {"output": model(input)}

        return run

    providers = {name: work(model) for name, model in models.items()}
    shape = "x".join(map(str, input.shape))
    compare(Case(f"{block}, forward eval ({shape}) float32 {layout}", providers, TOLERANCE, device))
