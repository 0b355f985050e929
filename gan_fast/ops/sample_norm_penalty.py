"""How far norms of samples lie from a center, squared and averaged: what gradient penalties end in, in one kernel."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from gan_fast import backends
from gan_fast.ops import checks, dispatch

OP = "sample_norm_penalty"
backends.register(OP, f"{OP}_forward", triton_file=OP)

_native = SimpleNamespace(forward=dispatch.kernel(f"{OP}_forward"), backward=dispatch.kernel(f"{OP}_backward"))


def _kernels(input: Tensor) -> Any:
    """What serves: functions of the native ops' names and signatures."""
    return backends.triton_kernels(OP, input) or _native


def _result_dtype(input: Tensor) -> torch.dtype:
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def _norms_and_deviations(values: Tensor, center: float) -> tuple[Tensor, Tensor]:
    """||values_n||_2 without gradient and (||values_n||_2 - center)^2, whose derivatives know no NaN at zero."""
    squares = values.reshape(*values.shape, 1).square().sum(tuple(range(1, values.dim() + 1)))
    norms = squares.detach().sqrt()
    if center == 0:
        return norms, squares
    # A root has no derivative at zero, and NaN times zero would be NaN: those roots are of ones that nobody reads.
    there = norms != 0
    roots = torch.where(there, torch.where(there, squares, 1).sqrt(), 0)
    return norms, (roots - center).square()


def reference(
    input: Tensor, coefficients: Tensor | None, center: float, scale: float, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """The same on plain ATen, in ``dtype`` or, where there is none, in that of the results."""
    norms, deviations = _norms_and_deviations(input.to(dtype or _result_dtype(input)), center)
    if coefficients is not None:
        deviations = deviations * coefficients.to(deviations.dtype)
    return deviations.mean() * scale, norms


class SampleNormPenalty(torch.autograd.Function):
    """Both outputs of torch.ops.gan_fast.sample_norm_penalty_forward; the penalty alone has a gradient."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, coefficients: Tensor | None, center: float, scale: float
    ) -> tuple[Tensor, Tensor]:
        ctx.kernels = _kernels(input)
        penalty, norms = ctx.kernels.forward(input, coefficients, center, scale)
        ctx.save_for_backward(input, coefficients, norms)
        ctx.options = (center, scale)
        ctx.mark_non_differentiable(norms)
        ctx.set_materialize_grads(False)
        return penalty, norms

    @staticmethod
    def backward(ctx: Any, grad_penalty: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_penalty is None:
            return (None,) * 4
        input, coefficients, norms = ctx.saved_tensors
        center, scale = ctx.options
        arguments = (grad_penalty, input, norms, coefficients, center, scale)
        wanted = dispatch.grads_needed(ctx, 2)
        if dispatch.records_graph(f"{OP}_backward", grad_penalty):
            # A node of its own only where somebody will differentiate again.
            by_input, by_coefficients = SampleNormPenaltyBackward.apply(*arguments, *wanted, ctx.kernels)
        else:
            # The dispatcher takes a batch of gradients apart.
            batched = torch._C._functorch.is_legacy_batchedtensor(grad_penalty)
            by_input, by_coefficients = _gradients(_native if batched else ctx.kernels, *arguments, *wanted)
        return by_input, by_coefficients, None, None


def _gradients(
    kernels: Any,
    grad_penalty: Tensor,
    input: Tensor,
    norms: Tensor,
    coefficients: Tensor | None,
    center: float,
    scale: float,
    input_wanted: bool,
    coefficients_wanted: bool,
) -> tuple[Tensor | None, Tensor | None]:
    by_input: Tensor | None = None
    by_coefficients: Tensor | None = None
    if input_wanted:
        by_input = kernels.backward(grad_penalty, input, norms, coefficients, center, scale)
    if coefficients_wanted:
        # N numbers: ATen's, in float64.
        unit = (norms.double() - center).square() * (scale / max(input.size(0), 1))
        by_coefficients = (grad_penalty.double() * unit).to(norms.dtype)
    return by_input, by_coefficients


class SampleNormPenaltyBackward(torch.autograd.Function):
    """Both gradients of the penalty; norms are those of input, and move with it."""

    @staticmethod
    def forward(
        ctx: Any,
        grad_penalty: Tensor,
        input: Tensor,
        norms: Tensor,
        coefficients: Tensor | None,
        center: float,
        scale: float,
        input_wanted: bool,
        coefficients_wanted: bool,
        kernels: Any,
    ) -> tuple[Tensor | None, Tensor | None]:
        if ctx.needs_input_grad[2]:
            raise NotImplementedError(f"{OP}_backward: expected norms not to require grad, got one that does")
        ctx.save_for_backward(grad_penalty, input, coefficients)
        ctx.options = (center, scale)
        ctx.set_materialize_grads(False)
        return _gradients(
            kernels, grad_penalty, input, norms, coefficients, center, scale, input_wanted, coefficients_wanted
        )

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_penalty, input, coefficients = ctx.saved_tensors
        center, scale = ctx.options

        def penalty(input: Tensor, coefficients: Tensor | None) -> Tensor:
            # In float64, as the kernels: a square that overflows would be lost here.
            return reference(input, coefficients, center, scale, torch.float64)[0].to(grad_penalty.dtype)

        # Of an input that needs no gradient itself too: the gradient's own gradient goes through it.
        leaf = input if input.requires_grad else input.detach().requires_grad_()
        by_grad, by_input, by_coefficients = dispatch.differentiate_reference(
            penalty, (leaf, coefficients), grad_penalty, cotangents
        )
        by_input = by_input if ctx.needs_input_grad[1] else None
        return by_grad, by_input, None, by_coefficients, *(None,) * 5


def _backward(grad_penalty: Tensor, input: Tensor, *others: Any) -> Tensor:
    """torch.ops.gan_fast.sample_norm_penalty_backward above the kernels: the gradient by input alone."""
    arguments = (grad_penalty, input, *others)
    grad_input: Tensor = SampleNormPenaltyBackward.apply(*arguments, True, False, _kernels(input))[0]
    return grad_input


def _forward_fake(input: Tensor, coefficients: Tensor | None, center: float, scale: float) -> tuple[Tensor, Tensor]:
    dtype = _result_dtype(input)
    return input.new_empty((), dtype=dtype), input.new_empty(input.size(0), dtype=dtype)


def _backward_fake(
    grad_penalty: Tensor, input: Tensor, norms: Tensor, coefficients: Tensor | None, center: float, scale: float
) -> Tensor:
    return torch.empty_like(input)


for _name in ("forward", "backward"):
    dispatch.register_triton(f"{OP}_{_name}", OP, _name)
dispatch.register("sample_norm_penalty_forward", SampleNormPenalty.apply, _forward_fake)
dispatch.register("sample_norm_penalty_backward", _backward, _backward_fake)


def _check(input: Tensor, coefficients: Tensor | None, center: float, scale: float) -> None:
    checks.floating(OP, "input", input)
    if input.dim() == 0:
        raise ValueError(f"{OP}: expected input dimensions at least 1 (N, ...), got shape ()")
    if coefficients is not None:
        checks.floating(OP, "coefficients", coefficients)
        checks.same_device(OP, "coefficients", coefficients, "input", input)
        checks.shape(OP, "coefficients", coefficients, (input.size(0),))
        checks.dtype(OP, "coefficients", coefficients, *dict.fromkeys((_result_dtype(input), input.dtype)))
    checks.number(OP, "center", center)
    checks.number(OP, "scale", scale)


def sample_norm_penalty(
    input: Tensor, coefficients: Tensor | None = None, *, center: float = 0.0, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return the mean squared distance of the samples' norms from a center, and the norms.

    norms_n = ||input_n||_2 over all elements of sample n;
    penalty = scale / N * sum_n coefficients_n * (norms_n - center)^2.

    Args:
        input: (N, ...), gradients by images as a rule, float64, float32, bfloat16 or float16, any strides.
        coefficients: (N,), weights of the samples, of the results' dtype or the input's; None stands for ones.
        center: the norm that costs nothing: 1 in WGAN-GP, 0 in R1 and R2.
        scale: of the whole, 0.5 in R1 and R2.

    Returns:
        penalty, a scalar, and norms, (N,), without gradient; both float64 for float64 input, else float32.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: wrong shape or device.

    Notes:
        Derivatives: by input and coefficients, first by kernels, higher ones of any order through ATen in float64. At a
            sample of zeros, where a norm has none, they are those of its square alone: no NaN for any center.
        Accumulation: sums in float64, so that no square of a float overflows or vanishes; deterministic, on a CPU the
            same to the last bit for any number of threads and any instruction set.
        No samples: NaN, a mean over nothing, as in torch. Samples of no elements have norm 0.
        Memory: input is kept for backward, as it is.
        Backends: native CPU kernel; on a GPU the quicker of Triton's (not for float64) and ATen's; the reference
            elsewhere and under functorch transforms.

    Source: Gulrajani et al., Improved Training of Wasserstein GANs, 2017 (arXiv 1704.00028), equation 3; Mescheder,
        Geiger and Nowozin, Which Training Methods for GANs do actually Converge?, 2018 (arXiv 1801.04406), equation 9.
    """
    _check(input, coefficients, center, scale)
    arguments = (input, coefficients, float(center), float(scale))
    if torch.jit.is_tracing():
        # A trace holds ATen's ops, and no shapes that were looked at.
        return reference(*arguments)

    def shape_class() -> tuple[str, ...]:
        sizes = (f"2^{input.size(0).bit_length()} samples", f"2^{input.numel().bit_length()} values")
        return (checks.name_of(input.dtype), *sizes, "plain" if coefficients is None else "weighted")

    result: tuple[Tensor, Tensor] = backends.call_fastest(OP, _serve, arguments, shape_class)
    return result


def _serve(input: Tensor, coefficients: Tensor | None, center: float, scale: float) -> tuple[Tensor, Tensor]:
    if not backends.uses_kernel(OP, input.device.type, input.dtype):
        return reference(input, coefficients, center, scale)
    if coefficients is not None:
        coefficients = coefficients.to(_result_dtype(input))
    result: tuple[Tensor, Tensor]
    if torch.compiler.is_compiling():
        result = torch.ops.gan_fast.sample_norm_penalty_forward(input, coefficients, center, scale)
    else:
        result = SampleNormPenalty.apply(input, coefficients, center, scale)
    return result
