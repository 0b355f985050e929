from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import gan_fast
from gan_fast import nn as fused

KINDS = [(dims, kind, norm) for dims in (1, 2, 3) for kind in ("Conv", "ConvTranspose") for norm in (True, False)]
ACTIVATIONS = {"identity": nn.Identity, "relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "tanh": nn.Tanh}


def pair(dims: int, kind: str, norm: bool, activation: str, **options: Any) -> tuple[nn.Module, nn.Sequential]:
    """A block, and torch.nn's layers with the same weights."""
    block = getattr(fused, f"{kind}{'BN' if norm else ''}Act{dims}d")(4, 6, 3, 2, 1, activation=activation, **options)
    layers = nn.Sequential()
    layers.conv = getattr(nn, f"{kind}{dims}d")(4, 6, 3, 2, 1, bias=options.get("bias", not norm))
    if norm:
        bn = {k: v for k, v in options.items() if k in ("eps", "momentum", "affine", "track_running_stats")}
        layers.bn = getattr(nn, f"BatchNorm{dims}d")(6, **bn)
    layers.act = ACTIVATIONS[activation]()
    layers.load_state_dict(block.state_dict())
    return block, layers


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("dims", "kind", "norm"), KINDS)
def test_block_matches_layers(dims: int, kind: str, norm: bool, activation: str) -> None:
    block, layers = pair(dims, kind, norm, activation)
    assert list(block.state_dict()) == list(layers.state_dict())
    for training in (True, False):
        x = torch.randn(3, 4, *(5, 6, 7)[:dims], requires_grad=True)
        grads = []
        for module in (block.train(training), layers.train(training)):
            output = module(x)
            weighted = (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum()
            grads.append([output, *torch.autograd.grad(weighted, [x, *module.parameters()])])
        for got, want in zip(*grads):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    for name, value in layers.state_dict().items():
        torch.testing.assert_close(block.state_dict()[name], value, msg=name)


@pytest.mark.parametrize(
    "options",
    [{"momentum": None}, {"affine": False}, {"track_running_stats": False}, {"bias": True}, {"eps": 0.1}],
    ids=str,
)
def test_norm_options_match_layers(options: dict[str, Any]) -> None:
    block, layers = pair(2, "Conv", True, "relu", **options)
    for mode in (True, True, False):
        x = torch.randn(3, 4, 5, 6)
        torch.testing.assert_close(block.train(mode)(x), layers.train(mode)(x))
    for name, value in layers.state_dict().items():
        torch.testing.assert_close(block.state_dict()[name], value, msg=name)


@pytest.mark.parametrize(("dims", "kind", "norm"), KINDS)
def test_copies_and_traces_give_the_same_output(dims: int, kind: str, norm: bool) -> None:
    block, _ = pair(dims, kind, norm, "leaky_relu", negative_slope=0.01)
    block.eval()
    x = torch.randn(2, 4, *(5, 6, 7)[:dims])
    for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block)), torch.jit.trace(block, x)):
        torch.testing.assert_close(other(x), block(x))
    assert "activation='leaky_relu', negative_slope=0.01" in repr(block)


def test_block_accepts_output_size_and_unbatched_input() -> None:
    block = fused.ConvTransposeAct2d(2, 3, 3, stride=2, padding=1)
    x = torch.randn(1, 2, 4, 4)
    assert block(x, output_size=[8, 7]).shape == (1, 3, 8, 7)
    torch.testing.assert_close(block(x[0]), block(x)[0])
    norm = fused.ConvTransposeBNAct2d(2, 3, 3, stride=2, padding=1)
    assert norm(x, output_size=[8, 7]).shape == (1, 3, 8, 7)


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_memory_format_is_an_option_of_block_and_op(kind: str) -> None:
    x = torch.randn(2, 4, 5, 6)
    block = getattr(fused, f"{kind}Act2d")(4, 6, 3, memory_format=torch.channels_last)
    op = getattr(gan_fast.ops, "conv2d_act" if kind == "Conv" else "conv_transpose2d_act")
    output = op(x, block.conv.weight, block.conv.bias, memory_format=torch.channels_last, activation="leaky_relu")
    assert torch.equal(output, block(x))
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert block(x).is_contiguous(memory_format=torch.channels_last)
    for call in (lambda: op(x, block.conv.weight, memory_format="nhwc"), lambda: type(block)(4, 6, 3, memory_format=1)):
        with pytest.raises(ValueError, match=r"expected memory_format one of None, torch\.contiguous_format"):
            call()


@pytest.mark.parametrize("name", [n for n in fused.__all__ if "Act" in n])
def test_default_activation_is_leaky_relu(name: str) -> None:
    module = getattr(fused, name)(4, 4, 3) if "Conv" in name else getattr(fused, name)(4)
    owner = getattr(module, "bn", module)
    assert (owner.activation, owner.negative_slope) == ("leaky_relu", 0.01)


def test_unknown_activation_is_an_error() -> None:
    for name in ("ConvAct2d", "ConvTransposeAct1d"):
        with pytest.raises(ValueError, match=f"{name}: expected activation one of identity, .*, got 'gelu'"):
            getattr(fused, name)(2, 3, 3, activation="gelu")


def test_hooks_see_the_raw_convolution() -> None:
    block, layers = pair(2, "Conv", True, "relu")
    x, seen = torch.randn(3, 4, 5, 6), []
    for module in (block, layers):
        module.conv.register_forward_hook(lambda _, __, output: seen.append(output.clone()))
        module(x)
    torch.testing.assert_close(seen[0], seen[1])


def test_activation_never_overwrites_a_visible_tensor() -> None:
    x, seen = torch.randn(2, 4, 5, 6), []
    block = fused.ConvAct2d(4, 6, 3, activation="relu")
    block.conv.register_forward_hook(lambda _, __, output: seen.append(output))
    block(x)
    assert seen[0].min() < 0
    block = fused.ConvAct2d(4, 4, 1, activation="relu")
    block.conv = nn.Identity()
    before = x.clone()
    block(x)
    assert torch.equal(x, before)
    block = fused.ConvAct2d(4, 6, 3)
    block.conv.register_full_backward_hook(lambda *_: None)
    block(x.requires_grad_()).sum().backward()
    block = fused.ConvAct2d(4, 6, 3)
    block.conv = nn.Sequential(block.conv, nn.Tanh())
    block(x).sum().backward()


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_leaves_the_input_unchanged(channels: int) -> None:
    layers = fused.ChannelsLastSequential(fused.Conv2d(channels, 8, 3), inside := Strides())
    x = torch.randn(8, channels, 16, 16)
    layers(x)
    assert not x.__dict__
    assert inside.seen[1] == 1
    x = torch.randn(8, channels, 16, 16, requires_grad=True)
    (grad,) = torch.autograd.grad(layers(x).square().sum(), x, create_graph=True)
    grad.view(8, -1).norm(dim=1).sum().backward()
    with torch.inference_mode():
        frozen = torch.randn(8, channels, 16, 16)
        layers(frozen)
    with torch.no_grad():
        layers(frozen)
    layers.requires_grad_(False)(frozen)
    # The first module writes to its input.
    writes = fused.ChannelsLastSequential(nn.ReLU(inplace=True), conv := fused.Conv2d(channels, 8, 3))
    x = torch.randn(8, channels, 16, 16)
    before = x.clone()
    got = torch.autograd.grad(writes(x).square().sum(), conv.weight)[0]
    assert torch.equal(x, before) or channels == 1
    want = torch.autograd.grad(conv(before.relu()).square().sum(), conv.weight)[0]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-3)


def test_exported_program_accepts_any_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gan_fast.backends, "SMALL", 8192)
    layers = fused.ChannelsLastSequential(*blocks()).eval()
    batch = torch.export.Dim("batch")
    exported = torch.export.export(layers, (torch.randn(8, 3, 8, 8),), dynamic_shapes=({0: batch},))
    x = torch.randn(60, 3, 8, 8)
    torch.testing.assert_close(exported.module()(x), layers(x))


def blocks() -> list[nn.Module]:
    return [
        fused.ConvBNAct2d(3, 8, 4, 2, 1, activation="leaky_relu", negative_slope=0.2),
        fused.ConvAct2d(8, 8, 3, 1, 1, activation="tanh"),
        fused.ConvTransposeBNAct2d(8, 3, 4, 2, 1, activation="relu"),
    ]


class Strides(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen: tuple[int, ...] = ()

    def forward(self, input: Tensor) -> Tensor:
        self.seen = input.stride()
        return input


@pytest.mark.parametrize("shape", [(4, 3, 8, 6), (4, 3, 4, 4)])
def test_channels_last_sequential_keeps_the_callers_format_at_both_ends(shape: tuple[int, ...]) -> None:
    inside = Strides()
    layers = fused.ChannelsLastSequential(*blocks()[:2], inside, *blocks()[2:])
    plain = nn.Sequential(*layers)
    results = []
    for model in (layers, plain):
        for block in model:
            if hasattr(block, "bn"):
                block.bn.reset_running_stats()
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
        output = model(x)
        grads = torch.autograd.grad(output.square().sum(), [x, *model.parameters()], create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in grads), [x, *model.parameters()])
        results.append((output, *grads, *second))
        assert output.is_contiguous()
        assert (inside.seen[1] == 1) == (model is layers)
    for got, want in zip(*results):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    assert layers(x).is_contiguous(memory_format=torch.channels_last)


def test_one_pixel_input_becomes_channels_last() -> None:
    inside = Strides()
    layers = fused.ChannelsLastSequential(fused.ConvTransposeBNAct2d(5, 4, 4), inside)
    assert layers(torch.randn(3, 5, 1, 1)).is_contiguous()
    assert inside.seen == (64, 1, 16, 4)


def test_channels_last_ignores_other_inputs() -> None:
    inside = Strides()
    assert fused.ChannelsLastSequential(fused.Conv1d(3, 4, 3), inside)(torch.randn(2, 3, 9)).shape == (2, 4, 7)
    double = fused.ChannelsLastSequential(fused.Conv2d(3, 4, 3), inside).double()
    double(torch.randn(2, 3, 9, 9, dtype=torch.float64))
    assert inside.seen == (196, 49, 7, 1)
    layers = fused.ChannelsLastSequential(*blocks()).eval()
    x = torch.randn(2, 3, 8, 8)
    expected = layers(x)
    with gan_fast.use_backend("reference"):
        torch.testing.assert_close(layers(x), expected)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(layers, fullgraph=True, backend="aot_eager")(x), expected)
    torch.testing.assert_close(torch.func.vmap(layers)(x[:, None])[:, 0], expected)
    torch.testing.assert_close(torch.jit.trace(layers, x)(x), expected)


def test_weight_may_be_an_attribute_or_a_property() -> None:
    """Pruning and nn.DataParallel replace a parameter by a plain tensor, parametrization by a property."""
    for change in (
        lambda conv: prune.random_unstructured(conv, "weight", amount=0.5),
        lambda conv: parametrizations.spectral_norm(conv).eval(),
        lambda conv: parametrizations.weight_norm(conv),
    ):
        block, layers = pair(2, "Conv", True, "relu")
        changed = change(block.conv)
        layers[0].weight = nn.Parameter(changed.weight.detach().clone())
        layers[0].bias = changed.bias
        x = torch.randn(3, 4, 5, 6)
        torch.testing.assert_close(block(x), layers(x))
    block, _ = pair(2, "Conv", True, "relu")
    want = block.eval()(x)
    replica = block._replicate_for_data_parallel()
    for child in ("conv", "bn"):
        part = replica._modules[child] = getattr(block, child)._replicate_for_data_parallel()
        for name, parameter in getattr(block, child)._parameters.items():
            setattr(part, name, parameter)
    torch.testing.assert_close(replica(x), want)


def test_statistics_may_be_deleted_or_parameters() -> None:
    x = torch.randn(3, 6, 5, 5)
    for change in (
        lambda bn: delattr(bn, "num_batches_tracked"),
        lambda bn: setattr(bn, "running_mean", nn.Parameter(bn.__dict__["_buffers"].pop("running_mean"), False)),
    ):
        bn = fused.BatchNormAct2d(6, activation="relu").eval()
        want = bn(x)
        change(bn)
        torch.testing.assert_close(bn(x), want)


def test_tracing_and_compiling_a_child_works() -> None:
    class LeafTracer(torch.fx.Tracer):
        def is_leaf_module(self, module: nn.Module, name: str) -> bool:
            return isinstance(module, (fused.Conv2d, fused.BatchNormAct2d))

    graph = LeafTracer().trace(fused.ConvBNAct2d(4, 6, 3))
    assert [node.op for node in graph.nodes] == ["placeholder", "call_module", "call_module", "output"]
    compiled = []

    def backend(graph: Any, _: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    block = fused.ConvBNAct2d(4, 6, 3)
    torch._dynamo.reset()
    block.conv.compile(backend=backend)
    block(torch.randn(2, 4, 5, 5))
    assert compiled


def test_activation_set_to_an_unknown_name_is_an_error() -> None:
    block = fused.ConvBNAct2d(8, 8, 3).eval()
    block.bn.activation = "gelu"
    with torch.no_grad():
        for x in (torch.randn(1, 8, 4, 4), torch.randn(8, 8, 32, 32)):
            with pytest.raises(ValueError, match=r"expected activation one of identity, .*, got 'gelu'"):
                block(x)
    with pytest.raises(ValueError, match="ConvBNAct2d: expected activation one of"):
        fused.ConvBNAct2d(8, 8, 3, activation="gelu")
    with pytest.raises(TypeError, match="ConvAct2d: expected negative_slope"):
        fused.ConvAct2d(8, 8, 3, negative_slope="0.2")
