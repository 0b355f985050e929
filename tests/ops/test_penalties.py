from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gan_fast
from gan_fast import ops
from gan_fast.ops import conv_kernels, penalties
from tests import critics
from tests.tolerances import assert_as_exact, few_numbers_factor

CRITICS = (*critics.SHARABLE, *critics.UNSHARABLE)

Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {
    "both": lambda logits, penalty: F.softplus(-logits).mean() + 3 * penalty,
    "loss": lambda logits, penalty: F.softplus(-logits).mean(),
    "penalty": lambda logits, penalty: penalty,
    "scaled": lambda logits, penalty: 1024 * (logits.square().mean() - penalty),
}


@pytest.fixture(autouse=True)
def forget_logged_messages() -> None:
    penalties._log_once.cache_clear()


def grads_of(loss: Tensor, critic: nn.Module, *others: Tensor) -> list[Tensor]:
    leaves = [*(p for p in critic.parameters() if p.requires_grad), *others]
    grads = torch.autograd.grad(loss, leaves, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(grads, leaves)]


def eager_norms(critic: nn.Module, points: Tensor) -> tuple[Tensor, Tensor]:
    """A critic's outputs and the squared gradient norm of each sample, by plain autograd."""
    points = points.detach().requires_grad_()
    outputs = critic(points)
    (grads,) = torch.autograd.grad(outputs.sum(), points, create_graph=True)
    return outputs, grads.flatten(1).square().sum(1)


def assert_close(got: Sequence[Tensor], want: Sequence[Tensor], what: str, tolerance: float = 1e-10) -> None:
    for index, (a, b) in enumerate(zip(got, want, strict=True)):
        error, scale = (a - b).norm().item(), max(b.norm().item(), 1.0)
        assert error <= tolerance * scale, f"{what} {index}: {error:.3g} of {scale:.3g}"


class Recorder(nn.Module):
    """Calls a critic and records its inputs and the dtypes of its outputs."""

    def __init__(self, critic: nn.Module) -> None:
        super().__init__()
        self.critic, self.points, self.dtypes = critic, [], []

    def forward(self, x: Tensor) -> Tensor:
        self.points.append(x.detach().clone())
        output = self.critic(x)
        self.dtypes.append(output.dtype)
        return output


def penalties_of(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    c = torch.linspace(0.5, 2, len(real), dtype=real.dtype)
    return {
        "gradient_penalty": ops.gradient_penalty(critic, real, fake),
        "centered at zero": ops.gradient_penalty(critic, real, fake, center=0.0, coefficients=c),
        "dragan": ops.dragan_penalty(critic, real, center=0.7),
        "r1": ops.r1_penalty(critic, real),
        "r2": ops.r2_penalty(critic, fake, coefficients=c),
    }


def eager_penalties(critic: nn.Module, points: Sequence[Tensor]) -> dict[str, Tensor]:
    norms = [eager_norms(critic, p)[1] for p in points]
    c = torch.linspace(0.5, 2, len(points[0]), dtype=points[0].dtype)
    return {
        "gradient_penalty": (norms[0].sqrt() - 1).square().mean(),
        "centered at zero": (c * norms[1]).mean(),
        "dragan": (norms[2].sqrt() - 0.7).square().mean(),
        "r1": norms[3].mean() / 2,
        "r2": (c * norms[4]).mean() / 2,
    }


@pytest.mark.parametrize("name", CRITICS)
def test_penalties_and_gradients_equal_eager(name: str) -> None:
    critic, real, fake = critics.make(name), critics.images(), critics.images(seed=2)
    recorder = Recorder(critic)
    fused = penalties_of(recorder, real, fake)
    for what, eager in eager_penalties(critic, recorder.points).items():
        assert_close([fused[what]], [eager], what)
        assert_close(grads_of(fused[what], critic), grads_of(eager, critic), what)


@pytest.mark.parametrize("name", ["leaky_relu", "dcgan", "residual"])
def test_float32_is_as_accurate_as_eager(name: str) -> None:
    exact_critic, critic = critics.make(name), critics.make(name, torch.float32)
    real, fake = critics.images(32).float(), critics.images(32, seed=2).float()
    recorder = Recorder(critic)
    fused = penalties_of(recorder, real, fake)
    eager = eager_penalties(critic, recorder.points)
    exact = eager_penalties(exact_critic, [p.double() for p in recorder.points])
    for what in fused:
        assert_as_exact(fused[what], eager[what], exact[what], what, factor=16.0)
        three = (grads_of(value[what], c) for value, c in ((fused, critic), (eager, critic), (exact, exact_critic)))
        for a, b, c in zip(*three):
            # A chain of about ten sums, whose rounding errors vary independently.
            assert_as_exact(a, b, c, f"{what} gradient", factor=2 * few_numbers_factor(a))


def test_points_lie_between_or_around_the_images() -> None:
    recorder = Recorder(critics.make("perceptron"))
    real, fake = critics.images(64), critics.images(64, seed=2)
    ops.gradient_penalty(recorder, real, fake, generator=torch.Generator().manual_seed(3))
    ops.gradient_penalty(recorder, real, fake, generator=torch.Generator().manual_seed(3))
    between, again = recorder.points
    assert torch.equal(between, again)
    u = ((between - real) / (fake - real)).flatten(1)
    assert_close([u], [u[:, :1].expand_as(u)], "u of a sample", 1e-6)
    assert 0 <= u.min() < 0.1
    assert 0.9 < u.max() < 1
    ops.dragan_penalty(recorder, real, scale=0.5)
    away = (recorder.points[-1] - real) / (0.5 * real.std())
    assert away.min() >= 0
    assert 0.8 < away.max() < 1
    ops.r1_penalty(recorder, real)
    assert torch.equal(recorder.points[-1], real)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", CRITICS)
def test_loss_and_r1_have_the_gradients_of_eager(name: str, loss: str) -> None:
    critic, real = critics.make(name), critics.images()
    c = torch.linspace(0.5, 2, len(real), dtype=real.dtype)
    logits, penalty = ops.logits_and_r1(critic, real, coefficients=c)
    eager_logits, norms = eager_norms(critic, real)
    eager_penalty = (c * norms).mean() / 2
    assert_close([logits, penalty], [eager_logits, eager_penalty], name)
    fused, eager = LOSSES[loss](logits, penalty), LOSSES[loss](eager_logits, eager_penalty)
    assert_close(grads_of(fused, critic), grads_of(eager, critic), name)


def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    forward, backward = conv_kernels.forward, conv_kernels.backward

    def counted_forward(*args: Any) -> Any:
        calls.append("forward")
        return forward(*args)

    def counted_backward(grad: Tensor, input: Any, weight: Any, geometry: Any, wanted: Any, kernels: Any = None) -> Any:
        calls.extend(name for name, needed in zip(("data", "weight"), wanted) if needed)
        return backward(grad, input, weight, geometry, wanted, kernels)

    monkeypatch.setattr(conv_kernels, "forward", counted_forward)
    monkeypatch.setattr(conv_kernels, "backward", counted_backward)
    return calls


def counted(calls: list[str]) -> tuple[int, ...]:
    counts = tuple(calls.count(name) for name in ("forward", "data", "weight"))
    calls.clear()
    return counts


def test_number_of_passes_is_as_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    """As docs/penalties.md counts them: one pass is every layer of the critic once."""
    monkeypatch.setattr(gan_fast.backends, "SMALL", -1)
    critic, real, fake = critics.make("in_place"), critics.images(), critics.images(seed=2)
    calls = kernel_calls(monkeypatch)
    # The critic has three layers; the tangent pass skips the last.
    ops.gradient_penalty(critic, real, fake).backward()
    assert counted(calls) == (3 + 2, 3, 3)
    logits, penalty = ops.logits_and_r1(critic, real)
    (F.softplus(-logits).mean() + penalty).backward()
    assert counted(calls) == (3 + 2, 3, 3)
    first, second = ops.logits_for_both_players(critic, fake.requires_grad_())
    (F.softplus(first).mean() + F.softplus(-second).mean()).backward()
    assert counted(calls) == (3, 3, 3)


@pytest.mark.parametrize("activation", [nn.ReLU(inplace=True), nn.LeakyReLU(0.2, inplace=True)], ids=str)
@pytest.mark.parametrize("view", [lambda x: x, lambda x: x[1:], lambda x: x.chunk(2)[0]], ids=["leaf", "view", "chunk"])
def test_images_keep_their_values_where_torch_refuses_to_overwrite_them(activation, view) -> None:
    class Critic(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return activation(view(x)).flatten(1).sum(1)

    images = critics.images()
    before = images.clone()
    with pytest.raises(RuntimeError, match=r"is being used in an in-place operation|is being modified inplace"):
        ops.r1_penalty(Critic(), images)
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", critics.SHARABLE)
def test_logits_for_both_players_give_both_gradients(name: str) -> None:
    critic, fake = critics.make(name), critics.images().requires_grad_()
    first, second = ops.logits_for_both_players(critic, 2 * fake)
    fused = grads_of(F.softplus(first).mean() + F.relu(1 - second).sum(), critic, fake)
    logits = critic(2 * fake)
    eager = (
        grads_of(F.softplus(logits).mean(), critic, fake)[:-1] + grads_of(F.relu(1 - logits).sum(), critic, fake)[-1:]
    )
    assert_close([first, second], [logits, logits], name)
    assert_close(fused, eager, name)
    first, second = ops.logits_for_both_players(critic, 2 * fake)
    alone = grads_of(F.softplus(first).mean(), critic, fake)
    assert_close(alone[:-1], eager[:-1], name)
    assert not alone[-1].any()


@pytest.mark.parametrize("name", critics.UNSHARABLE)
def test_reason_against_a_shared_pass_is_reported_once(name: str, caplog: pytest.LogCaptureFixture) -> None:
    critic, images, reason = critics.make(name), critics.images(), critics.UNSHARABLE[name][1]
    with pytest.raises(ValueError, match=reason):
        ops.logits_for_both_players(critic, images.requires_grad_())
    for _ in range(2):
        ops.logits_and_r1(critic, images)
    (line,) = [record.message for record in caplog.records if "takes six passes" in record.message]
    assert reason in line


@pytest.mark.parametrize("name", ["tanh", "silu"])
def test_higher_derivatives_match_finite_differences(name: str) -> None:
    critic, real = critics.make(name), critics.images(3)
    weight = critic[0].weight  # type: ignore[index]
    with torch.no_grad():
        weight.mul_(2)

    def penalty(w: Tensor) -> Tensor:
        return ops.r1_penalty(lambda x: torch.func.functional_call(critic, {"0.weight": w}, (x,)), real)

    assert torch.autograd.gradcheck(penalty, weight.detach().clone().requires_grad_(), fast_mode=True)
    assert torch.autograd.gradgradcheck(penalty, weight.detach().clone().requires_grad_(), fast_mode=True)


def test_shared_pass_rejects_second_order() -> None:
    critic, real = critics.make("leaky_relu"), critics.images()
    logits, penalty = ops.logits_and_r1(critic, real)
    with pytest.raises(NotImplementedError, match="expected create_graph False"):
        torch.autograd.grad(logits.sum() + penalty, list(critic.parameters()), create_graph=True)
    first, _ = ops.logits_for_both_players(critic, real.requires_grad_())
    with pytest.raises(NotImplementedError, match="expected create_graph False"):
        torch.autograd.grad(first.square().sum(), list(critic.parameters()), create_graph=True)


def test_gradient_is_zero_for_a_constant_critic() -> None:
    critic, real, fake = critics.make("leaky_relu"), critics.images(), critics.images(seed=2)
    with torch.no_grad():
        for p in critic.parameters():
            p.zero_()
    penalty = ops.gradient_penalty(critic, real, fake)
    assert penalty.item() == 1
    assert all(torch.equal(g, torch.zeros_like(g)) for g in grads_of(penalty, critic))


def test_batch_norm_is_exact_and_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    critic, real, fake = critics.make("batch_norm"), critics.images(), critics.images(seed=2)
    for _ in range(2):
        ops.gradient_penalty(critic, real, fake)
        ops.r1_penalty(critic, real)
    assert [r.levelname for r in caplog.records if "advises against" in r.message] == ["WARNING"]
    caplog.clear()
    for quiet in (critic.eval(), critics.make("instance_norm"), critics.make("group_norm")):
        penalties._log_once.cache_clear()
        ops.gradient_penalty(quiet, real, fake)
    assert not caplog.records


def test_conditional_critic_with_several_outputs_equals_eager() -> None:
    real, fake = critics.images(), critics.images(seed=2)
    labels = torch.arange(5, dtype=torch.float64).view(-1, 1, 1, 1)
    weight = torch.randn(2, 3, 3, 3, dtype=torch.float64, requires_grad=True)

    def conditional(x: Tensor) -> Tensor:
        return F.conv2d(x, weight).relu() * labels

    seen = []
    penalty = ops.gradient_penalty(lambda x: (seen.append(x.detach()), conditional(x))[1], real, fake)
    points = seen[0].requires_grad_()
    (grads,) = torch.autograd.grad(conditional(points).sum(), points, create_graph=True)
    eager = (grads.flatten(1).norm(dim=1) - 1).square().mean()
    assert_close(torch.autograd.grad(penalty, weight), torch.autograd.grad(eager, weight), "weight")


@pytest.mark.parametrize("where", ["module", "inside"])
def test_compiled_critic_runs_eagerly(where: str) -> None:
    critic, real = critics.make("leaky_relu"), critics.images()
    compiled: Any = torch.compile(critic, backend="aot_eager")
    if where == "inside":
        critic.compile(backend="aot_eager")
        compiled = critic
    compiled(real)
    fused = ops.r1_penalty(compiled, real)
    plain = critics.make("leaky_relu")
    eager = eager_norms(plain, real)[1].mean() / 2
    assert_close(grads_of(fused, critic), grads_of(eager, plain), "weights")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_equals_float32_within_rounding(dtype: torch.dtype) -> None:
    critic, real, fake = critics.make("dcgan", torch.float32), critics.images().float(), critics.images(seed=2).float()
    recorder = Recorder(critic)
    with torch.autocast("cpu", dtype):
        fused = penalties_of(recorder, real, fake)
        logits, r1 = ops.logits_and_r1(recorder, real)
    # bfloat16 has the range of float32; instead of float16 the critic runs in float32.
    assert set(recorder.dtypes) == {torch.bfloat16 if dtype == torch.bfloat16 else torch.float32}
    eager = eager_penalties(critic, recorder.points[:5])
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-5
    fused["logits_and_r1"], eager["logits_and_r1"] = F.softplus(-logits.float()).mean() + r1, eager["r1"]
    eager["logits_and_r1"] = F.softplus(-critic(real)).mean() + eager["r1"]
    for what, value in fused.items():
        assert value.dtype == torch.float32
        assert_close([value], [eager[what]], what, tolerance)
        assert_close(grads_of(value, critic), grads_of(eager[what], critic), what, tolerance)


def test_gradient_scaler_gives_unscaled_gradients() -> None:
    critic, real = critics.make("leaky_relu", torch.float32), critics.images().float()
    optimizer = torch.optim.SGD(critic.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    logits, penalty = ops.logits_and_r1(critic, real)
    loss = F.softplus(-logits).mean() + penalty
    expected = grads_of(loss, critic)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    assert_close([p.grad for p in critic.parameters()], expected, "unscaled", 1e-6)


def test_no_grad_gives_values_without_gradients() -> None:
    critic, real, fake = critics.make("leaky_relu"), critics.images(), critics.images(seed=2)
    with torch.no_grad():
        values = penalties_of(critic, real, fake)
        logits, r1 = ops.logits_and_r1(critic, real)
    assert not any(t.requires_grad for t in (*values.values(), logits, r1))
    assert_close([values["r1"], r1], [eager_norms(critic, real)[1].mean() / 2] * 2, "r1")


def test_images_and_critic_biases_get_no_gradient() -> None:
    critic, real, fake = critics.make("leaky_relu"), critics.images().requires_grad_(), critics.images(seed=2)
    ops.gradient_penalty(critic, real, fake).backward()
    assert real.grad is None
    # A bias shifts the output of a rectifier but not its gradient.
    assert all((p.grad is None) == (p.dim() == 1) for p in critic.parameters())


def test_torch_functions_are_restored_after_an_error() -> None:
    critic, real = critics.make("in_place"), critics.images()
    with pytest.raises(RuntimeError, match="on purpose"):
        ops.r1_penalty(lambda x: (_ for _ in ()).throw(RuntimeError("on purpose")), real)
    output = critic[0](real)  # type: ignore[index]
    assert output.grad_fn.name() == "ConvolutionBackward0"
    with gan_fast.use_backend("reference"):
        seen: list[str] = []
        ops.r1_penalty(lambda x: (seen.append((y := critic(x)).grad_fn.name()), y)[1], real)
    assert seen == ["AddmmBackward0"]


BAD = [
    (lambda c, x: ops.gradient_penalty(c, x, x[:2]), ValueError, "gradient_penalty: expected fake shape"),
    (lambda c, x: ops.gradient_penalty(c, x, x.float()), TypeError, "expected fake dtype"),
    (lambda c, x: ops.r1_penalty(c, x.long()), TypeError, "r1_penalty: expected real dtype"),
    (lambda c, x: ops.r2_penalty(c, [x]), TypeError, "r2_penalty: expected fake type Tensor, got list"),
    (lambda c, x: ops.gradient_penalty("critic", x, x), TypeError,
     "gradient_penalty: expected critic type Module or a function, got str"),
    (lambda c, x: ops.logits_and_r1("critic", x), TypeError, "logits_and_r1: expected critic type Module"),
    (lambda c, x: ops.r1_penalty(lambda y: (c(y), y), x), TypeError, "expected critic output type Tensor, got tuple"),
    (lambda c, x: ops.r1_penalty(lambda y: c(x), x), ValueError, "a critic that depends on the images"),
    (lambda c, x: ops.r1_penalty(lambda y: c(y).mean(), x), ValueError, "one or more values for each of 5 samples"),
    (lambda c, x: ops.logits_and_r1(lambda y: c(y)[:4], x), ValueError, "one or more values for each of 5 samples"),
    (lambda c, x: ops.dragan_penalty(c, x, scale=-1.0), ValueError, "dragan_penalty: expected scale"),
    (lambda c, x: ops.gradient_penalty(c, x, x, center=-1.0), ValueError, "gradient_penalty: expected center"),
    (lambda c, x: ops.logits_and_r1(lambda y: y.new_ones(5), x), ValueError, "a critic that depends on the images"),
    (lambda c, x: ops.logits_for_both_players(c, x), ValueError, "expected images that require a gradient"),
    (lambda c, x: ops.r1_penalty(c, x, coefficients=x.new_ones(2)), ValueError, "expected coefficients shape"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[message for _, _, message in BAD])
def test_invalid_argument_raises(
    call: Callable[[nn.Module, Tensor], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(critics.make("leaky_relu"), critics.images())
