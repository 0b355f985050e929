"""Compile the Triton kernels for GPUs on a machine without one, and report what the binaries use.

    python -m benchmarks.compiled [--arch 90 ...] [--json FILE]

The real launchers run with tensors of the shapes that models have; only the last step, passing the binary to a driver,
is left out. Reported are registers, spill instructions, shared memory, and the widths of loads and stores.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

ARCHITECTURES = (80, 90, 100, 120)


@dataclasses.dataclass(frozen=True)
class Binary:
    case: str
    kernel: str
    architecture: int
    registers: int
    spills: int  # instructions that store registers to memory or load them back
    shared_bytes: int
    warps: int
    load_bits: int  # width of the widest load from global memory
    store_bits: int  # width of the widest store to global memory


class NoDriver:
    """A driver that names the GPU to compile for and launches nothing."""

    def __init__(self, architecture: int) -> None:
        self.target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        # Triton caches compiled kernels by device.
        return int(self.target.arch)

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextlib.contextmanager
def compiling(architecture: int) -> Iterator[list[Any]]:
    """Make launches only compile, for ``architecture``; yield the list of compiled kernels."""
    compiled: list[Any] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool = False, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        compiled.append(kernel)
        return kernel

    previous = driver._active  # not .active, which would look for a GPU
    driver.set_active(NoDriver(architecture))
    JITFunction.run = compile_only
    try:
        yield compiled
    finally:
        JITFunction.run = run
        driver.set_active(previous)


def tool(name: str) -> str:
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def dump(path: str, what: str) -> str:
    return subprocess.run([tool("cuobjdump"), what, path], capture_output=True, text=True, check=True).stdout


def binary(case: str, architecture: int, kernel: Any) -> Binary:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = dump(file.name, "-res-usage")
        # Registers spill to a thread's stack; without a stack the slow disassembly is not needed.
        has_stack = any(int(size) for size in re.findall(r"STACK:(\d+)", usage))
        spills = len(re.findall(r"\b(?:STL|LDL)\b", dump(file.name, "-sass"))) if has_stack else 0
    registers = int(re.findall(r"REG:(\d+)", usage)[-1])
    ptx = kernel.asm["ptx"]
    loads, stores = (
        [int(v or 1) * int(b) for v, b in re.findall(rf"{access}\.global(?:\.\w+)*?(?:\.v(\d))?\.b(\d+)", ptx)]
        for access in ("ld", "st")
    )
    # Pipelined loops load with asynchronous copies.
    copies = re.findall(r"cp\.async\.\w+\.shared\.global \[[^]]+\], \[[^]]+\], 0x(\w+)", ptx)
    loads += [8 * int(size, 16) for size in copies]
    return Binary(
        case, kernel.metadata.name, architecture, registers, spills, kernel.metadata.shared,
        kernel.metadata.num_warps, max(loads, default=0), max(stores, default=0),
    )  # fmt: skip


def cases() -> dict[str, Callable[[], Any]]:
    """Return launches of every kernel, at the shapes of DCGAN-64's layers and at sizes that fill no block."""
    from gan_fast.ops.adversarial_loss import KINDS
    from gan_fast.triton_kernels import (
        adversarial_loss,
        batch_norm_act,
        conv,
        leaky_relu,
        minibatch_discrimination,
        noise,
        sample_norm_penalty,
    )

    def norm(shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, activation: str) -> None:
        x = torch.empty(shape, dtype=dtype).contiguous(memory_format=layout)
        vector = torch.zeros(shape[1])
        arguments = (x, vector, vector, vector, vector, True, 0.1, 1e-5, activation, 0.2)
        batch_norm_act.forward(*arguments)
        batch_norm_act.forward(*arguments, *(torch.zeros(size) for size in (8192, (8192, shape[1]), (8192, shape[1]))))
        saved = (x, x, vector, vector, vector, vector, True, activation, 0.2)
        batch_norm_act.backward(*saved, True, True)
        batch_norm_act.double_backward(x, vector, vector, *saved, True, True)

    def convolution(
        c_in: int, c_out: int, size: int, transposed: bool, dtype: torch.dtype, activation: str, statistics: bool
    ) -> None:
        x = torch.empty(16, c_in, size, size, dtype=dtype).contiguous(memory_format=torch.channels_last)
        channels = (c_in, c_out) if transposed else (c_out, c_in)
        weight = torch.empty(*channels, 4, 4, dtype=dtype).contiguous(memory_format=torch.channels_last)
        out = size * 2 if transposed else size // 2
        bias = torch.empty(c_out, dtype=dtype)
        memory_format = torch.channels_last if statistics else torch.contiguous_format
        conv.convolve(
            x, weight, bias, (2, 2), (1, 1), (1, 1), transposed, (out, out), activation, 0.2, memory_format, statistics
        )

    found: dict[str, Callable[[], Any]] = {}
    channels_last, contiguous = torch.channels_last, torch.contiguous_format
    for shape, dtype, layout, activation in (
        ((128, 64, 32, 32), torch.bfloat16, channels_last, "leaky_relu"),
        ((128, 64, 32, 32), torch.bfloat16, contiguous, "leaky_relu"),
        ((128, 512, 4, 4), torch.float16, channels_last, "relu"),
        ((128, 64, 32, 32), torch.float32, channels_last, "tanh"),
        ((5, 67, 7, 9), torch.float32, contiguous, "sigmoid"),
        # Instance norm's view of 128 samples, in which several planes share a tile.
        ((1, 128 * 64, 8, 8), torch.bfloat16, contiguous, "leaky_relu"),
        ((1, 128 * 64, 4, 4), torch.float32, contiguous, "tanh"),
        ((1, 8 * 64, 16, 16), torch.float16, contiguous, "relu"),
    ):
        name = f"batch_norm_act {'x'.join(map(str, shape))} {dtype} {layout} {activation}".replace("torch.", "")
        found[name] = lambda a=(shape, dtype, layout, activation): norm(*a)
    layers = ((512, 256, 4, True), (128, 64, 16, True), (64, 3, 32, True), (3, 64, 64, False), (256, 512, 8, False),
              (17, 5, 6, False))  # fmt: skip
    for c_in, c_out, size, transposed in layers:
        for dtype in (torch.bfloat16, torch.float32) if c_out < 128 else (torch.bfloat16,):
            last = c_out == 3
            op = "conv_transpose2d" if transposed else "conv2d"
            name = f"{op} {c_in} -> {c_out}, {size}x{size} {dtype}".replace("torch.", "")
            arguments = (c_in, c_out, size, transposed, dtype, "tanh" if last else "leaky_relu", not last)
            found[name] = lambda a=arguments: convolution(*a)

    def loss(dtype: torch.dtype, kind: str, relativistic: str) -> None:
        logits = torch.empty(128, dtype=dtype)
        arguments = (logits, 1.0, logits, 0.0, 1.0, kind, relativistic)
        adversarial_loss.forward(*arguments, True, True, True)
        adversarial_loss.backward(torch.ones(()), *arguments)

    for kind, relativistic, dtype in (
        *(("minimax", relativistic, torch.bfloat16) for relativistic in ("none", "paired", "average")),
        *((kind, relativistic, torch.float32) for kind in KINDS for relativistic in ("none", "average")),
    ):
        name = f"adversarial_loss {kind} {relativistic} 128 {dtype}".replace("torch.", "")
        found[name] = lambda a=(dtype, kind, relativistic): loss(*a)

    def discriminate(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
        x, g = torch.empty(shape, dtype=dtype), torch.empty(shape[:2], dtype=dtype)
        minibatch_discrimination.forward(x)
        minibatch_discrimination.backward(g, x)
        minibatch_discrimination.double_backward(x, g, x)

    for shape, dtype in (
        ((128, 64, 16), torch.bfloat16),
        ((128, 64, 16), torch.float32),
        ((65, 100, 5), torch.float32),
    ):
        name = f"minibatch_discrimination {'x'.join(map(str, shape))} {dtype}".replace("torch.", "")
        found[name] = lambda a=(shape, dtype): discriminate(*a)

    def leaky(count: int, dtype: torch.dtype, with_signs: bool) -> None:
        x = torch.empty(count, dtype=dtype)
        output, signs = leaky_relu.forward(x, 0.2, with_signs)
        if signs is not None:
            leaky_relu.backward(output, signs, output.stride(), 0.2)

    # 128 maps of 64 channels, 32x32; a count whose last sixteen bytes are incomplete; a count beyond 32 bits, whose
    # memory is never touched.
    for count, dtype, with_signs in (
        (128 * 64 * 32 * 32, torch.bfloat16, True),
        (128 * 64 * 32 * 32, torch.bfloat16, False),
        (128 * 64 * 32 * 32, torch.float32, True),
        (9001, torch.float16, True),
        (2**31 + 16, torch.bfloat16, True),
    ):
        name = f"leaky_relu {count} {dtype}{'' if with_signs else ' without signs'}".replace("torch.", "")
        found[name] = lambda a=(count, dtype, with_signs): leaky(*a)

    def norm_penalty(shape: tuple[int, ...], dtype: torch.dtype, weighted: bool) -> None:
        x, vector = torch.empty(shape, dtype=dtype), torch.empty(shape[0])
        coefficients = vector if weighted else None
        sample_norm_penalty.forward(x, coefficients, 1.0, 0.5)
        sample_norm_penalty.backward(torch.ones(()), x, vector, coefficients, 1.0, 0.5)

    # A penalty's batches; one sample; samples not aligned to sixteen bytes; more values than 32 bits can count, in all
    # and in one sample.
    for shape, dtype, weighted in (
        ((128, 3, 64, 64), torch.float32, False),
        ((128, 3, 64, 64), torch.bfloat16, True),
        ((1, 3, 1024, 1024), torch.float16, False),
        ((5, 67, 7, 9), torch.float32, True),
        ((2**20, 2**11 + 16), torch.bfloat16, False),
        ((2, 2**31 + 16), torch.bfloat16, False),
    ):
        name = f"sample_norm_penalty {'x'.join(map(str, shape))} {dtype}{' weighted' * weighted}".replace("torch.", "")
        found[name] = lambda a=(shape, dtype, weighted): norm_penalty(*a)

    def noisy(shape: tuple[int, ...], dtype: torch.dtype) -> None:
        x, seed, std = torch.empty(shape, dtype=dtype), torch.zeros((), dtype=torch.int64), torch.ones(())
        noise.interpolate(x, x, seed)
        noise.perturb(x, std, seed, 0.5)
        noise.add_noise(x, 0.1, seed)
        noise.add_noise(x, std, seed)

    for shape, dtype in (
        ((128, 3, 64, 64), torch.float32),
        ((128, 3, 64, 64), torch.bfloat16),
        ((5, 67, 7, 9), torch.float16),
        ((2, 2**31 + 16), torch.bfloat16),
    ):
        found[f"noise {'x'.join(map(str, shape))} {dtype}".replace("torch.", "")] = lambda a=(shape, dtype): noisy(*a)
    return found


def compile_all(
    architectures: tuple[int, ...] = ARCHITECTURES, matching: str = "", every: int = 1, first: int = 0
) -> list[Binary]:
    binaries = []
    for architecture in architectures:
        for case, launch in list(cases().items())[first::every]:
            if matching not in case:
                continue
            with compiling(architecture) as compiled:
                launch()
            binaries += [binary(case, architecture, kernel) for kernel in compiled]
    return binaries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="*", default=list(ARCHITECTURES))
    parser.add_argument("--match", default="", help="compile only cases whose name contains this text")
    parser.add_argument("--every", type=int, default=1, help="compile only every n-th case")
    parser.add_argument("--first", type=int, default=0, help="index of the first of these cases")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    binaries = compile_all(tuple(arguments.arch), arguments.match, arguments.every, arguments.first)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([dataclasses.asdict(b) for b in binaries], indent=1) + "\n")
    for b in binaries:
        print(
            f"sm_{b.architecture:<4} {b.kernel:<26} {b.registers:>4} registers {b.spills:>3} spills "
            f"{b.shared_bytes:>7} B shared {b.load_bits:>4}-bit loads {b.store_bits:>4}-bit stores  {b.case}"
        )
    sys.exit(any(b.spills for b in binaries))


if __name__ == "__main__":
    main()
