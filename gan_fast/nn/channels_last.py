"""Modules in a row that run in the memory format that suits them, unseen from outside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gan_fast.memory_format import to_channels_last
from gan_fast.ops import checks, conv_kernels, per_sample, recompute


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
        output: Tensor = super().forward(inside(input))
        return outside(output)

    def forward_to(self, input: Tensor, end: int) -> tuple[Tensor, Callable[[], Tensor]]:
        """Run the modules before index ``end``, negative from the back; the others when they are asked for.

        Returns:
            What ``self[:end]`` gives, and a call that continues with ``self[end:]`` to what ``forward`` gives: one pass
            in all. Hooks of the chain itself do not see it.
        """
        modules = list(self)
        gain = conv_kernels.gain_by_channels_last(input)
        inner = inside(input) if gain else input
        for module in modules[:end]:
            inner = module(inner)

        def rest() -> Tensor:
            output = inner
            for module in modules[end:]:
                output = module(output)
            return outside(output) if gain else output

        return outside(inner) if gain else inner, rest


def inside(input: Tensor) -> Tensor:
    copy = _ToChannelsLast.apply(input) if input.requires_grad else to_channels_last(input)
    recompute.attach(copy, to_channels_last, input)
    return copy


def outside(output: Tensor) -> Tensor:
    # A copy of a subclass may lack what the tensor carries.
    return output.contiguous() if output.dim() == 4 and not checks.subclassed(output) else output


@per_sample.keeps_samples_apart
class _ToChannelsLast(torch.autograd.Function):
    """A copy in channels-last; its gradient has the caller's layout again."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        output = to_channels_last(input)
        # Not a view: what follows may write over it.
        return output.clone() if output.data_ptr() == input.data_ptr() else output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return grad_output.contiguous()
