from __future__ import annotations

import dataclasses
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from derivatives import differentiated, in_double, second_order_and_statistics, strides, with_own_buffers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pairs import in_dtypes
from samples import (
    ACTIVATIONS,
    BLOCK_SAMPLES,
    DTYPES,
    BlockSample,
    ConvSample,
    conv_samples,
    every_tap_sees_an_input,
)
from tolerances import assert_as_exact, few_numbers_factor
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import gan_fast
from gan_fast import nn, ops
from gan_fast.ops import activations


def chain(sample: BlockSample) -> Callable[..., Tensor]:
    """Return the same computation as separate ATen ops."""

    def run(
        activation: str,
        negative_slope: float,
        running_mean: Tensor | None = None,
        running_var: Tensor | None = None,
        bn_weight: Tensor | None = None,
        bn_bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
        **conv: Any,
    ) -> Tensor:
        output: Tensor = getattr(F, sample.conv.op)(**conv)
        if sample.norm:
            output = F.batch_norm(output, running_mean, running_var, bn_weight, bn_bias, training, momentum, eps)
        return activations.apply(output, activation, negative_slope)

    return run


def check_against_chain(sample: BlockSample, dtype: torch.dtype) -> None:
    arguments = sample.make(dtype)
    actual = second_order_and_statistics(getattr(ops, sample.op), arguments, dtype)
    eager = second_order_and_statistics(chain(sample), arguments, dtype)
    exact = second_order_and_statistics(chain(sample), in_double(arguments), dtype)
    for name, value in eager.items():
        if name not in actual:
            assert not value.count_nonzero(), f"{name} is missing"
            continue
        if sample.norm and sample.training and name.endswith(("_bias", "_weight")) and "bn" not in name:
            # The norm cancels a bias and the scale of the weight, so that their gradients are rounding errors.
            largest = max(1.0, *(v.abs().max().item() for v in exact.values() if v.numel()))
            if (actual[name].double() - exact[name]).abs().max() <= 4096 * torch.finfo(dtype).eps * largest:
                continue
        # The largest error of few numbers after three roundings varies at random, in eager mode too.
        factor = 2.0 if value.numel() >= 4096 else few_numbers_factor(value) if value.numel() >= 8 else 64.0
        assert_as_exact(actual[name], value, exact[name], name, factor)
        if name == "output":
            assert strides(actual[name]) == strides(value)
    assert all(not actual[name].count_nonzero() for name in set(actual) - set(eager))


@pytest.mark.parametrize(*in_dtypes(BLOCK_SAMPLES, DTYPES))
def test_equals_the_chain_to_second_order(sample: BlockSample, dtype: torch.dtype) -> None:
    check_against_chain(sample, dtype)


@pytest.mark.parametrize(
    "sample",
    [
        s
        for s in BLOCK_SAMPLES
        if s.conv.layout != "expanded" and max(s.conv.weight_shape) < 32 and s.conv.input_shape[0]
    ],
    ids=str,
)
def test_gradcheck_to_second_order(sample: BlockSample) -> None:
    arguments = sample.make(torch.float64)
    named = differentiated(arguments)

    def function(*values: Tensor) -> Tensor:
        output: Tensor = getattr(ops, sample.op)(**with_own_buffers(arguments) | dict(zip(named, values)))
        return output

    assert torch.autograd.gradcheck(function, tuple(named.values()), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, tuple(named.values()), fast_mode=True, atol=1e-4)


@st.composite
def block_samples(draw: st.DrawFn) -> BlockSample:
    norm = draw(st.booleans())
    return BlockSample(
        draw(conv_samples()), norm, draw(st.booleans()), draw(st.sampled_from(ACTIVATIONS)),
        draw(st.sampled_from([0.2, 0.0, -0.5, 1.5])), draw(st.booleans()), draw(st.booleans()),
    )  # fmt: skip


@settings(max_examples=300)
@given(sample=block_samples(), dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_random_inputs_equal_the_chain(sample: BlockSample, dtype: torch.dtype) -> None:
    assume(dtype.itemsize > 2 or every_tap_sees_an_input(sample.conv))
    # With few values per channel, or equal ones (filters on padding only), the variance may be pure rounding error.
    raw = getattr(F, sample.conv.op)(**sample.conv.make(torch.float64, requires_grad=False))
    by_channel = raw.movedim(1, 0).flatten(1)
    assume(not sample.norm or (by_channel.size(1) >= 16 and by_channel.std(1).min() > 0.05))
    assume(sample.conv.layout != "expanded" or not sample.norm)
    assume(not sample.norm or sample.training or sample.running)
    if sample.activation in ("relu", "leaky_relu"):
        # Close to zero, rounding decides which slope a value gets.
        linear = dataclasses.replace(sample, activation="identity")
        z = chain(linear)(**in_double(linear.make(dtype, requires_grad=False)))
        assume(not z.numel() or z.abs().min() > 16 * torch.finfo(dtype).eps * z.abs().max())
    check_against_chain(sample, dtype)


def two_blocks(x: Tensor, weights: list[Tensor], gamma: Tensor, beta: Tensor, activation: str = "leaky_relu") -> Tensor:
    hidden = ops.conv2d_bn_act(
        x, weights[0], None, 2, 1, bn_weight=gamma, bn_bias=beta, training=True, activation=activation
    )
    return ops.conv_transpose2d_act(hidden, weights[1], None, 2, 1, activation="tanh")


def two_blocks_arguments() -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    x = torch.randn(4, 3, 16, 16, requires_grad=True)
    weights = [torch.randn(8, 3, 4, 4, requires_grad=True), torch.randn(8, 3, 4, 4, requires_grad=True)]
    return x, weights, torch.rand(8, requires_grad=True), torch.randn(8, requires_grad=True)


def has_recipe(output: Tensor) -> bool:
    """Whether a convolution saved a recipe for its input."""
    return hasattr(output.grad_fn, "slot")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_recomputation_is_bitwise_exact(layout: torch.memory_format, activation: str) -> None:
    x, weights, gamma, beta = two_blocks_arguments()
    x = x.detach().contiguous(memory_format=layout).requires_grad_()

    def all_orders() -> list[Tensor]:
        output = two_blocks(x, weights, gamma, beta, activation)
        wanted = [x, *weights, gamma, beta]
        first = torch.autograd.grad(output.square().sum(), wanted, create_graph=True)
        return [*first, *torch.autograd.grad(sum((g**2).sum() for g in first), wanted), output]

    actual = all_orders()
    assert has_recipe(actual.pop())
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        kept = all_orders()
    assert not has_recipe(kept.pop())
    assert all(torch.equal(a, b) for a, b in zip(actual, kept))


def test_block_saves_one_tensor_of_its_output_size() -> None:
    x, weights, gamma, beta = two_blocks_arguments()
    hidden = ops.conv2d_bn_act(x, weights[0], None, 2, 1, bn_weight=gamma, bn_bias=beta, training=True)
    norm = hidden.grad_fn
    raw = norm.saved_tensors[0]
    output = ops.conv_transpose2d_act(hidden, weights[1], None, 2, 1, activation="tanh")
    alive = torch.multiprocessing.reductions.StorageWeakRef(hidden.untyped_storage())
    assert not alive.expired()
    del hidden
    assert alive.expired(), "the activation is still saved"
    assert norm.saved_tensors[0].data_ptr() == raw.data_ptr()
    output.sum().backward()


def test_parameters_of_the_norm_may_change_before_the_next_weight_gets_its_gradient() -> None:
    """That gradient does not depend on the norm's backward, which raises if its weight was modified."""
    for changed in ("gamma", "beta"):
        x, weights, gamma, beta = two_blocks_arguments()
        want = torch.autograd.grad(two_blocks(x, weights, gamma, beta).sum(), weights[1])[0]
        output = two_blocks(x, weights, gamma, beta)
        with torch.no_grad():
            (gamma if changed == "gamma" else beta).add_(1)
        assert torch.equal(torch.autograd.grad(output.sum(), weights[1], retain_graph=True)[0], want)
        if changed == "gamma":
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                output.sum().backward()


def test_backward_raises_if_an_input_of_a_recipe_was_modified() -> None:
    x, weights, gamma, beta = two_blocks_arguments()
    raw = ops.conv2d(x, weights[0], None, 2, 1)
    hidden = ops.batch_norm_act(raw, None, None, gamma, beta, training=True)
    output = ops.conv_transpose2d(hidden, weights[1], None, 2, 1)
    raw.detach().add_(1)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation.*is input 0 of a recomputed"):
        torch.autograd.grad(output.sum(), weights[1])


def test_activation_modified_in_place_is_saved() -> None:
    """A recipe would recompute the value before the modification."""
    x, weights, gamma, beta = two_blocks_arguments()

    def run(change: Callable[[Tensor], Tensor]) -> list[Tensor]:
        hidden = ops.conv2d_bn_act(x, weights[0], None, 2, 1, bn_weight=gamma, bn_bias=beta, training=True)
        output = ops.conv_transpose2d_act(change(hidden), weights[1], None, 2, 1, activation="tanh")
        return list(torch.autograd.grad(output.sum(), weights))

    for actual, want in zip(run(lambda t: t.mul_(2)), run(lambda t: t * 2)):
        torch.testing.assert_close(actual, want)


def test_backward_raises_if_the_graph_of_a_recipe_was_freed() -> None:
    x, weights, gamma, beta = two_blocks_arguments()
    hidden = ops.conv2d_bn_act(x, weights[0], None, 2, 1, bn_weight=gamma, bn_bias=beta, training=True)
    hidden.sum().backward()
    output = ops.conv_transpose2d_act(hidden, weights[1], None, 2, 1, activation="tanh")
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        output.sum().backward()


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradients_under_checkpointing(use_reentrant: bool) -> None:
    x, weights, gamma, beta = two_blocks_arguments()
    wanted = [*weights, gamma, beta]
    for t in wanted:
        t.grad = None
    checkpoint(two_blocks, x, weights, gamma, beta, use_reentrant=use_reentrant).square().sum().backward()
    plain = torch.autograd.grad(two_blocks(x, weights, gamma, beta).square().sum(), wanted)
    for t, want in zip(wanted, plain):
        torch.testing.assert_close(t.grad, want)


def test_first_pass_of_a_penalty_recomputes_nothing() -> None:
    """It computes no weight gradients, so it needs no inputs of convolutions."""
    x, weights, gamma, beta = two_blocks_arguments()
    output = two_blocks(x, weights, gamma, beta)
    # torch 2.11 warns if events are not accumulated.
    with torch.profiler.profile(acc_events=True) as profile:
        torch.autograd.grad(output.sum(), x)
    names = {event.key for event in profile.key_averages()}
    assert "gan_fast::batch_norm_act_backward" in names
    assert "gan_fast::batch_norm_act_normalize" not in names


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("norm", [True, False])
def test_autocast_equals_the_chain(norm: bool, dtype: torch.dtype) -> None:
    sample = BlockSample(ConvSample((3, 3, 8, 8), (4, 3, 3, 3)), norm, activation="tanh")
    outputs = {}
    for name, function in (("actual", getattr(ops, sample.op)), ("eager", chain(sample))):
        arguments = with_own_buffers(sample.make(torch.float32))
        with torch.autocast("cpu", dtype):
            outputs[name] = function(**arguments)
        outputs[name].sum().backward()
        assert arguments["weight"].grad.dtype == torch.float32
    assert outputs["actual"].dtype == outputs["eager"].dtype == dtype
    torch.testing.assert_close(outputs["actual"], outputs["eager"], atol=0.02, rtol=0.02)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", [True, False])
def test_compiles_without_graph_breaks(norm: bool, training: bool) -> None:
    sample = BlockSample(ConvSample((3, 3, 8, 8), (4, 3, 3, 3), bias=False), norm, training)
    torch._dynamo.reset()
    function = getattr(ops, sample.op)
    grads = []
    for run in (torch.compile(function, fullgraph=True, backend="aot_eager"), function):
        arguments = with_own_buffers(sample.make(torch.float32))
        run(**arguments).square().sum().backward()
        grads.append([t.grad for t in differentiated(arguments).values()])
    for actual, want in zip(*grads):
        torch.testing.assert_close(actual, want)


def test_per_sample_gradients() -> None:
    model = torch.nn.Sequential(
        nn.ConvBNAct2d(3, 4, 3, activation="leaky_relu", negative_slope=0.2), nn.ConvAct2d(4, 2, 3, activation="tanh")
    ).eval()
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    x = torch.randn(5, 3, 7, 7)

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(model, (parameters, buffers), (sample[None],)).square().sum()

    grads = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for index in range(len(x)):
        model.zero_grad()
        model(x[index : index + 1]).square().sum().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(grads[name][index], parameter.grad)


FOLDED = [
    BlockSample(conv, True, False, activation, affine=affine)
    for activation, affine in (("leaky_relu", True), ("tanh", False))
    for conv in (
        ConvSample((4, 6, 9, 8), (8, 3, 3, 3), options=(("groups", 2), ("padding", 1))),
        ConvSample((4, 6, 5, 8), (6, 4, 4, 4), True, False, (("groups", 2), ("stride", 2))),
        ConvSample((4, 6, 30), (8, 6, 3), bias=False),
        ConvSample((4, 6, 3, 4, 5), (6, 4, 2, 3, 2), True, layout="channels_last"),
    )
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("sample", FOLDED, ids=str)
def test_evaluation_folds_the_norm_into_the_weight(sample: BlockSample, dtype: torch.dtype) -> None:
    arguments = sample.make(dtype)
    with torch.no_grad(), torch.profiler.profile(acc_events=True) as profile:
        actual = getattr(ops, sample.op)(**arguments)
    assert not any("batch_norm" in event.key for event in profile.key_averages())
    eager, exact = chain(sample)(**arguments), chain(sample)(**in_double(arguments))
    assert_as_exact(actual, eager.detach(), exact.detach(), "output", 4.0)
    assert strides(actual) == strides(eager)


def test_modules_fold_the_norm_unless_they_have_hooks() -> None:
    for kind, shape in (("ConvBNAct2d", (8, 4, 9, 9)), ("ConvTransposeBNAct2d", (8, 4, 9, 9))):
        block = getattr(nn, kind)(4, 6, 3, activation="tanh")
        block.bn.running_mean.normal_()
        block.bn.running_var.uniform_(0.5, 2)
        block.eval()
        x = torch.randn(shape)
        want = block(x).detach()

        def folded(block: torch.nn.Module = block, x: Tensor = x, want: Tensor = want) -> bool:
            with torch.no_grad(), torch.profiler.profile(acc_events=True) as profile:
                output = block(x)
            torch.testing.assert_close(output, want)
            return not any("batch_norm" in event.key for event in profile.key_averages())

        assert folded()
        hook = block.bn.register_forward_hook(lambda *_: None)
        assert not folded()
        hook.remove()
        assert folded()
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            assert block(x).dtype == torch.bfloat16
        # A parametrized weight is folded too.
        torch.nn.utils.parametrizations.weight_norm(block.conv)
        assert folded()


def test_bad_input_raises_where_the_norm_would_be_folded() -> None:
    x, weight = torch.randn(16, 4, 32, 32), torch.randn(8, 4, 3, 3)
    good = {"running_mean": torch.zeros(8), "running_var": torch.ones(8)}
    for change, message in (
        ({"bias": torch.ones(1)}, r"expected bias shape \(8,\), got \(1,\)"),
        ({"bn_weight": [1.0]}, "expected bn_weight type Tensor, got list"),
        ({"running_var": [1.0]}, "expected running_var type Tensor, got list"),
        ({"eps": None}, "expected eps type float, got NoneType"),
    ):
        with torch.no_grad(), pytest.raises((TypeError, ValueError), match=f"conv2d_bn_act: {message}"):
            ops.conv2d_bn_act(x, weight, **{**good, **change})


BAD_INPUTS: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("conv2d_act", {"input": 1.0}, TypeError, "expected input type Tensor, got float"),
    ("conv2d_act", {"activation": "gelu"}, ValueError,
     "expected activation one of identity, relu, leaky_relu, tanh, sigmoid, got 'gelu'"),
    ("conv2d_act", {"bias": torch.ones(3)}, ValueError, "expected bias shape (4,), got (3,)"),
    ("conv2d_bn_act", {"input": 1.0}, TypeError, "expected input type Tensor, got float"),
    ("conv2d_bn_act", {"activation": None}, ValueError,
     "expected activation one of identity, relu, leaky_relu, tanh, sigmoid, got None"),
    ("conv2d_bn_act", {"input": torch.ones(3, 5, 5)}, ValueError,
     "expected input dimensions 4 (N, C_in, ...), got shape (3, 5, 5)"),
    ("conv2d_bn_act", {"bn_weight": torch.ones(3)}, ValueError, "expected bn_weight shape (4,), got (3,)"),
    ("conv2d_bn_act", {"bn_bias": torch.ones(4, dtype=torch.float64)}, TypeError,
     "expected bn_bias dtype float32, got float64"),
    ("conv2d_bn_act", {"training": False}, ValueError,
     "expected running_mean and running_var tensors when training is False, got None"),
    ("conv2d_bn_act", {"input": torch.ones(1, 3, 3, 3)}, ValueError,
     "expected input with more than 1 value per channel when training, got shape (1, 4, 1, 1)"),
    ("conv2d_bn_act", {"weight": torch.ones(4)}, ValueError, "expected weight dimensions 4, got shape (4,)"),
    ("conv2d_bn_act", {"momentum": None}, TypeError, "expected momentum type float, got NoneType"),
    ("conv2d_bn_act", {"eps": "x"}, TypeError, "expected eps type float, got str"),
    ("conv2d_bn_act", {"weight": torch.ones(4, 3, 9, 9)}, ValueError,
     "expected padded input at least as large as the kernel, got (5, 5) with padding (0, 0) for kernel (9, 9) "
     "with dilation (1, 1)"),
]  # fmt: skip


@pytest.mark.parametrize("small", [-1, 8192])
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("op", "change", "error", "message"), BAD_INPUTS, ids=[m[3][:60] for m in BAD_INPUTS])
def test_bad_input(
    op: str,
    change: dict[str, Any],
    error: type[Exception],
    message: str,
    backend: str,
    small: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gan_fast.backends, "SMALL", small)
    arguments: dict[str, Any] = {"input": torch.ones(1, 3, 5, 5), "weight": torch.ones(4, 3, 3, 3)}
    if "bn" in op:
        arguments["training"] = True
    with gan_fast.use_backend(backend), pytest.raises(error) as caught:
        getattr(ops, op)(**{**arguments, **change})
    assert str(caught.value) == f"{op}: {message}"


def test_1d_2d_and_3d_functions_have_their_own_names_and_docs() -> None:
    for kind in ("", "_transpose"):
        for tail in ("", "_act", "_bn_act"):
            names = [f"conv{kind}{dims}d{tail}" for dims in (1, 2, 3)]
            functions = [getattr(ops, name) for name in names]
            assert [f.__name__ for f in functions] == names
            assert len({str(inspect.signature(f)) for f in functions}) == 1
            for f in functions:
                assert next(iter(inspect.signature(f).parameters)) == "input"
                assert "nd(" not in f.__doc__.replace("and(", "")
                assert pickle.loads(pickle.dumps(f)) is f
                with pytest.raises(TypeError, match=rf"^{f.__name__}\(\) missing 2 required positional arguments"):
                    f()
