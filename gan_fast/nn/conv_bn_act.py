"""Blocks of a convolution (child ``conv``), optionally batch norm (child ``bn``), and an activation.

>>> import torch
>>> from gan_fast.nn import ConvBNAct2d
>>> block = ConvBNAct2d(3, 8, kernel_size=4, stride=2, padding=1, activation="leaky_relu", negative_slope=0.2)
>>> block(torch.randn(2, 3, 16, 16)).shape
torch.Size([2, 8, 8, 8])
>>> list(block.state_dict())[:3]
['conv.weight', 'bn.weight', 'bn.bias']
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gan_fast.nn.batch_norm_act import BatchNormAct1d, BatchNormAct2d, BatchNormAct3d
from gan_fast.nn.conv import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    conv_norm_act,
)
from gan_fast.nn.module_state import has_hooks, weight_and_bias
from gan_fast.nn.public_name import PublicNameMixin
from gan_fast.ops import activations
from gan_fast.ops.conv_bn_act import check_memory_format
from gan_fast.ops.conv_kernels import Epilogue

Size = int | tuple[int, ...]
Device = torch.device | str | None


def _runs_only_forward(child: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling a child of class ``kind`` runs ``kind.forward`` alone: no hooks and no other class.

    Parametrized children qualify, since their weights are read once per call. torch.fx also intercepts calls, but
    passes proxies, so callers check that the input is a tensor.
    """
    return (type(child) is kind or _only_parametrized(child, kind)) and not (
        has_hooks(child, before=True) or nn.modules.module._has_any_global_hook()
    )


def _only_parametrized(child: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a child's class is the subclass of ``kind`` that torch creates for parametrized modules."""
    cls = type(child)
    return cls.__bases__ == (kind,) and parametrize.is_parametrized(child) and "forward" not in vars(cls)


class _ConvAct(PublicNameMixin):
    """A convolution and an activation over its output."""

    conv_type: ClassVar[type[nn.Module]]
    conv: Any

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "leaky_relu",
        negative_slope: float = 0.01,
        memory_format: torch.memory_format | None = None,
    ) -> None:
        super().__init__()
        self._set_activation(activation, negative_slope, memory_format)
        self.conv = self.conv_type(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )

    def _set_activation(
        self, activation: str, negative_slope: float, memory_format: torch.memory_format | None
    ) -> None:
        activations.check(self._get_name(), activation, negative_slope)
        check_memory_format(self._get_name(), memory_format)
        self.activation = activation
        self.negative_slope = negative_slope
        self.memory_format = memory_format

    def forward(self, input: Tensor) -> Tensor:
        return self._run(input)

    def _run(self, input: Tensor, *output_size: list[int] | None) -> Tensor:
        conv: Any = self._modules["conv"]
        memory_format = self.memory_format
        # Do not call weight.dim(): reading a parametrized weight (spectral norm) computes it.
        if memory_format not in (None, torch.contiguous_format) and input.dim() != len(conv.kernel_size) + 2:
            memory_format = None
        if type(input) is Tensor and _runs_only_forward(conv, self.conv_type):
            epilogue = Epilogue(self.activation, self.negative_slope, memory_format)
            output: Tensor = conv._conv_forward(input, *weight_and_bias(conv), epilogue, None, *output_size)
            return output
        output = conv(input, *output_size)
        if memory_format is not None:
            output = output.contiguous(memory_format=memory_format)
        return activations.apply(output, self.activation, self.negative_slope)

    def extra_repr(self) -> str:
        return activations.describe(self.activation, self.negative_slope)


class _ConvTransposeAct(_ConvAct):
    """A transposed convolution and an activation over its output."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size = 1,
        padding_mode: str = "zeros",
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "leaky_relu",
        negative_slope: float = 0.01,
        memory_format: torch.memory_format | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self._set_activation(activation, negative_slope, memory_format)
        self.conv = self.conv_type(
            in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation,
            padding_mode, device, dtype,
        )  # fmt: skip

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return self._run(input, output_size)


class _ConvBNAct(PublicNameMixin):
    """A convolution, batch norm and an activation."""

    conv_type: ClassVar[type[nn.Module]]
    bn_type: ClassVar[type[nn.Module]]
    conv: Any
    bn: Any

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = False,
        padding_mode: str = "zeros",
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        activation: str = "leaky_relu",
        negative_slope: float = 0.01,
    ) -> None:
        super().__init__()
        activations.check(self._get_name(), activation, negative_slope)
        self.conv = self.conv_type(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self.bn = self.bn_type(
            out_channels, eps, momentum, affine, track_running_stats, device, dtype,
            activation=activation, negative_slope=negative_slope,
        )  # fmt: skip

    def forward(self, input: Tensor) -> Tensor:
        return self._run(input)

    def _run(self, input: Tensor, *output_size: list[int] | None) -> Tensor:
        # Faster than self.conv, which nn.Module.__getattr__ searches for.
        conv: Any = self._modules["conv"]
        bn: Any = self._modules["bn"]
        output: Tensor
        fusible = type(input) is Tensor and type(bn) is self.bn_type and _runs_only_forward(bn, self.bn_type)
        if not (fusible and _runs_only_forward(conv, self.conv_type)):
            output = bn(conv(input, *output_size))
            return output
        if input.dim() != len(conv.kernel_size) + 2:
            return bn.forward(conv.forward(input, *output_size))
        activations.check(bn._get_name(), bn.activation, bn.negative_slope)
        weight, bias = weight_and_bias(conv)
        return conv_norm_act(conv, input, weight, bias, output_size, bn, bn.activation, bn.negative_slope)


class _ConvTransposeBNAct(_ConvBNAct):
    """A transposed convolution, batch norm and an activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = False,
        dilation: Size = 1,
        padding_mode: str = "zeros",
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        activation: str = "leaky_relu",
        negative_slope: float = 0.01,
    ) -> None:
        nn.Module.__init__(self)
        activations.check(self._get_name(), activation, negative_slope)
        self.conv = self.conv_type(
            in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation,
            padding_mode, device, dtype,
        )  # fmt: skip
        self.bn = self.bn_type(
            out_channels, eps, momentum, affine, track_running_stats, device, dtype,
            activation=activation, negative_slope=negative_slope,
        )  # fmt: skip

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return self._run(input, output_size)


class ConvAct1d(_ConvAct):
    """Apply ``nn.Conv1d`` and an activation as one op; see :class:`ConvAct2d`."""

    conv_type = Conv1d


class ConvAct2d(_ConvAct):
    """Apply ``nn.Conv2d`` and an activation as one op: ``activation(conv(input))``.

    The child is called ``conv``: state dict keys are ``conv.weight`` and ``conv.bias``.

    Args:
        in_channels, ..., dtype: those of ``nn.Conv2d``.
        activation: "identity", "relu", "leaky_relu", "tanh" or "sigmoid".
        negative_slope: slope of "leaky_relu" below zero.
        memory_format: memory format of the output; None keeps the one that PyTorch gives. ``torch.contiguous_format``
            in the last block of a channels-last model makes its output contiguous without a separate copy.

    Raises:
        ValueError: unknown activation or memory format.
        Whatever ``nn.Conv2d`` raises for the same arguments and input.

    Notes:
        Memory and derivatives: :func:`gan_fast.ops.conv2d_act`.
    """

    conv_type = Conv2d


class ConvAct3d(_ConvAct):
    """Apply ``nn.Conv3d`` and an activation as one op; see :class:`ConvAct2d`."""

    conv_type = Conv3d


class ConvBNAct1d(_ConvBNAct):
    """Apply ``nn.Conv1d``, ``nn.BatchNorm1d`` and an activation as one op; see :class:`ConvBNAct2d`."""

    conv_type = Conv1d
    bn_type = BatchNormAct1d


class ConvBNAct2d(_ConvBNAct):
    """Apply ``nn.Conv2d``, ``nn.BatchNorm2d`` and an activation as one op: ``activation(bn(conv(input)))``.

    The children are called ``conv`` and ``bn``, which gives the keys of the state dict. Between forward and backward
    the block keeps one tensor as large as its output.

    Args:
        in_channels, ..., dtype: those of ``nn.Conv2d``, except that ``bias`` is False by default: batch norm
            subtracts it again.
        eps, momentum, affine, track_running_stats: those of ``nn.BatchNorm2d``.
        activation: "identity", "relu", "leaky_relu", "tanh" or "sigmoid".
        negative_slope: slope of "leaky_relu" below zero.

    Raises:
        ValueError: unknown activation.
        Whatever ``nn.Conv2d`` and ``nn.BatchNorm2d`` raise for the same arguments and input.

    Notes:
        Memory and derivatives: :func:`gan_fast.ops.conv2d_bn_act`.
    """

    conv_type = Conv2d
    bn_type = BatchNormAct2d


class ConvBNAct3d(_ConvBNAct):
    """Apply ``nn.Conv3d``, ``nn.BatchNorm3d`` and an activation as one op; see :class:`ConvBNAct2d`."""

    conv_type = Conv3d
    bn_type = BatchNormAct3d


class ConvTransposeAct1d(_ConvTransposeAct):
    """Apply ``nn.ConvTranspose1d`` and an activation as one op.

    Takes the arguments of ``nn.ConvTranspose1d`` and the keywords of :class:`ConvAct2d`.
    """

    conv_type = ConvTranspose1d


class ConvTransposeAct2d(_ConvTransposeAct):
    """Apply ``nn.ConvTranspose2d`` and an activation as one op: ``activation(conv(input))``.

    Takes the arguments of ``nn.ConvTranspose2d`` and the keywords of :class:`ConvAct2d`.
    """

    conv_type = ConvTranspose2d


class ConvTransposeAct3d(_ConvTransposeAct):
    """Apply ``nn.ConvTranspose3d`` and an activation as one op.

    Takes the arguments of ``nn.ConvTranspose3d`` and the keywords of :class:`ConvAct2d`.
    """

    conv_type = ConvTranspose3d


class ConvTransposeBNAct1d(_ConvTransposeBNAct):
    """Apply ``nn.ConvTranspose1d``, ``nn.BatchNorm1d`` and an activation as one op.

    Takes the arguments of ``nn.ConvTranspose1d`` (``bias`` is False by default) and the keywords of
    :class:`ConvBNAct2d`.
    """

    conv_type = ConvTranspose1d
    bn_type = BatchNormAct1d


class ConvTransposeBNAct2d(_ConvTransposeBNAct):
    """Apply ``nn.ConvTranspose2d``, ``nn.BatchNorm2d`` and an activation as one op: ``activation(bn(conv(input)))``.

    Takes the arguments of ``nn.ConvTranspose2d`` (``bias`` is False by default) and the keywords of
    :class:`ConvBNAct2d`.
    """

    conv_type = ConvTranspose2d
    bn_type = BatchNormAct2d


class ConvTransposeBNAct3d(_ConvTransposeBNAct):
    """Apply ``nn.ConvTranspose3d``, ``nn.BatchNorm3d`` and an activation as one op.

    Takes the arguments of ``nn.ConvTranspose3d`` (``bias`` is False by default) and the keywords of
    :class:`ConvBNAct2d`.
    """

    conv_type = ConvTranspose3d
    bn_type = BatchNormAct3d


for _kind in (
    ConvAct1d, ConvAct2d, ConvAct3d, ConvTransposeAct1d, ConvTransposeAct2d, ConvTransposeAct3d,
    ConvBNAct1d, ConvBNAct2d, ConvBNAct3d, ConvTransposeBNAct1d, ConvTransposeBNAct2d, ConvTransposeBNAct3d,
):  # fmt: skip
    _kind.__name__ = f"{_kind.__name__.replace('Conv', '')}Block"
