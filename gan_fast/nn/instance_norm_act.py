"""Instance norm modules with a fused activation.

>>> import torch
>>> from gan_fast.nn import InstanceNormAct2d
>>> norm = InstanceNormAct2d(3, activation="relu")
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
from gan_fast.nn.module_state import raise_torch_error
from gan_fast.nn.public_name import PublicNameMixin
from gan_fast.ops import activations, checks
from gan_fast.ops.instance_norm_act import instance_norm_act


class _InstanceNormAct(PublicNameMixin, nn.modules.instancenorm._InstanceNorm):
    """torch.nn's instance norm (parameters, buffers, state dict, modes) with a fused activation."""

    # Defaults for torch.nn modules whose class fuse() changed: they never ran this __init__.
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
        if deferred.defers(self, input) and not checks.subclassed(*self._parameters.values()):
            return deferred.DeferredTensor(functools.partial(self.normalize, input), input)
        return self.normalize(input, self.activation, self.negative_slope)

    def normalize(
        self, input: Tensor, activation: str, negative_slope: float, update_statistics: bool = True
    ) -> Tensor:
        """Normalize an input of the right shape and apply any activation.

        Args:
            update_statistics: update the running statistics in training.
        """
        mean, var, weight, bias = self.running_mean, self.running_var, self.weight, self.bias
        use_input_stats = self.training or not self.track_running_stats
        momentum = self.momentum if self.momentum is not None and update_statistics else 0.0
        try:
            return instance_norm_act(
                input, mean, var, weight, bias, use_input_stats, momentum, self.eps, activation, negative_slope
            )
        except (TypeError, ValueError):
            copies: tuple[Any, Any] = (None if mean is None else mean.clone(), None if var is None else var.clone())
            raise_torch_error(
                lambda: F.instance_norm(input, *copies, weight, bias, use_input_stats, momentum, self.eps)
            )
            raise

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {activations.describe(self.activation, self.negative_slope)}"


class InstanceNormAct1d(_InstanceNormAct, nn.InstanceNorm1d):
    """Apply ``nn.InstanceNorm1d`` and an activation as one op to (N, C, L) or (C, L).

    Arguments, errors and notes: :class:`InstanceNormAct2d`.
    """


class InstanceNormAct2d(_InstanceNormAct, nn.InstanceNorm2d):
    """Apply ``nn.InstanceNorm2d`` and an activation as one op to (N, C, H, W) or (C, H, W).

    ``activation(instance_norm(input))``.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype: those of ``nn.InstanceNorm2d``.
        activation: "identity", "relu", "leaky_relu", "tanh" or "sigmoid".
        negative_slope: slope of "leaky_relu" below zero.

    Raises:
        ValueError: unknown activation.
        Whatever ``nn.InstanceNorm2d`` raises for the same arguments and input.

    Notes:
        State dicts are those of ``nn.InstanceNorm2d``. Derivatives, accumulation and backends are those of
        :func:`gan_fast.ops.instance_norm_act`.
    """


class InstanceNormAct3d(_InstanceNormAct, nn.InstanceNorm3d):
    """Apply ``nn.InstanceNorm3d`` and an activation as one op to (N, C, D, H, W) or (C, D, H, W).

    Arguments, errors and notes: :class:`InstanceNormAct2d`.
    """


for _kind in (InstanceNormAct1d, InstanceNormAct2d, InstanceNormAct3d):
    _kind.__name__ = f"InstanceNorm{_kind.__qualname__[-2:]}Act"
