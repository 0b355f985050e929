from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import DTYPES, LAYOUTS, LOSS_SAMPLES, LossSample
from tolerances import assert_as_exact
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import gan_fast
from gan_fast.ops import minimax_d_loss, minimax_d_loss_and_means, minimax_g_loss

SMALL = [s for s in LOSS_SAMPLES if s.small]


def second_order(
    sample: LossSample, logits: tuple[Tensor, Tensor], backend: str, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Losses, means, first gradients and gradients of <first gradients, directions representable in dtype>; by name."""
    real, fake = (t.detach().requires_grad_() for t in logits)
    result: dict[str, Tensor] = {}
    with gan_fast.use_backend(backend):
        d_loss, means = minimax_d_loss_and_means(
            real, fake, real_target=sample.real_target, fake_target=sample.fake_target
        )
        losses = {
            "d": (d_loss, [real, fake]),
            "g": (minimax_g_loss(fake), [fake]),
            "saturating": (minimax_g_loss(fake, saturating=True), [fake]),
        }
        result["means"] = means
        for name, (loss, inputs) in losses.items():
            scale = torch.tensor(0.75, dtype=loss.dtype, requires_grad=True)
            first = torch.autograd.grad(loss, inputs, scale, create_graph=True)
            directions = [
                torch.randn(t.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
                .to(dtype or t.dtype)
                .to(t.dtype)
                for t in inputs
            ]
            scalar = sum((g * v).sum() for g, v in zip(first, directions))
            second = torch.autograd.grad(scalar, [scale, *inputs])
            result[f"{name}_loss"] = loss.detach()
            for order, grads in (("first", first), ("second", second)):
                result |= {f"{name}_{order}_{i}": g.detach() for i, g in enumerate(grads)}
    return result


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sample", LOSS_SAMPLES, ids=str)
def test_equals_eager_to_second_order(sample: LossSample, dtype: torch.dtype) -> None:
    logits = sample.make(dtype)
    ours = second_order(sample, logits, "cpu")
    eager = second_order(sample, logits, "reference")
    real, fake = logits
    exact = second_order(sample, (real.detach().double(), fake.detach().double()), "reference", dtype)
    for name, value in eager.items():
        assert_as_exact(ours[name], value, exact[name], name)
        if "first" in name:
            assert ours[name].stride() == value.stride(), f"{name}: strides"


@pytest.mark.parametrize("sample", [s for s in SMALL if s.layout != "expanded"], ids=str)
def test_numerical_derivatives(sample: LossSample) -> None:
    real, fake = sample.make(torch.float64)
    targets = {"real_target": sample.real_target, "fake_target": sample.fake_target}
    functions = [
        (lambda r, f: minimax_d_loss(r, f, **targets), (real, fake)),
        (minimax_g_loss, (fake,)),
        (lambda f: minimax_g_loss(f, saturating=True), (fake,)),
    ]
    for function, inputs in functions:
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


def test_third_derivative() -> None:
    def third(backend: str) -> Tensor:
        real, fake = LossSample((5,), (6,)).make(torch.float64)
        with gan_fast.use_backend(backend):
            grad = minimax_d_loss(real, fake)
            for _ in range(3):
                (grad,) = torch.autograd.grad((grad**2).sum(), fake, create_graph=True)
            return grad

    torch.testing.assert_close(third("cpu"), third("reference"))


@pytest.mark.parametrize("sample", [s for s in SMALL if len(s.real_shape) != 1], ids=str)
def test_opcheck(sample: LossSample) -> None:
    real, fake = sample.make(torch.float32)
    op = torch.ops.gan_fast
    for other in (fake, None):
        arguments = (real, sample.real_target, other, sample.fake_target, -1.0)
        for wanted in (False, True):
            torch.library.opcheck(op.minimax_loss_forward.default, (*arguments, wanted, wanted, not wanted))
        grad = torch.ones(())
        torch.library.opcheck(op.minimax_loss_backward.default, (grad, *arguments))


@pytest.mark.parametrize("saturating", [False, True])
def test_compiles_whole(saturating: bool) -> None:
    def step(real: Tensor, fake: Tensor) -> Tensor:
        return minimax_d_loss(real, fake, real_target=0.9) + minimax_g_loss(fake, saturating=saturating)

    def run(function: Any) -> list[Tensor]:
        real, fake = LossSample((4, 1, 3, 3), (4, 1, 3, 3)).make(torch.float32)
        loss = function(real, fake)
        loss.backward()
        return [loss.detach(), real.grad, fake.grad]

    torch._dynamo.reset()
    torch.testing.assert_close(run(torch.compile(step, fullgraph=True, backend="aot_eager")), run(step))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e4, -1e4, 1e-40])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_special_values(dtype: torch.dtype, value: float) -> None:
    sample = LossSample((9,), (9,))
    logits = sample.make(dtype, requires_grad=False)
    for t in logits:
        t[3] = value
    ours, eager = second_order(sample, logits, "cpu"), second_order(sample, logits, "reference")
    exact = second_order(sample, (logits[0].double(), logits[1].double()), "reference", dtype)
    for name, expected in eager.items():
        if name.startswith(("means", "d_loss", "g_loss", "saturating_loss")) or "first" in name:
            assert_as_exact(ours[name], expected, exact[name], name)


def test_no_logits_are_nan_as_in_torch() -> None:
    real, fake = torch.ones(0, requires_grad=True), torch.ones(0, requires_grad=True)
    loss = minimax_d_loss(real, fake)
    assert loss.isnan()
    loss.backward()
    assert real.grad is not None
    assert real.grad.shape == (0,)


def test_only_wanted_gradients() -> None:
    for wanted in (0, 1):
        logits = LossSample((4,), (5,)).make(torch.float32, requires_grad=False)
        logits[wanted].requires_grad_()
        minimax_d_loss(*logits).backward()
        grads = [t.grad for t in logits]
        assert grads[1 - wanted] is None
        expected = torch.sigmoid(logits[wanted].detach()) - (1.0 if wanted == 0 else 0.0)
        torch.testing.assert_close(grads[wanted], expected / expected.numel())


def test_means_are_probabilities() -> None:
    real, fake = LossSample((50,), (70,)).make(torch.float32)
    _, means = minimax_d_loss_and_means(real, fake)
    torch.testing.assert_close(means, torch.stack([torch.sigmoid(real).mean(), torch.sigmoid(fake).mean()]))
    assert not means.requires_grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sample", LOSS_SAMPLES, ids=str)
def test_gradients_prepared_by_forward(sample: LossSample, dtype: torch.dtype) -> None:
    """Those for a loss gradient of one have the backward kernel's bits, and belong to whoever receives them."""
    inputs = sample.make(dtype)
    one = torch.ones((), dtype=dtype)
    loss = minimax_d_loss(*inputs, real_target=sample.real_target, fake_target=sample.fake_target)
    by_kernel = torch.autograd.grad(loss, inputs, one, create_graph=True)
    prepared = torch.autograd.grad(loss, inputs, one, retain_graph=True)
    for got, want in zip(prepared, by_kernel):
        assert torch.equal(got, want)
        assert got.stride() == want.stride()
        got.zero_()
    for got, want in zip(torch.autograd.grad(loss, inputs, one, retain_graph=True), by_kernel):
        assert torch.equal(got, want)
    halves = torch.autograd.grad(loss, inputs, one / 2, retain_graph=True)
    fresh = minimax_d_loss(*inputs, real_target=sample.real_target, fake_target=sample.fake_target)
    batched = torch.autograd.grad(fresh, inputs, torch.stack([one, one / 2]), is_grads_batched=True)
    for got, whole, half in zip(batched, by_kernel, halves):
        assert torch.equal(got, torch.stack([whole, half]))


def test_changed_logits_and_freed_graphs_are_refused() -> None:
    leaf = torch.ones(3, requires_grad=True)
    logits = leaf * 2
    loss = minimax_g_loss(logits)
    logits.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    loss = minimax_g_loss(leaf)
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_autocast_computes_in_float32() -> None:
    real, fake = LossSample((8,), (8,)).make(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = minimax_d_loss(real, fake)
    assert loss.dtype == torch.float32
    loss.backward()
    assert real.grad is not None
    assert real.grad.dtype == torch.bfloat16


def test_same_bits_for_any_number_of_threads() -> None:
    sample = LossSample((70000,), (3, 1, 30, 30))
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(second_order(sample, sample.make(torch.float32), "cpu"))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(value, other[name]) for name, value in results[0].items())


@settings(max_examples=200)
@given(
    real_shape=st.lists(st.integers(1, 9), max_size=3).map(tuple),
    fake_shape=st.lists(st.integers(1, 9), max_size=3).map(tuple),
    real_target=st.floats(0, 1),
    fake_target=st.floats(0, 1),
    scale=st.sampled_from([0.1, 3.0, 100.0]),
    layout=st.sampled_from(sorted(LAYOUTS)),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**16),
)
def test_drawn_inputs_equal_eager(
    real_shape: tuple[int, ...], fake_shape: tuple[int, ...], real_target: float, fake_target: float, scale: float,
    layout: str, dtype: torch.dtype, seed: int,
) -> None:  # fmt: skip
    if min(len(real_shape), len(fake_shape)) < 2:
        layout = "contiguous"
    sample = LossSample(real_shape, fake_shape, real_target, fake_target, scale, layout)
    logits = sample.make(dtype, seed)
    ours, eager = second_order(sample, logits, "cpu"), second_order(sample, logits, "reference")
    exact = second_order(sample, (logits[0].detach().double(), logits[1].detach().double()), "reference", dtype)
    for name, value in eager.items():
        assert_as_exact(ours[name], value, exact[name], name, factor=4.0)


BAD_INPUTS: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("d", {"real_logits": 1.0}, TypeError, "expected real_logits type Tensor, got float"),
    ("d", {"fake_logits": torch.ones(2, dtype=torch.int32)}, TypeError,
     "expected fake_logits dtype float64, float32, bfloat16 or float16, got int32"),
    ("d", {"fake_logits": torch.ones(2, dtype=torch.float64)}, TypeError,
     "expected fake_logits dtype float32 as real_logits, got float64"),
    ("d", {"fake_logits": torch.ones(2, device="meta")}, ValueError,
     "expected fake_logits device cpu as real_logits, got meta"),
    ("d", {"real_target": 1.1}, ValueError, "expected real_target in [0, 1], got 1.1"),
    ("d", {"fake_target": -0.1}, ValueError, "expected fake_target in [0, 1], got -0.1"),
    ("d", {"real_target": float("nan")}, ValueError, "expected real_target in [0, 1], got nan"),
    ("d", {"fake_logits": None}, TypeError, "expected fake_logits type Tensor, got NoneType"),
    ("d", {"real_target": torch.tensor(0.9)}, TypeError, "expected real_target type float, got Tensor"),
    ("d", {"fake_target": "0.1"}, TypeError, "expected fake_target type float, got str"),
    ("g", {"fake_logits": torch.ones(2, dtype=torch.complex64)}, TypeError,
     "expected fake_logits dtype float64, float32, bfloat16 or float16, got complex64"),
    ("g", {"fake_logits": None}, TypeError, "expected fake_logits type Tensor, got NoneType"),
]  # fmt: skip


@pytest.mark.parametrize("backend", ["auto", "cpu", "reference"])
@pytest.mark.parametrize(("loss", "change", "error", "message"), BAD_INPUTS, ids=[m[3][:60] for m in BAD_INPUTS])
def test_bad_input(loss: str, change: dict[str, Any], error: type[Exception], message: str, backend: str) -> None:
    arguments: dict[str, Any] = {"fake_logits": torch.ones(2)}
    if loss == "d":
        arguments["real_logits"] = torch.ones(2)
    function = minimax_d_loss if loss == "d" else minimax_g_loss
    with gan_fast.use_backend(backend), pytest.raises(error) as caught:
        function(**{**arguments, **change})
    assert str(caught.value) == f"minimax_{loss}_loss: {message}"


def test_raw_ops_refuse_mixed_dtypes() -> None:
    with pytest.raises(RuntimeError, match="expected other_logits dtype Float, got Double"):
        torch.ops.gan_fast.minimax_loss_forward(
            torch.ones(2), 1.0, torch.ones(2).double(), 0.0, 1.0, False, False, False
        )


def test_tensors_that_are_not_plain() -> None:
    """What stands between a tensor and its values in torch stands between it and the kernel too."""
    negated = torch._neg_view(torch.randn(7))  # as x.conj().imag: the values' signs are a bit of the tensor
    expected = minimax_g_loss(negated.clone())
    assert torch.equal(minimax_g_loss(negated), expected)
    zeros = torch._efficientzerotensor(7)
    assert torch.equal(minimax_g_loss(zeros), minimax_g_loss(torch.zeros(7)))
    with FakeTensorMode():
        assert minimax_g_loss(torch.empty(7)).shape == ()
    escaped: list[Tensor] = []
    torch.func.grad(lambda t: (escaped.append(t), t.sum())[1])(torch.ones(7))
    assert torch.equal(minimax_g_loss(escaped[0]), minimax_g_loss(torch.ones(7)))


def test_what_needs_no_gradient_is_not_kept() -> None:
    real, fake = torch.ones(3, requires_grad=True), torch.ones(3)
    loss = minimax_d_loss(real, fake)
    fake.add_(1)
    loss.backward()
    with torch.inference_mode():
        fake = torch.ones(3)
    minimax_d_loss(real, fake).backward()
    assert fake.grad is None


def test_batched_gradients_with_a_graph_are_refused() -> None:
    logits = torch.ones(3, requires_grad=True)
    loss = minimax_g_loss(logits)
    with pytest.raises(NotImplementedError, match="create_graph False beside is_grads_batched True, got both"):
        torch.autograd.grad(loss, logits, torch.ones(2), is_grads_batched=True, create_graph=True)


def test_other_devices_and_tracers_are_served() -> None:
    assert minimax_g_loss(torch.ones(3, device="meta")).shape == ()
    traced = torch.jit.trace(minimax_g_loss, torch.randn(5, requires_grad=True))
    assert torch.equal(traced(torch.ones(5)), minimax_g_loss(torch.ones(5)))


def test_modes_and_profilers_see_the_op() -> None:
    seen: list[str] = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    logits = torch.ones(7)
    with Record():
        minimax_g_loss(logits)
    assert seen == ["gan_fast.minimax_loss_forward.default"]
    with torch.profiler.profile(acc_events=True) as profile:
        minimax_g_loss(logits)
    assert "gan_fast::minimax_loss_forward" in {event.key for event in profile.key_averages()}
