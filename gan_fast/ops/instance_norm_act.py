"""Instance norm and the activation behind it, on batch norm's kernel: every channel of every sample is a channel."""

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
    """The same on plain ATen: any device, any dtype, any order of derivative."""
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
    """Normalise each channel of each sample and apply an activation, as ``F.instance_norm`` and the activation do.

    mean, var = input's over *space, var biased, or running_mean, running_var where ``use_input_stats`` is False;
    z = (input - mean) / sqrt(var + eps) * weight + bias; output = activation(z).
    With use_input_stats, running_mean and running_var become (1 - momentum) * old + momentum * new, in place, where new
    is the mean of the samples' statistics, that of the variance unbiased.

    Args:
        input: (N, C, *space) with at least one dim of space, float64, float32, bfloat16 or float16, any strides.
        running_mean, running_var: (C,), both or neither; needed when ``use_input_stats`` is False.
        weight, bias: (C,) or None (ones and zeros). Statistics and parameters share one dtype: the input's, or float32
            beside a bfloat16 or float16 input.
        use_input_stats: normalise by the samples' own statistics and update the running ones.
        momentum: weight of the batch in the running statistics, in [0, 1] as a rule.
        eps: added to the variance; above 0 with use_input_stats.
        activation: "identity", "relu", "leaky_relu", "tanh" or "sigmoid".
        negative_slope: slope of "leaky_relu" below zero; unused by the others.

    Returns:
        Contiguous tensor of input's shape and dtype, as ATen gives it.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: wrong shape, device, activation, missing statistics, one value per channel and sample.

    Notes:
        As :func:`gan_fast.ops.batch_norm_act`, whose kernels serve.

    Source: Ulyanov, Vedaldi and Lempitsky, Instance Normalization, 2016 (arXiv 1607.08022).
    """
    arguments = (running_mean, running_var, weight, bias, use_input_stats, momentum, eps, activation, negative_slope)
    if torch.jit.is_tracing() or checks.is_for_torch(OP, input, running_mean, running_var, weight, bias):
        return reference(input, *arguments)
    check(OP, "", input, *arguments, mode="use_input_stats")
    if input.dim() < 3:
        raise ValueError(f"{OP}: expected input dimensions at least 3 (N, C, ...), got shape {tuple(input.shape)}")
    if use_input_stats and math.prod(input.shape[2:]) == 1:
        raise ValueError(f"{OP}: expected input more than 1 value per channel and sample, got {tuple(input.shape)}")
    return backends.call_fastest(
        OP, _serve, (input, *arguments), lambda: shape_class(input, use_input_stats, activation)
    )


def _serve(input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, *options: Any) -> Tensor:
    arguments = (running_mean, running_var, *options)
    use_input_stats = options[2]
    native = backends.uses_kernel(OP, input.device.type, input.dtype)
    # Exporters have an operator for ATen's instance norm; in a graph no derivative beyond the second is taken.
    if not native and (input.numel() == 0 or torch.compiler.is_compiling()):
        return reference(input, *arguments)
    if input.numel() == 0:
        # Nothing to take statistics of: batch norm knows that they stay as they are.
        if use_input_stats:
            running_mean = running_var = None
        return apply(input, running_mean, running_var, *arguments[2:])
    # As at::instance_norm does it, but on a batch norm whose derivatives are right to any order.
    normalize = apply if native else batch_norm_reference
    samples, channels = input.shape[:2]
    mean, var, weight, bias = (None if t is None else t.repeat(samples) for t in arguments[:4])
    output = normalize(
        input.contiguous().view(1, samples * channels, *input.shape[2:]), mean, var, weight, bias, *arguments[4:]
    )
    if use_input_stats:
        for running, own in ((running_mean, mean), (running_var, var)):
            if running is not None and own is not None:
                running.copy_(own.view(samples, channels).mean(0))
    return output.view(input.shape)
