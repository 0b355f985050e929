from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from samples import LAYOUTS
from tolerances import assert_as_exact, few_numbers_factor
from torch import Tensor
from triton_device import DEVICE, interpreted

import gan_fast
from gan_fast import ops
from gan_fast.choices import ACTIVATIONS
from gan_fast.ops import activations
from gan_fast.triton_kernels import DTYPES

pytestmark = interpreted

# (transposed, input, weight, stride, padding, dilation, output padding). They cover several tiles of rows, columns and
# depth; phases with different numbers of taps; kernels smaller than the stride; taps in the padding; output positions
# without any tap; and a single pixel.
CASES: list[Any] = [
    (True, (2, 70, 9, 8), (70, 19, 4, 4), (2, 2), (1, 1), (1, 1), (0, 0)),
    (True, (2, 5, 3, 4), (5, 3, 3, 5), (2, 1), (0, 2), (1, 1), (1, 0)),
    (True, (1, 3, 2, 2), (3, 40, 5, 4), (3, 2), (1, 0), (1, 1), (0, 1)),
    (True, (2, 3, 3, 3), (3, 2, 1, 2), (2, 3), (0, 0), (1, 1), (1, 2)),
    (True, (3, 20, 1, 1), (20, 130, 4, 4), (1, 1), (0, 0), (1, 1), (0, 0)),
    (False, (2, 70, 8, 8), (19, 70, 4, 4), (2, 2), (1, 1), (1, 1), (0, 0)),
    (False, (2, 5, 9, 7), (18, 5, 3, 2), (1, 2), (0, 2), (2, 1), (0, 0)),
    (False, (3, 3, 1, 1), (4, 3, 1, 1), (1, 1), (0, 0), (1, 1), (0, 0)),
]


def aten(case: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    transposed, _, _, stride, padding, dilation, output_padding = case
    if transposed:
        return F.conv_transpose2d(x, weight, bias, stride, padding, output_padding, 1, dilation)
    return F.conv2d(x, weight, bias, stride, padding, dilation)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_and_statistics_equal_aten(case: Any, dtype: torch.dtype) -> None:
    from gan_fast.triton_kernels import conv

    transposed, shape, weight_shape, stride, padding, dilation, _ = case
    for layout, memory_format in (
        ("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last), ("offset", torch.channels_last)
    ):  # fmt: skip
        x, weight = (LAYOUTS[layout](torch.randn(s).to(DEVICE, dtype)) for s in (shape, weight_shape))
        bias = torch.randn(weight_shape[1] if transposed else weight_shape[0]).to(DEVICE, dtype)
        eager = aten(case, x, weight, bias)
        exact = aten(case, x.double(), weight.double(), bias.double())
        actual, statistics = conv.convolve(
            x, weight, bias, stride, padding, dilation, transposed, tuple(eager.shape[2:]),
            memory_format=memory_format, statistics=True,
        )  # fmt: skip
        assert actual.is_contiguous(memory_format=memory_format)
        # The interpreter truncates bfloat16 where a GPU rounds.
        assert_as_exact(actual, eager, exact, "output", 4.0 if dtype == torch.bfloat16 else few_numbers_factor(actual))
        counts, means, squares = (t.double() for t in statistics)
        assert counts.sum() == actual.numel() // actual.size(1)
        mean = (counts[:, None] * means).sum(0) / counts.sum()
        square = (squares + counts[:, None] * (means - mean).square()).sum(0)
        torch.testing.assert_close(mean, actual.double().mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
        expected = actual.double().var((0, 2, 3), correction=0) * counts.sum()
        torch.testing.assert_close(square, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_is_applied_in_the_epilogue(activation: str) -> None:
    from gan_fast.triton_kernels import conv

    case = CASES[0]
    transposed, shape, weight_shape, stride, padding, dilation, _ = case
    x, weight = torch.randn(shape, device=DEVICE), 0.1 * torch.randn(weight_shape, device=DEVICE)
    expected = activations.apply(aten(case, x, weight, None), activation, 0.2)
    actual, statistics = conv.convolve(
        x, weight, None, stride, padding, dilation, transposed, tuple(expected.shape[2:]), activation, 0.2
    )
    assert statistics is None
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("transposed", [False, True])
def test_ops_equal_aten_to_second_order(transposed: bool, layout: str) -> None:
    op = "conv_transpose2d" if transposed else "conv2d"
    shapes = ((2, 5, 6, 4), (5, 3, 4, 4) if transposed else (3, 5, 4, 4))
    x, weight = (LAYOUTS[layout](torch.randn(s, device=DEVICE)).requires_grad_() for s in shapes)
    results = []
    for namespace, backend in ((ops, "triton"), (F, "auto")):
        with gan_fast.use_backend(backend):
            output = getattr(namespace, op)(x, weight, None, 2, 1)
            grads = torch.autograd.grad(output.sin().sum(), (x, weight), create_graph=True)
            second = torch.autograd.grad(grads[0].square().sum(), (x, weight))
        results.append([output, *grads, *second])
    for index, (actual, expected) in enumerate(zip(*results)):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)
        if index < 2:
            assert actual.stride() == expected.stride()


def block_results(block: torch.nn.Module, x: Tensor) -> dict[str, Tensor]:
    block = copy.deepcopy(block)
    x = x.detach().requires_grad_()
    output = block(x)
    grads = torch.autograd.grad(output.sin().sum(), [x, *block.parameters()])
    found = {"output": output, "grad_input": grads[0]}
    found |= {f"grad_{name}": grad for (name, _), grad in zip(block.named_parameters(), grads[1:])}
    return found | {name: buffer.float() for name, buffer in block.named_buffers()}


@pytest.mark.parametrize("chunks", [256, 2], ids=["merged_at_once", "merged_in_steps"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_norm_uses_the_statistics_of_the_convolution_kernel(
    kind: str, layout: str, chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gan_fast.triton_kernels import batch_norm_act, conv

    monkeypatch.setattr(batch_norm_act, "_MAX_CHUNKS", chunks)
    monkeypatch.setattr(batch_norm_act, "_MERGED", 2)
    tile = conv.Config(16, 16, 16, 4, 2)
    monkeypatch.setattr(conv, "config", lambda *_: tile)
    monkeypatch.setattr(batch_norm_act, "_statistics", lambda *_: pytest.fail("a pass over the convolution's output"))
    x = LAYOUTS[layout](torch.randn(5, 5, 6, 4, device=DEVICE) + 3)
    block = getattr(gan_fast.nn, f"{kind}BNAct2d")(5, 7, 4, 2, 1, bias=True, activation="leaky_relu").to(DEVICE)
    torch.nn.init.normal_(block.bn.weight)
    with gan_fast.use_backend("reference"):
        expected = block_results(block, x)
        double = block_results(copy.deepcopy(block).double(), x.double())
    with gan_fast.use_backend("triton"):
        actual = block_results(block, x)
    for name, value in expected.items():
        assert_as_exact(actual[name], value, double[name], name, few_numbers_factor(value))


def test_empty_chunks_do_not_change_the_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """A phase without output has only empty chunks, which are merged with each other."""
    from gan_fast.triton_kernels import batch_norm_act

    monkeypatch.setattr(batch_norm_act, "_MAX_CHUNKS", 2)
    monkeypatch.setattr(batch_norm_act, "_MERGED", 2)
    x, weight = torch.randn(8, 2, 1, 256, device=DEVICE), torch.randn(2, 3, 1, 3, device=DEVICE)
    results = []
    for backend in ("reference", "triton"):
        with gan_fast.use_backend(backend):
            results.append(ops.conv_transpose2d_bn_act(x, weight, None, (2, 1), (0, 1), training=True))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_infinity_and_nan_reach_the_same_outputs_as_in_aten(value: float) -> None:
    """With a kernel of 3 and a stride of 2 phases have different numbers of taps; masked taps must not spread NaN."""
    x = torch.randn(2, 3, 6, 6, device=DEVICE)
    x[0, 1, 0, 0] = value
    x.requires_grad_()
    for op, shape in (("conv_transpose2d", (3, 4, 3, 3)), ("conv2d", (4, 3, 3, 3))):
        weight = torch.randn(shape, device=DEVICE)
        results = []
        for namespace, backend in ((F, "auto"), (ops, "triton")):
            with gan_fast.use_backend(backend):
                output = getattr(namespace, op)(x, weight, None, 2, 1)
            grad = torch.ones_like(output)
            grad[0, 1, 0, 0] = value
            results.append([output, *torch.autograd.grad(output, x, grad)])
        for expected, actual in zip(*results):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4, equal_nan=True)


def test_blocks_in_evaluation_mode_and_unsupported_inputs() -> None:
    x = torch.randn(2, 5, 4, 4, device=DEVICE)
    block = gan_fast.nn.ConvBNAct2d(5, 7, 3).to(DEVICE)
    with gan_fast.use_backend("triton"):
        block(x)
    evaluated = block.eval()(x)
    with gan_fast.use_backend("triton"):
        torch.testing.assert_close(block(x), evaluated, rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            torch.testing.assert_close(block(x), evaluated, rtol=1e-4, atol=1e-4)
        with pytest.raises(RuntimeError, match="conv2d: expected groups 1, got 5"):
            gan_fast.nn.ConvBNAct2d(5, 5, 3, groups=5).to(DEVICE)(x)
        with pytest.raises(ValueError, match="expected 4D input"):
            block(x[0])


def test_unsupported_convolutions_are_reported() -> None:
    from gan_fast.triton_kernels import conv

    x, weight = torch.ones(1, 2, 4, 4), torch.ones(2, 2, 3, 3)
    assert conv.refuses(x, (1, 1), True, 1) is None
    assert "groups 1, got 2" in conv.refuses(x, (1, 1), False, 2)
    assert "dilation 1 of a transposed convolution" in conv.refuses(x, (2, 1), True, 1)
    assert "float64" in conv.refuses(x.double(), (1, 1), False, 1)
    assert "input dimensions 4" in conv.refuses(x[0], (1, 1), False, 1)
    huge = torch.empty(1, device="meta").expand(1, 2, 40000, 40000)
    with pytest.raises(RuntimeError, match=r"conv: expected fewer than 2\^31 values per sample"):
        conv.convolve(huge, weight, None, (1, 1), (1, 1), (1, 1), False, (40000, 40000))


@pytest.mark.parametrize("memory_format", [None, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_of_a_block_needs_no_second_pass(
    activation: str, memory_format: torch.memory_format | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output has the requested memory format, and derivatives are correct to second order."""
    monkeypatch.setattr(activations, "apply_over", lambda *_: pytest.fail("a pass over the convolution's output"))
    x = LAYOUTS["channels_last"](torch.randn(2, 5, 6, 4, device=DEVICE)).requires_grad_()
    options = {"activation": activation, "negative_slope": 0.2, "memory_format": memory_format}
    block = gan_fast.nn.ConvTransposeAct2d(5, 3, 4, 2, 1, **options).to(DEVICE)
    results = []
    for backend in ("reference", "triton"):
        with gan_fast.use_backend(backend):
            output = block(x)
        (grad,) = torch.autograd.grad(output.sin().sum(), x, create_graph=True)
        results.append([output, grad, *torch.autograd.grad(grad.square().sum(), (x, block.conv.weight))])
    for expected, actual in zip(*results):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)
    assert results[1][0].stride() == results[0][0].stride()


def test_bias_may_be_strided() -> None:
    x, weight = torch.randn(2, 5, 6, 4, device=DEVICE), torch.randn(3, 5, 4, 4, device=DEVICE, requires_grad=True)
    bias = torch.randn(6, device=DEVICE)[::2]
    with gan_fast.use_backend("triton"):
        actual = ops.conv2d(x, weight, bias, 2, 1)
    torch.testing.assert_close(actual, F.conv2d(x, weight, bias, 2, 1), rtol=1e-4, atol=1e-4)


def test_backward_uses_the_backend_of_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    from gan_fast.triton_kernels import conv

    x, weight = torch.randn(2, 5, 6, 4, device=DEVICE, requires_grad=True), torch.randn(3, 5, 4, 4, device=DEVICE)
    calls = []
    convolve = conv.convolve
    monkeypatch.setattr(conv, "convolve", lambda *args, **options: calls.append(1) or convolve(*args, **options))
    with gan_fast.use_backend("triton"):
        actual = ops.conv2d(x, weight, None, 2, 1)
    actual.sum().backward()
    assert len(calls) == 2
    plain = ops.conv2d(x, weight, None, 2, 1)
    with gan_fast.use_backend("triton"):
        plain.sum().backward()
    assert len(calls) == 2
