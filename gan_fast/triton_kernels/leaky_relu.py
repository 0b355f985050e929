"""Leaky ReLU in Triton. Backward needs only the input's signs: one bit per value, 1/16 of a bfloat16 input.

A tensor is viewed as its values in memory order, whatever its shape. A program handles eight rows of values. Bit k of a
byte is the sign of a value in row k, so that each thread packs the values it has read. Backward is linear in the
gradient, so double backward is the same kernel applied to a cotangent.

Tensor reads + writes: 1 + 1, and the sign bits, in forward and backward.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from gan_fast.triton_kernels import DTYPE_NAMES, DTYPES, launch

OP = "leaky_relu"
_WARPS = 4
# Bytes of a row: 16 for each thread. Eight rows give each thread eight loads in flight.
_ROW_BYTES = 16 * 32 * _WARPS
_ROWS: tl.constexpr = tl.constexpr(8)


@triton.jit
def _activate(x_pointer, y_pointer, offsets, mask, slope):
    """Write y = x where x > 0, else slope x, if there is a y; return x > 0."""
    x = tl.load(x_pointer + offsets, mask=mask).to(tl.float32)
    positive = x > 0
    if y_pointer is not None:
        tl.store(y_pointer + offsets, tl.where(positive, x, x * slope).to(y_pointer.dtype.element_ty), mask=mask)
    return positive


@triton.jit
def leaky_relu_kernel(x_pointer, y_pointer, signs_pointer, count, slope, COLUMNS: tl.constexpr):
    """y and the sign bits of a tile. In the last tile the bits beyond the values are arbitrary."""
    tile = tl.program_id(0).to(tl.int64)
    row, column = tl.arange(0, _ROWS)[:, None], tl.arange(0, COLUMNS)
    first = tile * (_ROWS * COLUMNS)
    # Full tiles use no mask: a mask that depends on count would split the 16-byte loads.
    if first + _ROWS * COLUMNS <= count:
        positive = _activate(x_pointer, y_pointer, first + row * COLUMNS + column[None, :], None, slope)
        bits = tl.sum(positive.to(tl.int32) << row, axis=0)
    else:
        bits = tl.zeros((COLUMNS,), tl.int32)
        for k in range(_ROWS):
            offsets = first + k * COLUMNS + column
            bits |= _activate(x_pointer, y_pointer, offsets, offsets < count, slope).to(tl.int32) << k
    if signs_pointer is not None:
        tl.store(signs_pointer + tile * COLUMNS + column, bits.to(tl.uint8))


@triton.jit
def _scale(grad_pointer, grad_input_pointer, offsets, mask, bits, slope):
    """Write grad where the bit is set, else slope grad."""
    grad = tl.load(grad_pointer + offsets, mask=mask).to(tl.float32)
    result = tl.where(bits != 0, grad, grad * slope).to(grad_input_pointer.dtype.element_ty)
    tl.store(grad_input_pointer + offsets, result, mask=mask)


@triton.jit
def leaky_relu_backward_kernel(grad_pointer, signs_pointer, grad_input_pointer, count, slope, COLUMNS: tl.constexpr):
    """grad_input of a tile from its sign bits."""
    tile = tl.program_id(0).to(tl.int64)
    row, column = tl.arange(0, _ROWS)[:, None], tl.arange(0, COLUMNS)
    first = tile * (_ROWS * COLUMNS)
    bits = tl.load(signs_pointer + tile * COLUMNS + column).to(tl.int32)
    if first + _ROWS * COLUMNS <= count:
        offsets = first + row * COLUMNS + column[None, :]
        _scale(grad_pointer, grad_input_pointer, offsets, None, bits[None, :] & (1 << row), slope)
    else:
        for k in range(_ROWS):
            offsets = first + k * COLUMNS + column
            _scale(grad_pointer, grad_input_pointer, offsets, offsets < count, bits & (1 << k), slope)


def _columns(dtype: torch.dtype) -> int:
    return _ROW_BYTES // dtype.itemsize


def _launch(x: Tensor, output: Tensor | None, signs_wanted: bool, slope: float) -> Tensor | None:
    """Write leaky_relu(x) to ``output``, if given, and return the sign bits, if wanted; both in x's memory order."""
    columns = _columns(x.dtype)
    tiles = triton.cdiv(x.numel(), _ROWS.value * columns)
    signs = torch.empty(tiles * columns, dtype=torch.uint8, device=x.device) if signs_wanted else None
    if tiles:
        with launch.on_device_of(x):
            leaky_relu_kernel[(tiles,)](x, output, signs, x.numel(), slope, columns, num_warps=_WARPS)
    return signs


def forward(input: Tensor, negative_slope: float, signs_wanted: bool) -> tuple[Tensor, Tensor | None]:
    """Return leaky_relu(input) and, if wanted, the sign bits for :func:`backward`.

    The bits are in the output's memory order, which is that of a dense input.
    """
    if input.dtype not in DTYPES:
        raise RuntimeError(f"{OP}: expected input dtype {DTYPE_NAMES} for backend triton, got {input.dtype}")
    output = torch.empty_like(input)
    return output, _launch(launch.in_memory_order_of(input, output), output, signs_wanted, float(negative_slope))


def signs(output: Tensor) -> Tensor | None:
    """Return the sign bits of a dense output of leaky_relu with a slope of at least zero."""
    return _launch(output, None, True, 0.0)


def backward(grad_output: Tensor, signs: Tensor, strides: Sequence[int], negative_slope: float) -> Tensor:
    """Return grad_output times the derivative of leaky_relu.

    Args:
        signs: the bits from :func:`forward` or :func:`signs`.
        strides: strides of the output that the bits belong to; the result has the same.
    """
    grad_input = grad_output.new_empty_strided(grad_output.shape, tuple(strides))
    columns = _columns(grad_output.dtype)
    if signs.numel():
        with launch.on_device_of(grad_output):
            grad = launch.in_memory_order_of(grad_output, grad_input)
            leaky_relu_backward_kernel[(signs.numel() // columns,)](
                grad, signs, grad_input, grad.numel(), float(negative_slope), columns, num_warps=_WARPS
            )
    return grad_input


def positive(signs: Tensor, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return the bits as a boolean tensor with the given shape and strides, computed with ATen's ops."""
    columns = _columns(dtype)
    rows = torch.arange(_ROWS.value, device=signs.device)[:, None]
    bits = (signs.view(signs.numel() // columns, 1, columns) >> rows) & 1
    return bits.bool().flatten().as_strided(shape, strides)
