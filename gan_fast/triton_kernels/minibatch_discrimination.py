"""Minibatch discrimination in Triton: pairs of samples are formed in registers only.

A program handles one of the B kernels and a tile of samples i, and loops over tiles of samples j. It sums distances
component by component, and sums the contributions of all j to i in an order that depends only on N. Each pair is
computed twice, once for each of its samples, which costs arithmetic but needs no communication between programs. The
features of one kernel take a few kilobytes for all samples, so that the first-level cache holds them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gan_fast.triton_kernels import DTYPE_NAMES, DTYPES, launch

OP = "minibatch_discrimination"
_ROWS, _COLUMNS = 16, 64
_GRADIENT_COLUMNS = 32
# Components whose gradient one program computes. With more components, further programs compute the distances again.
_COMPONENTS = 16
_WARPS = 4
# Registers per thread: by default the assembler for sm_80 uses fewer and spills.
_REGISTERS = 96


@triton.jit
def _load(pointer, samples, n, row, at):
    """The value at index ``at`` in the row of each sample."""
    return tl.load(pointer + samples * row + at, mask=samples < n, other=0.0).to(tl.float32)


@triton.jit
def _signed(difference, value):
    """sign(difference) value; like a product, it gives NaN for 0 times infinity and propagates NaN."""
    sign = tl.where(difference > 0, 1.0, tl.where(difference < 0, -1.0, 0.0))
    return sign * value


@triton.jit
def _pairs(x_pointer, v_pointer, i, j, n, row, first, C):
    """For pairs of samples: e = exp(-L1 distance), 0 where i == j; the mask i != j; <sign(x_i - x_j), v_i - v_j>."""
    distance = tl.zeros((i.shape[0], j.shape[0]), tl.float32)
    q = tl.zeros((i.shape[0], j.shape[0]), tl.float32)
    for c in range(C):
        difference = _load(x_pointer, i, n, row, first + c)[:, None] - _load(x_pointer, j, n, row, first + c)[None, :]
        distance += tl.abs(difference)
        if v_pointer is not None:
            v_i, v_j = _load(v_pointer, i, n, row, first + c), _load(v_pointer, j, n, row, first + c)
            q += _signed(difference, v_i[:, None] - v_j[None, :])
    others = (i[:, None] != j[None, :]) & (j[None, :] < n)
    return tl.where(others, tl.exp(-distance), 0.0), others, q


@triton.jit
def closeness_kernel(x_pointer, output_pointer, n, b, C, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """output_i = sum over j of exp(-distance)."""
    kernel = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros((ROWS,), tl.float32)
    for begin in range(0, n, COLUMNS):
        j = (begin + tl.arange(0, COLUMNS)).to(tl.int64)
        e, _, _ = _pairs(x_pointer, None, i, j, n, b * C, kernel * C, C)
        total += tl.sum(e, axis=1)
    tl.store(output_pointer + i * b + kernel, total.to(output_pointer.dtype.element_ty), mask=i < n)


@triton.jit
def closeness_gradient_kernel(
    v_pointer, g_pointer, x_pointer, grad_g_pointer, grad_pointer, n, b, C, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    COMPONENTS: tl.constexpr,
):  # fmt: skip
    """Backward, or double backward if there is v, the cotangent of backward's result.

    With e = exp(-distance), backward is grad_i = sum over j of -e (g_i + g_j) sign(x_i - x_j). Double backward, with
    q = <sign(x_i - x_j), v_i - v_j>, is grad_i = sum over j of e q (g_i + g_j) sign(x_i - x_j) and
    grad_g_i = sum over j of -e q.
    """
    kernel = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    components = tl.program_id(2).to(tl.int64) * COMPONENTS
    column = tl.arange(0, COMPONENTS)
    row = b * C
    g_i = _load(g_pointer, i, n, b, kernel)
    grad = tl.zeros((ROWS, COMPONENTS), tl.float32)
    grad_g = tl.zeros((ROWS,), tl.float32)
    for begin in range(0, n, COLUMNS):
        j = (begin + tl.arange(0, COLUMNS)).to(tl.int64)
        e, others, q = _pairs(x_pointer, v_pointer, i, j, n, row, kernel * C, C)
        if v_pointer is not None:
            e = tl.where(others, e * q, 0.0)
            grad_g -= tl.sum(e, axis=1)
        else:
            e = -e
        w = tl.where(others, e * (g_i[:, None] + _load(g_pointer, j, n, b, kernel)[None, :]), 0.0)
        for c in range(COMPONENTS):
            if components + c < C:
                at = kernel * C + components + c
                difference = _load(x_pointer, i, n, row, at)[:, None] - _load(x_pointer, j, n, row, at)[None, :]
                pull = tl.sum(tl.where(others, _signed(difference, w), 0.0), axis=1)
                grad += tl.where(column[None, :] == c, pull[:, None], 0.0)
    at = i[:, None] * row + kernel * C + components + column[None, :]
    mask = (i[:, None] < n) & (components + column[None, :] < C)
    tl.store(grad_pointer + at, grad.to(grad_pointer.dtype.element_ty), mask=mask)
    if v_pointer is not None:
        # The programs of all component blocks have the same grad_g; the first writes it.
        mask = (i < n) & (components == 0)
        tl.store(grad_g_pointer + i * b + kernel, grad_g.to(grad_g_pointer.dtype.element_ty), mask=mask)


def _check(projected: Tensor) -> None:
    if projected.dtype not in DTYPES:
        raise TypeError(f"{OP}: expected projected dtype {DTYPE_NAMES} for backend triton, got {projected.dtype}")


@launch.readable_arguments
def forward(projected: Tensor) -> Tensor:
    """torch.ops.gan_fast.minibatch_discrimination_forward."""
    _check(projected)
    x = projected.contiguous()
    n, b, c = x.shape
    output = x.new_empty(n, b)
    if output.numel():
        with launch.on_device_of(x):
            closeness_kernel[(b, triton.cdiv(n, _ROWS))](x, output, n, b, c, _ROWS, _COLUMNS, num_warps=_WARPS)
    return output


def _gradient(cotangent: Tensor | None, grad_output: Tensor, projected: Tensor) -> tuple[Tensor | None, Tensor]:
    _check(projected)
    x, g = projected.contiguous(), grad_output.contiguous()
    v = None if cotangent is None else cotangent.contiguous()
    n, b, c = x.shape
    grad = torch.empty_like(x)
    grad_g = None if v is None else torch.empty_like(g)
    if g.numel():
        # At least one program: without components there is still the gradient of grad_output.
        grid = (b, triton.cdiv(n, _ROWS), max(triton.cdiv(c, _COMPONENTS), 1))
        with launch.on_device_of(x):
            closeness_gradient_kernel[grid](
                v, g, x, grad_g, grad, n, b, c, _ROWS, _GRADIENT_COLUMNS, _COMPONENTS, num_warps=_WARPS,
                maxnreg=_REGISTERS,
            )  # fmt: skip
    return grad_g, grad


@launch.readable_arguments
def backward(grad_output: Tensor, projected: Tensor) -> Tensor:
    """torch.ops.gan_fast.minibatch_discrimination_backward."""
    return _gradient(None, grad_output, projected)[1]


@launch.readable_arguments
def double_backward(cotangent: Tensor, grad_output: Tensor, projected: Tensor) -> tuple[Tensor | None, Tensor]:
    """torch.ops.gan_fast.minibatch_discrimination_double_backward."""
    return _gradient(cotangent, grad_output, projected)
