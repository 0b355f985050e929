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

pytestmark = interpreted

# More samples than a tile has, and components than a program: of both the second is not full.
TILES = [DiscriminationSample((66, 1, 2)), DiscriminationSample((17, 1, 18))]
# Interpreted, a program takes milliseconds: those of few kernels.
SAMPLES = [s for s in DISCRIMINATION_SAMPLES if s.small and s.layout in ("contiguous", "expanded") and s.shape[1] <= 4]


@pytest.mark.parametrize(*in_dtypes([*SAMPLES, *TILES], [torch.float32, torch.bfloat16, torch.float16]))
def test_equals_the_reference_to_second_order(sample: DiscriminationSample, dtype: torch.dtype) -> None:
    arguments = {name: t.to(DEVICE).detach().requires_grad_() for name, t in sample.make(dtype).items()}

    def by_triton(projected: Tensor) -> Tensor:
        with gan_fast.use_backend("triton"):
            output: Tensor = MinibatchDiscrimination.apply(projected)
        return output

    ours, eager = second_order(by_triton, arguments), second_order(reference, arguments)
    exact = second_order(reference, in_double(arguments), dtype)
    for name, value in eager.items():
        # Sums in float32 in another order than ATen's; the interpreter cuts bfloat16 off where a GPU rounds.
        assert_as_exact(ours[name], value, exact[name], name, 4.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e4])
def test_special_values(value: float) -> None:
    x = DiscriminationSample((5, 3, 2)).make(torch.float32, requires_grad=False)["projected"].to(DEVICE)
    x[2, 1, 0] = value
    leaf = x.clone().requires_grad_()
    want = reference(leaf)
    grad_output = torch.linspace(-1, 1, 15, device=DEVICE).view(5, 3)
    (want_grad,) = torch.autograd.grad(want, leaf, grad_output)
    from gan_fast.triton_kernels import minibatch_discrimination as kernels

    torch.testing.assert_close(kernels.forward(x), want.detach(), equal_nan=True)
    torch.testing.assert_close(kernels.backward(grad_output, x), want_grad, equal_nan=True)


def test_the_whole_op() -> None:
    input, weight = torch.randn(5, 4, device=DEVICE), torch.randn(4, 3, 2, device=DEVICE) / 4
    with gan_fast.use_backend("triton"):
        ours = ops.minibatch_discrimination(input, weight)
    torch.testing.assert_close(ours, ops.minibatch_discrimination(input, weight))


def test_float64_is_refused_by_name() -> None:
    x = torch.ones(3, 2, 2, dtype=torch.float64, device=DEVICE)
    with (
        gan_fast.use_backend("triton"),
        pytest.raises(RuntimeError, match=r"minibatch_discrimination: .*no Triton kernel for torch.float64"),
    ):
        ops.minibatch_discrimination(x[:, 0], torch.ones(2, 3, 4, dtype=torch.float64, device=DEVICE))
