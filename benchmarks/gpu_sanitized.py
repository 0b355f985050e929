"""Run the kernels of one backend once on small tensors, as a target for compute-sanitizer.

compute-sanitizer --tool memcheck python -m benchmarks.gpu_sanitized --backend cuda

With --backend triton and TRITON_INTERPRET=1 the kernels are interpreted on the CPU.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import gan_fast
from gan_fast import ops

# Sizes that fill no block of rows, channels or positions; one chunk and several.
SHAPES = ((3, 5, 4, 3), (5, 66, 9, 7), (33, 8, 2, 2))
LAYOUTS = (torch.channels_last, torch.contiguous_format)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def cases(device: torch.device) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Yield op and forward pass of each case. Inputs are drawn on the CPU: only tested kernels run on the GPU."""

    def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape).to(device, dtype).requires_grad_()

    for shape in SHAPES:
        for layout in LAYOUTS:
            for dtype in DTYPES:
                x = torch.randn(shape).to(device, dtype).contiguous(memory_format=layout).requires_grad_()
                weight, bias = leaf(shape[1]), leaf(shape[1])
                mean, var = torch.zeros(shape[1]).to(device), torch.ones(shape[1]).to(device)

                def norm(
                    training: bool, x: Tensor = x, mean: Tensor = mean, var: Tensor = var, weight: Tensor = weight,
                    bias: Tensor = bias,
                ) -> Tensor:  # fmt: skip
                    return ops.batch_norm_act(x, mean, var, weight, bias, training, activation="leaky_relu")

                yield "batch_norm_act", lambda norm=norm: norm(True)
                yield "batch_norm_act", lambda norm=norm: norm(False)
                yield "leaky_relu", lambda x=x: ops.leaky_relu(x, 0.2)
                yield "sample_norm_penalty", lambda x=x: ops.sample_norm_penalty(x, center=1.0)[0]
    for count in (1, 128, 1000):
        for dtype in DTYPES:
            real, fake = leaf(count, dtype=dtype), leaf(count, dtype=dtype)
            yield "minimax_d_loss", lambda real=real, fake=fake: ops.minimax_d_loss(real, fake)
            yield "minimax_g_loss", lambda fake=fake: ops.minimax_g_loss(fake)
            yield "hinge_d_loss", lambda real=real, fake=fake: ops.hinge_d_loss(real, fake)
            for average in (False, True):
                yield (
                    "relativistic_d_loss",
                    lambda real=real, fake=fake, average=average: ops.relativistic_d_loss(real, fake, average=average),
                )


def triton_cases(device: torch.device) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Yield op and forward pass of each case of the ops whose only kernels are Triton's."""

    def leaf(*shape: int, dtype: torch.dtype, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
        return torch.randn(shape).to(device, dtype).contiguous(memory_format=layout).requires_grad_()

    for dtype in DTYPES:
        for shape in SHAPES:
            x, y = leaf(*shape, dtype=dtype), leaf(*shape, dtype=dtype)
            yield "instance_norm_act", lambda x=x: ops.instance_norm_act(x, activation="relu")
            yield "interpolate", lambda x=x, y=y: ops.interpolate_samples(x, y)
            yield "perturb", lambda x=x: ops.perturb(x)
            yield "add_noise", lambda x=x: ops.add_noise(x, 0.1)
        for count, kernels, size in ((1, 3, 5), (65, 7, 3), (128, 5, 16)):
            features, weight = leaf(count, 6, dtype=dtype), leaf(6, kernels, size, dtype=dtype)
            yield (
                "minibatch_discrimination",
                lambda features=features, weight=weight: ops.minibatch_discrimination(features, weight),
            )
        for layout in LAYOUTS:
            x = leaf(3, 5, 9, 7, dtype=dtype, layout=layout)
            down, up = (leaf(*channels, 4, 4, dtype=dtype, layout=layout) for channels in ((18, 5), (5, 18)))
            for stride in (1, 2):
                yield "conv2d", lambda x=x, down=down, stride=stride: ops.conv2d(x, down, None, stride, 1)
                yield (
                    "conv_transpose2d",
                    lambda x=x, up=up, stride=stride: ops.conv_transpose2d(x, up, None, stride, 1),
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=("cuda", "cpu", "triton"), default="cuda")
    backend = parser.parse_args().backend
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    device = torch.device(backend if backend != "triton" else "cpu" if interpreted else "cuda")
    checked: dict[str, int] = {}
    absent: dict[str, str] = {}
    with gan_fast.use_backend(backend):
        others = triton_cases(device) if backend == "triton" else ()
        for op, forward in itertools.chain(cases(device), others):
            # Under the interpreter one case of each op is enough: it only tests this script.
            if op in absent or (backend == "triton" and device.type == "cpu" and op in checked):
                continue
            try:
                output = forward()
            except RuntimeError as error:
                if "to be available, got:" not in str(error):
                    raise
                absent[op] = str(error)
                continue
            if output.requires_grad:
                output.backward(output.detach())
            checked[op] = checked.get(op, 0) + 1
    if device.type == "cuda":
        torch.cuda.synchronize()
    for op, count in checked.items():
        print(f"checked {op}: {count} forward and backward passes")
    for op, why in absent.items():
        print(f"absent {op}: {why}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
