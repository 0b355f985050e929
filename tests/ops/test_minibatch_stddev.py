from __future__ import annotations

from typing import Any

import pytest
import torch
from derivatives import in_double, second_order
from pairs import in_dtypes
from samples import DTYPES, STDDEV_SAMPLES, StdDevSample
from tolerances import assert_as_exact
from torch import Tensor

from gan_fast.ops import minibatch_stddev


def published(input: Tensor, group_size: int | None = 4, num_channels: int = 1) -> Tensor:
    """Section 3 of ProGAN, sample by sample, with the groups and channel ranges of StyleGAN2."""
    n, c = input.shape[:2]
    group = n if group_size is None else min(group_size, n)
    appended = []
    for sample in range(n):
        members = input[sample % (n // group) :: n // group]
        deviation = (members.var(0, correction=0) + 1e-8).sqrt()
        shares = deviation.split(c // num_channels)
        appended.append(torch.stack([share.mean().expand(input.shape[2:]) for share in shares]))
    return torch.cat([input, torch.stack(appended)], 1)


@pytest.mark.parametrize(*in_dtypes([s for s in STDDEV_SAMPLES if s.shape[0]], DTYPES))
def test_equals_the_published_formula_to_second_order(sample: StdDevSample, dtype: torch.dtype) -> None:
    arguments = sample.make(dtype)
    output, eager = second_order(minibatch_stddev, arguments), second_order(published, arguments)
    exact = second_order(published, in_double(arguments), dtype)
    for name, value in eager.items():
        assert_as_exact(output[name], value, exact[name], name, 4.0)


def is_fit_for_finite_differences(sample: StdDevSample) -> bool:
    # At a variance of zero the square root is too curved for finite differences.
    varied = sample.shape[0] > 1 and sample.group_size != 1 and sample.layout != "expanded"
    return varied and sample.make(torch.float32)["input"].numel() <= 512


@pytest.mark.parametrize("sample", filter(is_fit_for_finite_differences, STDDEV_SAMPLES), ids=str)
def test_derivatives_match_finite_differences(sample: StdDevSample) -> None:
    input, *others = sample.make(torch.float64).values()
    assert torch.autograd.gradcheck(minibatch_stddev, (input, *others))
    assert torch.autograd.gradgradcheck(minibatch_stddev, (input, *others))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_is_zero_for_equal_samples(dtype: torch.dtype) -> None:
    x = torch.ones(4, 2, 3, 3, dtype=dtype, requires_grad=True)
    appended = minibatch_stddev(x)[:, 2:]
    torch.testing.assert_close(appended, torch.full_like(appended, 1e-4))
    (grad,) = torch.autograd.grad(appended.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), x)
    assert not grad.count_nonzero()
    assert not second.count_nonzero()


def test_keeps_memory_format_and_accepts_empty_batch() -> None:
    x = torch.randn(4, 3, 5, 5)
    assert minibatch_stddev(x).is_contiguous()
    assert minibatch_stddev(x.contiguous(memory_format=torch.channels_last)).is_contiguous(
        memory_format=torch.channels_last
    )
    empty = torch.ones(0, 3, 2, 2, requires_grad=True)
    output = minibatch_stddev(empty)
    assert output.shape == (0, 4, 2, 2)
    output.sum().backward()
    assert empty.grad is not None


def test_autocast_keeps_the_dtype_of_the_input() -> None:
    x = torch.randn(4, 3, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(minibatch_stddev(x), minibatch_stddev(x))
        assert minibatch_stddev(x).dtype == torch.float32
        assert minibatch_stddev(x.bfloat16()).dtype == torch.bfloat16


def test_compiles_without_graph_breaks() -> None:
    torch._dynamo.reset()
    x = torch.randn(4, 3, 5, 5)
    compiled = torch.compile(minibatch_stddev, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), minibatch_stddev(x))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.ones(6, 2, 1, 1),), ValueError, "expected input batch divisible by group_size 4, got 6"),
        ((torch.ones(4, 3, 1, 1), 4, 2), ValueError, "expected input channels divisible by num_channels 2, got 3"),
        ((torch.ones(4),), ValueError, "expected input dimensions at least 2 (N, C, ...), got shape (4,)"),
        ((torch.ones(4, 2), 0), ValueError, "expected group_size at least 1, got 0"),
        ((torch.ones(4, 2), 2.0), TypeError, "expected group_size type int, got float"),
        ((torch.ones(4, 2), 2, None), TypeError, "expected num_channels type int, got NoneType"),
        ((torch.ones(4, 2), 2, 1, 0.0), ValueError, "expected eps above 0, got 0.0"),
        ((torch.ones(4, 2, dtype=torch.int64),), TypeError,
         "expected input dtype float64, float32, bfloat16 or float16, got int64"),
        (([1.0],), TypeError, "expected input type Tensor, got list"),
    ],
)  # fmt: skip
def test_invalid_argument_raises(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        minibatch_stddev(*arguments)
    assert str(caught.value) == f"minibatch_stddev: {message}"
