from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from pairs import pairwise
from samples import DTYPES, LAYOUTS
from torch import Tensor, nn

import gan_fast
from gan_fast.nn import LeakyReLU, ReLU
from gan_fast.ops import conv2d, conv2d_act, leaky_relu, relu
from gan_fast.ops.leaky_relu import sign_kernels

# gan_fast's function, ATen's, and the slope arguments of both.
RECTIFIERS = {
    **{f"leaky_relu {slope}": (leaky_relu, F.leaky_relu, (slope,)) for slope in (0.2, 0.0, -0.1)},
    "relu": (relu, F.relu, ()),
}


@pytest.mark.parametrize(*pairwise(dtype=DTYPES, layout=LAYOUTS, name=RECTIFIERS))
def test_equals_aten(dtype: torch.dtype, layout: str, name: str) -> None:
    function_of_ops, eager_function, slope = RECTIFIERS[name]
    x = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    x[0, 0, 0, :4] = torch.tensor([0.0, float("nan"), float("inf"), -float("inf")])
    x = LAYOUTS[layout](x).detach().requires_grad_()

    def run(function: object) -> list[Tensor]:
        output = function(x, *slope)  # type: ignore[operator]
        grad_output = torch.ones_like(output).mul_(3).requires_grad_()
        (first,) = torch.autograd.grad(output, x, grad_output, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), grad_output)
        return [output, first, second]

    for actual, eager in zip(run(function_of_ops), run(eager_function)):
        assert torch.equal(actual.nan_to_num(7), eager.nan_to_num(7))
        assert actual.stride() == eager.stride()


@pytest.mark.parametrize("name", RECTIFIERS)
def test_gradcheck_and_vmap(name: str) -> None:
    function, _, slope = RECTIFIERS[name]
    x = torch.randn(20, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x, *slope))
    assert torch.autograd.gradgradcheck(function, (x, *slope))
    mapped = torch.func.vmap(lambda row: function(row, *slope))(x.view(4, 5))
    assert torch.allclose(mapped.flatten(), function(x, *slope))


@pytest.mark.parametrize("function", [leaky_relu, relu])
def test_second_backward_returns_none_for_the_input(function: Callable[..., Tensor]) -> None:
    x = torch.randn(5, requires_grad=True)
    (first,) = torch.autograd.grad(function(x).sum(), x, torch.tensor(1.0, requires_grad=True), create_graph=True)
    assert torch.autograd.grad(first.sum(), x, allow_unused=True) == (None,)


def test_batched_gradients_with_a_graph_raise() -> None:
    """torch would silently drop the graph of a custom autograd node, at the first and at the second order."""
    x, weight = torch.randn(1, 2, 4, 4, requires_grad=True), torch.randn(2, 2, 3, 3, requires_grad=True)
    outputs = {"leaky_relu": leaky_relu(x), "convolution": conv2d(x, weight)}
    for name, output in outputs.items():
        seed = torch.ones_like(output, requires_grad=True)
        (first,) = torch.autograd.grad(output, x, seed, create_graph=True)
        for result, wrt in ((output, x), (first, seed)):
            grads = torch.ones(3, *result.shape)
            with pytest.raises(NotImplementedError, match=f"{name}_backward: expected create_graph False"):
                torch.autograd.grad(result, wrt, grads, is_grads_batched=True, create_graph=True)


def test_backward_raises_if_the_input_was_modified() -> None:
    x = torch.randn(5, requires_grad=True)
    y = x * 1
    z = leaky_relu(y)
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


@pytest.mark.parametrize("backend", ["auto", "cpu", "reference"])
@pytest.mark.parametrize("shape", [(5,), (3, 4, 40, 30)], ids=str)
@pytest.mark.parametrize("name", RECTIFIERS)
def test_inplace_equals_out_of_place_to_second_order(name: str, shape: tuple[int, ...], backend: str) -> None:
    function, eager_function, slope = RECTIFIERS[name]
    x = torch.randn(shape, dtype=torch.float64)

    def run(function: Callable[..., Tensor], inplace: bool) -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        hidden = leaf.sin()
        output = function(hidden, *slope, inplace)
        assert (output is hidden) == inplace
        (first,) = torch.autograd.grad(output.square().sum(), leaf, create_graph=True)
        return [output, first, *torch.autograd.grad(first.square().sum(), leaf)]

    want = run(eager_function, False)
    with gan_fast.use_backend(backend):
        if slope and slope[0] < 0:
            with pytest.raises(RuntimeError, match="negative slope"):
                run(function, True)
            return
        found = run(function, True)
    for a, b in zip(found, want):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("function", [leaky_relu, relu])
def test_inplace_on_a_view_reaches_the_base(function: Callable[..., Tensor]) -> None:
    x = torch.randn(4, 60, 70, dtype=torch.float64)

    def run(write: bool) -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        base = leaf * 2
        if write:
            function(base[1:3], inplace=True)
        else:
            base = torch.cat([base[:1], getattr(F, function.__name__)(base[1:3]), base[3:]])
        (first,) = torch.autograd.grad((base**3).sum(), leaf, create_graph=True)
        return [base, first, *torch.autograd.grad(first.square().sum(), leaf)]

    for found, want in zip(run(True), run(False)):
        torch.testing.assert_close(found, want)


@pytest.mark.parametrize("module", [LeakyReLU(0.2, inplace=True), ReLU(inplace=True)], ids=str)
@pytest.mark.parametrize("size", [3, 10_000])
def test_inplace_raises_what_torch_raises(size: int, module: nn.Module) -> None:
    """The input keeps its values where torch refuses to overwrite it."""
    leaf = torch.randn(size, requires_grad=True)
    hidden = leaf * 1
    with torch.no_grad():
        ambiguous = hidden[:]
    for input, message in (
        (leaf, "a leaf Variable that requires grad is being used in an in-place operation"),
        (leaf[1:], "a view of a leaf Variable that requires grad is being used in an in-place operation"),
        (torch.stack([leaf, leaf]).unbind()[0], "is a view and is being modified inplace"),
        ((leaf[:1] * 1).expand(size), "more than one element of the written-to tensor refers to a single memory"),
        (ambiguous, "A view was created in no_grad mode and is being modified inplace"),
    ):
        before = input.detach().clone()
        with pytest.raises(RuntimeError, match=message):
            module(input)
        assert torch.equal(input, before)
    with torch.no_grad():
        assert module(leaf) is leaf


@pytest.mark.parametrize("function", [leaky_relu, relu])
def test_second_backward_stops_at_an_inplace_activation(function: Callable[..., Tensor]) -> None:
    x = torch.randn(10_000, requires_grad=True)
    hidden = x * 2
    output = function(hidden, inplace=True)
    seed = torch.tensor(1.0, requires_grad=True)
    (first,) = torch.autograd.grad(output.sum(), x, seed, create_graph=True)
    assert torch.autograd.grad(first.sum(), x, allow_unused=True) == (None,)
    output.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_inplace_under_gradcheck_vmap_and_compile() -> None:
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    for function in (leaky_relu, relu):
        composed = lambda t, function=function: function(t * 2, inplace=True)  # noqa: E731
        with gan_fast.use_backend("cpu"):
            assert torch.autograd.gradcheck(composed, (x,))
            assert torch.autograd.gradgradcheck(composed, (x,))
        torch.testing.assert_close(torch.func.vmap(composed)(x), function(x * 2))
        compiled = torch.compile(composed, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), function(x * 2))


def test_inplace_is_refused_on_triton() -> None:
    with gan_fast.use_backend("triton"), pytest.raises(RuntimeError, match="leaky_relu: expected inplace False for"):
        leaky_relu(torch.randn(3), inplace=True)


def test_modules_accept_the_dtypes_that_torch_accepts() -> None:
    for inplace in (False, True):
        assert ReLU(inplace)(torch.tensor([-1, 2])).tolist() == [0, 2]
        assert ReLU(inplace)(torch.tensor([-1.0, 2.0]).to_sparse()).to_dense().tolist() == [0.0, 2.0]
        with pytest.raises(NotImplementedError, match="not implemented for 'Long'"):
            LeakyReLU(0.2, inplace)(torch.tensor([-1, 2]))


def test_bad_input() -> None:
    for function in (leaky_relu, relu):
        with pytest.raises(TypeError, match=f"{function.__name__}: expected input type Tensor, got int"):
            function(1)
        with pytest.raises(TypeError, match=f"{function.__name__}: expected input dtype .*, got int64"):
            function(torch.ones(2, dtype=torch.int64))
    with pytest.raises(TypeError, match="leaky_relu: expected negative_slope type float, got str"):
        leaky_relu(torch.ones(2), "0.2")


@pytest.mark.parametrize(*pairwise(dtype=DTYPES, slope=[0.2, 0.0, -0.3], count=[0, 1, 7, 63, 64, 65, 40_000]))
def test_sign_kernels_equal_aten(dtype: torch.dtype, slope: float, count: int) -> None:
    """Counts around the block size, and one for several threads."""
    x, grad = (torch.randn(count, dtype=torch.float64).to(dtype) for _ in range(2))
    if count > 4:
        x[:4] = torch.tensor([0.0, float("nan"), float("inf"), -float("inf")])
    kernels = sign_kernels("cpu", False)
    output = x.clone()
    signs = kernels.over(output, slope)
    assert torch.equal(output.nan_to_num(7), F.leaky_relu(x, slope).nan_to_num(7))
    by_aten = torch.ops.aten.leaky_relu_backward(grad, x, slope, False)
    assert torch.equal(kernels.backward(grad, signs, (1,), slope), by_aten)
    assert torch.equal(kernels.positive(signs, (count,), (1,), dtype), x > 0)


def test_sign_kernels_accept_permuted_tensors() -> None:
    x = torch.randn(2, 3, 4, 5).permute(0, 2, 1, 3)
    output, kernels = x.clone(), sign_kernels("cpu", False)
    assert output.stride() == x.stride()
    signs = kernels.over(output, 0.2)
    for grad in (torch.randn(2, 4, 3, 5), torch.ones(()).expand(2, 4, 3, 5)):
        actual = kernels.backward(grad, signs, output.stride(), 0.2)
        assert torch.equal(actual, torch.where(x > 0, grad, grad * 0.2))
        assert actual.stride() == output.stride()
    assert torch.equal(kernels.positive(signs, x.shape, x.stride(), x.dtype), x > 0)


def test_raw_sign_ops_reject_shapes_that_would_read_out_of_bounds() -> None:
    over, backward = torch.ops.gan_fast.leaky_relu_over, torch.ops.gan_fast.leaky_relu_backward
    x = torch.randn(4, 30)
    with pytest.raises(RuntimeError, match="leaky_relu_over: expected input without gaps"):
        over(x[:, ::2], 0.2)
    with pytest.raises(RuntimeError, match=r"leaky_relu_backward: expected signs shape \(16,\)"):
        backward(x, torch.zeros(15, dtype=torch.uint8), x.stride(), 0.2)
    signs = torch.zeros(16, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="leaky_relu_backward: expected stride length 2, got 1"):
        backward(x, signs, (1,), 0.2)
    with pytest.raises(RuntimeError, match="leaky_relu_backward: expected stride of a tensor without gaps"):
        backward(x, signs, (60, 2), 0.2)
    with pytest.raises(NotImplementedError, match="leaky_relu_over: expected no argument to require grad"):
        over(x.clone().requires_grad_(), 0.2)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(over.default, (x, 0.2), test_utils=checks)
    torch.library.opcheck(backward.default, (x, signs, x.stride(), 0.2), test_utils=checks)


def test_batched_gradients_of_conv2d_act() -> None:
    x, weight = torch.randn(4, 6, 20, 20), torch.randn(5, 6, 3, 3, requires_grad=True)
    output = conv2d_act(x, weight, None, 1, 1, negative_slope=0.2)
    grads = torch.randn(3, *output.shape)
    (batched,) = torch.autograd.grad(output, weight, grads, retain_graph=True, is_grads_batched=True)
    for grad, actual in zip(grads, batched):
        torch.testing.assert_close(actual, torch.autograd.grad(output, weight, grad, retain_graph=True)[0])
