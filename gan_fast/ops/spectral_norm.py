"""Spectral normalization: a weight divided by its largest singular value, estimated by power iteration.

>>> import torch
>>> from gan_fast import ops
>>> weight = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
>>> u, v = torch.ones(2), torch.ones(2)
>>> ops.spectral_norm(weight, u, v, n_power_iterations=20)
tensor([[1.0000, 0.0000],
        [0.0000, 0.3333]])
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_fast import backends
from gan_fast.ops import checks, dispatch

OP = "spectral_norm"
backends.register(OP, "spectral_norm_forward")

_native = SimpleNamespace(
    forward=dispatch.kernel("spectral_norm_forward"), backward=dispatch.kernel("spectral_norm_backward")
)


def _matrix(weight: Tensor, dim: int) -> Tensor:
    return weight.movedim(dim, 0).flatten(1)


def reference(weight: Tensor, u: Tensor, v: Tensor, n_power_iterations: int, eps: float, dim: int) -> Tensor:
    """The same in plain ATen, with the formulas of torch.nn.utils.parametrizations.spectral_norm."""
    matrix = _matrix(weight, dim)
    with torch.no_grad():
        for _ in range(n_power_iterations):
            u.copy_(F.normalize(torch.mv(matrix, v), dim=0, eps=eps))
            v.copy_(F.normalize(torch.mv(matrix.H, u), dim=0, eps=eps))
    # Copies, since the next call may update u and v before the gradient of this one is computed.
    return weight / torch.vdot(u.clone(), torch.mv(matrix, v.clone()))


class SpectralNorm(torch.autograd.Function):
    """torch.ops.gan_fast.spectral_norm_forward; of output and sigma only the output is differentiable."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, u: Tensor, v: Tensor, n_power_iterations: int, eps: float, dim: int
    ) -> tuple[Tensor, Tensor]:
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            raise NotImplementedError(f"{OP}: expected u and v not to require grad, got one that does")
        output, sigma = _native.forward(weight, u, v, n_power_iterations, eps, dim)
        if n_power_iterations:
            torch.autograd.graph.increment_version((u, v))
        if ctx.needs_input_grad[0]:
            # Copies, since the next call may update u and v before the gradient of this one is computed.
            ctx.save_for_backward(weight, u.clone(), v.clone(), sigma)
        ctx.dim = dim
        ctx.mark_non_differentiable(sigma)
        ctx.set_materialize_grads(False)
        return output, sigma

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return (None,) * 6
        weight, u, v, sigma = ctx.saved_tensors
        if dispatch.records_graph("spectral_norm_backward", grad_output):
            return SpectralNormBackward.apply(grad_output, weight, u, v, sigma, ctx.dim), *(None,) * 5
        return _native.backward(grad_output, weight, u, v, sigma, ctx.dim), *(None,) * 5


class SpectralNormBackward(torch.autograd.Function):
    """grad_output / sigma - <grad_output, weight> / sigma^2 u v^T."""

    @staticmethod
    def forward(ctx: Any, grad_output: Tensor, weight: Tensor, u: Tensor, v: Tensor, sigma: Tensor, dim: int) -> Tensor:
        ctx.save_for_backward(grad_output, weight, u, v)
        ctx.dim = dim
        ctx.set_materialize_grads(False)
        grad: Tensor = _native.backward(grad_output, weight, u, v, sigma, dim)
        return grad

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor | None) -> tuple[Tensor | None, ...]:
        if cotangent is None:
            return (None,) * 6
        grad_output, weight, u, v = ctx.saved_tensors

        def normalized(weight: Tensor) -> Tensor:
            return reference(weight, u, v, 0, 0.0, ctx.dim)

        # A gradient penalty runs this once per step and weight, so a kernel would save nothing.
        return *dispatch.differentiate_reference(normalized, (weight,), grad_output, (cotangent,)), *(None,) * 4


def _forward_fake(
    weight: Tensor, u: Tensor, v: Tensor, n_power_iterations: int, eps: float, dim: int
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(weight, memory_format=torch.contiguous_format), weight.new_empty(())


def _backward_fake(grad_output: Tensor, weight: Tensor, u: Tensor, v: Tensor, sigma: Tensor, dim: int) -> Tensor:
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


dispatch.register("spectral_norm_forward", SpectralNorm.apply, _forward_fake)
dispatch.register("spectral_norm_backward", SpectralNormBackward.apply, _backward_fake)


def _check(weight: Tensor, u: Tensor, v: Tensor, n_power_iterations: int, eps: float, dim: int) -> None:
    checks.floating(OP, "weight", weight)
    if weight.dim() < 2:
        raise ValueError(f"{OP}: expected weight dimensions at least 2, got shape {tuple(weight.shape)}")
    for name, value in (("n_power_iterations", n_power_iterations), ("dim", dim)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{OP}: expected {name} type int, got {type(value).__name__}")
    if n_power_iterations < 0:
        raise ValueError(f"{OP}: expected n_power_iterations at least 0, got {n_power_iterations}")
    checks.in_range(OP, "dim", dim, 0, weight.dim() - 1)
    checks.number(OP, "eps", eps)
    rows = weight.size(dim)
    for name, vector, length in (("u", u, rows), ("v", v, weight.numel() // max(rows, 1))):
        checks.floating(OP, name, vector)
        checks.same_device(OP, name, vector, "weight", weight)
        checks.dtype(OP, name, vector, weight.dtype)
        checks.shape(OP, name, vector, (length,))
        if vector.requires_grad:
            raise ValueError(
                f"{OP}: expected {name} not to require grad, got one that does; power iteration has no gradient"
            )


def spectral_norm(
    weight: Tensor, u: Tensor, v: Tensor, n_power_iterations: int = 1, eps: float = 1e-12, dim: int = 0
) -> Tensor:
    """Return the weight divided by an estimate of its largest singular value.

    With W the weight as a matrix whose rows are dimension ``dim``: n_power_iterations times
    u = W v / max(||W v||, eps) and v = W^T u / max(||W^T u||, eps), in place; then output = weight / (u^T W v).

    Args:
        weight: at least 2 dimensions, float64, float32, bfloat16 or float16, any strides.
        u: (weight.size(dim),), dtype and device of ``weight``; updated in place.
        v: (weight.numel() / weight.size(dim),), dtype and device of ``weight``; updated in place.
        n_power_iterations: at least 0; use 0 for evaluation, which leaves u and v unchanged.
        eps: lower bound of the norms in the divisions.
        dim: dimension of the output channels: 0 for convolutions and linear layers, 1 for transposed convolutions.

    Returns:
        Tensor of the shape and dtype of ``weight``.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or device, a number out of range, or u or v that require a gradient.

    Notes:
        Derivatives: with respect to weight, of any order, with u and v constant as in torch.nn.utils.parametrizations;
            the first from a kernel, higher ones from ATen.
        Accumulation: float64; deterministic for any number of threads and any CPU instruction set.
        Memory: backward keeps weight, u and v.
        Autocast has no effect.
        Backends: a CPU kernel for contiguous tensors; ATen for other strides, on other devices, under functorch
            transforms and in compiled functions.

    Source: Miyato et al., Spectral Normalization for Generative Adversarial Networks, 2018 (arXiv 1802.05957),
        algorithm 1.
    """
    _check(weight, u, v, n_power_iterations, eps, dim)
    device = weight.device.type
    contiguous = weight.is_contiguous() and u.is_contiguous() and v.is_contiguous()
    if not dispatch.is_traced() and backends.uses_kernel(OP, device, weight.dtype) and contiguous:
        output: Tensor = SpectralNorm.apply(weight, u, v, n_power_iterations, eps, dim)[0]
        return output
    if not dispatch.is_autocast_enabled(device):
        return reference(weight, u, v, n_power_iterations, eps, dim)
    with torch.autocast(device, enabled=False):
        return reference(weight, u, v, n_power_iterations, eps, dim)
