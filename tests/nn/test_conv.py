from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import gan_fast

CASES: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
    ("Conv1d", {"stride": 2, "padding": 1}, (2, 4, 9)),
    ("Conv2d", {"groups": 2, "padding": "same"}, (2, 4, 7, 6)),
    ("Conv2d", {"padding": 1, "padding_mode": "reflect", "bias": False}, (2, 4, 7, 6)),
    ("Conv2d", {"padding": (1, 0), "padding_mode": "circular"}, (4, 7, 6)),
    ("Conv3d", {"dilation": 2}, (1, 4, 6, 7, 5)),
    ("ConvTranspose1d", {"stride": 2, "output_padding": 1}, (2, 4, 5)),
    ("ConvTranspose2d", {"stride": 2, "padding": 1, "groups": 2}, (2, 4, 5, 6)),
    ("ConvTranspose3d", {"bias": False, "dilation": (1, 2, 1)}, (1, 4, 3, 2, 4)),
]


@pytest.mark.parametrize(("name", "options", "shape"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_stands_in_for_torch_nn(name: str, options: dict[str, Any], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    theirs = getattr(nn, name)(4, 6, 3, **options)
    torch.manual_seed(0)
    ours = getattr(gan_fast.nn, name)(4, 6, 3, **options)
    assert repr(ours) == repr(theirs)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(shape)
    for module in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(module(x), theirs(x))


def test_output_size() -> None:
    x = torch.randn(1, 2, 4, 4)
    module = gan_fast.nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1)
    assert module(x, output_size=[8, 7]).shape == (1, 3, 8, 7)
    with pytest.raises(ValueError, match="requested an output size"):
        module(x, output_size=[20, 20])


@pytest.mark.parametrize("inplace", [False, True])
def test_leaky_relu(inplace: bool) -> None:
    ours, theirs = gan_fast.nn.LeakyReLU(0.2, inplace), nn.LeakyReLU(0.2, inplace)
    assert repr(ours) == repr(theirs)
    x = torch.randn(7)
    assert torch.equal(ours(x.clone()), theirs(x.clone()))
