"""Batch norm modules with the activation behind them built in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gan_fast.nn.lookup import running_statistics, weight_and_bias
from gan_fast.ops import activation as activations
from gan_fast.ops.batch_norm_act import OP, norm


class _BatchNormAct(nn.modules.batchnorm._BatchNorm):
    """torch.nn's batch norm (parameters, buffers, state dict, modes) with a fused activation."""

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
        activations.check(type(self).__name__, activation, negative_slope)
        # Passed on only when it says something: torch 2.11 does not know the argument.
        options = {} if bias else {"bias": False}
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype, **options
        )
        self.activation = activation
        self.negative_slope = negative_slope

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        return self.normalize(input)

    def normalize(self, input: Tensor, *statistics: Tensor) -> Tensor:
        """What forward does with an input of the right number of dims, whose statistics a convolution may know."""
        # torch.nn's own rules: they hold too where a user drops the buffers or the flag after construction.
        mean, var, batches = running_statistics(self)
        training, momentum = self.training, self.momentum
        if training and self.track_running_stats and batches is not None:
            batches.add_(1)
            if momentum is None:
                # Cumulative average; reading the count waits for the device, as in torch.nn.
                momentum = 1.0 / float(batches)
        use_batch = training or (mean is None and var is None)
        if training and not self.track_running_stats:
            mean = var = None
        return norm(
            OP, "", input, mean, var, *weight_and_bias(self), use_batch, 0.0 if momentum is None else momentum,
            self.eps, self.activation, self.negative_slope, statistics,
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
