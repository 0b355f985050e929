"""The CUDA kernels of the losses, emulated on a CPU and on a GPU: the samples and bounds of the native ones."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from cuda_emulated import LossKernels, on_cuda
from gan_fast.ops.minimax_loss import DispatchedMinimaxLoss, reference
from samples import DTYPES, LOSS_SAMPLES, LossSample
from tolerances import assert_as_exact
from torch import Tensor

import gan_fast


@pytest.fixture(params=["emulated", "cuda"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Functions of the native ops' signatures: the kernels emulated, and on a GPU."""
    if request.param == "cuda":
        return on_cuda("minimax_loss", ("forward", "backward"))
    kernels = LossKernels(request.getfixturevalue("emulated"))
    monkeypatch.setattr(sys.modules["gan_fast.ops.minimax_loss"], "_native", kernels)
    return kernels


def results(function: Any, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    real, fake = (t.detach().clone().requires_grad_() for t in (real, fake))
    loss, means = function(real, fake)
    first = torch.autograd.grad(3 * loss, (real, fake), create_graph=True)
    second = torch.autograd.grad(first[0].square().sum() + first[1].sum(), (real, fake))
    names = ("loss", "means", "grad_real", "grad_fake", "second_real", "second_fake")
    return dict(zip(names, (loss, means, *first, *second)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sample", LOSS_SAMPLES, ids=str)
def test_equals_aten_to_second_order(sample: LossSample, dtype: torch.dtype, kernels: Any) -> None:
    real, fake = (t.detach().to(kernels.device) for t in sample.make(dtype))
    targets = (sample.real_target, sample.fake_target)

    def eager(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        return reference(real, targets[0], fake, targets[1], 1.0)

    def ours(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        return DispatchedMinimaxLoss.apply(real, targets[0], fake, targets[1], 1.0, True, False, False)[:2]

    with gan_fast.use_backend(kernels.device.type):
        found = results(ours, real, fake)
    exact = results(eager, real.double(), fake.double())
    for name, value in results(eager, real, fake).items():
        assert_as_exact(found[name], value, exact[name], name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_s_gradients_are_backward_s_of_one(dtype: torch.dtype, kernels: Any) -> None:
    real, fake = (t.detach().to(kernels.device) for t in LossSample((900,), (37, 2)).make(dtype))
    arguments = (real, 0.9, fake, 0.1, -2.0)
    _, _, *grads = kernels.forward(*arguments, False, True, True)
    for ours, want in zip(grads, kernels.backward(torch.ones((), dtype=dtype, device=kernels.device), *arguments)):
        assert torch.equal(ours, want)
    loss, means, *none = kernels.forward(real, 1.0, None, 0.0, 1.0, False, False, False)
    assert means is None
    assert none == [None, None]
    torch.testing.assert_close(loss, reference(real, 1.0, None, 0.0, 1.0)[0])


@pytest.mark.parametrize("count", [1, 31, 33, 1500])
def test_no_result_depends_on_the_order_of_threads(count: int, kernels: Any) -> None:
    if not isinstance(kernels, LossKernels):
        pytest.skip("asks what only the emulator can set")
    x = torch.randn(count)
    found = []
    for kernels.backwards in (False, True):
        found.append(kernels.forward(x, 1.0, -x, 0.0, 1.0, True, True, True))
    assert all(torch.equal(a, b) for a, b in zip(*found))


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("target", [0.0, 0.5, 1.0])
def test_infinities_and_nan_as_in_aten(value: float, target: float, kernels: Any) -> None:
    x = torch.tensor([0.5, value, -1.0], device=kernels.device)
    loss, means, grad, _ = kernels.forward(x, target, None, 0.0, 1.0, True, True, False)
    leaf = x.clone().requires_grad_()
    want, want_means = reference(leaf, target, None, 0.0, 1.0)
    torch.testing.assert_close((loss, means), (want.detach(), want_means), equal_nan=True)
    torch.testing.assert_close(grad, torch.autograd.grad(want, leaf)[0], equal_nan=True)


def test_no_logits_are_nan(kernels: Any) -> None:
    nothing = torch.zeros(0, device=kernels.device)
    loss, means, grad, _ = kernels.forward(nothing, 1.0, None, 0.0, 1.0, True, True, False)
    assert loss.isnan()
    assert means.isnan().all()
    assert grad.shape == (0,)
    one = torch.ones((), device=kernels.device)
    assert kernels.backward(one, nothing, 1.0, None, 0.0, 1.0)[0].shape == (0,)
