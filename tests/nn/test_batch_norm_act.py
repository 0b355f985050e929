from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import gan_fast
from gan_fast.nn import BatchNormAct1d, BatchNormAct2d, BatchNormAct3d

PAIRS = [
    (BatchNormAct1d, nn.BatchNorm1d, (6, 4)),
    (BatchNormAct1d, nn.BatchNorm1d, (6, 4, 5)),
    (BatchNormAct2d, nn.BatchNorm2d, (6, 4, 5, 3)),
    (BatchNormAct3d, nn.BatchNorm3d, (6, 4, 2, 3, 2)),
]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"momentum": None},
    {"affine": False},
    {"track_running_stats": False},
    {"eps": 1e-3, "momentum": 0.5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("ours", "theirs", "shape"), PAIRS, ids=lambda v: getattr(v, "__name__", str(v)))
def test_is_batch_norm_with_an_activation(ours: Any, theirs: Any, shape: tuple[int, ...], options: Any) -> None:
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


@pytest.mark.parametrize(("ours", "theirs", "shape"), PAIRS, ids=lambda v: getattr(v, "__name__", str(v)))
def test_wrong_number_of_dims_is_an_error(ours: Any, theirs: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected .*D"):
        ours(4)(torch.randn(*shape, 2, 2))


def test_one_value_per_channel_in_training_is_an_error() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel when training"):
        BatchNormAct2d(4)(torch.randn(1, 4, 1, 1))


def test_unknown_activation_is_named() -> None:
    with pytest.raises(ValueError, match=r"BatchNormAct2d: expected activation one of identity, .*, got 'gelu'"):
        BatchNormAct2d(4, activation="gelu")


def test_statistics_dropped_after_construction() -> None:
    fused, eager = BatchNormAct2d(3, activation="identity").eval(), nn.BatchNorm2d(3).eval()
    x = torch.randn(4, 3, 2, 2)
    for module in (fused, eager):
        module.running_mean.fill_(2.0)
        module.track_running_stats = False
    torch.testing.assert_close(fused(x), eager(x))
    for module in (fused, eager):
        module.running_mean = module.running_var = None
    torch.testing.assert_close(fused(x), eager(x))


def test_frozen_statistics_in_training() -> None:
    bn = BatchNormAct2d(4).eval()
    before = bn.running_mean.clone()
    bn(torch.randn(3, 4, 2, 2, requires_grad=True)).sum().backward()
    assert torch.equal(bn.running_mean, before)
    assert bn.weight.grad is not None


def test_copies_and_prints() -> None:
    bn = BatchNormAct2d(4, activation="leaky_relu", negative_slope=0.2)
    x = torch.randn(3, 4, 2, 2)
    expected = bn.eval()(x)
    for other in (copy.deepcopy(bn), pickle.loads(pickle.dumps(bn))):
        assert torch.equal(other(x), expected)
    assert repr(bn) == f"BatchNormAct2d({nn.BatchNorm2d(4).extra_repr()}, activation='leaky_relu', negative_slope=0.2)"
    assert isinstance(bn, nn.BatchNorm2d)


def test_functional_call_and_per_sample_gradients() -> None:
    bn = BatchNormAct1d(3, activation="tanh").eval()
    parameters = dict(bn.named_parameters())
    buffers = dict(bn.named_buffers())
    x = torch.randn(5, 3)

    def loss(parameters: dict[str, torch.Tensor], sample: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(bn, (parameters, buffers), (sample[None],)).sum()

    grads = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for index in range(5):
        bn.zero_grad()
        bn(x[index : index + 1]).sum().backward()
        torch.testing.assert_close(grads["weight"][index], bn.weight.grad)


def test_moves_between_backends() -> None:
    bn = BatchNormAct2d(4, activation="relu")
    x = torch.randn(3, 4, 5, 5)
    with gan_fast.use_backend("reference"):
        reference = bn.eval()(x)
    torch.testing.assert_close(bn(x), reference)
