"""The kernels of csrc/cuda emulated on a CPU, as functions with the signatures of torch.ops.gan_fast.*.

The classes do in Python what csrc/cuda/*_host.cpp does: allocate results and pass pointers.
"""

from __future__ import annotations

import ctypes
import math
import subprocess
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from samples import LOSS_KINDS, LOSS_RELATIVISTIC
from torch import Tensor

from gan_fast import backends, extension
from gan_fast.choices import ACTIVATIONS
from gan_fast.memory_format import suggest_memory_format
from gan_fast.ops import dispatch
from gan_fast.ops.checks import FLOATING as DTYPES

ROOT = Path(__file__).parents[1]
SOURCE = Path(__file__).parent / "cuda" / "emulated.cpp"


def build(folder: Path) -> ctypes.CDLL:
    """Compile tests/cuda/emulated.cpp with sanitizers: a misaligned access or an index out of bounds aborts."""
    library = folder / "emulated.so"
    command = ["g++", "-std=c++20", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    command += ["-Wno-unknown-pragmas", "-fsanitize=alignment,bounds", "-fno-sanitize-recover=all"]
    subprocess.run([*command, str(SOURCE), "-o", str(library)], check=True, cwd=ROOT)
    return ctypes.CDLL(str(library))


class Shape(ctypes.Structure):
    _fields_ = [("N", ctypes.c_int64), ("C", ctypes.c_int64), ("S", ctypes.c_int64), ("channels_last", ctypes.c_bool)]


class Options(ctypes.Structure):
    _fields_ = [
        ("dtype", ctypes.c_int),
        ("multiprocessors", ctypes.c_int),
        ("backwards", ctypes.c_bool),
        ("aligned", ctypes.c_bool),
        ("training", ctypes.c_bool),
        ("affine_wanted", ctypes.c_bool),
        ("activation", ctypes.c_int),
        ("negative_slope", ctypes.c_double),
        ("momentum", ctypes.c_double),
        ("eps", ctypes.c_double),
        ("shape", Shape),
    ]


class Parameter(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("wide", ctypes.c_bool),
        ("packed", ctypes.c_bool),
    ]


class Affine(ctypes.Structure):
    _fields_ = [("mean", Parameter), ("invstd", Parameter), ("weight", Parameter), ("bias", Parameter)]


class LogitsBatch(ctypes.Structure):
    _fields_ = [
        ("logits", ctypes.c_void_p),
        ("grad", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("target", ctypes.c_double),
    ]


def on_cuda(op: str, names: Iterable[str]) -> SimpleNamespace:
    """Return torch.ops.gan_fast.<op>_<name> on a GPU; skip the test if the build has no CUDA kernels."""
    for name in names:
        torch_op = f"{op}_{name}"
        if not extension.has_kernel(torch_op, "cuda") or (torch_op, "cuda") in backends._by_triton:
            pytest.skip("needs a build with CUDA kernels")
    functions = {name: dispatch.kernel(f"{op}_{name}") for name in names}
    return SimpleNamespace(device=torch.device("cuda"), **functions)


def on_device(arguments: dict[str, Any], kernels: Any) -> dict[str, Any]:
    """Move the arguments to the device of the kernels, with the same storage offsets and strides."""

    def moved(t: Tensor) -> Tensor:
        if t.device.type == kernels.device.type:
            return t
        storage = t.detach().as_strided((t.untyped_storage().nbytes() // t.itemsize,), (1,), 0).to(kernels.device)
        return storage.as_strided(t.shape, t.stride(), t.storage_offset()).requires_grad_(t.requires_grad)

    return {name: moved(value) if isinstance(value, Tensor) else value for name, value in arguments.items()}


# Number of values on either side of a result, which kernels must not write.
_MARGIN = 64


def shape_of(x: Tensor) -> Shape:
    channels_last = suggest_memory_format(x) != torch.contiguous_format
    space = math.prod(x.shape[2:])
    return Shape(x.size(0), x.size(1), space, x.size(1) > 1 and (space == 1 or channels_last))


def _dense(x: Tensor) -> Tensor:
    return x.detach().contiguous(memory_format=suggest_memory_format(x))


def _pointer(t: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if t is None else t.data_ptr())


def _is_aligned(*tensors: Tensor | None) -> bool:
    return all(t is None or t.data_ptr() % 16 == 0 for t in tensors)


class Kernels:
    """The functions of torch.ops.gan_fast.batch_norm_act_*, emulated.

    Tests may set ``multiprocessors`` and ``backwards`` (the order in which threads and blocks run). Each call checks
    that kernels do not write outside their results.
    """

    device = torch.device("cpu")

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.multiprocessors = 2
        self.backwards = False
        self._results: list[Tensor] = []

    def _new(self, shape: Iterable[int], stride: Iterable[int], dtype: torch.dtype) -> Tensor:
        """Return a tensor of NaN in memory with a margin on both sides."""
        shape = tuple(shape)
        size = torch.Size(shape).numel()
        storage = torch.full((size + 2 * _MARGIN,), float("nan"), dtype=dtype)
        for margin in (storage[:_MARGIN], storage[_MARGIN + size :]):
            margin.fill_(7)
        self._results.append(storage)
        return storage.as_strided(shape, tuple(stride), _MARGIN)

    def _like(self, x: Tensor, wanted: bool = True) -> Tensor | None:
        return self._new(x.shape, x.stride(), x.dtype) if wanted else None

    def _vector(self, like: Tensor | None, channels: int, dtype: torch.dtype | None = None) -> Tensor | None:
        return None if like is None else self._new((channels,), (1,), dtype or like.dtype)

    def _parameter_grads(self, x: Tensor, *parameters: Tensor | None) -> list[Tensor | None]:
        grads = [self._vector(t, x.size(1)) for t in parameters]
        return grads if x.numel() else [None if t is None else t.zero_() for t in grads]

    def _finish(self) -> None:
        for storage in self._results:
            margins = torch.cat([storage[:_MARGIN], storage[-_MARGIN:]])
            assert bool((margins == 7).all()), "a kernel wrote outside its result"
        self._results.clear()

    def _options(self, x: Tensor, aligned: bool, activation: str, negative_slope: float, **others: Any) -> Options:
        return Options(
            dtype=DTYPES.index(x.dtype), multiprocessors=self.multiprocessors, backwards=self.backwards,
            aligned=aligned, activation=ACTIVATIONS.index(activation), negative_slope=negative_slope,
            shape=shape_of(x), **others,
        )  # fmt: skip

    def _parameter(self, t: Tensor | None, x: Tensor) -> Parameter:
        if t is None:
            return Parameter()
        wide = t.dtype == (torch.float64 if x.dtype == torch.float64 else torch.float32)
        return Parameter(t.data_ptr(), t.stride(0), wide, wide and t.stride(0) == 1 and _is_aligned(t))

    def _affine(self, x: Tensor, *vectors: Tensor | None) -> Affine:
        return Affine(*(self._parameter(t, x) for t in vectors))

    def forward(
        self, input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None,
        bias: Tensor | None, training: bool, momentum: float, eps: float, activation: str, negative_slope: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        x = _dense(input)
        y = self._like(x)
        statistics = torch.float64 if x.dtype == torch.float64 else torch.float32
        mean, invstd = (self._vector(x, x.size(1), statistics) for _ in range(2))
        assert y is not None
        assert mean is not None
        assert invstd is not None
        if training and not x.numel():
            mean.zero_()
            invstd.zero_()
        options = self._options(
            x, _is_aligned(x, y), activation, negative_slope, training=training, momentum=momentum, eps=eps
        )
        parameters = (self._parameter(t, x) for t in (running_mean, running_var, weight, bias))
        self.library.norm_forward(ctypes.byref(options), *map(_pointer, (x, y, mean, invstd)), *parameters)
        self._finish()
        return y, mean, invstd

    def normalize(
        self, input: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, bias: Tensor | None,
        activation: str, negative_slope: float,
    ) -> Tensor:  # fmt: skip
        x = _dense(input)
        y = self._like(x)
        assert y is not None
        options = self._options(x, _is_aligned(x, y), activation, negative_slope)
        affine = self._affine(x, mean, invstd, weight, bias)
        self.library.norm_normalize(ctypes.byref(options), _pointer(x), _pointer(y), affine)
        self._finish()
        return y

    def backward(
        self, grad_output: Tensor, input: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None,
        bias: Tensor | None, training: bool, activation: str, negative_slope: float, input_wanted: bool,
        affine_wanted: bool,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
        x = _dense(input)
        grad = grad_output.detach().contiguous(memory_format=suggest_memory_format(input))
        grad_input = self._like(x, input_wanted)
        grads = self._parameter_grads(x, *((weight, bias) if affine_wanted else (None, None)))
        options = self._options(
            x, _is_aligned(x, grad, grad_input), activation, negative_slope, training=training,
            affine_wanted=affine_wanted,
        )  # fmt: skip
        self.library.norm_backward(
            ctypes.byref(options), _pointer(grad), _pointer(x), self._affine(x, mean, invstd, weight, bias),
            _pointer(grad_input), *(self._parameter(t, x) for t in grads),
        )  # fmt: skip
        self._finish()
        return grad_input, grads[0], grads[1]

    def double_backward(
        self, cotangent_input: Tensor | None, cotangent_weight: Tensor | None, cotangent_bias: Tensor | None,
        grad_output: Tensor, input: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, bias: Tensor | None,
        training: bool, activation: str, negative_slope: float, grad_output_wanted: bool, input_wanted: bool,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        x = _dense(input)
        memory_format = suggest_memory_format(input)
        grad = grad_output.detach().contiguous(memory_format=memory_format)
        cotangent = None if cotangent_input is None else cotangent_input.contiguous(memory_format=memory_format)
        grad_grad, grad_input = self._like(x, grad_output_wanted), self._like(x, input_wanted)
        grads = self._parameter_grads(x, weight, bias)
        aligned = _is_aligned(x, grad, cotangent, grad_grad, grad_input)
        options = self._options(x, aligned, activation, negative_slope, training=training)
        self.library.norm_double_backward(
            ctypes.byref(options), _pointer(cotangent),
            *(self._parameter(t, x) for t in (cotangent_weight, cotangent_bias)),
            _pointer(grad), _pointer(x), self._affine(x, mean, invstd, weight, bias),
            _pointer(grad_grad), _pointer(grad_input), *(self._parameter(t, x) for t in grads),
        )  # fmt: skip
        self._finish()
        return grad_grad, grad_input, grads[0], grads[1]


class LossKernels(Kernels):
    """The functions of torch.ops.gan_fast.adversarial_loss_*, emulated."""

    def _batch(self, logits: Tensor | None, target: float, grad: Tensor | None) -> LogitsBatch:
        if logits is None:
            return LogitsBatch()
        return LogitsBatch(logits.data_ptr(), None if grad is None else grad.data_ptr(), logits.numel(), target)

    def _launch(
        self, forward: bool, grad_loss: Tensor | None, logits: Tensor, target: float, other_logits: Tensor | None,
        other_target: float, scale: float, kind: str, relativistic: str, wanted: tuple[bool, bool],
        loss: Tensor | None = None, means: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
        x = logits.detach().contiguous()
        other = None if other_logits is None else other_logits.detach().contiguous()
        grad = self._like(x, wanted[0])
        other_grad = None if other is None else self._like(other, wanted[1])
        self.library.adversarial_loss(
            DTYPES.index(x.dtype), self.backwards, forward, _pointer(grad_loss), self._batch(x, target, grad),
            self._batch(other, other_target, other_grad), other is not None, ctypes.c_double(scale),
            LOSS_KINDS.index(kind), LOSS_RELATIVISTIC.index(relativistic), _pointer(loss), _pointer(means),
        )  # fmt: skip
        self._finish()
        return grad, other_grad

    def forward(  # type: ignore[override]
        self, logits: Tensor, target: float, other_logits: Tensor | None, other_target: float, scale: float, kind: str,
        relativistic: str, means_wanted: bool, grad_wanted: bool, other_grad_wanted: bool,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        loss = self._new((), (), logits.dtype)
        means = self._new((1 if other_logits is None else 3,), (1,), logits.dtype) if means_wanted else None
        arguments = (logits, target, other_logits, other_target, scale, kind, relativistic)
        return loss, means, *self._launch(True, None, *arguments, (grad_wanted, other_grad_wanted), loss, means)

    def backward(  # type: ignore[override]
        self, grad_loss: Tensor, logits: Tensor, target: float, other_logits: Tensor | None, other_target: float,
        scale: float, kind: str, relativistic: str,
    ) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
        arguments = (logits, target, other_logits, other_target, scale, kind, relativistic)
        return self._launch(False, grad_loss, *arguments, (True, True))
