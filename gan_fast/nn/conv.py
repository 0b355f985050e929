"""torch.nn's convolution modules on gan_fast's ops.

>>> import torch
>>> from gan_fast.nn import Conv2d
>>> conv = Conv2d(3, 8, kernel_size=4, stride=2, padding=1)
>>> conv(torch.randn(2, 3, 16, 16)).shape
torch.Size([2, 8, 8, 8])
>>> conv.load_state_dict(torch.nn.Conv2d(3, 8, 4).state_dict())
<All keys matched successfully>
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from gan_fast.nn import deferred
from gan_fast.nn.module_state import raise_torch_error, weight_and_bias
from gan_fast.ops import checks
from gan_fast.ops.conv import convolve
from gan_fast.ops.conv_kernels import NOTHING, Epilogue

Norm = Callable[..., Tensor] | None


class _Conv(nn.modules.conv._ConvNd):
    """torch.nn's convolution (parameters, state dict, initialization, padding modes) on gan_fast's op."""

    _op: ClassVar[str]

    def forward(self, input: Tensor) -> Tensor:
        return _run(self, input)

    def _conv_forward(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, epilogue: Epilogue = NOTHING, norm: Norm = None
    ) -> Tensor:
        if not isinstance(input, Tensor):
            # The input is for example a proxy of torch.fx, which torch's function accepts.
            output: Tensor = super()._conv_forward(input, weight, bias)
            return output
        padding: str | int | tuple[int, ...] = self.padding
        padded = input
        if self.padding_mode != "zeros":
            padded = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        try:
            return convolve(
                self._op, len(self.kernel_size), False, padded, weight, bias, self.stride, padding, 0, self.groups,
                self.dilation, epilogue, norm,
            )  # fmt: skip
        except (TypeError, ValueError):
            torch_forward = super()._conv_forward
            raise_torch_error(lambda: torch_forward(input, weight, bias))
            raise


class _ConvTranspose(nn.modules.conv._ConvTransposeNd):
    """torch.nn's transposed convolution (parameters, state dict, initialization) on gan_fast's op."""

    _op: ClassVar[str]

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if not isinstance(input, (Tensor, deferred.DeferredTensor)):
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
        dims = len(self.kernel_size)
        try:
            return convolve(
                self._op, dims, True, input, weight, bias, self.stride, self.padding, output_padding, self.groups,
                self.dilation, epilogue, norm,
            )  # fmt: skip
        except (TypeError, ValueError):
            torch_function: Any = getattr(F, f"conv_transpose{dims}d")
            options = (self.stride, self.padding, output_padding, self.groups, self.dilation)
            raise_torch_error(lambda: torch_function(input, weight, bias, *options))
            raise


def _run(conv: Any, input: Any, *output_size: list[int] | None) -> Any:
    weight, bias = weight_and_bias(conv)
    defers = deferred.defers(conv, input) and not checks.subclassed(weight, bias)
    if defers and input.dim() == len(conv.kernel_size) + 2:
        convolve = functools.partial(conv_norm_act, conv, deferred.resolve(input), weight, bias, output_size)
        return deferred.DeferredTensor(functools.partial(convolve, None), input, convolve)
    return conv._conv_forward(deferred.resolve(input), weight, bias, NOTHING, None, *output_size)


def conv_norm_act(
    conv: Any, input: Tensor, weight: Tensor, bias: Tensor | None, output_size: tuple[list[int] | None, ...],
    norm: Any, activation: str, negative_slope: float, update_statistics: bool = True,
) -> Tensor:  # fmt: skip
    """Run a convolution module, a batch norm module (or None) and an activation on a batch as one op.

    Args:
        output_size: the argument of a transposed convolution's forward, if it was given.
        update_statistics: update the norm's running statistics in training.
    """
    if norm is not None:
        folded = norm.fold_into(conv, input, weight, bias)
        if folded is None:

            def normalize(output: Tensor, *statistics: Tensor) -> Tensor:
                return norm.normalize(output, activation, negative_slope, update_statistics, statistics)

            epilogue = Epilogue(statistics=norm.training)
            return conv._conv_forward(input, weight, bias, epilogue, normalize, *output_size)
        weight, bias = folded
    return conv._conv_forward(input, weight, bias, Epilogue(activation, negative_slope), None, *output_size)


class Conv1d(_Conv, nn.Conv1d):
    """``nn.Conv1d`` on :func:`gan_fast.ops.conv1d`; see :class:`Conv2d`."""

    _op = "conv1d"


class Conv2d(_Conv, nn.Conv2d):
    """``nn.Conv2d`` on :func:`gan_fast.ops.conv2d`, whose double backward costs less than PyTorch's.

    Arguments, initialization, state dict and errors are those of ``nn.Conv2d``.
    """

    _op = "conv2d"


class Conv3d(_Conv, nn.Conv3d):
    """``nn.Conv3d`` on :func:`gan_fast.ops.conv3d`; see :class:`Conv2d`."""

    _op = "conv3d"


class ConvTranspose1d(_ConvTranspose, nn.ConvTranspose1d):
    """``nn.ConvTranspose1d`` on :func:`gan_fast.ops.conv_transpose1d`; see :class:`ConvTranspose2d`."""

    _op = "conv_transpose1d"


class ConvTranspose2d(_ConvTranspose, nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` on :func:`gan_fast.ops.conv_transpose2d`, whose double backward costs less than PyTorch's.

    Arguments, initialization, state dict and errors are those of ``nn.ConvTranspose2d``.
    """

    _op = "conv_transpose2d"


class ConvTranspose3d(_ConvTranspose, nn.ConvTranspose3d):
    """``nn.ConvTranspose3d`` on :func:`gan_fast.ops.conv_transpose3d`; see :class:`ConvTranspose2d`."""

    _op = "conv_transpose3d"
