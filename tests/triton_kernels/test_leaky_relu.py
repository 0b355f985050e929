"""The Triton kernels of leaky_relu, interpreted on a CPU, against ATen's: values, strides, and what is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from derivatives import cotangent, in_double, second_order, strides
from samples import LAYOUTS
from tolerances import assert_as_exact, few_numbers_factor
from torch import Tensor
from triton_device import DEVICE, interpreted

import gan_fast
from gan_fast import backends
from gan_fast.ops import conv2d_act, leaky_relu

pytestmark = interpreted

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Values of a tile: eight rows of 512 or, of half types, 1024.
TILE = 8192


def on_triton(*arguments: Any, **named: Any) -> Tensor:
    with gan_fast.use_backend("triton"):
        return leaky_relu(*arguments, **named)


def values(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype).to(DEVICE)


def compare(input: Tensor, negative_slope: float) -> None:
    """Output and derivatives to second order; bits that a GPU rounds and the interpreter cuts off are allowed for."""
    arguments = {"input": input.detach().requires_grad_(), "negative_slope": negative_slope}
    ours = second_order(on_triton, arguments)
    eager = second_order(F.leaky_relu, arguments)
    exact = second_order(F.leaky_relu, in_double(arguments), input.dtype)
    # None by the input, where ATen has zeros.
    assert not eager.pop("second_input").count_nonzero()
    assert ours.keys() == eager.keys()
    for name, value in eager.items():
        factor = 4.0 if input.dtype == torch.bfloat16 else few_numbers_factor(value)
        assert_as_exact(ours[name], value, exact[name], name, factor)
        assert strides(ours[name]) == strides(value), name


@pytest.mark.parametrize("negative_slope", [0.2, 0.0, -0.5, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_slope_and_dtype(dtype: torch.dtype, negative_slope: float) -> None:
    compare(values((3, 4, 5, 6), dtype), negative_slope)


@pytest.mark.parametrize(
    "count", [0, 1, 7, 16, 1023, 4096, 4097, TILE - 1, TILE, TILE + 1, TILE + 1024, 2 * TILE, 2 * TILE + 4111]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_number_of_values(dtype: torch.dtype, count: int) -> None:
    """None, within a row, a tile to the last value and one more or less, several programs."""
    compare(values((count,), dtype), 0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout: str, dtype: torch.dtype) -> None:
    for shape in ((3, 4, 5, 6), (2, 3, 2, 3, 2), (4, 6), (2, 5, 33, 31)):
        compare(LAYOUTS[layout](values(shape, dtype)), 0.2)


def test_no_dims_and_none_of_a_size() -> None:
    compare(values((), torch.float32), 0.2)
    compare(values((3, 0, 2), torch.float32), 0.2)
    compare(-values((1, 1, 1, 1), torch.float32).abs().contiguous(memory_format=torch.channels_last), 0.2)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
def test_gradients_of_other_strides(layout: str) -> None:
    """Expanded, transposed, channels-last and contiguous, with gaps, negated by a bit: brought into the bits' order."""
    x = LAYOUTS[layout](values((3, 4, 5, 6), torch.float32)).detach().requires_grad_()
    ours, eager = on_triton(x, 0.2), F.leaky_relu(x, 0.2)
    grads = {name: change(values((3, 4, 5, 6), torch.float32)) for name, change in LAYOUTS.items()}
    grads["sum's"] = torch.tensor(2.0, device=DEVICE).expand(3, 4, 5, 6)
    grads["negated"] = torch._neg_view(values((3, 4, 5, 6), torch.float32))
    for name, grad in grads.items():
        (want,) = torch.autograd.grad(eager, x, grad, retain_graph=True)
        (found,) = torch.autograd.grad(ours, x, grad, retain_graph=True)
        assert torch.equal(found, want), name
        assert found.stride() == want.stride(), name


def test_a_negated_input() -> None:
    x = torch._neg_view(values((3, 5), torch.float32))
    assert torch.equal(on_triton(x, 0.2), F.leaky_relu(x, 0.2))


@pytest.mark.parametrize("negative_slope", [0.2, 0.0, -0.5, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_infinities_nan_and_zeros_as_in_aten(dtype: torch.dtype, negative_slope: float) -> None:
    inf, nan = float("inf"), float("nan")
    # Of which a fraction is subnormal, but for bfloat16's, which the interpreter gets wrong.
    tiny = torch.finfo(dtype).tiny * (16 if dtype == torch.bfloat16 else 1)
    special = torch.tensor([0.0, -0.0, inf, -inf, nan, 1.0, -1.0, tiny, -tiny])
    x = special.to(dtype).to(DEVICE).repeat_interleave(len(special)).requires_grad_()
    grad = special.to(dtype).to(DEVICE).repeat(len(special))
    results = []
    for function in (on_triton, F.leaky_relu):
        output = function(x, negative_slope)
        seed = grad.clone().requires_grad_()
        (first,) = torch.autograd.grad(output, x, seed, create_graph=True)
        (second,) = torch.autograd.grad(first, seed, grad.flip(0))
        results.append((output.detach(), first.detach(), second))
    for ours, want in zip(*results):
        # To the last bit, but for bfloat16, which the interpreter cuts off.
        rtol = torch.finfo(dtype).eps if dtype == torch.bfloat16 else 0
        torch.testing.assert_close(ours, want, rtol=rtol, atol=0, equal_nan=True)
        assert torch.equal(ours.signbit() & ~ours.isnan(), want.signbit() & ~want.isnan())


@pytest.mark.parametrize("negative_slope", [0, 1, True])
def test_a_whole_number_as_slope(negative_slope: int) -> None:
    x = values((50,), torch.float32)
    assert torch.equal(on_triton(x, negative_slope), F.leaky_relu(x, negative_slope))


def kept(function: Callable[[], Tensor]) -> list[Tensor]:
    tensors: list[Tensor] = []

    def keep(t: Tensor) -> Tensor:
        tensors.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        function()
    return tensors


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_bit_a_value_is_kept(dtype: torch.dtype) -> None:
    x = values((5, TILE), dtype).requires_grad_()
    (signs,) = kept(lambda: on_triton(x, 0.2))
    assert signs.untyped_storage().nbytes() == x.numel() / 8
    # A tile is filled up.
    (signs,) = kept(lambda: on_triton(x[:, :-1].contiguous(), 0.2))
    assert x.numel() / 8 >= signs.untyped_storage().nbytes() > (x.numel() - TILE) / 8


def test_the_second_backward_keeps_those_bits_and_no_input() -> None:
    x = values((3, 50), torch.float32).requires_grad_()
    seed = torch.ones_like(x, requires_grad=True)
    output = on_triton(x, 0.2)
    (signs,) = output.grad_fn.saved_tensors
    results = []
    for kept_tensor in kept(lambda: results.extend(torch.autograd.grad(output, x, seed, create_graph=True))):
        assert kept_tensor.data_ptr() == signs.data_ptr()
    (first,) = results
    assert torch.autograd.grad(first.sum(), x, allow_unused=True, retain_graph=True) == (None,)
    # Third order and on: linear in the cotangent.
    cotangents = values((3, 50), torch.float32).requires_grad_()
    (second,) = torch.autograd.grad(first, seed, cotangents, create_graph=True)
    (third,) = torch.autograd.grad(second.square().sum(), cotangents)
    slope = torch.where(x > 0, 1.0, 0.2).detach()
    torch.testing.assert_close(third, 2 * cotangents.detach() * slope**2)


def test_nothing_is_kept_without_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    from gan_fast.triton_kernels import leaky_relu as kernels

    forward, found = kernels.forward, []
    monkeypatch.setattr(kernels, "forward", lambda *a: found.append(forward(*a)) or found[-1])
    x = values((300,), torch.float32)
    assert torch.equal(on_triton(x, 0.2), F.leaky_relu(x, 0.2))
    assert found[0][1] is None


def test_an_input_that_changes_later_does_no_harm() -> None:
    x = values((50,), torch.float32).requires_grad_()
    y = x * 1
    z = on_triton(y, 0.2)
    y.zero_()
    (grad,) = torch.autograd.grad(z.sum(), x)
    assert torch.equal(grad, torch.where(x > 0, 1.0, 0.2).detach())


def test_batched_gradients() -> None:
    """Without storage of their own: by ATen's ops, from the bits of every stride order."""
    for layout in ("contiguous", "channels_last", "transposed"):
        x = LAYOUTS[layout](values((3, 4, 5, 6), torch.float32)).detach().requires_grad_()
        grads = cotangent(torch.empty(2, 3, 4, 5, 6, device=DEVICE), 0, torch.float32)
        ours, want = (
            torch.autograd.grad(function(x, 0.2), x, grads, is_grads_batched=True)
            for function in (on_triton, F.leaky_relu)
        )
        assert torch.equal(*ours, *want)
    nothing = torch.empty(0, 3, device=DEVICE, requires_grad=True)
    grads_of_nothing = torch.empty(2, 0, 3, device=DEVICE)
    (grad,) = torch.autograd.grad(on_triton(nothing), nothing, grads_of_nothing, is_grads_batched=True)
    assert grad.shape == (2, 0, 3)
    with pytest.raises(NotImplementedError, match="leaky_relu_backward: expected create_graph False"):
        torch.autograd.grad(on_triton(x, 0.2), x, grads, is_grads_batched=True, create_graph=True)


def test_backward_runs_on_what_its_forward_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    from gan_fast.triton_kernels import leaky_relu as kernels

    x = values((50,), torch.float32).requires_grad_()
    ours, other = on_triton(x, 0.2), leaky_relu(x, 0.2)
    calls: list[int] = []
    backward = kernels.backward
    monkeypatch.setattr(kernels, "backward", lambda *a: calls.append(1) or backward(*a))
    with gan_fast.use_backend("reference"):
        (grad,) = torch.autograd.grad(ours.sum(), x)
    assert calls == [1]
    if not x.is_cuda:
        with gan_fast.use_backend("triton"):
            assert torch.equal(*torch.autograd.grad(other.sum(), x), grad)
        assert calls == [1]


def test_a_block_with_a_slope_below_zero() -> None:
    x, weight = values((2, 3, 8, 8), torch.float32), values((4, 3, 3, 3), torch.float32).requires_grad_()
    with gan_fast.use_backend("triton"):
        ours = conv2d_act(x, weight, activation="leaky_relu", negative_slope=-0.5)
    want = F.leaky_relu(F.conv2d(x, weight), -0.5)
    torch.testing.assert_close(ours, want, rtol=1e-4, atol=1e-4)
    grads = [torch.autograd.grad(t.square().sum(), weight)[0] for t in (ours, want)]
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-3)


def test_who_serves_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """ATen's kernels in our nodes where they are asked for; else what is quicker."""
    x = values((4, 5), torch.float32)
    with gan_fast.use_backend(x.device.type):
        assert backends.triton_kernels("leaky_relu", x) is None
    monkeypatch.setattr(backends, "_launch_failure", lambda: None)
    assert backends.candidates("leaky_relu", "cuda", torch.float32) == ["cuda", "triton", "reference"]
    assert backends.candidates("leaky_relu", "cuda", torch.float64) == ["cuda", "reference"]
    assert backends._explain("leaky_relu", "cuda").startswith("the quickest of cuda, triton, reference, measured")
    assert backends._explain("leaky_relu", "cpu").startswith("our autograd nodes around")


def test_what_triton_cannot_take_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"leaky_relu: .*: no Triton kernel for torch\.float64"):
        on_triton(values((3,), torch.float64))


# Needs 12 GiB of GPU memory.
@pytest.mark.gpu
def test_more_values_than_32_bits_can_tell() -> None:
    from gan_fast.triton_kernels import leaky_relu as kernels

    x = torch.full((2**31 + 2 * TILE + 3,), -1.0, dtype=torch.float16, device=DEVICE)
    ends = [0, TILE, 2**31 - 1, 2**31, 2**31 + TILE, x.numel() - 1]
    x[ends] = 2.0
    output, signs = kernels.forward(x, 0.5, True)
    assert output.sum(dtype=torch.float64).item() == -0.5 * (x.numel() - len(ends)) + 2 * len(ends)
    assert bool((output[ends] == 2).all())
    del output
    grad_input = kernels.backward(x, signs, (1,), 0.5)
    assert grad_input.sum(dtype=torch.float64).item() == -0.5 * (x.numel() - len(ends)) + 2 * len(ends)
    assert bool((grad_input[ends] == 2).all())
