from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import in_dtypes, pairwise
from samples import DTYPES, LAYOUTS, LOSS_KINDS, LOSS_RELATIVISTIC, LOSS_SAMPLES, LossSample
from tolerances import assert_as_exact, few_numbers_factor
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import gan_fast
from gan_fast import ops
from gan_fast.ops import minimax_d_loss, minimax_g_loss
from gan_fast.ops.adversarial_loss import d_loss_and_means

SMALL = [s for s in LOSS_SAMPLES if s.small]
# One sample of each loss. The samples of the second list have batches of equal shapes.
EACH = list({(s.kind, s.relativistic): s for s in reversed(SMALL)}.values())
EACH_EQUAL = list({(s.kind, s.relativistic): s for s in SMALL if s.real_shape == s.fake_shape}.values())

D_LOSSES: dict[str, Any] = {
    "minimax": ops.minimax_d_loss,
    "hinge": ops.hinge_d_loss,
    "wasserstein": ops.wasserstein_d_loss,
    "least_squares": ops.least_squares_d_loss,
}
G_LOSSES: dict[str, dict[str, Any]] = {
    "minimax": {"g": minimax_g_loss, "saturating": functools.partial(minimax_g_loss, saturating=True)},
    "hinge": {"g": ops.hinge_g_loss},
    "wasserstein": {"g": ops.wasserstein_g_loss},
    "least_squares": {"g": ops.least_squares_g_loss},
}


def losses_of(sample: LossSample) -> dict[str, Any]:
    """The public functions that compute a sample's losses, as functions of (real, fake), by name."""
    targets = {"real_target": sample.real_target, "fake_target": sample.fake_target}
    if sample.relativistic == "none":
        d_loss = functools.partial(D_LOSSES[sample.kind], **targets)
        g_losses = {
            name: lambda _, fake, g=g, **options: g(fake, **options) for name, g in G_LOSSES[sample.kind].items()
        }
        return {"d": d_loss, **g_losses}
    which = {"average": sample.relativistic == "average", "kind": sample.kind}
    d_loss = functools.partial(ops.relativistic_d_loss, **which, **targets)
    return {"d": d_loss, "g": functools.partial(ops.relativistic_g_loss, **which)}


def second_order(
    sample: LossSample, logits: tuple[Tensor, Tensor], backend: str, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Losses, means, first gradients and gradients of <first gradients, directions>, by name.

    The directions are representable in ``dtype``.
    """
    real, fake = (t.detach().requires_grad_() for t in logits)
    result: dict[str, Tensor] = {}
    with gan_fast.use_backend(backend):
        result["means"] = d_loss_and_means(real, fake, **sample.options)[1]
        for name, function in losses_of(sample).items():
            inputs = [real, fake] if name == "d" or sample.relativistic != "none" else [fake]
            loss = function(real, fake)
            scale = torch.tensor(0.75, dtype=loss.dtype, requires_grad=True)
            first = torch.autograd.grad(loss, inputs, scale, create_graph=True)
            directions = [
                torch.randn(t.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
                .to(dtype or t.dtype)
                .to(t.dtype)
                for t in inputs
            ]
            scalar = sum((g * v).sum() for g, v in zip(first, directions))
            second = torch.autograd.grad(scalar, [scale, *inputs], allow_unused=True, materialize_grads=True)
            result[f"{name}_loss"] = loss.detach()
            for order, grads in (("first", first), ("second", second)):
                result |= {f"{name}_{order}_{i}": g.detach() for i, g in enumerate(grads)}
    return result


def cancelled(sample: LossSample, logits: tuple[Tensor, Tensor], name: str) -> float:
    """The size of the terms that cancel in a Wasserstein loss, whose value can be almost zero."""
    if "loss" not in name or sample.kind != "wasserstein":
        return 0.0
    return max(t.detach().double().nan_to_num(0, 0, 0).abs().max().item() for t in logits)


@pytest.mark.parametrize(*in_dtypes(LOSS_SAMPLES, DTYPES))
def test_equals_eager_to_second_order(sample: LossSample, dtype: torch.dtype) -> None:
    logits = sample.make(dtype)
    fused = second_order(sample, logits, "cpu")
    eager = second_order(sample, logits, "reference")
    real, fake = logits
    exact = second_order(sample, (real.detach().double(), fake.detach().double()), "reference", dtype)
    for name, value in eager.items():
        factor = few_numbers_factor(value) if sample.relativistic == "average" else 2.0
        assert_as_exact(fused[name], value, exact[name], name, factor, cancelled(sample, logits, name))
        if "first" in name:
            like = fake if fused[name].shape == fake.shape and sample.relativistic != "paired" else real
            assert fused[name].stride() == torch.empty_like(like).stride(), f"{name}: strides"


@pytest.mark.parametrize("sample", [s for s in SMALL if s.layout != "expanded"], ids=str)
def test_derivatives_match_finite_differences(sample: LossSample) -> None:
    real, fake = sample.make(torch.float64)
    for name, function in losses_of(sample).items():
        inputs: tuple[Tensor, ...] = (real, fake)
        if name != "d" and sample.relativistic == "none":
            function, inputs = functools.partial(function, None), (fake,)
        assert torch.autograd.gradcheck(function, inputs)
        # gradgradcheck covers losses without a second derivative too: those give zeros.
        assert torch.autograd.gradgradcheck(function, inputs)


PHI: dict[str, Callable[[Tensor, float], Tensor]] = {
    "minimax": lambda u, t: F.softplus(-u) + (1 - t) * u,
    "hinge": lambda u, t: t * F.relu(1 - u) + (1 - t) * F.relu(1 + u),
    "wasserstein": lambda u, t: (1 - 2 * t) * u,
    "least_squares": lambda u, t: (u - t) ** 2 / 2,
}


def published_terms(sample: LossSample, name: str, real: Tensor, fake: Tensor) -> list[Tensor]:
    """The terms of the loss called ``name``, element by element."""
    phi = PHI[sample.kind]
    targets = (sample.real_target, sample.fake_target) if name == "d" else (1.0, 0.0)
    if sample.relativistic == "none":
        if name == "d":
            return [phi(real, targets[0]), phi(fake, targets[1])]
        return [-fake if sample.kind == "hinge" else -phi(fake, 0.0) if name == "saturating" else phi(fake, 1.0)]
    if sample.kind == "least_squares":
        targets = (2 * targets[0] - 1, 2 * targets[1] - 1)
    first, second = (real, fake) if name == "d" else (fake, real)
    if sample.relativistic == "paired":
        return [phi(first - second, targets[0])]
    return [phi(first - second.mean(), targets[0]), phi(second - first.mean(), targets[1])]


@pytest.mark.parametrize(*in_dtypes(SMALL, DTYPES))
def test_reductions_equal_the_published_formulas(sample: LossSample, dtype: torch.dtype) -> None:
    logits = sample.make(dtype, requires_grad=False)
    eps = torch.finfo(dtype).eps
    for name, function in losses_of(sample).items():
        terms = published_terms(sample, name, *(t.double() for t in logits))
        want = {"mean": sum(t.mean() for t in terms), "sum": sum(t.sum() for t in terms)}
        if sample.real_shape == sample.fake_shape:
            want["none"] = sum(terms)
        for reduction, exact in want.items():
            got = function(*logits, reduction=reduction)
            assert got.dtype == dtype
            assert got.shape == exact.shape
            largest = sum(t.abs().sum().item() for t in terms)
            torch.testing.assert_close(got.double(), exact, rtol=eps, atol=max(eps / 16, 2e-7) * (1 + largest))


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("sample", EACH_EQUAL, ids=str)
def test_reductions_are_differentiable_to_second_order(sample: LossSample, reduction: str) -> None:
    real, fake = (t.detach().contiguous().requires_grad_() for t in sample.make(torch.float64))
    for name, function in losses_of(sample).items():
        function, inputs = functools.partial(function, reduction=reduction), (real, fake)
        if name != "d" and sample.relativistic == "none":
            function, inputs = functools.partial(function, None), (fake,)
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


def test_sum_of_no_logits_is_zero() -> None:
    nothing = torch.ones(0)
    assert minimax_d_loss(nothing, nothing, reduction="sum").item() == 0
    assert minimax_g_loss(nothing, reduction="none").shape == (0,)


@pytest.mark.parametrize("sample", EACH, ids=str)
def test_third_derivative_equals_reference(sample: LossSample) -> None:
    def third(backend: str) -> Tensor:
        real, fake = sample.make(torch.float64)
        with gan_fast.use_backend(backend):
            grad = losses_of(sample)["d"](real, fake)
            for _ in range(3):
                (grad,) = torch.autograd.grad((grad**2).sum(), fake, create_graph=True)
            return grad

    torch.testing.assert_close(third("cpu"), third("reference"))


# One layout of each kind: this test is slow.
OPCHECK = [s for s in SMALL if len(s.real_shape) != 1 and s.layout in ("contiguous", "gaps", "transposed", "expanded")]


@pytest.mark.parametrize("sample", OPCHECK, ids=str)
def test_opcheck(sample: LossSample) -> None:
    real, fake = sample.make(torch.float32)
    op = torch.ops.gan_fast
    for other in (fake, None) if sample.relativistic == "none" else (fake,):
        arguments = (real, sample.real_target, other, sample.fake_target, -1.0, sample.kind, sample.relativistic)
        torch.library.opcheck(op.adversarial_loss_forward.default, (*arguments, True, True, False))
        torch.library.opcheck(
            op.adversarial_loss_forward.default, (*arguments, False, False, True),
            test_utils=("test_schema", "test_faketensor"),
        )  # fmt: skip
        grad = torch.ones(())
        torch.library.opcheck(op.adversarial_loss_backward.default, (grad, *arguments))


@pytest.mark.parametrize("sample", EACH, ids=str)
def test_compiles_without_graph_breaks(sample: LossSample) -> None:
    def step(real: Tensor, fake: Tensor) -> Tensor:
        losses = losses_of(sample).values()
        values = [loss(real, fake, reduction=r) for loss in losses for r in ("mean", "none")]
        return sum(value.sum() for value in values)  # type: ignore[return-value]

    def run(function: Any) -> list[Tensor]:
        real, fake = LossSample((4, 1, 3, 3), (4, 1, 3, 3)).make(torch.float32)
        loss = function(real, fake)
        loss.backward()
        return [loss.detach(), real.grad, fake.grad]

    torch._dynamo.reset()
    torch.testing.assert_close(run(torch.compile(step, fullgraph=True, backend="aot_eager")), run(step))


@pytest.mark.parametrize(
    *pairwise(
        which=EACH,
        dtype=[torch.float64, torch.float32],
        value=[float("nan"), float("inf"), -float("inf"), 1e4, -1e4, 1e-40],
    )
)
def test_nan_infinite_and_extreme_values_equal_eager(which: LossSample, dtype: torch.dtype, value: float) -> None:
    sample = LossSample((9,), (9,), kind=which.kind, relativistic=which.relativistic)
    logits = sample.make(dtype, requires_grad=False)
    # At one index both batches have the special value; at two others only one batch has it.
    logits[0][3:5] = logits[1][4:6] = value
    fused, eager = second_order(sample, logits, "cpu"), second_order(sample, logits, "reference")
    exact = second_order(sample, (logits[0].double(), logits[1].double()), "reference", dtype)
    for name, expected in eager.items():
        if name == "means" or "loss" in name or "first" in name:
            largest = cancelled(sample, logits, name)
            assert_as_exact(fused[name], expected, exact[name], name, cancelled=largest)


@pytest.mark.parametrize("value", [1.0, -1.0])
def test_slope_at_a_kink_is_zero(value: float) -> None:
    at = torch.full((3,), value, requires_grad=True)
    (fused,) = torch.autograd.grad(ops.hinge_d_loss(at, torch.zeros(3), real_target=0.5), at)
    (eager,) = torch.autograd.grad((F.relu(1 - at) / 2 + F.relu(1 + at) / 2).mean(), at)
    assert torch.equal(fused, eager)


@pytest.mark.parametrize("relativistic", ["paired", "average"])
def test_gradients_of_empty_batches_equal_eager(relativistic: str) -> None:
    for counts in ((0, 0), (0, 3), (3, 0)) if relativistic == "average" else ((0, 0),):
        results = []
        for backend in ("cpu", "reference"):
            real, fake = (torch.ones(count, requires_grad=True) for count in counts)
            with gan_fast.use_backend(backend):
                loss, means = d_loss_and_means(real, fake, relativistic=relativistic)
            results.append((loss, means, *torch.autograd.grad(loss, (real, fake))))
        torch.testing.assert_close(*results, equal_nan=True)


def test_pairs_may_differ_in_strides() -> None:
    real = torch.randn(3, 4, 5)
    fake = torch.randn(5, 4, 3).transpose(0, 2)
    results = []
    for other in (fake, fake.contiguous(), fake.contiguous()[..., :1].expand(3, 4, 5)):
        leaves = real.clone().requires_grad_(), other.detach().requires_grad_()
        loss, means = d_loss_and_means(*leaves, relativistic="paired")
        with gan_fast.use_backend("reference"):
            want, want_means = d_loss_and_means(*leaves, relativistic="paired")
        torch.testing.assert_close((loss, means), (want, want_means))
        results.append(torch.autograd.grad(loss, leaves))
        torch.testing.assert_close(results[-1], torch.autograd.grad(want, leaves))
        torch.library.opcheck(
            torch.ops.gan_fast.adversarial_loss_forward.default,
            (leaves[0], 1.0, leaves[1], 0.0, 1.0, "minimax", "paired", True, True, True),
        )


def test_mean_of_no_logits_is_nan() -> None:
    real, fake = torch.ones(0, requires_grad=True), torch.ones(0, requires_grad=True)
    loss = minimax_d_loss(real, fake)
    assert loss.isnan()
    loss.backward()
    assert real.grad is not None
    assert real.grad.shape == (0,)


@pytest.mark.parametrize("sample", [s for s in EACH if s.relativistic != "none"], ids=str)
def test_relativistic_gradient_of_one_batch_alone(sample: LossSample) -> None:
    logits = sample.make(torch.float32)
    both = torch.autograd.grad(losses_of(sample)["d"](*logits), logits)
    for index, want in enumerate(both):
        leaves = [t.detach().requires_grad_(i == index) for i, t in enumerate(logits)]
        for factor in (1, 2):
            (grad,) = torch.autograd.grad(factor * losses_of(sample)["d"](*leaves), leaves[index])
            torch.testing.assert_close(grad, factor * want)


def test_gradient_is_none_where_not_required() -> None:
    for index in (0, 1):
        logits = LossSample((4,), (5,)).make(torch.float32, requires_grad=False)
        logits[index].requires_grad_()
        minimax_d_loss(*logits).backward()
        grads = [t.grad for t in logits]
        assert grads[1 - index] is None
        expected = torch.sigmoid(logits[index].detach()) - (1.0 if index == 0 else 0.0)
        torch.testing.assert_close(grads[index], expected / expected.numel())


@pytest.mark.parametrize("sample", EACH, ids=str)
def test_means_are_mean_outputs_and_accuracy(sample: LossSample) -> None:
    real, fake = sample.make(torch.float64)
    _, means = d_loss_and_means(real, fake, **sample.options)
    assert not means.requires_grad
    r, f = real.detach(), fake.detach()
    outputs = (r.sigmoid(), f.sigmoid()) if (sample.kind, sample.relativistic) == ("minimax", "none") else (r, f)
    threshold = {"least_squares": 0.5, "wasserstein": (r.mean() + f.mean()) / 2}.get(sample.kind, 0.0)
    correct = {
        "none": lambda: torch.cat([(r > threshold).flatten(), (f < threshold).flatten()]),
        "paired": lambda: r > f,
        "average": lambda: torch.cat([(r > f.mean()).flatten(), (f < r.mean()).flatten()]),
    }[sample.relativistic]()
    want = torch.stack([outputs[0].mean(), outputs[1].mean(), correct.double().mean()])
    torch.testing.assert_close(means, want)


@pytest.mark.parametrize(*in_dtypes(LOSS_SAMPLES, DTYPES))
def test_forward_gradients_equal_those_of_the_backward_kernel(sample: LossSample, dtype: torch.dtype) -> None:
    """For a loss gradient of 1: bit for bit, and each backward pass returns tensors that may be modified."""
    inputs = sample.make(dtype)
    one = torch.ones((), dtype=dtype)
    loss = losses_of(sample)["d"](*inputs)
    by_kernel = torch.autograd.grad(loss, inputs, one, create_graph=True)
    prepared = torch.autograd.grad(loss, inputs, one, retain_graph=True)
    for got, want in zip(prepared, by_kernel):
        assert torch.equal(got, want)
        assert got.stride() == want.stride()
        got.zero_()
    for got, want in zip(torch.autograd.grad(loss, inputs, one, retain_graph=True), by_kernel):
        assert torch.equal(got, want)
    halves = torch.autograd.grad(loss, inputs, one / 2, retain_graph=True)
    fresh = losses_of(sample)["d"](*inputs)
    batched = torch.autograd.grad(fresh, inputs, torch.stack([one, one / 2]), is_grads_batched=True)
    for got, whole, half in zip(batched, by_kernel, halves):
        assert torch.equal(got, torch.stack([whole, half]))


def test_modified_logits_and_freed_graphs_raise() -> None:
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
    threads = torch.get_num_threads()
    for relativistic in LOSS_RELATIVISTIC:
        sample = LossSample(
            (70000,), (70000,) if relativistic == "paired" else (3, 1, 30, 30), relativistic=relativistic
        )
        results = []
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                logits = sample.make(torch.float32)
                loss, means = d_loss_and_means(*logits, **sample.options)
                results.append((loss, means, *torch.autograd.grad(2 * loss, logits)))
        finally:
            torch.set_num_threads(threads)
        for other in results[1:]:
            assert all(map(torch.equal, results[0], other))


@settings(max_examples=300)
@given(
    kind=st.sampled_from(LOSS_KINDS),
    relativistic=st.sampled_from(LOSS_RELATIVISTIC),
    real_shape=st.lists(st.integers(1, 9), max_size=3).map(tuple),
    fake_shape=st.lists(st.integers(1, 9), max_size=3).map(tuple),
    real_target=st.floats(0, 1),
    fake_target=st.floats(0, 1),
    scale=st.sampled_from([0.1, 3.0, 100.0]),
    layout=st.sampled_from(sorted(LAYOUTS)),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**16),
)
def test_random_inputs_equal_eager(
    kind: str, relativistic: str, real_shape: tuple[int, ...], fake_shape: tuple[int, ...], real_target: float,
    fake_target: float, scale: float, layout: str, dtype: torch.dtype, seed: int,
) -> None:  # fmt: skip
    if relativistic == "paired":
        fake_shape, fake_target = real_shape, 0.0
    if min(len(real_shape), len(fake_shape)) < 2:
        layout = "contiguous"
    sample = LossSample(
        real_shape, fake_shape, real_target, fake_target, scale, layout, kind=kind, relativistic=relativistic
    )
    logits = sample.make(dtype, seed)
    fused, eager = second_order(sample, logits, "cpu"), second_order(sample, logits, "reference")
    exact = second_order(sample, (logits[0].detach().double(), logits[1].detach().double()), "reference", dtype)
    for name, value in eager.items():
        factor = few_numbers_factor(value) if relativistic == "average" else 4.0
        assert_as_exact(fused[name], value, exact[name], name, factor, cancelled(sample, logits, name))


BAD_INPUTS: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("relativistic_d", {"fake_logits": torch.ones(3)}, ValueError,
     "expected fake_logits shape (2,) to match real_logits, got (3,); logits are compared in pairs"),
    ("relativistic_g", {"fake_logits": torch.ones(3)}, ValueError,
     "expected fake_logits shape (2,) to match real_logits, got (3,); logits are compared in pairs"),
    ("relativistic_g", {"real_logits": None}, TypeError, "expected real_logits type Tensor, got NoneType"),
    ("relativistic_d", {"fake_target": 0.1}, ValueError,
     "expected fake_target 0 for a relativistic loss, which uses only real_target, got 0.1"),
    ("relativistic_d", {"kind": "mse"}, ValueError,
     "expected kind one of minimax, hinge, wasserstein, least_squares, got 'mse'"),
    ("relativistic_g", {"kind": None, "average": True}, ValueError,
     "expected kind one of minimax, hinge, wasserstein, least_squares, got None"),
    ("relativistic_d", {"fake_logits": torch.ones(3), "average": True, "reduction": "none"}, ValueError,
     "expected fake_logits shape (2,) to match real_logits, got (3,); reduction none adds them one by one"),
    *((f"{loss}_{player}", {"reduction": "max"}, ValueError, "expected reduction one of mean, sum, none, got 'max'")
      for loss in ("minimax", "hinge", "wasserstein", "least_squares", "relativistic") for player in "dg"),
    ("minimax_g", {"reduction": None}, ValueError, "expected reduction one of mean, sum, none, got None"),
    ("hinge_d", {"fake_logits": torch.ones(3), "reduction": "none"}, ValueError,
     "expected fake_logits shape (2,) to match real_logits, got (3,); reduction none adds them one by one"),
    ("hinge_d", {"real_target": 1.1}, ValueError, "expected real_target between 0 and 1, got 1.1"),
    ("wasserstein_g", {"fake_logits": 1.0}, TypeError, "expected fake_logits type Tensor, got float"),
    ("least_squares_d", {"fake_logits": None}, TypeError, "expected fake_logits type Tensor, got NoneType"),
    ("minimax_d", {"real_logits": 1.0}, TypeError, "expected real_logits type Tensor, got float"),
    ("minimax_d", {"fake_logits": torch.ones(2, dtype=torch.int32)}, TypeError,
     "expected fake_logits dtype float64, float32, bfloat16 or float16, got int32"),
    ("minimax_d", {"fake_logits": torch.ones(2, dtype=torch.float64)}, TypeError,
     "expected fake_logits dtype float32 to match real_logits, got float64"),
    ("minimax_d", {"fake_logits": torch.ones(2, device="meta")}, ValueError,
     "expected fake_logits device cpu to match real_logits, got meta"),
    ("minimax_d", {"real_target": 1.1}, ValueError, "expected real_target between 0 and 1, got 1.1"),
    ("minimax_d", {"real_target": True}, TypeError, "expected real_target type float, got bool"),
    ("minimax_d", {"fake_target": -0.1}, ValueError, "expected fake_target between 0 and 1, got -0.1"),
    ("minimax_d", {"real_target": float("nan")}, ValueError, "expected real_target between 0 and 1, got nan"),
    ("minimax_d", {"fake_logits": None}, TypeError, "expected fake_logits type Tensor, got NoneType"),
    ("minimax_d", {"real_target": torch.tensor(0.9)}, TypeError, "expected real_target type float, got Tensor"),
    ("minimax_d", {"fake_target": "0.1"}, TypeError, "expected fake_target type float, got str"),
    ("minimax_g", {"fake_logits": torch.ones(2, dtype=torch.complex64)}, TypeError,
     "expected fake_logits dtype float64, float32, bfloat16 or float16, got complex64"),
    ("minimax_g", {"fake_logits": None}, TypeError, "expected fake_logits type Tensor, got NoneType"),
]  # fmt: skip


@pytest.mark.parametrize("backend", ["auto", "cpu", "reference"])
@pytest.mark.parametrize(
    ("loss", "change", "error", "message"), BAD_INPUTS, ids=[f"{m[0]}-{m[3][:60]}" for m in BAD_INPUTS]
)
def test_invalid_argument_raises(
    loss: str, change: dict[str, Any], error: type[Exception], message: str, backend: str
) -> None:
    arguments: dict[str, Any] = {"fake_logits": torch.ones(2)}
    if loss.endswith("d") or loss == "relativistic_g":
        arguments["real_logits"] = torch.ones(2)
    function = getattr(ops, f"{loss}_loss")
    with gan_fast.use_backend(backend), pytest.raises(error) as caught:
        function(**{**arguments, **change})
    assert str(caught.value) == f"{loss}_loss: {message}"


def test_registered_op_rejects_mixed_dtypes() -> None:
    with pytest.raises(RuntimeError, match="expected other_logits dtype Float, got Double"):
        torch.ops.gan_fast.adversarial_loss_forward(
            torch.ones(2), 1.0, torch.ones(2).double(), 0.0, 1.0, "minimax", "none", False, False, False
        )


REGISTERED_OP_BAD: list[tuple[dict[str, Any], str]] = [
    ({"kind": "mse"}, "expected kind one of minimax, hinge, wasserstein, least_squares, got 'mse'"),
    ({"relativistic": "pairs"}, "expected relativistic one of none, paired, average, got 'pairs'"),
    (
        {"relativistic": "average", "other_logits": None},
        "expected other_logits to be a tensor when relativistic is not none",
    ),
    ({"relativistic": "paired"}, "expected other_logits shape (2,) to match logits, got (3,)"),
    ({"target": 2.0}, "expected target between 0 and 1, got 2"),
]


@pytest.mark.parametrize(("change", "message"), REGISTERED_OP_BAD, ids=[m for _, m in REGISTERED_OP_BAD])
def test_registered_ops_reject_invalid_arguments(change: dict[str, Any], message: str) -> None:
    arguments = {
        "logits": torch.ones(2), "target": 1.0, "other_logits": torch.ones(3), "other_target": 0.0, "scale": 1.0,
        "kind": "minimax", "relativistic": "none",
    } | change  # fmt: skip
    wanted = {"means_wanted": True, "grad_wanted": True, "other_grad_wanted": True}
    with pytest.raises(RuntimeError, match=re.escape(f"adversarial_loss_forward: {message}")):
        torch.ops.gan_fast.adversarial_loss_forward(**arguments, **wanted)
    with pytest.raises(RuntimeError, match=re.escape(f"adversarial_loss_backward: {message}")):
        torch.ops.gan_fast.adversarial_loss_backward(torch.ones(()), **arguments)


def test_lazy_fake_and_wrapped_tensors_are_supported() -> None:
    """Tensors that need more of torch than their memory do not bypass the dispatcher."""
    negated = torch._neg_view(torch.randn(7))  # like x.conj().imag, whose sign is a bit of the tensor
    expected = minimax_g_loss(negated.clone())
    assert torch.equal(minimax_g_loss(negated), expected)
    zeros = torch._efficientzerotensor(7)
    assert torch.equal(minimax_g_loss(zeros), minimax_g_loss(torch.zeros(7)))
    with FakeTensorMode():
        assert minimax_g_loss(torch.empty(7)).shape == ()
    escaped: list[Tensor] = []
    torch.func.grad(lambda t: (escaped.append(t), t.sum())[1])(torch.ones(7))
    assert torch.equal(minimax_g_loss(escaped[0]), minimax_g_loss(torch.ones(7)))


def test_logits_without_gradient_are_not_saved() -> None:
    real, fake = torch.ones(3, requires_grad=True), torch.ones(3)
    loss = minimax_d_loss(real, fake)
    fake.add_(1)
    loss.backward()
    with torch.inference_mode():
        fake = torch.ones(3)
    minimax_d_loss(real, fake).backward()
    assert fake.grad is None


def test_batched_second_gradients_equal_reference() -> None:
    real, fake = LossSample((3,), (3,)).make(torch.float64)
    for average in (False, True):

        def hessian(backend: str, average: bool = average) -> Any:
            with gan_fast.use_backend(backend):
                loss = functools.partial(ops.relativistic_d_loss, average=average)
                (grad,) = torch.autograd.grad(loss(real, fake), real, create_graph=True)
            return torch.autograd.grad(grad, (real, fake), torch.eye(3).double(), is_grads_batched=True)

        torch.testing.assert_close(hessian("cpu"), hessian("reference"))


def test_batched_gradients_with_create_graph_raise() -> None:
    logits = torch.ones(3, requires_grad=True)
    loss = minimax_g_loss(logits)
    with pytest.raises(NotImplementedError, match="create_graph False with is_grads_batched True"):
        torch.autograd.grad(loss, logits, torch.ones(2), is_grads_batched=True, create_graph=True)


def test_meta_tensors_and_tracing_are_supported() -> None:
    assert minimax_g_loss(torch.ones(3, device="meta")).shape == ()
    traced = torch.jit.trace(minimax_g_loss, torch.randn(5, requires_grad=True))
    assert torch.equal(traced(torch.ones(5)), minimax_g_loss(torch.ones(5)))


def test_dispatch_modes_and_profilers_record_the_op() -> None:
    seen: list[str] = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    logits = torch.ones(7)
    with Record():
        minimax_g_loss(logits)
    assert seen == ["gan_fast.adversarial_loss_forward.default"]
    with torch.profiler.profile(acc_events=True) as profile:
        minimax_g_loss(logits)
    assert "gan_fast::adversarial_loss_forward" in {event.key for event in profile.key_averages()}
