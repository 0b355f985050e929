from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from pairs import pairwise
from samples import DTYPES, LAYOUTS
from torch import Tensor

from gan_fast.ops import conv2d, conv2d_act, leaky_relu, relu
from gan_fast.ops.leaky_relu import sign_kernels

# Ours and ATen's, with the slopes that they take beside the input.
RECTIFIERS = {
    **{f"leaky_relu {slope}": (leaky_relu, F.leaky_relu, (slope,)) for slope in (0.2, 0.0, -0.1)},
    "relu": (relu, F.relu, ()),
}


@pytest.mark.parametrize(*pairwise(dtype=DTYPES, layout=LAYOUTS, name=RECTIFIERS))
def test_equals_aten(dtype: torch.dtype, layout: str, name: str) -> None:
    ours_of, eager_of, slope = RECTIFIERS[name]
    x = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    x[0, 0, 0, :4] = torch.tensor([0.0, float("nan"), float("inf"), -float("inf")])
    x = LAYOUTS[layout](x).detach().requires_grad_()

    def run(function: object) -> list[Tensor]:
        output = function(x, *slope)  # type: ignore[operator]
        grad_output = torch.ones_like(output).mul_(3).requires_grad_()
        (first,) = torch.autograd.grad(output, x, grad_output, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), grad_output)
        return [output, first, second]

    for ours, eager in zip(run(ours_of), run(eager_of)):
        assert torch.equal(ours.nan_to_num(7), eager.nan_to_num(7))
        assert ours.stride() == eager.stride()


@pytest.mark.parametrize("name", RECTIFIERS)
def test_derivatives(name: str) -> None:
    function, _, slope = RECTIFIERS[name]
    x = torch.randn(20, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x, *slope))
    assert torch.autograd.gradgradcheck(function, (x, *slope))
    mapped = torch.func.vmap(lambda row: function(row, *slope))(x.view(4, 5))
    assert torch.allclose(mapped.flatten(), function(x, *slope))


@pytest.mark.parametrize("function", [leaky_relu, relu])
def test_second_backward_ends_there(function: Callable[..., Tensor]) -> None:
    """None by the input, where ATen has zeros that the layers before are walked with."""
    x = torch.randn(5, requires_grad=True)
    (first,) = torch.autograd.grad(function(x).sum(), x, torch.tensor(1.0, requires_grad=True), create_graph=True)
    assert torch.autograd.grad(first.sum(), x, allow_unused=True) == (None,)


def test_batched_gradients_with_a_graph_are_refused() -> None:
    """Ops that are nothing but nodes, at their first and second order: torch would drop the nodes in silence."""
    x, weight = torch.randn(1, 2, 4, 4, requires_grad=True), torch.randn(2, 2, 3, 3, requires_grad=True)
    outputs = {"leaky_relu": leaky_relu(x), "convolution": conv2d(x, weight)}
    for name, output in outputs.items():
        seed = torch.ones_like(output, requires_grad=True)
        (first,) = torch.autograd.grad(output, x, seed, create_graph=True)
        for result, wrt in ((output, x), (first, seed)):
            grads = torch.ones(3, *result.shape)
            with pytest.raises(NotImplementedError, match=f"{name}_backward: expected create_graph False"):
                torch.autograd.grad(result, wrt, grads, is_grads_batched=True, create_graph=True)


def test_in_place_change_of_the_input_is_noticed() -> None:
    x = torch.randn(5, requires_grad=True)
    y = x * 1
    z = leaky_relu(y)
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


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
    """Over a block to the last value and one more or less; more than one thread's share."""
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


def test_sign_kernels_take_any_order_of_memory() -> None:
    x = torch.randn(2, 3, 4, 5).permute(0, 2, 1, 3)
    output, kernels = x.clone(), sign_kernels("cpu", False)
    assert output.stride() == x.stride()
    signs = kernels.over(output, 0.2)
    for grad in (torch.randn(2, 4, 3, 5), torch.ones(()).expand(2, 4, 3, 5)):
        ours = kernels.backward(grad, signs, output.stride(), 0.2)
        assert torch.equal(ours, torch.where(x > 0, grad, grad * 0.2))
        assert ours.stride() == output.stride()
    assert torch.equal(kernels.positive(signs, x.shape, x.stride(), x.dtype), x > 0)


def test_raw_sign_ops_refuse_what_would_read_past_the_end() -> None:
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


def test_batched_gradients_of_a_convolution_and_leaky_relu() -> None:
    x, weight = torch.randn(4, 6, 20, 20), torch.randn(5, 6, 3, 3, requires_grad=True)
    output = conv2d_act(x, weight, None, 1, 1, negative_slope=0.2)
    grads = torch.randn(3, *output.shape)
    (batched,) = torch.autograd.grad(output, weight, grads, retain_graph=True, is_grads_batched=True)
    for grad, ours in zip(grads, batched):
        torch.testing.assert_close(ours, torch.autograd.grad(output, weight, grad, retain_graph=True)[0])
