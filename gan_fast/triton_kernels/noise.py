"""Random interpolation, perturbation and noise in Triton: numbers are drawn where they are used, in one pass.

The generator is the counter-based Philox (Salmon, Moraes, Dror and Shaw, 2011). Its seed is in device memory, so that
the host does not wait for it and a CUDA graph draws new numbers at each replay. A counter gives four numbers: a program
handles four rows of values, and a thread four adjacent values of each row. Counters are 64-bit and no counter is used
twice with one seed. The numbers do not depend on the dtype.

Tensor reads + writes: interpolate 2 + 1, perturb and add_noise 1 + 1.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gan_fast.triton_kernels import launch

_WARPS = 4
_ROWS = 4
_COLUMNS = 4 * 32 * _WARPS
# Values of a tile of interpolate, which draws one number per sample and none per value: eight per thread.
_TILE = 8 * 32 * _WARPS
# Counter of the first sample's number; the counters of values never reach it.
_SAMPLES: tl.constexpr = tl.constexpr(2**62)


@triton.jit
def interpolate_kernel(
    real_pointer, fake_pointer, output_pointer, u_pointer, seed_pointer, length, tiles, TILE: tl.constexpr
):
    """real + u_n (fake - real), and u_n."""
    sample = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    u = tl.rand(tl.load(seed_pointer), sample + _SAMPLES)
    i = tile.to(tl.int64) * TILE + tl.arange(0, TILE)
    at = sample * length + i
    real = tl.load(real_pointer + at, mask=i < length).to(tl.float32)
    fake = tl.load(fake_pointer + at, mask=i < length).to(tl.float32)
    output = (real + u * (fake - real)).to(output_pointer.dtype.element_ty)
    tl.store(output_pointer + at, output, mask=i < length)
    if tile == 0:
        tl.store(u_pointer + sample, u)


@triton.jit
def _add(x_pointer, y_pointer, begin, i, length, noise):
    """y = x + noise for one row of values."""
    x = tl.load(x_pointer + begin + i, mask=i < length).to(tl.float32)
    tl.store(y_pointer + begin + i, (x + noise).to(y_pointer.dtype.element_ty), mask=i < length)


@triton.jit
def perturb_kernel(x_pointer, y_pointer, std_pointer, seed_pointer, length, tiles, scale, COLUMNS: tl.constexpr):
    """x + u_n scale std U[0, 1)."""
    sample = (tl.program_id(0) // tiles).to(tl.int64)
    seed = tl.load(seed_pointer)
    factor = tl.rand(seed, sample + _SAMPLES) * scale * tl.load(std_pointer).to(tl.float32)
    column = tl.arange(0, COLUMNS)
    a, b, c, d = tl.rand4x(seed, tl.program_id(0).to(tl.int64) * COLUMNS + column)
    begin = sample * length
    i = (tl.program_id(0) % tiles).to(tl.int64) * (4 * COLUMNS) + column
    _add(x_pointer, y_pointer, begin, i, length, factor * a)
    _add(x_pointer, y_pointer, begin, i + COLUMNS, length, factor * b)
    _add(x_pointer, y_pointer, begin, i + 2 * COLUMNS, length, factor * c)
    _add(x_pointer, y_pointer, begin, i + 3 * COLUMNS, length, factor * d)


@triton.jit
def _normal(u, v):
    """Two numbers of N(0, 1) from two of U[0, 1) (Box and Muller, 1958).

    tl.cos and tl.sin use a table on the stack to reduce large angles. Here the angle is within one turn, so subtracting
    the nearest quarter turn is enough.
    """
    radius = tl.sqrt(-2.0 * tl.log(tl.maximum(u, 1e-7)))
    quarter = tl.floor(4.0 * v + 0.5)
    angle = (4.0 * v - quarter) * 1.5707963267948966
    square = angle * angle
    # Taylor series, accurate to float32 rounding within an eighth of a turn.
    cos = 1.0 + square * (-1 / 2 + square * (1 / 24 + square * (-1 / 720 + square * (1 / 40320))))
    sin = angle * (1.0 + square * (-1 / 6 + square * (1 / 120 + square * (-1 / 5040 + square * (1 / 362880)))))
    odd = (quarter == 1.0) | (quarter == 3.0)
    x = tl.where(odd, sin, cos) * tl.where((quarter == 1.0) | (quarter == 2.0), -radius, radius)
    y = tl.where(odd, cos, sin) * tl.where((quarter == 2.0) | (quarter == 3.0), -radius, radius)
    return x, y


@triton.jit
def add_noise_kernel(x_pointer, y_pointer, std_pointer, seed_pointer, length, std, COLUMNS: tl.constexpr):
    """x + std N(0, 1); std is read from the device if there is a pointer to it."""
    if std_pointer is not None:
        std = tl.load(std_pointer).to(tl.float32)
    column = tl.arange(0, COLUMNS)
    tile = tl.program_id(0).to(tl.int64)
    a, b, c, d = tl.rand4x(tl.load(seed_pointer), tile * COLUMNS + column)
    a, b = _normal(a, b)
    c, d = _normal(c, d)
    i = tile * (4 * COLUMNS) + column
    _add(x_pointer, y_pointer, 0, i, length, std * a)
    _add(x_pointer, y_pointer, 0, i + COLUMNS, length, std * b)
    _add(x_pointer, y_pointer, 0, i + 2 * COLUMNS, length, std * c)
    _add(x_pointer, y_pointer, 0, i + 3 * COLUMNS, length, std * d)


@launch.readable_arguments
def interpolate(real: Tensor, fake: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
    """Return real + u_n (fake - real), and u, (N,) float32."""
    x = launch.with_contiguous_samples(real)
    y = launch.in_memory_order_of(fake, x)
    output = torch.empty_like(x)
    samples = x.size(0)
    u = x.new_empty(samples, dtype=torch.float32)
    if samples:
        length = x.numel() // samples
        tiles = max(1, triton.cdiv(length, _TILE))
        with launch.on_device_of(x):
            interpolate_kernel[(samples * tiles,)](x, y, output, u, seed, length, tiles, _TILE, num_warps=_WARPS)
    return output, u


@launch.readable_arguments
def perturb(real: Tensor, std: Tensor, seed: Tensor, scale: float) -> Tensor:
    """Return real + u_n scale std U[0, 1) per value."""
    x = launch.with_contiguous_samples(real)
    output = torch.empty_like(x)
    if x.numel():
        tiles = triton.cdiv(x.numel() // x.size(0), _ROWS * _COLUMNS)
        with launch.on_device_of(x):
            perturb_kernel[(x.size(0) * tiles,)](
                x, output, std, seed, x.numel() // x.size(0), tiles, scale, _COLUMNS, num_warps=_WARPS
            )
    return output


@launch.readable_arguments
def add_noise(input: Tensor, std: float | Tensor, seed: Tensor) -> Tensor:
    """Return input + std N(0, 1) per value."""
    output = torch.empty_like(input)
    if input.numel():
        x = launch.in_memory_order_of(input, output)
        on_device = isinstance(std, Tensor)
        with launch.on_device_of(x):
            add_noise_kernel[(triton.cdiv(x.numel(), _ROWS * _COLUMNS),)](
                x, output, std if on_device else None, seed, x.numel(), 0.0 if on_device else float(std), _COLUMNS,
                num_warps=_WARPS,
            )  # fmt: skip
    return output
