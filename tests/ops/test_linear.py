from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gan_fast import ops, use_backend
from tests.tolerances import assert_as_exact, few_numbers_factor

SHAPES = {"rows": (7, 12), "positions": (3, 5, 12), "one": (12,), "none": (0, 12), "many": (64, 300)}
DTYPES = (torch.float64, torch.float32, torch.bfloat16)


@pytest.fixture(autouse=True)
def ours():
    with use_backend("cpu"):
        yield


def drawn(shape: tuple[int, ...], dtype: torch.dtype, bias: bool = True) -> list[Tensor]:
    torch.manual_seed(0)
    tensors = [torch.randn(shape), torch.randn(9, shape[-1]), torch.randn(9)]
    return [t.to(dtype).requires_grad_() for t in tensors[: 3 if bias else 2]]


def derivatives(function, tensors: list[Tensor]) -> list[Tensor]:
    output = function(*tensors)
    grad = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape).to(output.dtype)
    first = torch.autograd.grad(output, tensors, grad, create_graph=True)
    total = sum((g.square().sum() for g in first[:2]), start=output.sum() * 0)
    return [output, *first, *torch.autograd.grad(total, tensors[:2])]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_values_and_derivatives(shape: tuple[int, ...], dtype: torch.dtype, bias: bool) -> None:
    tensors = drawn(shape, dtype, bias)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    results = zip(derivatives(ops.linear, tensors), derivatives(F.linear, tensors), derivatives(F.linear, exact))
    for index, (a, b, c) in enumerate(results):
        assert_as_exact(a, b, c, f"result {index}", factor=few_numbers_factor(a))


def test_checked_derivatives() -> None:
    tensors = drawn((4, 3), torch.float64)
    assert torch.autograd.gradcheck(ops.linear, tensors)
    assert torch.autograd.gradgradcheck(ops.linear, tensors)


def test_strides_do_not_matter() -> None:
    input, weight, bias = drawn((6, 8), torch.float32)
    transposed = weight.t().contiguous().t()
    wide = torch.cat([input, input], 1)[:, ::2]
    torch.testing.assert_close(ops.linear(input, transposed, bias), F.linear(input, weight, bias))
    torch.testing.assert_close(ops.linear(wide, weight), F.linear(wide, weight))


def test_autocast_as_torch_has_it() -> None:
    tensors = drawn((5, 4), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = ops.linear(*tensors)
        assert output.dtype == torch.bfloat16
        assert torch.equal(output, F.linear(*tensors))
        assert ops.linear(*(t.double() for t in tensors)).dtype == torch.float64


def test_compiles_whole() -> None:
    tensors = drawn((5, 4), torch.float32)
    with use_backend("auto"):
        compiled = torch.compile(ops.linear, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*tensors), F.linear(*tensors))


X, W = torch.ones(2, 3), torch.ones(4, 3)
BAD = [
    ((1, W), TypeError, "linear: expected input type Tensor, got int"),
    ((X.long(), W), TypeError, "linear: expected input dtype float64, float32, bfloat16 or float16, got int64"),
    ((X, W.double()), TypeError, "linear: expected weight dtype float32, got float64"),
    ((X, W[0]), ValueError, r"linear: expected weight dimensions 2, got shape \(3,\)"),
    ((X, W.t()), ValueError, r"linear: expected input last dim 4 as weight \(3, 4\) has it, got shape \(2, 3\)"),
    ((X, W, torch.ones(3)), ValueError, r"linear: expected bias shape \(4,\), got \(3,\)"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=[message for _, _, message in BAD])
@pytest.mark.parametrize("backend", ["cpu", "auto"])
def test_bad_input(arguments: tuple, error: type[Exception], message: str, backend: str) -> None:
    with use_backend(backend), pytest.raises(error, match=message):
        ops.linear(*arguments)
