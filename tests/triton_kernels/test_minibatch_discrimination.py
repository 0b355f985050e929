from __future__ import annotations

import pytest
import torch
from derivatives import in_double, second_order
from pairs import in_dtypes
from samples import DISCRIMINATION_SAMPLES, DiscriminationSample
from tolerances import assert_as_exact
from torch import Tensor
from triton_device import DEVICE, interpreted

import gan_fast
from gan_fast import ops
from gan_fast.ops.minibatch_discrimination import MinibatchDiscrimination, reference
from gan_fast.triton_kernels import DTYPES

pytestmark = interpreted

# More samples than a tile, and more components than a program handles; the second tile and program are partial.
TILES = [DiscriminationSample((66, 1, 2)), DiscriminationSample((17, 1, 18))]
# Samples with few discrimination kernels only: the interpreter takes milliseconds per program.
SAMPLES = [s for s in DISCRIMINATION_SAMPLES if s.small and s.layout in ("contiguous", "expanded") and s.shape[1] <= 4]


@pytest.mark.parametrize(*in_dtypes([*SAMPLES, *TILES], DTYPES))
def test_equals_the_reference_to_second_order(sample: DiscriminationSample, dtype: torch.dtype) -> None:
    arguments = {name: t.to(DEVICE).detach().requires_grad_() for name, t in sample.make(dtype).items()}

    def by_triton(projected: Tensor) -> Tensor:
        with gan_fast.use_backend("triton"):
            output: Tensor = MinibatchDiscrimination.apply(projected)
        return output

    actual, eager = second_order(by_triton, arguments), second_order(reference, arguments)
    exact = second_order(reference, in_double(arguments), dtype)
    for name, value in eager.items():
        # Sums in float32 have another order than ATen's, and the interpreter truncates bfloat16 where a GPU rounds.
        assert_as_exact(actual[name], value, exact[name], name, 4.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e4])
def test_special_values_equal_the_reference(value: float) -> None:
    x = DiscriminationSample((5, 3, 2)).make(torch.float32, requires_grad=False)["projected"].to(DEVICE)
    x[2, 1, 0] = value
    leaf = x.clone().requires_grad_()
    expected = reference(leaf)
    grad_output = torch.linspace(-1, 1, 15, device=DEVICE).view(5, 3)
    (expected_grad,) = torch.autograd.grad(expected, leaf, grad_output)
    from gan_fast.triton_kernels import minibatch_discrimination as kernels

    torch.testing.assert_close(kernels.forward(x), expected.detach(), equal_nan=True)
    torch.testing.assert_close(kernels.backward(grad_output, x), expected_grad, equal_nan=True)


def test_op_equals_the_reference() -> None:
    input, weight = torch.randn(5, 4, device=DEVICE), torch.randn(4, 3, 2, device=DEVICE) / 4
    with gan_fast.use_backend("triton"):
        actual = ops.minibatch_discrimination(input, weight)
    torch.testing.assert_close(actual, ops.minibatch_discrimination(input, weight))


def test_float64_raises() -> None:
    x = torch.ones(3, 2, 2, dtype=torch.float64, device=DEVICE)
    with (
        gan_fast.use_backend("triton"),
        pytest.raises(RuntimeError, match=r"minibatch_discrimination: .*no Triton kernel for torch.float64"),
    ):
        ops.minibatch_discrimination(x[:, 0], torch.ones(2, 3, 4, dtype=torch.float64, device=DEVICE))
