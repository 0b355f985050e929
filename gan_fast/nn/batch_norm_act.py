"""Batch norm modules with a fused activation.

>>> import torch
>>> from gan_fast.nn import BatchNormAct2d
>>> norm = BatchNormAct2d(3, activation="relu")
>>> output = norm(torch.randn(4, 3, 8, 8))
>>> output.shape, output.min().item()
(torch.Size([4, 3, 8, 8]), 0.0)
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_fast.nn import deferred
from gan_fast.nn.module_state import raise_torch_error, running_statistics, weight_and_bias
from gan_fast.nn.public_name import PublicNameMixin
from gan_fast.ops import activations, checks
from gan_fast.ops.batch_norm_act import OP, norm
from gan_fast.ops.conv_bn_act import fold, may_fold


class _BatchNormAct(PublicNameMixin, nn.modules.batchnorm._BatchNorm):
    """torch.nn's batch norm (parameters, buffers, state dict, modes) with a fused activation."""

    # Defaults for torch.nn modules whose class fuse() changed: they never ran this __init__.
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
        # Pass bias only if it is False: torch 2.11 does not have the argument.
        options = {} if bias else {"bias": False}
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype, **options
        )
        self.activation = activation
        self.negative_slope = negative_slope

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        if type(input) is not Tensor or deferred.defers(self, input):
            return self._forward_deferred(input)
        return self.normalize(input, self.activation, self.negative_slope)

    def _forward_deferred(self, input: Any) -> Any:
        """Forward where the input is a deferred convolution, or where the output is to be deferred."""
        convolve = input.convolve if type(input) is deferred.DeferredTensor else None
        if convolve is not None and input.take():
            compute = functools.partial(convolve, self)
        else:
            compute = functools.partial(self.normalize, deferred.resolve(input))
        if deferred.defers(self, input) and not checks.subclassed(*self._parameters.values()):
            return deferred.DeferredTensor(compute, input)
        return compute(self.activation, self.negative_slope)

    def fold_into(
        self, conv: nn.modules.conv._ConvNd, input: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        """Fold this norm into a convolution of ``input``: its weight and bias, or None where that is not faster."""
        if self.training or not may_fold(input):
            return None
        mean, var, _ = running_statistics(self)
        return fold(conv.transposed, conv.groups, input, weight, bias, mean, var, *weight_and_bias(self), self.eps)

    def normalize(
        self, input: Tensor, activation: str, negative_slope: float, update_statistics: bool = True,
        statistics: tuple[Tensor, ...] = (),
    ) -> Tensor:  # fmt: skip
        """Normalize an input of the right number of dimensions and apply any activation.

        Args:
            update_statistics: update the running statistics in training.
            statistics: the input's, where the convolution's kernel has computed them.
        """
        # torch.nn's rules, which also hold where a user drops the buffers or the flag after construction.
        mean, var, batches = running_statistics(self)
        training, momentum = self.training, self.momentum
        if not update_statistics:
            momentum = 0.0
        elif training and self.track_running_stats and batches is not None:
            batches.add_(1)
            if momentum is None:
                # Cumulative average. Reading the count synchronizes with the device, as in torch.nn.
                momentum = 1.0 / float(batches)
        use_batch = training or (mean is None and var is None)
        if training and not self.track_running_stats:
            mean = var = None
        weight, bias = weight_and_bias(self)
        momentum = 0.0 if momentum is None else momentum
        try:
            return norm(
                OP, "", input, mean, var, weight, bias, use_batch, momentum, self.eps, activation, negative_slope,
                statistics,
            )  # fmt: skip
        except (TypeError, ValueError):
            copies: tuple[Any, Any] = (None if mean is None else mean.clone(), None if var is None else var.clone())
            raise_torch_error(lambda: F.batch_norm(input, *copies, weight, bias, use_batch, momentum, self.eps))
            raise

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {activations.describe(self.activation, self.negative_slope)}"


class BatchNormAct1d(_BatchNormAct, nn.BatchNorm1d):
    """Apply ``nn.BatchNorm1d`` and an activation as one op to (N, C) or (N, C, L).

    Arguments, errors and notes: :class:`BatchNormAct2d`.
    """


class BatchNormAct2d(_BatchNormAct, nn.BatchNorm2d):
    """Apply ``nn.BatchNorm2d`` and an activation as one op to (N, C, H, W): ``activation(batch_norm(input))``.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, bias: those of ``nn.BatchNorm2d``.
        activation: "identity", "relu", "leaky_relu", "tanh" or "sigmoid".
        negative_slope: slope of "leaky_relu" below zero.

    Raises:
        ValueError: unknown activation.
        Whatever ``nn.BatchNorm2d`` raises for the same arguments and input.

    Notes:
        State dicts are those of ``nn.BatchNorm2d``. Derivatives, accumulation and backends are those of
        :func:`gan_fast.ops.batch_norm_act`. ``nn.SyncBatchNorm.convert_sync_batchnorm`` drops the activation: convert
        a model before you put these modules in.
    """


class BatchNormAct3d(_BatchNormAct, nn.BatchNorm3d):
    """Apply ``nn.BatchNorm3d`` and an activation as one op to (N, C, D, H, W).

    Arguments, errors and notes: :class:`BatchNormAct2d`.
    """


for _kind in (BatchNormAct1d, BatchNormAct2d, BatchNormAct3d):
    _kind.__name__ = f"BatchNorm{_kind.__qualname__[-2:]}Act"
