from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from derivatives import in_double, second_order, strides
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import in_dtypes, pairwise
from samples import DTYPES, LAYOUTS, SAMPLE_NORM_SAMPLES, SampleNormSample
from tolerances import assert_as_exact, few_numbers_factor
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import gan_fast
from gan_fast.ops import sample_norm_penalty

SMALL = [s for s in SAMPLE_NORM_SAMPLES if s.small]
# Values whose squares overflow or underflow in float32.
HUGE, TINY = 1e25, 1e-30


def penalty(**arguments: Any) -> Tensor:
    return sample_norm_penalty(**arguments)[0]


def eager(input: Tensor, coefficients: Tensor | None, center: float, scale: float) -> tuple[Tensor, Tensor]:
    """The usual eager formula."""
    norms = input.flatten(1).norm(dim=1) if input.dim() > 1 else input.abs()
    deviations = (norms - center) ** 2
    if coefficients is not None:
        deviations = coefficients * deviations
    return scale * deviations.mean(), norms


def compare(arguments: dict[str, Any], dtype: torch.dtype, factor: float = 1.0) -> None:
    def under(backend: str, arguments: dict[str, Any]) -> dict[str, Tensor]:
        with gan_fast.use_backend(backend):
            found = second_order(penalty, arguments, dtype)
            return found | {"norms": sample_norm_penalty(**arguments)[1]}

    kernel, reference = under("cpu", arguments), under("reference", arguments)
    exact = under("reference", in_double(arguments))
    assert kernel.keys() == reference.keys()
    for name, value in reference.items():
        assert_as_exact(kernel[name], value, exact[name], name, factor * few_numbers_factor(value) / 2)
        if name == "grad_input":
            assert strides(kernel[name]) == strides(value), name


@pytest.mark.parametrize(*in_dtypes(SAMPLE_NORM_SAMPLES, DTYPES))
def test_equals_eager_to_second_order(sample: SampleNormSample, dtype: torch.dtype) -> None:
    compare(sample.make(dtype), dtype)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("sample", SAMPLE_NORM_SAMPLES, ids=str)
def test_equals_the_usual_formula(sample: SampleNormSample, backend: str) -> None:
    arguments = sample.make(torch.float64)
    with gan_fast.use_backend(backend):
        value, norms = sample_norm_penalty(**arguments)
    want, want_norms = eager(**arguments)
    torch.testing.assert_close((value, norms), (want, want_norms.detach()))
    assert not norms.requires_grad
    leaves = [t for t in arguments.values() if isinstance(t, Tensor)]
    grads = torch.autograd.grad(3 * value, leaves)
    torch.testing.assert_close(grads, torch.autograd.grad(3 * want, leaves))


@pytest.mark.parametrize("sample", [s for s in SMALL if s.layout != "expanded"], ids=str)
def test_derivatives_match_finite_differences(sample: SampleNormSample) -> None:
    arguments = sample.make(torch.float64)
    leaves = {name: t for name, t in arguments.items() if isinstance(t, Tensor)}

    def function(*values: Tensor) -> Tensor:
        return penalty(**{**arguments, **dict(zip(leaves, values))})

    assert torch.autograd.gradcheck(function, tuple(leaves.values()))
    assert torch.autograd.gradgradcheck(function, tuple(leaves.values()))


def test_third_derivative_equals_reference() -> None:
    def third(backend: str) -> list[Tensor]:
        arguments = SampleNormSample((3, 4), weighted=True).make(torch.float64)
        leaves = [arguments["input"], arguments["coefficients"]]
        with gan_fast.use_backend(backend):
            value = penalty(**arguments)
            for _ in range(3):
                grads = torch.autograd.grad(value, leaves, create_graph=True)
                value = sum((g**2).sum() for g in grads)
            return [value, *grads]

    torch.testing.assert_close(third("cpu"), third("reference"))


@pytest.mark.parametrize("sample", SMALL[::3], ids=str)
def test_opcheck(sample: SampleNormSample) -> None:
    arguments = sample.make(torch.float32)
    op = torch.ops.gan_fast
    torch.library.opcheck(op.sample_norm_penalty_forward.default, tuple(arguments.values()))
    norms = sample_norm_penalty(**arguments)[1]
    input, *others = arguments.values()
    torch.library.opcheck(
        op.sample_norm_penalty_backward.default, (torch.ones((), requires_grad=True), input, norms, *others)
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("center", [0.0, 1.0])
def test_compiles_without_graph_breaks(center: float, layout: str) -> None:
    def run(function: Any) -> list[Tensor]:
        arguments = SampleNormSample((3, 2, 4, 4), center, weighted=True, layout=layout).make(torch.float32)
        value, norms = function(**arguments)
        value.backward()
        return [value.detach(), norms, arguments["input"].grad, arguments["coefficients"].grad]

    torch._dynamo.reset()
    compiled = torch.compile(sample_norm_penalty, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(compiled), run(sample_norm_penalty))


def test_gradient_penalty_gives_the_gradient_of_a_weight() -> None:
    weight = torch.randn(1, 12, dtype=torch.float64, requires_grad=True)

    def by_weight(function: Any) -> Tensor:
        x = torch.randn(5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        (grad,) = torch.autograd.grad(torch.tanh(x @ weight.T).sum(), x, create_graph=True)
        (result,) = torch.autograd.grad(function(grad, None, center=1.0, scale=10.0)[0], weight)
        return result

    torch.testing.assert_close(by_weight(sample_norm_penalty), by_weight(eager))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("center", [0.0, 1.0])
def test_no_nan_at_zero_gradient(center: float, backend: str) -> None:
    """To second order; the gradient of the other, nonzero sample is not affected."""
    x = torch.zeros(2, 3, 4, dtype=torch.float64)
    x[1] = torch.randn(3, 4)
    x.requires_grad_()
    with gan_fast.use_backend(backend):
        value, norms = sample_norm_penalty(x, center=center)
        assert norms[0] == 0
        (grad,) = torch.autograd.grad(value, x, create_graph=True)
        (second,) = torch.autograd.grad((grad * x.detach().add(1)).sum(), x)
    assert not grad[0].count_nonzero()
    torch.testing.assert_close(grad[1], x[1] * (1 - center / norms[1]))
    # Only the squared norm contributes: 2 / N times the direction, which is 1 here. The root contributes nothing.
    torch.testing.assert_close(second[0], torch.full((3, 4), 1.0 if center == 0 else 0.0, dtype=torch.float64))
    assert bool(second.isfinite().all())


@pytest.mark.parametrize(
    *pairwise(dtype=DTYPES, center=[0.0, 1.0], value=[float("nan"), float("inf"), -float("inf"), 1e4, 1e-40])
)
def test_nan_infinite_and_extreme_values_equal_eager(dtype: torch.dtype, center: float, value: float) -> None:
    arguments = SampleNormSample((3, 5, 4), center).make(dtype, requires_grad=False)
    arguments["input"][1, 2, 3] = value
    x = arguments["input"].requires_grad_()
    penalty_value, norms = sample_norm_penalty(**arguments)
    (grad,) = torch.autograd.grad(penalty_value, x)
    exact = x.detach().double().requires_grad_()
    want, want_norms = eager(**{**arguments, "input": exact})
    if center == 0 and not math.isfinite(value):
        # Written without a root, through which an infinite value would turn the gradients of other values to NaN.
        want = exact.square().flatten(1).sum(1).mean()
    (want_grad,) = torch.autograd.grad(want, exact)
    tolerances = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 1e-7}
    torch.testing.assert_close(
        (penalty_value.double(), norms.double()), (want, want_norms), **tolerances, equal_nan=True
    )
    torch.testing.assert_close(grad.double(), want_grad, **tolerances, equal_nan=True)


@pytest.mark.parametrize("size", [HUGE, TINY])
def test_squares_may_exceed_the_range_of_float32(size: float) -> None:
    """Each square overflows or underflows; the norm and the gradient stay accurate."""
    x = (torch.randn(3, 50) * size).requires_grad_()
    value, norms = sample_norm_penalty(x, center=1.0)
    exact = x.detach().double()
    torch.testing.assert_close(norms.double(), exact.norm(dim=1), rtol=1e-6, atol=0)
    (grad,) = torch.autograd.grad(value, x)
    want = 2 / 3 * (1 - 1 / exact.norm(dim=1, keepdim=True)) * exact
    torch.testing.assert_close(grad.double(), want, rtol=1e-6, atol=0)
    (second,) = torch.autograd.grad(
        torch.autograd.grad(penalty(input=x, center=1.0), x, create_graph=True)[0][:, 0].sum(), x
    )
    assert bool(second.isfinite().all())
    assert second.count_nonzero()


def test_empty_input_gives_nan_or_zero_norms() -> None:
    x = torch.ones(0, 3, requires_grad=True)
    value, norms = sample_norm_penalty(x, center=1.0)
    assert value.isnan()
    assert norms.shape == (0,)
    (grad,) = torch.autograd.grad(value, x)
    assert grad.shape == (0, 3)
    empty = torch.ones(4, 0, 5, requires_grad=True)
    value, norms = sample_norm_penalty(empty, center=3.0, scale=2.0)
    assert value.item() == 18
    assert norms.tolist() == [0] * 4
    assert torch.autograd.grad(value, empty)[0].shape == empty.shape


def test_only_requested_gradients_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    from gan_fast.ops.sample_norm_penalty import _native

    arguments = SampleNormSample((4, 5), weighted=True).make(torch.float32)
    value = penalty(**arguments)
    monkeypatch.setattr(
        _native, "backward", lambda *_: pytest.fail("computed the gradient of input, which was not requested")
    )
    (grad,) = torch.autograd.grad(value, arguments["coefficients"])
    torch.testing.assert_close(grad, (arguments["input"].detach().norm(dim=1) - 1).square() / 4)


def test_coefficients_may_have_the_dtype_of_input_or_result() -> None:
    x = torch.randn(4, 5).bfloat16().requires_grad_()
    coefficients = torch.rand(4).bfloat16().requires_grad_()
    for backend in ("cpu", "reference"):
        with gan_fast.use_backend(backend):
            value = penalty(input=x, coefficients=coefficients)
            wide = penalty(input=x, coefficients=coefficients.float())
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, wide)
        assert torch.autograd.grad(value, coefficients)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_has_no_effect(dtype: torch.dtype) -> None:
    x = SampleNormSample((4, 3, 5)).make(dtype)["input"]
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            value, norms = sample_norm_penalty(x, center=1.0)
        assert value.dtype == norms.dtype == torch.float32
        results.append([value, norms, torch.autograd.grad(value, x)[0]])
    for without, under in zip(*results):
        assert torch.equal(without, under)


def test_same_bits_for_any_number_of_threads() -> None:
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for shape in ((2, 200001), (40, 3000), (9000, 7)):
                arguments = SampleNormSample(shape, weighted=True).make(torch.float32)
                results.append((count, second_order(penalty, arguments)))
    finally:
        torch.set_num_threads(threads)
    for (_, first), *others in (results[i::3] for i in range(3)):
        for _, other in others:
            assert all(torch.equal(first[name], value) for name, value in other.items() if "second" not in name)


def test_input_modified_before_backward_raises() -> None:
    leaf = torch.ones(3, 4, requires_grad=True)
    x = leaf * 2
    value = penalty(input=x)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_lazy_fake_and_wrapped_tensors_are_supported() -> None:
    x = torch.randn(7, 3)
    assert torch.equal(penalty(input=torch._neg_view(x)), penalty(input=-x))
    assert torch.equal(penalty(input=torch._efficientzerotensor(7, 3)), torch.zeros(()))
    with FakeTensorMode():
        assert penalty(input=torch.empty(7, 3)).shape == ()
    assert penalty(input=torch.ones(3, 2, device="meta")).shape == ()
    traced = torch.jit.trace(lambda x: penalty(input=x), torch.randn(5, 2))
    torch.testing.assert_close(traced(x), penalty(input=x))
    grads = torch.func.vmap(torch.func.grad(lambda x: penalty(input=x, center=1.0)))(x[None])
    torch.testing.assert_close(grads[0], torch.func.grad(lambda x: eager(x, None, 1.0, 1.0)[0])(x))


def test_batched_gradients_equal_a_loop() -> None:
    arguments = SampleNormSample((4, 5), weighted=True).make(torch.float32)
    leaves = (arguments["input"], arguments["coefficients"])
    value = penalty(**arguments)
    factors = torch.tensor([1.0, -2.0])
    batched = torch.autograd.grad(value, leaves, factors, is_grads_batched=True, retain_graph=True)
    for got, one in zip(batched, torch.autograd.grad(value, leaves, retain_graph=True)):
        torch.testing.assert_close(got, torch.stack([f * one for f in factors]))
    with pytest.raises(NotImplementedError, match="create_graph False with is_grads_batched True"):
        torch.autograd.grad(value, leaves, factors, is_grads_batched=True, create_graph=True)


def test_center_and_scale_accept_other_number_types() -> None:
    x = torch.randn(4, 5)
    assert torch.equal(penalty(input=x, center=np.float32(0.5), scale=2), penalty(input=x, center=0.5, scale=2.0))


@settings(max_examples=200)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple),
    center=st.sampled_from([0.0, 1.0, 0.3]),
    scale=st.sampled_from([1.0, 0.5, 10.0]),
    weighted=st.booleans(),
    std=st.sampled_from([0.01, 1.0, 30.0]),
    layout=st.sampled_from(sorted(LAYOUTS)),
    dtype=st.sampled_from(DTYPES),
)
def test_random_inputs_equal_eager(
    shape: tuple[int, ...], center: float, scale: float, weighted: bool, std: float, layout: str, dtype: torch.dtype
) -> None:
    compare(SampleNormSample(shape, center, scale, weighted, std, layout).make(dtype), dtype, factor=2.0)


BAD_INPUTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"input": 1.0}, TypeError, "expected input type Tensor, got float"),
    ({"input": torch.ones(4, 2, dtype=torch.int32)}, TypeError,
     "expected input dtype float64, float32, bfloat16 or float16, got int32"),
    ({"input": torch.ones(4, 2).to_sparse()}, TypeError, "expected input layout strided, got sparse_coo"),
    ({"input": torch.ones(())}, ValueError, "expected input dimensions at least 1 (N, ...), got shape ()"),
    ({"coefficients": [1.0]}, TypeError, "expected coefficients type Tensor, got list"),
    ({"coefficients": torch.ones(3)}, ValueError, "expected coefficients shape (4,), got (3,)"),
    ({"coefficients": torch.ones(4, 1)}, ValueError, "expected coefficients shape (4,), got (4, 1)"),
    ({"coefficients": torch.ones(4).double()}, TypeError, "expected coefficients dtype float32, got float64"),
    ({"coefficients": torch.ones(4, device="meta")}, ValueError,
     "expected coefficients device cpu to match input, got meta"),
    ({"center": "1"}, TypeError, "expected center type float, got str"),
    ({"center": torch.ones(())}, TypeError, "expected center type float, got Tensor"),
    ({"scale": None}, TypeError, "expected scale type float, got NoneType"),
]  # fmt: skip


@pytest.mark.parametrize("backend", ["auto", "cpu", "reference"])
@pytest.mark.parametrize(("change", "error", "message"), BAD_INPUTS, ids=[m[2][:60] for m in BAD_INPUTS])
def test_invalid_argument_raises(change: dict[str, Any], error: type[Exception], message: str, backend: str) -> None:
    with gan_fast.use_backend(backend), pytest.raises(error) as caught:
        sample_norm_penalty(**{"input": torch.ones(4, 2), **change})
    assert str(caught.value) == f"sample_norm_penalty: {message}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(()), torch.ones(4, 2), torch.ones(3), None), "expected norms shape (4,), got (3,)"),
        ((torch.ones(()), torch.ones(4, 2), torch.ones(4).double(), None), "expected norms dtype Float, got Double"),
        ((torch.ones(2), torch.ones(4, 2), torch.ones(4), None), "expected grad_penalty shape (), got (2,)"),
        ((torch.ones(()).half(), torch.ones(4, 2), torch.ones(4), None), "expected grad_penalty dtype Float, got Half"),
        ((torch.ones(()), torch.ones(4, 2), torch.ones(4), torch.ones(5)),
         "expected coefficients shape (4,), got (5,)"),
        ((torch.ones(()), torch.ones(()), torch.ones(4), None),
         "expected input dimensions at least 1 (N, ...), got shape ()"),
    ],
)  # fmt: skip
def test_registered_backward_rejects_invalid_arguments(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.ops.gan_fast.sample_norm_penalty_backward(*arguments, 1.0, 1.0)
    assert f"sample_norm_penalty_backward: {message}" in str(caught.value)


def test_cpu_kernel_rejects_tensors_of_another_device() -> None:
    # The dispatcher would select the kernel of the other device.
    cpu = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    op = torch.ops.gan_fast.sample_norm_penalty_forward.default
    message = "expected coefficients device cpu to match its other arguments, got another device"
    with pytest.raises(RuntimeError, match=f"sample_norm_penalty_forward: {message}"):
        op.redispatch(cpu, torch.ones(2, 3), torch.ones(2, device="meta"), 1.0, 1.0)


def test_norms_that_require_grad_raise() -> None:
    with pytest.raises(NotImplementedError, match="expected norms not to require grad, got one that does"):
        torch.ops.gan_fast.sample_norm_penalty_backward(
            torch.ones(()), torch.ones(4, 2), torch.ones(4, requires_grad=True), None, 1.0, 1.0
        )
