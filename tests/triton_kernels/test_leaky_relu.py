"""Triton kernels of leaky_relu compared with ATen: values, derivatives, strides and saved tensors."""

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
from gan_fast.triton_kernels import DTYPES

pytestmark = interpreted

# Values of a tile of half types: eight rows of 1024. In float32 a row has 512.
TILE = 8192


def on_triton(*arguments: Any, **named: Any) -> Tensor:
    with gan_fast.use_backend("triton"):
        return leaky_relu(*arguments, **named)


def values(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype).to(DEVICE)


def compare(input: Tensor, negative_slope: float) -> None:
    """Compare output and derivatives to second order with ATen, allowing for the interpreter's truncated bfloat16."""
    arguments = {"input": input.detach().requires_grad_(), "negative_slope": negative_slope}
    actual = second_order(on_triton, arguments)
    eager = second_order(F.leaky_relu, arguments)
    exact = second_order(F.leaky_relu, in_double(arguments), input.dtype)
    # The second derivative by the input is None here; ATen returns zeros.
    assert not eager.pop("second_input").count_nonzero()
    assert actual.keys() == eager.keys()
    for name, value in eager.items():
        factor = 4.0 if input.dtype == torch.bfloat16 else few_numbers_factor(value)
        assert_as_exact(actual[name], value, exact[name], name, factor)
        assert strides(actual[name]) == strides(value), name


@pytest.mark.parametrize("negative_slope", [0.2, 0.0, -0.5, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_slope_and_dtype_equals_aten(dtype: torch.dtype, negative_slope: float) -> None:
    compare(values((3, 4, 5, 6), dtype), negative_slope)


@pytest.mark.parametrize(
    "count", [0, 1, 7, 16, 1023, 4096, 4097, TILE - 1, TILE, TILE + 1, TILE + 1024, 2 * TILE, 2 * TILE + 4111]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_number_of_values_equals_aten(dtype: torch.dtype, count: int) -> None:
    """No values, a part of a row, a full tile with one more or less, and several programs."""
    compare(values((count,), dtype), 0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_equals_aten(layout: str, dtype: torch.dtype) -> None:
    for shape in ((3, 4, 5, 6), (2, 3, 2, 3, 2), (4, 6), (2, 5, 33, 31)):
        compare(LAYOUTS[layout](values(shape, dtype)), 0.2)


def test_scalar_and_empty_tensors_equal_aten() -> None:
    compare(values((), torch.float32), 0.2)
    compare(values((3, 0, 2), torch.float32), 0.2)
    compare(-values((1, 1, 1, 1), torch.float32).abs().contiguous(memory_format=torch.channels_last), 0.2)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
def test_gradients_may_have_other_strides_than_the_output(layout: str) -> None:
    """Backward copies them to the memory order of the sign bits."""
    x = LAYOUTS[layout](values((3, 4, 5, 6), torch.float32)).detach().requires_grad_()
    actual, eager = on_triton(x, 0.2), F.leaky_relu(x, 0.2)
    grads = {name: change(values((3, 4, 5, 6), torch.float32)) for name, change in LAYOUTS.items()}
    grads["of a sum"] = torch.tensor(2.0, device=DEVICE).expand(3, 4, 5, 6)
    grads["negated"] = torch._neg_view(values((3, 4, 5, 6), torch.float32))
    for name, grad in grads.items():
        (expected,) = torch.autograd.grad(eager, x, grad, retain_graph=True)
        (found,) = torch.autograd.grad(actual, x, grad, retain_graph=True)
        assert torch.equal(found, expected), name
        assert found.stride() == expected.stride(), name


def test_negative_view_is_accepted_as_input() -> None:
    x = torch._neg_view(values((3, 5), torch.float32))
    assert torch.equal(on_triton(x, 0.2), F.leaky_relu(x, 0.2))


@pytest.mark.parametrize("negative_slope", [0.2, 0.0, -0.5, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_values_equal_aten(dtype: torch.dtype, negative_slope: float) -> None:
    inf, nan = float("inf"), float("nan")
    # Times the slope, this value is subnormal, except in bfloat16, whose subnormals the interpreter gets wrong.
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
    for actual, expected in zip(*results):
        # Equal to the last bit, except for bfloat16, which the interpreter truncates.
        rtol = torch.finfo(dtype).eps if dtype == torch.bfloat16 else 0
        torch.testing.assert_close(actual, expected, rtol=rtol, atol=0, equal_nan=True)
        assert torch.equal(actual.signbit() & ~actual.isnan(), expected.signbit() & ~expected.isnan())


@pytest.mark.parametrize("negative_slope", [0, 1, True])
def test_integer_slope_is_accepted(negative_slope: int) -> None:
    x = values((50,), torch.float32)
    assert torch.equal(on_triton(x, negative_slope), F.leaky_relu(x, negative_slope))


def saved_tensors(function: Callable[[], Tensor]) -> list[Tensor]:
    """Return the tensors that autograd saves while ``function`` runs."""
    saved: list[Tensor] = []

    def save(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(save, lambda t: t):
        function()
    return saved


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_bit_per_value_is_saved(dtype: torch.dtype) -> None:
    x = values((5, TILE), dtype).requires_grad_()
    (signs,) = saved_tensors(lambda: on_triton(x, 0.2))
    assert signs.untyped_storage().nbytes() == x.numel() / 8
    # The last tile has bits for padding.
    (signs,) = saved_tensors(lambda: on_triton(x[:, :-1].contiguous(), 0.2))
    assert x.numel() / 8 >= signs.untyped_storage().nbytes() > (x.numel() - TILE) / 8


def test_double_backward_saves_the_same_bits_and_no_input() -> None:
    x = values((3, 50), torch.float32).requires_grad_()
    seed = torch.ones_like(x, requires_grad=True)
    output = on_triton(x, 0.2)
    (signs,) = output.grad_fn.saved_tensors
    results = []
    for saved in saved_tensors(lambda: results.extend(torch.autograd.grad(output, x, seed, create_graph=True))):
        assert saved.data_ptr() == signs.data_ptr()
    (first,) = results
    assert torch.autograd.grad(first.sum(), x, allow_unused=True, retain_graph=True) == (None,)
    # Third and higher orders work too: each backward is linear in its cotangent.
    cotangents = values((3, 50), torch.float32).requires_grad_()
    (second,) = torch.autograd.grad(first, seed, cotangents, create_graph=True)
    (third,) = torch.autograd.grad(second.square().sum(), cotangents)
    slope = torch.where(x > 0, 1.0, 0.2).detach()
    torch.testing.assert_close(third, 2 * cotangents.detach() * slope**2)


def test_no_bits_are_computed_without_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    from gan_fast.triton_kernels import leaky_relu as kernels

    forward, found = kernels.forward, []
    monkeypatch.setattr(kernels, "forward", lambda *a: found.append(forward(*a)) or found[-1])
    x = values((300,), torch.float32)
    assert torch.equal(on_triton(x, 0.2), F.leaky_relu(x, 0.2))
    assert found[0][1] is None


def test_input_may_be_modified_before_backward() -> None:
    x = values((50,), torch.float32).requires_grad_()
    y = x * 1
    z = on_triton(y, 0.2)
    y.zero_()
    (grad,) = torch.autograd.grad(z.sum(), x)
    assert torch.equal(grad, torch.where(x > 0, 1.0, 0.2).detach())


def test_batched_gradients_use_aten_on_the_sign_bits() -> None:
    """They have no memory that Triton can read, so ATen's ops use the sign bits, in each memory order."""
    for layout in ("contiguous", "channels_last", "transposed"):
        x = LAYOUTS[layout](values((3, 4, 5, 6), torch.float32)).detach().requires_grad_()
        grads = cotangent(torch.empty(2, 3, 4, 5, 6, device=DEVICE), 0, torch.float32)
        actual, expected = (
            torch.autograd.grad(function(x, 0.2), x, grads, is_grads_batched=True)
            for function in (on_triton, F.leaky_relu)
        )
        assert torch.equal(*actual, *expected)
    nothing = torch.empty(0, 3, device=DEVICE, requires_grad=True)
    grads_of_nothing = torch.empty(2, 0, 3, device=DEVICE)
    (grad,) = torch.autograd.grad(on_triton(nothing), nothing, grads_of_nothing, is_grads_batched=True)
    assert grad.shape == (2, 0, 3)
    with pytest.raises(NotImplementedError, match="leaky_relu_backward: expected create_graph False"):
        torch.autograd.grad(on_triton(x, 0.2), x, grads, is_grads_batched=True, create_graph=True)


def test_backward_uses_the_backend_of_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    from gan_fast.triton_kernels import leaky_relu as kernels

    x = values((50,), torch.float32).requires_grad_()
    actual, other = on_triton(x, 0.2), leaky_relu(x, 0.2)
    calls: list[int] = []
    backward = kernels.backward
    monkeypatch.setattr(kernels, "backward", lambda *a: calls.append(1) or backward(*a))
    with gan_fast.use_backend("reference"):
        (grad,) = torch.autograd.grad(actual.sum(), x)
    assert calls == [1]
    if not x.is_cuda:
        with gan_fast.use_backend("triton"):
            assert torch.equal(*torch.autograd.grad(other.sum(), x), grad)
        assert calls == [1]


def test_block_with_a_negative_slope() -> None:
    x, weight = values((2, 3, 8, 8), torch.float32), values((4, 3, 3, 3), torch.float32).requires_grad_()
    with gan_fast.use_backend("triton"):
        actual = conv2d_act(x, weight, activation="leaky_relu", negative_slope=-0.5)
    expected = F.leaky_relu(F.conv2d(x, weight), -0.5)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    grads = [torch.autograd.grad(t.square().sum(), weight)[0] for t in (actual, expected)]
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-3)


def test_auto_measures_and_the_device_backend_uses_aten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device's own backend uses ATen's kernels; "auto" measures."""
    x = values((4, 5), torch.float32)
    with gan_fast.use_backend(x.device.type):
        assert backends.triton_kernels("leaky_relu", x) is None
    monkeypatch.setattr(backends, "_launch_failure", lambda: None)
    assert backends.candidates("leaky_relu", "cuda", torch.float32) == ["cuda", "triton", "reference"]
    assert backends.candidates("leaky_relu", "cuda", torch.float64) == ["cuda", "reference"]
    assert backends._explain("leaky_relu", "cuda").startswith("the fastest of cuda, triton, reference: measured")
    assert backends._explain("leaky_relu", "cpu").startswith("ATen's or gan_fast's kernel")


def test_unsupported_dtype_raises() -> None:
    with pytest.raises(RuntimeError, match=r"leaky_relu: .*: no Triton kernel for torch\.float64"):
        on_triton(values((3,), torch.float64))


# Needs 12 GiB of GPU memory.
@pytest.mark.gpu
def test_more_values_than_2_to_the_31_are_processed() -> None:
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
