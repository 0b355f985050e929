"""ReLU and leaky ReLU whose second backward stops at the activation.

>>> import torch
>>> from gan_fast import ops
>>> ops.leaky_relu(torch.tensor([-1.0, 2.0]), 0.2)
tensor([-0.2000,  2.0000])
"""

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

# The blocks of csrc/cpu/leaky_relu.cpp: values per row and rows per block.
_LANES = _ROWS = 8


def _positive(signs: Tensor, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return the CPU kernel's sign bits as booleans; triton_kernels/leaky_relu.py has the same for Triton's."""
    rows = torch.arange(_ROWS)[:, None]
    return ((signs.view(-1, 1, _LANES) >> rows) & 1).bool().flatten().as_strided(shape, strides)


_native = SimpleNamespace(
    over=dispatch.kernel("leaky_relu_over"), backward=dispatch.kernel("leaky_relu_backward"), positive=_positive
)


def sign_kernels(device_type: str, in_triton: bool) -> Any:
    """Return the kernels that save one sign bit per value for the gradient of leaky_relu, or None without them.

    Both kinds have ``backward`` and ``positive``. The CPU's ``over`` overwrites its input with the activation and
    returns the bits. Triton's ``signs`` returns the bits of a given activation whose slope is not negative.
    """
    if in_triton:
        return backends.triton_module(OP)
    return _native if _has_signs(device_type) else None


@functools.cache
def _has_signs(device_type: str) -> bool:
    # Cached: convolutions call it several times, and asking the dispatcher takes longer than a small kernel.
    return extension.has_kernel("leaky_relu_over", device_type)


@per_sample.keeps_samples_apart
class LeakyReLU(torch.autograd.Function):
    """ATen's leaky_relu, which saves its input, or Triton's, which saves the input's signs."""

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
    """grad_output times 1 or, where the sign bit is not set, negative_slope: linear, so its own derivative."""

    @staticmethod
    def forward(
        ctx: Any, grad_output: Tensor, signs: Tensor, strides: tuple[int, ...], negative_slope: float, kernels: Any
    ) -> Tensor:
        ctx.save_for_backward(signs)
        ctx.strides, ctx.negative_slope, ctx.kernels = strides, negative_slope, kernels
        ctx.set_materialize_grads(False)
        if torch._C._functorch.is_legacy_batchedtensor(grad_output):
            # Batched gradients (is_grads_batched) have no storage for a kernel to read, so use ATen's ops.
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
    (saved,) = ctx.saved_tensors
    grad_input: Tensor = ReLUBackward.apply(grad_output, detach_unless_needed(saved, grad_output), ctx.negative_slope)
    return grad_input


def detach_unless_needed(saved: Tensor, grad_output: Tensor) -> Tensor:
    """Detach a saved input or result if the gradient depends on the graph through ``grad_output`` anyway.

    The derivative with respect to ``saved`` is zero, and detaching it spares autograd a pass with zeros through all
    earlier layers. If all later layers are frozen, that zero is the only thing that makes the gradient differentiable,
    and eager mode has it too.
    """
    return saved.detach() if grad_output.requires_grad or not torch.is_grad_enabled() else saved


@per_sample.keeps_samples_apart
class Rectified(torch.autograd.Function):
    """ATen's leaky_relu, or its relu if the slope is None, that saves its output and can overwrite its input."""

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
    """grad_output times 1 where ``saved`` is positive, elsewhere times negative_slope, or 0 if that is None.

    Linear in grad_output; the derivative with respect to ``saved`` is zero.
    """

    @staticmethod
    def forward(ctx: Any, grad_output: Tensor, saved: Tensor, negative_slope: float | None) -> Tensor:
        ctx.save_for_backward(saved)
        ctx.negative_slope = negative_slope
        ctx.set_materialize_grads(False)
        if negative_slope is None:
            return torch.ops.aten.threshold_backward(grad_output, saved, 0)
        return torch.ops.aten.leaky_relu_backward(grad_output, saved, negative_slope, False)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        # None, not zeros, if ``saved`` was detached: a penalty's second backward then skips the forward pass's nodes.
        zeros = None
        if ctx.needs_input_grad[1] and cotangent is not None:
            zeros = torch.zeros_like(cotangent)
        return _backward(ctx, cotangent), zeros, None


@per_sample.keeps_samples_apart
class DependOn(torch.autograd.Function):
    """Return ``grad`` as a function of ``other`` too, with derivative zero."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, other: Tensor) -> Tensor:
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
    # Where nothing may be measured, use Triton, which saves the fewest bytes for backward.
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
        or backends.is_small(input)
        or not backends.uses_kernel("relu", input.device.type, input.dtype)
    ):
        return torch.relu_(input) if negative_slope is None else F.leaky_relu_(input, negative_slope)
    return rectify_in_place(input, negative_slope)


def rectify_in_place(input: Tensor, negative_slope: float | None) -> Tensor:
    """Overwrite ``input`` by its leaky ReLU, or its ReLU if the slope is None; :class:`Rectified` where it can."""
    # torch refuses to overwrite some leaves and views before it writes; a Function would raise only afterwards. With a
    # negative slope the result does not have the sign of the input, and torch raises in the backward pass.
    if input.is_leaf or input._is_view() or (negative_slope is not None and negative_slope <= 0):
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
