"""The sample norm penalty in Triton: two launches forward, one backward, and no synchronization with the host.

A tensor is viewed as (samples, values). Programs sum the squares of chunks of a sample in float64, and one program
merges the chunks. Their number depends only on the shape, so results are deterministic.

Tensor reads + writes: forward 1 + 0, backward 1 + 1.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gan_fast.triton_kernels import DTYPE_NAMES, DTYPES, launch

OP = "sample_norm_penalty"
_WARPS = 4
# Values of a tile: eight per thread, 16 bytes of bfloat16. With sixteen sm_90 spills, since sums are in float64.
_TILE = 8 * 32 * _WARPS
# Number of programs that keeps the largest GPU busy (an H100 has 132 multiprocessors).
_PROGRAMS = 528
# Sums that the merging program reads at a time. A sample has fewer chunks than this, since it has at most _PROGRAMS.
_MERGED = 1024


@triton.jit
def sum_squares_kernel(
    x_pointer, sums_pointer, length, chunks, tiles_per_chunk, TILE: tl.constexpr
):  # fmt: skip
    """Sum of squares of one chunk of a sample: (N, chunk)."""
    sample = (tl.program_id(0) // chunks).to(tl.int64)
    first = (tl.program_id(0) % chunks).to(tl.int64) * tiles_per_chunk * TILE
    total = tl.zeros((TILE,), tl.float64)
    for tile in range(tiles_per_chunk):
        i = first + tile * TILE + tl.arange(0, TILE)
        x = tl.load(x_pointer + sample * length + i, mask=i < length, other=0.0).to(tl.float64)
        total += x * x
    tl.store(sums_pointer + tl.program_id(0), tl.sum(total))


@triton.jit
def merge_norms_kernel(
    sums_pointer, coefficients_pointer, penalty_pointer, norms_pointer, samples, chunks, coefficients_stride,
    center, scale, BLOCK_SAMPLES: tl.constexpr, BLOCK_CHUNKS: tl.constexpr,
):  # fmt: skip
    """The norms of all samples, and the penalty."""
    total = tl.zeros((BLOCK_SAMPLES,), tl.float64)
    k = tl.arange(0, BLOCK_CHUNKS)
    for first in range(0, samples, BLOCK_SAMPLES):
        n = first + tl.arange(0, BLOCK_SAMPLES)
        mask = (n < samples)[:, None] & (k < chunks)[None, :]
        at = n.to(tl.int64)[:, None] * chunks + k[None, :]
        norm = tl.sqrt(tl.sum(tl.load(sums_pointer + at, mask=mask, other=0.0), axis=1))
        tl.store(norms_pointer + n, norm.to(tl.float32), mask=n < samples)
        deviation = (norm - center) * (norm - center)
        if coefficients_pointer is not None:
            at_coefficients = coefficients_pointer + n.to(tl.int64) * coefficients_stride
            deviation *= tl.load(at_coefficients, mask=n < samples, other=0.0).to(tl.float64)
        total += tl.where(n < samples, deviation, 0.0)
    tl.store(penalty_pointer, (scale * (tl.sum(total) / samples)).to(tl.float32))


@triton.jit
def scale_samples_kernel(
    x_pointer, grad_pointer, grad_penalty_pointer, norms_pointer, coefficients_pointer, samples, length, tiles,
    norms_stride, coefficients_stride, center, scale, TILE: tl.constexpr,
):  # fmt: skip
    """grad_penalty scale 2 c_n / N (1 - center / norm_n) x_n."""
    sample = (tl.program_id(0) // tiles).to(tl.int64)
    factor = tl.load(grad_penalty_pointer).to(tl.float64) * scale * 2.0 / samples
    if coefficients_pointer is not None:
        factor *= tl.load(coefficients_pointer + sample * coefficients_stride).to(tl.float64)
    if center != 0:
        norm = tl.load(norms_pointer + sample * norms_stride).to(tl.float64)
        # Infinity / infinity gives NaN, as in ATen. If the norm is 0, so is x, and the divisor does not matter.
        factor *= (norm - center) / tl.where(norm == 0, 1.0, norm)
    i = (tl.program_id(0) % tiles).to(tl.int64) * TILE + tl.arange(0, TILE)
    x = tl.load(x_pointer + sample * length + i, mask=i < length).to(tl.float64)
    grad = (factor * x).to(tl.float32).to(grad_pointer.dtype.element_ty)
    tl.store(grad_pointer + sample * length + i, grad, mask=i < length)


def _check(input: Tensor) -> None:
    if input.dtype not in DTYPES:
        raise RuntimeError(f"{OP}: expected input dtype {DTYPE_NAMES} for backend triton, got {input.dtype}")


@launch.readable_arguments
def forward(input: Tensor, coefficients: Tensor | None, center: float, scale: float) -> tuple[Tensor, Tensor]:
    """torch.ops.gan_fast.sample_norm_penalty_forward."""
    _check(input)
    samples = input.size(0)
    penalty = input.new_empty((), dtype=torch.float32)
    norms = input.new_empty(samples, dtype=torch.float32)
    if samples == 0:
        return penalty.fill_(float("nan")), norms
    x = launch.with_contiguous_samples(input)
    length = x.numel() // samples
    tiles = max(1, triton.cdiv(length, _TILE))
    tiles_per_chunk = triton.cdiv(tiles, min(tiles, max(1, _PROGRAMS // samples)))
    chunks = triton.cdiv(tiles, tiles_per_chunk)
    sums = input.new_empty(samples * chunks, dtype=torch.float64)
    block = triton.next_power_of_2(chunks)
    with launch.on_device_of(input):
        sum_squares_kernel[(samples * chunks,)](x, sums, length, chunks, tiles_per_chunk, _TILE, num_warps=_WARPS)
        merge_norms_kernel[(1,)](
            sums, coefficients, penalty, norms, samples, chunks,
            0 if coefficients is None else coefficients.stride(0), center, scale,
            min(triton.next_power_of_2(samples), _MERGED // block), block, num_warps=_WARPS,
        )  # fmt: skip
    return penalty, norms


@launch.readable_arguments
def backward(
    grad_penalty: Tensor, input: Tensor, norms: Tensor, coefficients: Tensor | None, center: float, scale: float
) -> Tensor:
    """torch.ops.gan_fast.sample_norm_penalty_backward."""
    _check(input)
    if input.numel() == 0:
        return torch.empty_like(input)
    x = launch.with_contiguous_samples(input)
    grad = torch.empty_like(x)
    samples = x.size(0)
    length = x.numel() // samples
    tiles = triton.cdiv(length, _TILE)
    with launch.on_device_of(input):
        scale_samples_kernel[(samples * tiles,)](
            x, grad, grad_penalty, norms, coefficients, samples, length, tiles, norms.stride(0),
            0 if coefficients is None else coefficients.stride(0), center, scale, _TILE, num_warps=_WARPS,
        )  # fmt: skip
    # Return the strides that ATen's elementwise ops give their results.
    return grad if x is input else torch.empty_like(input).copy_(grad)
