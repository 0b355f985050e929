from __future__ import annotations

from typing import Any

import pytest
import torch
from derivatives import in_double, second_order
from pairs import in_dtypes
from samples import DISCRIMINATION_SAMPLES, DTYPES, DiscriminationSample
from tolerances import assert_as_exact
from torch import Tensor

import gan_fast
from gan_fast import extension
from gan_fast.ops import minibatch_discrimination
from gan_fast.ops.minibatch_discrimination import reference

pytestmark = pytest.mark.skipif(not extension.available(), reason="needs the compiled extension")
SMALL = [s for s in DISCRIMINATION_SAMPLES if s.small and 0 not in s.shape]


def kernel(projected: Tensor) -> Tensor:
    output: Tensor = torch.ops.gan_fast.minibatch_discrimination_forward(projected)
    return output


def published(input: Tensor, weight: Tensor) -> Tensor:
    """Section 3.2 of the paper, sample by sample."""
    m = torch.einsum("na,abc->nbc", input, weight)
    rows = [
        sum((torch.exp(-(m[i] - m[j]).abs().sum(1)) for j in range(len(m)) if j != i), 0 * m[i].sum(1))
        for i in range(len(m))
    ]
    return torch.cat([input, torch.stack(rows)], 1)


def draw(n: int = 5, a: int = 7, b: int = 3, c: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    input, weight = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((n, a), (a, b, c)))
    return input.to(dtype).requires_grad_(), (weight / 8).to(dtype).requires_grad_()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_equals_the_published_formula_to_second_order(n: int, backend: str) -> None:
    arguments = dict(zip(("input", "weight"), draw(n)))
    with gan_fast.use_backend(backend):
        got = second_order(minibatch_discrimination, arguments)
    for name, want in second_order(published, arguments).items():
        torch.testing.assert_close(got[name], want, msg=name)


@pytest.mark.parametrize(*in_dtypes(DISCRIMINATION_SAMPLES, DTYPES))
def test_kernel_equals_the_reference_to_second_order(sample: DiscriminationSample, dtype: torch.dtype) -> None:
    arguments = sample.make(dtype)
    got, eager = second_order(kernel, arguments), second_order(reference, arguments)
    exact = second_order(reference, in_double(arguments), dtype)
    for name, value in eager.items():
        assert_as_exact(got[name], value, exact[name], name)


@pytest.mark.parametrize("sample", [s for s in SMALL if s.layout != "expanded" and s.shape[0] > 1], ids=str)
def test_derivatives_match_finite_differences(sample: DiscriminationSample) -> None:
    arguments = tuple(sample.make(torch.float64).values())
    assert torch.autograd.gradcheck(kernel, arguments)
    assert torch.autograd.gradgradcheck(kernel, arguments)


def test_derivatives_of_input_and_weight_match_finite_differences() -> None:
    assert torch.autograd.gradcheck(minibatch_discrimination, draw())
    assert torch.autograd.gradgradcheck(minibatch_discrimination, draw())


def test_third_derivative_equals_reference() -> None:
    def third(backend: str) -> Tensor:
        input, weight = draw()
        with gan_fast.use_backend(backend):
            grad = minibatch_discrimination(input, weight)
            for _ in range(3):
                (grad,) = torch.autograd.grad((grad**2).sum(), input, create_graph=True)
            return grad

    torch.testing.assert_close(third("cpu"), third("reference"))


@pytest.mark.parametrize("sample", SMALL, ids=str)
def test_opcheck(sample: DiscriminationSample) -> None:
    (projected,) = sample.make(torch.float32).values()
    op = torch.ops.gan_fast
    grad_output = torch.randn(projected.shape[:2], requires_grad=True)
    torch.library.opcheck(op.minibatch_discrimination_forward.default, (projected,))
    torch.library.opcheck(op.minibatch_discrimination_backward.default, (grad_output, projected))
    values = (torch.randn_like(projected), grad_output.detach(), projected.detach())
    torch.library.opcheck(op.minibatch_discrimination_double_backward.default, values)


def test_registered_double_backward_rejects_tensors_that_require_grad() -> None:
    (projected,) = DiscriminationSample((3, 2, 2)).make(torch.float32).values()
    with pytest.raises(NotImplementedError, match="expected no argument to require grad, got one"):
        torch.ops.gan_fast.minibatch_discrimination_double_backward(projected, torch.ones(3, 2), projected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e4, 1e-40])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_nan_infinite_and_extreme_values_equal_reference(dtype: torch.dtype, value: float) -> None:
    arguments = DiscriminationSample((5, 3, 2)).make(dtype, requires_grad=False)
    arguments["projected"][2, 1, 0] = value
    arguments["projected"].requires_grad_()
    got, eager = second_order(kernel, arguments), second_order(reference, arguments)
    exact = second_order(reference, in_double(arguments), dtype)
    for name in ("output", "grad_projected"):
        assert_as_exact(got[name], eager[name], exact[name], name, 4.0)


def test_backward_keeps_no_tensor_of_pairs() -> None:
    """The kernel saves input, weight and their product; the formula in ATen saves all pairs."""
    input, weight = draw(32, 8, 16, 4, torch.float32)
    sizes: list[int] = []

    def record(t: Tensor) -> Tensor:
        sizes.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(record, lambda t: t):
        minibatch_discrimination(input, weight)
    assert max(sizes) == 32 * 16 * 4
    with torch.autograd.graph.saved_tensors_hooks(record, lambda t: t), gan_fast.use_backend("reference"):
        minibatch_discrimination(input, weight)
    assert max(sizes) == 32 * 32 * 16 * 4


def test_same_bits_for_any_number_of_threads() -> None:
    arguments = DiscriminationSample((33, 50, 16)).make(torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(second_order(kernel, arguments))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(other[name], value) for name, value in results[0].items())


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_autocast_computes_distances_in_float32(backend: str) -> None:
    input, weight = draw(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16), gan_fast.use_backend(backend):
        output = minibatch_discrimination(input, weight)
    assert output.dtype == torch.float32
    projected = (input.bfloat16() @ weight.bfloat16().flatten(1)).view(5, 3, 4)
    torch.testing.assert_close(output[:, 7:], reference(projected.float()))
    grads = torch.autograd.grad(output.sum(), [input, weight])
    assert [g.dtype for g in grads] == [torch.float32] * 2


def test_compiles_without_graph_breaks() -> None:
    def run(function: Any) -> list[Tensor]:
        input, weight = draw(dtype=torch.float32)
        output = function(input, weight)
        return [output, *torch.autograd.grad(output.square().sum(), [input, weight])]

    torch._dynamo.reset()
    compiled = torch.compile(minibatch_discrimination, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(compiled), run(minibatch_discrimination))


def test_vmap_equals_a_loop() -> None:
    input, weight = (t.detach() for t in draw())
    batch = torch.stack([input, 2 * input])
    torch.testing.assert_close(
        torch.func.vmap(minibatch_discrimination, in_dims=(0, None))(batch, weight),
        torch.stack([minibatch_discrimination(x, weight) for x in batch]),
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.ones(3), torch.ones(3, 2, 2)), ValueError,
         "expected input dimensions 2 (N, in_features), got shape (3,)"),
        ((torch.ones(3, 4), torch.ones(3, 2, 2)), ValueError,
         "expected weight shape (4, out_features, kernel_dims), got (3, 2, 2)"),
        ((torch.ones(3, 4), torch.ones(4, 2)), ValueError,
         "expected weight shape (4, out_features, kernel_dims), got (4, 2)"),
        ((torch.ones(3, 4), torch.ones(4, 2, 2).double()), TypeError,
         "expected weight dtype float32 to match input, got float64"),
        ((torch.ones(3, 4), torch.ones(4, 2, 2, device="meta")), ValueError,
         "expected weight device cpu to match input, got meta"),
        ((torch.ones(3, 4), None), TypeError, "expected weight type Tensor, got NoneType"),
        ((torch.ones(3, 4).int(), torch.ones(4, 2, 2)), TypeError,
         "expected input dtype float64, float32, bfloat16 or float16, got int32"),
    ],
)  # fmt: skip
def test_invalid_argument_raises(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        minibatch_discrimination(*arguments)
    assert str(caught.value) == f"minibatch_discrimination: {message}"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("forward", [(3, 2)], "_forward: expected projected dimensions 3 (N, B, C), got shape (3, 2)"),
        ("backward", [(3, 3), (3, 2, 4)], "_backward: expected grad_output shape (3, 2), got (3, 3)"),
        ("double_backward", [(3, 2, 1), (3, 2), (3, 2, 4)],
         "_double_backward: expected cotangent shape (3, 2, 4) to match projected, got (3, 2, 1)"),
    ],
)  # fmt: skip
def test_registered_op_rejects_invalid_arguments(name: str, arguments: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        getattr(torch.ops.gan_fast, f"minibatch_discrimination_{name}")(*(torch.ones(shape) for shape in arguments))
    assert f"minibatch_discrimination{message}" in str(caught.value)
