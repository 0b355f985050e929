"""The standard deviation over a batch as features of its own, by which a discriminator sees missing variety."""

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
    """Append to each sample how much the samples of its group differ.

    The batch is a stack of min(group_size, N) slices; samples at the same place in each slice form a group, as in
    ``input.view(group_size, N / group_size, num_channels, C / num_channels, *spatial)``.
    s = sqrt(mean over the group of (input - mean over the group)^2 + eps); each sample gets ``num_channels`` channels
    more, the k-th the mean of s over its group's k-th share of channels and over all pixels.

    Args:
        input: (N, C, *spatial) with any number of spatial dims, float64, float32, bfloat16 or float16, any strides.
        group_size: samples in a group, at least 1; N where that is less, or where it is None. It divides N.
        num_channels: channels appended, at least 1; divides C.
        eps: added to the variance, above 0: a group of equal samples has a gradient, zero, to any order.

    Returns:
        Tensor (N, C + num_channels, *spatial) of input's dtype; channels-last in, channels-last out.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: fewer than 2 dims; N or C not divisible; a number out of range.

    Notes:
        Derivatives: of any order.
        Accumulation: float32 for the half types.
        No samples: an empty result.
        Backends: plain ATen on every device.

    Source: Karras et al., Progressive Growing of GANs, 2018 (arXiv 1710.10196), section 3, in the form of StyleGAN2
    (arXiv 1912.04958): groups, and shares of channels.
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
    # An empty batch is no groups of one.
    group = max(group, 1)
    if n % group:
        raise ValueError(f"{OP}: expected input batch divisible by group_size {group}, got {n}")
    if c % num_channels:
        raise ValueError(f"{OP}: expected input channels divisible by num_channels {num_channels}, got {c}")
    x = input.float() if input.dtype.itemsize == 2 else input
    x = x.reshape(group, n // group, num_channels, c // num_channels, *space)
    deviation = ((x - x.mean(0)).square().mean(0) + eps).sqrt()
    means = deviation.flatten(2).mean(2).to(input.dtype).repeat(group, 1)
    # What cat writes has the format of its inputs where they agree: broadcast values must be told it.
    channels = means.reshape(n, num_channels, *(1 for _ in space)).expand(n, num_channels, *space)
    memory_format = suggest_memory_format(input)
    return torch.cat([input, channels.contiguous(memory_format=memory_format)], 1)
