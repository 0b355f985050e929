"""Images with random numbers in Triton, made where they are used: one pass over the images, no tensor of noise.

Philox counts (Salmon, Moraes, Dror and Shaw, 2011) with a key that lies on the device, so that neither the host waits
nor a CUDA graph replays the numbers it was captured with. A count gives four numbers: a program takes four rows of
values, and a thread writes 16 bytes of each. Counts are 64-bit, and none is used twice under one key.

Reads and writes: interpolate 2 + 1, perturb and add_noise 1 + 1.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gan_fast.triton_kernels import launch

_WARPS = 4
# 16 bytes of a row for each thread.
_ROW_BYTES = 16 * 32 * _WARPS
_ROWS = 4
# Values of a tile where none is drawn for itself: eight for each thread.
_TILE = 8 * 32 * _WARPS
# Where numbers of samples are counted from: no value's count comes so far.
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
    """y = x + noise for a row of a sample's values."""
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
def add_noise_kernel(x_pointer, y_pointer, std_pointer, seed_pointer, length, std, COLUMNS: tl.constexpr):
    """x + std N(0, 1); std from the device where there is a pointer to it."""
    if std_pointer is not None:
        std = tl.load(std_pointer).to(tl.float32)
    column = tl.arange(0, COLUMNS)
    tile = tl.program_id(0).to(tl.int64)
    a, b, c, d = tl.randn4x(tl.load(seed_pointer), tile * COLUMNS + column)
    i = tile * (4 * COLUMNS) + column
    _add(x_pointer, y_pointer, 0, i, length, std * a)
    _add(x_pointer, y_pointer, 0, i + COLUMNS, length, std * b)
    _add(x_pointer, y_pointer, 0, i + 2 * COLUMNS, length, std * c)
    _add(x_pointer, y_pointer, 0, i + 3 * COLUMNS, length, std * d)


def _columns(x: Tensor) -> int:
    return _ROW_BYTES // x.element_size()


@launch.of_values
def interpolate(real: Tensor, fake: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
    """Return real + u_n (fake - real), and u, (N,) float32."""
    x = launch.sample_by_sample(real)
    y = launch.in_order_of(fake, x)
    output = torch.empty_like(x)
    samples = x.size(0)
    u = x.new_empty(samples, dtype=torch.float32)
    if samples:
        length = x.numel() // samples
        tiles = max(1, triton.cdiv(length, _TILE))
        with launch.on(x):
            interpolate_kernel[(samples * tiles,)](x, y, output, u, seed, length, tiles, _TILE, num_warps=_WARPS)
    return output, u


@launch.of_values
def perturb(real: Tensor, std: Tensor, seed: Tensor, scale: float) -> Tensor:
    """Return real + u_n scale std U[0, 1) per value."""
    x = launch.sample_by_sample(real)
    output = torch.empty_like(x)
    if x.numel():
        columns = _columns(x)
        tiles = triton.cdiv(x.numel() // x.size(0), _ROWS * columns)
        with launch.on(x):
            perturb_kernel[(x.size(0) * tiles,)](
                x, output, std, seed, x.numel() // x.size(0), tiles, scale, columns, num_warps=_WARPS
            )
    return output


@launch.of_values
def add_noise(input: Tensor, std: float | Tensor, seed: Tensor) -> Tensor:
    """Return input + std N(0, 1) per value."""
    output = torch.empty_like(input)
    if input.numel():
        x = launch.in_order_of(input, output)
        columns = _columns(x)
        on_device = isinstance(std, Tensor)
        with launch.on(x):
            add_noise_kernel[(triton.cdiv(x.numel(), _ROWS * columns),)](
                x, output, std if on_device else None, seed, x.numel(), 0.0 if on_device else float(std), columns,
                num_warps=_WARPS,
            )  # fmt: skip
    return output
