"""The GPU suite's measurements of single ops. Each part yields the record of a case as soon as it is measured."""

from __future__ import annotations

import functools
import itertools
import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import gan_fast
from benchmarks import roofline, steps
from benchmarks.gpu_machine import BEYOND_CACHE, GpuCase, Machine, Record, SkippedError, Work, measure_all, reason
from benchmarks.harness import COMPILED, EAGER, GAN_FAST
from benchmarks.table import COPY, PRODUCT
from gan_fast import ops

SLOPE = 0.2
# Sums in another order round to another bfloat16. If one value in five hundred moves to the other side of an
# activation's kink, the gradient's relative distance is the root of that share, 0.05.
TOLERANCES = {torch.bfloat16: 0.15, torch.float32: 5e-3}
# torch.compile of a block takes seconds; it gets at most this share of a part's time.
COMPILE_SHARE = 0.45


def rates(machine: Machine) -> Iterator[Record]:
    """Measure the chip's rates: bandwidth of a copy, products of bfloat16 matrices."""
    bytes = machine.size(BEYOND_CACHE, 2**16)
    source, target = (torch.empty(bytes, dtype=torch.uint8, device=machine.device).zero_() for _ in range(2))
    size = machine.size(8192, 64)
    a, b = (torch.randn(size, size, device=machine.device, dtype=torch.bfloat16) for _ in range(2))
    cases = (
        GpuCase(COPY, {"ATen": lambda: [lambda: target.copy_(source)]}, 0.0, bytes=2 * bytes),
        GpuCase(PRODUCT, {"ATen": lambda: [lambda: a @ b]}, 0.0, flop=2 * size**3),
    )
    yield from measure_all(machine, iter(cases))


def gan_fast_by_backend(
    machine: Machine, make: Callable[[], Sequence[Work]]
) -> dict[str, Callable[[], Sequence[Work]]]:
    """Return gan_fast's op under each backend of the device; the forward call selects the backend."""

    def under(backend: str) -> Sequence[Work]:
        def inside(copy: Work) -> Any:
            with gan_fast.use_backend(backend):
                return copy()

        with gan_fast.use_backend(backend):
            return [functools.partial(inside, copy) for copy in make()]

    return {f"{GAN_FAST}, {backend}": functools.partial(under, backend) for backend in machine.backends}


def forward_copies(function: Callable[[Tensor], Tensor], inputs: Sequence[Tensor]) -> Sequence[Work]:
    def run(x: Tensor) -> Tensor:
        with torch.no_grad():
            return function(x)

    return [functools.partial(run, x) for x in inputs]


def backward_copies(
    function: Callable[[Tensor], Tensor], inputs: Sequence[Tensor], leaves: Sequence[Tensor]
) -> Sequence[Work]:
    """Return backward passes alone; their forward passes run here, and their graphs are retained."""

    def run(output: Tensor, leaves: Sequence[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(output, leaves, grad, retain_graph=True)

    copies = []
    for index, x in enumerate(inputs):
        # A separate leaf: providers share the input's memory.
        leaf = x.detach().requires_grad_()
        grad = inputs[index - 1][:, : leaf.size(1)]
        output = function(leaf)
        if output.dim() == 0:
            grad = torch.ones_like(output)
        elif grad.shape != output.shape:
            grad = torch.randn_like(output)
        copies.append(functools.partial(run, output, (leaf, *leaves), grad))
    return copies


def forward_backward_copies(
    function: Callable[[Tensor], Tensor], inputs: Sequence[Tensor], leaves: Sequence[Tensor], grad: Tensor
) -> Sequence[Work]:
    def run(leaf: Tensor) -> tuple[Tensor, ...]:
        output = function(leaf)
        return (output, *torch.autograd.grad(output, (leaf, *leaves), grad))

    return [functools.partial(run, x.detach().requires_grad_()) for x in inputs]


class _Norm:
    """Batch norm in training with LeakyReLU, by ATen and by gan_fast."""

    def __init__(self, channels: int, device: torch.device) -> None:
        self.running = torch.zeros(channels, device=device), torch.ones(channels, device=device)
        self.leaves = tuple((torch.rand(channels, device=device) + 0.5).requires_grad_() for _ in range(2))

    def eager(self, x: Tensor, running: tuple[Tensor | None, Tensor | None] | None = None) -> Tensor:
        return F.leaky_relu_(F.batch_norm(x, *(running or self.running), *self.leaves, True, 0.1, 1e-5), SLOPE)

    def gan_fast(self, x: Tensor, running: tuple[Tensor | None, Tensor | None] | None = None) -> Tensor:
        statistics = (*(running or self.running), *self.leaves)
        return ops.batch_norm_act(x, *statistics, True, 0.1, 1e-5, "leaky_relu", SLOPE)


def norms(machine: Machine) -> Iterator[Record]:
    """Measure batch_norm_act in training, forward and backward, at DCGAN-64's shapes and larger ones."""
    yield from measure_all(machine, _norms(machine))


def _norms(machine: Machine) -> Iterator[GpuCase]:
    shapes = ((128, 512, 4, 4), (128, 256, 8, 8), (128, 128, 16, 16), (128, 64, 32, 32), (1024, 64, 32, 32),
              (128, 64, 64, 64))  # fmt: skip
    layouts = ((torch.bfloat16, torch.channels_last), (torch.float32, torch.contiguous_format))
    for wanted in machine.some(shapes):
        batch, channels, size, _ = wanted
        shape = (machine.size(batch, 4), machine.size(channels, 8), *(machine.size(size, 4),) * 2)
        for dtype, layout in layouts:
            tensor_bytes = math.prod(shape) * dtype.itemsize
            inputs = [
                torch.randn(shape, device=machine.device, dtype=dtype).contiguous(memory_format=layout)
                for _ in range(machine.copies(2 * tensor_bytes))
            ]
            made = _Norm(shape[1], machine.device)
            label = f"({'x'.join(map(str, wanted))}) {_name(dtype)} {_name(layout)}"
            # Forward reads its input twice and writes once; backward reads two tensors twice and writes one.
            yield GpuCase(
                f"batch_norm_act forward {label}",
                {
                    EAGER: functools.partial(forward_copies, made.eager, inputs),
                    GAN_FAST: functools.partial(forward_copies, made.gan_fast, inputs),
                    **gan_fast_by_backend(machine, functools.partial(forward_copies, made.gan_fast, inputs)),
                },
                TOLERANCES[dtype],
                bytes=3 * tensor_bytes,
            )
            # No running statistics: eager saves them for backward, and another provider's forward would change them.
            eager, fused = (functools.partial(f, running=(None, None)) for f in (made.eager, made.gan_fast))
            yield GpuCase(
                f"batch_norm_act backward {label}",
                {
                    EAGER: functools.partial(backward_copies, eager, inputs, made.leaves),
                    GAN_FAST: functools.partial(backward_copies, fused, inputs, made.leaves),
                    **gan_fast_by_backend(machine, functools.partial(backward_copies, fused, inputs, made.leaves)),
                },
                TOLERANCES[dtype],
                bytes=5 * tensor_bytes,
            )


def _name(value: Any) -> str:
    return str(value).removeprefix("torch.").removesuffix("_format")


def leaky_relu(machine: Machine) -> Iterator[Record]:
    """Measure leaky_relu, forward and backward, on a map that exceeds the cache."""
    yield from measure_all(machine, _leaky_relu(machine))


def _leaky_relu(machine: Machine) -> Iterator[GpuCase]:
    shape = (machine.size(128, 4), machine.size(64, 8), *(machine.size(32, 4),) * 2)
    for dtype, layout in ((torch.bfloat16, torch.channels_last), (torch.float32, torch.contiguous_format)):
        tensor_bytes = math.prod(shape) * dtype.itemsize
        inputs = [
            torch.randn(shape, device=machine.device, dtype=dtype).contiguous(memory_format=layout)
            for _ in range(machine.copies(2 * tensor_bytes))
        ]

        def eager(x: Tensor) -> Tensor:
            return F.leaky_relu(x, SLOPE)

        def fused(x: Tensor) -> Tensor:
            return ops.leaky_relu(x, SLOPE)

        for passes, copies, moved in (
            ("forward", forward_copies, 2),
            ("backward", functools.partial(backward_copies, leaves=()), 3),
        ):
            yield GpuCase(
                f"leaky_relu {passes} (128x64x32x32) {_name(dtype)} {_name(layout)}",
                {
                    EAGER: functools.partial(copies, eager, inputs),
                    GAN_FAST: functools.partial(copies, fused, inputs),
                    **gan_fast_by_backend(machine, functools.partial(copies, fused, inputs)),
                },
                TOLERANCES[dtype],
                bytes=moved * tensor_bytes,
            )


def sample_norm_penalty(machine: Machine) -> Iterator[Record]:
    """Measure sample_norm_penalty, forward and backward, on the gradients of a batch of images."""
    yield from measure_all(machine, _sample_norm_penalty(machine))


def _image_batches(machine: Machine, dtype: torch.dtype) -> tuple[list[Tensor], int]:
    """Return enough batches of images to exceed the cache, and the number of bytes in one batch."""
    shape = (machine.size(128, 4), 3, *(machine.size(64, 8),) * 2)
    tensor_bytes = math.prod(shape) * dtype.itemsize
    count = machine.copies(2 * tensor_bytes)
    return [torch.randn(shape, device=machine.device).to(dtype) / 100 for _ in range(count)], tensor_bytes


def _sample_norm_penalty(machine: Machine) -> Iterator[GpuCase]:
    for dtype in (torch.float32, torch.bfloat16):
        inputs, tensor_bytes = _image_batches(machine, dtype)

        def eager(x: Tensor) -> Tensor:
            return ((x.float().flatten(1).norm(dim=1) - 1) ** 2).mean()

        def fused(x: Tensor) -> Tensor:
            return ops.sample_norm_penalty(x, center=1.0)[0]

        for passes, copies, moved in (
            ("forward", forward_copies, 1),
            ("backward", functools.partial(backward_copies, leaves=()), 2),
        ):
            yield GpuCase(
                f"sample_norm_penalty {passes} (128x3x64x64) {_name(dtype)}",
                {
                    EAGER: functools.partial(copies, eager, inputs),
                    GAN_FAST: functools.partial(copies, fused, inputs),
                    **gan_fast_by_backend(machine, functools.partial(copies, fused, inputs)),
                },
                TOLERANCES[dtype],
                bytes=moved * tensor_bytes,
            )


def noise(machine: Machine) -> Iterator[Record]:
    """Measure interpolate, perturb and add_noise. All noise is drawn but multiplied by zero, so that results agree."""
    yield from measure_all(machine, _noise(machine))


def _noise(machine: Machine) -> Iterator[GpuCase]:
    std = torch.zeros((), device=machine.device)

    def uniform(x: Tensor) -> Tensor:
        return torch.rand(len(x), 1, 1, 1, device=x.device, dtype=x.dtype)

    functions: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], int]] = {
        "interpolate": (lambda x: x + uniform(x) * (x - x), lambda x: ops.interpolate_samples(x, x), 2),
        "perturb": (
            lambda x: x + uniform(x) * 0.0 * x.std() * torch.rand_like(x), lambda x: ops.perturb(x, scale=0.0), 3,
        ),
        "add_noise": (lambda x: x + std * torch.randn_like(x), lambda x: ops.add_noise(x, std), 2),
    }  # fmt: skip
    for dtype in (torch.float32, torch.bfloat16):
        inputs, tensor_bytes = _image_batches(machine, dtype)
        for op, (eager, fused, moved) in functions.items():
            yield GpuCase(
                f"{op} (128x3x64x64) {_name(dtype)}",
                {
                    EAGER: functools.partial(forward_copies, eager, inputs),
                    GAN_FAST: functools.partial(forward_copies, fused, inputs),
                    **gan_fast_by_backend(machine, functools.partial(forward_copies, fused, inputs)),
                },
                TOLERANCES[dtype],
                bytes=moved * tensor_bytes,
            )


def discrimination(machine: Machine) -> Iterator[Record]:
    """Measure minibatch_discrimination of 128 samples, forward, and forward with backward."""
    compiler = _Compiler(machine)

    def cases() -> Iterator[GpuCase]:
        n, features, b = machine.size(128, 4), machine.size(512, 8), machine.size(64, 3)
        make = functools.partial(torch.randn, device=machine.device)
        weight = (make(features, b, 16) / features**0.5 / 16).requires_grad_()
        inputs = [make(n, features).requires_grad_() for _ in range(machine.copies(1))]
        grad = make(n, features + b)

        def eager(x: Tensor) -> Tensor:
            m = (x @ weight.flatten(1)).view(len(x), b, 16)
            closeness = torch.exp(-(m.unsqueeze(0) - m.unsqueeze(1)).abs().sum(3)).sum(0) - 1
            return torch.cat([x, closeness], 1)

        def fused(x: Tensor) -> Tensor:
            return ops.minibatch_discrimination(x, weight)

        def both(function: Callable[[Tensor], Tensor], inputs: Sequence[Tensor]) -> Sequence[Work]:
            return forward_backward_copies(function, inputs, (weight,), grad)

        for passes, copies in (("forward", forward_copies), ("forward + backward", both)):

            def of(function: Callable[[Tensor], Tensor], copies: Any = copies) -> Sequence[Work]:
                return copies(function, inputs)

            fused_copies = functools.partial(of, fused)
            yield GpuCase(
                f"minibatch_discrimination {passes} (N=128, B=64, C=16) float32",
                {
                    EAGER: functools.partial(of, eager),
                    GAN_FAST: fused_copies,
                    **gan_fast_by_backend(machine, fused_copies),
                    COMPILED: functools.partial(compiler.copies, eager, of),
                },
                TOLERANCES[torch.float32],
            )

    yield from measure_all(machine, cases())


class _Convolution:
    """A layer of DCGAN-64 in bfloat16, channels-last: its tensors and the functions of the providers."""

    def __init__(self, machine: Machine, layer: roofline.Layer, batch: int) -> None:
        self.layer = layer
        self.transposed = layer.out_size > layer.in_size
        self.stride, self.padding = (1, 0) if 1 in (layer.in_size, layer.out_size) else (2, 1)
        channels = (layer.c_in, layer.c_out) if self.transposed else (layer.c_out, layer.c_in)
        make = functools.partial(torch.randn, device=machine.device, dtype=torch.bfloat16)
        x, y, _ = (values * roofline.HALF for values in layer.values(batch))
        self.flop = layer.flop(batch)
        self.inputs = [
            make(batch, layer.c_in, layer.in_size, layer.in_size).contiguous(memory_format=torch.channels_last)
            for _ in range(machine.copies(x + y))
        ]
        self.weight = (make(*channels, 4, 4) * 0.02).contiguous(memory_format=torch.channels_last).requires_grad_()
        self.grad = make(batch, layer.c_out, layer.out_size, layer.out_size).contiguous(
            memory_format=torch.channels_last
        )
        vector = functools.partial(torch.ones, layer.c_out, device=machine.device)
        self.mean, self.var = vector().zero_(), vector()
        self.bn_weight, self.bn_bias = vector().requires_grad_(), vector().zero_().requires_grad_()
        self.leaves = (self.weight, self.bn_weight, self.bn_bias)
        self.activation = "relu" if self.transposed else "leaky_relu"

    def aten(self, x: Tensor) -> Tensor:
        function = F.conv_transpose2d if self.transposed else F.conv2d
        return function(x, self.weight, None, self.stride, self.padding)

    def gan_fast(self, x: Tensor) -> Tensor:
        function = ops.conv_transpose2d if self.transposed else ops.conv2d
        return function(x, self.weight, None, self.stride, self.padding)

    def eager_block(self, x: Tensor) -> Tensor:
        y = F.batch_norm(self.aten(x), self.mean, self.var, self.bn_weight, self.bn_bias, True, 0.1, 1e-5)
        return F.relu_(y) if self.transposed else F.leaky_relu_(y, SLOPE)

    def gan_fast_norm(self, x: Tensor) -> Tensor:
        return ops.batch_norm_act(
            self.aten(x), self.mean, self.var, self.bn_weight, self.bn_bias, True, 0.1, 1e-5, self.activation, SLOPE
        )

    def gan_fast_block(self, x: Tensor) -> Tensor:
        function = ops.conv_transpose2d_bn_act if self.transposed else ops.conv2d_bn_act
        return function(
            x, self.weight, None, self.stride, self.padding, running_mean=self.mean, running_var=self.var,
            bn_weight=self.bn_weight, bn_bias=self.bn_bias, training=True, activation=self.activation,
            negative_slope=SLOPE,
        )  # fmt: skip

    def eager_last(self, x: Tensor) -> Tensor:
        return torch.tanh_(self.aten(x))

    def gan_fast_last(self, x: Tensor) -> Tensor:
        return ops.conv_transpose2d_act(x, self.weight, None, self.stride, self.padding, activation="tanh")


def convolutions(machine: Machine) -> Iterator[Record]:
    """Measure single convolutions: cuDNN through ATen, gan_fast's automatic choice, and Triton."""
    torch.backends.cudnn.benchmark = True  # as in tuned scripts
    yield from measure_all(machine, _convolutions(machine))


def _convolutions(machine: Machine) -> Iterator[GpuCase]:
    names = ("G2", "G3", "G4", "G5", "D1", "D2", "D3", "D4")
    for wanted in machine.some((128, 1024)):
        for layer in machine.layers(*names):
            made = _Convolution(machine, layer, machine.size(wanted, 2))
            triton = f"{GAN_FAST}, {machine.backends[0]}"
            case = functools.partial(GpuCase, tolerance=TOLERANCES[torch.bfloat16])
            label = f"{layer.name} batch {wanted} bfloat16"

            forward = functools.partial(forward_copies, inputs=made.inputs)
            both = functools.partial(forward_backward_copies, inputs=made.inputs, leaves=(made.weight,), grad=made.grad)
            for passes, copies, factor in (("forward", forward, 1), ("forward + backward", both, 3)):
                fused = functools.partial(copies, made.gan_fast)
                providers = {
                    "ATen": functools.partial(copies, made.aten),
                    GAN_FAST: fused,
                    triton: gan_fast_by_backend(machine, fused)[triton],
                }
                yield case(f"convolution {passes} {label}", providers, flop=factor * made.flop)


class _Compiler:
    """torch.compile within a time budget; once it is spent, further cases raise SkippedError."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.left_s = COMPILE_SHARE * machine.left_s

    def copies(self, function: Callable[..., Any], make: Callable[..., Sequence[Work]]) -> Sequence[Work]:
        if self.left_s <= 0:
            raise SkippedError("this part has no time left for torch.compile")
        started = time.monotonic()
        torch.compiler.reset()
        copies = make(self.machine.compile(function))
        copies[0]()
        self.left_s -= time.monotonic() - started
        return copies


def blocks(machine: Machine) -> Iterator[Record]:
    """Measure blocks of convolution, norm and activation, and the generator's last layer with tanh."""
    torch.backends.cudnn.benchmark = True  # as in tuned scripts
    yield from measure_all(machine, _blocks(machine))


def _blocks(machine: Machine) -> Iterator[GpuCase]:
    compiler = _Compiler(machine)
    for wanted in machine.some((128, 1024)):
        for layer in machine.layers("G4", "D2", "G3", "D3", "G2", "D4", "G5"):
            made = _Convolution(machine, layer, machine.size(wanted, 2))
            op = "conv_transpose2d" if made.transposed else "conv2d"
            eager, fused, leaves, suffix = made.eager_block, made.gan_fast_block, made.leaves, "bn_act"
            if layer.name == "G5":
                eager, fused, leaves, suffix = made.eager_last, made.gan_fast_last, made.leaves[:1], "act (tanh)"
            both = functools.partial(forward_backward_copies, inputs=made.inputs, leaves=leaves, grad=made.grad)
            forward = functools.partial(forward_copies, inputs=made.inputs)
            for passes, copies, flop in (("forward", forward, made.flop), ("forward + backward", both, 3 * made.flop)):
                providers = {EAGER: functools.partial(copies, eager)}
                if layer.norm:
                    providers["eager, gan_fast's norm"] = functools.partial(copies, made.gan_fast_norm)
                providers[GAN_FAST] = functools.partial(copies, fused)
                by_name = gan_fast_by_backend(machine, functools.partial(copies, fused))
                name = f"{GAN_FAST}, {machine.backends[0]}"
                providers[name] = by_name[name]
                if layer.norm:
                    providers[COMPILED] = functools.partial(compiler.copies, eager, copies)
                yield GpuCase(
                    f"{op}_{suffix} {passes} {layer.name} batch {wanted} bfloat16",
                    providers,
                    TOLERANCES[torch.bfloat16],
                    flop=flop,
                )


def _value_and_gradients(loss: Callable[..., Tensor], leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
    value = loss(*leaves)
    return (value, *torch.autograd.grad(value, leaves))


def losses(machine: Machine) -> Iterator[Record]:
    """Measure adversarial losses of 128 logits: times, and the number of kernels that a call launches."""
    compiler = _Compiler(machine)
    relativistic_average = functools.partial(ops.relativistic_d_loss, average=True)
    launches: list[tuple[str, dict[str, Callable[[], Sequence[Work]]]]] = []

    def cases() -> Iterator[GpuCase]:
        for name, count, eager, fused in (
            ("minimax_d_loss", 2, steps.d_loss, ops.minimax_d_loss),
            ("minimax_g_loss", 1, steps.g_loss, ops.minimax_g_loss),
            ("hinge_d_loss", 2, steps.hinge_d_loss, ops.hinge_d_loss),
            ("relativistic_d_loss average", 2, steps.relativistic_average_d_loss, relativistic_average),
        ):
            drawn = torch.randn(machine.copies(1), count, 128, device=machine.device)
            logits = [tuple(t.clone().requires_grad_() for t in copy) for copy in drawn]

            def forward(loss: Callable[..., Tensor], logits: Sequence[Any] = logits) -> Sequence[Work]:
                return [functools.partial(loss, *copy) for copy in logits]

            def both(loss: Callable[..., Tensor], logits: Sequence[Any] = logits) -> Sequence[Work]:
                return [functools.partial(_value_and_gradients, loss, leaves) for leaves in logits]

            def backward(loss: Callable[..., Tensor], logits: Sequence[Any] = logits) -> Sequence[Work]:
                leaves = logits[0]
                value = loss(*leaves)
                unit = torch.ones_like(value)
                return [lambda: torch.autograd.grad(value, leaves, unit, retain_graph=True)]

            def providers(
                copies: Any, eager: Any = eager, fused: Any = fused
            ) -> dict[str, Callable[[], Sequence[Work]]]:
                fused_copies = functools.partial(copies, fused)
                return {
                    EAGER: functools.partial(copies, eager),
                    GAN_FAST: fused_copies,
                    **gan_fast_by_backend(machine, fused_copies),
                }

            for passes, counted in (("forward", forward), ("backward", backward)):
                launches.append((f"{name} (128) {passes}, launches", providers(counted)))
            for passes, copies in (("forward", forward), ("forward + backward", both)):
                compiled = functools.partial(compiler.copies, eager, copies)
                every = {**providers(copies), COMPILED: compiled}
                yield GpuCase(f"{name} (128) {passes}", every, TOLERANCES[torch.float32])

    yield from measure_all(machine, cases())
    for name, makers in launches:
        # One fused kernel computes the whole loss. The launches of backward are recorded without a limit.
        wanted = None if machine.dry or "backward" in name else 1
        yield count_launches(machine, name, makers, wanted)


def count_launches(
    machine: Machine, name: str, makers: Mapping[str, Callable[[], Sequence[Work]]], wanted: int | None
) -> Record:
    """Count the kernels that one call of each provider launches.

    A backend of gan_fast that launches more than ``wanted`` has failed. Automatic choice has not: it may have chosen
    the reference.
    """
    record: Record = {"case": name, "baseline": None, "providers": {}}
    limited = {f"{GAN_FAST}, {backend}" for backend in machine.backends}
    for provider, make in makers.items():
        try:
            kernels = launched(machine, make()[0])
        except Exception as error:
            record["providers"][provider] = reason(error)
            continue
        found: dict[str, Any] = {"launches": sum(kernels.values()), "kernels": dict(kernels)}
        if wanted is not None and provider in limited and found["launches"] > wanted:
            found["failed"] = f"expected at most {wanted} kernel launched, got {found['launches']}: {dict(kernels)}"
        record["providers"][provider] = found
    return record


def launched(machine: Machine, work: Work) -> Counter[str]:
    """Count by name the kernels that ``work`` runs; in a dry run ATen's ops.

    Raises:
        RuntimeError: the profiler recorded no kernel.
    """
    activities = [ProfilerActivity.CPU] if machine.dry else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    # The first profile of a process can lose events while the profiler initializes.
    for _ in range(2):
        work()
        machine.synchronize()
        with profile(activities=activities) as profiler:
            work()
            machine.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    wanted = "cpu_op" if machine.dry else "kernel"
    kernels = Counter(event["name"][:80] for event in events if event.get("cat") == wanted)
    if not kernels:
        raise RuntimeError("launched: expected kernels in the profiler's trace, got none")
    return kernels


def penalty(machine: Machine) -> Iterator[Record]:
    """Measure a gradient penalty, first and second backward, through a critic of five blocks without norm."""
    torch.backends.cudnn.benchmark = True  # as in tuned scripts
    yield from measure_all(machine, _penalty(machine))


def _penalty(machine: Machine) -> Iterator[GpuCase]:
    batch = machine.size(128, 2)
    channels = (*(machine.size(c, 8) for c in (3, 64, 128, 256, 512)), 1)
    size = 64
    make = functools.partial(torch.randn, device=machine.device, dtype=torch.bfloat16)
    inputs = [
        make(batch, channels[0], size, size).contiguous(memory_format=torch.channels_last)
        for _ in range(machine.size(4, 1))
    ]
    # DCGAN's 0.02 would make the gradient of five layers too small compared with the 1 in the penalty.
    weights = [
        (make(after, before, 4, 4) / (2 * before) ** 0.5 / 2)
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_()
        for before, after in itertools.pairwise(channels)
    ]

    def copies(functions: Any) -> Sequence[Work]:
        def critic(x: Tensor) -> Tensor:
            for weight in weights[:-1]:
                x = functions.leaky_relu(functions.conv2d(x, weight, None, 2, 1), SLOPE)
            return functions.conv2d(x, weights[-1])

        def run(x: Tensor) -> tuple[Tensor, ...]:
            (grad,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
            loss = (grad.float().flatten(1).norm(dim=1) - 1).square().mean()
            return (loss, *torch.autograd.grad(loss, weights))

        return [functools.partial(run, x.detach().requires_grad_()) for x in inputs]

    fused = functools.partial(copies, ops)
    triton = f"{GAN_FAST}, {machine.backends[0]}"
    # Four passes: forward, gradient of the input, its tangent, gradients of the weights.
    flop = 4 * sum(layer.flop(batch) for layer in roofline.LAYERS if layer.name.startswith("D"))
    providers = {
        EAGER: functools.partial(copies, F),
        GAN_FAST: fused,
        triton: gan_fast_by_backend(machine, fused)[triton],
    }
    yield GpuCase("gradient penalty, critic of 5 blocks batch 128 bfloat16", providers, 0.2, flop=flop)
