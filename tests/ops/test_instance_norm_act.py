from __future__ import annotations

from typing import Any

import pytest
import torch
from derivatives import differentiated, in_double, second_order_and_statistics, strides, with_own_buffers
from pairs import in_dtypes
from samples import DTYPES, NORM_SAMPLES, NormSample
from tolerances import assert_as_exact
from torch import Tensor

import gan_fast
from gan_fast.ops import instance_norm_act
from gan_fast.ops.instance_norm_act import reference

# Batch norm's samples, without those that have no spatial dims, or at most two values per channel and sample: the
# variance of two values may be pure rounding error. Expanded inputs have none, so they are for evaluation mode only.
SAMPLES = [
    s
    for s in NORM_SAMPLES
    if len(s.shape) > 2 and torch.Size(s.shape[2:]).numel() > 2 and (s.layout != "expanded" or not s.training)
]


def make(sample: NormSample, dtype: torch.dtype, **options: Any) -> dict[str, Any]:
    arguments = sample.make(dtype, **options)
    arguments["use_input_stats"] = arguments.pop("training")
    return arguments


@pytest.mark.parametrize(*in_dtypes(SAMPLES, DTYPES))
def test_equals_eager_to_second_order(sample: NormSample, dtype: torch.dtype) -> None:
    arguments = make(sample, dtype)
    actual = second_order_and_statistics(instance_norm_act, arguments, dtype)
    eager = second_order_and_statistics(reference, arguments, dtype)
    exact = second_order_and_statistics(reference, in_double(arguments), dtype)
    for name, value in eager.items():
        if name not in actual:
            assert not value.count_nonzero(), f"{name} is missing"
            continue
        # With few values per instance, eager's error can be small by luck where they nearly cancel.
        few = torch.Size(sample.shape[2:]).numel() < 32
        assert_as_exact(actual[name], value, exact[name], name, 4.0 if few else 2.0)
        if name in ("output", "grad_input"):
            assert strides(actual[name]) == strides(value), name
    assert all(not actual[name].count_nonzero() for name in set(actual) - set(eager))


@pytest.mark.parametrize(
    "sample", [s for s in SAMPLES if s.small and s.layout in ("contiguous", "channels_last")], ids=str
)
def test_gradcheck_to_second_order(sample: NormSample) -> None:
    arguments = make(sample, torch.float64)
    named = differentiated(arguments)

    def function(*values: Tensor) -> Tensor:
        return instance_norm_act(**with_own_buffers(arguments) | dict(zip(named, values)))

    assert torch.autograd.gradcheck(function, tuple(named.values()), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, tuple(named.values()), fast_mode=True, atol=1e-4)


@pytest.mark.parametrize("use_input_stats", [True, False])
def test_compiles_without_graph_breaks(use_input_stats: bool) -> None:
    sample = NormSample((3, 4, 5, 6), use_input_stats)
    torch._dynamo.reset()
    runs = []
    for run in (torch.compile(instance_norm_act, fullgraph=True, backend="aot_eager"), instance_norm_act):
        arguments = with_own_buffers(make(sample, torch.float32))
        run(**arguments).square().sum().backward()
        grads = [t.grad.clone() for t in differentiated(arguments).values()]
        runs.append([*grads, arguments["running_mean"], arguments["running_var"]])
        for t in differentiated(arguments).values():
            t.grad = None
    for actual, want in zip(*runs):
        torch.testing.assert_close(actual, want)


def test_empty_batch_leaves_statistics_unchanged() -> None:
    arguments = make(NormSample((0, 3, 4, 4)), torch.float32)
    before = arguments["running_mean"].clone()
    output = instance_norm_act(**arguments)
    output.sum().backward()
    assert output.shape == arguments["input"].grad.shape == (0, 3, 4, 4)
    assert torch.equal(arguments["running_mean"], before)


BAD_INPUTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"input": 1}, TypeError, "expected input type Tensor, got int"),
    ({"input": torch.ones(2, 3)}, ValueError, "expected input dimensions at least 3 (N, C, ...), got shape (2, 3)"),
    ({"input": torch.ones(2, 3, 1, 1)}, ValueError,
     "expected input with more than 1 value per channel and sample, got shape (2, 3, 1, 1)"),
    ({"weight": torch.ones(4)}, ValueError, "expected weight shape (3,), got (4,)"),
    ({"use_input_stats": False}, ValueError,
     "expected running_mean and running_var tensors when use_input_stats is False, got None"),
    ({"eps": 0.0}, ValueError, "expected eps a positive number when use_input_stats, got 0.0"),
    ({"activation": "gelu"}, ValueError,
     "expected activation one of identity, relu, leaky_relu, tanh, sigmoid, got 'gelu'"),
]  # fmt: skip


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("change", "error", "message"), BAD_INPUTS, ids=[m[2][:60] for m in BAD_INPUTS])
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str, backend: str) -> None:
    with gan_fast.use_backend(backend), pytest.raises(error) as caught:
        instance_norm_act(**{"input": torch.ones(2, 3, 4), **change})
    assert str(caught.value) == f"instance_norm_act: {message}"
