"""CUDA kernels of the adversarial losses, emulated on a CPU and on a GPU, with the samples and bounds of the CPU's."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from cuda_emulated import LossKernels, on_cuda
from pairs import in_dtypes, pairwise
from samples import DTYPES, LOSS_KINDS, LOSS_RELATIVISTIC, LOSS_SAMPLES, LossSample
from tolerances import assert_as_exact, few_numbers_factor
from torch import Tensor

import gan_fast
from gan_fast.ops.adversarial_loss import DispatchedAdversarialLoss, reference


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The functions of torch.ops.gan_fast.adversarial_loss_*: emulated, and on a GPU."""
    if request.param == "cuda":
        return on_cuda("adversarial_loss", ("forward", "backward"))
    kernels = LossKernels(request.getfixturevalue("emulated"))
    monkeypatch.setattr(sys.modules["gan_fast.ops.adversarial_loss"], "_native", kernels)
    return kernels


def results(function: Any, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    real, fake = (t.detach().clone().requires_grad_() for t in (real, fake))
    loss, means = function(real, fake)
    first = torch.autograd.grad(3 * loss, (real, fake), create_graph=True)
    # Some losses have no second derivative.
    second = torch.autograd.grad(first[0].square().sum() + first[1].sum() + 0 * loss, (real, fake))
    names = ("loss", "means", "grad_real", "grad_fake", "second_real", "second_fake")
    return dict(zip(names, (loss, means, *first, *second)))


@pytest.mark.parametrize(*in_dtypes(LOSS_SAMPLES, DTYPES))
def test_equals_aten_to_second_order(sample: LossSample, dtype: torch.dtype, kernels: Any) -> None:
    real, fake = (t.detach().to(kernels.device) for t in sample.make(dtype))
    real_target, *options = sample.arguments

    def eager(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        return reference(real, real_target, fake, *options)

    def actual(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        return DispatchedAdversarialLoss.apply(real, real_target, fake, *options, True, False, False)[:2]

    with gan_fast.use_backend(kernels.device.type):
        found = results(actual, real, fake)
    exact = results(eager, real.double(), fake.double())
    for name, value in results(eager, real, fake).items():
        factor = few_numbers_factor(value) if sample.relativistic == "average" else 2.0
        cancelled = real.abs().max().item() if name == "loss" and sample.kind == "wasserstein" else 0.0
        assert_as_exact(found[name], value, exact[name], name, factor, cancelled)


@pytest.mark.parametrize(*pairwise(kind=LOSS_KINDS, relativistic=LOSS_RELATIVISTIC, dtype=DTYPES))
def test_forward_and_backward_give_the_same_gradients(
    kind: str, relativistic: str, dtype: torch.dtype, kernels: Any
) -> None:
    shapes = (900,), (900,) if relativistic == "paired" else (37, 2)
    real, fake = (t.detach().to(kernels.device) for t in LossSample(*shapes).make(dtype))
    arguments = (real, 0.9, fake, 0.1, -2.0, kind, relativistic)
    _, _, *grads = kernels.forward(*arguments, False, True, True)
    for actual, expected in zip(
        grads, kernels.backward(torch.ones((), dtype=dtype, device=kernels.device), *arguments)
    ):
        assert torch.equal(actual, expected)
    loss, means, *none = kernels.forward(real, 1.0, None, 0.0, 1.0, kind, "none", False, False, False)
    assert means is None
    assert none == [None, None]
    torch.testing.assert_close(loss, reference(real, 1.0, None, 0.0, 1.0, kind, "none")[0])


@pytest.mark.parametrize("count", [1, 31, 33, 1500])
@pytest.mark.parametrize("relativistic", LOSS_RELATIVISTIC)
def test_results_do_not_depend_on_the_order_of_threads(relativistic: str, count: int, kernels: Any) -> None:
    if not isinstance(kernels, LossKernels):
        pytest.skip("needs the emulator")
    x = torch.randn(count)
    found = []
    for kernels.backwards in (False, True):
        found.append(kernels.forward(x, 1.0, -x, 0.0, 1.0, "wasserstein", relativistic, True, True, True))
    assert all(torch.equal(a, b) for a, b in zip(*found))


@pytest.mark.parametrize(
    *pairwise(
        3,
        kind=LOSS_KINDS,
        relativistic=LOSS_RELATIVISTIC,
        target=[0.0, 0.5, 1.0],
        value=[float("inf"), float("-inf"), float("nan")],
    )
)
def test_infinities_and_nan_propagate_as_in_aten(
    kind: str, relativistic: str, target: float, value: float, kernels: Any
) -> None:
    x = torch.tensor([0.5, value, -1.0], device=kernels.device)
    other = None if relativistic == "none" else torch.tensor([1.5, 0.25, value], device=kernels.device)
    loss, means, grad, _ = kernels.forward(x, target, other, 0.0, 1.0, kind, relativistic, True, True, False)
    leaf = x.clone().requires_grad_()
    expected, expected_means = reference(leaf, target, other, 0.0, 1.0, kind, relativistic)
    torch.testing.assert_close((loss, means), (expected.detach(), expected_means), equal_nan=True)
    torch.testing.assert_close(grad, torch.autograd.grad(expected, leaf)[0], equal_nan=True)


def test_loss_without_logits_is_nan(kernels: Any) -> None:
    empty = torch.zeros(0, device=kernels.device)
    loss, means, grad, _ = kernels.forward(empty, 1.0, None, 0.0, 1.0, "minimax", "none", True, True, False)
    assert loss.isnan()
    assert means.isnan().all()
    assert grad.shape == (0,)
    one = torch.ones((), device=kernels.device)
    assert kernels.backward(one, empty, 1.0, None, 0.0, 1.0, "minimax", "none")[0].shape == (0,)
