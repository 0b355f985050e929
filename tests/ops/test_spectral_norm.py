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
native = pytest.mark.skipif(not extension.available(), reason="needs the native module")


def by_torch(
    weight: Tensor, u: Tensor, v: Tensor, n_power_iterations: int = 1, eps: float = 1e-12, dim: int = 0
) -> Tensor:
    """The parametrisation of torch.nn.utils on the same vectors."""
    module = _SpectralNorm(weight.detach(), max(n_power_iterations, 1), dim, eps)
    module.train(n_power_iterations > 0)
    module._u, module._v = u, v
    output: Tensor = module(weight)
    return output


def with_copies(arguments: dict[str, Any]) -> dict[str, Any]:
    return arguments | {"u": arguments["u"].clone(), "v": arguments["v"].clone()}


@native
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("sample", SPECTRAL_SAMPLES, ids=str)
def test_equals_torch_s_parametrisation_to_second_order(sample: SpectralSample, dtype: torch.dtype) -> None:
    arguments = sample.make(dtype)
    own, eager, exact = with_copies(arguments), with_copies(arguments), in_double(with_copies(arguments))
    with gan_fast.use_backend("cpu"):
        ours = second_order(spectral_norm, own, dtype)
    for name, value in second_order(by_torch, eager, dtype).items():
        results = (ours[name], value, second_order(by_torch, with_copies(exact), dtype)[name])
        assert_as_exact(*results, name, 4.0)
    by_torch(**exact)
    for name in ("u", "v"):
        assert_as_exact(own[name], eager[name], exact[name], name, 4.0)


@native
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("sample", SPECTRAL_SAMPLES, ids=str)
def test_half_precision_is_rounded_once(sample: SpectralSample, dtype: torch.dtype) -> None:
    """ATen rounds each product and norm; a factor of a few roundings is what u, v and sigma leave here."""
    arguments = sample.make(dtype)
    exact = in_double(with_copies(arguments))
    ours = spectral_norm(**arguments)
    torch.testing.assert_close(
        ours.double(), spectral_norm(**exact), rtol=2 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).tiny
    )
    torch.testing.assert_close(arguments["u"].double(), exact["u"], rtol=torch.finfo(dtype).eps, atol=1e-5)
    torch.testing.assert_close(arguments["v"].double(), exact["v"], rtol=torch.finfo(dtype).eps, atol=1e-5)


@native
@pytest.mark.parametrize("sample", SMALL, ids=str)
def test_numerical_derivatives(sample: SpectralSample) -> None:
    """With no step of the iteration, whose vectors the derivative takes for constant."""
    arguments = sample.make(torch.float64)
    weight, options = arguments.pop("weight"), {**arguments, "n_power_iterations": 0}
    assert torch.autograd.gradcheck(lambda w: spectral_norm(w, **options), weight)
    assert torch.autograd.gradgradcheck(lambda w: spectral_norm(w, **options), weight)


@native
def test_third_derivative() -> None:
    def third(function: Any) -> Tensor:
        arguments = SpectralSample((3, 4)).make(torch.float64)
        grad = function(**arguments)
        for _ in range(3):
            (grad,) = torch.autograd.grad((grad**2).sum(), arguments["weight"], create_graph=True)
        return grad

    torch.testing.assert_close(third(spectral_norm), third(by_torch))


@native
def test_a_later_call_leaves_an_earlier_gradient_alone() -> None:
    """Loss on real and on generated images: two forwards, then one backward."""
    results = []
    for function in (spectral_norm, by_torch):
        arguments = SpectralSample((6, 5)).make(torch.float64)
        first, second = function(**arguments), function(**arguments)
        results.append(torch.autograd.grad((first * 2 - second.square()).sum(), arguments["weight"])[0])
    torch.testing.assert_close(*results)


@native
def test_vectors_that_move_are_seen_by_autograd() -> None:
    arguments = SpectralSample((6, 5)).make(torch.float32)
    versions = arguments["u"]._version, arguments["v"]._version
    spectral_norm(**arguments | {"n_power_iterations": 0})
    assert (arguments["u"]._version, arguments["v"]._version) == versions
    spectral_norm(**arguments)
    assert arguments["u"]._version > versions[0]
    assert arguments["v"]._version > versions[1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_of_any_strides(layout: str) -> None:
    arguments = SpectralSample((6, 4, 3, 3)).make(torch.float64)
    arguments["weight"] = LAYOUTS[layout](arguments["weight"].detach()).requires_grad_()
    ours, want = (function(**with_copies(arguments)) for function in (spectral_norm, by_torch))
    torch.testing.assert_close(ours, want)
    assert ours.stride() == want.stride()


def test_zero_and_infinite_weights_are_as_in_torch() -> None:
    for value in (0.0, float("inf"), float("nan")):
        arguments = SpectralSample((6, 5)).make(torch.float32, requires_grad=False)
        arguments["weight"].fill_(value)
        ours, want = (function(**with_copies(arguments)) for function in (spectral_norm, by_torch))
        torch.testing.assert_close(ours, want, equal_nan=True)


@native
@pytest.mark.parametrize("sample", SMALL, ids=str)
def test_opcheck(sample: SpectralSample) -> None:
    weight, u, v, iterations, dim = sample.make(torch.float32).values()
    op = torch.ops.gan_fast
    torch.library.opcheck(op.spectral_norm_forward.default, (weight, u, v, iterations, 1e-12, dim))
    grad_output = torch.randn_like(weight, requires_grad=True)
    sigma = torch.ones(())
    # The recipe of a derivative to any order takes sigma for what u, v and weight make of it.
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(op.spectral_norm_backward.default, (grad_output, weight, u, v, sigma, dim), test_utils=tests)


@native
def test_same_bits_for_any_number_of_threads() -> None:
    arguments = SpectralSample((128, 64, 4, 4)).make(torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            own = with_copies(arguments)
            output = spectral_norm(**own)
            (grad,) = torch.autograd.grad(output.square().sum(), own["weight"])
            results.append([output, grad, own["u"], own["v"]])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(got, want) for got, want in zip(other, results[0]))


def test_compiles_whole() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(spectral_norm, fullgraph=True, backend="aot_eager")
    own, other = SpectralSample((6, 5)).make(torch.float32), SpectralSample((6, 5)).make(torch.float32)
    torch.testing.assert_close(compiled(**own), spectral_norm(**other))
    torch.testing.assert_close((own["u"], own["v"]), (other["u"], other["v"]))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_autocast_does_not_reach_it(backend: str) -> None:
    own, other = SpectralSample((6, 5)).make(torch.float32), SpectralSample((6, 5)).make(torch.float32)
    with torch.autocast("cpu", torch.bfloat16), gan_fast.use_backend(backend):
        inside = spectral_norm(**own)
    torch.testing.assert_close(inside, spectral_norm(**other))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight": torch.ones(3)}, ValueError, "expected weight dimensions at least 2, got shape (3,)"),
        ({"u": torch.ones(4)}, ValueError, "expected u shape (3,), got (4,)"),
        ({"v": torch.ones(4)}, ValueError, "expected v shape (5,), got (4,)"),
        ({"v": torch.ones(5).double()}, TypeError, "expected v dtype float32, got float64"),
        ({"u": torch.ones(3, device="meta")}, ValueError, "expected u device cpu as weight, got meta"),
        ({"u": torch.ones(3, requires_grad=True)}, ValueError,
         "expected u not to require grad, got one that does: it has no gradient"),
        ({"dim": 2}, ValueError, "expected dim between 0 and 1, got 2"),
        ({"n_power_iterations": -1}, ValueError, "expected n_power_iterations at least 0, got -1"),
        ({"n_power_iterations": 1.0}, TypeError, "expected n_power_iterations type int, got float"),
        ({"eps": None}, TypeError, "expected eps type float, got NoneType"),
    ],
)  # fmt: skip
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"weight": torch.ones(3, 5), "u": torch.ones(3), "v": torch.ones(5)} | change
    with pytest.raises(error) as caught:
        spectral_norm(**arguments)
    assert str(caught.value) == f"spectral_norm: {message}"


@native
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.ones(5, 3).T}, "expected weight contiguous, got"),
        ({"u": torch.ones(4)}, "expected u shape (3,), got (4,)"),
        ({"v": torch.ones(10)[::2]}, "expected v contiguous, got gaps"),
        ({"dim": 2}, "expected dim in [0, 1], got 2"),
        ({"n_power_iterations": -1}, "expected n_power_iterations at least 0, got -1"),
    ],
)
def test_kernels_check_too(change: dict[str, Any], message: str) -> None:
    arguments = {
        "weight": torch.ones(3, 5), "u": torch.ones(3), "v": torch.ones(5), "n_power_iterations": 1, "eps": 1e-12,
        "dim": 0,
    } | change  # fmt: skip
    with pytest.raises(RuntimeError) as caught:
        torch.ops.gan_fast.spectral_norm_forward(**arguments)
    assert f"spectral_norm_forward: {message}" in str(caught.value)
