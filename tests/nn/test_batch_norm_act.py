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
@pytest.mark.parametrize(("kind", "torch_kind", "shape"), PAIRS, ids=lambda v: getattr(v, "__name__", str(v)))
def test_matches_batch_norm_and_activation(kind: Any, torch_kind: Any, shape: tuple[int, ...], options: Any) -> None:
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


@pytest.mark.parametrize(("kind", "torch_kind", "shape"), PAIRS, ids=lambda v: getattr(v, "__name__", str(v)))
def test_wrong_number_of_dims_is_an_error(kind: Any, torch_kind: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected .*D"):
        kind(4)(torch.randn(*shape, 2, 2))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (2, 3, 5, 5), (2, 4, 5), (4,)])
def test_wrong_shape_raises_the_error_of_torch(shape: tuple[int, ...], training: bool) -> None:
    x = torch.randn(shape)
    errors = []
    for module in (BatchNormAct2d(4), nn.BatchNorm2d(4)):
        module.train(training)
        statistics = module.running_mean.clone()
        try:
            module(x)
        except (RuntimeError, ValueError) as error:
            errors.append((type(error), str(error)))
        assert torch.equal(module.running_mean, statistics)
    if shape == (1, 4, 1, 1) and not training:
        assert errors == []
    else:
        assert len(errors) == 2
        assert errors[0] == errors[1]


def test_unknown_activation_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"BatchNormAct2d: expected activation one of identity, .*, got 'gelu'"):
        BatchNormAct2d(4, activation="gelu")


def test_statistics_can_be_dropped_after_construction() -> None:
    fused, eager = BatchNormAct2d(3, activation="identity").eval(), nn.BatchNorm2d(3).eval()
    x = torch.randn(4, 3, 2, 2)
    for module in (fused, eager):
        module.running_mean.fill_(2.0)
        module.track_running_stats = False
    torch.testing.assert_close(fused(x), eager(x))
    for module in (fused, eager):
        module.running_mean = module.running_var = None
    torch.testing.assert_close(fused(x), eager(x))


def test_evaluation_mode_freezes_statistics() -> None:
    bn = BatchNormAct2d(4).eval()
    before = bn.running_mean.clone()
    bn(torch.randn(3, 4, 2, 2, requires_grad=True)).sum().backward()
    assert torch.equal(bn.running_mean, before)
    assert bn.weight.grad is not None


def test_copies_give_the_same_output_and_repr_shows_the_activation() -> None:
    bn = BatchNormAct2d(4, activation="leaky_relu", negative_slope=0.2)
    x = torch.randn(3, 4, 2, 2)
    expected = bn.eval()(x)
    for other in (copy.deepcopy(bn), pickle.loads(pickle.dumps(bn))):
        assert torch.equal(other(x), expected)
    assert repr(bn) == f"BatchNormAct2d({nn.BatchNorm2d(4).extra_repr()}, activation='leaky_relu', negative_slope=0.2)"
    assert isinstance(bn, nn.BatchNorm2d)


def test_per_sample_gradients_match_single_samples() -> None:
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


def test_backends_agree() -> None:
    bn = BatchNormAct2d(4, activation="relu")
    x = torch.randn(3, 4, 5, 5)
    with gan_fast.use_backend("reference"):
        reference = bn.eval()(x)
    torch.testing.assert_close(bn(x), reference)
