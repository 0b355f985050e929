"""Convolution modules whose double backward is lean."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from gan_fast.nn import deferred
from gan_fast.nn.module_state import weight_and_bias
from gan_fast.ops import checks
from gan_fast.ops.conv import convolve
from gan_fast.ops.conv_kernels import NOTHING, Epilogue

Norm = Callable[..., Tensor] | None


class _Conv(nn.modules.conv._ConvNd):
    """torch.nn's convolution (parameters, state dict, initialisation, padding modes) on our ops."""

    _op: ClassVar[str]

    def forward(self, input: Tensor) -> Tensor:
        return _run(self, input)

    def _conv_forward(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, epilogue: Epilogue = NOTHING, norm: Norm = None
    ) -> Tensor:
        if not isinstance(input, Tensor):
            # A tracer's, say: it may know what to do with torch's function.
            output: Tensor = super()._conv_forward(input, weight, bias)
            return output
        padding: str | int | tuple[int, ...] = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return convolve(
            self._op, len(self.kernel_size), False, input, weight, bias, self.stride, padding, 0, self.groups,
            self.dilation, epilogue, norm,
        )  # fmt: skip


class _ConvTranspose(nn.modules.conv._ConvTransposeNd):
    """torch.nn's transposed convolution on our ops."""

    _op: ClassVar[str]

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if not isinstance(input, (Tensor, deferred.Deferred)):
            result: Tensor = super().forward(input, output_size)
            return result
        return _run(self, input, output_size)

    def _conv_forward(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, epilogue: Epilogue = NOTHING, norm: Norm = None,
        output_size: list[int] | None = None,
    ) -> Tensor:  # fmt: skip
        output_padding: Any = self.output_padding
        if output_size is not None:
            output_padding = self._output_padding(
                input,
                output_size,
                self.stride,  # type: ignore[arg-type]
                self.padding,  # type: ignore[arg-type]
                self.kernel_size,  # type: ignore[arg-type]
                len(self.kernel_size),
                self.dilation,  # type: ignore[arg-type]
            )
        return convolve(
            self._op, len(self.kernel_size), True, input, weight, bias, self.stride, self.padding, output_padding,
            self.groups, self.dilation, epilogue, norm,
        )  # fmt: skip


def _run(conv: Any, input: Any, *output_size: list[int] | None) -> Any:
    weight, bias = weight_and_bias(conv)
    waits = deferred.waits(conv, input) and not checks.subclassed(weight, bias)
    if waits and input.dim() == len(conv.kernel_size) + 2:
        convolve = functools.partial(with_norm, conv, deferred.resolve(input), weight, bias, output_size)
        return deferred.Deferred(functools.partial(convolve, None), input, convolve)
    return conv._conv_forward(deferred.resolve(input), weight, bias, NOTHING, None, *output_size)


def with_norm(
    conv: Any, input: Tensor, weight: Tensor, bias: Tensor | None, output_size: tuple[list[int] | None, ...],
    norm: Any, activation: str, negative_slope: float, moving: bool = True,
) -> Tensor:  # fmt: skip
    """A module's convolution of a batch, a batch norm's module or None behind it, and an activation, as one op.

    Args:
        output_size: of a transposed one, what its forward takes.
        moving: whether the norm's running statistics move in training.
    """
    if norm is not None:
        folded = norm.folded_into(conv, input, weight, bias)
        if folded is None:

            def normalize(output: Tensor, *statistics: Tensor) -> Tensor:
                return norm.normalize(output, activation, negative_slope, moving, statistics)

            epilogue = Epilogue(statistics=norm.training)
            return conv._conv_forward(input, weight, bias, epilogue, normalize, *output_size)
        weight, bias = folded
    return conv._conv_forward(input, weight, bias, Epilogue(activation, negative_slope), None, *output_size)


class Conv1d(_Conv, nn.Conv1d):
    """``nn.Conv1d`` with a lean double backward; see :func:`gan_fast.ops.conv2d`."""

    _op = "conv1d"


class Conv2d(_Conv, nn.Conv2d):
    """``nn.Conv2d`` with a lean double backward; see :func:`gan_fast.ops.conv2d`."""

    _op = "conv2d"


class Conv3d(_Conv, nn.Conv3d):
    """``nn.Conv3d`` with a lean double backward; see :func:`gan_fast.ops.conv2d`."""

    _op = "conv3d"


class ConvTranspose1d(_ConvTranspose, nn.ConvTranspose1d):
    """``nn.ConvTranspose1d`` with a lean double backward; see :func:`gan_fast.ops.conv_transpose2d`."""

    _op = "conv_transpose1d"


class ConvTranspose2d(_ConvTranspose, nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` with a lean double backward; see :func:`gan_fast.ops.conv_transpose2d`."""

    _op = "conv_transpose2d"


class ConvTranspose3d(_ConvTranspose, nn.ConvTranspose3d):
    """``nn.ConvTranspose3d`` with a lean double backward; see :func:`gan_fast.ops.conv_transpose2d`."""

    _op = "conv_transpose3d"
