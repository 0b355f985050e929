"""ReLU and leaky ReLU whose second backward ends where ATen's goes on with zeros."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_fast import backends, extension
from gan_fast.ops import checks, dispatch, per_sample

OP = "leaky_relu"
backends.register(OP, None, triton_file=OP, aten_when_small=True)
backends.register("relu", None, aten_when_small=True)

# Values of a row, and rows of a block, of csrc/cpu/leaky_relu.cpp.
_LANES = _ROWS = 8


def _positive(signs: Tensor, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The sign bits of the CPU kernel as booleans, as triton_kernels/leaky_relu.py has them of its own."""
    rows = torch.arange(_ROWS)[:, None]
    return ((signs.view(-1, 1, _LANES) >> rows) & 1).bool().flatten().as_strided(shape, strides)


_native = SimpleNamespace(
    over=dispatch.kernel("leaky_relu_over"), backward=dispatch.kernel("leaky_relu_backward"), positive=_positive
)


def sign_kernels(device_type: str, in_triton: bool) -> Any:
    """Kernels that keep one sign bit a value for the gradient of leaky_relu; None where there are none.

    Both kinds have ``backward`` and ``positive``. The CPU's ``over`` writes the activation over its input and returns
    the bits; Triton's ``signs`` returns those of an activation that is there, for a slope of at least zero.
    """
    if in_triton:
        return backends.triton_module(OP)
    return _native if _has_signs(device_type) else None


@functools.cache
def _has_signs(device_type: str) -> bool:
    # Read several times in each call of a convolution: the dispatcher's answer takes longer than a small kernel.
    return extension.has_kernel("leaky_relu_over", device_type)


@per_sample.keeps_samples_apart
class LeakyReLU(torch.autograd.Function):
    """aten::leaky_relu, which keeps its input, or Triton's, which keeps the signs of it."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, negative_slope: float) -> Tensor:
        ctx.kernels = backends.triton_kernels(OP, input)
        ctx.negative_slope = negative_slope
        ctx.set_materialize_grads(False)
        if ctx.kernels is None:
            ctx.save_for_backward(input)
            return F.leaky_relu(input, negative_slope)
        output: Tensor
        output, signs = ctx.kernels.forward(input, negative_slope, ctx.needs_input_grad[0])
        ctx.save_for_backward(signs)
        ctx.strides = output.stride()
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple[Tensor | None, None]:
        return _backward(ctx, grad_output) if ctx.kernels is None else _backward_by_signs(ctx, grad_output), None


def _backward_by_signs(ctx: Any, grad_output: Tensor | None) -> Tensor | None:
    if grad_output is None:
        return None
    dispatch.records_graph("leaky_relu_backward", grad_output)
    (signs,) = ctx.saved_tensors
    grad_input: Tensor = BackwardBySigns.apply(grad_output, signs, ctx.strides, ctx.negative_slope, ctx.kernels)
    return grad_input


class BackwardBySigns(torch.autograd.Function):
    """grad_output where a sign is set, elsewhere negative_slope times that: linear, so its own derivative."""

    @staticmethod
    def forward(
        ctx: Any, grad_output: Tensor, signs: Tensor, strides: tuple[int, ...], negative_slope: float, kernels: Any
    ) -> Tensor:
        ctx.save_for_backward(signs)
        ctx.strides, ctx.negative_slope, ctx.kernels = strides, negative_slope, kernels
        ctx.set_materialize_grads(False)
        if torch._C._functorch.is_legacy_batchedtensor(grad_output):
            # A batch of gradients (is_grads_batched) has no storage that a kernel could read, but ATen's ops take it.
            positive = kernels.positive(signs, grad_output.shape, strides, grad_output.dtype)
            return torch.where(positive, grad_output, grad_output * negative_slope)
        grad_input: Tensor = kernels.backward(grad_output, signs, strides, negative_slope)
        return grad_input

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor | None) -> tuple[Tensor | None, ...]:
        return _backward_by_signs(ctx, cotangent), None, None, None, None


def _backward(ctx: Any, grad_output: Tensor | None) -> Tensor | None:
    if grad_output is None:
        return None
    dispatch.records_graph("leaky_relu_backward", grad_output)
    (kept,) = ctx.saved_tensors
    grad_input: Tensor = ReLUBackward.apply(grad_output, flat(kept, grad_output), ctx.negative_slope)
    return grad_input


def flat(kept: Tensor, grad_output: Tensor) -> Tensor:
    """What was kept, out of the graph where a gradient has another place in it.

    The derivative by it is zero. With layers before that require a gradient, the walk back need not pay for zeros;
    behind frozen layers alone the zeros are what makes a gradient differentiable, as in eager.
    """
    return kept.detach() if grad_output.requires_grad or not torch.is_grad_enabled() else kept


@per_sample.keeps_samples_apart
class Rectified(torch.autograd.Function):
    """aten::relu, for no slope, or leaky_relu, which keep their output; also written over their input."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, negative_slope: float | None, in_place: bool) -> Tensor:
        if in_place:
            ctx.mark_dirty(input)
            output = torch.relu_(input) if negative_slope is None else F.leaky_relu_(input, negative_slope)
        else:
            output = torch.relu(input) if negative_slope is None else F.leaky_relu(input, negative_slope)
        ctx.save_for_backward(output)
        ctx.negative_slope = negative_slope
        ctx.set_materialize_grads(False)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple[Tensor | None, None, None]:
        return _backward(ctx, grad_output), None, None


class ReLUBackward(torch.autograd.Function):
    """grad_output where ``kept`` is above zero, elsewhere negative_slope times that or, for None, relu's zero.

    Linear in grad_output, flat in the other.
    """

    @staticmethod
    def forward(ctx: Any, grad_output: Tensor, kept: Tensor, negative_slope: float | None) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.negative_slope = negative_slope
        ctx.set_materialize_grads(False)
        if negative_slope is None:
            return torch.ops.aten.threshold_backward(grad_output, kept, 0)
        return torch.ops.aten.leaky_relu_backward(grad_output, kept, negative_slope, False)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        # None by what was kept, where it is out of the graph: a penalty's second backward then does not walk the first
        # forward again.
        zeros = None
        if ctx.needs_input_grad[1] and cotangent is not None:
            zeros = torch.zeros_like(cotangent)
        return _backward(ctx, cotangent), zeros, None


@per_sample.keeps_samples_apart
class DependOn(torch.autograd.Function):
    """A gradient that depends on ``place`` with a derivative of zero."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, place: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        return cotangent, None if cotangent is None else torch.zeros_like(cotangent)


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """Return input where it is above zero, negative_slope * input elsewhere.

    Args:
        input: any shape and strides, float64, float32, bfloat16 or float16.
        negative_slope: slope below zero; 0 is ReLU.
        inplace: write the result over ``input`` and return it, as ``F.leaky_relu`` does.

    Returns:
        Tensor of input's shape, dtype and strides, as from ``F.leaky_relu``.

    Raises:
        TypeError: ``input`` is not a tensor of one of those dtypes; ``negative_slope`` is not a number.
        RuntimeError: ``inplace`` on a leaf that requires grad, or on another tensor that torch refuses to overwrite; a
            negative slope with ``inplace``, in the backward pass; ``inplace`` on the Triton backend.

    Notes:
        Derivatives: of any order. The second backward returns None for ``input``, not ATen's zeros, so that autograd
            does not backpropagate zeros through all earlier layers. It returns zeros where the incoming gradient does
            not require grad (all later layers are frozen), and in place on a view.
        Values, NaN and infinities: as in ATen.
        Memory: saves the input for backward, or one bit per value with the Triton kernel, and then the input may change
            in place. With ``inplace`` it saves the result.
        Backends: ATen's kernels on a CPU and in place; on a GPU the faster of ATen's and Triton's (not for float64).
    """
    if checks.is_for_torch(OP, input):
        return F.leaky_relu(input, negative_slope, inplace)
    checks.floating(OP, "input", input)
    if not isinstance(negative_slope, (int, float)):
        raise TypeError(f"{OP}: expected negative_slope type float, got {type(negative_slope).__name__}")
    if inplace:
        return _in_place(OP, input, negative_slope)
    if backends.is_small(input) or dispatch.is_traced():
        return F.leaky_relu(input, negative_slope)
    # Unmeasured: Triton, which saves the least memory.
    result: Tensor = backends.call_fastest(
        OP, _leaky_relu, (input, negative_slope),
        lambda: (checks.name_of(input.dtype), f"2^{input.numel().bit_length()} values"), unmeasured="triton",
    )  # fmt: skip
    return result


def _leaky_relu(input: Tensor, negative_slope: float) -> Tensor:
    if not backends.uses_kernel(OP, input.device.type, input.dtype):
        return F.leaky_relu(input, negative_slope)
    output: Tensor = LeakyReLU.apply(input, negative_slope)
    return output


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """Return input where it is above zero, zero elsewhere.

    Args:
        input: any shape and strides, float64, float32, bfloat16 or float16.
        inplace: write the result over ``input`` and return it, as ``F.relu`` does.

    Returns:
        Tensor of input's shape, dtype and strides, as from ``F.relu``.

    Raises:
        TypeError: ``input`` is not a tensor of one of those dtypes.
        RuntimeError: ``inplace`` on a leaf that requires grad, or on another tensor that torch refuses to overwrite.

    Notes:
        Derivatives: of any order. The second backward returns None for ``input``, not ATen's zeros, so that autograd
            does not backpropagate zeros through all earlier layers. It returns zeros where the incoming gradient does
            not require grad (all later layers are frozen), and in place on a view.
        Values, NaN and infinities: as in ATen, whose kernels run on every device.
        Memory: saves the result for backward.
    """
    if checks.is_for_torch("relu", input):
        return F.relu(input, inplace)
    checks.floating("relu", "input", input)
    if inplace:
        return _in_place("relu", input, None)
    if (
        backends.is_small(input)
        or dispatch.is_traced()
        or not backends.uses_kernel("relu", input.device.type, input.dtype)
    ):
        return F.relu(input)
    output: Tensor = Rectified.apply(input, None, False)
    return output


def _in_place(op: str, input: Tensor, negative_slope: float | None) -> Tensor:
    if op == OP and backends.requested() == "triton":
        raise RuntimeError(f"{OP}: expected inplace False for backend triton, which has no in-place kernel, got True")
    if (
        dispatch.is_traced()
        # torch rejects some leaves and views before it writes to them; a Function would raise after.
        or input.is_leaf
        or input._is_view()
        or (negative_slope is not None and negative_slope <= 0)
        or backends.is_small(input)
        or not backends.uses_kernel("relu", input.device.type, input.dtype)
    ):
        return torch.relu_(input) if negative_slope is None else F.leaky_relu_(input, negative_slope)
    output: Tensor = Rectified.apply(input, negative_slope, True)
    return output


def _over_fake(input: Tensor, negative_slope: float) -> Tensor:
    block = _ROWS * _LANES
    return input.new_empty((input.numel() + block - 1) // block * _LANES, dtype=torch.uint8)


def _backward_fake(grad_output: Tensor, signs: Tensor, stride: Sequence[int], negative_slope: float) -> Tensor:
    return grad_output.new_empty_strided(grad_output.shape, tuple(stride))


dispatch.register("leaky_relu_over", dispatch.without_derivative("leaky_relu_over"), _over_fake)
dispatch.register("leaky_relu_backward", dispatch.without_derivative("leaky_relu_backward"), _backward_fake)
