"""Triton kernels of sample_norm_penalty: values, derivatives, strides and the choice of the backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from derivatives import in_double, second_order, strides
from pairs import in_dtypes
from samples import SAMPLE_NORM_SAMPLES, SampleNormSample
from tolerances import assert_as_exact, few_numbers_factor
from torch import Tensor
from triton_device import DEVICE, interpreted

import gan_fast
from gan_fast import backends
from gan_fast.ops import sample_norm_penalty
from gan_fast.triton_kernels import DTYPES

pytestmark = interpreted

# Values of a tile. At most 528 programs sum squares; if there are more tiles, a program sums several.
TILE = 1024
SAMPLES = [
    *(s for s in SAMPLE_NORM_SAMPLES if s.shape != (32, 3, 64, 64)),
    SampleNormSample((2, TILE), 0.0),
    SampleNormSample((2, TILE - 1)),
    SampleNormSample((3, 2 * TILE + 1), weighted=True),
    SampleNormSample((200, 5 * TILE + 3), std=0.01),  # chunks of several tiles
    SampleNormSample((600, TILE + 16), weighted=True, std=0.03),  # a sample is one chunk
    SampleNormSample((1, 5 * TILE + 3), std=0.01),
]


def penalty(**arguments: Any) -> Tensor:
    return sample_norm_penalty(**arguments)[0]


def on_device(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        name: t.detach().to(DEVICE).requires_grad_(t.requires_grad) if isinstance(t, Tensor) else t
        for name, t in arguments.items()
    }


@pytest.mark.parametrize(*in_dtypes(SAMPLES, DTYPES))
def test_equals_aten_to_second_order(sample: SampleNormSample, dtype: torch.dtype) -> None:
    arguments = on_device(sample.make(dtype))

    def under(backend: str, arguments: dict[str, Any]) -> dict[str, Tensor]:
        with gan_fast.use_backend(backend):
            found = second_order(penalty, arguments, dtype)
            return found | {"norms": sample_norm_penalty(**arguments)[1]}

    actual, eager = under("triton", arguments), under("reference", arguments)
    exact = under("reference", in_double(arguments))
    for name, value in eager.items():
        # The interpreter truncates bfloat16 where a GPU rounds.
        factor = 2.0 if dtype == torch.bfloat16 else 1.0
        assert_as_exact(actual[name], value, exact[name], name, factor * few_numbers_factor(value) / 2)
        if name == "grad_input":
            assert strides(actual[name]) == strides(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, 1e25, 1e-30])
@pytest.mark.parametrize("center", [0.0, 1.0])
def test_special_values_equal_the_cpu_kernel(center: float, value: float) -> None:
    """NaN, infinity, a sample of zeros, and squares beyond the range of float32."""
    x = torch.randn(3, 5, 4, device=DEVICE)
    x[1] = value
    x.requires_grad_()
    coefficients = torch.tensor([0.5, 9.0, -2.0, 9.0, 3.0, 9.0], device=DEVICE)[::2]
    results = []
    for backend, leaf in (("triton", x), ("cpu", x.detach().cpu().requires_grad_())):
        with gan_fast.use_backend(backend):
            value_, norms = sample_norm_penalty(leaf, coefficients.to(leaf.device), center=center, scale=0.5)
            results.append([t.cpu() for t in (value_.detach(), norms, torch.autograd.grad(value_, leaf)[0])])
    for actual, expected in zip(*results):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0, equal_nan=True)


def test_strided_coefficients_and_norms() -> None:
    from gan_fast.triton_kernels import sample_norm_penalty as kernels

    x = torch.randn(5, 7, device=DEVICE)
    coefficients, norms = torch.rand(5, 2, device=DEVICE)[:, 0], x.norm(dim=1, keepdim=True).repeat(1, 2)[:, 0]
    actual, dense = (
        kernels.backward(torch.ones((), device=DEVICE), x, n, c, 1.0, 1.0)
        for n, c in ((norms, coefficients), (norms.contiguous(), coefficients.contiguous()))
    )
    torch.testing.assert_close(actual, dense)
    torch.testing.assert_close(actual, 2 / 5 * (coefficients * (1 - 1 / norms))[:, None] * x)


def test_no_samples_and_empty_samples() -> None:
    with gan_fast.use_backend("triton"):
        x = torch.ones(0, 3, device=DEVICE, requires_grad=True)
        value, norms = sample_norm_penalty(x)
        assert value.isnan()
        assert norms.shape == (0,)
        assert torch.autograd.grad(value, x)[0].shape == (0, 3)
        empty = torch.ones(4, 0, 5, device=DEVICE, requires_grad=True)
        value, norms = sample_norm_penalty(empty, center=3.0, scale=2.0)
        assert value.item() == 18
        assert norms.tolist() == [0] * 4
        assert torch.autograd.grad(value, empty)[0].shape == empty.shape


def test_two_launches_forward_and_one_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    from gan_fast.triton_kernels import sample_norm_penalty as kernels

    launched: list[str] = []

    class Count:
        def __init__(self, name: str) -> None:
            self.name, self.kernel = name, getattr(kernels, name)

        def __getitem__(self, grid: Any) -> Any:
            launched.append(self.name)
            return self.kernel[grid]

    for name in ("sum_squares_kernel", "merge_norms_kernel", "scale_samples_kernel"):
        monkeypatch.setattr(kernels, name, Count(name))
    x = torch.randn(3, 5, device=DEVICE, requires_grad=True)
    with gan_fast.use_backend("triton"):
        value = penalty(input=x)
    assert launched == ["sum_squares_kernel", "merge_norms_kernel"]
    # Backward uses the backend of forward.
    value.backward()
    assert launched[2:] == ["scale_samples_kernel"]


def test_gpu_candidates_are_triton_and_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_launch_failure", lambda: None)
    assert backends.candidates("sample_norm_penalty", "cuda", torch.float32) == ["triton", "reference"]
    assert backends.candidates("sample_norm_penalty", "cuda", torch.float64) == ["reference"]


def test_unsupported_dtype_raises() -> None:
    with gan_fast.use_backend("triton"), pytest.raises(RuntimeError, match=r"no Triton kernel for torch\.float64"):
        sample_norm_penalty(torch.ones(3, 2, dtype=torch.float64, device=DEVICE))


# Needs 12 GiB of GPU memory.
@pytest.mark.gpu
def test_more_values_than_2_to_the_31_are_processed() -> None:
    from gan_fast.triton_kernels import sample_norm_penalty as kernels

    for shape in ((2**20 + 1, 2**11), (1, 2**31 + 2 * TILE + 3)):
        x = torch.zeros(shape, dtype=torch.float16, device=DEVICE)
        x[-1, -2:] = torch.tensor([3.0, 4.0])
        value, norms = kernels.forward(x, None, 1.0, 1.0)
        assert norms[-1].item() == 5
        torch.testing.assert_close(value.item(), (16 + shape[0] - 1) / shape[0])
        grad = kernels.backward(torch.ones((), device=DEVICE), x, norms, None, 1.0, float(shape[0]))
        assert grad.count_nonzero().item() == 2
        torch.testing.assert_close(grad[-1, -2:].tolist(), [2 * 0.8 * 3, 2 * 0.8 * 4], rtol=1e-3, atol=0)
