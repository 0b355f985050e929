"""Minibatch discrimination: how close each sample is to the others, without a tensor of all pairs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from gan_fast import backends
from gan_fast.ops import checks, dispatch

OP = "minibatch_discrimination"
backends.register(OP, "minibatch_discrimination_forward", triton_file=OP)

_native = SimpleNamespace(
    forward=dispatch.kernel("minibatch_discrimination_forward"),
    backward=dispatch.kernel("minibatch_discrimination_backward"),
    double_backward=dispatch.kernel("minibatch_discrimination_double_backward"),
)


def _kernels(projected: Tensor) -> Any:
    """What serves: functions of the native ops' names and signatures."""
    return backends.triton_kernels(OP, projected) or _native


def reference(projected: Tensor) -> Tensor:
    """The same on plain ATen, with the tensor of all pairs: (N, B, C) to (N, B)."""
    x = projected.float() if projected.dtype.itemsize == 2 else projected
    distance = (x.unsqueeze(0) - x.unsqueeze(1)).abs().sum(3)
    # Not itself: at a distance without end neither the sum nor a gradient has anything of it.
    itself = torch.eye(x.size(0), dtype=torch.bool, device=x.device).unsqueeze(2)
    return torch.exp(-distance.masked_fill(itself, float("inf"))).sum(1).to(projected.dtype)


class MinibatchDiscrimination(torch.autograd.Function):
    """torch.ops.gan_fast.minibatch_discrimination_forward."""

    @staticmethod
    def forward(ctx: Any, projected: Tensor) -> Tensor:
        ctx.save_for_backward(projected)
        ctx.set_materialize_grads(False)
        ctx.kernels = _kernels(projected)
        output: Tensor = ctx.kernels.forward(projected)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> Tensor | None:
        if grad_output is None:
            return None
        (projected,) = ctx.saved_tensors
        grad: Tensor
        # A node of its own only where somebody will differentiate again.
        if dispatch.records_graph("minibatch_discrimination_backward", grad_output):
            grad = MinibatchDiscriminationBackward.apply(grad_output, projected, ctx.kernels)
        else:
            # The dispatcher takes a batch of gradients apart.
            batched = torch._C._functorch.is_legacy_batchedtensor(grad_output)
            grad = (_native if batched else ctx.kernels).backward(grad_output, projected)
        return grad


class MinibatchDiscriminationBackward(torch.autograd.Function):
    """grad_i = sum over j of -exp(-|x_i - x_j|_1) (grad_output_i + grad_output_j) sign(x_i - x_j)."""

    @staticmethod
    def forward(ctx: Any, grad_output: Tensor, projected: Tensor, kernels: Any = None) -> Tensor:
        ctx.kernels = kernels or _kernels(projected)
        ctx.save_for_backward(grad_output, projected)
        ctx.set_materialize_grads(False)
        grad: Tensor = ctx.kernels.backward(grad_output, projected)
        return grad

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor | None) -> tuple[Tensor | None, ...]:
        if cotangent is None:
            return None, None, None
        grad_output, projected = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *dispatch.differentiate_reference(reference, (projected,), grad_output, (cotangent,)), None
        return *ctx.kernels.double_backward(cotangent, grad_output, projected), None


def _forward_fake(projected: Tensor) -> Tensor:
    return projected.new_empty(projected.shape[:2])


def _backward_fake(grad_output: Tensor, projected: Tensor) -> Tensor:
    return torch.empty_like(projected, memory_format=torch.contiguous_format)


def _double_backward_fake(cotangent: Tensor, grad_output: Tensor, projected: Tensor) -> tuple[Tensor, Tensor]:
    return _forward_fake(projected), _backward_fake(grad_output, projected)


for _name in ("forward", "backward", "double_backward"):
    dispatch.register_triton(f"minibatch_discrimination_{_name}", OP, _name)
dispatch.register("minibatch_discrimination_forward", MinibatchDiscrimination.apply, _forward_fake)
dispatch.register("minibatch_discrimination_backward", MinibatchDiscriminationBackward.apply, _backward_fake)
dispatch.register(
    "minibatch_discrimination_double_backward",
    dispatch.without_derivative("minibatch_discrimination_double_backward"),
    _double_backward_fake,
)


def minibatch_discrimination(input: Tensor, weight: Tensor) -> Tensor:
    """Append to each sample how close it is to the others of its batch, by ``out_features`` learned measures.

    M_n = input_n weight, (B, C); o_n,b = sum over m != n of exp(-||M_n,b - M_m,b||_1); output = cat([input, o], 1).

    Args:
        input: (N, in_features), float64, float32, bfloat16 or float16, any strides.
        weight: (in_features, out_features, kernel_dims) = (A, B, C), same dtype and device.

    Returns:
        Tensor (N, in_features + out_features) of input's dtype.

    Raises:
        TypeError: wrong type or dtype, or two dtypes.
        ValueError: wrong shape, or two devices.

    Notes:
        Derivatives: first and second by kernels, higher ones through ATen. At M_n,b,c = M_m,b,c the distance has the
            gradient zero, as ATen's abs.
        Memory: backward keeps M alone, (N, B, C); pairs are computed again, where the formula in ATen keeps their
            differences, (N, N, B, C).
        Accumulation: float64; deterministic for any number of threads and any CPU instruction set, but for the product.
        Autocast: the product in autocast's dtype, as ``torch.mm``; all after it in float32.
        One sample has no others: zeros. No samples: an empty result.
        Backends: native CPU kernel; on a GPU the quicker of Triton's, which has no float64 and sums in float32, and the
            reference; the reference elsewhere and under functorch transforms.

    Source: Salimans et al., Improved Techniques for Training GANs, 2016 (arXiv 1606.03498), section 3.2; a sample is
    not compared with itself, as in the authors' code.
    """
    checks.floating(OP, "input", input)
    checks.floating(OP, "weight", weight)
    if input.dim() != 2:
        raise ValueError(f"{OP}: expected input dimensions 2 (N, in_features), got shape {tuple(input.shape)}")
    if weight.dim() != 3 or weight.size(0) != input.size(1):
        wanted = f"({input.size(1)}, out_features, kernel_dims)"
        raise ValueError(f"{OP}: expected weight shape {wanted}, got {tuple(weight.shape)}")
    checks.same_device(OP, "weight", weight, "input", input)
    device = input.device.type
    autocast = dispatch.is_autocast_enabled(device)
    if weight.dtype != input.dtype and not autocast:
        raise TypeError(
            f"{OP}: expected weight dtype {checks.name_of(input.dtype)} as input, got {checks.name_of(weight.dtype)}"
        )
    projected = torch.mm(input, weight.flatten(1)).view(input.size(0), *weight.shape[1:])
    if autocast and projected.dtype.itemsize == 2:
        projected = projected.float()
    if torch.jit.is_tracing():
        # A trace holds ATen's ops.
        closeness = reference(projected)
    else:
        closeness = backends.call_fastest(
            OP, _serve, (projected,), lambda: _shape_class(projected), unmeasured="triton"
        )
    return torch.cat([input, closeness], 1)


def _shape_class(projected: Tensor) -> tuple[str, ...]:
    """What the time depends on, sizes to a power of two."""
    sizes = (
        f"2^{size.bit_length()} {name}" for size, name in zip(projected.shape, ("samples", "kernels", "components"))
    )
    return (checks.name_of(projected.dtype), *sizes)


def _serve(projected: Tensor) -> Tensor:
    if not backends.uses_kernel(OP, projected.device.type, projected.dtype):
        return reference(projected)
    output: Tensor
    if torch.compiler.is_compiling():
        output = torch.ops.gan_fast.minibatch_discrimination_forward(projected)
    else:
        output = MinibatchDiscrimination.apply(projected)
    return output
