"""Minibatch standard deviation: a feature by which a discriminator detects missing variety.

>>> import torch
>>> from gan_fast import ops
>>> ops.minibatch_stddev(torch.tensor([[1.0], [3.0]]))  # values and their standard deviation
tensor([[1., 1.],
        [3., 1.]])
"""

from __future__ import annotations

import torch
from torch import Tensor

from gan_fast.memory_format import suggest_memory_format
from gan_fast.ops import checks

OP = "minibatch_stddev"


def check_sizes(op: str, group_size: int | None, num_channels: int) -> None:
    for name, value in (("group_size", group_size), ("num_channels", num_channels)):
        if value is None and name == "group_size":
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{op}: expected {name} type int, got {type(value).__name__}")
        if value < 1:
            raise ValueError(f"{op}: expected {name} at least 1, got {value}")


def minibatch_stddev(input: Tensor, group_size: int | None = 4, num_channels: int = 1, eps: float = 1e-8) -> Tensor:
    """Append to each sample the standard deviation within its group of samples.

    With G = min(group_size, N), samples n, n + N / G, n + 2 N / G, ... form a group, as in
    ``input.view(G, N / G, num_channels, C / num_channels, *spatial)``. With s = sqrt(var + eps) over the group, the
    k-th appended channel is the mean of s over the k-th of ``num_channels`` equal ranges of channels and all positions.

    Args:
        input: (N, C, *spatial) with any number of spatial dimensions, float64, float32, bfloat16 or float16, any
            strides.
        group_size: samples per group, at least 1; None means N. min(group_size, N) must divide N.
        num_channels: number of appended channels, at least 1; must divide C.
        eps: positive number added to the variance, so that a group of equal samples has a gradient, zero, of any order.

    Returns:
        Tensor (N, C + num_channels, *spatial) of the dtype of ``input``; channels-last if ``input`` is.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: fewer than 2 dimensions, N or C not divisible, or a number out of range.

    Notes:
        Derivatives: of any order.
        Accumulation: float32 for the half types.
        An empty batch gives an empty result.
        Backends: ATen on every device.

    Source: Karras et al., Progressive Growing of GANs, 2018 (arXiv 1710.10196), section 3; groups and channel ranges
        from StyleGAN2 (arXiv 1912.04958).
    """
    checks.floating(OP, "input", input)
    if input.dim() < 2:
        raise ValueError(f"{OP}: expected input dimensions at least 2 (N, C, ...), got shape {tuple(input.shape)}")
    check_sizes(OP, group_size, num_channels)
    checks.number(OP, "eps", eps)
    if not eps > 0:
        raise ValueError(f"{OP}: expected eps above 0, got {eps!r}")
    n, c, *space = input.shape
    group = n if group_size is None else min(group_size, n)
    # An empty batch must not divide by zero.
    group = max(group, 1)
    if n % group:
        raise ValueError(f"{OP}: expected input batch divisible by group_size {group}, got {n}")
    if c % num_channels:
        raise ValueError(f"{OP}: expected input channels divisible by num_channels {num_channels}, got {c}")
    x = input.float() if input.dtype.itemsize == 2 else input
    x = x.reshape(group, n // group, num_channels, c // num_channels, *space)
    deviation = ((x - x.mean(0)).square().mean(0) + eps).sqrt()
    means = deviation.flatten(2).mean(2).to(input.dtype).repeat(group, 1)
    # cat keeps a memory format only if all its inputs have it, so the expanded channels are converted too.
    channels = means.reshape(n, num_channels, *(1 for _ in space)).expand(n, num_channels, *space)
    memory_format = suggest_memory_format(input)
    return torch.cat([input, channels.contiguous(memory_format=memory_format)], 1)
