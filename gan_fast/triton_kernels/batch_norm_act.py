"""Batch norm followed by an activation, in Triton: the functions of csrc/cpu/batch_norm_act.cpp.

Notation: xc = x - mean, r = 1 / sqrt(var + eps), z = gamma r xc + beta, u = dL/dy f'(z), and a is the cotangent of
grad_input. docs/batch_norm_act.md derives the second derivatives.

A tensor is viewed as (outer, C, inner): (N, C, S) if contiguous, (N * S, C, 1) if channels-last. Sums over a channel
take two steps, in an order that depends only on the shape. First, programs reduce chunks of the channel to a mean and a
sum of squared deviations (or to plain sums). Then one program merges the chunks in float64 (Chan, Golub and LeVeque,
1979). So results are deterministic.

Tensor reads + writes per pass: statistics 1 + 0, normalize 1 + 1, backward sums 2 + 0, backward map 2 + 1, double sums
3 + 0, curvature sums (tanh and sigmoid only) 3 + 0, double map 3 + 2.
"""

from __future__ import annotations

import dataclasses
import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from gan_fast.memory_format import empty_output_like, suggest_memory_format
from gan_fast.triton_kernels import DTYPE_NAMES, DTYPES, launch
from gan_fast.triton_kernels import activation as act

OP = "batch_norm_act"
# Values per thread and load: 16 bytes of bfloat16. A tile has this many for each thread of eight warps.
_VALUES = 8
_WARPS = 8
_TILE = _VALUES * 32 * _WARPS
# Bytes that a thread has in flight in passes that only sum, and in passes that also write.
_BYTES_OF_SUMS = 64
_BYTES_OF_MAPS = 32
# Indices within a dim are 32-bit, including those of the last tile's padding; offsets into tensors are 64-bit.
_MAX_ROWS = 2**31 - 2**16
# Adjacent channels of a channels-last tile: 128 bytes of bfloat16.
_MAX_CHANNELS = 64
# Number of programs that keeps the largest GPU busy (an H100 has 132 multiprocessors).
_PROGRAMS = 528
# Most chunks that the last program merges; a convolution may produce more, which are first merged _MERGED at a time.
_MAX_CHUNKS = 256
_MERGED = 128


@dataclasses.dataclass(frozen=True)
class Tiles:
    """The partition of a dense tensor: sizes and strides of (outer, C, inner), and the block size in each."""

    outer: int
    channels: int
    inner: int
    outer_stride: int
    channel_stride: int
    inner_stride: int
    block_outer: int
    block_channels: int
    block_inner: int
    warps: int

    @classmethod
    def of(cls, x: Tensor, channels_last: bool) -> Tiles:
        samples, channels = x.shape[:2]
        space = x.numel() // (samples * channels)
        if channels_last or space == 1:
            block = min(triton.next_power_of_2(channels), _MAX_CHANNELS)
            outer = samples * space
            rows = min(_TILE // block, triton.next_power_of_2(outer))
            return cls(outer, channels, 1, channels, 1, 1, rows, block, 1, _warps(rows * block))
        block = min(triton.next_power_of_2(space), _TILE // 2)
        rows = min(_TILE // block, triton.next_power_of_2(samples))
        # For small planes of few samples, as in instance norm, several channels share a tile, as long as there are
        # enough programs to fill the GPU. A smaller tile gets fewer warps, so that none is idle.
        programs = channels * triton.cdiv(samples, rows) * triton.cdiv(space, block)
        adjacent = min(_TILE // (rows * block), triton.next_power_of_2(channels), max(1, programs // _PROGRAMS))
        adjacent = 1 << (adjacent.bit_length() - 1)
        return cls(
            samples, channels, space, channels * space, space, 1, rows, adjacent, block,
            _warps(rows * adjacent * block),
        )  # fmt: skip

    def with_more_rows(self, per_thread: int, x: Tensor, tensors: int = 1) -> Tiles:
        """Return tiles so large that a thread has about ``per_thread`` bytes of ``tensors`` tensors in flight.

        Memory latency is long, so the bytes in flight decide the bandwidth. Tiles grow only as long as there are enough
        programs to fill the GPU.
        """
        factor = min(per_thread // (_VALUES * x.element_size() * tensors), self.tiles * self.channel_tiles // _PROGRAMS)
        rows = self.block_outer << (max(1, factor).bit_length() - 1)
        return dataclasses.replace(self, block_outer=min(rows, triton.next_power_of_2(self.outer)))

    @property
    def outer_tiles(self) -> int:
        return triton.cdiv(self.outer, self.block_outer)

    @property
    def inner_tiles(self) -> int:
        return triton.cdiv(self.inner, self.block_inner)

    @property
    def channel_tiles(self) -> int:
        return triton.cdiv(self.channels, self.block_channels)

    @property
    def tiles(self) -> int:
        """Number of tiles of a channel, or of the adjacent channels that share tiles."""
        return self.outer_tiles * self.inner_tiles

    @property
    def tiles_per_chunk(self) -> int:
        """Number of tiles that one program reduces."""
        return triton.cdiv(self.tiles, min(max(1, _PROGRAMS // self.channel_tiles), _MAX_CHUNKS))

    @property
    def chunks(self) -> int:
        """Number of chunks of a channel, each reduced by one program; none is empty."""
        return triton.cdiv(self.tiles, self.tiles_per_chunk)

    @property
    def arguments(self) -> tuple[int, ...]:
        """The arguments that follow the pointers in every kernel."""
        return (self.outer, self.channels, self.inner, self.outer_stride, self.channel_stride, self.inner_stride)

    @property
    def blocks(self) -> dict[str, int]:
        return {
            "BLOCK_OUTER": self.block_outer,
            "BLOCK_CHANNELS": self.block_channels,
            "BLOCK_INNER": self.block_inner,
            "num_warps": self.warps,
        }


def _warps(values: int) -> int:
    """Return the largest number of warps that leaves no thread idle."""
    return max(1, min(_WARPS, values // (32 * _VALUES)))


@triton.jit
def _tile(
    tile, first_channel, outer, channels, inner, outer_stride, channel_stride, inner_stride,
    BLOCK_OUTER: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_INNER: tl.constexpr,
):  # fmt: skip
    """Offsets and mask of a tile; consecutive tiles advance along the inner dim first."""
    if BLOCK_INNER == 1:
        # The general case below, simplified so that the compiler can prove that rows are aligned to 16 bytes.
        o = tile * BLOCK_OUTER + tl.arange(0, BLOCK_OUTER)
        s = tl.arange(0, BLOCK_INNER)
    else:
        inner_tiles = tl.cdiv(inner, BLOCK_INNER)
        o = (tile // inner_tiles) * BLOCK_OUTER + tl.arange(0, BLOCK_OUTER)
        s = (tile % inner_tiles) * BLOCK_INNER + tl.arange(0, BLOCK_INNER)
    c = first_channel + tl.arange(0, BLOCK_CHANNELS)
    offsets = (
        o.to(tl.int64)[:, None, None] * outer_stride
        + c.to(tl.int64)[None, :, None] * channel_stride
        + s[None, None, :] * inner_stride
    )
    mask = (o < outer)[:, None, None] & (c < channels)[None, :, None] & (s < inner)[None, None, :]
    return offsets, mask


@triton.jit
def _count(tile, outer, inner, BLOCK_OUTER: tl.constexpr, BLOCK_INNER: tl.constexpr):
    """Number of values of each channel in a tile."""
    inner_tiles = tl.cdiv(inner, BLOCK_INNER)
    return tl.minimum(outer - (tile // inner_tiles) * BLOCK_OUTER, BLOCK_OUTER) * tl.minimum(
        inner - (tile % inner_tiles) * BLOCK_INNER, BLOCK_INNER
    )


@triton.jit
def _over_channel(x):
    """Sum of a tile for each of its channels."""
    return tl.sum(tl.sum(x, axis=2), axis=0)


@triton.jit
def _vector(pointer, c, channels, otherwise: tl.constexpr):
    """One value per channel, shaped to broadcast over a tile; `otherwise` if there is no vector."""
    if pointer is None:
        return tl.full(c.shape, otherwise, tl.float32)[None, :, None]
    else:
        return tl.load(pointer + c, mask=c < channels, other=otherwise).to(tl.float32)[None, :, None]


@triton.jit
def _place(channels, BLOCK_CHANNELS: tl.constexpr):
    """The tile or chunk of this program, and its first channel; channels advance first along the 1-d grid."""
    channel_tiles = tl.cdiv(channels, BLOCK_CHANNELS)
    return tl.program_id(0) // channel_tiles, (tl.program_id(0) % channel_tiles) * BLOCK_CHANNELS


@triton.jit
def _affine(mean_pointer, invstd_pointer, weight_pointer, bias_pointer, c, channels):
    """mean, r, gamma r and beta of a tile's channels."""
    invstd = _vector(invstd_pointer, c, channels, 0.0)
    scale = invstd * _vector(weight_pointer, c, channels, 1.0)
    return _vector(mean_pointer, c, channels, 0.0), invstd, scale, _vector(bias_pointer, c, channels, 0.0)


@triton.jit
def statistics_kernel(
    x_pointer, counts_pointer, means_pointer, squares_pointer,
    outer, channels, inner, outer_stride, channel_stride, inner_stride, tiles, tiles_per_chunk,
    BLOCK_OUTER: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_INNER: tl.constexpr,
):  # fmt: skip
    """Count (chunk,), mean and sum of squared deviations (chunk, C) of one chunk of a channel."""
    chunk, first_channel = _place(channels, BLOCK_CHANNELS)
    first = chunk * tiles_per_chunk
    last = tl.minimum(first + tiles_per_chunk, tiles)
    # Deviations are first taken from the first tile's mean: it is close to the chunk's mean, so that little cancels in
    # the correction at the end.
    offsets, mask = _tile(
        first, first_channel, outer, channels, inner, outer_stride, channel_stride, inner_stride,
        BLOCK_OUTER, BLOCK_CHANNELS, BLOCK_INNER,
    )  # fmt: skip
    x = tl.load(x_pointer + offsets, mask=mask, other=0.0).to(tl.float32)
    pivot = _over_channel(x) / _count(first, outer, inner, BLOCK_OUTER, BLOCK_INNER)
    # With an infinite pivot the mean would be NaN instead of infinite.
    pivot = tl.where(tl.abs(pivot) < float("inf"), pivot, 0.0)
    sums = tl.zeros((BLOCK_OUTER, BLOCK_CHANNELS, BLOCK_INNER), tl.float32)
    squares = tl.zeros((BLOCK_OUTER, BLOCK_CHANNELS, BLOCK_INNER), tl.float32)
    count = tl.zeros((), tl.int32)
    for tile in range(first, last):
        offsets, mask = _tile(
            tile, first_channel, outer, channels, inner, outer_stride, channel_stride, inner_stride,
            BLOCK_OUTER, BLOCK_CHANNELS, BLOCK_INNER,
        )  # fmt: skip
        x = tl.load(x_pointer + offsets, mask=mask, other=0.0).to(tl.float32)
        distance = tl.where(mask, x - pivot[None, :, None], 0.0)
        sums += distance
        squares += distance * distance
        count += _count(tile, outer, inner, BLOCK_OUTER, BLOCK_INNER)
    shift = _over_channel(sums) / count
    c = first_channel + tl.arange(0, BLOCK_CHANNELS)
    at = chunk * channels + c
    tl.store(counts_pointer + chunk, count.to(tl.float32))
    tl.store(means_pointer + at, pivot + shift, mask=c < channels)
    tl.store(squares_pointer + at, _over_channel(squares) - shift * shift * count, mask=c < channels)


@triton.jit
def _merge(counts_pointer, means_pointer, squares_pointer, k, last, c, channels):
    """Count, mean and sum of squared deviations of several chunks of each channel."""
    mask = (k < last)[:, None] & (c < channels)[None, :]
    at = k.to(tl.int64)[:, None] * channels + c[None, :]
    count = tl.load(counts_pointer + k, mask=k < last, other=0.0).to(tl.float64)[:, None]
    means = tl.load(means_pointer + at, mask=mask, other=0.0).to(tl.float64)
    squares = tl.load(squares_pointer + at, mask=mask, other=0.0).to(tl.float64)
    total = tl.sum(count)
    # The mean of an empty chunk is undefined.
    mask &= count > 0
    mean = tl.sum(tl.where(mask, count * means, 0.0), axis=0) / total
    distance = means - mean[None, :]
    square = tl.sum(tl.where(mask, squares + count * distance * distance, 0.0), axis=0)
    return total, mean, square


@triton.jit
def merge_statistics_kernel(
    counts_pointer, means_pointer, squares_pointer, merged_counts_pointer, merged_means_pointer, merged_squares_pointer,
    chunks, channels, BLOCK_CHUNKS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Merge BLOCK_CHUNKS chunks of a channel into one."""
    merged, first_channel = _place(channels, BLOCK_CHANNELS)
    k = merged * BLOCK_CHUNKS + tl.arange(0, BLOCK_CHUNKS)
    c = first_channel + tl.arange(0, BLOCK_CHANNELS)
    total, mean, square = _merge(counts_pointer, means_pointer, squares_pointer, k, chunks, c, channels)
    at = merged.to(tl.int64) * channels + c
    tl.store(merged_counts_pointer + merged, total.to(tl.float32))
    tl.store(merged_means_pointer + at, mean.to(tl.float32), mask=c < channels)
    tl.store(merged_squares_pointer + at, square.to(tl.float32), mask=c < channels)


@triton.jit
def finish_statistics_kernel(
    counts_pointer, means_pointer, squares_pointer, mean_pointer, invstd_pointer, running_mean_pointer,
    running_var_pointer, chunks, channels, momentum, eps, BLOCK_CHUNKS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Merge all chunks of a channel, and update the running statistics."""
    k = tl.arange(0, BLOCK_CHUNKS)
    c = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    total, mean, square = _merge(counts_pointer, means_pointer, squares_pointer, k, chunks, c, channels)
    # tl.maximum would turn NaN into 0.
    square = tl.where(square < 0, 0.0, square)
    var = square / total  # biased; the running variance below is unbiased
    tl.store(mean_pointer + c, mean.to(tl.float32), mask=c < channels)
    tl.store(invstd_pointer + c, (1 / tl.sqrt(var + eps)).to(tl.float32), mask=c < channels)
    if running_mean_pointer is not None:
        old_mean = tl.load(running_mean_pointer + c, mask=c < channels).to(tl.float64)
        old_var = tl.load(running_var_pointer + c, mask=c < channels).to(tl.float64)
        new_mean = momentum * mean + (1 - momentum) * old_mean
        new_var = momentum * square / (total - 1) + (1 - momentum) * old_var
        kind = running_mean_pointer.dtype.element_ty
        tl.store(running_mean_pointer + c, new_mean.to(tl.float32).to(kind), mask=c < channels)
        tl.store(running_var_pointer + c, new_var.to(tl.float32).to(kind), mask=c < channels)


@triton.jit
def normalize_kernel(
    x_pointer, y_pointer, mean_pointer, invstd_pointer, weight_pointer, bias_pointer,
    outer, channels, inner, outer_stride, channel_stride, inner_stride, slope, ACTIVATION: tl.constexpr,
    BLOCK_OUTER: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_INNER: tl.constexpr,
):  # fmt: skip
    """y = f(z)."""
    tile, first_channel = _place(channels, BLOCK_CHANNELS)
    offsets, mask = _tile(
        tile, first_channel,
        outer, channels, inner, outer_stride, channel_stride, inner_stride, BLOCK_OUTER, BLOCK_CHANNELS, BLOCK_INNER,
    )  # fmt: skip
    c = first_channel + tl.arange(0, BLOCK_CHANNELS)
    mean, _, scale, shift = _affine(mean_pointer, invstd_pointer, weight_pointer, bias_pointer, c, channels)
    x = tl.load(x_pointer + offsets, mask=mask).to(tl.float32)
    y = act.value((x - mean) * scale + shift, slope, ACTIVATION)
    tl.store(y_pointer + offsets, y.to(y_pointer.dtype.element_ty), mask=mask)


@triton.jit
def backward_sums_kernel(
    x_pointer, grad_pointer, mean_pointer, invstd_pointer, weight_pointer, bias_pointer, sums_pointer,
    outer, channels, inner, outer_stride, channel_stride, inner_stride, tiles, tiles_per_chunk, slope,
    ACTIVATION: tl.constexpr, BLOCK_OUTER: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_INNER: tl.constexpr,
):  # fmt: skip
    """Sums of u and of u xc over one chunk of a channel: (2, chunk, C)."""
    chunk, first_channel = _place(channels, BLOCK_CHANNELS)
    c = first_channel + tl.arange(0, BLOCK_CHANNELS)
    mean, _, scale, shift = _affine(mean_pointer, invstd_pointer, weight_pointer, bias_pointer, c, channels)
    sum_u = tl.zeros((BLOCK_OUTER, BLOCK_CHANNELS, BLOCK_INNER), tl.float32)
    sum_u_xc = tl.zeros((BLOCK_OUTER, BLOCK_CHANNELS, BLOCK_INNER), tl.float32)
    first = chunk * tiles_per_chunk
    for tile in range(first, tl.minimum(first + tiles_per_chunk, tiles)):
        offsets, mask = _tile(
            tile, first_channel, outer, channels, inner, outer_stride, channel_stride, inner_stride,
            BLOCK_OUTER, BLOCK_CHANNELS, BLOCK_INNER,
        )  # fmt: skip
        xc = tl.load(x_pointer + offsets, mask=mask, other=0.0).to(tl.float32) - mean
        grad = tl.load(grad_pointer + offsets, mask=mask, other=0.0).to(tl.float32)
        u = tl.where(mask, act.backward(grad, xc * scale + shift, slope, ACTIVATION), 0.0)
        sum_u += u
        sum_u_xc += tl.where(mask, u * xc, 0.0)
    at = chunk * channels + c
    tl.store(sums_pointer + at, _over_channel(sum_u), mask=c < channels)
    second = (tl.num_programs(0) // tl.cdiv(channels, BLOCK_CHANNELS)) * channels
    tl.store(sums_pointer + second + at, _over_channel(sum_u_xc), mask=c < channels)


@triton.jit
def finish_backward_kernel(
    sums_pointer, invstd_pointer, means_pointer, grad_weight_pointer, grad_bias_pointer, chunks, channels, count,
    BLOCK_CHUNKS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Merge a channel's chunks: means of u and u xc (2, C), and the gradients of the affine parameters."""
    k = tl.arange(0, BLOCK_CHUNKS)
    c = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    at = k[:, None] * channels + c[None, :]
    mask = (k < chunks)[:, None] & (c < channels)[None, :]
    sum_u = tl.sum(tl.load(sums_pointer + at, mask=mask, other=0.0).to(tl.float64), axis=0)
    sum_u_xc = tl.sum(tl.load(sums_pointer + chunks * channels + at, mask=mask, other=0.0).to(tl.float64), axis=0)
    invstd = tl.load(invstd_pointer + c, mask=c < channels, other=0.0).to(tl.float64)
    tl.store(means_pointer + c, (sum_u / count).to(tl.float32), mask=c < channels)
    tl.store(means_pointer + channels + c, (sum_u_xc / count).to(tl.float32), mask=c < channels)
    if grad_weight_pointer is not None:
        grad_weight = (invstd * sum_u_xc).to(tl.float32).to(grad_weight_pointer.dtype.element_ty)
        tl.store(grad_weight_pointer + c, grad_weight, mask=c < channels)
    if grad_bias_pointer is not None:
        grad_bias = sum_u.to(tl.float32).to(grad_bias_pointer.dtype.element_ty)
        tl.store(grad_bias_pointer + c, grad_bias, mask=c < channels)


@triton.jit
def backward_map_kernel(
    x_pointer, grad_pointer, mean_pointer, invstd_pointer, weight_pointer, bias_pointer, means_pointer,
    grad_input_pointer, outer, channels, inner, outer_stride, channel_stride, inner_stride, slope,
    THROUGH_STATISTICS: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_OUTER: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_INNER: tl.constexpr,
):  # fmt: skip
    """grad_input = gamma r (u - mean(u) - r^2 xc mean(u xc)); in evaluation mode gamma r u."""
    tile, first_channel = _place(channels, BLOCK_CHANNELS)
    offsets, mask = _tile(
        tile, first_channel,
        outer, channels, inner, outer_stride, channel_stride, inner_stride, BLOCK_OUTER, BLOCK_CHANNELS, BLOCK_INNER,
    )  # fmt: skip
    c = first_channel + tl.arange(0, BLOCK_CHANNELS)
    mean, invstd, scale, shift = _affine(mean_pointer, invstd_pointer, weight_pointer, bias_pointer, c, channels)
    xc = tl.load(x_pointer + offsets, mask=mask, other=0.0).to(tl.float32) - mean
    grad = tl.load(grad_pointer + offsets, mask=mask, other=0.0).to(tl.float32)
    result = scale * act.backward(grad, xc * scale + shift, slope, ACTIVATION)
    if THROUGH_STATISTICS:
        mean_u = _vector(means_pointer, c, channels, 0.0)
        mean_u_xc = _vector(means_pointer + channels, c, channels, 0.0)
        result -= scale * (invstd * invstd * mean_u_xc * xc + mean_u)
    tl.store(grad_input_pointer + offsets, result.to(grad_input_pointer.dtype.element_ty), mask=mask)


@triton.jit
def _sum_of_chunks(pointer, at, mask):
    """The sum of a channel's chunks in float64."""
    return tl.sum(tl.load(pointer + at, mask=mask, other=0.0).to(tl.float64), axis=0)


@triton.jit
def _parameter(pointer, c, channels, otherwise: tl.constexpr):
    """One value per channel in float64; `otherwise` if there is no vector."""
    if pointer is None:
        return tl.full(c.shape, otherwise, tl.float64)
    else:
        return tl.load(pointer + c, mask=c < channels, other=otherwise).to(tl.float64)


@triton.jit
def _double_terms(
    x_pointer, grad_pointer, cotangent_pointer, offsets, mask, mean, scale, shift, slope, ACTIVATION: tl.constexpr
):  # fmt: skip
    """xc, z, dL/dy, u and a of a tile."""
    xc = tl.load(x_pointer + offsets, mask=mask, other=0.0).to(tl.float32) - mean
    grad = tl.load(grad_pointer + offsets, mask=mask, other=0.0).to(tl.float32)
    z = xc * scale + shift
    if cotangent_pointer is None:
        a = tl.zeros_like(grad)
    else:
        a = tl.load(cotangent_pointer + offsets, mask=mask, other=0.0).to(tl.float32)
    return xc, z, grad, act.backward(grad, z, slope, ACTIVATION), a


@triton.jit
def double_sums_kernel(
    x_pointer, grad_pointer, cotangent_pointer, mean_pointer, invstd_pointer, weight_pointer, bias_pointer,
    sums_pointer, outer, channels, inner, outer_stride, channel_stride, inner_stride, tiles, tiles_per_chunk, slope,
    ACTIVATION: tl.constexpr, BLOCK_OUTER: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_INNER: tl.constexpr,
):  # fmt: skip
    """Sums of u, a, u xc, a xc and u a over one chunk of a channel: (5, chunk, C)."""
    chunk, first_channel = _place(channels, BLOCK_CHANNELS)
    c = first_channel + tl.arange(0, BLOCK_CHANNELS)
    mean, _, scale, shift = _affine(mean_pointer, invstd_pointer, weight_pointer, bias_pointer, c, channels)
    sum_u = tl.zeros((BLOCK_OUTER, BLOCK_CHANNELS, BLOCK_INNER), tl.float32)
    sum_a = tl.zeros((BLOCK_OUTER, BLOCK_CHANNELS, BLOCK_INNER), tl.float32)
    sum_u_xc = tl.zeros((BLOCK_OUTER, BLOCK_CHANNELS, BLOCK_INNER), tl.float32)
    sum_a_xc = tl.zeros((BLOCK_OUTER, BLOCK_CHANNELS, BLOCK_INNER), tl.float32)
    sum_u_a = tl.zeros((BLOCK_OUTER, BLOCK_CHANNELS, BLOCK_INNER), tl.float32)
    first = chunk * tiles_per_chunk
    for tile in range(first, tl.minimum(first + tiles_per_chunk, tiles)):
        offsets, mask = _tile(
            tile, first_channel, outer, channels, inner, outer_stride, channel_stride, inner_stride,
            BLOCK_OUTER, BLOCK_CHANNELS, BLOCK_INNER,
        )  # fmt: skip
        xc, _z, _grad, u, a = _double_terms(
            x_pointer, grad_pointer, cotangent_pointer, offsets, mask, mean, scale, shift, slope, ACTIVATION
        )
        u, xc = tl.where(mask, u, 0.0), tl.where(mask, xc, 0.0)
        sum_u += u
        sum_a += a
        sum_u_xc += u * xc
        sum_a_xc += a * xc
        sum_u_a += u * a
    at = chunk * channels + c
    each = (tl.num_programs(0) // tl.cdiv(channels, BLOCK_CHANNELS)) * channels
    tl.store(sums_pointer + at, _over_channel(sum_u), mask=c < channels)
    tl.store(sums_pointer + each + at, _over_channel(sum_a), mask=c < channels)
    tl.store(sums_pointer + 2 * each + at, _over_channel(sum_u_xc), mask=c < channels)
    tl.store(sums_pointer + 3 * each + at, _over_channel(sum_a_xc), mask=c < channels)
    tl.store(sums_pointer + 4 * each + at, _over_channel(sum_u_a), mask=c < channels)


@triton.jit
def finish_double_kernel(
    sums_pointer, curvature_pointer, invstd_pointer, weight_pointer, cotangent_weight_pointer, cotangent_bias_pointer,
    coefficients_pointer, grad_weight_pointer, grad_bias_pointer, chunks, channels, count,
    THROUGH_STATISTICS: tl.constexpr, BLOCK_CHUNKS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Merge a channel's chunks into the gradients of the affine parameters and five coefficients k (5, C).

    They give w = gamma r a + k0 xc + k1, the cotangent of u, and the gradient of the input,
    k0 u + k2 a + gamma r q + k3 xc + k4.
    """
    k = tl.arange(0, BLOCK_CHUNKS)
    c = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    at = k[:, None] * channels + c[None, :]
    mask = (k < chunks)[:, None] & (c < channels)[None, :]
    each = chunks * channels
    r = _parameter(invstd_pointer, c, channels, 0.0)
    gamma = _parameter(weight_pointer, c, channels, 1.0)
    scale = gamma * r
    covariance = _sum_of_chunks(sums_pointer + 4 * each, at, mask)
    # In evaluation mode the statistics do not depend on the input, so the terms with these means vanish.
    mean_u = tl.zeros_like(r)
    mean_a = tl.zeros_like(r)
    mean_u_xhat = tl.zeros_like(r)
    mean_a_xhat = tl.zeros_like(r)
    if THROUGH_STATISTICS:
        mean_u = _sum_of_chunks(sums_pointer, at, mask) / count
        mean_a = _sum_of_chunks(sums_pointer + each, at, mask) / count
        mean_u_xhat = r * _sum_of_chunks(sums_pointer + 2 * each, at, mask) / count
        mean_a_xhat = r * _sum_of_chunks(sums_pointer + 3 * each, at, mask) / count
        covariance -= count * (mean_u * mean_a + mean_u_xhat * mean_a_xhat)
    sum_q = tl.zeros_like(r)
    sum_q_xc = tl.zeros_like(r)
    if curvature_pointer is not None:
        sum_q = _sum_of_chunks(curvature_pointer, at, mask)
        sum_q_xc = _sum_of_chunks(curvature_pointer + each, at, mask)
    b = _parameter(cotangent_weight_pointer, c, channels, 0.0) - scale * mean_a_xhat
    by_xc = tl.zeros_like(r)
    by_one = tl.zeros_like(r)
    if THROUGH_STATISTICS:
        mean_h = mean_u * b - mean_a * scale * mean_u_xhat + gamma * sum_q / count
        mean_h_xhat = mean_u_xhat * b - mean_a_xhat * scale * mean_u_xhat + scale * sum_q_xc / count
        by_xc = -r * r * (mean_h_xhat + scale * covariance / count)
        by_one = -r * mean_h
    mask_c = c < channels
    b_beta = _parameter(cotangent_bias_pointer, c, channels, 0.0)
    tl.store(coefficients_pointer + c, (r * b).to(tl.float32), mask=mask_c)
    tl.store(coefficients_pointer + channels + c, (b_beta - scale * mean_a).to(tl.float32), mask=mask_c)
    tl.store(coefficients_pointer + 2 * channels + c, (-scale * r * mean_u_xhat).to(tl.float32), mask=mask_c)
    tl.store(coefficients_pointer + 3 * channels + c, by_xc.to(tl.float32), mask=mask_c)
    tl.store(coefficients_pointer + 4 * channels + c, by_one.to(tl.float32), mask=mask_c)
    if grad_weight_pointer is not None:
        grad_weight = (r * (covariance + sum_q_xc)).to(tl.float32).to(grad_weight_pointer.dtype.element_ty)
        tl.store(grad_weight_pointer + c, grad_weight, mask=mask_c)
    if grad_bias_pointer is not None:
        tl.store(grad_bias_pointer + c, sum_q.to(tl.float32).to(grad_bias_pointer.dtype.element_ty), mask=mask_c)


@triton.jit
def _cotangent_of_u(a, xc, scale, coefficients_pointer, c, channels):
    """The cotangent w of u for a tile."""
    by_xc = _vector(coefficients_pointer, c, channels, 0.0)
    return scale * a + (by_xc * xc + _vector(coefficients_pointer + channels, c, channels, 0.0))


@triton.jit
def curvature_sums_kernel(
    x_pointer, grad_pointer, cotangent_pointer, mean_pointer, invstd_pointer, weight_pointer, bias_pointer,
    coefficients_pointer, sums_pointer, outer, channels, inner, outer_stride, channel_stride, inner_stride,
    tiles, tiles_per_chunk, slope, ACTIVATION: tl.constexpr,
    BLOCK_OUTER: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_INNER: tl.constexpr,
):  # fmt: skip
    """Sums of q = dL/dy f''(z) w and of q xc over one chunk of a channel: (2, chunk, C)."""
    chunk, first_channel = _place(channels, BLOCK_CHANNELS)
    c = first_channel + tl.arange(0, BLOCK_CHANNELS)
    mean, _, scale, shift = _affine(mean_pointer, invstd_pointer, weight_pointer, bias_pointer, c, channels)
    sum_q = tl.zeros((BLOCK_OUTER, BLOCK_CHANNELS, BLOCK_INNER), tl.float32)
    sum_q_xc = tl.zeros((BLOCK_OUTER, BLOCK_CHANNELS, BLOCK_INNER), tl.float32)
    first = chunk * tiles_per_chunk
    for tile in range(first, tl.minimum(first + tiles_per_chunk, tiles)):
        offsets, mask = _tile(
            tile, first_channel, outer, channels, inner, outer_stride, channel_stride, inner_stride,
            BLOCK_OUTER, BLOCK_CHANNELS, BLOCK_INNER,
        )  # fmt: skip
        xc, z, grad, _u, a = _double_terms(
            x_pointer, grad_pointer, cotangent_pointer, offsets, mask, mean, scale, shift, slope, ACTIVATION
        )
        w = _cotangent_of_u(a, xc, scale, coefficients_pointer, c, channels)
        q = tl.where(mask, grad * act.curvature(z, ACTIVATION) * w, 0.0)
        sum_q += q
        sum_q_xc += tl.where(mask, q * xc, 0.0)
    at = chunk * channels + c
    each = (tl.num_programs(0) // tl.cdiv(channels, BLOCK_CHANNELS)) * channels
    tl.store(sums_pointer + at, _over_channel(sum_q), mask=c < channels)
    tl.store(sums_pointer + each + at, _over_channel(sum_q_xc), mask=c < channels)


@triton.jit
def double_map_kernel(
    x_pointer, grad_pointer, cotangent_pointer, mean_pointer, invstd_pointer, weight_pointer, bias_pointer,
    coefficients_pointer, grad_grad_pointer, grad_input_pointer,
    outer, channels, inner, outer_stride, channel_stride, inner_stride, slope,
    THROUGH_STATISTICS: tl.constexpr, CURVED: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_OUTER: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_INNER: tl.constexpr,
):  # fmt: skip
    """The gradients of dL/dy and of input, each if it has a pointer."""
    tile, first_channel = _place(channels, BLOCK_CHANNELS)
    offsets, mask = _tile(
        tile, first_channel,
        outer, channels, inner, outer_stride, channel_stride, inner_stride, BLOCK_OUTER, BLOCK_CHANNELS, BLOCK_INNER,
    )  # fmt: skip
    c = first_channel + tl.arange(0, BLOCK_CHANNELS)
    mean, _, scale, shift = _affine(mean_pointer, invstd_pointer, weight_pointer, bias_pointer, c, channels)
    xc, z, grad, u, a = _double_terms(
        x_pointer, grad_pointer, cotangent_pointer, offsets, mask, mean, scale, shift, slope, ACTIVATION
    )
    w = _cotangent_of_u(a, xc, scale, coefficients_pointer, c, channels)
    if grad_grad_pointer is not None:
        grad_grad = act.backward(w, z, slope, ACTIVATION)
        tl.store(grad_grad_pointer + offsets, grad_grad.to(grad_grad_pointer.dtype.element_ty), mask=mask)
    if grad_input_pointer is not None:
        result = _vector(coefficients_pointer, c, channels, 0.0) * u
        if CURVED:
            result += scale * (grad * act.curvature(z, ACTIVATION) * w)
        # Branching avoids NaN from coefficients of zero times an infinite xc.
        if THROUGH_STATISTICS:
            by_a = _vector(coefficients_pointer + 2 * channels, c, channels, 0.0)
            by_xc = _vector(coefficients_pointer + 3 * channels, c, channels, 0.0)
            result += by_a * a + (by_xc * xc + _vector(coefficients_pointer + 4 * channels, c, channels, 0.0))
        tl.store(grad_input_pointer + offsets, result.to(grad_input_pointer.dtype.element_ty), mask=mask)


def _check(input: Tensor) -> None:
    if input.dtype not in DTYPES:
        raise RuntimeError(f"{OP}: expected input dtype {DTYPE_NAMES} for backend triton, got {input.dtype}")


def _dense_with_tiles(x: Tensor) -> tuple[Tensor, Tiles]:
    """Return x dense in the memory format of its result, and its tiles."""
    memory_format = suggest_memory_format(x)
    tiles = Tiles.of(x, memory_format != torch.contiguous_format)
    if max(tiles.outer, tiles.inner, tiles.channels) > _MAX_ROWS:
        raise RuntimeError(
            f"{OP}: expected input with at most {_MAX_ROWS} channels, values per plane and rows (samples, or pixels if "
            f"channels-last) for backend triton, got shape {tuple(x.shape)}"
        )
    return x.contiguous(memory_format=memory_format), tiles


def _new_chunks(x: Tensor, chunks: int, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return empty tensors for the count, mean and sum of squared deviations of each chunk."""
    new = functools.partial(torch.empty, dtype=torch.float32, device=x.device)
    return new(chunks), new(chunks, channels), new(chunks, channels)


def _statistics(x: Tensor, tiles: Tiles) -> tuple[Tensor, Tensor, Tensor]:
    tiles = tiles.with_more_rows(_BYTES_OF_SUMS, x)
    statistics = _new_chunks(x, tiles.chunks, tiles.channels)
    statistics_kernel[(tiles.chunks * tiles.channel_tiles,)](
        x, *statistics, *tiles.arguments, tiles.tiles, tiles.tiles_per_chunk, **tiles.blocks
    )
    return statistics


def _merged(statistics: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Merge chunks until one program can merge the rest, in an order that depends only on their number."""
    chunks, channels = statistics[1].shape
    while chunks > _MAX_CHUNKS:
        fewer = _new_chunks(statistics[0], triton.cdiv(chunks, _MERGED), channels)
        block = min(triton.next_power_of_2(channels), 32)
        merge_statistics_kernel[(len(fewer[0]) * triton.cdiv(channels, block),)](
            *statistics, *fewer, chunks, channels, _MERGED, block, num_warps=_WARPS
        )
        statistics, chunks = fewer, len(fewer[0])
    return statistics


def _finish(channels: int, chunks: int, per_thread: int = 16) -> tuple[tuple[int], dict[str, int]]:
    """Return the grid and blocks of the programs that merge the last chunks, with ``per_thread`` values per thread."""
    rows = triton.next_power_of_2(chunks)
    # With few chunks a program takes many channels: up to half of the values of a full warp.
    block = min(triton.next_power_of_2(channels), max(8, 16 * per_thread // rows))
    # 16 values per thread by default: with 8 the sm_90 compiler assigns fewer registers to the statistics and spills.
    warps = max(1, rows * block // (32 * per_thread))
    return (triton.cdiv(channels, block),), {"BLOCK_CHUNKS": rows, "BLOCK_CHANNELS": block, "num_warps": warps}


def _vectors(*vectors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if t is None else t.contiguous() for t in vectors)


def _normalize(
    x: Tensor, tiles: Tiles, mean: Tensor, invstd: Tensor, weight: Tensor | None, bias: Tensor | None, activation: str,
    negative_slope: float,
) -> Tensor:  # fmt: skip
    y, tiles = torch.empty_like(x), tiles.with_more_rows(_BYTES_OF_MAPS, x)
    normalize_kernel[(tiles.tiles * tiles.channel_tiles,)](
        x, y, *_vectors(mean, invstd, weight, bias), *tiles.arguments, negative_slope, act.CODES[activation],
        **tiles.blocks,
    )  # fmt: skip
    return y


@launch.readable_arguments
def forward(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    activation: str,
    negative_slope: float,
    *statistics: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """torch.ops.gan_fast.batch_norm_act_forward; ``statistics`` are those that a convolution's kernel has computed."""
    _check(input)
    channels = input.size(1)
    if not training:
        if running_mean is None or running_var is None:
            raise RuntimeError(f"{OP}: expected running_mean and running_var tensors when training is False, got None")
        # A copy: an op's results must not alias its inputs.
        mean = running_mean.to(torch.float32, copy=True).contiguous()
        invstd = torch.rsqrt(running_var.to(torch.float32) + eps).contiguous()
    if not input.numel():
        if training:
            mean = torch.zeros(channels, dtype=torch.float32, device=input.device)
            invstd = mean.clone()
        return empty_output_like(input), mean, invstd
    with launch.on_device_of(input):
        x, tiles = _dense_with_tiles(input)
        if training:
            chunks = _merged(statistics or _statistics(x, tiles))
            mean, invstd = (torch.empty(channels, dtype=torch.float32, device=x.device) for _ in range(2))
            running = _vectors(running_mean, running_var)
            grid, blocks = _finish(channels, len(chunks[0]))
            finish_statistics_kernel[grid](
                *chunks, mean, invstd, *running, len(chunks[0]), channels, momentum, eps, **blocks
            )
            # _vectors copies a buffer that is not contiguous: write the update back.
            for buffer, updated in ((running_mean, running[0]), (running_var, running[1])):
                if buffer is not None and updated is not None and buffer is not updated:
                    buffer.copy_(updated)
        return _normalize(x, tiles, mean, invstd, weight, bias, activation, negative_slope), mean, invstd


@launch.readable_arguments
def normalize(
    input: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, bias: Tensor | None, activation: str,
    negative_slope: float,
) -> Tensor:  # fmt: skip
    """torch.ops.gan_fast.batch_norm_act_normalize."""
    _check(input)
    if not input.numel():
        return empty_output_like(input)
    with launch.on_device_of(input):
        x, tiles = _dense_with_tiles(input)
        return _normalize(x, tiles, mean, invstd, weight, bias, activation, negative_slope)


@launch.readable_arguments
def backward(
    grad_output: Tensor,
    input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    activation: str,
    negative_slope: float,
    input_wanted: bool,
    affine_wanted: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """torch.ops.gan_fast.batch_norm_act_backward."""
    _check(input)

    def parameter_grad(parameter: Tensor | None) -> Tensor | None:
        if parameter is None or not affine_wanted:
            return None
        new = torch.empty if input.numel() else torch.zeros
        return new(parameter.shape, dtype=parameter.dtype, device=parameter.device)

    grad_weight, grad_bias = parameter_grad(weight), parameter_grad(bias)
    if not input.numel():
        return empty_output_like(input) if input_wanted else None, grad_weight, grad_bias
    with launch.on_device_of(input):
        x, tiles = _dense_with_tiles(input)
        grad = grad_output.contiguous(memory_format=suggest_memory_format(input))
        vectors = _vectors(mean, invstd, weight, bias)
        options = (negative_slope, act.CODES[activation])
        means = None
        if training or affine_wanted:
            large = tiles.with_more_rows(_BYTES_OF_SUMS, x, 2)
            sums = torch.empty(2, large.chunks, tiles.channels, dtype=torch.float32, device=x.device)
            means = torch.empty(2, tiles.channels, dtype=torch.float32, device=x.device)
            backward_sums_kernel[(large.chunks * large.channel_tiles,)](
                x, grad, *vectors, sums, *large.arguments, large.tiles, large.tiles_per_chunk, *options, **large.blocks
            )
            grid, blocks = _finish(tiles.channels, large.chunks)
            finish_backward_kernel[grid](
                sums, vectors[1], means, grad_weight, grad_bias, large.chunks, tiles.channels,
                tiles.outer * tiles.inner, **blocks,
            )  # fmt: skip
        grad_input = None
        if input_wanted:
            grad_input = torch.empty_like(x)
            backward_map_kernel[(tiles.tiles * tiles.channel_tiles,)](
                x, grad, *vectors, means, grad_input, *tiles.arguments, negative_slope, training,
                act.CODES[activation], **tiles.blocks,
            )  # fmt: skip
        return grad_input, grad_weight, grad_bias


@launch.readable_arguments
def double_backward(
    cotangent_input: Tensor | None,
    cotangent_weight: Tensor | None,
    cotangent_bias: Tensor | None,
    grad_output: Tensor,
    input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    activation: str,
    negative_slope: float,
    grad_output_wanted: bool,
    input_wanted: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """torch.ops.gan_fast.batch_norm_act_double_backward."""
    _check(input)
    new = torch.empty if input.numel() else torch.zeros
    grad_weight, grad_bias = (
        None if p is None else new(p.shape, dtype=p.dtype, device=p.device) for p in (weight, bias)
    )
    if not input.numel():
        grad_grad, grad_input = (empty_output_like(input) if w else None for w in (grad_output_wanted, input_wanted))
        return grad_grad, grad_input, grad_weight, grad_bias
    with launch.on_device_of(input):
        x, tiles = _dense_with_tiles(input)
        memory_format = suggest_memory_format(input)
        grad, cotangent = (
            None if t is None else t.contiguous(memory_format=memory_format) for t in (grad_output, cotangent_input)
        )
        values = (x, grad, cotangent, *_vectors(mean, invstd, weight, bias))
        options = (negative_slope, act.CODES[activation])
        curved = activation in act.CURVED
        vectors = functools.partial(torch.empty, dtype=torch.float32, device=x.device)
        coefficients = vectors(5, tiles.channels)

        def finish(curvature: Tensor | None) -> None:
            # Up to seven sums at once: with more values per thread sm_120 spills.
            grid, blocks = _finish(tiles.channels, tiles.chunks, per_thread=8)
            finish_double_kernel[grid](
                sums, curvature, *_vectors(invstd, weight, cotangent_weight, cotangent_bias), coefficients,
                grad_weight, grad_bias, tiles.chunks, tiles.channels, tiles.outer * tiles.inner, training, **blocks,
            )  # fmt: skip

        sums = vectors(5, tiles.chunks, tiles.channels)
        each_chunk = (tiles.chunks * tiles.channel_tiles,)
        double_sums_kernel[each_chunk](
            *values, sums, *tiles.arguments, tiles.tiles, tiles.tiles_per_chunk, *options, **tiles.blocks
        )
        finish(None)
        if curved:
            curvature = vectors(2, tiles.chunks, tiles.channels)
            curvature_sums_kernel[each_chunk](
                *values, coefficients, curvature, *tiles.arguments, tiles.tiles, tiles.tiles_per_chunk, *options,
                **tiles.blocks,
            )  # fmt: skip
            finish(curvature)
        grad_grad, grad_input = (torch.empty_like(x) if w else None for w in (grad_output_wanted, input_wanted))
        if grad_output_wanted or input_wanted:
            double_map_kernel[(tiles.tiles * tiles.channel_tiles,)](
                *values, coefficients, grad_grad, grad_input, *tiles.arguments, negative_slope, training, curved,
                act.CODES[activation], **tiles.blocks,
            )  # fmt: skip
        return grad_grad, grad_input, grad_weight, grad_bias
