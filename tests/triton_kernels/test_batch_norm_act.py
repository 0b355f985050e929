"""Triton kernels of batch_norm_act, with the same samples and bounds as the compiled kernels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from derivatives import in_double, second_order_and_statistics
from samples import LAYOUTS, NormSample
from tolerances import assert_as_exact, few_numbers_factor
from torch import Tensor
from triton_device import DEVICE, interpreted

import gan_fast
from gan_fast.choices import ACTIVATIONS
from gan_fast.ops import batch_norm_act, instance_norm_act
from gan_fast.ops.batch_norm_act import reference

pytestmark = interpreted

# They cover every path of a kernel: each activation in both modes, each layout, partial tiles in rows, channels and
# space, several tiles and chunks, and missing optional arguments.
SAMPLES = [
    *(
        NormSample((3, 5, 4, 3), training, activation, layout=layout)
        for activation in ACTIVATIONS
        for training, layout in ((True, "contiguous"), (False, "channels_last"))
    ),
    *(NormSample((2, 6, 3, 5), layout=layout) for layout in LAYOUTS),
    NormSample((37, 70), layout="transposed"),
    NormSample((3, 3, 7), training=False),
    NormSample((2, 3, 2, 3, 2), layout="channels_last"),
    NormSample((2, 1, 50, 50)),
    NormSample((5, 66, 9, 7), layout="channels_last"),
    NormSample((1, 3, 3, 3)),
    NormSample((3, 4, 3, 3), affine=False),
    NormSample((3, 4, 3, 3), affine=False, training=False, activation="tanh"),
    NormSample((3, 4, 3, 3), running=False, negative_slope=-0.5),
    NormSample((3, 4, 3, 3), momentum=1.0, eps=1e-3),
    NormSample((6, 4, 30, 31), mean=100.0, std=1.0),
    NormSample((1, 70, 1, 2)),
]


def on_device(arguments: dict[str, Any]) -> dict[str, Any]:
    """Move the arguments to the device of the tests, with unchanged strides."""
    return {k: v.detach().to(DEVICE).requires_grad_(v.requires_grad) if isinstance(v, Tensor) else v
            for k, v in arguments.items()}  # fmt: skip


def compare(sample: NormSample, dtype: torch.dtype) -> None:
    from gan_fast.triton_kernels import batch_norm_act as kernels

    arguments = on_device(sample.make(dtype))
    strides = arguments["input"].stride()
    calls: list[str] = []
    with gan_fast.use_backend("triton"), pytest.MonkeyPatch.context() as patch:
        for name in ("forward", "backward", "double_backward"):
            function = getattr(kernels, name)
            patch.setattr(kernels, name, lambda *a, f=function, n=name: calls.append(n) or f(*a))
        actual = second_order_and_statistics(batch_norm_act, arguments, dtype)
    assert calls == ["forward", "backward", "double_backward"]
    assert arguments["input"].stride() == strides
    eager = second_order_and_statistics(reference, arguments, dtype)
    exact = second_order_and_statistics(reference, in_double(arguments), dtype)
    for name, value in eager.items():
        if name not in actual:
            assert not value.count_nonzero(), f"{name} is missing"
            continue
        # The interpreter truncates bfloat16 where a GPU rounds.
        factor = 4.0 if dtype == torch.bfloat16 else few_numbers_factor(value)
        assert_as_exact(actual[name], value, exact[name], name, factor)
        if not name.startswith("second"):
            assert actual[name].stride() == value.stride(), name


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_equals_aten_to_second_order(sample: NormSample) -> None:
    compare(sample, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", ["leaky_relu", "sigmoid"])
def test_half_types_equal_eager(activation: str, layout: str, dtype: torch.dtype) -> None:
    compare(NormSample((3, 5, 4, 6), activation=activation, layout=layout), dtype)


def test_empty_batch_gives_zero_gradients() -> None:
    x = torch.zeros(0, 3, 4, 4, device=DEVICE, requires_grad=True)
    mean, var = torch.zeros(3, device=DEVICE), torch.ones(3, device=DEVICE)
    weight = torch.ones(3, device=DEVICE, requires_grad=True)
    with gan_fast.use_backend("triton"):
        output = batch_norm_act(x, mean, var, weight, training=True)
        output.sum().backward()
    assert output.shape == x.shape
    assert not mean.any()
    assert bool((var == 1).all())
    assert not weight.grad.any()


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("activation", ["identity", "relu", "leaky_relu", "tanh", "sigmoid"])
def test_infinities_and_nan_propagate_as_in_aten(activation: str, value: float) -> None:
    for training in (True, False):
        arguments = on_device(NormSample((3, 4, 3, 3), training, activation).make(torch.float32))
        arguments["input"].data[1, 2, 0, 1] = value
        with gan_fast.use_backend("triton"):
            actual = second_order_and_statistics(batch_norm_act, arguments, torch.float32)
        for name, expected in second_order_and_statistics(reference, arguments, torch.float32).items():
            if name.startswith("second"):
                continue
            torch.testing.assert_close(actual[name], expected, rtol=1e-4, atol=1e-4, equal_nan=True, msg=name)


# Planes that are one row, less than a warp's tile, exactly a tile, and several tiles. Planes that share a tile form one
# group or several.
@pytest.mark.parametrize(
    ("shape", "activation", "programs"),
    [((1, 70, 1, 2), "leaky_relu", 1), ((1, 37, 4, 4), "tanh", 1), ((1, 37, 4, 4), "leaky_relu", 4),
     ((3, 7, 8, 8), "leaky_relu", 1), ((1, 5, 5, 7), "tanh", 4), ((1, 3, 33, 40), "leaky_relu", 1),
     ((2, 9, 3, 3), "tanh", 1)],
)  # fmt: skip
def test_planes_that_share_a_tile_equal_eager(
    shape: tuple[int, ...], activation: str, programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Instance norm's small planes share tiles if there are enough programs; few are enough here."""
    from gan_fast.triton_kernels import batch_norm_act as kernels

    monkeypatch.setattr(kernels, "_PROGRAMS", programs)
    if programs == 1:
        planes = torch.empty(1, shape[0] * shape[1], *shape[2:])
        assert kernels.Tiles.of(planes, False).block_channels > 1
    compare(NormSample(shape, activation=activation), torch.float32)
    compare(NormSample(shape, training=False, activation=activation), torch.float32)
    x = torch.randn(shape, device=DEVICE, dtype=torch.float64)
    if math.prod(shape[2:]) < 3:
        return
    results = []
    for dtype, backend in ((torch.float64, "reference"), (torch.float32, "reference"), (torch.float32, "triton")):
        with gan_fast.use_backend(backend):
            leaf = x.to(dtype).requires_grad_()
            output = instance_norm_act(leaf, activation=activation, negative_slope=0.2)
            factors = torch.linspace(-1, 2, output.numel(), device=DEVICE, dtype=dtype).view(shape)
            (grad,) = torch.autograd.grad(output, leaf, factors)
            results.append((output.detach(), grad))
    exact, eager, actual = results
    for index, name in enumerate(("output", "grad")):
        assert_as_exact(actual[index], eager[index], exact[index], name, few_numbers_factor(eager[index]))


@pytest.mark.parametrize(
    ("planes", "size", "channels", "warps"),
    [(8192, 8, 8, 2), (8192, 4, 8, 1), (65536, 8, 32, 8), (512, 16, 1, 1), (512, 64, 2, 8), (70, 3, 1, 1)],
)
def test_tiles_of_small_planes_leave_no_thread_idle(planes: int, size: int, channels: int, warps: int) -> None:
    """Each thread has eight values, or the tile has one warp; and there are enough programs to fill the GPU."""
    from gan_fast.triton_kernels import batch_norm_act as kernels

    tiles = kernels.Tiles.of(torch.empty(1, planes, size, size), False)
    assert (tiles.block_channels, tiles.warps) == (channels, warps)
    values = tiles.block_outer * tiles.block_channels * tiles.block_inner
    assert values >= 32 * 8 * tiles.warps or tiles.warps == 1
    programs = tiles.tiles * tiles.channel_tiles
    assert programs >= min(kernels._PROGRAMS, planes * tiles.tiles)


def test_instance_norm_uses_the_batch_norm_kernel() -> None:
    x = torch.randn(2, 3, 5, 4, device=DEVICE)
    with gan_fast.use_backend("triton"):
        actual = instance_norm_act(x, activation="relu")
    torch.testing.assert_close(actual, torch.relu(torch.nn.functional.instance_norm(x)))


def test_unsupported_dtype_and_op_raise() -> None:
    x = torch.randn(2, 3, 4, dtype=torch.float64, device=DEVICE)
    with gan_fast.use_backend("triton"):
        with pytest.raises(RuntimeError, match=r"batch_norm_act: .*: no Triton kernel for torch\.float64"):
            batch_norm_act(x, None, None, training=True)
        with pytest.raises(RuntimeError, match=r"conv1d: .* no Triton kernel for this op"):
            gan_fast.ops.conv1d(torch.randn(1, 2, 4), torch.randn(2, 2, 3))


def test_no_chunk_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten tiles do not divide evenly among the programs of eight chunks."""
    from gan_fast.triton_kernels import batch_norm_act as kernels

    monkeypatch.setattr(kernels, "_TILE", 64)
    monkeypatch.setattr(kernels, "_PROGRAMS", 16)
    for layout in ("contiguous", "channels_last"):
        compare(NormSample((20, 2, 4, 8), layout=layout), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_tiles_with_several_loads_per_thread_equal_eager(
    layout: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large tensors have such tiles; the last one is partial."""
    from gan_fast.triton_kernels import batch_norm_act as kernels

    monkeypatch.setattr(kernels, "_TILE", 32)
    monkeypatch.setattr(kernels, "_PROGRAMS", 3)
    x = torch.empty(9, 3, 3, 5, dtype=dtype)
    tiles = kernels.Tiles.of(x, layout == "channels_last")
    assert tiles.with_more_rows(64, x).block_outer == tiles.block_outer * (64 // (8 * dtype.itemsize))
    compare(NormSample((9, 3, 3, 5), activation="tanh", layout=layout), dtype)


def test_more_rows_than_32_bit_indices_raise() -> None:
    from gan_fast.triton_kernels import batch_norm_act as kernels

    for shape in ((2**31, 1), (1, 1, 2**20, 2**12)):
        with pytest.raises(RuntimeError, match="batch_norm_act: expected input with at most 2147418112 channels"):
            kernels._dense_with_tiles(torch.empty((1,) * len(shape), device="meta").expand(shape))


def test_more_channels_than_a_grid_s_second_dim_allows() -> None:
    from gan_fast.triton_kernels.batch_norm_act import Tiles

    tiles = Tiles.of(torch.empty(1, 70000 * 128, 4, 4, device="meta"), channels_last=False)
    assert tiles.channel_tiles > 65535  # so they use the first dim, which allows 2^31 - 1
    x = torch.randn(1, 3, 2, 2, device=DEVICE)
    with gan_fast.use_backend("triton"):
        torch.testing.assert_close(
            instance_norm_act(x, activation="relu"), torch.relu(torch.nn.functional.instance_norm(x))
        )


def test_strided_statistics_and_parameters() -> None:
    x = torch.randn(2, 6, 3, 4, device=DEVICE)
    mean, var, weight, bias = (torch.rand(12, device=DEVICE)[::2] + 0.5 for _ in range(4))
    for training in (False, True):
        dense = [mean.clone(), var.clone()]
        expected = reference(x, *dense, weight, bias, training)
        strided = [torch.empty(12, device=DEVICE)[::2].copy_(t) for t in (mean, var)]
        with gan_fast.use_backend("triton"):
            torch.testing.assert_close(batch_norm_act(x, *strided, weight, bias, training), expected)
        torch.testing.assert_close(strided, dense)


def test_second_derivative_of_a_parameter_equals_the_reference() -> None:
    x = torch.nn.Parameter(torch.randn(3, 2, 4, device=DEVICE))
    with gan_fast.use_backend("triton"):
        (grad,) = torch.autograd.grad(batch_norm_act(x, None, None, training=True).exp().sum(), x, create_graph=True)
        (actual,) = torch.autograd.grad(grad.square().sum(), x)
    (grad,) = torch.autograd.grad(reference(x, None, None, training=True).exp().sum(), x, create_graph=True)
    torch.testing.assert_close(actual, torch.autograd.grad(grad.square().sum(), x)[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ["leaky_relu", "tanh"])
def test_double_backward_with_missing_cotangents_and_gradients(activation: str, training: bool) -> None:
    """Any cotangent may be missing, any gradient unneeded, and the affine parameters absent; as in the CPU kernel."""
    from gan_fast.triton_kernels import batch_norm_act as kernels

    sample = NormSample((4, 3, 5, 6), layout="channels_last").make(torch.float32)
    x = sample["input"].detach()
    grad, cotangent_input = (torch.randn_like(x) for _ in range(2))
    invstd = (x.var((0, 2, 3), correction=0) + 1e-5).rsqrt()
    parameters = [torch.randn(3) for _ in range(2)]
    cotangents = [torch.randn(3) for _ in range(2)]
    for given in ((1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1)):
        for affine in (True, False) if given[0] else (True,):
            for wanted in ((True, True), (True, False), (False, True), (False, False)):
                arguments = (
                    *(c if there and (affine or c is cotangent_input) else None
                      for c, there in zip((cotangent_input, *cotangents), given)),
                    grad, x, x.mean((0, 2, 3)), invstd, *(parameters if affine else (None, None)),
                    training, activation, 0.2, *wanted,
                )  # fmt: skip
                expected = torch.ops.gan_fast.batch_norm_act_double_backward(*arguments)
                found = kernels.double_backward(*(a.to(DEVICE) if isinstance(a, Tensor) else a for a in arguments))
                assert [t is None for t in found] == [t is None for t in expected] == [
                    not wanted[0], not wanted[1], not affine, not affine
                ]  # fmt: skip
                for actual, exact in zip(found, expected):
                    if exact is not None:
                        torch.testing.assert_close(actual.to(exact.device), exact, rtol=1e-4, atol=1e-4)
                        assert actual.stride() == exact.stride()


def test_double_backward_of_an_empty_batch() -> None:
    from gan_fast.triton_kernels import batch_norm_act as kernels

    x, vector = torch.zeros(0, 3, 4, 4, device=DEVICE), torch.ones(3, device=DEVICE)
    grads = kernels.double_backward(
        x, vector, vector, x, x, vector, vector, vector, vector, True, "tanh", 0.2, True, True
    )
    assert [t.shape for t in grads] == [x.shape, x.shape, vector.shape, vector.shape]
    assert not any(t.any() for t in grads)


def test_third_order_equals_the_reference() -> None:
    x = torch.randn(3, 2, 4, dtype=torch.float32, device=DEVICE, requires_grad=True)

    def third(function: Any) -> Tensor:
        (first,) = torch.autograd.grad(function(x, None, None, training=True).exp().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
        return torch.autograd.grad(second.square().sum(), x)[0]

    with gan_fast.use_backend("triton"):
        actual = third(batch_norm_act)
    torch.testing.assert_close(actual, third(reference), rtol=1e-3, atol=1e-3)
