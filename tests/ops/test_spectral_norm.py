from __future__ import annotations

from typing import Any

import pytest
import torch
from derivatives import in_double, second_order
from samples import LAYOUTS, SPECTRAL_SAMPLES, SpectralSample
from tolerances import assert_as_exact
from torch import Tensor
from torch.nn.utils.parametrizations import _SpectralNorm

import gan_fast
from gan_fast import extension
from gan_fast.ops import spectral_norm

SMALL = [s for s in SPECTRAL_SAMPLES if s.small]
needs_native = pytest.mark.skipif(not extension.available(), reason="needs the compiled extension")


def by_torch(
    weight: Tensor, u: Tensor, v: Tensor, n_power_iterations: int = 1, eps: float = 1e-12, dim: int = 0
) -> Tensor:
    """torch.nn.utils.parametrizations.spectral_norm with the same u and v."""
    module = _SpectralNorm(weight.detach(), max(n_power_iterations, 1), dim, eps)
    module.train(n_power_iterations > 0)
    module._u, module._v = u, v
    output: Tensor = module(weight)
    return output


def with_copies(arguments: dict[str, Any]) -> dict[str, Any]:
    return arguments | {"u": arguments["u"].clone(), "v": arguments["v"].clone()}


@needs_native
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("sample", SPECTRAL_SAMPLES, ids=str)
def test_equals_torch_parametrization_to_second_order(sample: SpectralSample, dtype: torch.dtype) -> None:
    arguments = sample.make(dtype)
    copied, eager, exact = with_copies(arguments), with_copies(arguments), in_double(with_copies(arguments))
    with gan_fast.use_backend("cpu"):
        got = second_order(spectral_norm, copied, dtype)
    for name, value in second_order(by_torch, eager, dtype).items():
        results = (got[name], value, second_order(by_torch, with_copies(exact), dtype)[name])
        assert_as_exact(*results, name, 4.0)
    by_torch(**exact)
    for name in ("u", "v"):
        assert_as_exact(copied[name], eager[name], exact[name], name, 4.0)


@needs_native
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("sample", SPECTRAL_SAMPLES, ids=str)
def test_half_precision_is_rounded_once(sample: SpectralSample, dtype: torch.dtype) -> None:
    """ATen rounds every product and norm; the kernel rounds only u, v and the output."""
    arguments = sample.make(dtype)
    exact = in_double(with_copies(arguments))
    got = spectral_norm(**arguments)
    torch.testing.assert_close(
        got.double(), spectral_norm(**exact), rtol=2 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).tiny
    )
    torch.testing.assert_close(arguments["u"].double(), exact["u"], rtol=torch.finfo(dtype).eps, atol=1e-5)
    torch.testing.assert_close(arguments["v"].double(), exact["v"], rtol=torch.finfo(dtype).eps, atol=1e-5)


@needs_native
@pytest.mark.parametrize("sample", SMALL, ids=str)
def test_derivatives_match_finite_differences(sample: SpectralSample) -> None:
    """Without power iteration, since the derivative takes u and v as constant."""
    arguments = sample.make(torch.float64)
    weight, options = arguments.pop("weight"), {**arguments, "n_power_iterations": 0}
    assert torch.autograd.gradcheck(lambda w: spectral_norm(w, **options), weight)
    assert torch.autograd.gradgradcheck(lambda w: spectral_norm(w, **options), weight)


@needs_native
def test_third_derivative_equals_torch() -> None:
    def third(function: Any) -> Tensor:
        arguments = SpectralSample((3, 4)).make(torch.float64)
        grad = function(**arguments)
        for _ in range(3):
            (grad,) = torch.autograd.grad((grad**2).sum(), arguments["weight"], create_graph=True)
        return grad

    torch.testing.assert_close(third(spectral_norm), third(by_torch))


@needs_native
def test_second_call_does_not_change_the_first_gradient() -> None:
    """As with a loss on real and on generated images: two forward passes, then one backward."""
    results = []
    for function in (spectral_norm, by_torch):
        arguments = SpectralSample((6, 5)).make(torch.float64)
        first, second = function(**arguments), function(**arguments)
        results.append(torch.autograd.grad((first * 2 - second.square()).sum(), arguments["weight"])[0])
    torch.testing.assert_close(*results)


@needs_native
def test_updating_u_and_v_increments_their_versions() -> None:
    arguments = SpectralSample((6, 5)).make(torch.float32)
    versions = arguments["u"]._version, arguments["v"]._version
    spectral_norm(**arguments | {"n_power_iterations": 0})
    assert (arguments["u"]._version, arguments["v"]._version) == versions
    spectral_norm(**arguments)
    assert arguments["u"]._version > versions[0]
    assert arguments["v"]._version > versions[1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weight_of_any_strides_equals_torch(layout: str) -> None:
    arguments = SpectralSample((6, 4, 3, 3)).make(torch.float64)
    arguments["weight"] = LAYOUTS[layout](arguments["weight"].detach()).requires_grad_()
    got, want = (function(**with_copies(arguments)) for function in (spectral_norm, by_torch))
    torch.testing.assert_close(got, want)
    assert got.stride() == want.stride()


def test_zero_and_infinite_weights_equal_torch() -> None:
    for value in (0.0, float("inf"), float("nan")):
        arguments = SpectralSample((6, 5)).make(torch.float32, requires_grad=False)
        arguments["weight"].fill_(value)
        got, want = (function(**with_copies(arguments)) for function in (spectral_norm, by_torch))
        torch.testing.assert_close(got, want, equal_nan=True)


@needs_native
@pytest.mark.parametrize("sample", SMALL, ids=str)
def test_opcheck(sample: SpectralSample) -> None:
    weight, u, v, iterations, dim = sample.make(torch.float32).values()
    op = torch.ops.gan_fast
    torch.library.opcheck(op.spectral_norm_forward.default, (weight, u, v, iterations, 1e-12, dim))
    grad_output = torch.randn_like(weight, requires_grad=True)
    sigma = torch.ones(())
    # Leave out gradcheck: the derivative treats sigma as a function of u, v and weight, not as an argument.
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(op.spectral_norm_backward.default, (grad_output, weight, u, v, sigma, dim), test_utils=tests)


@needs_native
def test_same_bits_for_any_number_of_threads() -> None:
    arguments = SpectralSample((128, 64, 4, 4)).make(torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            copied = with_copies(arguments)
            output = spectral_norm(**copied)
            (grad,) = torch.autograd.grad(output.square().sum(), copied["weight"])
            results.append([output, grad, copied["u"], copied["v"]])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(got, want) for got, want in zip(other, results[0]))


def test_compiles_without_graph_breaks() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(spectral_norm, fullgraph=True, backend="aot_eager")
    first, second = SpectralSample((6, 5)).make(torch.float32), SpectralSample((6, 5)).make(torch.float32)
    torch.testing.assert_close(compiled(**first), spectral_norm(**second))
    torch.testing.assert_close((first["u"], first["v"]), (second["u"], second["v"]))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_autocast_has_no_effect(backend: str) -> None:
    first, second = SpectralSample((6, 5)).make(torch.float32), SpectralSample((6, 5)).make(torch.float32)
    with torch.autocast("cpu", torch.bfloat16), gan_fast.use_backend(backend):
        inside = spectral_norm(**first)
    torch.testing.assert_close(inside, spectral_norm(**second))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight": torch.ones(3)}, ValueError, "expected weight dimensions at least 2, got shape (3,)"),
        ({"u": torch.ones(4)}, ValueError, "expected u shape (3,), got (4,)"),
        ({"v": torch.ones(4)}, ValueError, "expected v shape (5,), got (4,)"),
        ({"v": torch.ones(5).double()}, TypeError, "expected v dtype float32, got float64"),
        ({"u": torch.ones(3, device="meta")}, ValueError, "expected u device cpu to match weight, got meta"),
        ({"u": torch.ones(3, requires_grad=True)}, ValueError,
         "expected u not to require grad, got one that does; power iteration has no gradient"),
        ({"dim": 2}, ValueError, "expected dim between 0 and 1, got 2"),
        ({"n_power_iterations": -1}, ValueError, "expected n_power_iterations at least 0, got -1"),
        ({"n_power_iterations": 1.0}, TypeError, "expected n_power_iterations type int, got float"),
        ({"eps": None}, TypeError, "expected eps type float, got NoneType"),
    ],
)  # fmt: skip
def test_invalid_argument_raises(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"weight": torch.ones(3, 5), "u": torch.ones(3), "v": torch.ones(5)} | change
    with pytest.raises(error) as caught:
        spectral_norm(**arguments)
    assert str(caught.value) == f"spectral_norm: {message}"


@needs_native
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.ones(5, 3).T}, "expected weight contiguous, got"),
        ({"u": torch.ones(4)}, "expected u shape (3,), got (4,)"),
        ({"v": torch.ones(10)[::2]}, "expected v contiguous, got gaps"),
        ({"dim": 2}, "expected dim between 0 and 1, got 2"),
        ({"n_power_iterations": -1}, "expected n_power_iterations at least 0, got -1"),
    ],
)
def test_registered_op_rejects_invalid_arguments(change: dict[str, Any], message: str) -> None:
    arguments = {
        "weight": torch.ones(3, 5), "u": torch.ones(3), "v": torch.ones(5), "n_power_iterations": 1, "eps": 1e-12,
        "dim": 0,
    } | change  # fmt: skip
    with pytest.raises(RuntimeError) as caught:
        torch.ops.gan_fast.spectral_norm_forward(**arguments)
    assert f"spectral_norm_forward: {message}" in str(caught.value)
