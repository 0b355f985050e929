from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import gan_fast
from gan_fast import nn as fused
from gan_fast.models import DCGANDiscriminator, DCGANGenerator


def by_torch(model: nn.Module, **options: Any) -> nn.Module:
    for layer in model.modules():
        if isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)) and not parametrize.is_parametrized(layer):
            parametrizations.spectral_norm(layer, **options)
    return model


def pair(model: nn.Module, **options: Any) -> tuple[nn.Module, nn.Module]:
    """The model normalised by us and by torch, with the same vectors to begin with."""
    ours, theirs = fused.spectral_norm(copy.deepcopy(model), **options), by_torch(copy.deepcopy(model), **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def eager(model: DCGANDiscriminator) -> nn.Sequential:
    """The layers of torch.nn alone, sharing the weights and vectors of a copy that torch normalises."""
    layers: list[nn.Module] = []
    for block in model.blocks:
        conv = block.conv
        plain = nn.Conv2d(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=conv.bias is not None
        ).to(torch.float64)
        layers.append(parametrizations.spectral_norm(plain))
        plain.load_state_dict(conv.state_dict())
        if block.activation != "identity":
            layers.append(nn.LeakyReLU(0.2))
    return nn.Sequential(*layers)


def second_order(model: Any, images: Tensor, layers: list[nn.Module]) -> list[Tensor]:
    images = images.clone().requires_grad_()
    weights = [layer.parametrizations["weight"].original for layer in layers]
    logits = model(images).flatten()
    (grad,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    penalty = (grad.flatten(1).norm(dim=1) - 1).square().mean()
    return [logits, grad, *torch.autograd.grad(logits.sigmoid().sum() + penalty, [images, *weights])]


@pytest.mark.parametrize("small", [-1, 8192])
def test_a_critic_equals_eager_s_to_second_order(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gan_fast.backends, "SMALL", small)
    model = DCGANDiscriminator(channels=2, image_size=16, width=4, norm="none").double()
    fused.spectral_norm(model)
    chain = eager(model)
    x = torch.randn(3, 2, 16, 16, dtype=torch.float64)
    for training in (True, True, False):
        ours = second_order(model.train(training), x, [block.conv for block in model.blocks])
        want = second_order(chain.train(training), x, list(chain[::2]))
        for got, wanted in zip(ours, want):
            torch.testing.assert_close(got, wanted)
    for got, wanted in zip(model.state_dict().values(), chain.state_dict().values()):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("kind", ["torch", "ours"])
@pytest.mark.parametrize(
    "block",
    [
        lambda: fused.ConvAct2d(4, 6, 3, 2, 1),
        lambda: fused.ConvTransposeAct2d(4, 6, 4, 2, 1),
        lambda: fused.ConvBNAct2d(4, 6, 3, 2, 1, bias=True),
        lambda: fused.ConvTransposeBNAct2d(4, 6, 4, 2, 1),
        lambda: fused.ConvAct2d(4, 6, 3, memory_format=torch.channels_last),
    ],
    ids=["conv", "transposed", "norm", "transposed_norm", "channels_last"],
)
def test_parametrised_blocks_keep_the_fused_path(block: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The convolution's own forward is not called, its weight is computed once a pass, and results are those of it."""
    module = block()
    apply = parametrizations.spectral_norm if kind == "torch" else fused.spectral_norm
    apply(module.conv)
    seen = copy.deepcopy(module)
    seen.conv.register_forward_hook(lambda *_: None)
    computed = []
    module.conv.parametrizations["weight"].register_forward_hook(lambda *_: computed.append(1))
    x = torch.randn(3, 4, 8, 8)
    for training in (True, False):
        for part in (module, seen):
            part.train(training)
        computed.clear()
        with monkeypatch.context() as patch:
            patch.setattr(module.conv_type, "forward", lambda *_: pytest.fail("the chain was run"))
            results = [module(x)]
            assert len(computed) == 1
            with torch.no_grad():
                results.append(module(x))
            assert len(computed) == 2
        wanted = [seen(x), seen(x)]
        torch.testing.assert_close(results, wanted)
    for got, want in zip(module.state_dict().values(), seen.state_dict().values()):
        torch.testing.assert_close(got, want)


def test_a_subclass_is_more_than_its_parametrisations() -> None:
    class Doubled(fused.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    block = fused.ConvAct2d(3, 4, 3, bias=False, activation="identity")
    plain = block(x := torch.randn(2, 3, 5, 5))
    doubled = Doubled(3, 4, 3, bias=False)
    doubled.load_state_dict(block.conv.state_dict())
    block.conv = doubled
    torch.testing.assert_close(block(x), 2 * plain)
    fused.spectral_norm(doubled).eval()
    torch.testing.assert_close(block(x), 2 * F.conv2d(x, doubled.weight))


def models() -> list[nn.Module]:
    return [
        nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6, 5)),
        nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2)),
        nn.Linear(3, 4),
    ]


def inputs() -> list[Tensor]:
    return [torch.randn(2, 3, 8), torch.randn(2, 3, 4, 4), torch.randn(2, 3)]


@pytest.mark.parametrize("index", range(3))
def test_values_are_torch_s(index: int) -> None:
    model, x = models()[index], inputs()[index]
    model(x)
    ours, theirs = pair(model, n_power_iterations=2)
    for training in (True, True, False):
        torch.testing.assert_close(ours.train(training)(x), theirs.train(training)(x))
    for (name, got), want in zip(ours.state_dict().items(), theirs.state_dict().values()):
        torch.testing.assert_close(got, want, msg=name)


def test_every_layer_of_a_model_has_norm_one() -> None:
    generator = fused.spectral_norm(DCGANGenerator(8, 1, 16, 8))
    for _ in range(60):
        generator(torch.randn(2, 8))
    for layer in (block.conv for block in generator.blocks):
        norm = torch.linalg.matrix_norm(layer.weight.movedim(1, 0).flatten(1), 2)
        assert norm.item() == pytest.approx(1, abs=1e-3)


def test_idempotent_and_leaves_torch_s_alone() -> None:
    model = models()[0]
    parametrizations.spectral_norm(model[0])
    before = model[0].parametrizations["weight"][0]
    assert fused.spectral_norm(model) is model
    assert fused.spectral_norm(model) is model
    assert model[0].parametrizations["weight"][0] is before
    assert [len(model[i].parametrizations["weight"]) for i in (0, 3)] == [1, 1]


def test_parameters_stay_and_go_back() -> None:
    model = DCGANDiscriminator(channels=1, image_size=16, width=4)
    keys, parameters = list(model.state_dict()), {id(p) for p in model.parameters()}
    fused.spectral_norm(model)
    assert {id(p) for p in model.parameters()} == parameters
    x = torch.randn(2, 1, 16, 16)
    want = model.eval()(x)
    assert fused.remove_spectral_norm(model.train()) is model
    assert sorted(model.state_dict()) == sorted(keys)
    assert {id(p) for p in model.parameters()} == parameters
    assert type(model.blocks[0].conv) is fused.Conv2d
    torch.testing.assert_close(model.eval()(x), want)
    fused.remove_spectral_norm(model)


def test_training_with_loss_on_two_batches() -> None:
    """Both forwards move the vectors before the one backward; a deep copy trains on by itself."""
    ours, theirs = pair(DCGANDiscriminator(channels=1, image_size=16, width=4, norm="none").double())
    other = copy.deepcopy(ours)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        real, fake = torch.randn(2, 4, 1, 16, 16, dtype=torch.float64, generator=generator)
        for model in (ours, theirs, other):
            for p in model.parameters():
                p.grad = None
            gan_fast.ops.minimax_d_loss(model(real), model(fake)).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
    for got, copied, want in zip(*(m.state_dict().values() for m in (ours, other, theirs))):
        torch.testing.assert_close(got, want)
        assert torch.equal(copied, got)


def hooked() -> nn.Module:
    return nn.utils.spectral_norm(nn.Linear(2, 2))


def doubly() -> nn.Module:
    return fused.spectral_norm(parametrizations.weight_norm(nn.Linear(2, 2)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fused.spectral_norm(nn.ReLU()), ValueError,
         "spectral_norm: expected module with a convolution or linear layer, got none"),
        (lambda: fused.spectral_norm(torch.ones(2, 2)), TypeError,
         "spectral_norm: expected module type Module, got Tensor"),
        (lambda: fused.spectral_norm(nn.Linear(2, 2), 0), ValueError,
         "spectral_norm: expected n_power_iterations at least 1, got 0"),
        (lambda: fused.spectral_norm(nn.Linear(2, 2), 1.5), TypeError,
         "spectral_norm: expected n_power_iterations type int, got float"),
        (lambda: fused.spectral_norm(nn.Sequential(nn.LazyLinear(2))), ValueError,
         "spectral_norm: expected weight of 0 with a shape, got a lazy layer's"),
        (lambda: fused.spectral_norm(hooked()), ValueError,
         "spectral_norm: expected weight of itself a parameter, got one that a hook computes"),
        (lambda: fused.remove_spectral_norm(doubly()), ValueError,
         "remove_spectral_norm: expected weight of itself with no parametrisation beside it, got 1"),
        (lambda: fused.remove_spectral_norm(None), TypeError,
         "remove_spectral_norm: expected module type Module, got NoneType"),
    ],
)  # fmt: skip
def test_bad_input(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message


def test_nothing_changes_where_one_layer_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2), hooked())
    with pytest.raises(ValueError, match="weight of 1 a parameter"):
        fused.spectral_norm(model)
    assert not parametrize.is_parametrized(model[0])
