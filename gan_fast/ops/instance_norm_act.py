"""Instance norm and an activation in one op, on the kernels of batch norm.

>>> import torch
>>> from gan_fast import ops
>>> ops.instance_norm_act(torch.arange(4.0).view(1, 1, 4), activation="relu")
tensor([[[0.0000, 0.0000, 0.4472, 1.3416]]])
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_fast import backends
from gan_fast.ops import activations, checks
from gan_fast.ops.batch_norm_act import apply, check, shape_class
from gan_fast.ops.batch_norm_act import reference as batch_norm_reference

OP = "instance_norm_act"
backends.register(OP, "batch_norm_act_forward", triton_file="batch_norm_act")


def reference(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "leaky_relu",
    negative_slope: float = 0.01,
) -> Tensor:
    """Compute instance_norm_act with ATen's ops, on any device and dtype."""
    output = F.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    return activations.apply(output, activation, negative_slope)


def instance_norm_act(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "leaky_relu",
    negative_slope: float = 0.01,
) -> Tensor:
    """Normalize each channel of each sample and apply an activation, like ``F.instance_norm`` and the activation.

    mean, var = those of the input over *spatial, var biased, or running_mean and running_var without
    ``use_input_stats``; z = (input - mean) / sqrt(var + eps) * weight + bias; output = activation(z).
    With ``use_input_stats``, running_mean and running_var are updated in place to (1 - momentum) * old + momentum *
    new, where new is the mean over the samples of their means and of their unbiased variances.

    Args:
        input: (N, C, *spatial) with at least one spatial dim, float64, float32, bfloat16 or float16, any strides.
        running_mean, running_var: (C,), both or neither; required without ``use_input_stats``.
        weight, bias: (C,) or None (ones and zeros). Statistics and parameters share one dtype: the input's, or float32
            if the input is bfloat16 or float16.
        use_input_stats: normalize by the statistics of each sample and update the running ones.
        momentum: weight of the new statistics in the running ones, usually from 0 to 1.
        eps: added to the variance; positive with ``use_input_stats``.
        activation: "identity", "relu", "leaky_relu", "tanh" or "sigmoid".
        negative_slope: slope of "leaky_relu" below zero; the others ignore it.

    Returns:
        Contiguous tensor of input's shape and dtype.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: wrong shape or device, unknown activation, missing statistics, one value per channel and sample.

    Notes:
        Derivatives: first and second from kernels, higher ones from ATen's ops; with respect to input, weight and bias.
        Memory: saves the input and two vectors of N * C for backward, and recomputes the activation.
        Accumulation: sums in float64; statistics and arithmetic on half types in float32.
        Determinism: bitwise the same results for any number of threads and any CPU instruction set.
        Backends: a CPU kernel; on a GPU the fastest of CUDA C++ (if built), Triton (not for float64) and ATen; ATen
            elsewhere and under functorch transforms.

    Source: Ulyanov, Vedaldi and Lempitsky, Instance Normalization, 2016 (arXiv 1607.08022).
    """
    arguments = (running_mean, running_var, weight, bias, use_input_stats, momentum, eps, activation, negative_slope)
    if torch.jit.is_tracing() or checks.is_for_torch(OP, input, running_mean, running_var, weight, bias):
        return reference(input, *arguments)
    check(OP, "", input, *arguments, mode="use_input_stats")
    if input.dim() < 3:
        raise checks.ArgumentError(
            f"{OP}: expected input dimensions at least 3 (N, C, ...), got shape {tuple(input.shape)}"
        )
    if use_input_stats and math.prod(input.shape[2:]) == 1:
        raise checks.ArgumentError(
            f"{OP}: expected input with more than 1 value per channel and sample, got shape {tuple(input.shape)}"
        )
    return backends.call_fastest(
        OP, _instance_norm_act, (input, *arguments), lambda: shape_class(input, use_input_stats, activation)
    )


def _instance_norm_act(input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, *options: Any) -> Tensor:
    arguments = (running_mean, running_var, *options)
    use_input_stats = options[2]
    uses_kernel = backends.uses_kernel(OP, input.device.type, input.dtype)
    # Exporters have an operator for ATen's instance norm, and compiled graphs have no third derivatives.
    if not uses_kernel and (input.numel() == 0 or torch.compiler.is_compiling()):
        return reference(input, *arguments)
    if input.numel() == 0:
        # An empty input must leave the running statistics unchanged.
        if use_input_stats:
            running_mean = running_var = None
        return apply(input, running_mean, running_var, *arguments[2:])
    # The algorithm of at::instance_norm, on a batch norm whose derivatives are correct to any order.
    normalize = apply if uses_kernel else batch_norm_reference
    samples, channels = input.shape[:2]
    mean, var, weight, bias = (None if t is None else t.repeat(samples) for t in arguments[:4])
    output = normalize(
        input.contiguous().view(1, samples * channels, *input.shape[2:]), mean, var, weight, bias, *arguments[4:]
    )
    if use_input_stats:
        for running, updated in ((running_mean, mean), (running_var, var)):
            if running is not None and updated is not None:
                running.copy_(updated.view(samples, channels).mean(0))
    return output.view(input.shape)
