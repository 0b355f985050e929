from __future__ import annotations

import importlib
import importlib.metadata
import logging
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from triton_device import needs_triton

import gan_fast
from gan_fast import backends, extension, self_check
from gan_fast.ops import batch_norm_act, minimax_d_loss, sample_norm_penalty

ROOT = Path(__file__).parent.parent


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


def reasons_on_cpu(info: str) -> dict[str, str]:
    """Return what runs each op on the CPU, and why."""
    reasons, reason = {}, None
    for line in info.partition("what runs each op, and why:\n")[2].splitlines():
        if not line.startswith(" " * 10):
            reason = line.partition("  cpu   ")[2]
        elif reason:
            reasons |= {op.strip(): reason for op in line.rstrip(",").split(",")}
    return reasons


def test_info_lists_the_kernel_of_each_op() -> None:
    text = gan_fast.info()
    reasons = reasons_on_cpu(text)
    assert set(reasons) == set(backends.op_names())
    for op in ("batch_norm_act", "minimax_d_loss", "minimax_g_loss", "sample_norm_penalty"):
        assert "cpu kernel: compiled extension" in reasons[op]
    assert text.count(reasons["minimax_d_loss"] + "\n") == 1
    assert extension.build_info()["compiler"] in text
    with gan_fast.use_backend("reference"):
        assert "reference (plain PyTorch): requested by name" in gan_fast.info()


def test_info_marks_the_ops_that_leave_small_tensors_to_aten(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(backends, "is_small", lambda *tensors: calls.append(tensors))
    expected = set()
    for op, cases in self_check.CASES.items():
        calls.clear()
        for case in cases:
            self_check._check_case(op, "cpu", ["cpu"], case(self_check.Draw()))
        expected |= {op} if calls else set()
    reasons = reasons_on_cpu(gan_fast.info())
    assert {op for op, reason in reasons.items() if f"up to {backends.SMALL} values" in reason} == expected


def test_info_reports_software_and_hardware(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = gan_fast.info()
    build = extension.build_info()
    assert f"Python {platform.python_version()}, {platform.platform()}" in text
    for threads, cpus, line in ((1, 1, "1 CPU thread on 1 CPU\n"), (2, 4, "2 CPU threads on 4 CPUs\n")):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            patch.setattr(os, "sched_getaffinity", lambda _, cpus=cpus: set(range(cpus)), raising=False)
            assert line in gan_fast.info()
    assert f"torch {torch.__version__}, " in text
    if torch.version.cuda is None:
        assert "built without CUDA; " in text
    if backends._triton_is_installed():
        assert f"; Triton {importlib.metadata.version('triton')}; " in text
    if build and build["instruction_set"] == build["best_instruction_set"]:
        assert f"CPU instruction set {build['best_instruction_set']} (the best of this CPU)" in text
    monkeypatch.setattr(backends, "_triton_is_installed", lambda: False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(extension, "build_info", lambda: {**build, "instruction_set": "avx1"})
    nvcc = tmp_path / "bin" / "nvcc"
    for script, want in (
        ("echo Cuda compilation tools, release 12.8, V12.8.61", "; nvcc 12.8\n"),
        ("echo no version", "; nvcc of an unknown version\n"),
        ("exit 3", "; nvcc does not run: "),
    ):
        nvcc.parent.mkdir(exist_ok=True)
        nvcc.write_text(f"#!/bin/sh\n{script}\n")
        nvcc.chmod(0o755)
        monkeypatch.setenv("CUDA_HOME", str(tmp_path))
        assert want in gan_fast.info()
    assert "Triton is not installed (install: pip install triton)" in gan_fast.info()
    if build:
        best = build["best_instruction_set"]
        assert f"avx1 (set by GAN_FAST_ISA; the best of this CPU is {best})" in gan_fast.info()


def test_invalid_backend_in_the_environment_raises_at_first_use() -> None:
    """Raising at import would give the command line's user a traceback."""
    code = """
import torch, gan_fast
x = torch.ones(3)
for call in (lambda _: gan_fast.info(), gan_fast.ops.minimax_g_loss, gan_fast.ops.leaky_relu):
    try:
        call(x)
    except ValueError as error:
        print(error)
with gan_fast.use_backend("cpu"):
    print(gan_fast.ops.minimax_g_loss(torch.zeros(3)).item())
"""
    message = "GAN_FAST_BACKEND: expected one of auto, reference, cpu, cuda, triton, got 'bogus'"
    *errors, value = run(code, GAN_FAST_BACKEND="bogus").stdout.splitlines()
    assert errors == [message] * 3
    assert float(value) == pytest.approx(0.6931472)
    program = subprocess.run(
        [sys.executable, "-m", "gan_fast", "info"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "GAN_FAST_BACKEND": "bogus"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (program.returncode, program.stdout, program.stderr) == (2, "", f"gan-fast: {message}\n")


def test_use_backend_nests_and_restores_the_previous_request() -> None:
    with gan_fast.use_backend("reference"):
        with gan_fast.use_backend("cpu"):
            assert backends.uses_kernel("batch_norm_act", "cpu")
        assert not backends.uses_kernel("batch_norm_act", "cpu")
    with pytest.raises(RuntimeError, match="boom"), gan_fast.use_backend("reference"):
        raise RuntimeError("boom")
    assert backends.uses_kernel("batch_norm_act", "cpu")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("fast", ValueError, "use_backend: expected one of auto, reference, cpu, cuda, triton, got 'fast'"),
        (
            "cuda",
            RuntimeError,
            "batch_norm_act: expected input on a cuda device for backend cuda, got cpu",
        ),
        ("triton", RuntimeError, "batch_norm_act: expected backend triton to be available, got: no Triton for"),
    ],
)
def test_unavailable_backend_raises(
    name: str, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(error) as caught, gan_fast.use_backend(name):
        batch_norm_act(torch.ones(2, 3), None, None, training=True)
    assert str(caught.value).startswith(message)


def test_ops_call_their_kernel_and_not_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise every comparison with the reference would compare it with itself."""
    from gan_fast.ops import batch_norm_act as module_function  # noqa: F401

    module = sys.modules["gan_fast.ops.batch_norm_act"]
    losses = sys.modules["gan_fast.ops.adversarial_loss"]
    norms = sys.modules["gan_fast.ops.sample_norm_penalty"]
    for target in (module, losses, norms):
        monkeypatch.setattr(target, "reference", lambda *_: pytest.fail("the reference was called"))
    batch_norm_act(torch.ones(2, 3), None, None, training=True)
    minimax_d_loss(torch.ones(2), torch.ones(3))
    sample_norm_penalty(torch.ones(2, 3))


def test_without_the_extension_ops_use_the_reference_and_log_one_line() -> None:
    code = """
import logging, sys
logging.basicConfig(level=logging.WARNING, format="%(message)s")
sys.modules["gan_fast._C"] = None
import torch, gan_fast
from gan_fast.ops import batch_norm_act, minimax_d_loss
x = torch.randn(4, 3, requires_grad=True)
for _ in range(3):
    minimax_d_loss(batch_norm_act(x, None, None, training=True), x).backward()
print(gan_fast.info())
try:
    with gan_fast.use_backend("cpu"):
        minimax_d_loss(x, x)
except RuntimeError as error:
    print("error:", error)
"""
    result = run(code)
    assert "reference (plain PyTorch): the compiled extension is not built (build: pip install" in result.stdout
    assert "error: minimax_d_loss: expected backend cpu to be available, got: the compiled extension is not built" in (
        result.stdout
    )
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert "the compiled extension is not available, using the reference (plain PyTorch)" in result.stderr


def test_device_without_kernel_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    x = torch.ones(2, 3, device="meta")
    backends._default_backends.pop(("batch_norm_act", "meta", torch.float32), None)
    with caplog.at_level(logging.WARNING, "gan_fast"):
        for _ in range(3):
            assert batch_norm_act(x, None, None, training=True).shape == (2, 3)
    assert [r.getMessage() for r in caplog.records] == [
        "batch_norm_act on meta: using the reference (plain PyTorch): no kernel for device meta"
    ]


@needs_triton
@pytest.mark.parametrize(
    ("file", "function", "call"),
    [
        ("batch_norm_act", "forward", lambda: batch_norm_act(torch.ones(2, 3), None, None, training=True)),
        ("adversarial_loss", "forward", lambda: gan_fast.ops.minimax_g_loss(torch.ones(3))),
        (
            "minibatch_discrimination",
            "forward",
            lambda: gan_fast.ops.minibatch_discrimination(torch.ones(2, 3), torch.ones(3, 2, 2)),
        ),
        ("leaky_relu", "forward", lambda: gan_fast.ops.leaky_relu(torch.ones(3))),
        ("sample_norm_penalty", "forward", lambda: gan_fast.ops.sample_norm_penalty(torch.ones(3, 2))),
        ("noise", "interpolate", lambda: gan_fast.ops.interpolate_samples(torch.ones(3, 2), torch.ones(3, 2))),
        ("noise", "perturb", lambda: gan_fast.ops.perturb(torch.ones(3, 2))),
        ("noise", "add_noise", lambda: gan_fast.ops.add_noise(torch.ones(3, 2), 0.1)),
        ("conv", "convolve", lambda: gan_fast.ops.conv2d(torch.ones(1, 2, 4, 4), torch.ones(2, 2, 3, 3))),
    ],
)
def test_triton_runs_only_when_requested_on_a_cpu(
    file: str, function: str, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise InterruptedError("Triton was called")

    monkeypatch.setattr(importlib.import_module(f"gan_fast.triton_kernels.{file}"), function, interrupt)
    call()
    with gan_fast.use_backend("triton"), pytest.raises(InterruptedError, match="Triton was called"):
        call()


def test_compiled_cuda_kernels_are_preferred_to_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice is made for each op, since a build may have only some CUDA kernels, and holds for float64 too."""
    monkeypatch.setattr(extension, "available", lambda: True)
    monkeypatch.setattr(extension, "has_kernel", lambda op, device: op.startswith("batch_norm_act"))
    monkeypatch.setattr(backends, "_by_triton", set())
    monkeypatch.setattr(backends, "_default_backends", {})
    assert backends.dispatch_to_triton("batch_norm_act_forward", "batch_norm_act", "forward") is None
    for dtype in (torch.float32, torch.float64):
        assert backends._default_backend("batch_norm_act", "cuda", dtype) == "cuda"
        with gan_fast.use_backend("cuda"):
            assert backends.uses_kernel("batch_norm_act", "cuda", dtype)
    with (
        gan_fast.use_backend("cuda"),
        pytest.raises(RuntimeError, match="minimax_g_loss: expected backend cuda to be available, got: no kernel for"),
    ):
        backends.uses_kernel("minimax_g_loss", "cuda")


@needs_triton
def test_triton_is_excluded_and_logged_once_if_it_cannot_launch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a C compiler, for example: "auto" excludes Triton for every op, and requesting it raises."""
    from gan_fast.triton_kernels import launch

    launch.launch_empty_kernel()
    trials: list[int] = []

    def fail() -> None:
        trials.append(1)
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nA second line.")

    monkeypatch.setattr(launch, "launch_empty_kernel", fail)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(backends, "_launch_error", None)
    monkeypatch.setattr(backends, "_default_backends", {})
    caplog.set_level(logging.WARNING, logger="gan_fast")
    # During a capture nothing may be launched, and nothing is remembered.
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert backends._triton_unavailable("conv2d", "cuda", torch.float32) is None
    assert not trials
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    reason = (
        "Triton cannot launch a kernel: RuntimeError: Failed to find C compiler. "
        "Please specify via CC environment variable."
    )
    for op in sorted(backends._triton_files):
        assert "triton" not in backends.candidates(op, "cuda", torch.float32)
        assert backends._default_backend(op, "cuda", torch.float32) != "triton"
        with gan_fast.use_backend("triton"), pytest.raises(RuntimeError) as caught:
            backends.uses_kernel(op, "cuda")
        assert str(caught.value) == f"{op}: expected backend triton to be available, got: {reason}"
    assert len(trials) == 1
    messages = [r.getMessage() for r in caplog.records if "Triton" in r.getMessage()]
    assert messages == [f"not using Triton kernels: {reason}"]


@pytest.mark.skipif(not extension.available(), reason="needs the compiled extension")
def test_every_instruction_set_gives_the_same_bits() -> None:
    code = """
import hashlib, torch
from gan_fast import extension
from gan_fast.ops import batch_norm_act, sample_norm_penalty
from gan_fast.ops.adversarial_loss import d_loss_and_means
torch.manual_seed(0)
digest = hashlib.sha256()
for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
    for activation in ("leaky_relu", "relu", "tanh", "sigmoid"):
        for format in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(5, 19, 9, 11, dtype=torch.float64).to(dtype).contiguous(memory_format=format)
            x.requires_grad_()
            y = batch_norm_act(x, None, None, training=True, activation=activation, negative_slope=0.2)
            (g,) = torch.autograd.grad(y.float().square().sum(), x, create_graph=True)
            (h,) = torch.autograd.grad(g.float().square().sum(), x)
            penalty, norms = sample_norm_penalty(x, center=1.0)
            (by_norms,) = torch.autograd.grad(penalty, x)
            pairs = torch.ops.gan_fast.minibatch_discrimination_forward(x.flatten(2) / 99)
            (p,) = torch.autograd.grad(pairs.float().square().sum(), x, create_graph=True)
            (q,) = torch.autograd.grad(p.float().square().sum(), x)
            weight = x.detach().contiguous()
            normalized, sigma = torch.ops.gan_fast.spectral_norm_forward(
                weight, weight.new_ones(19), weight.new_ones(weight.numel() // 19), 1, 1e-12, 1
            )
            for t in (y, g, h, penalty, norms, by_norms, pairs, p, q, normalized, sigma):
                digest.update(t.detach().double().contiguous().numpy().tobytes())
    for kind in ("minimax", "hinge", "wasserstein", "least_squares"):
        for relativistic in ("none", "paired", "average"):
            logits = [t.detach().flatten().requires_grad_() for t in (x, y)]
            loss, means = d_loss_and_means(*logits, kind=kind, relativistic=relativistic, real_target=0.9)
            for t in (loss, means, *torch.autograd.grad(loss, logits)):
                digest.update(t.detach().double().numpy().tobytes())
print(extension.build_info()["instruction_set"], digest.hexdigest())
"""
    best = extension.build_info()["best_instruction_set"]
    levels = list(extension.INSTRUCTION_SETS)
    results = [run(code, GAN_FAST_ISA=level).stdout.split() for level in levels[: levels.index(best) + 1]]
    assert [r[0] for r in results] == levels[: len(results)]
    assert len({r[1] for r in results}) == 1


@pytest.mark.skipif(not extension.available(), reason="needs the compiled extension")
@pytest.mark.parametrize("level", extension.INSTRUCTION_SETS)
def test_sub_pixel_conv_is_correct_with_every_instruction_set(level: str) -> None:
    code = """
import torch, torch.nn.functional as F, gan_fast
torch.manual_seed(0)
x, weight = torch.randn(2, 64, 20, 33), torch.randn(64, 3, 4, 4)
for format in (torch.contiguous_format, torch.channels_last):
    x = x.contiguous(memory_format=format)
    output = torch.empty(2, 3, 40, 66)
    torch.ops.gan_fast.sub_pixel_conv(x, weight, output, None, (1, 1))
    print((output - F.conv_transpose2d(x.double(), weight.double(), None, 2, 1)).abs().max().item())
"""
    assert all(float(error) < 1e-4 for error in run(code, GAN_FAST_ISA=level).stdout.split())


def test_unknown_instruction_set_raises() -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run("import gan_fast", GAN_FAST_ISA="sse9")
    assert "GAN_FAST_ISA: expected one of baseline, avx2, avx512, got 'sse9'" in caught.value.stderr


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_auto_leaves_small_tensors_to_aten(
    transposed: bool, norm: bool, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The results and running statistics are those of the kernels."""
    kind = f"Conv{'Transpose' if transposed else ''}{'BN' if norm else ''}Act2d"
    x = torch.randn(2, 3, 6, 6)
    results = []
    for small, backend in ((8192, "auto"), (-1, "auto"), (8192, "cpu")):
        torch.manual_seed(0)
        block = getattr(gan_fast.nn, kind)(3, 4, 3, activation="leaky_relu", negative_slope=0.2).train(training)
        monkeypatch.setattr(gan_fast.backends, "SMALL", small)
        with gan_fast.use_backend(backend):
            output = block(x)
        is_fused = type(output.grad_fn).__name__ in ("BatchNormActBackward", "ConvolutionBackward")
        assert is_fused == ((small, backend) != (8192, "auto"))
        results.append([output, *torch.autograd.grad(output.square().sum(), block.parameters()), *block.buffers()])
    for other in results[1:]:
        for actual, expected in zip(other, results[0]):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not extension.available(), reason="needs the compiled extension")
def test_extension_defines_the_ops_of_the_sources() -> None:
    registered = {name.partition("::")[2] for name in torch._C._dispatch_get_all_op_names() if "gan_fast::" in name}
    assert registered == set(extension.OPS)


@pytest.mark.skipif(not extension.available(), reason="needs the compiled extension")
def test_outdated_extension_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "OPS", (*extension.OPS, "later_op"))
    module, error = extension._load()
    assert module is None
    assert error == "gan_fast._C is older than the Python sources: it lacks later_op; build it again"
