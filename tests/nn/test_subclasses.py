"""Tensor subclasses as inputs, parameters and intermediate values keep the types, attributes and values of eager."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pairs import pairwise
from torch import Tensor, nn
from torch.utils import _pytree

import gan_fast
from gan_fast import ops


class Plain(Tensor):
    pass


class Annotated(Tensor):
    """Records the names of the functions that were applied in a note."""

    note: str

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [t for t in _pytree.tree_leaves((args, kwargs)) if isinstance(t, Annotated)]
        output = super().__torch_function__(func, types, args, kwargs or {})
        # "__get__" is the access to an attribute.
        name = getattr(func, "__name__", "")
        if isinstance(output, Annotated) and name != "__get__":
            output.note = f"{getattr(given[0], 'note', '')} {name}"
        return output


class Wrapped(Tensor):
    """Wraps another tensor that holds the values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Any:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, requires_grad=inner.requires_grad
        )
        made.inner = inner
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Wrapped({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = _pytree.tree_map_only(Wrapped, lambda t: t.inner, (args, kwargs or {}))
        return _pytree.tree_map_only(Tensor, Wrapped, func(*args, **kwargs))


class DerivedParameter(nn.Parameter):
    pass


def of_class(kind: type, t: Tensor) -> Any:
    if kind is Wrapped:
        return Wrapped(t.detach())
    made: Any = t.detach().as_subclass(kind)
    if kind is Annotated:
        made.note = "begun"
    return made


class ToSubclass(nn.Module):
    def __init__(self, kind: type) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        if self.kind is Wrapped:
            return Wrapped(x.detach())
        made: Any = x.as_subclass(self.kind)
        if self.kind is Annotated:
            made.note = "in the middle"
        return made


class Loop(nn.Module):
    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return F.leaky_relu(x, 0.2)


def stack(width: int, middle: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(True), nn.Conv2d(width, width, 3),
        nn.InstanceNorm2d(width, affine=True), nn.LeakyReLU(0.2), nn.ConvTranspose2d(width, 4, 4, 2, 1), nn.Tanh(),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(4),
    ]  # fmt: skip
    return nn.Sequential(*layers[:3], *([middle] if middle is not None else []), *layers[3:])


def values(t: Tensor) -> Tensor:
    return t.inner if isinstance(t, Wrapped) else t.as_subclass(Tensor)


def assert_same(eager: Tensor, fused: Tensor, scale: float = 1.0) -> None:
    assert type(fused) is type(eager)
    assert getattr(fused, "note", None) == getattr(eager, "note", None)
    plain = [values(t) for t in (eager, fused)]
    assert torch.allclose(*plain, rtol=1e-4, atol=1e-5 * max(scale, plain[0].abs().max().item()))


def compare(model: nn.Module, fused: nn.Module, x: Tensor, kind: type) -> None:
    for training in (True, False):
        found: list[list[Any]] = []
        for m in (model.train(training), fused.train(training)):
            m.zero_grad()
            given = of_class(kind, x)
            given.requires_grad_()
            output = m(given)
            output.sum().backward()
            found.append([output, given.grad, *(p.grad for p in m.parameters())])
        # The gradient of a bias before a norm is rounding error, relative to the larger gradients.
        scale = max(values(t).abs().max().item() for t in found[0] if t is not None)
        for eager, got in zip(*found, strict=True):
            assert (eager is None) == (got is None)
            if eager is not None:
                assert_same(eager, got, scale)
        with torch.no_grad():
            assert_same(model(of_class(kind, x)), fused(of_class(kind, x)))
        for eager_buffer, buffer in zip(model.buffers(), fused.buffers(), strict=True):
            assert_same(eager_buffer, buffer)


MakeModel = Callable[[nn.Sequential], nn.Module]
FORWARDS: list[MakeModel] = [lambda s: s, Loop]


@pytest.mark.parametrize("width", [4, 32])
@pytest.mark.parametrize("make_model", FORWARDS, ids=["sequential", "forward"])
@pytest.mark.parametrize("kind", [Plain, Annotated, Wrapped])
def test_subclass_as_input_matches_eager(kind: type, make_model: MakeModel, width: int) -> None:
    model = make_model(stack(width))
    torch.manual_seed(0)
    compare(model, gan_fast.fuse(model), torch.randn(4, 3, 16, 16), kind)


@pytest.mark.parametrize("width", [4, 32])
@pytest.mark.parametrize("make_model", FORWARDS, ids=["sequential", "forward"])
@pytest.mark.parametrize("kind", [Plain, Annotated])
def test_subclass_as_intermediate_value_matches_eager(kind: type, make_model: MakeModel, width: int) -> None:
    model = make_model(stack(width, ToSubclass(kind)))
    compare(model, gan_fast.fuse(model), torch.randn(4, 3, 16, 16), Tensor)


@pytest.mark.parametrize(
    *pairwise(
        3, layer=[0, 1, 3, 4, 6, 9], kind=[Plain, Annotated, DerivedParameter], make_model=FORWARDS, width=[4, 32]
    )
)
def test_subclass_as_parameter_matches_eager(kind: Any, layer: int, make_model: MakeModel, width: int) -> None:
    model = make_model(stack(width))
    fused = gan_fast.fuse(model)
    for m in (model, fused):
        chosen = (m.layers if isinstance(m, Loop) else m)[layer]
        for name, p in list(chosen.named_parameters()):
            value = p.detach().clone()
            chosen._parameters[name] = (
                DerivedParameter(value) if kind is DerivedParameter else nn.Parameter(of_class(kind, value))
            )
    compare(model, fused, torch.randn(4, 3, 16, 16), Tensor)


def functional(width: int) -> dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]]:
    w, v, b = torch.randn(width, 3, 3, 3), torch.randn(3, width, 3, 3), torch.randn(width)
    mean, var = torch.zeros(width), torch.ones(width)

    def normed(h: Any, training: bool) -> Any:
        return F.leaky_relu(F.batch_norm(h, mean.clone(), var.clone(), b, b, training), 0.1)

    running: dict[str, Any] = {"bn_weight": b, "bn_bias": b, "negative_slope": 0.1}
    return {
        "conv2d": (lambda x: ops.conv2d(x, w, b, 2, 1), lambda x: F.conv2d(x, w, b, 2, 1)),
        "conv_transpose2d": (lambda x: ops.conv_transpose2d(x, v, b), lambda x: F.conv_transpose2d(x, v, b)),
        "conv2d_act": (
            lambda x: ops.conv2d_act(x, w, b, activation="tanh"), lambda x: torch.tanh(F.conv2d(x, w, b))
        ),
        "conv2d_bn_act, training": (
            lambda x: ops.conv2d_bn_act(
                x, w, running_mean=mean.clone(), running_var=var.clone(), training=True, **running
            ),
            lambda x: normed(F.conv2d(x, w), True),
        ),
        "conv2d_bn_act, evaluation": (
            lambda x: ops.conv2d_bn_act(x, w, running_mean=mean, running_var=var, **running),
            lambda x: normed(F.conv2d(x, w), False),
        ),
        "instance_norm_act": (
            lambda x: ops.instance_norm_act(x, activation="relu"), lambda x: F.relu(F.instance_norm(x))
        ),
        "batch_norm_act": (
            lambda x: ops.batch_norm_act(x, None, None, training=True, activation="relu"),
            lambda x: F.relu(F.batch_norm(x, None, None, training=True)),
        ),
        "leaky_relu": (lambda x: ops.leaky_relu(x, 0.2), lambda x: F.leaky_relu(x, 0.2)),
        "relu": (ops.relu, F.relu),
    }  # fmt: skip


@pytest.mark.parametrize("kind", [Plain, Annotated, Wrapped])
@pytest.mark.parametrize("op", functional(1))
def test_op_keeps_the_subclass(op: str, kind: type) -> None:
    torch.manual_seed(0)
    fused, eager = functional(32)[op]
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert_same(eager(of_class(kind, x)), fused(of_class(kind, x)))
    outputs = []
    for call in (eager, fused):
        given = of_class(kind, x).requires_grad_()
        output = call(given)
        output.square().sum().backward()
        outputs.append((output, given.grad))
    for a, b in zip(*outputs):
        assert_same(a, b)


@pytest.mark.parametrize("kind", [Plain, Annotated, Wrapped])
def test_blocks_keep_the_subclass(kind: type) -> None:
    torch.manual_seed(0)
    from gan_fast import nn as fast

    blocks = fast.ChannelsLastSequential(
        fast.ConvBNAct2d(3, 32, 3), fast.ConvAct2d(32, 8, 3), fast.ConvTransposeBNAct2d(8, 8, 4, 2, 1),
        fast.ConvTransposeAct2d(8, 3, 4, 2, 1, memory_format=torch.contiguous_format),
    )  # fmt: skip
    other = copy.deepcopy(blocks)
    x = torch.randn(4, 3, 16, 16)
    outputs = [blocks(of_class(kind, x)), other(x)]
    assert type(outputs[0]) is kind
    assert_same(values(outputs[0]), outputs[1])


@pytest.mark.parametrize("kind", [Plain, Annotated])
def test_subclass_gradients_flow_into_plain_layers(kind: type) -> None:
    """A loss of a subclass sends gradients of that class through the nodes of plain tensors."""
    model = stack(32)
    fused = gan_fast.fuse(model)
    x = torch.randn(4, 3, 16, 16)
    for m in (model, fused):
        m(x).as_subclass(kind).square().sum().backward()
    scale = max(p.grad.abs().max().item() for p in model.parameters())
    for a, b in zip(model.parameters(), fused.parameters()):
        assert_same(a.grad, b.grad, scale)
