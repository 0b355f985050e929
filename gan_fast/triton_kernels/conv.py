"""2-d convolutions and transposed convolutions in Triton, as an implicit matrix product.

A row of the product is an output position, a column is an output channel, and the sum runs over kernel taps and input
channels. The left matrix, of input values, is gathered while it is multiplied. The output of a convolution at o sums
all taps t at the inputs o stride - padding + t dilation. The output of a transposed convolution at o = q stride + r
sums every stride-th tap, beginning with (r + padding) % stride, at inputs that step back by one. So each of the
stride x stride phases r is a separate convolution with its share of the taps, and no zeros are multiplied. One kernel
computes both kinds; the input gradient of one kind is the other.

The epilogue, which runs on an output tile before it is stored, adds the bias and applies the activation. For a batch
norm that follows it also computes the statistics of each tile (count, mean and sum of squared deviations), which saves
a pass over the output. Inputs are read channels-last; outputs are contiguous or channels-last.
"""

from __future__ import annotations

import dataclasses

import torch
import triton
import triton.language as tl
from torch import Tensor

from gan_fast.triton_kernels import DTYPE_NAMES, DTYPES, launch
from gan_fast.triton_kernels import activation as act

OP = "conv"


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of an output tile, and of the loop over taps and channels."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, int]:
        return {
            "BLOCK_ROWS": self.rows,
            "BLOCK_COLUMNS": self.columns,
            "BLOCK_DEPTH": self.depth,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


def config(c_in: int, c_out: int, dtype: torch.dtype) -> Config:
    """Return tile sizes that fit the channels (tl.dot needs at least 16) and spill on no architecture.

    ``python -m benchmarks.compiled --match conv`` shows registers and shared memory.
    """
    columns = min(128, max(16, triton.next_power_of_2(c_out)))
    depth = min(64, max(16, triton.next_power_of_2(c_in)))
    if dtype == torch.float32:
        return Config(64, min(columns, 64), min(depth, 32), 4, 3)
    if columns == 64:
        return Config(128, 64, min(depth, 32), 8, 4)
    return Config(128, columns, depth, 4 if columns == 16 else 8, 3)


@triton.jit
def conv_kernel(
    x_pointer, weight_pointer, bias_pointer, y_pointer, counts_pointer, means_pointer, squares_pointer,
    rows, q_height, q_width, in_height, in_width, out_height, out_width, c_in, c_out,
    x_sample, x_row, x_column, y_sample, y_row, y_column, y_channel,
    weight_tap_row, weight_tap_column, weight_in, weight_out,
    padding_y, padding_x, slope,
    KERNEL_Y: tl.constexpr, KERNEL_X: tl.constexpr, STRIDE_Y: tl.constexpr, STRIDE_X: tl.constexpr,
    DILATION_Y: tl.constexpr, DILATION_X: tl.constexpr, TRANSPOSED: tl.constexpr, ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_DEPTH: tl.constexpr,
):  # fmt: skip
    """One tile of one phase of the output."""
    column_tiles = tl.cdiv(c_out, BLOCK_COLUMNS)
    row_tile = tl.program_id(0) // column_tiles
    first_column = (tl.program_id(0) % column_tiles) * BLOCK_COLUMNS
    if TRANSPOSED:
        phase_y = tl.program_id(1) // STRIDE_X
        phase_x = tl.program_id(1) % STRIDE_X
        first_tap_y = (phase_y + padding_y) % STRIDE_Y
        first_tap_x = (phase_x + padding_x) % STRIDE_X
        offset_y = (phase_y + padding_y) // STRIDE_Y
        offset_x = (phase_x + padding_x) // STRIDE_X
        TAPS_Y: tl.constexpr = (KERNEL_Y + STRIDE_Y - 1) // STRIDE_Y
        TAPS_X: tl.constexpr = (KERNEL_X + STRIDE_X - 1) // STRIDE_X
    else:
        phase_y = 0
        phase_x = 0
        first_tap_y = 0
        first_tap_x = 0
        offset_y = -padding_y
        offset_x = -padding_x
        TAPS_Y: tl.constexpr = KERNEL_Y
        TAPS_X: tl.constexpr = KERNEL_X

    row = row_tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    sample = (row // (q_height * q_width)).to(tl.int64)
    # Offsets within a sample are 32-bit to save registers, which limit this kernel; `convolve` checks that they fit.
    rows_pointer = x_pointer + sample * x_sample
    q_y = (row // q_width) % q_height
    q_x = row % q_width
    column = first_column + tl.arange(0, BLOCK_COLUMNS)
    k = tl.arange(0, BLOCK_DEPTH)
    depth_blocks = tl.cdiv(c_in, BLOCK_DEPTH)
    sums = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for step in range(0, TAPS_Y * TAPS_X * depth_blocks):
        tap = step // depth_blocks
        j = tap // TAPS_X
        i = tap % TAPS_X
        channel = (step % depth_blocks) * BLOCK_DEPTH + k
        if TRANSPOSED:
            tap_y = first_tap_y + j * STRIDE_Y
            tap_x = first_tap_x + i * STRIDE_X
            y = q_y + offset_y - j
            x = q_x + offset_x - i
        else:
            tap_y = j
            tap_x = i
            y = q_y * STRIDE_Y + offset_y + j * DILATION_Y
            x = q_x * STRIDE_X + offset_x + i * DILATION_X
        # A phase with fewer taps than others gets an empty mask here instead of a shorter loop.
        there = (tap_y < KERNEL_Y) & (tap_x < KERNEL_X)
        inside = (row < rows) & (y >= 0) & (y < in_height) & (x >= 0) & (x < in_width) & there
        left = tl.load(
            (rows_pointer + (y * x_row + x * x_column))[:, None] + channel[None, :],
            mask=inside[:, None] & (channel < c_in)[None, :], other=0.0,
        )  # fmt: skip
        right = tl.load(
            weight_pointer + tap_y * weight_tap_row + tap_x * weight_tap_column
            + channel[:, None] * weight_in + column[None, :] * weight_out,
            mask=(channel < c_in)[:, None] & ((column < c_out) & there)[None, :], other=0.0,
        )  # fmt: skip
        if WIDEN:
            left = left.to(tl.float32)
            right = right.to(tl.float32)
        sums = tl.dot(left, right, sums, input_precision=PRECISION)

    if bias_pointer is not None:
        sums += tl.load(bias_pointer + column, mask=column < c_out, other=0.0).to(tl.float32)[None, :]
    kind = y_pointer.dtype.element_ty
    result = act.value(sums, slope, ACTIVATION).to(kind)
    if TRANSPOSED:
        out_y = q_y * STRIDE_Y + phase_y
        out_x = q_x * STRIDE_X + phase_x
    else:
        out_y = q_y
        out_x = q_x
    stored = (row < rows) & (out_y < out_height) & (out_x < out_width)
    tl.store(
        y_pointer + (sample * y_sample + out_y * y_row + out_x * y_column)[:, None] + column[None, :] * y_channel,
        result, mask=stored[:, None] & (column < c_out)[None, :],
    )  # fmt: skip
    if counts_pointer is not None:
        # Statistics of the rounded values that are stored, as a pass over the output would compute them.
        chunk = tl.program_id(1) * (tl.num_programs(0) // column_tiles) + row_tile
        values = tl.where(stored[:, None], result.to(tl.float32), 0.0)
        count = tl.sum(stored.to(tl.float32))
        mean = tl.sum(values, axis=0) / tl.maximum(count, 1.0)
        distance = tl.where(stored[:, None], values - mean[None, :], 0.0)
        at = chunk * c_out + column
        tl.store(counts_pointer + chunk, count)
        tl.store(means_pointer + at, mean, mask=column < c_out)
        tl.store(squares_pointer + at, tl.sum(distance * distance, axis=0), mask=column < c_out)


def refuses(input: Tensor, dilation: tuple[int, ...], transposed: bool, groups: int) -> str | None:
    """Return what these kernels expect of a convolution and what it has instead, or None if they can compute it."""
    if input.dim() != 4:
        return f"input dimensions 4 (N, C_in, H_in, W_in), got shape {tuple(input.shape)}"
    if input.dtype not in DTYPES:
        return f"input dtype {DTYPE_NAMES}, got {input.dtype}"
    if groups != 1:
        return f"groups 1, got {groups}"
    if transposed and any(d != 1 for d in dilation):
        return f"dilation 1 of a transposed convolution, got {dilation}"
    return None


@launch.readable_arguments
def convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    transposed: bool,
    output_size: tuple[int, ...],
    activation: str = "identity",
    negative_slope: float = 0.0,
    memory_format: torch.memory_format = torch.channels_last,
    statistics: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...] | None]:
    """Return activation(convolution(input, weight, bias)) and, if wanted, its batch norm statistics.

    Args:
        input: (N, C_in, H_in, W_in).
        weight: (C_out, C_in, kH, kW), or (C_in, C_out, kH, kW) if ``transposed``.
        output_size: (H_out, W_out).
        memory_format: format of the output.
        statistics: whether to compute the statistics.

    Returns:
        The output, and None or a tuple: count (chunks,), mean (chunks, C_out) and sum of squared deviations
        (chunks, C_out), where each chunk is a part of every channel.
    """
    samples, c_in, in_height, in_width = input.shape
    positions = output_size[0] * output_size[1]
    c_out = weight.size(1) if transposed else weight.size(0)
    if max(c_in * in_height * in_width, weight.numel(), samples * positions, c_out * positions) >= 2**31:
        raise RuntimeError(
            f"{OP}: expected fewer than 2^31 values per sample, in the weight and per output channel for backend "
            f"triton, got input {tuple(input.shape)}, weight {tuple(weight.shape)}, output size {output_size}"
        )
    kernel = (weight.size(2), weight.size(3))
    output = torch.empty(
        (samples, c_out, *output_size), dtype=input.dtype, device=input.device, memory_format=memory_format
    )
    if not output.numel():
        return output, None
    # Compute the strides, since those of a dim of size one may be anything.
    pixel, plane = (c_out, 1) if memory_format == torch.channels_last else (1, positions)
    y_strides = (c_out * positions, output_size[1] * pixel, pixel, plane)
    x = input.permute(0, 2, 3, 1).contiguous()
    # (C_in, C_out, kH, kW). One of the channel dims must be innermost in memory for 16-byte loads.
    w = weight if transposed else weight.transpose(0, 1)
    if w.stride(0) != 1 and w.stride(1) != 1:
        w = w.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)
    phases = stride if transposed else (1, 1)
    q_height, q_width = (triton.cdiv(size, phase) for size, phase in zip(output_size, phases))
    rows = samples * q_height * q_width
    chosen = config(c_in, c_out, input.dtype)
    row_tiles = triton.cdiv(rows, chosen.rows)
    grid = (row_tiles * triton.cdiv(c_out, chosen.columns), phases[0] * phases[1])
    found = None
    if statistics:
        chunks = row_tiles * phases[0] * phases[1]
        shapes = ((chunks,), (chunks, c_out), (chunks, c_out))
        found = tuple(torch.empty(shape, dtype=torch.float32, device=x.device) for shape in shapes)
    with launch.on_device_of(x):
        conv_kernel[grid](
            x, w, None if bias is None else bias.contiguous(), output, *(found or (None,) * 3),
            rows, q_height, q_width, in_height, in_width, *output_size, c_in, c_out,
            *x.stride()[:3], *y_strides, w.stride(2), w.stride(3), w.stride(0), w.stride(1), *padding, negative_slope,
            *kernel, *stride, *dilation, transposed, act.CODES[activation],
            # Do not use TF32: tl.dot would truncate the operands, where cuDNN rounds them.
            "ieee",
            # Widen bfloat16 in the interpreter, whose tl.dot would multiply the raw bits as integers.
            launch.INTERPRETED and x.dtype == torch.bfloat16, **chosen.options,
        )  # fmt: skip
    return output, found
