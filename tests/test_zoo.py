"""The networks of the zoo run, are deterministic and can be differentiated twice."""

from __future__ import annotations

import copy
import pickle
import random

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from zoo import ZOO, Entry

each = pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)


# Parameters of layers that the network has but does not call.
UNUSED = {
    "wavegan_generator_upsampling": {"bn1.weight", "bn1.bias"},
    "progressive_generator": {"initial_rgb.bias", "initial_rgb.conv.weight"},
    "progressive_critic": {"rgb_layers.2.bias", "rgb_layers.2.conv.weight"},
}


def build(entry: Entry) -> nn.Module:
    torch.manual_seed(0)
    return entry.build()


def run(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    torch.manual_seed(1)
    random.seed(1)
    return tree_leaves(model(*inputs))


def double(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(t.double().requires_grad_() if t.is_floating_point() else t for t in inputs)


def test_names_are_unique() -> None:
    assert len({entry.name for entry in ZOO}) == len(ZOO)


@each
def test_network_is_deterministic(entry: Entry) -> None:
    model, inputs = build(entry), entry.inputs()
    assert all(t.dtype in (torch.float32, torch.int64) for t in inputs)
    again = build(entry)
    assert model.state_dict().keys() == again.state_dict().keys()
    copied = copy.deepcopy(model)
    for training in (True, False):
        outputs = [run(m.train(training), entry.inputs()) for m in (model, again, copied)]
        for first, *others in zip(*outputs):
            assert first.dtype == torch.float32
            assert first.isfinite().all()
            # Any two networks with constant outputs would compare equal.
            assert first.numel() == 1 or first.std() > 0
            for other in others:
                assert torch.equal(first, other)
    for name, value in model.state_dict().items():
        assert torch.equal(value, copied.state_dict()[name]), name


@each
def test_gradient_penalty_reaches_every_parameter(entry: Entry) -> None:
    """Together with the loss, since some parameters have no second derivative."""
    model, inputs = build(entry).double(), double(entry.inputs())
    floats = [t for t in inputs if t.requires_grad]
    loss = sum(t.square().mean() for t in run(model, inputs))
    grads = torch.autograd.grad(loss, floats, create_graph=True)
    penalty = sum(grad.square().sum() for grad in grads)
    assert penalty.requires_grad
    assert penalty > 0
    second = torch.autograd.grad(penalty, list(model.parameters()), retain_graph=True, allow_unused=True)
    assert any(grad is not None and grad.abs().max() > 0 for grad in second)
    (loss + penalty).backward()
    by_name = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert {name for name, grad in by_name.items() if grad is None} == UNUSED.get(entry.name, set())
    for name, grad in by_name.items():
        assert grad is None or grad.isfinite().all(), name


@each
def test_workload_runs_on_two_samples(entry: Entry) -> None:
    model, inputs = entry.workload()
    with torch.no_grad():
        outputs = run(model.eval(), tuple(t[:2] for t in inputs))
    assert all(output.isfinite().all() for output in outputs)


@each
def test_network_can_be_pickled(entry: Entry) -> None:
    model = build(entry)
    if any(nn.utils.parametrize.is_parametrized(module) for module in model.modules()):
        # torch refuses to pickle parametrized layers.
        model.load_state_dict(copy.deepcopy(model).state_dict())
        return
    loaded = pickle.loads(pickle.dumps(model))
    for first, other in zip(run(model, entry.inputs()), run(loaded, entry.inputs())):
        assert torch.equal(first, other)
