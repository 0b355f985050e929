"""Convolution and leaky ReLU modules whose double backward is lean."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from gan_fast import ops


class _Conv(nn.modules.conv._ConvNd):
    """torch.nn's convolution (parameters, state dict, initialisation, padding modes) on our ops."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding: str | int | tuple[int, ...] = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        convolve = (ops.conv1d, ops.conv2d, ops.conv3d)[weight.dim() - 3]
        return convolve(input, weight, bias, self.stride, padding, self.dilation, self.groups)


class _ConvTranspose(nn.modules.conv._ConvTransposeNd):
    """torch.nn's transposed convolution on our ops."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        dims = self.weight.dim() - 2
        output_padding = self._output_padding(
            input,
            output_size,
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.kernel_size,  # type: ignore[arg-type]
            dims,
            self.dilation,  # type: ignore[arg-type]
        )
        convolve = (ops.conv_transpose1d, ops.conv_transpose2d, ops.conv_transpose3d)[dims - 1]
        return convolve(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,  # type: ignore[arg-type]
            output_padding,
            self.groups,
            self.dilation,
        )


class Conv1d(_Conv, nn.Conv1d):
    """``nn.Conv1d`` with a lean double backward; see :func:`gan_fast.ops.conv2d`."""


class Conv2d(_Conv, nn.Conv2d):
    """``nn.Conv2d`` with a lean double backward; see :func:`gan_fast.ops.conv2d`."""


class Conv3d(_Conv, nn.Conv3d):
    """``nn.Conv3d`` with a lean double backward; see :func:`gan_fast.ops.conv2d`."""


class ConvTranspose1d(_ConvTranspose, nn.ConvTranspose1d):
    """``nn.ConvTranspose1d`` with a lean double backward; see :func:`gan_fast.ops.conv_transpose2d`."""


class ConvTranspose2d(_ConvTranspose, nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` with a lean double backward; see :func:`gan_fast.ops.conv_transpose2d`."""


class ConvTranspose3d(_ConvTranspose, nn.ConvTranspose3d):
    """``nn.ConvTranspose3d`` with a lean double backward; see :func:`gan_fast.ops.conv_transpose2d`."""
