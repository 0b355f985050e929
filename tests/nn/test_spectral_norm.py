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
    """The model with gan_fast's and with torch's spectral norm, from the same initial vectors."""
    normalized, eager = fused.spectral_norm(copy.deepcopy(model), **options), by_torch(copy.deepcopy(model), **options)
    assert list(normalized.state_dict()) == list(eager.state_dict())
    eager.load_state_dict(normalized.state_dict())
    return normalized, eager


def eager(model: DCGANDiscriminator) -> nn.Sequential:
    """The same network of torch.nn layers, normalized by torch, with the same weights and vectors."""
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
def test_critic_matches_eager_to_second_order(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gan_fast.backends, "SMALL", small)
    model = DCGANDiscriminator(channels=2, image_size=16, width=4, norm="none").double()
    fused.spectral_norm(model)
    layers = eager(model)
    x = torch.randn(3, 2, 16, 16, dtype=torch.float64)
    for training in (True, True, False):
        results = second_order(model.train(training), x, [block.conv for block in model.blocks])
        want = second_order(layers.train(training), x, list(layers[::2]))
        for got, wanted in zip(results, want):
            torch.testing.assert_close(got, wanted)
    for got, wanted in zip(model.state_dict().values(), layers.state_dict().values()):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("kind", ["torch", "gan_fast"])
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
def test_parametrized_block_stays_fused(block: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The convolution's forward is not called, and its weight is computed once per call."""
    module = block()
    apply = parametrizations.spectral_norm if kind == "torch" else fused.spectral_norm
    apply(module.conv)
    unfused = copy.deepcopy(module)
    unfused.conv.register_forward_hook(lambda *_: None)
    computed = []
    module.conv.parametrizations["weight"].register_forward_hook(lambda *_: computed.append(1))
    x = torch.randn(3, 4, 8, 8)
    for training in (True, False):
        for part in (module, unfused):
            part.train(training)
        computed.clear()
        with monkeypatch.context() as patch:
            patch.setattr(module.conv_type, "forward", lambda *_: pytest.fail("the block was not fused"))
            results = [module(x)]
            assert len(computed) == 1
            with torch.no_grad():
                results.append(module(x))
            assert len(computed) == 2
        wanted = [unfused(x), unfused(x)]
        torch.testing.assert_close(results, wanted)
    for got, want in zip(module.state_dict().values(), unfused.state_dict().values()):
        torch.testing.assert_close(got, want)


def test_forward_of_parametrized_subclass_runs() -> None:
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
def test_container_matches_torch_in_every_layer(index: int) -> None:
    model, x = models()[index], inputs()[index]
    model(x)
    normalized, eager = pair(model, n_power_iterations=2)
    for training in (True, True, False):
        torch.testing.assert_close(normalized.train(training)(x), eager.train(training)(x))
    for (name, got), want in zip(normalized.state_dict().items(), eager.state_dict().values()):
        torch.testing.assert_close(got, want, msg=name)


LAYERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "linear": (lambda: nn.Linear(3, 4), {}),
    "transposed": (lambda: nn.ConvTranspose2d(3, 4, 3), {"n_power_iterations": 3, "eps": 1e-6}),
    "dim": (lambda: nn.Conv2d(3, 4, 3), {"dim": 1}),
    "negative dim": (lambda: nn.Conv2d(3, 4, 3), {"dim": -1}),
    "embedding": (lambda: nn.Embedding(5, 4), {}),
    "bilinear": (lambda: nn.Bilinear(2, 3, 4), {}),
    "lstm": (lambda: nn.LSTM(3, 4), {"name": "weight_hh_l0"}),
    "vector": (lambda: nn.Linear(3, 4), {"name": "bias"}),
    "complex": (lambda: nn.Linear(3, 4, dtype=torch.complex64), {}),
}


@pytest.mark.parametrize("case", LAYERS)
def test_single_layer_matches_torch(case: str) -> None:
    make, options = LAYERS[case]
    name = options.get("name", "weight")
    layers = []
    for apply in (fused.spectral_norm, parametrizations.spectral_norm):
        torch.manual_seed(0)
        layers.append(apply(make(), **options))
    assert [(k, v.shape) for k, v in layers[0].state_dict().items()] == [
        (k, v.shape) for k, v in layers[1].state_dict().items()
    ]
    assert f"parametrizations.{name}.original" in layers[0].state_dict()
    for training in (True, True, False):
        got, want = (getattr(layer.train(training), name) for layer in layers)
        torch.testing.assert_close(got, want)
    for got, want in zip(layers[0].state_dict().values(), layers[1].state_dict().values()):
        torch.testing.assert_close(got, want)


def test_module_with_a_weight_is_one_layer() -> None:
    class Modulated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.affine = nn.Parameter(torch.randn(4, 3)), nn.Linear(2, 3)

    model = fused.spectral_norm(Modulated())
    assert parametrize.is_parametrized(model, "weight")
    assert not parametrize.is_parametrized(model.affine)
    model = fused.spectral_norm(nn.Sequential(Modulated()))
    assert not parametrize.is_parametrized(model[0])
    assert parametrize.is_parametrized(model[0].affine)


def test_container_normalizes_the_named_tensor() -> None:
    model = fused.spectral_norm(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False)), name="bias")
    assert parametrize.is_parametrized(model[0], "bias")
    assert not parametrize.is_parametrized(model[1])
    assert fused.remove_spectral_norm(model, name="bias")[0].bias.norm().item() == pytest.approx(1)
    assert not parametrize.is_parametrized(model[0])


def test_every_layer_of_a_generator_gets_norm_one() -> None:
    generator = fused.spectral_norm(DCGANGenerator(8, 1, 16, 8))
    for _ in range(60):
        generator(torch.randn(2, 8))
    for layer in (block.conv for block in generator.blocks):
        norm = torch.linalg.matrix_norm(layer.weight.movedim(1, 0).flatten(1), 2)
        assert norm.item() == pytest.approx(1, abs=1e-3)


def test_normalized_layers_are_left_unchanged() -> None:
    model = models()[0]
    parametrizations.spectral_norm(model[0])
    before = model[0].parametrizations["weight"][0]
    assert fused.spectral_norm(model) is model
    assert fused.spectral_norm(model) is model
    assert model[0].parametrizations["weight"][0] is before
    assert [len(model[i].parametrizations["weight"]) for i in (0, 3)] == [1, 1]


def test_parameters_stay_the_same_objects() -> None:
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


def test_training_on_two_batches_matches_torch() -> None:
    """Both forwards update the vectors before the one backward; a deep copy trains independently."""
    normalized, eager = pair(DCGANDiscriminator(channels=1, image_size=16, width=4, norm="none").double())
    other = copy.deepcopy(normalized)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        real, fake = torch.randn(2, 4, 1, 16, 16, dtype=torch.float64, generator=generator)
        for model in (normalized, eager, other):
            for p in model.parameters():
                p.grad = None
            gan_fast.ops.minimax_d_loss(model(real), model(fake)).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
    for got, copied, want in zip(*(m.state_dict().values() for m in (normalized, other, eager))):
        torch.testing.assert_close(got, want)
        assert torch.equal(copied, got)


def with_old_spectral_norm() -> nn.Module:
    return nn.utils.spectral_norm(nn.Linear(2, 2))


def with_weight_norm_too() -> nn.Module:
    return fused.spectral_norm(parametrizations.weight_norm(nn.Linear(2, 2)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fused.spectral_norm(nn.ReLU()), ValueError,
         "spectral_norm: expected module with a tensor 'weight', or with convolution or linear layers that have one, "
         "got ReLU"),
        (lambda: fused.spectral_norm(torch.ones(2, 2)), TypeError,
         "spectral_norm: expected module type Module, got Tensor"),
        (lambda: fused.spectral_norm(nn.Linear(2, 2), n_power_iterations=0), ValueError,
         "spectral_norm: expected n_power_iterations at least 1, got 0"),
        (lambda: fused.spectral_norm(nn.Linear(2, 2), n_power_iterations=1.5), TypeError,
         "spectral_norm: expected n_power_iterations type int, got float"),
        (lambda: fused.spectral_norm(nn.Sequential(nn.LazyLinear(2))), ValueError,
         "spectral_norm: expected weight of layer 0 to have a shape, got a lazy layer; run the model once first"),
        (lambda: fused.spectral_norm(with_old_spectral_norm()), ValueError,
         "spectral_norm: expected weight of Linear to be a parameter, got a tensor that a hook computes; "
         "remove torch.nn.utils.spectral_norm or weight_norm first"),
        (lambda: fused.remove_spectral_norm(with_weight_norm_too()), ValueError,
         "remove_spectral_norm: expected weight of ParametrizedLinear to have no other parametrization, got 1 more"),
        (lambda: fused.remove_spectral_norm(None), TypeError,
         "remove_spectral_norm: expected module type Module, got NoneType"),
    ],
)  # fmt: skip
def test_bad_argument_raises(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message


@pytest.mark.parametrize("options", [{}, {"dim": 2}], ids=["hooked layer", "dim"])
def test_error_leaves_every_layer_unchanged(options: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Linear(2, 2), with_old_spectral_norm())
    if options:
        model = nn.Sequential(nn.Conv1d(2, 2, 1), nn.Linear(2, 2))
    with pytest.raises((ValueError, IndexError), match=r"weight of layer 1 to be a parameter|Dimension out of range"):
        fused.spectral_norm(model, **options)
    assert not parametrize.is_parametrized(model[0])
