"""In-place writes between forward and backward: blocks and fused models accept every write that eager accepts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pairs import pairwise
from torch import Tensor, nn

import gan_fast
from gan_fast import backends
from gan_fast import nn as fused

ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "identity": lambda x: x, "relu": F.relu, "leaky_relu": lambda x: F.leaky_relu(x, 0.2), "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}  # fmt: skip
CHANNELS = 8
# One shape that is left to ATen, and one for the fused ops.
SHAPES = {"small": (2, CHANNELS, 6, 5), "large": (4, CHANNELS, 17, 16)}


@pytest.fixture(autouse=True)
def _leave_small_tensors_to_aten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "SMALL", 8192)


class Eager(nn.Module):
    """An optional convolution, an optional norm, an activation, and a write to its result."""

    def __init__(self, kind: str, activation: str, write: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) if "conv" in kind else nn.Identity()
        norm = {"bn": nn.BatchNorm2d, "in": lambda c: nn.InstanceNorm2d(c, affine=True)}.get(kind[-2:])
        self.norm = norm(CHANNELS) if norm else nn.Identity()
        self.activation, self.write = activation, write
        self.last = nn.Conv2d(CHANNELS, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = ACTIVATIONS[self.activation](self.norm(self.conv(x)))
        written = self.write(h, x)
        return self.last(h if written is None else written)


class Block(Eager):
    """The same network on a block of gan_fast.nn."""

    def __init__(self, kind: str, activation: str, write: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__(kind, activation, write)
        options = {"activation": activation, "negative_slope": 0.2}
        self.block = {
            "conv": lambda: fused.ConvAct2d(CHANNELS, CHANNELS, 3, padding=1, **options),
            "conv bn": lambda: fused.ConvBNAct2d(CHANNELS, CHANNELS, 3, padding=1, bias=True, **options),
            "bn": lambda: fused.BatchNormAct2d(CHANNELS, **options),
            "in": lambda: fused.InstanceNormAct2d(CHANNELS, affine=True, **options),
        }[kind]()

    def forward(self, x: Tensor) -> Tensor:
        h = self.block(x)
        written = self.write(h, x)
        return self.last(h if written is None else written)


def as_block(model: Eager, kind: str) -> Block:
    block = Block(kind, model.activation, model.write)
    del block.conv, block.norm
    block.last.load_state_dict(model.last.state_dict())
    children = {"conv": {"conv": model.conv}, "conv bn": {"conv": model.conv, "bn": model.norm}}.get(kind)
    if children is None:
        block.block.load_state_dict(model.norm.state_dict())
    else:
        for name, layer in children.items():
            getattr(block.block, name).load_state_dict(layer.state_dict())
    return block


def seeded_dropout(h: Tensor, x: Tensor) -> None:
    torch.manual_seed(3)
    F.dropout(h, 0.5, inplace=True)


def set_part(h: Tensor, x: Tensor) -> None:
    h[:, :2] = 0


def without_gradient(h: Tensor, x: Tensor) -> None:
    with torch.no_grad():
        torch.mul(h, 0.5, out=h)


def write_to_a_view(h: Tensor, x: Tensor) -> None:
    h.view(-1).mul_(0.5)


WRITES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "add the input": lambda h, x: h.__iadd__(x),
    "mul_": lambda h, x: h.mul_(0.5),
    "clamp_": lambda h, x: h.clamp_(-0.5, 0.5),
    "set a part": set_part,
    "dropout": seeded_dropout,
    "out=": without_gradient,
    "relu in place": lambda h, x: nn.ReLU(inplace=True)(h),
    "write to a view": write_to_a_view,
    "write to a copy": lambda h, x: h.clone().mul_(0.5),
}


Gradients = dict[str, Tensor]


def gradients(
    model: nn.Module, x: Tensor, before_backward: Callable[[nn.Module], Any] = lambda model: None
) -> Gradients | None:
    """The gradients under the names of :class:`Eager`; None if autograd rejects the write."""
    x = x.clone().requires_grad_()
    named = {}
    for name, parameter in model.named_parameters():
        layer, kind = name.split(".")[-2:]
        named[f"{ {'bn': 'norm', 'block': 'norm'}.get(layer, layer) }.{kind}"] = parameter
    try:
        output = model(x * 1.0)
        before_backward(model)
        found = torch.autograd.grad(output.square().sum(), [x, *named.values()])
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        return None
    return dict(zip(["x", *named], found))


def assert_matches(eager: Gradients | None, fused: Gradients | None) -> None:
    if eager is None:
        return
    assert fused is not None, "raises where eager does not"
    assert eager.keys() == fused.keys()
    for name, want in eager.items():
        torch.testing.assert_close(fused[name], want, rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(
    *pairwise(3, kind=["conv", "conv bn", "bn", "in"], activation=ACTIVATIONS, write=WRITES, size=SHAPES)
)
def test_write_to_the_activation_matches_eager(kind: str, activation: str, write: str, size: str) -> None:
    torch.manual_seed(0)
    model = Eager(kind, activation, WRITES[write]).double()
    x = torch.randn(SHAPES[size], dtype=torch.float64)
    eager = gradients(copy.deepcopy(model), x)
    assert_matches(eager, gradients(gan_fast.fuse(model), x))
    assert_matches(eager, gradients(as_block(model, kind).double(), x))


class Outer(nn.Module):
    """Writes to the result of an inner module."""

    def __init__(self, inner: nn.Module, write: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.write = inner, write

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        self.write(h, x)
        return h


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("where", ["calling module", "outside"])
@pytest.mark.parametrize("slope", [0.2, 0.0, -0.3])
def test_write_to_the_result_of_a_model_matches_eager(slope: float, where: str, size: str) -> None:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.LeakyReLU(slope)).double()
    x = torch.randn(SHAPES[size], dtype=torch.float64)
    write = WRITES["add the input"]
    if where == "calling module":
        models = [Outer(copy.deepcopy(inner), write), gan_fast.fuse(Outer(inner, write))]
    else:
        models = [Outer(copy.deepcopy(inner), write), Outer(gan_fast.fuse(inner), write)]
    eager, got = (gradients(m, x) for m in models)
    assert eager is not None
    assert_matches(eager, got)


@pytest.mark.parametrize(
    *pairwise(
        3, kind=["conv bn", "bn", "in"], activation=ACTIVATIONS, changed=["weight", "bias"], training=[True, False]
    )
)
def test_write_to_a_norm_parameter_matches_eager(kind: str, activation: str, changed: str, training: bool) -> None:
    """ATen's batch norm saves its weight but not its bias; instance norm saves copies."""

    def change(model: nn.Module) -> None:
        norm = next(m for m in model.modules() if isinstance(m, (nn.BatchNorm2d, nn.InstanceNorm2d)))
        with torch.no_grad():
            getattr(norm, changed).add_(1)

    torch.manual_seed(0)
    model = Eager(kind, activation, lambda h, x: None).double().train(training)
    x = torch.randn(SHAPES["large"], dtype=torch.float64)
    eager = gradients(copy.deepcopy(model), x, change)
    assert (eager is None) == (changed == "weight" and kind != "in")
    assert_matches(eager, gradients(gan_fast.fuse(model), x, change))
    assert_matches(eager, gradients(as_block(copy.deepcopy(model), kind).double().train(training), x, change))


def test_bias_changed_before_double_backward_matches_eager() -> None:
    """The second derivative of tanh depends on the bias, which must have its value from the forward."""
    torch.manual_seed(0)
    x = torch.randn(SHAPES["large"], dtype=torch.float64, requires_grad=True)
    weight, bias = (torch.randn(CHANNELS, dtype=torch.float64, requires_grad=True) for _ in range(2))
    found = []
    for function in (
        lambda: torch.tanh(F.batch_norm(x, None, None, weight, bias, True)),
        lambda: gan_fast.ops.batch_norm_act(x, None, None, weight, bias, True, activation="tanh"),
    ):
        output = function()
        with torch.no_grad():
            bias.add_(1)
        first = torch.autograd.grad(output.square().sum(), [x, weight, bias], create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), [x, weight, bias]))
        with torch.no_grad():
            bias.sub_(1)
    for want, got in zip(*found):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-7)


def test_leaky_relu_saves_sign_bits_instead_of_its_output() -> None:
    """One bit per value, in blocks of 64."""
    x = torch.randn(SHAPES["large"])
    weight = torch.randn(CHANNELS, CHANNELS, 3, 3, requires_grad=True)
    output = gan_fast.ops.conv2d_act(x, weight, None, 1, 1)
    kept = [t for t in output.grad_fn.saved_tensors if t is not None]
    assert sum(t.dtype == torch.uint8 for t in kept) == 1
    (signs,) = (t for t in kept if t.dtype == torch.uint8)
    assert signs.numel() == (output.numel() + 63) // 64 * 8
    assert all(t.data_ptr() != output.data_ptr() for t in kept)
    with torch.no_grad():
        plain = gan_fast.ops.conv2d_act(x, weight, None, 1, 1)
    assert torch.equal(plain, output)
