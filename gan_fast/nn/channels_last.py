"""Modules in a row that run in the memory format that suits them, unseen from outside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gan_fast import layout
from gan_fast.ops import conv_kernels, recompute


class ChannelsLastSequential(nn.Sequential):
    """``nn.Sequential`` for blocks of convolutions: channels-last inside, with the caller's layout at the ends.

    A 4-d input on the CPU in float32 or bfloat16 that is not channels-last is copied into that format, and a
    4-d output back out of it: oneDNN's convolutions are then quicker than the copies cost. Values, state dict and
    indexing are those of ``nn.Sequential``; tensors between the modules, which hooks see, are channels-last.

    Notes:
        Other inputs, and all inputs under torch.compile, torch.jit.trace, functorch and the reference backend, run as
        they are.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not conv_kernels.gain_by_channels_last(input):
            return super().forward(input)
        copy = _ToChannelsLast.apply(input) if input.requires_grad else layout.to_channels_last(input)
        recompute.attach(copy, layout.to_channels_last, input)
        output: Tensor = super().forward(copy)
        return output.contiguous() if output.dim() == 4 else output


class _ToChannelsLast(torch.autograd.Function):
    """A copy in channels-last; its gradient has the caller's layout again."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        output = layout.to_channels_last(input)
        # Not a view: what follows may write over it.
        return output.clone() if output.data_ptr() == input.data_ptr() else output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return grad_output.contiguous()
