"""Every network of the zoo, fused: outputs, gradients, statistics and state match eager, and unfuse restores it."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from derivatives import cotangent, strides
from torch import Tensor, nn
from torch.utils import _pytree
from zoo import ZOO, Entry

import gan_fast

BOUND = 1e-6
KERNELS = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase)


def built(entry: Entry, dtype: torch.dtype) -> tuple[nn.Module, list[Tensor]]:
    torch.manual_seed(0)
    model = entry.build().to(dtype)
    inputs = [t.to(dtype) if t.is_floating_point() else t for t in entry.inputs()]
    return model, inputs


def names(model: nn.Module) -> list[tuple[str, str]]:
    return [(type(m).__module__, repr(type(m).__mro__)) for m in model.modules()]


def tensors(output: Any) -> list[Tensor]:
    return [t for t in _pytree.tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()]


def run(model: nn.Module, inputs: list[Tensor], order: int = 2) -> dict[str, Tensor]:
    """Outputs, first and second gradients, and buffers."""
    torch.manual_seed(1)
    random.seed(1)
    inputs = [t.detach().clone().requires_grad_(t.is_floating_point()) for t in inputs]
    outputs = tensors(model(*(t.clone() for t in inputs)))
    found = {f"output {i}": t.detach() for i, t in enumerate(outputs)}
    named = {f"input {i}": t for i, t in enumerate(inputs) if t.requires_grad} | dict(model.named_parameters())
    named = {name: t for name, t in named.items() if t.requires_grad}
    if order >= 1:
        scalar = sum((t * cotangent(t, i, t.dtype)).sum() for i, t in enumerate(outputs))
        first = torch.autograd.grad(scalar, list(named.values()), create_graph=order > 1, allow_unused=True)
        found |= {f"gradient by {n}": g.detach() for n, g in zip(named, first) if g is not None}
    if order >= 2:
        scalar = sum((g * cotangent(g, i, g.dtype)).sum() for i, g in enumerate(first) if g is not None and g.grad_fn)
        second = torch.autograd.grad(scalar, list(named.values()), allow_unused=True)
        found |= {f"second by {n}": g for n, g in zip(named, second) if g is not None}
    return found | {f"buffer {n}": b.clone() for n, b in model.named_buffers()}


def assert_close(fused: dict[str, Tensor], eager: dict[str, Tensor], bound: float) -> None:
    for name, wanted in eager.items():
        zeros = name not in fused and name.startswith("second")  # fused ops give None where ATen gives zeros
        got = torch.zeros_like(wanted) if zeros else fused[name]
        assert got.dtype == wanted.dtype, name
        assert got.shape == wanted.shape, name
        scale = max(1.0, wanted.abs().max().item()) if wanted.numel() else 1.0
        assert torch.allclose(got, wanted, rtol=0, atol=bound * scale), f"{name}: {(got - wanted).abs().max():.3g}"
    assert not [name for name in fused if name not in eager and not name.startswith("second")]


@pytest.fixture(params=ZOO, ids=lambda entry: entry.name)
def entry(request: pytest.FixtureRequest) -> Entry:
    found: Entry = request.param
    return found


def test_fused_matches_eager_in_double_precision(entry: Entry) -> None:
    model, inputs = built(entry, torch.float64)
    fused = gan_fast.fuse(model)
    assert_close(run(fused, inputs), run(model, inputs), BOUND)
    model.eval(), fused.eval()
    assert_close(run(fused, inputs), run(model, inputs), BOUND)
    with torch.no_grad():
        assert_close(run(fused, inputs, order=0), run(model, inputs, order=0), BOUND)


def test_fused_matches_eager_in_single_precision(entry: Entry) -> None:
    """Gradients are compared by norm, because rounding may move a value across the kink of a rectifier."""
    model, inputs = built(entry, torch.float32)
    fused = gan_fast.fuse(model)
    results, eager = run(fused, inputs, order=1), run(model, inputs, order=1)
    for name in [n for n in eager if n.startswith("gradient")]:
        got, wanted = results.pop(name), eager.pop(name)
        assert (got - wanted).norm() <= 2e-3 * max(1.0, wanted.norm().item()), name
    assert_close(results, eager, 2e-4)
    assert {n: strides(t) for n, t in results.items()} == {n: strides(t) for n, t in eager.items()}


def test_unfuse_restores_the_model(entry: Entry) -> None:
    model, inputs = built(entry, torch.float32)
    before = run(copy.deepcopy(model), inputs, order=0)
    classes = [type(m) for m in model.modules()]
    parameters = list(model.parameters())
    fused = gan_fast.fuse(model)
    assert list(fused.state_dict()) == list(model.state_dict())
    assert [type(m) for m in model.modules()] == classes, "fuse changed the model that it copied"
    assert gan_fast.fuse(model, inplace=True) is model
    again = names(model)
    gan_fast.fuse(model, inplace=True)
    assert names(model) == again
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert gan_fast.unfuse(model) is model
    assert [type(m) for m in model.modules()] == classes
    after = run(model, inputs, order=0)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_report_lists_fused_layers(entry: Entry) -> None:
    model, _ = built(entry, torch.float32)
    before, report = names(model), gan_fast.fuse_report(model)
    assert bool(report.fused) == any(isinstance(m, KERNELS) for m in model.modules())
    assert str(gan_fast.fuse_report(gan_fast.fuse(model))) == str(report)
    assert names(model) == before
