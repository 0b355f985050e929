"""A fused model whose layers are edited gives the same results as an eager model with the same edits."""

from __future__ import annotations

import contextlib
import copy
import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import drawn
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import gan_fast


class TensorOnly(nn.Module):
    """A user's layer that accepts only a plain tensor in eager's memory format."""

    def forward(self, x: Tensor) -> Tensor:
        assert type(x) is Tensor
        return x.view(x.shape[0], -1).mul(0.5).view(x.shape)


class Inner(nn.Module):
    """A container whose layers are called as a whole, by index or by iterating over the children."""

    def __init__(self, layers: nn.Module, mode: str) -> None:
        super().__init__()
        self.layers, self.mode = layers, mode

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == "call":
            return F.leaky_relu(self.layers(x), 0.3)
        for index in range(len(self.layers)) if self.mode == "index" else ():
            x = self.layers[index](x)
        for layer in self.layers.children() if self.mode == "children" else ():
            x = layer(x)
        return F.leaky_relu(x, 0.3)


def layers(width: int = 4) -> OrderedDict[str, nn.Module]:
    return OrderedDict(
        conv=nn.Conv2d(3, width, 3, padding=1), bn=nn.BatchNorm2d(width), act=nn.ReLU(),
        head=nn.Conv2d(width, width, 3, padding=1), norm=nn.InstanceNorm2d(width, affine=True), last=nn.Tanh(),
        end=nn.Conv2d(width, width, 3, padding=1),
    )  # fmt: skip


def assert_same(model: nn.Module, fused: nn.Module, x: Tensor) -> None:
    """Compare outputs, gradients, buffers, state dict keys and module names; both models may also raise."""
    assert list(model.state_dict()) == list(fused.state_dict())
    assert [name for name, _ in model.named_modules()] == [name for name, _ in fused.named_modules()]
    found: list[list[Tensor | None]] = []
    errors: list[Exception | None] = []
    for m in (model, fused):
        torch.manual_seed(1)
        m.zero_grad()
        leaf = x.clone().requires_grad_()
        try:
            output = m(leaf * 1)
            if output.requires_grad:
                (output.square().sum() + output.sum()).backward()
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            errors.append(error)
            continue
        errors.append(None)
        found.append([output.detach(), leaf.grad, *(p.grad for p in m.parameters()), *m.buffers()])
    # A fused model saves fewer tensors for backward, so that a write to one may raise in eager only.
    if "modified by an inplace operation" not in str(errors[0]):
        assert (errors[0] is None) == (errors[1] is None), errors
    if errors[0] is errors[1] is None:
        tolerance = 1e-9 if x.dtype == torch.float64 else 1e-3
        for eager, got in zip(*found, strict=True):
            if eager is None or got is None:
                assert eager is got or not (eager if got is None else got).any()  # type: ignore[union-attr]
            else:
                assert eager.shape == got.shape
                assert torch.allclose(eager, got, rtol=tolerance, atol=tolerance * max(1.0, eager.abs().max().item()))


class AtKink(TorchFunctionMode):
    """Detect rectifier inputs that are zero up to rounding, where rounding decides the slope."""

    found = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in RECTIFIERS and isinstance(args[0], Tensor):
            size = args[0].detach().abs()
            self.found |= bool(((size > 0) & (size < 1e-9)).any())
        return func(*args, **(kwargs or {}))


RECTIFIERS = (F.relu, F.leaky_relu, torch.relu, torch.relu_, F.leaky_relu_, Tensor.relu, Tensor.relu_)


def is_at_kink(model: nn.Module, x: Tensor) -> bool:
    torch.manual_seed(1)
    with AtKink() as mode, contextlib.suppress(RuntimeError, ValueError, TypeError, NotImplementedError):
        copy.deepcopy(model)(x.clone())
    return mode.found


def move_to_end(s: Any, name: str) -> None:
    layer = s._modules[name]
    delattr(s, name)
    s.add_module(name, layer)


def replace(s: Any, name: str, layer: nn.Module) -> None:
    s._modules[name] = layer


def reorder(s: Any, names: list[str]) -> None:
    children = dict(s._modules)
    s._modules.clear()
    s._modules.update({name: children[name] for name in names})


EDITS: dict[str, Callable[[Any], None]] = {
    "activation to the end": lambda s: move_to_end(s, "act"),
    "norm to the end": lambda s: move_to_end(s, "bn"),
    "convolution to the end, its norm before it": lambda s: reorder(
        s, ["head", "bn", "act", "norm", "last", "end", "conv"]
    ),
    "a layer inserted before the norm": lambda s: (
        s.add_module("user", TensorOnly()),
        reorder(s, ["conv", "user", "bn", "act", "head", "norm", "last", "end"]),
    ),
    "a layer inserted before the activation": lambda s: (
        s.add_module("user", TensorOnly()),
        reorder(s, ["conv", "bn", "user", "act", "head", "norm", "last", "end"]),
    ),
    "norm replaced": lambda s: replace(s, "bn", nn.GroupNorm(2, 4)),
    "norm replaced by a user's layer": lambda s: replace(s, "bn", TensorOnly()),
    "activation replaced": lambda s: replace(s, "act", nn.ELU()),
    "activation replaced by a user's layer": lambda s: replace(s, "act", TensorOnly()),
    "activation replaced by a Sequential": lambda s: replace(s, "act", nn.Sequential(TensorOnly(), nn.Sigmoid())),
    "activation deleted": lambda s: delattr(s, "act"),
    "norm and activation swapped": lambda s: reorder(s, ["conv", "act", "bn", "head", "norm", "last", "end"]),
    "one norm under two names": lambda s: replace(s, "norm", s.bn),
    "one convolution under two names": lambda s: (replace(s, "end", s.head), replace(s, "last", TensorOnly())),
    "fused layers exchanged": lambda s: (lambda a, b: (replace(s, "head", b), replace(s, "end", a)))(s.head, s.end),
}


@pytest.mark.parametrize(
    ("mode", "width"), [("sequential", 4), ("nested", 24), ("call", 4), ("index", 4), ("children", 24)]
)
@pytest.mark.parametrize("edit", EDITS)
def test_edited_model_matches_eager(edit: str, mode: str, width: int) -> None:
    """The wide models run in channels-last until an edit puts in a layer that was not analyzed."""
    torch.manual_seed(0)
    container = nn.Sequential(layers(width))
    model = {"sequential": container, "nested": nn.Sequential(container, nn.Identity())}.get(mode) or Inner(
        container, mode
    )
    model = model.double() if width == 4 else model
    fused = gan_fast.fuse(model)
    for m in (model, fused):
        EDITS[edit](m if mode == "sequential" else m[0] if mode == "nested" else m.layers)
        torch.manual_seed(2)
        m.to(torch.float64 if width == 4 else torch.float32)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64) if width == 4 else torch.randn(4, 3, 16, 16)
    for training in (True, False):
        assert_same(model.train(training), fused.train(training), x)
    assert_same(gan_fast.unfuse(fused), gan_fast.fuse(model), x)


def test_layer_inserted_into_a_list_gets_tensors() -> None:
    """An insertion shifts the names in a ModuleList, so that the traced groups no longer hold."""
    torch.manual_seed(0)
    model = Inner(nn.ModuleList([nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()]), "index").double()
    fused = gan_fast.fuse(model)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for index, make in ((1, TensorOnly), (4, nn.Sigmoid), (0, TensorOnly), (6, TensorOnly)):
        for m in (model, fused):
            m.layers.insert(index, make())
        assert_same(model, fused, x)


def test_repr_shows_the_groups_after_an_edit() -> None:
    """A Sequential gets new groups; a module with a custom forward loses the old ones."""
    model = gan_fast.fuse(nn.Sequential(layers()))
    assert "fused: conv + bn + act, norm + last" in str(model)
    move_to_end(model, "act")
    assert "fused: conv + bn, norm + last, end + act" in str(model)
    other = gan_fast.fuse(Inner(nn.Sequential(layers()), "index"))
    assert "fused: layers.conv + layers.bn + layers.act, layers.norm + layers.last, layers.end" in str(other)
    move_to_end(other.layers, "act")
    assert "fused: layers" not in str(other)


# Random models have few channels and small images, so that thousands run in minutes.
WIDTH = 3


class Residual(nn.Module):
    """A block that calls its layers by attribute, or iterates over them."""

    def __init__(self, draw: random.Random, dims: int) -> None:
        super().__init__()
        self.conv, self.norm = drawn_convolution(draw, dims), drawn_norm(draw, dims)
        self.act, self.tail = drawn_activation(draw), drawn_convolution(draw, dims)
        self.variant = draw.randrange(4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.conv(x))
        if self.variant == 0:
            return x + self.tail(self.act(h))
        if self.variant == 1:
            return x + F.leaky_relu(self.tail(torch.tanh(h)), 0.3)
        if self.variant == 2:
            return self.act(x + h)
        for layer in self.children():
            x = layer(x)
        return x


class InOrder(nn.Module):
    """Calls the layers of a list in order."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def drawn_convolution(draw: random.Random, dims: int) -> nn.Module:
    kind = getattr(nn, f"{draw.choice(('Conv', 'Conv', 'ConvTranspose'))}{dims}d")
    layer: nn.Module = kind(WIDTH, WIDTH, 3, padding=1, bias=draw.random() < 0.5)
    return layer


def drawn_norm(draw: random.Random, dims: int) -> nn.Module:
    name = draw.choice(("BatchNorm", "BatchNorm", "InstanceNorm"))
    layer: nn.Module = getattr(nn, f"{name}{dims}d")(WIDTH, affine=draw.random() < 0.7)
    return layer


def drawn_activation(draw: random.Random) -> nn.Module:
    make = draw.choice((nn.ReLU, lambda: nn.ReLU(True), lambda: nn.LeakyReLU(0.2, True), nn.Tanh, nn.Sigmoid, nn.ELU))
    layer: nn.Module = make()
    return layer


def drawn_layer(draw: random.Random, dims: int, depth: int = 0) -> nn.Module:
    which = draw.randrange(10 if depth < 2 else 7)
    if which < 3:
        return drawn_convolution(draw, dims)
    if which < 6:
        return drawn_norm(draw, dims) if which < 5 else drawn_activation(draw)
    if which == 6:
        return draw.choice((TensorOnly, nn.Identity, lambda: nn.GroupNorm(1, WIDTH), lambda: nn.Dropout(0.3)))()
    if which == 7:
        return Residual(draw, dims)
    inner = drawn_layers(draw, dims, depth + 1)
    return nn.Sequential(*inner) if which == 8 else InOrder(inner)


def drawn_layers(draw: random.Random, dims: int, depth: int) -> list[nn.Module]:
    found: list[nn.Module] = []
    for _ in range(draw.randint(1, 3)):
        if draw.random() < 0.6:
            found.append(drawn_convolution(draw, dims))
            found += [drawn_norm(draw, dims)] if draw.random() < 0.7 else []
            found += [drawn_activation(draw)] if draw.random() < 0.8 else []
        else:
            found.append(drawn_layer(draw, dims, depth))
        if draw.random() < 0.1:
            found.append(draw.choice(found))
    return found


def edit(model: nn.Module, draw: random.Random, dims: int) -> None:
    """Make one random edit, the same for the same state of ``draw`` and the same names in ``model``."""
    owners = [m for m in model.modules() if isinstance(m, (nn.Sequential, nn.ModuleList, Residual))]
    owner: Any = draw.choice(owners)
    names = list(owner._modules)
    new = drawn_layer(draw, dims, 2).double()
    name, other = draw.choice(names or ["none"]), draw.choice(names or ["none"])
    which = draw.randrange(13)
    if not names and not isinstance(owner, Residual):
        owner.append(new)
    elif isinstance(owner, Residual):
        if which < 6:
            setattr(owner, name, new)
        elif which < 9:
            setattr(owner, name, nn.Sequential(owner._modules[name], new))
        else:
            a, b = owner._modules[name], owner._modules[other]
            owner._modules[name], owner._modules[other] = b, a
    elif which == 0:
        owner[names.index(name)] = new
    elif which == 1:
        owner.insert(names.index(name), new) if all(map(str.isdigit, names)) else owner.append(new)
    elif which == 2:
        owner.append(new)
    elif which == 3:
        owner.extend([new, owner[names.index(other)]])
    elif which == 4:
        del owner[names.index(name)]
    elif which == 5:
        owner.pop(names.index(name))
    elif which == 6:
        move_to_end(owner, name)
    elif which == 7:
        reorder(owner, draw.sample(names, len(names)))
    elif which == 8:
        owner.add_module(draw.choice((name, "added")), new)
    elif which == 9:
        setattr(owner, name, owner._modules[other])
    elif which == 10:
        owner._modules[name] = new
    elif which == 11 and isinstance(owner, nn.Sequential):
        # Modules of one container in a new one, as slicing makes it.
        layers = list(owner.children())
        owner[names.index(name)] = nn.Sequential(OrderedDict((f"part{i}", m) for i, m in enumerate(layers[:2])))
    else:
        a, b = names.index(name), names.index(other)
        owner[a : max(a, b) + 1].add_module("unused", new)
        owner._modules[name] = nn.Sequential(new, owner._modules[name])


@pytest.mark.parametrize("seed", drawn.seeds(40))
def test_random_edits_match_eager(seed: int) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    dims = draw.choice((1, 2, 2, 2, 3))
    model = nn.Sequential(*drawn_layers(draw, dims, 0)).double()
    fused = gan_fast.fuse(model)
    x = torch.randn(2, WIDTH, *(4,) * dims, dtype=torch.float64)
    for _ in range(draw.randint(1, 4)):
        state = draw.getstate()
        for m in (model, fused):
            draw.setstate(state)
            torch.manual_seed(seed)
            edit(m, draw, dims)
        training = draw.random() < 0.6
        if is_at_kink(model.train(training), x):
            return
        assert_same(model, fused.train(training), x)


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return grad_output * 2


OTHER_PATHS: dict[str, Callable[[Any], Any]] = {
    "autograd.Function": _Double.apply,
    "isinstance": lambda h: h if isinstance(h, Tensor) else h * 0,
    "checkpoint": lambda h: torch.utils.checkpoint.checkpoint(torch.sin, h, use_reentrant=False),
    "vmap": lambda h: torch.func.vmap(torch.sin)(h),
    "method of Tensor": lambda h: Tensor.mul(h, 2),
}


class Branching(nn.Module):
    def __init__(self, other: Callable[[Any], Any]) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.other, self.options = other, [False]
        self.flag, self.level, self.calls = False, 0, 0

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        flag = self.flag
        h = self.conv(x)
        if flag or self.level > 1 or self.options[0]:
            return self.other(h)
        return torch.relu(self.norm(h))


@pytest.mark.parametrize("changed", [{"flag": True}, {"level": 2}], ids=str)
@pytest.mark.parametrize("other", OTHER_PATHS)
def test_changed_attribute_runs_layers_one_by_one(other: str, changed: dict[str, Any]) -> None:
    torch.manual_seed(0)
    eager = Branching(OTHER_PATHS[other])
    models = [eager, gan_fast.fuse(eager)]
    x = torch.randn(2, 3, 6, 6)
    found = []
    for model in models:
        model(x)
        vars(model).update(changed)
        output = model(x)
        found.append([output, *torch.autograd.grad(output.square().sum(), model.conv.parameters())])
    for want, got in zip(*found):
        torch.testing.assert_close(got, want)
    plan = vars(models[1])["_gan_fast_plan"]
    assert not plan.deferring(models[1])
    vars(models[1]).update(flag=False, level=0)
    assert len(plan.deferring(models[1])) == 2, "the call counter must not turn fusion off"


def test_autograd_function_on_an_untraced_path_is_an_error() -> None:
    model = gan_fast.fuse(Branching(_Double.apply))
    model.options[0] = True
    with pytest.raises(RuntimeError, match=r"which would lose the gradient; call gan_fast\.unfuse\(model\)"):
        model(torch.randn(2, 3, 6, 6))


def test_deferred_tensor_can_be_copied() -> None:
    model = gan_fast.fuse(Branching(copy.copy))
    model.options[0] = True
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(model(x), model.conv(x))
