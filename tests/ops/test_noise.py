from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from derivatives import strides
from pairs import pairwise
from samples import DTYPES, LAYOUTS
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from triton_device import DEVICE, interpreted

import gan_fast
from gan_fast import backends, ops, tuning
from gan_fast.ops import noise

pytestmark = interpreted

BACKENDS = ("reference", "cpu", "triton")
TRITON_DTYPES = DTYPES[1:]
SHAPE = (8, 3, 20, 20)

OPS: dict[str, Callable[..., Tensor]] = {
    "interpolate_samples": lambda x, **options: ops.interpolate_samples(x, x.flip(-1) + 3, **options),
    "perturb": ops.perturb,
    "add_noise": lambda x, **options: ops.add_noise(x, 0.5, **options),
    "add_noise_tensor_std": lambda x, **options: ops.add_noise(x, torch.full((), 0.5, device=x.device), **options),
}


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Any:
    if request.param == "cpu" and DEVICE.type != "cpu":
        pytest.skip("needs tensors on the CPU")
    with gan_fast.use_backend(request.param):
        yield request.param


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator(DEVICE).manual_seed(seed)


def images(shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device=DEVICE, dtype=torch.float32).to(dtype)


def interpolation_weights(count: int, length: int = 7) -> Tensor:
    """u of every element, (count, length)."""
    zeros = torch.zeros(count, length, device=DEVICE)
    return ops.interpolate_samples(zeros, zeros + 1, generator=generator())


def assert_uniform(values: Tensor) -> None:
    """Mean, variance and deciles are within five standard errors of those of U[0, 1)."""
    values, count = values.double().flatten(), values.numel()
    assert values.min().item() >= 0
    assert values.max().item() < 1
    assert abs(values.mean().item() - 1 / 2) < 5 * (1 / 12 / count) ** 0.5
    assert abs(values.var().item() - 1 / 12) < 5 * (1 / 180 / count) ** 0.5
    tenths = torch.histc(values, 10, 0, 1) / count
    assert (tenths - 0.1).abs().max().item() < 5 * (0.09 / count) ** 0.5


def assert_uncorrelated(a: Tensor, b: Tensor) -> None:
    a, b = a.double().flatten(), b.double().flatten()
    a, b = (a - a.mean()) / a.std(), (b - b.mean()) / b.std()
    assert abs((a * b).mean().item()) < 5 / a.numel() ** 0.5


def test_interpolate_samples_draws_one_number_per_sample(backend: str) -> None:
    u = interpolation_weights(600)
    assert torch.equal(u, u[:, :1].expand_as(u))
    assert_uniform(u[:, 0])
    assert_uncorrelated(u[:-1, 0], u[1:, 0])


def test_interpolate_samples_equals_the_formula(backend: str) -> None:
    real, fake = images(), images()
    output = ops.interpolate_samples(real, fake, generator=generator())
    u = interpolation_weights(SHAPE[0])[:, :1].reshape(-1, 1, 1, 1)
    torch.testing.assert_close(output, real + u * (fake - real))


def test_interpolate_samples_is_exactly_real_at_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "_uniform_per_sample", lambda like, _: torch.zeros(like.size(0), 1))
    real, fake = torch.randn(4, 50) * 1e-3, torch.randn(4, 50) * 1e3
    assert torch.equal(ops.interpolate_samples(real, fake), real)


def test_perturb_draws_the_published_distribution(backend: str) -> None:
    """Displacement = u v std / 2, with one u per sample, one v per element and std of all elements."""
    real = images((200, 3, 16, 16)) * 4 + 1
    moved = (ops.perturb(real, generator=generator()) - real).double().flatten(1) / (0.5 * real.std().double())
    u = 2 * moved.mean(1)
    assert moved.min().item() > -1e-6
    assert_uniform_roughly(u)
    # Given u, the 768 elements of a sample are uniform, and the largest of them estimates u.
    within = moved / moved.amax(1, keepdim=True) * (768 / 769)
    assert_uniform(within.clamp(min=0))
    assert_uncorrelated(within[:-1], within[1:])
    assert_uncorrelated(within[:, :-1], within[:, 1:])
    assert_uncorrelated(moved.amax(1)[:, None].expand_as(within), within)


def assert_uniform_roughly(values: Tensor) -> None:
    """Mean and variance of values that are themselves estimates, hence the wider bounds."""
    count = values.numel()
    assert abs(values.mean().item() - 1 / 2) < 5 * (1 / 12 / count) ** 0.5 + 0.02
    assert abs(values.var().item() - 1 / 12) < 5 * (1 / 180 / count) ** 0.5 + 0.01


def test_perturb_is_proportional_to_scale(backend: str) -> None:
    real = images()
    half, whole = (ops.perturb(real, scale=scale, generator=generator()) - real for scale in (0.5, 1.0))
    torch.testing.assert_close(2 * half, whole, rtol=1e-4, atol=1e-5)
    assert torch.equal(ops.perturb(real, scale=0), real)


@pytest.mark.parametrize("on_device", [False, True])
def test_add_noise_is_normal(backend: str, on_device: bool) -> None:
    x = images((32, 3, 32, 32)) * 0.01
    std = torch.full((), 2.0, device=DEVICE) if on_device else 2.0
    z = (ops.add_noise(x, std, generator=generator()) - x).double() / 2
    count = z.numel()
    assert abs(z.mean().item()) < 5 / count**0.5
    assert abs(z.var().item() - 1) < 5 * (2 / count) ** 0.5
    assert abs((z**3).mean().item()) < 5 * (15 / count) ** 0.5
    assert abs((z**4).mean().item() - 3) < 5 * (96 / count) ** 0.5
    for quantile in (-2.0, -1.0, -0.3, 0.5, 1.5):
        share = 0.5 * (1 + math.erf(quantile / 2**0.5))
        assert abs((z < quantile).double().mean().item() - share) < 5 * (share * (1 - share) / count) ** 0.5
    flat = z.flatten()
    # Correlation between adjacent elements, the four numbers of one counter, and programs of the Triton kernel.
    for step in (1, 2, 3, 512, 1024, 1536, 2048):
        assert_uncorrelated(flat[:-step], flat[step:])
        assert_uncorrelated(flat[:-step] ** 2, flat[step:] ** 2)


def test_std_tensor_is_read_at_each_call(backend: str) -> None:
    x, std = images(), torch.full((), 1.0, device=DEVICE)
    first = ops.add_noise(x, std, generator=generator())
    std.fill_(0.25)
    second = ops.add_noise(x, std, generator=generator())
    torch.testing.assert_close((second - x) * 4, first - x, rtol=1e-3, atol=1e-4)
    std.zero_()
    assert torch.equal(ops.add_noise(x, std), x)
    assert torch.equal(ops.add_noise(x, 0), x)
    torch.testing.assert_close(ops.add_noise(x, 1.0, generator=generator()), first)


@pytest.mark.parametrize("op", OPS)
def test_generator_determines_the_random_numbers(op: str, backend: str) -> None:
    x, rng = images(), generator()
    first, second = OPS[op](x, generator=rng), OPS[op](x, generator=rng)
    assert not torch.equal(first, second)
    rng.manual_seed(0)
    assert torch.equal(OPS[op](x, generator=rng), first)
    # Without a generator the default one is used, and a given generator does not advance it.
    torch.manual_seed(0)
    first = OPS[op](x)
    torch.manual_seed(0)
    OPS[op](x, generator=rng)
    assert torch.equal(OPS[op](x), first)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_output_has_the_dtype_of_the_input(op: str, dtype: torch.dtype, backend: str) -> None:
    if dtype == torch.float64 and backend == "triton":
        with pytest.raises(RuntimeError, match=r"no Triton kernel for torch\.float64"):
            OPS[op](images(dtype=torch.float64))
        return
    x = images(dtype=dtype)
    output = OPS[op](x, generator=generator())
    assert output.dtype == dtype
    if dtype != torch.float64:
        # The half types draw and compute in float32 and round once; Triton's interpreter truncates bfloat16.
        wide = OPS[op](x.float(), generator=generator())
        # perturb's standard deviation is rounded to the half type too, hence 2 eps.
        rounding = 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(output.float(), wide, rtol=rounding, atol=2 * rounding)


@pytest.mark.parametrize(*pairwise(op=OPS, shape=[(4, 3, 5, 6), (3, 700), (2, 3, 40, 40)], layout=LAYOUTS))
def test_every_layout_gets_one_number_per_element(op: str, shape: tuple[int, ...], layout: str, backend: str) -> None:
    """Every element gets its own random number; dense images keep their strides."""
    x = LAYOUTS[layout](images(shape).cpu()).to(DEVICE)
    before = x.clone()
    output = OPS[op](x, generator=generator())
    assert torch.equal(x, before)
    moved = (output - x).double()
    if op == "interpolate_samples":
        distance = (x.flip(-1) + 3 - x).double()
        u = (moved / distance).flatten(1).median(1).values
        torch.testing.assert_close(moved, u.reshape(-1, *(1,) * (x.dim() - 1)) * distance, rtol=1e-4, atol=1e-5)
        assert u.unique().numel() == shape[0]
    else:
        # Few random numbers coincide by chance; elements that share memory or are skipped would be equal or unmoved.
        assert moved.flatten().unique().numel() > 0.98 * moved.numel()
        assert moved.count_nonzero() > 0.98 * moved.numel()
    if layout in ("contiguous", "channels_last", "offset"):
        assert strides(output) == strides(x)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "gaps", "transposed"])
def test_fake_images_may_have_another_layout(layout: str, backend: str) -> None:
    real, fake = images((3, 4, 5, 6)), images((3, 4, 5, 6))
    want = ops.interpolate_samples(real, fake, generator=generator())
    got = ops.interpolate_samples(real, LAYOUTS[layout](fake.cpu()).to(DEVICE), generator=generator())
    assert torch.equal(got, want)


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0), (1,), (5,), (1, 1)], ids=str)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.filterwarnings("ignore:std")
def test_edge_shapes_give_finite_values(op: str, shape: tuple[int, ...], backend: str) -> None:
    x = images(shape)
    output = OPS[op](x)
    assert output.shape == shape
    assert bool(output.isfinite().all()) == (op != "perturb" or x.numel() != 1)


@pytest.mark.parametrize("dtype", TRITON_DTYPES, ids=str)
def test_add_noise_passes_gradients_unchanged(dtype: torch.dtype, backend: str) -> None:
    x = images(dtype=dtype).requires_grad_()
    output = ops.add_noise(x, 0.5)
    grad = images(dtype=dtype).requires_grad_()
    (grad_x,) = torch.autograd.grad(output, x, grad, create_graph=True)
    assert torch.equal(grad_x, grad)
    (second,) = torch.autograd.grad(grad_x.sum(), grad)
    assert torch.equal(second, torch.ones_like(grad))


def test_interpolate_samples_gradients_equal_the_formula(backend: str) -> None:
    real, fake = images().requires_grad_(), images().requires_grad_()
    u = interpolation_weights(SHAPE[0])[:, :1].reshape(-1, 1, 1, 1)
    output = ops.interpolate_samples(real, fake, generator=generator())
    grad = images().requires_grad_()
    grad_real, grad_fake = torch.autograd.grad(output, (real, fake), grad, create_graph=True)
    torch.testing.assert_close((grad_real, grad_fake), ((1 - u) * grad, u * grad))
    (second,) = torch.autograd.grad(grad_fake.sum(), grad)
    torch.testing.assert_close(second, u.expand(SHAPE))
    only_fake = ops.interpolate_samples(real.detach(), fake, generator=generator())
    torch.testing.assert_close(torch.autograd.grad(only_fake, fake, grad)[0], u * grad)


def test_perturb_output_has_no_graph(backend: str) -> None:
    assert not ops.perturb(images().requires_grad_()).requires_grad
    assert ops.perturb(images()).requires_grad_().is_leaf


@pytest.mark.parametrize("op", OPS)
def test_meta_fake_compiled_and_vmapped_tensors_are_supported(op: str) -> None:
    x = images()
    assert OPS[op](x.to("meta")).shape == SHAPE
    with FakeTensorMode() as mode:
        assert OPS[op](mode.from_tensor(x)).shape == SHAPE
    compiled = torch.compile(OPS[op], fullgraph=True, backend="aot_eager")
    assert compiled(x).shape == SHAPE
    batched = torch.func.vmap(OPS[op], randomness="different")(torch.stack([x, x]))
    assert batched.shape == (2, *SHAPE)
    assert not torch.equal(batched[0], batched[1])


def test_gpu_uses_triton_without_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend determines the random numbers, so it must not depend on timings."""
    monkeypatch.setattr(backends, "_default_backends", {})
    monkeypatch.setattr(backends, "_launch_failure", lambda: None)
    for op in ("interpolate_samples", "perturb", "add_noise"):
        assert backends._default_backend(op, "cuda", torch.float32) == "triton"
        assert backends._default_backend(op, "cuda", torch.float64) == "cuda"
        assert backends._default_backend(op, "cpu", torch.float32) == "cpu"
        assert backends._explain(op, "cuda").startswith("Triton kernel: ")
        assert backends._explain(op, "cpu") == "ATen's ops: no kernel for device cpu"


def test_unavailable_backend_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for op, call in OPS.items():
        with gan_fast.use_backend("triton"), pytest.raises(RuntimeError, match="to be available, got: no Triton for"):
            call(torch.ones(2, 3))
        with gan_fast.use_backend("cuda"), pytest.raises(RuntimeError, match="on a cuda device for backend cuda"):
            call(torch.ones(2, 3))
        assert call(torch.ones(2, 3)).shape == (2, 3), op


def test_scale_and_std_accept_other_number_types(backend: str) -> None:
    x = images()
    assert torch.equal(
        ops.perturb(x, scale=np.float32(0.5), generator=generator()), ops.perturb(x, generator=generator())
    )
    noisy = [ops.add_noise(x, std, generator=generator()) for std in (np.float64(2), 2, 2.0)]
    assert torch.equal(noisy[0], noisy[2])
    assert torch.equal(noisy[1], noisy[2])


IMAGES = torch.ones(4, 2)
BAD_INPUTS: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("interpolate_samples", {"real": 1.0}, TypeError, "expected real type Tensor, got float"),
    ("interpolate_samples", {"real": torch.ones(())}, ValueError,
     "expected real dimensions at least 1 (N, ...), got shape ()"),
    ("interpolate_samples", {"real": torch.ones(4, 2, dtype=torch.uint8)}, TypeError,
     "expected real dtype float64, float32, bfloat16 or float16, got uint8"),
    ("interpolate_samples", {"fake": None}, TypeError, "expected fake type Tensor, got NoneType"),
    ("interpolate_samples", {"fake": torch.ones(2)}, ValueError, "expected fake shape (4, 2) to match real, got (2,)"),
    ("interpolate_samples", {"fake": IMAGES.half()}, TypeError,
     "expected fake dtype float32 to match real, got float16"),
    ("interpolate_samples", {"fake": IMAGES.to("meta")}, ValueError,
     "expected fake device cpu to match real, got meta"),
    ("interpolate_samples", {"generator": 3}, TypeError, "expected generator type Generator, got int"),
    ("interpolate_samples", {"real": IMAGES.to("meta"), "fake": IMAGES.to("meta"), "generator": torch.Generator()},
     ValueError, "expected generator device meta to match real, got cpu"),
    ("perturb", {"real": [1.0]}, TypeError, "expected real type Tensor, got list"),
    ("perturb", {"real": torch.ones(())}, ValueError, "expected real dimensions at least 1 (N, ...), got shape ()"),
    ("perturb", {"scale": "1"}, TypeError, "expected scale type float, got str"),
    ("perturb", {"scale": torch.ones(())}, TypeError, "expected scale type float, got Tensor"),
    ("perturb", {"generator": "cpu"}, TypeError, "expected generator type Generator, got str"),
    ("add_noise", {"input": torch.ones(2, dtype=torch.int64)}, TypeError,
     "expected input dtype float64, float32, bfloat16 or float16, got int64"),
    ("add_noise", {"std": "0.1"}, TypeError, "expected std type float, got str"),
    ("add_noise", {"std": None}, TypeError, "expected std type float, got NoneType"),
    ("add_noise", {"std": -0.1}, ValueError, "expected std at least 0, got -0.1"),
    ("add_noise", {"std": float("nan")}, ValueError, "expected std at least 0, got nan"),
    ("add_noise", {"std": torch.ones(1)}, ValueError, "expected std shape (), got (1,)"),
    ("add_noise", {"std": torch.ones((), dtype=torch.int32)}, TypeError,
     "expected std dtype float64, float32, bfloat16 or float16, got int32"),
    ("add_noise", {"std": torch.ones((), device="meta")}, ValueError,
     "expected std device cpu to match input, got meta"),
    ("add_noise", {"std": torch.ones((), requires_grad=True)}, ValueError,
     "expected a std that does not require grad, got one that does: add_noise has no gradient for std"),
]  # fmt: skip


@pytest.mark.parametrize("backend", ["auto", "cpu", "reference"])
@pytest.mark.parametrize(
    ("op", "change", "error", "message"), BAD_INPUTS, ids=[f"{m[0]}-{m[3][:50]}" for m in BAD_INPUTS]
)
def test_invalid_argument_raises(
    op: str, change: dict[str, Any], error: type[Exception], message: str, backend: str
) -> None:
    arguments = {"interpolate_samples": {"real": IMAGES, "fake": IMAGES}, "perturb": {"real": IMAGES},
             "add_noise": {"input": IMAGES, "std": 0.1}}  # fmt: skip
    with gan_fast.use_backend(backend), pytest.raises(error) as caught:
        getattr(ops, op)(**{**arguments[op], **change})
    assert str(caught.value) == f"{op}: {message}"


CALLS = {
    "interpolate_samples": lambda x: ops.interpolate_samples(x, x + 1),
    "perturb": lambda x: ops.perturb(x),
    "add_noise": lambda x: ops.add_noise(x, 0.5),
}


class BrokenKernels:
    """Triton kernels that cannot be launched or return wrong values."""

    def __init__(self, wrong: bool) -> None:
        self.calls = 0
        self.wrong = wrong

    def _launch(self, x: Tensor, *_: Any) -> Tensor:
        self.calls += 1
        if not self.wrong:
            raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")
        return x + 0.1

    add_noise = perturb = _launch

    def interpolate(self, real: Tensor, fake: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        return self._launch(real), torch.zeros(len(real))


@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.parametrize("op", CALLS)
def test_broken_triton_falls_back_to_aten_and_warns_once(
    op: str, wrong: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    x = torch.linspace(0, 1, 2 * 3 * 4 * 4).view(2, 3, 4, 4)
    torch.manual_seed(3)
    want, state = CALLS[op](x), torch.get_rng_state()
    kernels = BrokenKernels(wrong)
    monkeypatch.setattr(backends, "triton_kernels", lambda *_: kernels)
    monkeypatch.setattr(backends, "_tried", {})
    monkeypatch.setattr(tuning, "_logged", set())
    caplog.set_level(logging.WARNING, logger="gan_fast")
    # The trial draws nothing, so the first call returns what any later call does.
    for _ in range(2):
        torch.manual_seed(3)
        assert torch.equal(CALLS[op](x), want)
        assert torch.equal(torch.get_rng_state(), state)
    assert kernels.calls in (1, 2)
    (record,) = caplog.records
    said = "wrong values" if wrong else "it failed (torch.float32): Failed to find C compiler"
    assert record.getMessage().startswith(f"{op}: not using backend triton: {said}")
    # A request for Triton raises instead.
    if not wrong:
        monkeypatch.setattr(backends, "uses_kernel", lambda *_: True)
        with gan_fast.use_backend("triton"), pytest.raises(RuntimeError, match="Failed to find C compiler"):
            CALLS[op](x)


@pytest.mark.parametrize("op", CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_triton_kernels_pass_the_trial(op: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_tried", {})
    x = torch.zeros(2, 3, 4, 4, dtype=dtype, device=DEVICE)
    kernels = backends.triton_module(op)
    assert backends.runs_on_triton(op, x, lambda: noise._trial(op, kernels, x))
