"""A sequence of modules that runs in channels-last memory format, invisibly to its caller.

>>> import torch
>>> from gan_fast.nn import ChannelsLastSequential, Conv2d
>>> model = ChannelsLastSequential(Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), Conv2d(8, 3, 3, padding=1))
>>> output = model(torch.randn(2, 3, 32, 32))
>>> output.shape, output.is_contiguous()
(torch.Size([2, 3, 32, 32]), True)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gan_fast.memory_format import to_channels_last
from gan_fast.ops import checks, conv_kernels, per_sample, recompute


class ChannelsLastSequential(nn.Sequential):
    """``nn.Sequential`` that runs convolutions in channels-last and keeps the caller's memory format at both ends.

    A 4-d float32 or bfloat16 input on the CPU that is not channels-last is copied into that format, and a 4-d output is
    copied back: oneDNN's convolutions gain more than the two copies cost. Values, state dict and indexing are those of
    ``nn.Sequential``. The tensors between the modules, which hooks receive, are channels-last.

    Notes:
        Every other input, and every input under torch.compile, torch.jit.trace, functorch or the reference backend,
        runs in the format it has.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not conv_kernels.gain_by_channels_last(input):
            return super().forward(input)
        output: Tensor = super().forward(enter_channels_last(input))
        return leave_channels_last(output)

    def forward_to(self, input: Tensor, end: int) -> tuple[Tensor, Callable[[], Tensor]]:
        """Run the modules before index ``end`` (negative: counted from the back), and defer the rest.

        Returns:
            The output of ``self[:end]``, and a function that runs ``self[end:]`` on it and returns the output of
            ``forward``. Hooks on this module itself are not called.
        """
        modules = list(self)
        gain = conv_kernels.gain_by_channels_last(input)
        inner = enter_channels_last(input) if gain else input
        for module in modules[:end]:
            inner = module(inner)

        def rest() -> Tensor:
            output = inner
            for module in modules[end:]:
                output = module(output)
            return leave_channels_last(output) if gain else output

        return leave_channels_last(inner) if gain else inner, rest


def enter_channels_last(input: Tensor) -> Tensor:
    copy = _ToChannelsLast.apply(input) if input.requires_grad else to_channels_last(input)
    recompute.attach(copy, to_channels_last, input)
    return copy


def leave_channels_last(output: Tensor) -> Tensor:
    # Copying a tensor subclass may drop its attributes.
    return output.contiguous() if output.dim() == 4 and not checks.subclassed(output) else output


@per_sample.keeps_samples_apart
class _ToChannelsLast(torch.autograd.Function):
    """Copy into channels-last; the gradient gets the caller's memory format back."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        output = to_channels_last(input)
        # Clone, so that the next module can write in place without changing the input.
        return output.clone() if output.data_ptr() == input.data_ptr() else output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return grad_output.contiguous()
