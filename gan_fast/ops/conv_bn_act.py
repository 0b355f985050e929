"""Convolution + activation and convolution + batch norm + activation as single ops, with 1 to 3 spatial dims.

>>> import torch
>>> from gan_fast import ops
>>> x, weight = torch.ones(2, 3, 8, 8), torch.ones(16, 3, 4, 4)
>>> ops.conv2d_bn_act(x, weight, stride=2, padding=1, training=True, activation="relu").shape
torch.Size([2, 16, 4, 4])

For the backward pass a block saves only one tensor of its output's size. With a norm that is the raw output of the
convolution: the activation is recomputed, even as the input of the next block (ops/recompute.py). Without a norm it is
the activation, which overwrites the raw output; for leaky_relu it is one sign bit per value.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gan_fast import backends
from gan_fast.ops import activations, checks, dispatch
from gan_fast.ops.batch_norm_act import norm
from gan_fast.ops.batch_norm_folding import fold_batch_norm
from gan_fast.ops.conv import convolve
from gan_fast.ops.conv_kernels import Epilogue
from gan_fast.ops.spatial_dims import for_1d_2d_3d

for _kind in ("", "_transpose"):
    for _dims in (1, 2, 3):
        backends.register(
            f"conv{_kind}{_dims}d_act", None, triton_file="conv" if _dims == 2 else None, aten_when_small=True
        )
        backends.register(
            f"conv{_kind}{_dims}d_bn_act",
            "batch_norm_act_forward",
            triton_file="batch_norm_act" if _dims == 2 else None,
            aten_when_small=True,
        )


MEMORY_FORMATS = (None, torch.contiguous_format, torch.channels_last, torch.channels_last_3d)


def check_memory_format(op: str, memory_format: torch.memory_format | None) -> None:
    if memory_format not in MEMORY_FORMATS:
        wanted = ", ".join(map(str, MEMORY_FORMATS))
        raise ValueError(f"{op}: expected memory_format one of {wanted}, got {memory_format!r}")


def _activation(op: str, activation: str, negative_slope: float, memory_format: torch.memory_format | None) -> Epilogue:
    activations.check(op, activation, negative_slope)
    check_memory_format(op, memory_format)
    return Epilogue(activation, negative_slope, memory_format)


def convnd_act(
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    activation: str = "leaky_relu",
    negative_slope: float = 0.01,
    *,
    memory_format: torch.memory_format | None = None,
) -> Tensor:
    """Convolve and apply an activation: ``activation(convnd(input, weight, bias, ...))``.

    Args:
        input, weight, bias, stride, padding, dilation, groups: the arguments of :func:`convnd`.
        activation: "identity", "relu", "leaky_relu", "tanh" or "sigmoid".
        negative_slope: slope of "leaky_relu" below zero; the others ignore it.
        memory_format: that of the output, which must have a batch dim to be channels-last. None leaves it to ATen.

    Returns:
        (N, C_out, *spatial).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: wrong shape, device or padding, unknown activation or memory format.

    Notes:
        Derivatives: of any order. The second backward of relu and leaky_relu returns None for their input, not ATen's
            zeros, unless no later layer requires a gradient (a frozen critic).
        Memory: the activation overwrites the convolution's output. Saves the input for backward, and with relu, tanh
            and sigmoid the result, which must not be overwritten, as in eager mode. With leaky_relu saves one sign bit
            per value, so that the result may be overwritten, as with ``F.leaky_relu``. Without a kernel for sign bits
            (devices without CPU or Triton kernels, or negative slopes in Triton) leaky_relu is a separate node.
        Autocast: computes in the autocast dtype.
        torch.compile, torch.jit.trace and functorch: run ATen's ops.
    """
    op = f"conv{dims}d_act"
    epilogue = _activation(op, activation, negative_slope, memory_format)
    return convolve(op, dims, False, input, weight, bias, stride, padding, 0, groups, dilation, epilogue)


def conv_transposend_act(
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    activation: str = "leaky_relu",
    negative_slope: float = 0.01,
    *,
    memory_format: torch.memory_format | None = None,
) -> Tensor:
    """Apply a transposed convolution and an activation: ``activation(conv_transposend(input, weight, ...))``.

    Args:
        input, weight, bias, stride, padding, output_padding, groups, dilation: the arguments of
            :func:`conv_transposend`.
        activation: "identity", "relu", "leaky_relu", "tanh" or "sigmoid".
        negative_slope: slope of "leaky_relu" below zero; the others ignore it.
        memory_format: that of the output, which must have a batch dim to be channels-last. None leaves it to ATen.

    Returns:
        (N, C_out, *spatial).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: wrong shape, device, padding or output_padding, unknown activation or memory format.

    Notes:
        Derivatives, memory, autocast and compilation: see :func:`convnd_act`.
    """
    op = f"conv_transpose{dims}d_act"
    epilogue = _activation(op, activation, negative_slope, memory_format)
    return convolve(op, dims, True, input, weight, bias, stride, padding, output_padding, groups, dilation, epilogue)


def may_fold(input: Tensor) -> bool:
    """Whether :func:`fold` can be worthwhile: without gradients, and for inputs that are not small."""
    return not (torch.is_grad_enabled() or dispatch.is_traced() or input.numel() <= backends.SMALL)


def fold(
    transposed: bool,
    groups: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor] | None:
    """Return the weight and bias of the convolution that includes the evaluation-mode batch norm after it.

    None if that is not faster or not the same: when gradients are recorded; in half precision, which would round the
    weight twice; if the weight to scale has more values than the input; or for invalid arguments, which the caller
    reports.
    """
    if (
        not may_fold(input)
        or checks.subclassed(input, weight, bias, running_mean, running_var, bn_weight, bn_bias)
        or input.numel() <= weight.numel()
        or not (isinstance(eps, float) and isinstance(groups, int) and groups >= 1)
        or weight.dim() < 3
        or weight.size(0) % groups
        or running_mean is None
        or running_var is None
    ):
        return None
    channels = (weight.size(1) * groups if transposed else weight.size(0),)
    vectors = [t for t in (bias, running_mean, running_var, bn_weight, bn_bias) if t is not None]
    if (
        input.dtype not in (torch.float32, torch.float64)
        or (weight.dtype, weight.device) != (input.dtype, input.device)
        or not all(isinstance(t, Tensor) and t.shape == channels for t in vectors)
        or any((t.dtype, t.device) != (input.dtype, input.device) for t in vectors)
        or dispatch.is_autocast_enabled(input.device.type)
        or not backends.uses_kernel("conv2d", input.device.type, input.dtype)
    ):
        return None
    return fold_batch_norm(weight, bias, running_mean, running_var, bn_weight, bn_bias, eps, transposed, groups)


def _conv_bn_act(
    op: str,
    dims: int,
    transposed: bool,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    output_padding: int | Sequence[int],
    groups: int,
    dilation: int | Sequence[int],
    running_mean: Tensor | None,
    running_var: Tensor | None,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    activation: str,
    negative_slope: float,
) -> Tensor:
    activations.check(op, activation, negative_slope)
    checks.floating(op, "input", input)
    checks.tensor(op, "weight", weight)
    if input.dim() != dims + 2:
        raise checks.ArgumentError(
            f"{op}: expected input dimensions {dims + 2} (N, C_in, ...), got shape {tuple(input.shape)}"
        )
    folded = None
    if not training:
        folded = fold(transposed, groups, input, weight, bias, running_mean, running_var, bn_weight, bn_bias, eps)

    def bn(output: Tensor, *statistics: Tensor) -> Tensor:
        return norm(
            op, "bn_", output, running_mean, running_var, bn_weight, bn_bias, training, momentum, eps, activation,
            negative_slope, statistics,
        )  # fmt: skip

    weight, bias = folded or (weight, bias)
    epilogue = Epilogue(activation, negative_slope) if folded else Epilogue(statistics=training)
    return convolve(
        op, dims, transposed, input, weight, bias, stride, padding, output_padding, groups, dilation, epilogue,
        None if folded else bn,
    )  # fmt: skip


def convnd_bn_act(
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    bn_weight: Tensor | None = None,
    bn_bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "leaky_relu",
    negative_slope: float = 0.01,
) -> Tensor:
    """Convolve, normalize each channel and apply an activation.

    raw = convnd(input, weight, bias, ...); mean, var = running_mean, running_var, or in training mode those of raw over
    (N, *spatial), var biased; z = (raw - mean) / sqrt(var + eps) * bn_weight + bn_bias; output = activation(z).

    Args:
        input: (N, C_in, *spatial), float64, float32, bfloat16 or float16, any strides.
        weight, bias, stride, padding, dilation, groups: the arguments of :func:`convnd`.
        running_mean, running_var: (C_out,), both or neither; required when ``training`` is False.
        bn_weight, bn_bias: (C_out,) or None (ones and zeros).
        training, momentum, eps, activation, negative_slope: the arguments of :func:`batch_norm_act`.

    Returns:
        (N, C_out, *spatial), with the strides of ATen's result.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: wrong shape, device or padding, unknown activation, missing statistics, an input without a batch.

    Notes:
        Derivatives: of any order.
        Memory: saves the convolution's input and raw output and two vectors of C_out, and recomputes the activation,
            even as the input of another gan_fast convolution, which therefore misses changes through ``.data``. Under
            saved-tensor hooks (checkpointing, offloading), and by layers of other libraries, the activation is saved.
        Evaluation: one pass for norm and activation. Under ``torch.no_grad``, in float32 and float64, the norm is
            folded into the weight if that has fewer values than the input.
        Accumulation and determinism of the norm: those of :func:`batch_norm_act`.
        Autocast: the convolution in the autocast dtype, the norm on its result with float32 parameters.
        torch.compile: runs ATen's convolution and gan_fast's norm.
    """
    return _conv_bn_act(
        f"conv{dims}d_bn_act", dims, False, input, weight, bias, stride, padding, 0, groups, dilation,
        running_mean, running_var, bn_weight, bn_bias, training, momentum, eps, activation, negative_slope,
    )  # fmt: skip


def conv_transposend_bn_act(
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    *,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    bn_weight: Tensor | None = None,
    bn_bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "leaky_relu",
    negative_slope: float = 0.01,
) -> Tensor:
    """Apply a transposed convolution, normalize each channel and apply an activation.

    The formula of :func:`convnd_bn_act`, with raw = conv_transposend(input, weight, bias, ...).

    Args:
        input: (N, C_in, *spatial), float64, float32, bfloat16 or float16, any strides.
        weight, bias, stride, padding, output_padding, groups, dilation: the arguments of :func:`conv_transposend`.
        running_mean, running_var: (C_out,), both or neither; required when ``training`` is False.
        bn_weight, bn_bias: (C_out,) or None (ones and zeros).
        training, momentum, eps, activation, negative_slope: the arguments of :func:`batch_norm_act`.

    Returns:
        (N, C_out, *spatial), with the strides of ATen's result.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: wrong shape, device, padding or output_padding, unknown activation, missing statistics, an input
            without a batch.

    Notes:
        Derivatives, memory, evaluation, accumulation, autocast and compilation: see :func:`convnd_bn_act`.
    """
    return _conv_bn_act(
        f"conv_transpose{dims}d_bn_act", dims, True, input, weight, bias, stride, padding, output_padding, groups,
        dilation, running_mean, running_var, bn_weight, bn_bias, training, momentum, eps, activation, negative_slope,
    )  # fmt: skip


conv1d_act, conv2d_act, conv3d_act = for_1d_2d_3d(convnd_act)
conv_transpose1d_act, conv_transpose2d_act, conv_transpose3d_act = for_1d_2d_3d(conv_transposend_act)
conv1d_bn_act, conv2d_bn_act, conv3d_bn_act = for_1d_2d_3d(convnd_bn_act)
conv_transpose1d_bn_act, conv_transpose2d_bn_act, conv_transpose3d_bn_act = for_1d_2d_3d(conv_transposend_bn_act)
