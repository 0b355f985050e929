"""CUDA kernels of batch_norm_act, emulated on a CPU and on a GPU, with the samples and bounds of the CPU's kernels."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
from typing import Any

import pytest
import torch
from cuda_emulated import Kernels, Shape, on_cuda, on_device
from derivatives import in_double, second_order_and_statistics, strides
from pairs import pairwise
from samples import ACTIVATIONS, DTYPES, NORM_SAMPLES, NormSample
from tolerances import assert_as_exact, few_numbers_factor
from torch import Tensor

import gan_fast
from gan_fast.ops import batch_norm_act
from gan_fast.ops.batch_norm_act import reference

# Accesses of 16 bytes need multiples of four or eight channels or pixels, which the shared samples do not have.
WIDE_SAMPLES = [
    *(
        NormSample((3, 16, 4, 4), training, activation, layout=layout)
        for activation in ACTIVATIONS
        for training in (True, False)
        for layout in ("contiguous", "channels_last")
    ),
    *(NormSample((3, 16, 4, 4), layout=layout) for layout in ("offset", "gaps", "sliced_channels_last")),
    NormSample((5, 72, 9, 7), layout="channels_last"),
    NormSample((2, 200, 5, 5), layout="channels_last", activation="tanh"),
    NormSample((7, 3, 8, 24), mean=100.0, std=1.0),
    NormSample((300, 64), affine=False),
    NormSample((3, 16, 4, 4), negative_slope=-0.5, running=False, layout="channels_last"),
]
SMALL = [s for s in NORM_SAMPLES if s.small] + WIDE_SAMPLES


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The functions of torch.ops.gan_fast.batch_norm_act_*: emulated, and on a GPU."""
    if request.param == "cuda":
        return on_cuda("batch_norm_act", ("forward", "normalize", "backward", "double_backward"))
    kernels = Kernels(request.getfixturevalue("emulated"))
    monkeypatch.setattr(sys.modules["gan_fast.ops.batch_norm_act"], "_native", kernels)
    return kernels


def skip_without_emulator(kernels: Any) -> None:
    if not isinstance(kernels, Kernels):
        pytest.skip("needs the emulator")


def compare(sample: NormSample, dtype: torch.dtype, kernels: Any) -> None:
    arguments = on_device(sample.make(dtype), kernels)
    with gan_fast.use_backend(kernels.device.type):
        actual = second_order_and_statistics(batch_norm_act, arguments, dtype)
    eager = second_order_and_statistics(reference, arguments, dtype)
    exact_arguments = {k: v.contiguous() if isinstance(v, Tensor) else v for k, v in in_double(arguments).items()}
    exact = second_order_and_statistics(reference, exact_arguments, dtype)
    for name, value in eager.items():
        if name not in actual:
            assert not value.count_nonzero(), f"{name} is missing"
            continue
        # For values that repeat along space there are few means, and they cancel. On a GPU eager computes differently.
        few = kernels.device.type == "cuda" or (sample.layout == "expanded" and sample.activation == "tanh")
        assert_as_exact(actual[name], value, exact[name], name, few_numbers_factor(value) if few else 2.0)
        if not name.startswith("second"):
            assert strides(actual[name]) == strides(value), name


@pytest.mark.parametrize("sample", SMALL, ids=str)
def test_equals_aten_to_second_order(sample: NormSample, kernels: Any) -> None:
    compare(sample, torch.float32, kernels)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("sample", WIDE_SAMPLES, ids=str)
def test_other_dtypes_equal_eager(sample: NormSample, dtype: torch.dtype, kernels: Any) -> None:
    compare(sample, dtype, kernels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sample", [s for s in NORM_SAMPLES if not s.small], ids=str)
def test_workloads_equal_eager(sample: NormSample, dtype: torch.dtype, kernels: Any) -> None:
    """They have several blocks, chunks and batches of loads."""
    if isinstance(kernels, Kernels):
        kernels.multiprocessors = 4
    compare(sample, dtype, kernels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(9, 16, 8, 8), (6, 13, 7, 7)])
def test_results_do_not_depend_on_the_order_of_threads(
    shape: tuple[int, ...], layout: str, dtype: torch.dtype, kernels: Any
) -> None:
    skip_without_emulator(kernels)
    arguments = NormSample(shape, activation="sigmoid", layout=layout).make(dtype)
    results = []
    for kernels.backwards in (False, True):
        results.append(second_order_and_statistics(batch_norm_act, arguments, dtype))
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


@pytest.mark.parametrize(
    *pairwise(
        activation=ACTIVATIONS,
        layout=["contiguous", "channels_last"],
        value=[float("inf"), float("-inf"), float("nan")],
    )
)
def test_infinities_and_nan_propagate_as_in_aten(activation: str, layout: str, value: float, kernels: Any) -> None:
    for training in (True, False):
        for shape in ((3, 4, 3, 3), (3, 8, 2, 4)):
            arguments = on_device(NormSample(shape, training, activation, layout=layout).make(torch.float32), kernels)
            for pixel in ((1, 2, 0, 1), (2, 2, 1, 1)):
                arguments["input"].data[pixel] = value
            with gan_fast.use_backend(kernels.device.type):
                actual = second_order_and_statistics(batch_norm_act, arguments, torch.float32)
            for name, expected in second_order_and_statistics(reference, arguments, torch.float32).items():
                if not name.startswith("second"):
                    torch.testing.assert_close(actual[name], expected, rtol=1e-4, atol=1e-4, equal_nan=True, msg=name)


def test_normalize_repeats_the_forward_pass_to_the_last_bit(kernels: Any) -> None:
    for dtype in DTYPES:
        for layout in ("contiguous", "channels_last"):
            sample = NormSample((3, 8, 4, 5), activation="tanh", layout=layout)
            a = on_device(sample.make(dtype, requires_grad=False), kernels)
            output, mean, invstd = kernels.forward(**a)
            options = {k: a[k] for k in ("input", "weight", "bias", "activation", "negative_slope")}
            assert torch.equal(kernels.normalize(mean=mean, invstd=invstd, **options), output)


def test_unneeded_results_are_none_and_do_not_change_the_others(kernels: Any) -> None:
    a = on_device(NormSample((3, 8, 4, 5), activation="tanh").make(torch.float32, requires_grad=False), kernels)
    x, weight, bias = a["input"], a["weight"], a["bias"]
    _, mean, invstd = kernels.forward(**a)
    given = (x, mean, invstd, weight, bias)
    for training in (True, False):
        rest: tuple[Any, ...] = (training, "tanh", 0.2)
        full = kernels.backward(x, *given, *rest, True, True)
        assert kernels.backward(x, *given, *rest, False, True)[0] is None
        torch.testing.assert_close(kernels.backward(x, *given, *rest, False, True)[1:], full[1:], rtol=0, atol=0)
        assert torch.equal(kernels.backward(x, *given, *rest, True, False)[0], full[0])
        second = kernels.double_backward(x, weight, bias, x, *given, *rest, True, True)
        for wanted in ((True, False), (False, True), (False, False)):
            some = kernels.double_backward(x, weight, bias, x, *given, *rest, *wanted)
            for actual, expected, is_wanted in zip(some, second, (*wanted, True, True)):
                assert actual is None if not is_wanted else torch.equal(actual, expected)


def test_strided_and_half_parameters(kernels: Any) -> None:
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        x = torch.randn(4, 8, 3, 8, dtype=dtype).to(kernels.device).contiguous(memory_format=torch.channels_last)
        vectors = [(torch.rand(8) + 0.5).to(kernels.device, dtype) for _ in range(4)]
        for training in (True, False):
            exact = [v.double() for v in vectors]
            strided = [torch.empty(16, dtype=dtype, device=kernels.device)[::2].copy_(v) for v in vectors]
            expected = reference(x.double(), *exact, training)
            with gan_fast.use_backend(kernels.device.type):
                actual = batch_norm_act(x, *strided, training)
            torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)
            for running, updated in zip(strided[:2], exact):
                torch.testing.assert_close(running.double(), updated, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ["leaky_relu", "tanh"])
@pytest.mark.parametrize("shape", [(2, 0, 16), (0, 3, 4), (2, 3, 0), (2, 0), (0, 8, 4, 4), (0, 0, 0)], ids=str)
def test_empty_tensors_leave_statistics_unchanged(
    shape: tuple[int, ...], activation: str, training: bool, kernels: Any
) -> None:
    a = on_device(NormSample(shape, training, activation).make(torch.float32, requires_grad=False), kernels)
    x, weight, bias, channels = a["input"], a["weight"], a["bias"], shape[1]
    before = [a[name].clone() for name in ("running_mean", "running_var")]
    output, mean, invstd = kernels.forward(**a)
    assert output.shape == x.shape
    assert [a["running_mean"].tolist(), a["running_var"].tolist()] == [t.tolist() for t in before]
    expected = (
        (torch.zeros(channels), torch.zeros(channels)) if training else (before[0], (before[1] + a["eps"]).rsqrt())
    )
    torch.testing.assert_close((mean.cpu(), invstd.cpu()), tuple(t.cpu() for t in expected))
    assert kernels.normalize(x, mean, invstd, weight, bias, activation, 0.2).shape == x.shape
    given = (x, mean, invstd, weight, bias, training, activation, 0.2)
    grads = kernels.backward(x, *given, True, True)
    second = kernels.double_backward(x, weight, bias, x, *given, True, True)
    assert [tuple(t.shape) for t in (*grads, *second)] == [shape, (channels,), (channels,), shape, shape] + [
        (channels,)
    ] * 2
    assert not any(bool(t.count_nonzero()) for t in (*grads, *second))


@pytest.mark.parametrize(("blocks", "threads"), [(0, 32), (2**31, 32), (1, 0), (1, 1025)])
def test_emulator_rejects_the_launches_that_cuda_rejects(blocks: int, threads: int, emulated: ctypes.CDLL) -> None:
    launch = f"import ctypes; ctypes.CDLL({emulated._name!r}).launch_empty_kernel(ctypes.c_int64({{}}), {{}})"
    assert subprocess.run([sys.executable, "-c", launch.format(1, 1024)]).returncode == 0
    done = subprocess.run([sys.executable, "-c", launch.format(blocks, threads)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGABRT
    assert f"a launch of {blocks} blocks of {threads} threads" in done.stderr


VISITS = [
    (n, c, s, channels_last, width)
    for n, c, s in ((1, 1, 1), (3, 5, 7), (300, 8, 1), (2, 70, 9), (5, 16, 64), (1, 600, 2))
    for channels_last in (False, True)
    for width in (1, 4, 8)
    if (c if channels_last else s) % width == 0
]


@pytest.mark.parametrize(("n", "c", "s", "channels_last", "width"), VISITS)
@pytest.mark.parametrize("blocks", [1, 7, 528])
def test_every_value_is_visited_once(
    n: int, c: int, s: int, channels_last: bool, blocks: int, width: int, emulated: ctypes.CDLL
) -> None:
    counts = torch.zeros(n * c * s, dtype=torch.int32)
    shape = Shape(n, c, s, channels_last)
    emulated.visits(ctypes.byref(shape), width, ctypes.c_int64(blocks), ctypes.c_void_p(counts.data_ptr()))
    assert bool((counts == 1).all())
