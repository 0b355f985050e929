"""Batch norm modules with the activation behind them built in."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from gan_fast.nn import deferred
from gan_fast.nn.module_state import running_statistics, weight_and_bias
from gan_fast.nn.names import Named
from gan_fast.ops import activations, checks
from gan_fast.ops.batch_norm_act import OP, norm
from gan_fast.ops.conv_bn_act import fold, may_fold


class _BatchNormAct(Named, nn.modules.batchnorm._BatchNorm):
    """torch.nn's batch norm (parameters, buffers, state dict, modes) with a fused activation."""

    # Of those that were made without: nn/fuse.py changes the class of torch.nn's.
    activation: str = "identity"
    negative_slope: float = 0.01

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str = "leaky_relu",
        negative_slope: float = 0.01,
    ) -> None:
        activations.check(self._get_name(), activation, negative_slope)
        # Passed on only when it says something: torch 2.11 does not know the argument.
        options = {} if bias else {"bias": False}
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype, **options
        )
        self.activation = activation
        self.negative_slope = negative_slope

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        if type(input) is not Tensor or deferred.waits(self, input):
            return self._of_deferred(input)
        return self.normalize(input, self.activation, self.negative_slope)

    def _of_deferred(self, input: Any) -> Any:
        """What forward gives where the input is a convolution that waits, or where its own value shall wait."""
        convolve = input.convolve if type(input) is deferred.Deferred else None
        if convolve is not None and input.take():
            compute = functools.partial(convolve, self)
        else:
            compute = functools.partial(self.normalize, deferred.resolve(input))
        if deferred.waits(self, input) and not checks.subclassed(*self._parameters.values()):
            return deferred.Deferred(compute, input)
        return compute(self.activation, self.negative_slope)

    def folded_into(
        self, conv: nn.modules.conv._ConvNd, input: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        """Weight and bias of a convolution of ``input`` with this norm in them, where that is the quicker way."""
        if self.training or not may_fold(input):
            return None
        mean, var, _ = running_statistics(self)
        return fold(conv.transposed, conv.groups, input, weight, bias, mean, var, *weight_and_bias(self), self.eps)

    def normalize(
        self, input: Tensor, activation: str, negative_slope: float, moving: bool = True,
        statistics: tuple[Tensor, ...] = (),
    ) -> Tensor:  # fmt: skip
        """What forward does with an input of the right number of dims, and any activation behind it.

        Args:
            moving: whether the running statistics move in training.
            statistics: the input's, where a convolution knows them.
        """
        # torch.nn's own rules: they hold too where a user drops the buffers or the flag after construction.
        mean, var, batches = running_statistics(self)
        training, momentum = self.training, self.momentum
        if not moving:
            momentum = 0.0
        elif training and self.track_running_stats and batches is not None:
            batches.add_(1)
            if momentum is None:
                # Cumulative average; reading the count waits for the device, as in torch.nn.
                momentum = 1.0 / float(batches)
        use_batch = training or (mean is None and var is None)
        if training and not self.track_running_stats:
            mean = var = None
        return norm(
            OP, "", input, mean, var, *weight_and_bias(self), use_batch, 0.0 if momentum is None else momentum,
            self.eps, activation, negative_slope, statistics,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {activations.describe(self.activation, self.negative_slope)}"


class BatchNormAct1d(_BatchNormAct, nn.BatchNorm1d):
    """``nn.BatchNorm1d`` and an activation as one op: (N, C) or (N, C, L)."""


class BatchNormAct2d(_BatchNormAct, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` and an activation as one op: (N, C, H, W).

    ``activation(batch_norm(input))``; see :func:`gan_fast.ops.batch_norm_act`.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, bias: as ``nn.BatchNorm2d``.
        activation: "identity", "relu", "leaky_relu", "tanh" or "sigmoid".
        negative_slope: slope of "leaky_relu" below zero.

    Raises:
        ValueError: another activation; input of another number of dimensions.

    Notes:
        State dicts are those of ``nn.BatchNorm2d``. ``nn.SyncBatchNorm.convert_sync_batchnorm`` replaces the module
        by one without activation: convert before putting these in.
    """


class BatchNormAct3d(_BatchNormAct, nn.BatchNorm3d):
    """``nn.BatchNorm3d`` and an activation as one op: (N, C, D, H, W)."""


for _kind in (BatchNormAct1d, BatchNormAct2d, BatchNormAct3d):
    _kind.__name__ = f"BatchNorm{_kind.__qualname__[-2:]}Act"
