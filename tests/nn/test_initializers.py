"""Weight initializers that match class names work on blocks, models and fused models."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

import gan_fast
from gan_fast import models
from gan_fast import nn as fast


def dcgan(m: nn.Module) -> None:
    name = m.__class__.__name__
    if name.find("Conv") != -1:
        nn.init.normal_(m.weight.data, 0.0, 0.02)  # type: ignore[arg-type]
    elif name.find("BatchNorm") != -1:
        nn.init.normal_(m.weight.data, 1.0, 0.02)  # type: ignore[arg-type]
        nn.init.constant_(m.bias.data, 0)  # type: ignore[arg-type]


def by_type(m: nn.Module) -> None:
    name = type(m).__name__
    if "Conv" in name or "Linear" in name:
        m.weight.data.normal_(0.0, 0.02)  # type: ignore[operator, union-attr]
    elif "BatchNorm2d" in name or "InstanceNorm2d" in name:
        m.weight.data.normal_(1.0, 0.02)  # type: ignore[operator, union-attr]
        m.bias.data.fill_(0)  # type: ignore[operator, union-attr]


def pix2pix(m: nn.Module) -> None:
    name = m.__class__.__name__
    if hasattr(m, "weight") and ("Conv" in name or "Linear" in name):
        nn.init.xavier_normal_(m.weight.data, gain=0.02)  # type: ignore[arg-type]
        if hasattr(m, "bias") and m.bias is not None:
            nn.init.constant_(m.bias.data, 0.0)  # type: ignore[arg-type]
    elif name.find("BatchNorm2d") != -1:
        nn.init.normal_(m.weight.data, 1.0, 0.02)  # type: ignore[arg-type]
        nn.init.constant_(m.bias.data, 0.0)  # type: ignore[arg-type]


def by_class(m: nn.Module) -> None:
    if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
        m.weight.data.normal_(0.0, 0.02)
    elif isinstance(m, (nn.BatchNorm2d, nn.InstanceNorm2d)):
        m.weight.data.normal_(1.0, 0.02)
        m.bias.data.fill_(0)


def torch_layers() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 4, 4, bias=False), nn.BatchNorm2d(4),
        nn.LeakyReLU(), nn.Conv2d(4, 4, 3), nn.Tanh(), nn.ConvTranspose2d(4, 4, 3), nn.Tanh(),
        nn.BatchNorm2d(4), nn.InstanceNorm2d(4, affine=True),
    )  # fmt: skip


def blocks() -> nn.Module:
    return nn.Sequential(
        fast.ConvBNAct2d(3, 8, 3, bias=True), fast.ConvTransposeBNAct2d(8, 4, 4), fast.ConvAct2d(4, 4, 3),
        fast.ConvTransposeAct2d(4, 4, 3), fast.BatchNormAct2d(4), fast.InstanceNormAct2d(4, affine=True),
    )  # fmt: skip


@pytest.mark.parametrize("initialize", [dcgan, by_type, pix2pix, by_class])
@pytest.mark.parametrize("build", [blocks, lambda: gan_fast.fuse(torch_layers())], ids=["blocks", "fused"])
def test_initializes_as_torch_layers(initialize: Callable[[nn.Module], None], build: Callable[[], nn.Module]) -> None:
    """Bit for bit: it reaches each layer once, in the same order."""
    expected, model = torch_layers(), build()
    model.load_state_dict(dict(zip(model.state_dict(), expected.state_dict().values(), strict=True)))
    for m in (expected, model):
        torch.manual_seed(0)
        m.apply(initialize)
    for a, b in zip(expected.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("initialize", [dcgan, by_type, pix2pix, by_class])
@pytest.mark.parametrize("build", [models.DCGANGenerator, models.DCGANDiscriminator])
def test_initializer_reaches_every_layer_of_a_model(
    initialize: Callable[[nn.Module], None], build: Callable[[], nn.Module]
) -> None:
    model = build().apply(initialize)
    for name, p in model.named_parameters():
        if name.endswith("bn.weight"):
            assert 0.9 < p.mean() < 1.1
        elif name.endswith("bn.bias"):
            assert not p.any()
        else:
            assert 0 < p.std() < 0.03


@pytest.mark.parametrize("name", [n for n in fast.__all__ if "Act" in n])
def test_public_name_in_repr_pickle_and_errors(name: str) -> None:
    """A user's subclass prints its own name."""
    kind = getattr(fast, name)
    module = kind(4, 4, 3) if "Conv" in name else kind(4)
    assert repr(module).startswith(f"{name}(")
    assert name in str(kind)
    assert type(pickle.loads(pickle.dumps(module))) is kind
    with pytest.raises(ValueError, match=rf"^{name}: expected activation"):
        kind(4, 4, 3, activation="none") if "Conv" in name else kind(4, activation="none")

    class Derived(kind):  # type: ignore[misc, valid-type]
        pass

    assert repr(Derived(4, 4, 3) if "Conv" in name else Derived(4)).startswith("Derived(")
