"""ReLU and leaky ReLU as modules."""

from __future__ import annotations

from torch import Tensor, nn

from gan_fast import ops


class LeakyReLU(nn.LeakyReLU):
    """``nn.LeakyReLU`` whose second backward ends where ATen's goes on with zeros; ``inplace`` works on ATen's op.

    See :func:`gan_fast.ops.leaky_relu`.
    """

    def forward(self, input: Tensor) -> Tensor:
        # Another type may know what to do with torch's function.
        if self.inplace or type(input) is not Tensor:
            return super().forward(input)
        return ops.leaky_relu(input, self.negative_slope)


class ReLU(nn.ReLU):
    """``nn.ReLU`` whose second backward ends where ATen's goes on with zeros; ``inplace`` works on ATen's op.

    See :func:`gan_fast.ops.relu`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if self.inplace or type(input) is not Tensor else ops.relu(input)
