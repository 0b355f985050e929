from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from samples import DTYPES
from torch import Tensor

from gan_fast.ops import feature_matching_loss


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shapes", [((4, 5), (4, 5)), ((3, 2, 4, 4), (7, 2, 4, 4))], ids=str)
def test_equals_the_published_formula(shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype) -> None:
    real, fake = (draw(*shape, dtype=dtype, seed=seed) for seed, shape in enumerate(shapes))
    loss = feature_matching_loss(real, fake)
    grads = torch.autograd.grad(loss, [real, fake])
    exact_real, exact_fake = (t.detach().double().requires_grad_() for t in (real, fake))
    difference = exact_real.mean(0) - exact_fake.mean(0)
    exact = torch.linalg.vector_norm(difference) ** 2 / real[0].numel()
    exact_grads = torch.autograd.grad(exact, [exact_real, exact_fake])
    for got, want in zip((loss, *grads), (exact, *exact_grads)):
        assert got.dtype == dtype
        # Computed in float32 or float64 and rounded once.
        torch.testing.assert_close(
            got.double(), want, rtol=4 * torch.finfo(dtype).eps, atol=0.1 * torch.finfo(dtype).eps
        )


def test_derivatives_match_finite_differences() -> None:
    inputs = (draw(3, 2, 2), draw(4, 2, 2, seed=1))
    assert torch.autograd.gradcheck(feature_matching_loss, inputs)
    assert torch.autograd.gradgradcheck(feature_matching_loss, inputs)


def test_reductions_equal_the_published_formula() -> None:
    real, fake = draw(3, 2, 4), draw(5, 2, 4, seed=1)
    squares = (real.mean(0) - fake.mean(0)).square()
    for reduction, want in (("mean", squares.mean()), ("sum", squares.sum()), ("none", squares)):
        loss = functools.partial(feature_matching_loss, reduction=reduction)
        torch.testing.assert_close(loss(real, fake), want)
        assert torch.autograd.gradcheck(loss, (real, fake))
        assert torch.autograd.gradgradcheck(loss, (real, fake))


def test_gradient_is_none_where_not_required() -> None:
    real, fake = draw(3, 4).detach(), draw(3, 4, seed=1)
    feature_matching_loss(real, fake).backward()
    assert real.grad is None
    assert fake.grad is not None


def test_autocast_gives_float32() -> None:
    real, fake = draw(3, 4, dtype=torch.bfloat16), draw(3, 4, dtype=torch.bfloat16, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert feature_matching_loss(real, fake).dtype == torch.float32


def test_compiles_without_graph_breaks() -> None:
    torch._dynamo.reset()
    real, fake = draw(3, 4), draw(3, 4, seed=1)
    compiled = torch.compile(feature_matching_loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(real, fake), feature_matching_loss(real, fake))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.ones(3, 2), torch.ones(4, 3)), ValueError, "expected fake_features shape (4, 2), got (4, 3)"),
        ((torch.ones(3), torch.ones(3)), ValueError,
         "expected real_features dimensions at least 2 (N, ...), got shape (3,)"),
        ((torch.ones(3, 2), torch.ones(3, 2).double()), TypeError,
         "expected fake_features dtype float32 to match real_features, got float64"),
        ((torch.ones(3, 2), torch.ones(3, 2, device="meta")), ValueError,
         "expected fake_features device cpu to match real_features, got meta"),
        ((torch.ones(3, 2), None), TypeError, "expected fake_features type Tensor, got NoneType"),
    ],
)  # fmt: skip
def test_invalid_argument_raises(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        feature_matching_loss(*arguments)
    assert str(caught.value) == f"feature_matching_loss: {message}"


def test_unknown_reduction_raises() -> None:
    message = "feature_matching_loss: expected reduction one of mean, sum, none, got 'avg'"
    with pytest.raises(ValueError, match=message):
        feature_matching_loss(torch.ones(3, 2), torch.ones(3, 2), reduction="avg")
