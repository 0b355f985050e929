"""The measured choice of a backend, tested on the CPU: compiled kernels, the reference and interpreted Triton."""

from __future__ import annotations

import itertools
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
import torch.utils.flop_counter
from drawn import seeds
from samples import LAYOUTS
from triton_device import needs_triton

import gan_fast
from gan_fast import backends, ops, tuning

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Measure on the CPU too, start without any times, and write them to a temporary folder, which is returned."""
    monkeypatch.setenv("GAN_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GAN_FAST_TUNE", "1")
    monkeypatch.setattr(backends, "_MEASURED_ON", ("cpu",))
    monkeypatch.setattr(tuning, "_names", {})
    monkeypatch.setattr(tuning, "_logged", set())
    forget(monkeypatch)
    return tmp_path / "cache"


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drop the times and choices of this process."""
    monkeypatch.setattr(backends, "_fastest", {})
    monkeypatch.setattr(tuning, "_measured", {})


def op_with_times(ms: dict[str, float], calls: list[str]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return an op that takes the given time under each backend and records the backend of each call."""

    def call(input: torch.Tensor) -> torch.Tensor:
        calls.append(backends.requested())
        time.sleep(ms[backends.requested()] / 1e3)
        return input * 2

    return call


def choose(call: Callable[..., Any], names: list[str], input: torch.Tensor | None = None) -> torch.Tensor:
    result: torch.Tensor = backends.call_fastest_of(
        "an_op", names, ("of", 3), call, (torch.ones(3) if input is None else input,)
    )
    return result


def test_fastest_backend_is_measured_once_and_used(measuring: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    call = op_with_times({"cpu": 3, "reference": 0}, calls)
    assert choose(call, ["cpu", "reference"]).tolist() == [2, 2, 2]
    assert set(calls) == {"cpu", "reference"}
    calls.clear()
    choose(call, ["cpu", "reference"])
    assert calls == ["reference"]
    # A call with gradient is another class, timed with its backward.
    calls.clear()
    assert choose(call, ["cpu", "reference"], torch.ones(3, requires_grad=True)).requires_grad
    assert calls.count("cpu") > 3
    (file,) = measuring.glob("*.json")
    known = json.loads(file.read_text())
    assert len(known) == 2
    assert all(times["cpu"] > times["reference"] > 0 for times in known.values())
    assert "cpu" in file.name
    assert torch.__version__.split("+")[0] in file.name

    # The next process reads the file.
    forget(monkeypatch)
    calls.clear()
    choose(call, ["cpu", "reference"])
    assert calls == ["reference"]
    assert "measured on cpu:\n  an_op of 3 alone" in "\n".join(backends._measurements(CPU))


def test_nothing_is_timed_with_tuning_off_or_a_backend_requested(
    measuring: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    call = op_with_times({"cpu": 3, "reference": 0, "auto": 0}, calls)
    monkeypatch.setenv("GAN_FAST_TUNE", "0")
    choose(call, ["cpu", "reference"])
    # Its results were compared with the reference's, for original and perturbed arguments; then it was used.
    assert calls == ["cpu", "reference", "reference", "cpu"]
    calls.clear()
    choose(call, ["cpu", "reference"])
    choose(call, ["auto", "reference"])
    choose(call, ["cpu"])
    assert calls == ["cpu", "auto", "cpu"]
    assert not measuring.exists()
    assert backends.is_measured(torch.ones(1))
    for name in ("cpu", "reference"):
        with gan_fast.use_backend(name):
            assert not backends.is_measured(torch.ones(1))


def test_failing_candidate_is_excluded_and_logged_once(
    measuring: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(input: torch.Tensor) -> torch.Tensor:
        if backends.requested() == "triton":
            raise ValueError("it does not compile")
        return input + 1

    caplog.set_level(logging.WARNING, logger="gan_fast")
    assert choose(call, ["triton", "reference"]).tolist() == [2, 2, 2]
    assert choose(call, ["triton", "reference"], torch.ones(3, requires_grad=True)).tolist() == [2, 2, 2]
    assert [r.getMessage() for r in caplog.records] == [
        "an_op: not using backend triton: it failed (of 3 alone of triton reference): it does not compile"
    ]
    # Nothing is written to disk, so that the next process tries again.
    assert not measuring.exists()
    # If every candidate fails, the call raises its own error.
    forget(monkeypatch)
    with pytest.raises(ValueError, match="it does not compile"):
        choose(call, ["triton"])


class Scaled(torch.autograd.Function):
    """Twice the input, with a given fault under the backend "triton"."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, running: torch.Tensor, fault: str) -> torch.Tensor:
        ctx.fault = fault if backends.requested() == "triton" else ""
        running.mul_(0.9).add_(0.2 if ctx.fault == "in-place result" else 0.1)
        output = input * 2
        if ctx.fault == "one value":
            output.view(-1)[0] += 1
        if ctx.fault == "a tile of NaN":
            output[0] = float("nan")
        if ctx.fault == "wrong shape":
            output = output[:-1]
        return output

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        if ctx.fault == "failing backward":
            raise RuntimeError("out of resource: shared memory")
        return grad * (2.2 if ctx.fault == "gradient" else 2), None, None


@pytest.mark.parametrize("tune", ["1", "0"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("one value", "wrong values: result 0 differs from the reference's by "),
        ("a tile of NaN", "wrong values: result 0 differs from the reference's by nan of its norm"),
        ("gradient", "wrong values: result 1 differs from the reference's by 0.1 of its norm"),
        ("in-place result", "wrong values: result 2 differs from the reference's by "),
        ("wrong shape", "result 0 has a shape other than the reference's"),
        ("failing backward", "it failed (of 3 with gradient of triton reference): out of resource"),
        ("", None),
    ],
)
def test_candidate_that_disagrees_with_the_reference_is_excluded(
    fault: str, message: str | None, dtype: torch.dtype, tune: str, measuring: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("GAN_FAST_TUNE", tune)
    used: list[str] = []

    def call(input: torch.Tensor, running: torch.Tensor) -> torch.Tensor:
        used.append(backends.requested())
        output: torch.Tensor = Scaled.apply(input, running, fault)
        return output

    # The first candidate that is timed is the fastest.
    times = itertools.count()
    monkeypatch.setattr(tuning, "_time_ms", lambda device, work: work() or float(next(times)))
    caplog.set_level(logging.WARNING, logger="gan_fast")
    x = torch.rand(16, 8, dtype=dtype, requires_grad=fault != "wrong shape")
    running = torch.ones(3, dtype=dtype)
    for _ in range(2):
        backends.call_fastest_of("an_op", ["triton", "reference"], ("of", 3), call, (x, running))
    assert used[-2:] == ["triton" if message is None else "reference"] * 2
    messages = [r.getMessage() for r in caplog.records]
    assert len(messages) == (message is not None)
    assert message is None or messages[0].startswith(f"an_op: not using backend triton: {message}")
    # The two calls alone updated it, not the measurements.
    torch.testing.assert_close(running, torch.ones(3, dtype=dtype))
    # The candidate is excluded in this process only: another build of the kernel, or another driver, may be correct.
    assert measuring.exists() == (message is None and tune == "1")


def test_rounding_differences_are_accepted() -> None:
    """Sums in another order, rounded half-precision values, values across a kink, gradients that vanish.

    The tensors have more values than backends.SMALL. Among a few hundred values one across a kink would be a fault, but
    calls that small use ATen.
    """
    norm = torch.nn.functional.batch_norm

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for seed in seeds(10):
            torch.manual_seed(seed)
            x, grad = (torch.randn(8, 24, 8, 8) for _ in range(2))
            perturbed = x * (1 + tuning._ROUNDING[dtype] * (2 * torch.rand_like(x) - 1))
            results = []
            for values, order in ((x, "reversed"), (x, "forward"), (perturbed, "forward")):
                values = values.to(dtype).requires_grad_()
                # The exact gradient of a bias before a norm is zero; the computed one is rounding noise.
                bias = torch.zeros(24, dtype=dtype, requires_grad=True)
                with_bias = values + bias.view(-1, 1, 1)
                if order == "reversed":
                    output = (
                        norm(with_bias.double().flip(0), None, None, training=True).flip(0).float().relu().to(dtype)
                    )
                else:
                    output = norm(with_bias, None, None, training=True).relu()
                grads = torch.autograd.grad(output, (values, bias), grad.to(dtype))
                results.append([output.detach(), *grads])
            assert tuning.disagreement(*results) is None, (dtype, seed)


def test_failing_reference_is_logged_and_candidates_are_used_unchecked(caplog: pytest.LogCaptureFixture) -> None:
    def call(input: torch.Tensor) -> torch.Tensor:
        if backends.requested() == "reference":
            raise torch.OutOfMemoryError("out of memory\na second line")
        return input + 1

    caplog.set_level(logging.WARNING, logger="gan_fast")
    assert choose(call, ["triton", "reference"]).tolist() == [2, 2, 2]
    assert caplog.records[0].getMessage() == "kernel results are not checked: the reference failed: out of memory"


@pytest.mark.parametrize("tune", ["1", "0"])
def test_error_names_the_candidate_that_made_the_device_unusable(tune: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAN_FAST_TUNE", tune)
    monkeypatch.setattr(tuning, "_is_usable", lambda device: False)

    def call(input: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    message = r"^an_op: the kernel of backend triton made the device unusable \(of 3 alone"
    with pytest.raises(RuntimeError, match=message):
        choose(call, ["triton", "reference"])


def test_measuring_draws_no_random_numbers_and_changes_no_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "candidates", lambda *_: ["cpu", "reference"])
    x, mean, var = torch.randn(8, 6, 8, 8, requires_grad=True), torch.zeros(6), torch.ones(6)
    state = torch.get_rng_state()
    output = ops.batch_norm_act(x, mean, var, training=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert x.grad is None
    with gan_fast.use_backend("reference"):
        other_mean, other_var = torch.zeros(6), torch.ones(6)
        expected = ops.batch_norm_act(x, other_mean, other_var, training=True)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close((mean, var), (other_mean, other_var))
    assert backends._fastest


def test_unreadable_or_unwritable_file_is_logged(
    measuring: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING, logger="gan_fast")
    call = op_with_times({"cpu": 0, "reference": 1}, [])
    measuring.mkdir()
    path = tuning._file(tuning._name(CPU))
    for content in ("{", "[]", '{"an_op": 3}', '{"an_op": {"cpu": "fast"}}', "\xff"):
        forget(monkeypatch)
        path.write_text(content, encoding="latin-1")
        caplog.clear()
        choose(call, ["cpu", "reference"])
        assert "cannot read measured times from" in caplog.text
        assert json.loads(path.read_text())
    caplog.clear()
    forget(monkeypatch)
    monkeypatch.setenv("GAN_FAST_CACHE", str(path))
    choose(call, ["cpu", "reference"])
    assert "cannot write measured times" in caplog.text
    assert [p.name for p in measuring.iterdir()] == [path.name]


@needs_triton
@pytest.mark.parametrize("fastest", ["cpu", "reference", "triton"])
@pytest.mark.parametrize(
    "op", ["batch_norm_act", "instance_norm_act", "minimax_g_loss", "minimax_d_loss", "sample_norm_penalty"]
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_every_op_uses_the_fastest_backend(op: str, fastest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[str] = []

    def time_ms(device: torch.device, work: Callable[[], Any]) -> float:
        work()  # runs forward and backward under every candidate
        timed.append(op)
        return 0.0 if candidate[0] == fastest else 1.0

    candidate = [""]
    inner = backends._work

    def work(*args: Any) -> Callable[[str], Callable[[], Any]]:
        of = inner(*args)

        def named(name: str) -> Callable[[], Any]:
            candidate[0] = name
            return of(name)

        return named

    monkeypatch.setattr(backends, "_work", work)
    monkeypatch.setattr(tuning, "_time_ms", time_ms)
    x = torch.randn(3, 4, 5, 5, requires_grad=True)
    call = {
        "batch_norm_act": lambda: ops.batch_norm_act(x, None, None, training=True),
        "instance_norm_act": lambda: ops.instance_norm_act(x, activation="relu"),
        "minimax_g_loss": lambda: ops.minimax_g_loss(x.to(torch.bfloat16)),
        "minimax_d_loss": lambda: ops.minimax_d_loss(x.to(torch.bfloat16), x.to(torch.bfloat16)),
        "sample_norm_penalty": lambda: ops.sample_norm_penalty(x)[0],
    }[op]
    if "loss" in op:
        # Plain CPU tensors skip the measured choice.
        monkeypatch.setattr("gan_fast.ops.dispatch.is_plain_cpu", lambda *_: False)
    output = call()
    assert len(timed) == 3
    assert set(backends._fastest.values()) == {fastest}
    with gan_fast.use_backend(fastest):
        assert torch.equal(output, call())
    output.sum().backward()
    assert x.grad is not None


def conv_names(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Record the candidates of each convolution in the returned list."""
    seen: list[list[str]] = []
    inner = backends.call_fastest_of

    def spy(op: str, names: list[str], *rest: Any, **options: Any) -> Any:
        if op == "conv2d":
            seen.append(names)
        return inner(op, names, *rest, **options)

    monkeypatch.setattr(backends, "call_fastest_of", spy)
    return seen


@needs_triton
@pytest.mark.parametrize("triton_ms", [0.0, 1.0])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_blocks_choose_the_convolution_and_the_norm_together(triton_ms: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from gan_fast.triton_kernels import conv

    seen = conv_names(monkeypatch)
    times = {"triton": triton_ms, "auto": 0.5, "cpu": 0.5, "reference": 1.0}
    real = backends._work
    order: list[str] = []

    def work(*args: Any) -> Callable[[str], Callable[[], Any]]:
        return lambda name: order.append(name) or real(*args)(name)

    def time_ms(device: torch.device, run: Callable[[], Any]) -> float:
        name = order[-1]
        run()
        return times[name]

    monkeypatch.setattr(backends, "_work", work)
    monkeypatch.setattr(tuning, "_time_ms", time_ms)
    calls: list[int] = []
    convolve = conv.convolve
    monkeypatch.setattr(conv, "convolve", lambda *a, **k: calls.append(1) or convolve(*a, **k))
    block = gan_fast.nn.ConvBNAct2d(5, 7, 4, 2, 1)
    x = torch.randn(2, 5, 6, 4, requires_grad=True)
    block(x).sum().backward()
    assert seen == [["auto", "triton"]]
    assert int(block.bn.num_batches_tracked) == 1
    with gan_fast.use_backend("reference"):
        reference = gan_fast.nn.ConvBNAct2d(5, 7, 4, 2, 1)
        reference.conv.load_state_dict(block.conv.state_dict())
        reference(x)
    # Measuring does not update running statistics.
    torch.testing.assert_close(block.bn.running_mean, reference.bn.running_mean)
    measured = len(calls)
    block(x)
    assert (len(calls) > measured) == (triton_ms == 0.0)
    # Triton is no candidate for groups or float64, which its convolutions do not support.
    gan_fast.nn.Conv2d(5, 5, 3, groups=5)(x)
    gan_fast.nn.Conv2d(5, 5, 3, dtype=torch.float64)(x.double())
    assert seen[-2:] == [["auto"], ["auto"]]


def call_measured_ops(x: torch.Tensor) -> dict[str, torch.Tensor]:
    weight = torch.ones(3, 4, 3, 3)
    mean, var = torch.zeros(4), torch.ones(4)
    return {
        "batch_norm_act": ops.batch_norm_act(x, mean, var),
        "conv2d": ops.conv2d(x, weight),
        "leaky_relu": ops.leaky_relu(x, 0.2),
        "minimax_g_loss": ops.minimax_g_loss(x.bfloat16()),
        "sample_norm_penalty": ops.sample_norm_penalty(x)[0],
    }


def test_nothing_is_measured_under_transforms_hooks_and_modes(measuring: Path) -> None:
    x = torch.randn(2, 4, 5, 5)

    def summed(x: torch.Tensor) -> torch.Tensor:
        return sum(value.float().sum() for value in call_measured_ops(x).values())  # type: ignore[return-value]

    torch.func.grad(summed)(x)
    torch.func.vmap(lambda x: ops.leaky_relu(x, 0.2))(x)
    with torch.autograd.forward_ad.dual_level():
        summed(torch.autograd.forward_ad.make_dual(x, x))
    wanted = x.clone().requires_grad_()
    torch.utils.checkpoint.checkpoint(summed, wanted, use_reentrant=False).backward()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        summed(wanted).backward()
    with torch._subclasses.FakeTensorMode() as mode:
        ops.batch_norm_act(mode.from_tensor(x), None, None, training=True)
    with torch.utils.flop_counter.FlopCounterMode(display=False):
        summed(x)
    assert not backends._fastest
    assert not measuring.exists()


def test_measured_choice_affects_one_call_in_one_thread() -> None:
    inside, used = threading.Barrier(2), []

    def call(input: torch.Tensor) -> torch.Tensor:
        inside.wait(timeout=60)
        used.append(backends.requested())
        inside.wait(timeout=60)
        return input

    threads = [
        threading.Thread(target=backends.call_fastest_of, args=(f"op_{name}", [name], (), call, (torch.ones(1),)))
        for name in ("cpu", "reference")
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAN_FAST_TUNE", "0")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(used) == ["cpu", "reference"]
    assert backends.requested() == "auto"


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "expanded", "gaps", "transposed"])
def test_random_like_keeps_shape_strides_and_dtype(layout: str) -> None:
    x = LAYOUTS[layout](torch.randn(2, 4, 5, 5)).requires_grad_()
    copy = tuning.random_like(x)
    assert (copy.shape, copy.stride(), copy.dtype, copy.requires_grad) == (x.shape, x.stride(), x.dtype, True)
    assert copy.is_leaf
    assert tuning.random_like(None) is None
    assert tuning.random_like(torch.empty(0, 3)).shape == (0, 3)
