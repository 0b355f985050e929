from __future__ import annotations

from typing import Any

import pytest
import torch
from gan_fast.ops.minimax_loss import reference
from samples import LOSS_SAMPLES, LossSample
from tolerances import assert_as_exact
from torch import Tensor
from triton_device import DEVICE, interpreted

import gan_fast
from gan_fast import ops

pytestmark = interpreted


def results(function: Any, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    real, fake = (t.detach().to(DEVICE, copy=True).requires_grad_() for t in (real, fake))
    loss, means = function(real, fake)
    first = torch.autograd.grad(3 * loss, (real, fake), create_graph=True)
    second = torch.autograd.grad(first[0].square().sum() + first[1].sum(), (real, fake))
    names = ("loss", "means", "grad_real", "grad_fake", "second_real", "second_fake")
    return dict(zip(names, (loss, means, *first, *second)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("sample", LOSS_SAMPLES, ids=str)
def test_equals_aten_to_second_order(sample: LossSample, dtype: torch.dtype) -> None:
    real, fake = sample.make(dtype)
    targets = {"real_target": sample.real_target, "fake_target": sample.fake_target}

    def eager(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        return reference(real, sample.real_target, fake, sample.fake_target, 1.0)

    with gan_fast.use_backend("triton"):
        ours = results(lambda r, f: ops.minimax_d_loss_and_means(r, f, **targets), real, fake)
    exact = results(eager, real.double(), fake.double())
    for name, value in results(eager, real, fake).items():
        # The interpreter cuts bfloat16 off where a GPU rounds.
        assert_as_exact(ours[name], value, exact[name], name, 4.0 if dtype == torch.bfloat16 else 2.0)


@pytest.mark.parametrize("saturating", [False, True])
def test_the_generator_s_loss(saturating: bool) -> None:
    logits = torch.randn(7, 3, device=DEVICE, requires_grad=True)
    want = ops.minimax_g_loss(logits, saturating=saturating)
    (want_grad,) = torch.autograd.grad(want, logits)
    with gan_fast.use_backend("triton"):
        ours = ops.minimax_g_loss(logits, saturating=saturating)
        (grad,) = torch.autograd.grad(ours, logits)
    torch.testing.assert_close((ours, grad), (want, want_grad))


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("target", [0.0, 0.5, 1.0])
def test_infinities_and_nan_as_in_aten(value: float, target: float) -> None:
    from gan_fast.triton_kernels import minimax_loss

    x = torch.tensor([0.5, value, -1.0], device=DEVICE)
    loss, means, grad, _ = minimax_loss.forward(x, target, None, 0.0, 1.0, True, True, False)
    leaf = x.clone().requires_grad_()
    want, want_means = reference(leaf, target, None, 0.0, 1.0)
    torch.testing.assert_close((loss, means), (want.detach(), want_means), equal_nan=True)
    torch.testing.assert_close(grad, torch.autograd.grad(want, leaf)[0], equal_nan=True)


def test_no_logits_are_nan() -> None:
    with gan_fast.use_backend("triton"):
        assert ops.minimax_g_loss(torch.zeros(0, device=DEVICE)).isnan()


def test_backward_runs_on_what_its_forward_chose() -> None:
    """Of both orders: within a block for Triton, a loss from before it goes on natively."""
    from gan_fast.triton_kernels import minimax_loss

    logits = torch.randn(5, requires_grad=True)
    loss = ops.minimax_g_loss(logits)
    calls = []
    with pytest.MonkeyPatch.context() as patch, gan_fast.use_backend("triton"):
        patch.setattr(minimax_loss, "backward", lambda *_: calls.append(1))
        (grad,) = torch.autograd.grad(2 * loss, logits, create_graph=True)
    assert not calls
    torch.testing.assert_close(grad, 2 * (torch.sigmoid(logits) - 1) / 5)
