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
def test_matches_torch_nn(name: str, options: dict[str, Any], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    eager = getattr(nn, name)(4, 6, 3, **options)
    torch.manual_seed(0)
    conv = getattr(gan_fast.nn, name)(4, 6, 3, **options)
    assert repr(conv) == repr(eager)
    assert [n for n, _ in conv.named_parameters()] == [n for n, _ in eager.named_parameters()]
    conv.load_state_dict(eager.state_dict())
    x = torch.randn(shape)
    for module in (conv, copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert torch.equal(module(x), eager(x))


BAD_INPUTS: list[tuple[str, dict[str, Any], Any]] = [
    ("Conv2d", {}, torch.ones(2, 3, 8, 8)),
    ("Conv2d", {"groups": 2}, torch.ones(2, 3, 8, 8)),
    ("Conv2d", {}, torch.ones(2, 4)),
    ("Conv2d", {}, torch.ones(1, 2, 4, 8, 8)),
    ("Conv2d", {}, torch.ones(2, 4, 2, 8)),
    ("Conv2d", {"padding": 3, "padding_mode": "reflect"}, torch.ones(2, 4, 2, 2)),
    ("Conv1d", {}, torch.ones(2, 4, 8, dtype=torch.float64)),
    ("Conv3d", {}, torch.ones(2, 5, 8, 8, 8)),
    ("ConvTranspose2d", {}, torch.ones(2, 3, 8, 8)),
    ("ConvTranspose2d", {}, torch.ones(2, 4)),
    ("ConvTranspose2d", {}, torch.ones(2, 4, 8, 8, dtype=torch.int64)),
    ("ConvTranspose1d", {"padding": 4}, torch.ones(2, 4, 2)),
]


@pytest.mark.parametrize("small", [True, False], ids=["small", "large"])
@pytest.mark.parametrize(("name", "options", "x"), BAD_INPUTS, ids=[f"{c[0]}-{i}" for i, c in enumerate(BAD_INPUTS)])
def test_bad_input_raises_the_error_of_torch(
    name: str, options: dict[str, Any], x: Any, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not small:
        monkeypatch.setattr(gan_fast.backends, "SMALL", -1)
    eager = getattr(nn, name)(4, 6, 3, **options)
    modules = [eager, getattr(gan_fast.nn, name)(4, 6, 3, **options), gan_fast.fuse(eager)]
    if "dilation" not in options and "padding_mode" not in options:
        modules.append(
            getattr(gan_fast.nn, name.replace("Conv", "ConvAct").replace("ActTranspose", "TransposeAct"))(
                4, 6, 3, **options
            )
        )
    errors = []
    for module in modules:
        with pytest.raises((RuntimeError, TypeError, ValueError)) as caught:
            module(x)
        errors.append((type(caught.value), str(caught.value)))
    assert errors[1:] == errors[:1] * (len(modules) - 1)


def test_output_size_sets_the_output_shape() -> None:
    x = torch.randn(1, 2, 4, 4)
    module = gan_fast.nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1)
    assert module(x, output_size=[8, 7]).shape == (1, 3, 8, 7)
    with pytest.raises(ValueError, match="requested an output size"):
        module(x, output_size=[20, 20])


@pytest.mark.parametrize("inplace", [False, True])
def test_leaky_relu_matches_torch_nn(inplace: bool) -> None:
    fused, eager = gan_fast.nn.LeakyReLU(0.2, inplace), nn.LeakyReLU(0.2, inplace)
    assert repr(fused) == repr(eager)
    x = torch.randn(7)
    assert torch.equal(fused(x.clone()), eager(x.clone()))
