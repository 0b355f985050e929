"""The self-check passes on this machine and finds every fault that a test injects."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_backends import run
from torch import Tensor
from triton_device import needs_triton

import gan_fast
from gan_fast import backends, cli, extension, ops, self_check
from gan_fast.ops import conv_kernels

OPS = backends.op_names()
# perturb is not differentiable.
DIFFERENTIABLE = [op for op in OPS if op != "perturb"]
needs_extension = pytest.mark.skipif(not extension.available(), reason="needs the compiled extension")


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor) -> Tensor:
        return output.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return grad_output * 1.01


class WrongDoubleBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor) -> Tensor:
        return output.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return WrongBackward.apply(grad_output)


def break_all_but_reference(monkeypatch: pytest.MonkeyPatch, op: str, broken: Callable[[Tensor], Tensor]) -> None:
    """Break the op on every backend except the reference."""
    correct = getattr(ops, op)

    def call(*args: Any, **kwargs: Any) -> Any:
        result = correct(*args, **kwargs)
        if backends.requested() == "reference":
            return result
        return (broken(result[0]), *result[1:]) if isinstance(result, tuple) else broken(result)

    monkeypatch.setattr(ops, op, call)


def test_every_op_has_cases() -> None:
    assert sorted(self_check.CASES) == OPS
    assert all(self_check.CASES.values())
    assert set(self_check.LAWS) == backends._random_ops


def test_every_op_passes_here() -> None:
    before = torch.get_rng_state()
    report = self_check.check()
    text = str(report)
    assert report.ok, text
    assert torch.equal(torch.get_rng_state(), before)
    lines = text.splitlines()
    for op in OPS:
        (line,) = (line for line in lines if line.split()[:2] == [op, "ok"])
        assert re.search(r"\(eager \S+, bound \S+\)", line)
        checked = {(f.device, f.backend) for f in report.findings if f.op == op}
        # Triton's interpreter on the CPU is checked only if it is requested.
        expected = {
            (device, name)
            for device in backends.devices()
            for name in backends.candidates(op, device, torch.float32)
            if (device, name) != ("cpu", "triton")
        }
        assert checked == expected
    assert lines[-1].startswith(f"{len(OPS)} of {len(OPS)} ops ok in ")
    # About two seconds on an idle 2-core CPU.
    assert report.time_s < 120


@needs_extension
@pytest.mark.parametrize("op", OPS)
def test_result_off_by_one_percent_is_found(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    break_all_but_reference(monkeypatch, op, lambda output: output * 1.01)
    report = self_check.check([op])
    assert report.failed == [op]
    assert not report.ok
    assert f"{op}  FAILED  cpu: " in str(report)


@needs_extension
@pytest.mark.parametrize("op", OPS)
def test_single_wrong_value_is_found(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(output: Tensor) -> Tensor:
        one = torch.zeros_like(output)
        one.view(-1)[-1] = 1e-3 * output.detach().abs().max()
        return output + one

    break_all_but_reference(monkeypatch, op, broken)
    assert self_check.check([op]).failed == [op]


@needs_extension
@pytest.mark.parametrize("op", DIFFERENTIABLE)
@pytest.mark.parametrize(("function", "what"), [(WrongBackward, "gradient"), (WrongDoubleBackward, "second gradient")])
def test_gradients_off_by_one_percent_are_found(
    function: Any, what: str, op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_all_but_reference(monkeypatch, op, function.apply)
    report = self_check.check([op])
    assert report.failed == [op]
    assert f"{what} wrt " in str(report)


@needs_extension
@pytest.mark.parametrize(
    ("module", "kernel", "found"),
    [
        ("batch_norm_act", "forward", "batch_norm_act"),
        ("batch_norm_act", "backward", "batch_norm_act"),
        ("batch_norm_act", "double_backward", "batch_norm_act"),
        ("batch_norm_act", "double_backward", "instance_norm_act"),
        ("batch_norm_act", "double_backward", "conv2d_bn_act"),
        ("minibatch_discrimination", "forward", "minibatch_discrimination"),
        ("minibatch_discrimination", "backward", "minibatch_discrimination"),
        ("minibatch_discrimination", "double_backward", "minibatch_discrimination"),
        ("sample_norm_penalty", "forward", "sample_norm_penalty"),
        ("sample_norm_penalty", "backward", "sample_norm_penalty"),
        ("spectral_norm", "forward", "spectral_norm"),
        ("spectral_norm", "backward", "spectral_norm"),
        *(("adversarial_loss", "backward", op) for op in sys.modules["gan_fast.ops.adversarial_loss"].OPS),
    ],
)
def test_broken_kernel_is_found(module: str, kernel: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels: SimpleNamespace = sys.modules[f"gan_fast.ops.{module}"]._native
    correct = getattr(kernels, kernel)

    def broken(*args: Any) -> Any:
        result = correct(*args)
        return result * 1.01 if isinstance(result, Tensor) else (result[0] * 1.01, *result[1:])

    monkeypatch.setattr(kernels, kernel, broken)
    assert self_check.check([found]).failed == [found]


@needs_extension
@pytest.mark.parametrize("op", sys.modules["gan_fast.ops.adversarial_loss"].OPS)
@pytest.mark.parametrize("output", [0, 2], ids=["loss", "unit gradient"])
def test_broken_loss_kernel_is_found(output: int, op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["gan_fast.ops.adversarial_loss"]
    correct = module._forward_on_cpu

    def broken(*args: Any) -> Any:
        results = list(correct(*args))
        results[output] = None if results[output] is None else results[output] * 1.01
        return tuple(results)

    monkeypatch.setattr(module, "_forward_on_cpu", broken)
    assert self_check.check([op]).failed == [op]


@needs_extension
@pytest.mark.parametrize(
    ("kernel", "target", "found"),
    [
        ("_im2col", None, ["conv2d", "conv2d_act", "conv2d_bn_act", "conv_transpose2d"]),
        ("_col2im", 1, ["conv2d", "conv_transpose2d", "conv_transpose2d_bn_act"]),
        pytest.param(
            *("_sub_pixel_conv", 2, ["conv_transpose2d", "conv_transpose2d_act", "conv_transpose2d_bn_act"]),
            marks=pytest.mark.skipif(not conv_kernels._WIDE_REGISTERS, reason="needs AVX-512"),
        ),
    ],
)
def test_broken_convolution_kernel_is_found(
    kernel: str, target: int | None, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    correct = getattr(conv_kernels, kernel)

    def broken(*args: Any) -> Any:
        result = correct(*args)
        if target is None:
            return result * 1.01
        args[target].mul_(1.01)
        return None

    monkeypatch.setattr(conv_kernels, kernel, broken)
    assert self_check.check(found).failed == found


def test_wrongly_folded_norm_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["gan_fast.ops.conv_bn_act"]
    correct = module.fold

    def broken(*args: Any) -> Any:
        folded = correct(*args)
        return folded and (folded[0] * 1.01, folded[1])

    monkeypatch.setattr(module, "fold", broken)
    report = self_check.check(["conv2d_bn_act", "conv_transpose2d_bn_act"])
    assert report.failed == ["conv2d_bn_act", "conv_transpose2d_bn_act"]
    assert "output without autograd: error" in str(report)


def test_nan_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    break_all_but_reference(monkeypatch, "leaky_relu", lambda output: output / 0 * 0)
    assert "FAILED  cpu: output" in str(self_check.check(["leaky_relu"]))


def test_broken_float32_reference_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large error of eager PyTorch must not widen the bound so far that it hides an equally wrong kernel."""
    correct = ops.linear

    def broken(input: Tensor, *others: Tensor) -> Tensor:
        return correct(input, *others) * (1.01 if input.dtype == torch.float32 else 1)

    monkeypatch.setattr(ops, "linear", lambda **arguments: broken(*arguments.values()))
    report = self_check.check(["linear"])
    assert {f.backend for f in report.findings if not f.ok} == {"cpu", "reference"}


def test_op_that_raises_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(output: Tensor) -> Tensor:
        raise RuntimeError("no such\nkernel image")

    break_all_but_reference(monkeypatch, "leaky_relu", broken)
    report = self_check.check(["leaky_relu", "linear"])
    assert report.failed == ["leaky_relu"]
    first, second = str(report).splitlines()[3:5]
    assert first.split(maxsplit=2) == ["leaky_relu", "FAILED", "cpu: RuntimeError: no such kernel image"]
    assert second.split()[:2] == ["linear", "ok"]
    assert str(report).splitlines()[-1].startswith("1 of 2 ops ok")


def test_wrong_distributions_and_ignored_seeds_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = sys.modules["gan_fast.ops.noise"]
    with monkeypatch.context() as patch:
        # One number per element instead of one per sample.
        patch.setattr(noise, "_uniform_per_sample", lambda like, generator: torch.rand(like.shape, generator=generator))
        report = self_check.check(["interpolate_samples", "perturb"])
    assert report.failed == ["interpolate_samples", "perturb"]
    assert "the random numbers have the wrong distribution" in str(report)
    for name in self_check.LAWS:
        correct = getattr(ops, name)
        with monkeypatch.context() as patch:
            patch.setattr(ops, name, lambda *, generator, correct=correct, **arguments: correct(**arguments))
            unseeded = self_check.check([name])
        assert unseeded.failed == [name], "a seed does not reproduce its numbers"
        with monkeypatch.context() as patch:
            patch.setattr(
                *(ops, name),
                lambda *, generator, correct=correct, **a: correct(**a, generator=torch.Generator().manual_seed(3)),
            )
            always_same = self_check.check([name])
        assert "two seeds give the same random numbers" in str(always_same)


def test_only_the_requested_backend_is_checked() -> None:
    names = ["conv1d", "hinge_d_loss", "interpolate_samples"]
    with gan_fast.use_backend("reference"):
        report = self_check.check(names)
    assert report.ok
    assert {f.backend for f in report.findings} == {"reference"}
    assert "self-check of backend reference: " in str(report)
    assert "reference on cpu" in str(report)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_report_without_checked_ops_is_not_ok() -> None:
    with gan_fast.use_backend("cuda"):
        report = self_check.check(["conv2d", "linear"])
    assert not report.ok
    assert "linear  not checked: backend cuda cannot run it here" in str(report)
    assert "0 of 0 ops ok" in str(report)


@needs_triton
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_triton_is_checked_if_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ops that are fast in the interpreter, and one without a Triton kernel."""
    names = ["hinge_g_loss", "interpolate_samples", "spectral_norm"]
    with gan_fast.use_backend("triton"):
        report = self_check.check(names)
        assert report.ok, str(report)
        assert {f.op for f in report.findings} == set(names[:-1])
        noise = backends.triton_module("interpolate_samples")
        correct = noise.interpolate
        monkeypatch.setattr(noise, "interpolate", lambda *args: (correct(*args)[0] * 1.01, correct(*args)[1]))
        assert self_check.check(["interpolate_samples"]).failed == ["interpolate_samples"]


def test_reference_is_checked_without_the_extension() -> None:
    code = """
import sys
sys.modules["gan_fast._C"] = None
from gan_fast import self_check
report = self_check.check()
assert report.ok, str(report)
print(report)
"""
    text = run(code).stdout
    (line,) = (line for line in text.splitlines() if "batch_norm_act " in line and "instance" not in line)
    assert line.split()[:4] == ["batch_norm_act", "ok", "reference", "on"]


@pytest.mark.parametrize("op", OPS)
def test_no_case_has_a_value_at_an_activation_kink(op: str) -> None:
    """At a kink two correct results differ, so small changes of the input must not move any value across one."""
    generator = torch.Generator().manual_seed(0)
    if op in self_check.LAWS:
        return
    for case in self_check.CASES[op]:
        results = []
        for step in (0.0, 1e-6):
            arguments = self_check._converted(case(self_check.Draw()), torch.float64, "cpu")
            for value in arguments.values():
                if isinstance(value, Tensor):
                    noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
                    value.data += step * noise * value.abs().mean()
            with gan_fast.use_backend("reference"):
                results.append(self_check._results(getattr(ops, op), arguments))
        for name, here in results[0].items():
            moved = (here - results[1][name]).abs().max() / (here.abs().max() + 1e-300)
            assert moved < 3e-4, name


def test_exit_code_of_info_reports_a_failed_check(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(backends, "op_names", lambda: ["leaky_relu", "linear"])
    cli.main(["info"])
    out = capsys.readouterr().out
    assert out.startswith(f"gan_fast {gan_fast.__version__}, Python ")
    assert "2 of 2 ops ok" in out
    break_all_but_reference(monkeypatch, "linear", lambda output: output * 1.01)
    with pytest.raises(SystemExit) as raised:
        cli.main(["info"])
    assert raised.value.code == 1
    assert "linear      FAILED" in capsys.readouterr().out
    cli.main(["info", "--no-check"])
    out = capsys.readouterr().out
    assert "linear" in out
    assert "self-check" not in out
