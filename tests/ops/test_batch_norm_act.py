from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from derivatives import (
    cotangent,
    differentiated,
    in_double,
    second_order_and_statistics,
    strides,
    with_own_buffers,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import in_dtypes, pairwise
from samples import ACTIVATIONS, DTYPES, LAYOUTS, NORM_SAMPLES, NormSample
from tolerances import assert_as_exact, few_numbers_factor
from torch import Tensor

import gan_fast
from gan_fast.ops import batch_norm_act
from gan_fast.ops.batch_norm_act import reference

SMALL = [s for s in NORM_SAMPLES if s.small]


@pytest.mark.parametrize(*in_dtypes(NORM_SAMPLES, DTYPES))
def test_equals_eager_to_second_order(sample: NormSample, dtype: torch.dtype) -> None:
    arguments = sample.make(dtype)
    actual = second_order_and_statistics(batch_norm_act, arguments, dtype)
    eager = second_order_and_statistics(reference, arguments, dtype)
    exact = second_order_and_statistics(reference, in_double(arguments), dtype)
    # For a second derivative that is zero everywhere, eager returns zeros and the op returns None.
    for name, value in eager.items():
        if name not in actual:
            assert not value.count_nonzero(), f"{name} is missing"
            continue
        assert_as_exact(actual[name], value, exact[name], name)
        assert strides(actual[name]) == strides(value) or name.startswith("second"), f"{name}: strides"
    for name in set(actual) - set(eager):
        assert not actual[name].count_nonzero(), f"{name}: eager has no such derivative"


# Numerical differentiation writes to single elements, which expanded tensors do not have.
@pytest.mark.parametrize("sample", [s for s in SMALL if s.layout != "expanded"], ids=str)
def test_gradcheck_to_second_order(sample: NormSample) -> None:
    arguments = sample.make(torch.float64)
    named = differentiated(arguments)

    def function(*values: Tensor) -> Tensor:
        return batch_norm_act(**{**with_own_buffers(arguments), **dict(zip(named, values))})

    values = tuple(named.values())
    assert torch.autograd.gradcheck(function, values, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, values, fast_mode=True, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ["leaky_relu", "tanh"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_third_derivative_equals_the_reference(activation: str, training: bool, dtype: torch.dtype) -> None:
    arguments = NormSample((3, 2, 3), training, activation).make(dtype)
    if dtype == torch.bfloat16:
        for name in ("weight", "bias", "running_mean", "running_var"):
            arguments[name] = arguments[name].detach().to(dtype).requires_grad_(name in ("weight", "bias"))
    named = differentiated(arguments)

    def third(function: Any) -> tuple[Tensor, ...]:
        output = function(**with_own_buffers(arguments))
        values = list(named.values())
        first = torch.autograd.grad((output**3).sum(), values, create_graph=True)
        second = torch.autograd.grad(sum((g**2).sum() for g in first), values, create_graph=True)
        return torch.autograd.grad(sum((g**2).sum() for g in second), values)

    for actual, eager in zip(third(batch_norm_act), third(reference)):
        if dtype == torch.bfloat16:  # rounding errors grow over three orders, in eager mode too
            assert actual.shape == eager.shape
            assert actual.isfinite().all()
        else:
            torch.testing.assert_close(actual, eager)


# opcheck is slow, so one sample per code path.
OPCHECK = [
    s
    for s in SMALL
    if s.shape in ((3, 5, 4, 3), (2, 8, 2, 3)) or (s.shape == (3, 4, 5, 3)) or not s.affine or not s.running
]


@pytest.mark.parametrize("sample", OPCHECK, ids=str)
def test_opcheck(sample: NormSample) -> None:
    arguments = sample.make(torch.float32)
    forward = torch.ops.gan_fast.batch_norm_act_forward.default
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(forward, tuple(arguments.values()), test_utils=checks)
    with torch.no_grad():
        output, mean, invstd = forward(*with_own_buffers(arguments).values())
    a, grad = arguments, cotangent(output, 1, output.dtype)
    options = (a["training"], a["activation"], a["negative_slope"])
    affine_arguments = (None if t is None else t.detach() for t in (a["weight"], a["bias"]))
    again = (a["input"].detach(), mean, invstd, *affine_arguments, *options[1:])
    torch.library.opcheck(torch.ops.gan_fast.batch_norm_act_normalize.default, again, test_utils=checks[:3])
    backward = (grad, a["input"].detach(), mean, invstd, a["weight"], a["bias"], *options, True, sample.affine)
    torch.library.opcheck(torch.ops.gan_fast.batch_norm_act_backward.default, backward, test_utils=checks[:3])
    plain = tuple(t.detach() if isinstance(t, Tensor) else t for t in backward[:9])
    affine = (torch.ones_like(mean),) * 2 if sample.affine else (None, None)
    double = (grad, *affine, *plain, True, True)
    torch.library.opcheck(torch.ops.gan_fast.batch_norm_act_double_backward.default, double, test_utils=checks[:3])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_compiles_without_graph_breaks(layout: str, training: bool) -> None:
    sample = NormSample((4, 8, 5, 3), training, layout=layout)

    def step(function: Any) -> dict[str, Tensor]:
        arguments = with_own_buffers(sample.make(torch.float32))
        output = function(**arguments)
        (output * output).sum().backward()
        grads = {f"grad_{name}": t.grad for name, t in differentiated(arguments).items()}
        return {"output": output, "mean": arguments["running_mean"], "var": arguments["running_var"], **grads}

    torch._dynamo.reset()
    compiled = torch.compile(batch_norm_act, fullgraph=True, backend="aot_eager")
    actual, eager = step(compiled), step(reference)
    for name in eager:
        torch.testing.assert_close(actual[name], eager[name], msg=lambda m, name=name: f"{name}: {m}")
    assert actual["output"].stride() == eager["output"].stride()


def test_functorch_transforms_use_the_reference() -> None:
    arguments = NormSample((3, 4, 5), training=False).make(torch.float64, requires_grad=False)
    weight = arguments.pop("weight")
    stack = torch.stack([weight, 2 * weight])
    actual = torch.func.vmap(lambda w: batch_norm_act(weight=w, **arguments))(stack)
    torch.testing.assert_close(actual[1], reference(weight=2 * weight, **arguments))
    grad = torch.func.grad(lambda w: batch_norm_act(weight=w, **arguments).sum())(weight)
    assert grad.shape == weight.shape


@pytest.mark.parametrize(
    *pairwise(
        training=[True, False], activation=ACTIVATIONS, value=[float("nan"), float("inf"), -float("inf"), 1e4, 1e-40]
    )
)
def test_special_values_equal_eager(training: bool, activation: str, value: float) -> None:
    for layout in ("contiguous", "channels_last"):
        for position in ((0, 1, 0, 0), (2, 1, 2, 1)):
            arguments = NormSample((3, 4, 3, 3), training, activation, layout=layout).make(torch.float32)
            with torch.no_grad():
                arguments["input"][position] = value
            actual = second_order_and_statistics(batch_norm_act, arguments, torch.float32)
            eager = second_order_and_statistics(reference, arguments, torch.float32)
            exact = second_order_and_statistics(reference, in_double(arguments), torch.float32)
            for name in ("output", "grad_input", "grad_weight", "grad_bias", "running_mean", "running_var"):
                assert_as_exact(actual[name], eager[name], exact[name], name)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 3, 0, 4), (0, 3, 4, 4)])
def test_empty_input_leaves_statistics_unchanged(shape: tuple[int, ...], training: bool) -> None:
    arguments = NormSample(shape, training).make(torch.float32)
    before = arguments["running_mean"].clone(), arguments["running_var"].clone()
    output = batch_norm_act(**arguments)
    eager = reference(**arguments)
    assert output.shape == shape
    assert output.stride() == eager.stride()
    output.sum().backward()
    assert arguments["input"].grad.shape == shape
    assert not arguments["weight"].grad.count_nonzero()
    assert not arguments["bias"].grad.count_nonzero()
    assert torch.equal(arguments["running_mean"], before[0])
    assert torch.equal(arguments["running_var"], before[1])


def test_gradient_is_none_for_frozen_arguments() -> None:
    for wanted in ("input", "weight", "bias"):
        arguments = NormSample((3, 4, 3, 3)).make(torch.float32, requires_grad=False)
        arguments[wanted].requires_grad_()
        batch_norm_act(**arguments).sum().backward()
        for name in ("input", "weight", "bias"):
            assert (arguments[name].grad is not None) == (name == wanted)


def test_backward_raises_if_the_input_was_modified() -> None:
    arguments = NormSample((3, 4, 3, 3)).make(torch.float32)
    input = arguments["input"] * 1
    output = batch_norm_act(**{**arguments, "input": input})
    input.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_training_increments_the_version_of_running_statistics() -> None:
    arguments = NormSample((3, 4, 3, 3)).make(torch.float32)
    version = arguments["running_mean"]._version
    batch_norm_act(**arguments)
    assert arguments["running_mean"]._version > version
    version = arguments["running_mean"]._version
    batch_norm_act(**{**arguments, "training": False})
    assert arguments["running_mean"]._version == version


def test_backward_saves_only_the_input() -> None:
    arguments = NormSample((8, 16, 16, 16)).make(torch.float32)
    saved: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        batch_norm_act(**arguments)
    large = [t for t in saved if t.numel() > 16]
    assert [t.data_ptr() for t in large] == [arguments["input"].data_ptr()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_results_do_not_depend_on_the_number_of_threads(layout: str, dtype: torch.dtype) -> None:
    arguments = NormSample((16, 48, 17, 13), layout=layout).make(dtype)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(second_order_and_statistics(batch_norm_act, arguments, dtype))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(value, other[name]), name


def test_autocast_keeps_the_input_dtype() -> None:
    arguments = NormSample((3, 4, 3, 3)).make(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert batch_norm_act(**arguments).dtype == reference(**arguments).dtype == torch.bfloat16


@settings(max_examples=300)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 19)).flatmap(
        lambda nc: st.lists(st.integers(1, 9), min_size=0, max_size=3).map(lambda space: (*nc, *space))
    ),
    layout=st.sampled_from(sorted(LAYOUTS)),
    activation=st.sampled_from(ACTIVATIONS),
    training=st.booleans(),
    affine=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    mean=st.sampled_from([0.0, 0.5, 10.0]),
    seed=st.integers(0, 2**16),
)
def test_random_inputs_equal_eager(
    shape: tuple[int, ...], layout: str, activation: str, training: bool, affine: bool, dtype: torch.dtype,
    mean: float, seed: int,
) -> None:  # fmt: skip
    if training and torch.Size(shape).numel() == shape[1]:
        return
    sample = NormSample(shape, training, activation, layout=layout, affine=affine, mean=mean)
    arguments = sample.make(dtype, seed)
    values = int(torch.Size(shape).numel() / shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        actual = second_order_and_statistics(batch_norm_act, arguments, dtype)
        eager = second_order_and_statistics(reference, arguments, dtype)
        exact = second_order_and_statistics(reference, in_double(arguments), dtype)
    # With few values, or a batch expanded from one sample, the variance may be pure rounding error, which the results
    # magnify: then there is no exact result to compare with.
    if training and (values < 8 or layout == "expanded"):
        return
    for name, value in eager.items():
        if name in actual:
            assert strides(actual[name]) == strides(value) or name != "output", name
            assert_as_exact(actual[name], value, exact[name], name, few_numbers_factor(value))


BAD_INPUTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"input": [1.0]}, TypeError, "expected input type Tensor, got list"),
    ({"input": torch.ones(2, 3, dtype=torch.int64)}, TypeError,
     "expected input dtype float64, float32, bfloat16 or float16, got int64"),
    ({"input": torch.ones(2, 3, dtype=torch.complex64)}, TypeError,
     "expected input dtype float64, float32, bfloat16 or float16, got complex64"),
    ({"input": torch.ones(3)}, ValueError, "expected input dimensions at least 2 (N, C, ...), got shape (3,)"),
    ({"weight": torch.ones(4)}, ValueError, "expected weight shape (3,), got (4,)"),
    ({"bias": torch.ones(3, 1)}, ValueError, "expected bias shape (3,), got (3, 1)"),
    ({"running_mean": torch.zeros(2)}, ValueError, "expected running_mean shape (3,), got (2,)"),
    ({"weight": torch.ones(3, dtype=torch.float64)}, TypeError, "expected weight dtype float32, got float64"),
    ({"input": torch.ones(2, 3, 4).bfloat16(), "weight": torch.ones(3).bfloat16()}, TypeError,
     "expected weight dtype float32 to match running_mean, got bfloat16"),
    ({"bias": torch.ones(3, device="meta")}, ValueError, "expected bias device cpu to match input, got meta"),
    ({"input": torch.ones(1, 3), "training": True}, ValueError,
     "expected input with more than 1 value per channel when training, got shape (1, 3)"),
    ({"running_mean": None, "running_var": None}, ValueError,
     "expected running_mean and running_var tensors when training is False, got None"),
    ({"running_mean": None, "training": True}, ValueError,
     "expected running_mean and running_var both tensors or both None, got one of each"),
    ({"running_mean": torch.zeros(3, requires_grad=True)}, ValueError,
     "expected running_mean not to require grad, got one that does: it has no gradient"),
    ({"eps": 0.0, "training": True}, ValueError, "expected eps a positive number when training, got 0.0"),
    ({"input": torch.ones(2, 3).to_sparse()}, TypeError, "expected input layout strided, got sparse_coo"),
    ({"activation": "gelu"}, ValueError,
     "expected activation one of identity, relu, leaky_relu, tanh, sigmoid, got 'gelu'"),
]  # fmt: skip


@pytest.mark.parametrize("small", [-1, 8192])
@pytest.mark.parametrize("backend", ["auto", "cpu", "reference"])
@pytest.mark.parametrize(("change", "error", "message"), BAD_INPUTS, ids=[m[2][:60] for m in BAD_INPUTS])
def test_bad_input(
    change: dict[str, Any],
    error: type[Exception],
    message: str,
    backend: str,
    small: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gan_fast.backends, "SMALL", small)
    arguments: dict[str, Any] = {
        "input": torch.ones(2, 3, 4), "running_mean": torch.zeros(3), "running_var": torch.ones(3),
    }  # fmt: skip
    arguments |= change
    with gan_fast.use_backend(backend), pytest.raises(error) as caught:
        batch_norm_act(**arguments)
    assert str(caught.value) == f"batch_norm_act: {message}"
    # Code around a replaced torch function must catch the error as before.
    arguments.pop("activation", None)
    torch_error: Exception = caught.value
    try:
        F.batch_norm(**arguments)
    except NotImplementedError:
        torch_error = RuntimeError()
    except (TypeError, ValueError, RuntimeError) as raised:
        torch_error = raised
    assert isinstance(caught.value, type(torch_error))


def test_raw_ops_reject_shapes_that_would_read_out_of_bounds() -> None:
    op = torch.ops.gan_fast
    x, c = torch.ones(2, 3, 4), torch.ones(3)
    tail = (True, 0.1, 1e-5, "relu", 0.0)
    with pytest.raises(RuntimeError, match=r"expected weight shape \(3,\), got \(2,\)"):
        op.batch_norm_act_forward(x, None, None, torch.ones(2), None, *tail)
    with pytest.raises(RuntimeError, match=r"expected input dtype float64, float32, bfloat16 or float16"):
        op.batch_norm_act_forward(x.int(), None, None, None, None, *tail)
    with pytest.raises(RuntimeError, match="expected activation"):
        op.batch_norm_act_forward(x, None, None, None, None, True, 0.1, 1e-5, "gelu", 0.0)
    with pytest.raises(RuntimeError, match=r"expected grad_output shape \(2, 3, 4\) to match input, got \(2, 3, 3\)"):
        op.batch_norm_act_backward(x[..., :3], x, c, c, None, None, True, "relu", 0.0, True, True)
    with pytest.raises(RuntimeError, match=r"expected mean shape \(3,\), got \(4,\)"):
        op.batch_norm_act_backward(x, x, torch.ones(4), c, None, None, True, "relu", 0.0, True, True)


def test_raw_double_backward_raises_for_a_third_derivative() -> None:
    arguments = NormSample((3, 2, 3)).make(torch.float64)
    double = torch.ops.gan_fast.batch_norm_act_double_backward
    x = arguments["input"]
    mean, invstd = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    with pytest.raises(NotImplementedError, match="no derivative"):
        double(x, None, None, x, x, mean, invstd, None, None, True, "relu", 0.0, True, True)


def test_accepts_zero_channels() -> None:
    assert batch_norm_act(torch.ones(4, 0, 3), None, None, training=True).shape == (4, 0, 3)


def test_forward_mode_uses_the_reference() -> None:
    arguments = NormSample((3, 4, 5), training=False).make(torch.float64, requires_grad=False)
    with torch.autograd.forward_ad.dual_level():
        x = torch.autograd.forward_ad.make_dual(arguments["input"], torch.ones_like(arguments["input"]))
        tangent = torch.autograd.forward_ad.unpack_dual(batch_norm_act(**{**arguments, "input": x})).tangent
    assert tangent is not None


def test_raw_backward_rejects_statistics_that_require_grad() -> None:
    x, c = torch.ones(2, 3, 4), torch.ones(3, requires_grad=True)
    with pytest.raises(NotImplementedError, match="expected mean and invstd not to require grad"):
        torch.ops.gan_fast.batch_norm_act_backward(x, x, c, c, None, None, True, "relu", 0.0, True, True)


@pytest.mark.parametrize("size", [-1, 8192])
def test_rejected_call_leaves_statistics_unchanged(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gan_fast.backends, "SMALL", size)
    x, mean, var = torch.randn(2, 3, 4, 4) + 5, torch.zeros(3), torch.ones(3)
    meta = torch.ones(3, device="meta")
    for error, options in (
        (ValueError, {"weight": meta}),
        (ValueError, {"bias": meta}),
        (TypeError, {"weight": [1.0, 1.0, 1.0]}),
        (TypeError, {"negative_slope": "0.2"}),
        (TypeError, {"momentum": torch.tensor(0.1)}),
        (ValueError, {"activation": "gelu"}),
    ):
        with pytest.raises(error, match="batch_norm_act: expected"):
            batch_norm_act(x, mean, var, training=True, **options)
    assert not mean.any()
    assert bool((var == 1).all())
