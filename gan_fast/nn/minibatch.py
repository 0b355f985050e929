"""Modules by which a discriminator sees its whole batch, and with it a generator that lacks variety."""

from __future__ import annotations

from torch import Tensor, nn

from gan_fast import ops
from gan_fast.ops.minibatch_stddev import check_sizes


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
