"""Batch norm with LeakyReLU(0.2): the middle of every DCGAN block."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import nn

from benchmarks import providers
from benchmarks.harness import Case, default_device
from gan_fast.nn import BatchNormAct2d

# (N, C, H, W): DCGAN-64's largest and smallest map with a norm.
LARGE, SMALL = (32, 64, 32, 32), (32, 512, 4, 4)
# float32 agrees to 1e-6 except at the activation's kink; in bfloat16 eager rounds between norm and activation.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 2e-2}
SLOPE = 0.2


def run(
    compare: Callable[[Case], None],
    passes: str,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    layouts: Mapping[str, torch.memory_format] = providers.LAYOUTS,
) -> None:
    device = default_device()
    torch.manual_seed(0)
    input, grad = torch.randn(2, *shape, device=device, dtype=dtype)
    training = "backward" in passes

    def build_eager(inplace: bool) -> nn.Sequential:
        return nn.Sequential(nn.BatchNorm2d(shape[1]), nn.LeakyReLU(SLOPE, inplace))

    every = providers.network_providers(
        build_eager,
        lambda: BatchNormAct2d(shape[1], negative_slope=SLOPE),
        providers.training_work(input, grad, input_grad=True) if training else providers.sampling_work(input),
        device,
        layouts=layouts,
    )
    name = f"batch_norm_act {passes} ({'x'.join(map(str, shape))}) {str(dtype).removeprefix('torch.')}"
    if len(layouts) == 1:
        name += f" {next(iter(layouts))}"
    compare(Case(name, every, TOLERANCES[dtype], device))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [(LARGE, torch.float32), (SMALL, torch.float32), (LARGE, torch.bfloat16)],
    ids=["large", "small", "large-bfloat16"],
)
def bench_forward_backward(compare: Callable[[Case], None], shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Training, each provider in its quickest memory format.

    Tuned by hand: channels-last, activation in place, ATen called without modules.
    """
    run(compare, "forward + backward", shape, dtype)


@pytest.mark.parametrize("layout", providers.LAYOUTS)
def bench_one_layout(compare: Callable[[Case], None], layout: str) -> None:
    """Training, in the memory format that the neighboring layers impose.

    Tuned by hand: activation in place, ATen called without modules.
    """
    run(compare, "forward + backward", LARGE, layouts={layout: providers.LAYOUTS[layout]})


def bench_sampling(compare: Callable[[Case], None]) -> None:
    """Evaluation mode, forward without gradients.

    Tuned by hand: channels-last, activation in place, ATen called without modules. There is no convolution to fold
    the norm into.
    """
    run(compare, "forward eval", LARGE)
