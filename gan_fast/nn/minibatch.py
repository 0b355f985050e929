"""Minibatch statistics for discriminators, which penalize a generator whose samples are all alike.

>>> import torch
>>> from gan_fast.nn import MinibatchStdDev
>>> MinibatchStdDev(group_size=4)(torch.randn(8, 16, 4, 4)).shape
torch.Size([8, 17, 4, 4])
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gan_fast import ops
from gan_fast.ops import checks
from gan_fast.ops.minibatch_stddev import check_sizes


class MinibatchDiscrimination(nn.Module):
    """Append learned measures of how close each sample is to the others: :func:`gan_fast.ops.minibatch_discrimination`.

    Args:
        in_features: features per sample, at least 1.
        out_features: number of appended features, at least 1.
        kernel_dims: components that each appended feature compares, at least 1.
        device, dtype: of the weight, (in_features, out_features, kernel_dims).

    Shapes: (N, in_features) to (N, in_features + out_features).

    Raises:
        ValueError: an argument below 1, or an input of the wrong shape.

    Notes:
        The output depends on the whole batch. Evaluate with the batch size used in training, and do not take a gradient
        penalty of one sample at a time.
        The weight is initialized from N(0, 1 / in_features), so that projections of unit-variance features have unit
        variance.

    Source: Salimans et al., 2016 (arXiv 1606.03498), section 3.2.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_dims: int = 16,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"in_features": in_features, "out_features": out_features, "kernel_dims": kernel_dims}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"MinibatchDiscrimination: expected {name} at least 1, got {value}")
        self.in_features, self.out_features, self.kernel_dims = in_features, out_features, kernel_dims
        self.weight = nn.Parameter(torch.empty(in_features, out_features, kernel_dims, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, 0.0, self.in_features**-0.5)

    def forward(self, input: Tensor) -> Tensor:
        return ops.minibatch_discrimination(input, self.weight)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, kernel_dims={self.kernel_dims}"


class MinibatchStdDev(nn.Module):
    """Append the standard deviation over groups of samples as channels: :func:`gan_fast.ops.minibatch_stddev`.

    Args:
        group_size: samples per group, at least 1. A smaller batch, or None, makes the batch one group.
        num_channels: number of appended channels, at least 1.
        eps: positive number added to the variance.

    Shapes: (N, C, *spatial) to (N, C + num_channels, *spatial). min(group_size, N) must divide N, and num_channels must
    divide C.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range, or an input of the wrong shape.
    """

    def __init__(self, group_size: int | None = 4, num_channels: int = 1, eps: float = 1e-8) -> None:
        super().__init__()
        check_sizes("MinibatchStdDev", group_size, num_channels)
        checks.number("MinibatchStdDev", "eps", eps)
        if not eps > 0:
            raise ValueError(f"MinibatchStdDev: expected eps above 0, got {eps!r}")
        self.group_size, self.num_channels, self.eps = group_size, num_channels, eps

    def forward(self, input: Tensor) -> Tensor:
        return ops.minibatch_stddev(input, self.group_size, self.num_channels, self.eps)

    def extra_repr(self) -> str:
        return f"group_size={self.group_size}, num_channels={self.num_channels}, eps={self.eps}"
