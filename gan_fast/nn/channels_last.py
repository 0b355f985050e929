"""Modules in a row that run in the memory format that suits them, unseen from outside."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gan_fast import backends
from gan_fast.ops import autograd, layout


class ChannelsLastSequential(nn.Sequential):
    """``nn.Sequential`` for blocks of convolutions: channels-last inside, with the caller's layout at the ends.

    A 4-d input on the CPU in float32, bfloat16 or float16 that is not channels-last is copied into that format, and a
    4-d output back out of it: oneDNN's convolutions are then quicker than the copies cost. Values, state dict and
    indexing are those of ``nn.Sequential``; tensors between the modules, which hooks see, are channels-last.

    Notes:
        Other inputs, and all inputs under torch.compile, torch.jit.trace, functorch and the reference backend, run as
        they are.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not _gains(input):
            return super().forward(input)
        output: Tensor = super().forward(_channels_last(input))
        return output.contiguous() if output.dim() == 4 else output


def _gains(input: Tensor) -> bool:
    return (
        input.dim() == 4
        and input.device.type == "cpu"
        and input.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and not autograd.captured()
        and backends.native("conv2d", "cpu")
        and not layout.is_ordered_channels_last(input.shape, input.stride())
    )


def _channels_last(input: Tensor) -> Tensor:
    if input.shape[2:] == (1, 1):
        # One pixel counts as channels-last with any strides, yet convolutions go by them: take the right ones.
        return input.reshape(input.size(0), 1, 1, input.size(1)).movedim(-1, 1)
    return input.contiguous(memory_format=torch.channels_last)
