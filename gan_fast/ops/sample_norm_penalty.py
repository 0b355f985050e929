"""The mean squared distance of sample norms from a center, in one kernel; gradient penalties end in it.

>>> import torch
>>> from gan_fast import ops
>>> grads = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
>>> penalty, norms = ops.sample_norm_penalty(grads, center=1.0)
>>> penalty.item(), norms.tolist()
(8.0, [5.0, 1.0])
"""

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
    """The forward and backward kernels for ``input``, with the signatures of the ops of the same names."""
    return backends.triton_kernels(OP, input) or _native


def _result_dtype(input: Tensor) -> torch.dtype:
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def _norms_and_deviations(values: Tensor, center: float) -> tuple[Tensor, Tensor]:
    """||values_n||_2 without gradient, and (||values_n||_2 - center)^2, whose derivatives at zero are not NaN."""
    squares = values.reshape(*values.shape, 1).square().sum(tuple(range(1, values.dim() + 1)))
    norms = squares.detach().sqrt()
    if center == 0:
        return norms, squares
    # sqrt has an infinite derivative at zero, and infinity times zero is NaN. So zeros are replaced by 1 before the
    # root and the result by 0 after it.
    nonzero = norms != 0
    roots = torch.where(nonzero, torch.where(nonzero, squares, 1).sqrt(), 0)
    return norms, (roots - center).square()


def reference(
    input: Tensor, coefficients: Tensor | None, center: float, scale: float, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Penalty and norms in plain ATen, computed in ``dtype`` or by default in the dtype of the results."""
    norms, deviations = _norms_and_deviations(input.to(dtype or _result_dtype(input)), center)
    if coefficients is not None:
        deviations = deviations * coefficients.to(deviations.dtype)
    return deviations.mean() * scale, norms


class SampleNormPenalty(torch.autograd.Function):
    """torch.ops.gan_fast.sample_norm_penalty_forward; of its outputs only the penalty is differentiable."""

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
        needed = dispatch.grads_needed(ctx, 2)
        if dispatch.records_graph(f"{OP}_backward", grad_penalty):
            grad_input, grad_coefficients = SampleNormPenaltyBackward.apply(*arguments, *needed, ctx.kernels)
        else:
            # A batch of gradients must pass the dispatcher, which splits it.
            batched = torch._C._functorch.is_legacy_batchedtensor(grad_penalty)
            grad_input, grad_coefficients = _gradients(_native if batched else ctx.kernels, *arguments, *needed)
        return grad_input, grad_coefficients, None, None


def _gradients(
    kernels: Any,
    grad_penalty: Tensor,
    input: Tensor,
    norms: Tensor,
    coefficients: Tensor | None,
    center: float,
    scale: float,
    input_needed: bool,
    coefficients_needed: bool,
) -> tuple[Tensor | None, Tensor | None]:
    grad_input: Tensor | None = None
    grad_coefficients: Tensor | None = None
    if input_needed:
        grad_input = kernels.backward(grad_penalty, input, norms, coefficients, center, scale)
    if coefficients_needed:
        # These are only N numbers, so ATen in float64 is fast enough.
        unit = (norms.double() - center).square() * (scale / max(input.size(0), 1))
        grad_coefficients = (grad_penalty.double() * unit).to(norms.dtype)
    return grad_input, grad_coefficients


class SampleNormPenaltyBackward(torch.autograd.Function):
    """Both gradients of the penalty. ``norms`` counts as a function of ``input``, not as an independent argument."""

    @staticmethod
    def forward(
        ctx: Any,
        grad_penalty: Tensor,
        input: Tensor,
        norms: Tensor,
        coefficients: Tensor | None,
        center: float,
        scale: float,
        input_needed: bool,
        coefficients_needed: bool,
        kernels: Any,
    ) -> tuple[Tensor | None, Tensor | None]:
        if ctx.needs_input_grad[2]:
            raise NotImplementedError(f"{OP}_backward: expected norms not to require grad, got one that does")
        ctx.save_for_backward(grad_penalty, input, coefficients)
        ctx.options = (center, scale)
        ctx.set_materialize_grads(False)
        return _gradients(
            kernels, grad_penalty, input, norms, coefficients, center, scale, input_needed, coefficients_needed
        )

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_penalty, input, coefficients = ctx.saved_tensors
        center, scale = ctx.options

        def penalty(input: Tensor, coefficients: Tensor | None) -> Tensor:
            # Compute in float64, as the kernels do, since squares overflow in float32.
            return reference(input, coefficients, center, scale, torch.float64)[0].to(grad_penalty.dtype)

        # Requires a gradient even if input does not: the gradient of grad_penalty is computed through it.
        leaf = input if input.requires_grad else input.detach().requires_grad_()
        grad_grad_penalty, grad_input, grad_coefficients = dispatch.differentiate_reference(
            penalty, (leaf, coefficients), grad_penalty, cotangents
        )
        grad_input = grad_input if ctx.needs_input_grad[1] else None
        return grad_grad_penalty, grad_input, None, grad_coefficients, *(None,) * 5


def _backward(grad_penalty: Tensor, input: Tensor, *others: Any) -> Tensor:
    """The autograd implementation of torch.ops.gan_fast.sample_norm_penalty_backward: the gradient of ``input``."""
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

    norms_n = ||input_n||_2 over all elements of sample n,
    penalty = scale / N * sum_n coefficients_n (norms_n - center)^2.

    Args:
        input: (N, ...), usually gradients with respect to images; float64, float32, bfloat16 or float16, any strides.
        coefficients: weights of the samples, shape (N,), in the dtype of ``input`` or of the results; None means ones.
        center: the norm at which the penalty is zero: 1 in WGAN-GP, 0 in R1 and R2.
        scale: factor on the penalty: 0.5 in R1 and R2.

    Returns:
        penalty: scalar.
        norms: (N,), without gradient. Both are float64 for float64 input and float32 otherwise, also under autocast.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or device.

    Notes:
        Derivatives: with respect to input and coefficients, of any order; the first from a kernel, higher ones from
            ATen in float64. At a sample of zeros only its squared norm contributes: no NaN for any center.
        Accumulation: in float64, so that no square of a float overflows or underflows. Deterministic; on a CPU bitwise
            equal for any number of threads and any instruction set.
        Empty input: NaN for no samples, as a mean over nothing in torch; norm 0 for samples without elements.
        Memory: backward keeps ``input``.
        Backends: a CPU kernel; on a GPU the faster of Triton (not for float64) and ATen; ATen elsewhere and under
            functorch transforms.

    Source: Gulrajani et al., Improved Training of Wasserstein GANs, 2017 (arXiv 1704.00028), equation 3; Mescheder,
        Geiger and Nowozin, Which Training Methods for GANs do actually Converge?, 2018 (arXiv 1801.04406), equation 9.
    """
    _check(input, coefficients, center, scale)
    arguments = (input, coefficients, float(center), float(scale))
    if torch.jit.is_tracing():
        # A trace must contain ATen's ops and must not depend on the shapes seen while tracing.
        return reference(*arguments)

    def shape_class() -> tuple[str, ...]:
        sizes = (f"2^{input.size(0).bit_length()} samples", f"2^{input.numel().bit_length()} values")
        return (checks.name_of(input.dtype), *sizes, "plain" if coefficients is None else "weighted")

    result: tuple[Tensor, Tensor] = backends.call_fastest(OP, _run, arguments, shape_class)
    return result


def _run(input: Tensor, coefficients: Tensor | None, center: float, scale: float) -> tuple[Tensor, Tensor]:
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
