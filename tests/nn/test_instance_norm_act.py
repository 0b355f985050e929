from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from gan_fast.nn import InstanceNormAct1d, InstanceNormAct2d, InstanceNormAct3d

PAIRS = [
    (InstanceNormAct1d, nn.InstanceNorm1d, (6, 4, 5)),
    (InstanceNormAct1d, nn.InstanceNorm1d, (4, 5)),
    (InstanceNormAct2d, nn.InstanceNorm2d, (6, 4, 5, 3)),
    (InstanceNormAct2d, nn.InstanceNorm2d, (4, 5, 3)),
    (InstanceNormAct3d, nn.InstanceNorm3d, (6, 4, 2, 3, 2)),
]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"affine": True},
    {"track_running_stats": True},
    {"affine": True, "track_running_stats": True, "momentum": 0.5, "eps": 1e-3},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("kind", "torch_kind", "shape"), PAIRS, ids=lambda v: getattr(v, "__name__", str(v)))
def test_matches_instance_norm_and_activation(kind: Any, torch_kind: Any, shape: tuple[int, ...], options: Any) -> None:
    fused = kind(4, **options, activation="leaky_relu", negative_slope=0.2)
    eager = nn.Sequential(torch_kind(4, **options), nn.LeakyReLU(0.2))
    assert list(fused.state_dict()) == list(eager[0].state_dict())
    eager[0].load_state_dict(fused.state_dict())
    for mode in (True, True, False):
        fused.train(mode)
        eager.train(mode)
        x = torch.randn(shape)
        torch.testing.assert_close(fused(x), eager(x))
    for name, value in eager[0].state_dict().items():
        torch.testing.assert_close(fused.state_dict()[name], value, msg=name)


def test_copies_give_the_same_output_and_repr_shows_the_activation() -> None:
    norm = InstanceNormAct2d(4, affine=True)
    x = torch.randn(3, 4, 2, 2)
    for other in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        torch.testing.assert_close(other(x), norm(x))
    description = nn.InstanceNorm2d(4, affine=True).extra_repr()
    assert repr(norm) == f"InstanceNormAct2d({description}, activation='leaky_relu', negative_slope=0.01)"
    assert isinstance(norm, nn.InstanceNorm2d)


@pytest.mark.parametrize("shape", [(2, 4, 1, 1), (2, 3, 5, 5), (2, 4), (1, 2, 4, 5, 5)])
def test_wrong_shape_raises_the_error_of_torch(shape: tuple[int, ...]) -> None:
    errors = []
    for module in (InstanceNormAct2d(4, affine=True), nn.InstanceNorm2d(4, affine=True)):
        with pytest.raises((RuntimeError, ValueError)) as caught:
            module(torch.randn(shape))
        errors.append((type(caught.value), str(caught.value)))
    assert errors[0] == errors[1]


def test_unknown_activation_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"InstanceNormAct2d: expected activation one of identity, .*, got 'gelu'"):
        InstanceNormAct2d(4, activation="gelu")
