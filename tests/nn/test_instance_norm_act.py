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
@pytest.mark.parametrize(("ours", "theirs", "shape"), PAIRS, ids=lambda v: getattr(v, "__name__", str(v)))
def test_is_instance_norm_with_an_activation(ours: Any, theirs: Any, shape: tuple[int, ...], options: Any) -> None:
    fused = ours(4, **options, activation="leaky_relu", negative_slope=0.2)
    eager = nn.Sequential(theirs(4, **options), nn.LeakyReLU(0.2))
    assert list(fused.state_dict()) == list(eager[0].state_dict())
    eager[0].load_state_dict(fused.state_dict())
    for mode in (True, True, False):
        fused.train(mode)
        eager.train(mode)
        x = torch.randn(shape)
        torch.testing.assert_close(fused(x), eager(x))
    for name, value in eager[0].state_dict().items():
        torch.testing.assert_close(fused.state_dict()[name], value, msg=name)


def test_copies_and_prints() -> None:
    norm = InstanceNormAct2d(4, affine=True, activation="relu")
    x = torch.randn(3, 4, 2, 2)
    for other in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        torch.testing.assert_close(other(x), norm(x))
    assert repr(norm) == f"InstanceNormAct2d({nn.InstanceNorm2d(4, affine=True).extra_repr()}, activation='relu')"
    assert isinstance(norm, nn.InstanceNorm2d)


def test_unknown_activation_is_named() -> None:
    with pytest.raises(ValueError, match=r"InstanceNormAct2d: expected activation one of identity, .*, got 'gelu'"):
        InstanceNormAct2d(4, activation="gelu")
