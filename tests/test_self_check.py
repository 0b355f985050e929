"""The check that users run on their machine: all is well here, and whatever is broken on purpose is found."""

from __future__ import annotations

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
# Its points have no gradient.
DIFFERENTIABLE = [op for op in OPS if op != "perturb"]
needs_native = pytest.mark.skipif(not extension.available(), reason="needs the native module")


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


def mend_reference_alone(monkeypatch: pytest.MonkeyPatch, op: str, broken: Callable[[Tensor], Tensor]) -> None:
    """Break the op on every backend but the reference."""
    whole = getattr(ops, op)

    def call(*args: Any, **kwargs: Any) -> Any:
        result = whole(*args, **kwargs)
        if backends.requested() == "reference":
            return result
        return (broken(result[0]), *result[1:]) if isinstance(result, tuple) else broken(result)

    monkeypatch.setattr(ops, op, call)


def test_every_op_has_cases() -> None:
    assert sorted(self_check.CASES) == OPS
    assert all(self_check.CASES.values())
    assert set(self_check.LAWS) == backends._random_ops


def test_all_is_well_here() -> None:
    before = torch.get_rng_state()
    report = self_check.check()
    text = str(report)
    assert report.ok, text
    assert torch.equal(torch.get_rng_state(), before)
    lines = text.splitlines()
    for op in OPS:
        (line,) = (line for line in lines if line.split()[:2] == [op, "ok"])
        assert "(eager " in line
        checked = {(f.device, f.backend) for f in report.findings if f.op == op}
        # An interpreter that serves nobody is not among what can serve.
        want = {
            (device, name)
            for device in backends.devices()
            for name in backends.candidates(op, device, torch.float32)
            if (device, name) != ("cpu", "triton")
        }
        assert checked == want
    assert lines[-1].startswith(f"{len(OPS)} of {len(OPS)} ops ok, in ")
    # About two seconds on a 2-core CPU that has nothing else to do.
    assert report.time_s < 120


@needs_native
@pytest.mark.parametrize("op", OPS)
def test_a_result_off_by_a_hundredth_is_found(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mend_reference_alone(monkeypatch, op, lambda output: output * 1.01)
    report = self_check.check([op])
    assert report.failed == [op]
    assert not report.ok
    assert f"{op}  FAILED  cpu: " in str(report)


@needs_native
@pytest.mark.parametrize("op", OPS)
def test_a_single_wrong_value_is_found(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(output: Tensor) -> Tensor:
        one = torch.zeros_like(output)
        one.view(-1)[-1] = 1e-3 * output.detach().abs().max()
        return output + one

    mend_reference_alone(monkeypatch, op, broken)
    assert self_check.check([op]).failed == [op]


@needs_native
@pytest.mark.parametrize("op", DIFFERENTIABLE)
@pytest.mark.parametrize(("function", "what"), [(WrongBackward, "gradient"), (WrongDoubleBackward, "second gradient")])
def test_gradients_off_by_a_hundredth_are_found(
    function: Any, what: str, op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mend_reference_alone(monkeypatch, op, function.apply)
    report = self_check.check([op])
    assert report.failed == [op]
    assert f"{what} by " in str(report)


@needs_native
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
def test_a_broken_native_kernel_is_found(module: str, kernel: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    native: SimpleNamespace = sys.modules[f"gan_fast.ops.{module}"]._native
    whole = getattr(native, kernel)

    def broken(*args: Any) -> Any:
        result = whole(*args)
        return result * 1.01 if isinstance(result, Tensor) else (result[0] * 1.01, *result[1:])

    monkeypatch.setattr(native, kernel, broken)
    assert self_check.check([found]).failed == [found]


@needs_native
@pytest.mark.parametrize("op", sys.modules["gan_fast.ops.adversarial_loss"].OPS)
@pytest.mark.parametrize("output", [0, 2], ids=["loss", "unit gradient"])
def test_a_broken_loss_kernel_is_found(output: int, op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["gan_fast.ops.adversarial_loss"]
    whole = module._forward_on_cpu

    def broken(*args: Any) -> Any:
        results = list(whole(*args))
        results[output] = None if results[output] is None else results[output] * 1.01
        return tuple(results)

    monkeypatch.setattr(module, "_forward_on_cpu", broken)
    assert self_check.check([op]).failed == [op]


@needs_native
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
def test_a_broken_kernel_of_a_convolution_is_found(
    kernel: str, target: int | None, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = getattr(conv_kernels, kernel)

    def broken(*args: Any) -> Any:
        result = whole(*args)
        if target is None:
            return result * 1.01
        args[target].mul_(1.01)
        return None

    monkeypatch.setattr(conv_kernels, kernel, broken)
    assert self_check.check(found).failed == found


def test_a_norm_folded_wrongly_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["gan_fast.ops.conv_bn_act"]
    whole = module.fold

    def broken(*args: Any) -> Any:
        folded = whole(*args)
        return folded and (folded[0] * 1.01, folded[1])

    monkeypatch.setattr(module, "fold", broken)
    report = self_check.check(["conv2d_bn_act", "conv_transpose2d_bn_act"])
    assert report.failed == ["conv2d_bn_act", "conv_transpose2d_bn_act"]
    assert "output without gradient: error" in str(report)


def test_nan_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    mend_reference_alone(monkeypatch, "leaky_relu", lambda output: output / 0 * 0)
    assert "FAILED  cpu: output" in str(self_check.check(["leaky_relu"]))


def test_a_reference_that_is_no_measure_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours could hide behind an eager that is off by much: nothing in float32 is."""
    whole = ops.linear

    def broken(input: Tensor, *others: Tensor) -> Tensor:
        return whole(input, *others) * (1.01 if input.dtype == torch.float32 else 1)

    monkeypatch.setattr(ops, "linear", lambda **arguments: broken(*arguments.values()))
    report = self_check.check(["linear"])
    assert {f.backend for f in report.findings if not f.ok} == {"cpu", "reference"}


def test_an_op_that_raises_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(output: Tensor) -> Tensor:
        raise RuntimeError("no such\nkernel image")

    mend_reference_alone(monkeypatch, "leaky_relu", broken)
    report = self_check.check(["leaky_relu", "linear"])
    assert report.failed == ["leaky_relu"]
    first, second = str(report).splitlines()[2:4]
    assert first.split(maxsplit=2) == ["leaky_relu", "FAILED", "cpu: RuntimeError: no such kernel image"]
    assert second.split()[:2] == ["linear", "ok"]
    assert str(report).splitlines()[-1].startswith("1 of 2 ops ok")


def test_numbers_by_another_law_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = sys.modules["gan_fast.ops.noise"]
    with monkeypatch.context() as patch:
        # One share an element, where it is one a sample.
        patch.setattr(noise, "_uniform_per_sample", lambda like, generator: torch.rand(like.shape, generator=generator))
        report = self_check.check(["interpolate_samples", "perturb"])
    assert report.failed == ["interpolate_samples", "perturb"]
    assert "numbers drawn by another law" in str(report)
    for name in self_check.LAWS:
        whole = getattr(ops, name)
        with monkeypatch.context() as patch:
            patch.setattr(ops, name, lambda *, generator, whole=whole, **arguments: whole(**arguments))
            unseeded = self_check.check([name])
        assert unseeded.failed == [name], "not the same numbers from a seed again"
        with monkeypatch.context() as patch:
            patch.setattr(
                *(ops, name),
                lambda *, generator, whole=whole, **a: whole(**a, generator=torch.Generator().manual_seed(3)),
            )
            deaf = self_check.check([name])
        assert "the same numbers drawn from two seeds" in str(deaf)


def test_what_is_asked_for_is_what_is_checked() -> None:
    names = ["conv1d", "hinge_d_loss", "interpolate_samples"]
    with gan_fast.use_backend("reference"):
        report = self_check.check(names)
    assert report.ok
    assert {f.backend for f in report.findings} == {"reference"}
    assert "backends: reference alone, as asked for" in str(report)
    assert "reference on cpu" in str(report)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_nothing_checked_is_not_well() -> None:
    with gan_fast.use_backend("cuda"):
        report = self_check.check(["conv2d", "linear"])
    assert not report.ok
    assert "linear  not checked: not served by backend cuda here" in str(report)
    assert "0 of 0 ops ok" in str(report)


@needs_triton
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_triton_is_checked_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ops that the interpreter is quick at, and one that Triton does not have."""
    names = ["hinge_g_loss", "interpolate_samples", "spectral_norm"]
    with gan_fast.use_backend("triton"):
        report = self_check.check(names)
        assert report.ok, str(report)
        assert {f.op for f in report.findings} == set(names[:-1])
        noise = backends.triton_module("interpolate_samples")
        whole = noise.interpolate
        monkeypatch.setattr(noise, "interpolate_samples", lambda *args: (whole(*args)[0] * 1.01, whole(*args)[1]))
        assert self_check.check(["interpolate_samples"]).failed == ["interpolate_samples"]


def test_without_a_build_the_reference_is_checked() -> None:
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
def test_no_case_lies_where_rounding_decides(op: str) -> None:
    """At the kink of a rectifier two right answers differ: inputs moved by some roundings keep to one side."""
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


def test_info_checks_and_its_exit_code_tells(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(backends, "names_of_ops", lambda: ["leaky_relu", "linear"])
    cli.main(["info"])
    out = capsys.readouterr().out
    assert out.startswith(f"gan_fast {gan_fast.__version__}, Python ")
    assert "2 of 2 ops ok" in out
    mend_reference_alone(monkeypatch, "linear", lambda output: output * 1.01)
    with pytest.raises(SystemExit) as raised:
        cli.main(["info"])
    assert raised.value.code == 1
    assert "linear      FAILED" in capsys.readouterr().out
    cli.main(["info", "--no-check"])
    out = capsys.readouterr().out
    assert "linear" in out
    assert "self-check" not in out
