"""Minibatch discrimination: features that measure how close a sample is to the others of its batch.

>>> import torch
>>> from gan_fast import ops
>>> samples = torch.tensor([[0.0], [0.0], [9.0]])
>>> ops.minibatch_discrimination(samples, torch.ones(1, 1, 1))[:, 1].round().tolist()
[1.0, 1.0, 0.0]
"""

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
    """The kernels for ``projected``, with the signatures of the ops of the same names."""
    return backends.triton_kernels(OP, projected) or _native


def reference(projected: Tensor) -> Tensor:
    """(N, B, C) to (N, B) in plain ATen, with a tensor of all pairs."""
    x = projected.float() if projected.dtype.itemsize == 2 else projected
    distance = (x.unsqueeze(0) - x.unsqueeze(1)).abs().sum(3)
    # Excludes each sample's distance to itself: an infinite distance adds nothing to the sum or to a gradient.
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
        if dispatch.records_graph("minibatch_discrimination_backward", grad_output):
            grad = MinibatchDiscriminationBackward.apply(grad_output, projected, ctx.kernels)
        else:
            # A batch of gradients must pass the dispatcher, which splits it.
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
    """Append to each sample ``out_features`` learned measures of its closeness to the other samples of the batch.

    M_n = input_n weight, of shape (B, C);  o_n,b = sum over m != n of exp(-||M_n,b - M_m,b||_1);
    output = cat([input, o], 1).

    Args:
        input: (N, in_features), float64, float32, bfloat16 or float16, any strides.
        weight: (in_features, out_features, kernel_dims) = (A, B, C), dtype and device of ``input``.

    Returns:
        Tensor (N, in_features + out_features) of the dtype of ``input``.

    Raises:
        TypeError: a wrong type or dtype, or two dtypes.
        ValueError: a wrong shape, or two devices.

    Notes:
        Derivatives: of any order; the first and second from kernels, higher ones from ATen. At M_n,b,c = M_m,b,c the
            distance has gradient zero, like ATen's abs.
        Memory: backward keeps only M, (N, B, C), and computes the pairs again; the formula in ATen keeps all
            differences, (N, N, B, C).
        Accumulation: float64, except in the product input weight; deterministic for any number of threads and any CPU
            instruction set. Triton sums in float32.
        Autocast: the product in autocast's dtype, like ``torch.mm``; everything after it in float32.
        A batch of one sample gets zeros; an empty batch gives an empty result.
        Backends: a CPU kernel; on a GPU the faster of Triton (not for float64) and ATen; ATen elsewhere and under
            functorch transforms.

    Source: Salimans et al., Improved Techniques for Training GANs, 2016 (arXiv 1606.03498), section 3.2. A sample is
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
        want, have = checks.name_of(input.dtype), checks.name_of(weight.dtype)
        raise TypeError(f"{OP}: expected weight dtype {want} to match input, got {have}")
    projected = torch.mm(input, weight.flatten(1)).view(input.size(0), *weight.shape[1:])
    if autocast and projected.dtype.itemsize == 2:
        projected = projected.float()
    if torch.jit.is_tracing():
        # A trace must contain ATen's ops.
        closeness = reference(projected)
    else:
        closeness = backends.call_fastest(OP, _run, (projected,), lambda: _shape_class(projected), unmeasured="triton")
    return torch.cat([input, closeness], 1)


def _shape_class(projected: Tensor) -> tuple[str, ...]:
    """What the running time depends on, with sizes rounded to a power of two."""
    sizes = (
        f"2^{size.bit_length()} {name}" for size, name in zip(projected.shape, ("samples", "kernels", "components"))
    )
    return (checks.name_of(projected.dtype), *sizes)


def _run(projected: Tensor) -> Tensor:
    if not backends.uses_kernel(OP, projected.device.type, projected.dtype):
        return reference(projected)
    output: Tensor
    if torch.compiler.is_compiling():
        output = torch.ops.gan_fast.minibatch_discrimination_forward(projected)
    else:
        output = MinibatchDiscrimination.apply(projected)
    return output
