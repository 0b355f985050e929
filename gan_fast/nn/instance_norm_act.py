"""Instance norm modules with the activation behind them built in."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from gan_fast.nn import deferred
from gan_fast.nn.names import Named
from gan_fast.ops import activations, checks
from gan_fast.ops.instance_norm_act import instance_norm_act


class _InstanceNormAct(Named, nn.modules.instancenorm._InstanceNorm):
    """torch.nn's instance norm (parameters, buffers, state dict, modes) with a fused activation."""

    # Of those that were made without: nn/fuse.py changes the class of torch.nn's.
    activation: str = "identity"
    negative_slope: float = 0.01

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "leaky_relu",
        negative_slope: float = 0.01,
    ) -> None:
        activations.check(self._get_name(), activation, negative_slope)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self.activation = activation
        self.negative_slope = negative_slope

    def _apply_instance_norm(self, input: Any) -> Any:
        input = deferred.resolve(input)
        if deferred.waits(self, input) and not checks.subclassed(*self._parameters.values()):
            return deferred.Deferred(functools.partial(self._normalize, input), input)
        return self._normalize(input, self.activation, self.negative_slope)

    def _normalize(self, input: Tensor, activation: str, negative_slope: float, moving: bool = True) -> Tensor:
        return instance_norm_act(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or not self.track_running_stats,
            self.momentum if self.momentum is not None and moving else 0.0,
            self.eps,
            activation,
            negative_slope,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {activations.describe(self.activation, self.negative_slope)}"


class InstanceNormAct1d(_InstanceNormAct, nn.InstanceNorm1d):
    """``nn.InstanceNorm1d`` and an activation as one op: (N, C, L) or (C, L)."""


class InstanceNormAct2d(_InstanceNormAct, nn.InstanceNorm2d):
    """``nn.InstanceNorm2d`` and an activation as one op: (N, C, H, W) or (C, H, W).

    ``activation(instance_norm(input))``; see :func:`gan_fast.ops.instance_norm_act`.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype: as ``nn.InstanceNorm2d``.
        activation: "identity", "relu", "leaky_relu", "tanh" or "sigmoid".
        negative_slope: slope of "leaky_relu" below zero.

    Raises:
        ValueError: another activation; input of another number of dimensions.

    Notes:
        State dicts are those of ``nn.InstanceNorm2d``.
    """


class InstanceNormAct3d(_InstanceNormAct, nn.InstanceNorm3d):
    """``nn.InstanceNorm3d`` and an activation as one op: (N, C, D, H, W) or (C, D, H, W)."""


for _kind in (InstanceNormAct1d, InstanceNormAct2d, InstanceNormAct3d):
    _kind.__name__ = f"InstanceNorm{_kind.__qualname__[-2:]}Act"
