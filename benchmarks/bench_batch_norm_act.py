"""Batch norm with LeakyReLU(0.2): the middle of every DCGAN block."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from benchmarks.harness import OURS, Case, Work, default_device, forward_backward
from gan_fast.nn import BatchNormAct2d

# (N, C, H, W): a large map, then discriminator layers of DCGAN-64 from the logits' end.
SHAPES = ((32, 64, 32, 32), (32, 512, 4, 4), (32, 256, 8, 8), (32, 128, 16, 16))
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# float32 agrees to 1e-6 but for elements on the activation's kink; eager bfloat16 rounds between norm and activation.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 2e-2}
SLOPE = 0.2


def eager(channels: int, inplace: bool) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.LeakyReLU(SLOPE, inplace=inplace))


def modules(channels: int, device: torch.device) -> dict[str, nn.Module]:
    made = {
        "eager": eager(channels, inplace=True),
        "eager, not in place": eager(channels, inplace=False),
        "torch.compile": torch.compile(eager(channels, inplace=True)),
        OURS: BatchNormAct2d(channels, negative_slope=SLOPE),
    }
    return {name: module.to(device) for name, module in made.items()}


def case(
    passes: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    layout: str,
    make_work: Callable[[nn.Module, Tensor], Work],
) -> Case:
    device = default_device()
    torch.manual_seed(0)
    input = torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=LAYOUTS[layout])
    providers = {
        name: make_work(module, input.clone().requires_grad_()) for name, module in modules(shape[1], device).items()
    }
    title = f"batch_norm_act {passes} {shape} {str(dtype).removeprefix('torch.')} {layout}".replace(", ", "x")
    return Case(title, providers, TOLERANCES[dtype], device)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [*((shape, torch.float32) for shape in SHAPES), (SHAPES[0], torch.bfloat16)],
    ids=lambda value: "x".join(map(str, value)) if isinstance(value, tuple) else str(value).removeprefix("torch."),
)
def bench_forward_backward(
    compare: Callable[[Case], None], shape: tuple[int, ...], dtype: torch.dtype, layout: str
) -> None:
    def make_work(module: nn.Module, input: Tensor) -> Work:
        leaves = {"input": input, **dict(zip(("weight", "bias"), module.parameters()))}
        return forward_backward(lambda: module(input), leaves, torch.ones_like(input).mul_(input.detach()))

    compare(case("forward + backward", shape, dtype, layout, make_work))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def bench_forward(compare: Callable[[Case], None], training: bool, layout: str) -> None:
    def make_work(module: nn.Module, input: Tensor) -> Work:
        module.train(training)

        @torch.no_grad()
        def work() -> dict[str, Tensor]:
            return {"output": module(input)}

        return work

    passes = f"forward {'training' if training else 'eval'}"
    compare(case(passes, SHAPES[0], torch.float32, layout, make_work))
