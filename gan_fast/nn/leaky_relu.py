"""Leaky ReLU as a module."""

from __future__ import annotations

from torch import Tensor, nn

from gan_fast import ops


class LeakyReLU(nn.LeakyReLU):
    """``nn.LeakyReLU`` whose second backward ends where ATen's goes on with zeros; ``inplace`` works on ATen's op.

    See :func:`gan_fast.ops.leaky_relu`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if self.inplace else ops.leaky_relu(input, self.negative_slope)
