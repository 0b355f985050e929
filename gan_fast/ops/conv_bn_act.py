"""Convolution and activation, with or without batch norm between them, as one op each, in 1 to 3 dims.

Between a forward and its backward a block keeps one tensor as large as its output. With a norm that is the raw output
of the convolution: the activation is computed again, also where it is the next block's input (ops/recompute.py).
Without one it is the activation, which is written over the raw output; of leaky_relu it is one sign bit a value.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gan_fast import backends
from gan_fast.ops import activation as activations
from gan_fast.ops import checks, dispatch
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
        input, weight, bias, stride, padding, dilation, groups: as :func:`convnd`.
        activation: "identity", "relu", "leaky_relu", "tanh" or "sigmoid".
        negative_slope: slope of "leaky_relu" below zero; unused by the others.
        memory_format: of the output, which needs a batch dim if it is channels-last; None: the one that ATen gives.

    Returns:
        (N, C_out, *space), with the strides that ATen gives.

    Raises:
        TypeError, ValueError: as :func:`convnd`; another activation or memory format.

    Notes:
        Derivatives: of any order; relu and leaky_relu have none by their input from the second on, where ATen has
            zeros, unless no layer behind them requires a gradient (a frozen critic): then zeros as well.
        Memory: the activation is written over the convolution's output. Backward keeps the input, and of relu, tanh and
        sigmoid the result, which then must not be written to, as in eager. Of leaky_relu it keeps one sign bit a value,
        so that the result may be written to, as with ``F.leaky_relu``. Without a kernel for the bits (another device,
        or in Triton a slope below zero) leaky_relu is a node of its own: see :func:`gan_fast.ops.leaky_relu`.
        Under autocast: in its dtype. Under torch.compile, torch.jit.trace and functorch: ATen's ops and their checks.
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
    activation: str = "tanh",
    negative_slope: float = 0.01,
    *,
    memory_format: torch.memory_format | None = None,
) -> Tensor:
    """Convolve transposed and apply an activation: ``activation(conv_transposend(input, weight, ...))``.

    Args:
        input, weight, bias, stride, padding, output_padding, groups, dilation: as :func:`conv_transposend`.
        activation, negative_slope, memory_format: as :func:`convnd_act`.

    Returns:
        (N, C_out, *space), with the strides that ATen gives.

    Raises:
        TypeError, ValueError: as :func:`conv_transposend`; another activation.

    Notes:
        As :func:`convnd_act`.
    """
    op = f"conv_transpose{dims}d_act"
    epilogue = _activation(op, activation, negative_slope, memory_format)
    return convolve(op, dims, True, input, weight, bias, stride, padding, output_padding, groups, dilation, epilogue)


def may_fold(input: Tensor) -> bool:
    """What :func:`fold` asks first: nobody differentiates, and there is enough to save a pass over."""
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
    """Return weight and bias of the convolution that is the given one and an evaluation-mode norm after it.

    None where that is no quicker or not the same: where somebody differentiates; in half precision, since a weight
    would be rounded once more; where there is more weight to scale than there are values to save a pass over. What is
    wrong with the arguments is left to the usual way to say.
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
        raise ValueError(f"{op}: expected input dimensions {dims + 2} (N, C_in, ...), got shape {tuple(input.shape)}")
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
    """Convolve, normalise each channel and apply an activation.

    raw = convnd(input, weight, bias, ...); mean, var = running_mean, running_var, or in training raw's over
    (N, *space), var biased; z = (raw - mean) / sqrt(var + eps) * bn_weight + bn_bias; output = activation(z).

    Args:
        input: (N, C_in, *space); it and the others before the star as :func:`convnd`.
        running_mean, running_var, bn_weight, bn_bias, training, momentum, eps, activation, negative_slope: as
            :func:`batch_norm_act`; the tensors are (C_out,).

    Returns:
        (N, C_out, *space), with the strides that ATen gives.

    Raises:
        TypeError, ValueError: as :func:`convnd` and :func:`batch_norm_act`; an input without a batch.

    Notes:
        Derivatives: of any order, as :func:`convnd` and :func:`batch_norm_act`.
        Memory: backward keeps the raw output of the convolution and two vectors; the activation is computed again, also
        where it is the input of another convolution of ours (which then does not see what was written to it through
        ``.data``). It is kept all the same under saved-tensor hooks
        (checkpointing, offloading) and for consumers that are not ours.
        Evaluation: one pass for norm and activation; under ``torch.no_grad`` the norm is folded into the weight where
        there is less of that than of the input, in float32 and float64.
        Accumulation, determinism of the norm: as :func:`batch_norm_act`.
        Under autocast: the convolution in its dtype, the norm in that of the result beside float32 parameters.
        Under torch.compile: ATen's convolution and our norm.
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
    """Convolve transposed, normalise each channel and apply an activation; see :func:`convnd_bn_act`.

    Args:
        input, weight, bias, stride, padding, output_padding, groups, dilation: as :func:`conv_transposend`.
        running_mean, running_var, bn_weight, bn_bias, training, momentum, eps, activation, negative_slope: as
            :func:`convnd_bn_act`.

    Returns:
        (N, C_out, *space), with the strides that ATen gives.

    Raises:
        TypeError, ValueError: as :func:`conv_transposend` and :func:`batch_norm_act`; an input without a batch.

    Notes:
        As :func:`convnd_bn_act`.
    """
    return _conv_bn_act(
        f"conv_transpose{dims}d_bn_act", dims, True, input, weight, bias, stride, padding, output_padding, groups,
        dilation, running_mean, running_var, bn_weight, bn_bias, training, momentum, eps, activation, negative_slope,
    )  # fmt: skip


conv1d_act, conv2d_act, conv3d_act = for_1d_2d_3d(convnd_act)
conv_transpose1d_act, conv_transpose2d_act, conv_transpose3d_act = for_1d_2d_3d(conv_transposend_act)
conv1d_bn_act, conv2d_bn_act, conv3d_bn_act = for_1d_2d_3d(convnd_bn_act)
conv_transpose1d_bn_act, conv_transpose2d_bn_act, conv_transpose3d_bn_act = for_1d_2d_3d(conv_transposend_bn_act)
