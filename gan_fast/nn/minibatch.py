"""Modules by which a discriminator sees its whole batch, and with it a generator that lacks variety."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gan_fast import ops
from gan_fast.ops.minibatch_stddev import check_sizes


class MinibatchDiscrimination(nn.Module):
    """Append how close each sample is to the others; see :func:`gan_fast.ops.minibatch_discrimination`.

    Args:
        in_features: length of a sample's features, at least 1.
        out_features: how many learned measures of closeness are appended, at least 1.
        kernel_dims: components that each of them compares, at least 1.
        device, dtype: of the weight, (in_features, out_features, kernel_dims).

    Shapes: (N, in_features) to (N, in_features + out_features). The batch is part of the function: evaluate in batches
    like those of training, and never a penalty's gradient of one sample alone.

    Raises:
        ValueError: an argument below 1; what the op raises.

    Source: Salimans et al., 2016 (arXiv 1606.03498), section 3.2. The weight begins as N(0, 1 / in_features), for which
    features of variance one are projected to variance one.
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
    """Append the standard deviation over groups of the batch as channels; see :func:`gan_fast.ops.minibatch_stddev`.

    Args:
        group_size: samples in a group, at least 1; the batch where that is less, or where it is None.
        num_channels: channels appended, at least 1.

    Shapes: (N, C, *spatial) to (N, C + num_channels, *spatial), N divisible by min(group_size, N), C by num_channels.

    Raises:
        TypeError, ValueError: as the op.
    """

    def __init__(self, group_size: int | None = 4, num_channels: int = 1) -> None:
        super().__init__()
        check_sizes("MinibatchStdDev", group_size, num_channels)
        self.group_size, self.num_channels = group_size, num_channels

    def forward(self, input: Tensor) -> Tensor:
        return ops.minibatch_stddev(input, self.group_size, self.num_channels)

    def extra_repr(self) -> str:
        return f"group_size={self.group_size}, num_channels={self.num_channels}"
