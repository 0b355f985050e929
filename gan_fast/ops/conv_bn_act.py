"""Convolution and activation, with or without batch norm between them, as one op each, in 1 to 3 dims.

Between a forward and its backward a block keeps one tensor as large as its output. With a norm that is the raw output
of the convolution: the activation is computed again, also where it is the next block's input (ops/recompute.py).
Without one it is the activation, which is written over the raw output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from gan_fast import backends
from gan_fast.ops import activation as activations
from gan_fast.ops import autograd, checks
from gan_fast.ops.batch_norm_act import norm
from gan_fast.ops.conv import convolve
from gan_fast.ops.leaky_relu import LeakyReLU, ReLUInPlace
from gan_fast.ops.twins import of_dims

for _kind in ("", "_transpose"):
    for _dims in (1, 2, 3):
        backends.register(f"conv{_kind}{_dims}d_act", None)
        backends.register(f"conv{_kind}{_dims}d_bn_act", "batch_norm_act_forward")


def activate(output: Tensor, activation: str, negative_slope: float) -> Tensor:
    """Apply an activation over ``output`` itself, which only a convolution of ours has seen."""
    if backends.small(output):
        return activations.apply_over(output, activation, negative_slope)
    if autograd.captured() or not backends.native("leaky_relu", output.device.type):
        return activations.apply(output, activation, negative_slope)
    if activation not in ("relu", "leaky_relu"):
        return activations.apply_over(output, activation, negative_slope)
    if activation == "relu":
        result: Tensor = ReLUInPlace.apply(output, None)
    elif negative_slope >= 0:
        result = ReLUInPlace.apply(output, negative_slope)
    else:
        # The sign of the output no longer tells that of the input.
        result = LeakyReLU.apply(output, negative_slope)
    return result


def _then_act(op: str, activation: str, negative_slope: float) -> Callable[[Tensor], Tensor]:
    checks.one_of(op, "activation", activation, activations.NAMES)
    return lambda output: activate(output, activation, negative_slope)


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
) -> Tensor:
    """Convolve and apply an activation: ``activation(convnd(input, weight, bias, ...))``.

    Args:
        input, weight, bias, stride, padding, dilation, groups: as :func:`convnd`.
        activation: "identity", "relu", "leaky_relu", "tanh" or "sigmoid".
        negative_slope: slope of "leaky_relu" below zero; unused by the others.

    Returns:
        (N, C_out, *space), with the strides that ATen gives.

    Raises:
        TypeError, ValueError: as :func:`convnd`; another activation.

    Notes:
        Derivatives: of any order; relu and leaky_relu have none by their input from the second on: ATen has zeros.
        Memory: backward keeps input and output; the activation is written over the convolution's output (but for a
        leaky_relu of a slope below zero).
        Under autocast: in its dtype. Under torch.compile, torch.jit.trace and functorch: ATen's ops and their checks.
    """
    op = f"conv{dims}d_act"
    then = _then_act(op, activation, negative_slope)
    return convolve(op, dims, False, input, weight, bias, stride, padding, 0, groups, dilation, then)


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
) -> Tensor:
    """Convolve transposed and apply an activation: ``activation(conv_transposend(input, weight, bias, ...))``.

    Args:
        input, weight, bias, stride, padding, output_padding, groups, dilation: as :func:`conv_transposend`.
        activation, negative_slope: as :func:`convnd_act`.

    Returns:
        (N, C_out, *space), with the strides that ATen gives.

    Raises:
        TypeError, ValueError: as :func:`conv_transposend`; another activation.

    Notes:
        As :func:`convnd_act`.
    """
    op = f"conv_transpose{dims}d_act"
    then = _then_act(op, activation, negative_slope)
    return convolve(op, dims, True, input, weight, bias, stride, padding, output_padding, groups, dilation, then)


def _then_bn_act(
    op: str,
    dims: int,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    activation: str,
    negative_slope: float,
) -> Callable[[Tensor], Tensor]:
    checks.one_of(op, "activation", activation, activations.NAMES)
    if checks.tensor(op, "input", input).dim() != dims + 2:
        raise ValueError(f"{op}: expected input dimensions {dims + 2} (N, C_in, ...), got shape {tuple(input.shape)}")

    def then(output: Tensor) -> Tensor:
        return norm(
            op, "bn_", output, running_mean, running_var, bn_weight, bn_bias, training, momentum, eps, activation,
            negative_slope,
        )  # fmt: skip

    return then


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
        where it is the input of another convolution of ours. It is kept all the same under saved-tensor hooks
        (checkpointing, offloading) and for consumers that are not ours.
        Accumulation, determinism of the norm: as :func:`batch_norm_act`.
        Under autocast: the convolution in its dtype, the norm in that of the result beside float32 parameters.
        Under torch.compile: ATen's convolution and our norm.
    """
    op = f"conv{dims}d_bn_act"
    then = _then_bn_act(
        op, dims, input, running_mean, running_var, bn_weight, bn_bias, training, momentum, eps, activation,
        negative_slope,
    )  # fmt: skip
    return convolve(op, dims, False, input, weight, bias, stride, padding, 0, groups, dilation, then)


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
    op = f"conv_transpose{dims}d_bn_act"
    then = _then_bn_act(
        op, dims, input, running_mean, running_var, bn_weight, bn_bias, training, momentum, eps, activation,
        negative_slope,
    )  # fmt: skip
    return convolve(op, dims, True, input, weight, bias, stride, padding, output_padding, groups, dilation, then)


conv1d_act, conv2d_act, conv3d_act = of_dims(convnd_act)
conv_transpose1d_act, conv_transpose2d_act, conv_transpose3d_act = of_dims(conv_transposend_act)
conv1d_bn_act, conv2d_bn_act, conv3d_bn_act = of_dims(convnd_bn_act)
conv_transpose1d_bn_act, conv_transpose2d_bn_act, conv_transpose3d_bn_act = of_dims(conv_transposend_bn_act)
