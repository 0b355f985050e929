from __future__ import annotations

from typing import Any

import pytest
import torch
from pairs import pairwise
from samples import LOSS_KINDS, LOSS_RELATIVISTIC, LOSS_SAMPLES, LossSample
from tolerances import assert_as_exact, few_numbers_factor
from torch import Tensor
from triton_device import DEVICE, interpreted

import gan_fast
from gan_fast import ops
from gan_fast.ops.adversarial_loss import d_loss_and_means, reference

pytestmark = interpreted


def results(function: Any, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    real, fake = (t.detach().to(DEVICE, copy=True).requires_grad_() for t in (real, fake))
    loss, means = function(real, fake)
    first = torch.autograd.grad(3 * loss, (real, fake), create_graph=True)
    # Some losses have no second derivative.
    second = torch.autograd.grad(first[0].square().sum() + first[1].sum() + 0 * loss, (real, fake))
    names = ("loss", "means", "grad_real", "grad_fake", "second_real", "second_fake")
    return dict(zip(names, (loss, means, *first, *second)))


HALF = (torch.bfloat16, torch.float16)
# Half types with one loss are enough: reading and writing them does not depend on the loss.
CASES = [(s, dtype) for s in LOSS_SAMPLES for dtype in (torch.float32, *(HALF if s.kind == "minimax" else ()))]


@pytest.mark.parametrize(("sample", "dtype"), CASES, ids=str)
def test_equals_aten_to_second_order(sample: LossSample, dtype: torch.dtype) -> None:
    real, fake = sample.make(dtype)

    def eager(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        with gan_fast.use_backend("reference"):
            return d_loss_and_means(real, fake, **sample.options)

    with gan_fast.use_backend("triton"):
        actual = results(lambda r, f: d_loss_and_means(r, f, **sample.options), real, fake)
    exact = results(eager, real.double(), fake.double())
    for name, value in results(eager, real, fake).items():
        # The interpreter truncates bfloat16 where a GPU rounds.
        factor = 4.0 if dtype == torch.bfloat16 else 2.0
        if sample.relativistic == "average":
            factor = few_numbers_factor(value)
        cancelled = real.detach().abs().max().item() if name == "loss" and sample.kind == "wasserstein" else 0.0
        assert_as_exact(actual[name], value, exact[name], name, factor, cancelled)


@pytest.mark.parametrize("saturating", [False, True])
def test_generator_loss_equals_the_default_backend(saturating: bool) -> None:
    logits = torch.randn(7, 3, device=DEVICE, requires_grad=True)
    expected = ops.minimax_g_loss(logits, saturating=saturating)
    (expected_grad,) = torch.autograd.grad(expected, logits)
    with gan_fast.use_backend("triton"):
        actual = ops.minimax_g_loss(logits, saturating=saturating)
        (grad,) = torch.autograd.grad(actual, logits)
    torch.testing.assert_close((actual, grad), (expected, expected_grad))


@pytest.mark.parametrize(
    *pairwise(
        3,
        kind=LOSS_KINDS,
        relativistic=LOSS_RELATIVISTIC,
        target=[0.0, 0.5, 1.0],
        value=[float("inf"), float("-inf"), float("nan")],
    )
)
def test_infinities_and_nan_propagate_as_in_aten(kind: str, relativistic: str, target: float, value: float) -> None:
    from gan_fast.triton_kernels import adversarial_loss

    x = torch.tensor([0.5, value, -1.0], device=DEVICE)
    other = None if relativistic == "none" else torch.tensor([1.5, 0.25, value], device=DEVICE)
    loss, means, grad, _ = adversarial_loss.forward(x, target, other, 0.0, 1.0, kind, relativistic, True, True, False)
    leaf = x.clone().requires_grad_()
    expected, expected_means = reference(leaf, target, other, 0.0, 1.0, kind, relativistic)
    torch.testing.assert_close((loss, means), (expected.detach(), expected_means), equal_nan=True)
    torch.testing.assert_close(grad, torch.autograd.grad(expected, leaf)[0], equal_nan=True)


def test_loss_without_logits_is_nan() -> None:
    with gan_fast.use_backend("triton"):
        assert ops.minimax_g_loss(torch.zeros(0, device=DEVICE)).isnan()


def test_backward_uses_the_backend_of_forward() -> None:
    """It uses the CPU kernel although Triton is requested when backward runs, also with create_graph."""
    from gan_fast.triton_kernels import adversarial_loss

    logits = torch.randn(5, requires_grad=True)
    loss = ops.minimax_g_loss(logits)
    calls = []
    with pytest.MonkeyPatch.context() as patch, gan_fast.use_backend("triton"):
        patch.setattr(adversarial_loss, "backward", lambda *_: calls.append(1))
        (grad,) = torch.autograd.grad(2 * loss, logits, create_graph=True)
    assert not calls
    torch.testing.assert_close(grad, 2 * (torch.sigmoid(logits) - 1) / 5)
