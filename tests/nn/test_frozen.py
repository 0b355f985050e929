"""Second gradients of a critic with frozen parameters are values, zeros or None exactly where eager's are."""

from __future__ import annotations

import copy

import pytest
import torch
from pairs import pairwise
from torch import Tensor, nn

import gan_fast
from gan_fast import backends

ACTIVATIONS = {"leaky_relu": lambda: nn.LeakyReLU(0.2), "relu": nn.ReLU, "tanh": nn.Tanh}
NORMS = {
    "batch": nn.BatchNorm2d, "instance": lambda c: nn.InstanceNorm2d(c, affine=True), "none": lambda c: nn.Identity(),
}  # fmt: skip
# The parameters that require a gradient.
TRAINABLE = {
    "none": lambda name: False,
    "biases": lambda name: name.endswith("bias"),
    "first": lambda name: name.startswith("0."),
    "norm's weight": lambda name: name == "3.weight",
    "norm's bias": lambda name: name == "3.bias",
}


def critic(activation: str, norm: str) -> nn.Sequential:
    act = ACTIVATIONS[activation]
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, 2, 1), act(), nn.Conv2d(8, 8, 4, 2, 1), NORMS[norm](8), act(), nn.Conv2d(8, 1, 4)
    )


def kinds(model: nn.Module, x: Tensor, how: str) -> tuple[str, ...]:
    """Whether each second (or third) gradient is None, zeros or values; or the error."""
    x = x.clone().requires_grad_()
    leaves = [x, *(p for p in model.parameters() if p.requires_grad)]
    try:
        (first,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        penalty = first.square().sum()
        if how == "backward":
            penalty.backward()
            found = [t.grad for t in (x, *model.parameters())]
        elif how == "third order":
            second = torch.autograd.grad(penalty, leaves, create_graph=True, allow_unused=True)
            third = sum(g.square().sum() for g in second if g is not None)
            found = torch.autograd.grad(third, leaves, allow_unused=True)
        else:
            found = torch.autograd.grad(penalty, leaves, allow_unused=False)
    except RuntimeError as error:
        return (str(error),)
    return tuple("None" if g is None else "values" if g.count_nonzero() else "zeros" for g in found)


@pytest.mark.parametrize(
    *pairwise(
        3,
        activation=ACTIVATIONS,
        norm=NORMS,
        training=[True, False],
        trainable=TRAINABLE,
        how=["backward", "grad", "third order"],
        small=[True, False],
    )
)
def test_gradients_are_none_or_zero_where_those_of_eager_are(
    activation: str, norm: str, training: bool, trainable: str, how: str, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "SMALL", 8192 if small else -1)
    model = critic(activation, norm).train(training)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(TRAINABLE[trainable](name))
    x = torch.randn(6, 3, 16, 16)
    fused = gan_fast.fuse(model)
    assert kinds(fused, x, how) == kinds(copy.deepcopy(model), x, how)


def test_frozen_block_frees_its_output() -> None:
    """Backward keeps the output's place in the graph, which zero gradients need, but not its values."""
    x = torch.randn(4, 8, 32, 32, requires_grad=True)
    output = gan_fast.ops.conv2d_act(x, torch.randn(8, 8, 3, 3), None, 1, 1, activation="leaky_relu")
    alive = torch.multiprocessing.reductions.StorageWeakRef(output.untyped_storage())
    node = output.grad_fn
    del output
    assert alive.expired()
    assert node is not None


@pytest.mark.parametrize("penalty", ["gradient_penalty", "r1_penalty"])
def test_penalty_of_a_frozen_critic_is_finite(penalty: str) -> None:
    model = critic("leaky_relu", "none").requires_grad_(False)
    real, fake = torch.randn(2, 6, 3, 16, 16)
    real.requires_grad_()
    for c in (model, gan_fast.fuse(model)):
        arguments = (real, fake) if penalty == "gradient_penalty" else (real,)
        value = getattr(gan_fast.ops, penalty)(c, *arguments)
        assert value.isfinite()
