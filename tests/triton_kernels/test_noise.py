"""Triton kernels of interpolate, perturb and add_noise: what tests/ops/test_noise.py does not cover."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from triton_device import DEVICE, interpreted

import gan_fast
from gan_fast import ops

pytestmark = interpreted

# Values of a tile: four rows of 512.
TILE = 2048


def seed(value: int = 0) -> Tensor:
    return torch.tensor(value, device=DEVICE)


@pytest.fixture
def numbers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that replaces a random number generator of triton.language, which works in the interpreter only."""
    if DEVICE.type != "cpu":
        pytest.skip("needs the interpreter")
    import triton.language as tl

    return lambda name, draw: monkeypatch.setattr(tl, name, draw)


def test_normal_numbers_follow_box_muller_at_every_angle(numbers: Any) -> None:
    """With a wrong sign in one quarter turn the distribution would still be normal."""
    from gan_fast.triton_kernels import noise

    def draw(_: Any, offsets: Any) -> tuple[Any, ...]:
        turns = offsets / 512
        return 0.3 + 0 * turns, turns, 0.9 + 0 * turns, 1 - turns

    numbers("rand4x", draw)
    drawn = noise.add_noise(torch.zeros(TILE, dtype=torch.float32), 1.0, seed()).view(4, 512).double()
    angle = 2 * math.pi * torch.arange(512).double() / 512
    expected = [
        radius * part
        for radius, angle in ((math.sqrt(-2 * math.log(0.3)), angle), (math.sqrt(-2 * math.log(0.9)), -angle))
        for part in (angle.cos(), angle.sin())
    ]
    torch.testing.assert_close(drawn, torch.stack(expected), rtol=1e-5, atol=1e-6)


def test_interpolate_returns_exactly_real_for_u_zero(numbers: Any) -> None:
    from gan_fast.triton_kernels import noise

    numbers("rand", lambda *_: 0.0)
    real, fake = torch.randn(4, 50) * 1e-3, torch.randn(4, 50) * 1e3
    assert torch.equal(noise.interpolate(real, fake, seed())[0], real)


@pytest.mark.parametrize("length", [1, 511, 513, TILE - 1, TILE, TILE + 1, 3 * TILE + 700])
def test_no_number_is_used_twice(length: int) -> None:
    from gan_fast.triton_kernels import noise

    x = torch.zeros(3, length, device=DEVICE)
    normal = noise.add_noise(x, 1.0, seed())
    # Some 24-bit numbers are equal by chance; if a counter were used twice, many more would be.
    by_chance = 5 + x.numel() ** 2 / 2**23
    assert normal.unique().numel() >= normal.numel() - by_chance
    uniform = noise.perturb(x, torch.ones((), device=DEVICE), seed(), 1.0)
    uniform = uniform / uniform.amax(1, keepdim=True)
    assert uniform.unique().numel() >= uniform.numel() - by_chance
    # The number of a sample is the same as in interpolate with the same seed.
    drawn = noise.perturb(torch.zeros(3, 4000, device=DEVICE), torch.ones((), device=DEVICE), seed(), 1.0).amax(1)
    torch.testing.assert_close(drawn, noise.interpolate(x, x, seed())[1], rtol=5e-3, atol=0)


def test_numbers_depend_on_all_bits_of_the_seed_and_not_on_the_dtype() -> None:
    from gan_fast.triton_kernels import noise

    x = torch.zeros(2, 3000, device=DEVICE)
    first = noise.add_noise(x, 1.0, seed(5))
    torch.testing.assert_close(noise.add_noise(x.half(), 1.0, seed(5)).float(), first, rtol=2e-3, atol=1e-4)
    for other in (6, 5 + 2**32, 5 + 2**62):
        assert not torch.equal(noise.add_noise(x, 1.0, seed(other)), first)
        assert not torch.equal(noise.interpolate(x, x + 1, seed(other))[1], noise.interpolate(x, x + 1, seed(5))[1])


def test_each_op_is_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    from gan_fast.triton_kernels import noise

    launched: list[str] = []

    class Count:
        def __init__(self, name: str) -> None:
            self.name, self.kernel = name, getattr(noise, name)

        def __getitem__(self, grid: Any) -> Any:
            launched.append(self.name)
            return self.kernel[grid]

    for name in ("interpolate_kernel", "perturb_kernel", "add_noise_kernel"):
        monkeypatch.setattr(noise, name, Count(name))
    x = torch.randn(3, 5, device=DEVICE)
    with gan_fast.use_backend("triton"):
        ops.interpolate_samples(x, x)
        ops.perturb(x)
        ops.add_noise(x, 0.1)
    assert launched == ["interpolate_kernel", "perturb_kernel", "add_noise_kernel"]


@pytest.mark.gpu
def test_cuda_graph_draws_new_numbers_at_each_replay() -> None:
    x, std = torch.zeros(4, 3000, device=DEVICE), torch.ones((), device=DEVICE)
    ops.add_noise(x, std)
    ops.perturb(x + 1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        noisy, between = ops.add_noise(x, std), ops.interpolate_samples(x, x + 1)
        ops.perturb(x)
    found = []
    for value in (1.0, 0.5):
        std.fill_(value)
        graph.replay()
        found.append((noisy.clone(), between[:, 0].clone()))
    assert abs(found[1][0].std().item() - 0.5) < 0.05
    assert not torch.equal(found[0][0] / 2, found[1][0])
    assert not torch.equal(found[0][1], found[1][1])


# Needs 12 GiB of GPU memory.
@pytest.mark.gpu
def test_more_values_than_2_to_the_31_are_processed() -> None:
    x = torch.zeros(2**31 + 2 * TILE + 3, dtype=torch.float16, device=DEVICE)
    noisy = ops.add_noise(x, 1.0)
    assert abs(noisy[-TILE:].float().std().item() - 1) < 0.1
    assert not torch.equal(noisy[:TILE], noisy[2**31 : 2**31 + TILE])
