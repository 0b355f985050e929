"""ReLU and leaky ReLU modules.

>>> import torch
>>> from gan_fast.nn import LeakyReLU
>>> LeakyReLU(0.2)(torch.tensor([-1.0, 2.0]))
tensor([-0.2000,  2.0000])
"""

from __future__ import annotations

from torch import Tensor, nn

from gan_fast import ops


class LeakyReLU(nn.LeakyReLU):
    """``nn.LeakyReLU`` on :func:`gan_fast.ops.leaky_relu`, whose second backward stops at the activation.

    Args:
        negative_slope: slope below zero.
        inplace: write the result over the input.
    """

    def forward(self, input: Tensor) -> Tensor:
        # A tensor subclass may override torch's function.
        if type(input) is not Tensor:
            return super().forward(input)
        try:
            return ops.leaky_relu(input, self.negative_slope, self.inplace)
        except TypeError:
            # Such as quantized tensors, which torch accepts; for the others torch raises its own error.
            return super().forward(input)


class ReLU(nn.ReLU):
    """``nn.ReLU`` on :func:`gan_fast.ops.relu`, whose second backward stops at the activation.

    Args:
        inplace: write the result over the input.
    """

    def forward(self, input: Tensor) -> Tensor:
        if type(input) is not Tensor:
            return super().forward(input)
        try:
            return ops.relu(input, self.inplace)
        except TypeError:
            # Such as integers, which torch accepts.
            return super().forward(input)
