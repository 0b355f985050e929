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
def cpu_backend():
    """Small inputs run on gan_fast's nodes too."""
    with use_backend("cpu"):
        yield


def make_tensors(shape: tuple[int, ...], dtype: torch.dtype, bias: bool = True) -> list[Tensor]:
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
def test_equals_f_linear_to_second_order(shape: tuple[int, ...], dtype: torch.dtype, bias: bool) -> None:
    tensors = make_tensors(shape, dtype, bias)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    results = zip(derivatives(ops.linear, tensors), derivatives(F.linear, tensors), derivatives(F.linear, exact))
    for index, (a, b, c) in enumerate(results):
        assert_as_exact(a, b, c, f"result {index}", factor=few_numbers_factor(a))


def test_gradcheck_to_second_order() -> None:
    tensors = make_tensors((4, 3), torch.float64)
    assert torch.autograd.gradcheck(ops.linear, tensors)
    assert torch.autograd.gradgradcheck(ops.linear, tensors)


def test_accepts_any_strides() -> None:
    input, weight, bias = make_tensors((6, 8), torch.float32)
    transposed = weight.t().contiguous().t()
    wide = torch.cat([input, input], 1)[:, ::2]
    torch.testing.assert_close(ops.linear(input, transposed, bias), F.linear(input, weight, bias))
    torch.testing.assert_close(ops.linear(wide, weight), F.linear(wide, weight))


def test_autocast_equals_torch() -> None:
    tensors = make_tensors((5, 4), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = ops.linear(*tensors)
        assert output.dtype == torch.bfloat16
        assert torch.equal(output, F.linear(*tensors))
        assert ops.linear(*(t.double() for t in tensors)).dtype == torch.float64


def test_compiles_without_graph_breaks() -> None:
    tensors = make_tensors((5, 4), torch.float32)
    with use_backend("auto"):
        compiled = torch.compile(ops.linear, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*tensors), F.linear(*tensors))


X, W = torch.ones(2, 3), torch.ones(4, 3)
BAD = [
    ((1, W), TypeError, "linear: expected input type Tensor, got int"),
    ((X.long(), W), TypeError, "linear: expected input dtype float64, float32, bfloat16 or float16, got int64"),
    ((X, W.double()), TypeError, "linear: expected weight dtype float32, got float64"),
    ((X, W, torch.ones(4).double()), TypeError, "linear: expected bias dtype float32, got float64"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=[message for _, _, message in BAD])
@pytest.mark.parametrize("backend", ["cpu", "auto"])
def test_bad_input(arguments: tuple, error: type[Exception], message: str, backend: str) -> None:
    with use_backend(backend), pytest.raises(error, match=message):
        ops.linear(*arguments)


@pytest.mark.parametrize("backend", ["cpu", "auto"])
@pytest.mark.parametrize(
    "arguments",
    [
        (X, W.t()), (X, W[None]), (X, W, torch.ones(3)), (X, W, torch.ones(4, 1)), (X[0, 0], W), (X, W[0]),
        (X, W, torch.ones(1)), (X, W, torch.ones(())), (X, W, torch.ones(2, 4)), (X, W.double()), (X[:, :0], W[:, :0]),
    ],
    ids=lambda arguments: " ".join(str(tuple(t.shape)) for t in arguments),
)  # fmt: skip
def test_unusual_shapes_behave_as_in_f_linear(arguments: tuple[Tensor, ...], backend: str) -> None:
    """The same result, or an error of the same type."""
    many = (arguments[0].expand(3000, *arguments[0].shape), *arguments[1:])
    for case in (arguments, many):
        try:
            want = F.linear(*case)
        except RuntimeError as error:
            with use_backend(backend), pytest.raises(type(error)):
                ops.linear(*case)
        else:
            with use_backend(backend):
                torch.testing.assert_close(ops.linear(*case), want)
