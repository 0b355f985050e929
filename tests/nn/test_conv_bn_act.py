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
    """Ours, and the chain of torch.nn's modules with the same weights."""
    block = getattr(fused, f"{kind}{'BN' if norm else ''}Act{dims}d")(4, 6, 3, 2, 1, activation=activation, **options)
    chain = nn.Sequential()
    chain.conv = getattr(nn, f"{kind}{dims}d")(4, 6, 3, 2, 1, bias=options.get("bias", not norm))
    if norm:
        bn = {k: v for k, v in options.items() if k in ("eps", "momentum", "affine", "track_running_stats")}
        chain.bn = getattr(nn, f"BatchNorm{dims}d")(6, **bn)
    chain.act = ACTIVATIONS[activation]()
    chain.load_state_dict(block.state_dict())
    return block, chain


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("dims", "kind", "norm"), KINDS)
def test_stands_for_the_chain(dims: int, kind: str, norm: bool, activation: str) -> None:
    block, chain = pair(dims, kind, norm, activation)
    assert list(block.state_dict()) == list(chain.state_dict())
    for training in (True, False):
        x = torch.randn(3, 4, *(5, 6, 7)[:dims], requires_grad=True)
        grads = []
        for module in (block.train(training), chain.train(training)):
            output = module(x)
            weighted = (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum()
            grads.append([output, *torch.autograd.grad(weighted, [x, *module.parameters()])])
        for ours, want in zip(*grads):
            torch.testing.assert_close(ours, want, rtol=1e-4, atol=1e-4)
    for name, value in chain.state_dict().items():
        torch.testing.assert_close(block.state_dict()[name], value, msg=name)


@pytest.mark.parametrize(
    "options",
    [{"momentum": None}, {"affine": False}, {"track_running_stats": False}, {"bias": True}, {"eps": 0.1}],
    ids=str,
)
def test_options_of_the_norm(options: dict[str, Any]) -> None:
    block, chain = pair(2, "Conv", True, "relu", **options)
    for mode in (True, True, False):
        x = torch.randn(3, 4, 5, 6)
        torch.testing.assert_close(block.train(mode)(x), chain.train(mode)(x))
    for name, value in chain.state_dict().items():
        torch.testing.assert_close(block.state_dict()[name], value, msg=name)


@pytest.mark.parametrize(("dims", "kind", "norm"), KINDS)
def test_copies_traces_and_prints(dims: int, kind: str, norm: bool) -> None:
    block, _ = pair(dims, kind, norm, "leaky_relu", negative_slope=0.01)
    block.eval()
    x = torch.randn(2, 4, *(5, 6, 7)[:dims])
    for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block)), torch.jit.trace(block, x)):
        torch.testing.assert_close(other(x), block(x))
    assert "activation='leaky_relu', negative_slope=0.01" in repr(block)


def test_output_size_and_unbatched() -> None:
    block = fused.ConvTransposeAct2d(2, 3, 3, stride=2, padding=1)
    x = torch.randn(1, 2, 4, 4)
    assert block(x, output_size=[8, 7]).shape == (1, 3, 8, 7)
    torch.testing.assert_close(block(x[0]), block(x)[0])
    norm = fused.ConvTransposeBNAct2d(2, 3, 3, stride=2, padding=1)
    assert norm(x, output_size=[8, 7]).shape == (1, 3, 8, 7)


def test_unknown_activation_is_named() -> None:
    for name in ("ConvAct2d", "ConvTransposeAct1d"):
        with pytest.raises(ValueError, match=f"{name}: expected activation one of identity, .*, got 'gelu'"):
            getattr(fused, name)(2, 3, 3, activation="gelu")


def test_hooks_see_what_they_see_in_the_chain() -> None:
    block, chain = pair(2, "Conv", True, "relu")
    x, seen = torch.randn(3, 4, 5, 6), []
    for module in (block, chain):
        module.conv.register_forward_hook(lambda _, __, output: seen.append(output.clone()))
        module(x)
    torch.testing.assert_close(seen[0], seen[1])


def test_writes_over_nothing_that_others_see() -> None:
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
def test_chains_leave_the_callers_tensor_alone(channels: int) -> None:
    chain = fused.ChannelsLastSequential(fused.Conv2d(channels, 8, 3), inside := Strides())
    x = torch.randn(8, channels, 16, 16)
    chain(x)
    assert not x.__dict__
    assert inside.seen[1] == 1
    x = torch.randn(8, channels, 16, 16, requires_grad=True)
    (grad,) = torch.autograd.grad(chain(x).square().sum(), x, create_graph=True)
    grad.view(8, -1).norm(dim=1).sum().backward()
    with torch.inference_mode():
        frozen = torch.randn(8, channels, 16, 16)
        chain(frozen)
    with torch.no_grad():
        chain(frozen)
    chain.requires_grad_(False)(frozen)
    # A first module that writes over its input.
    writes = fused.ChannelsLastSequential(nn.ReLU(inplace=True), conv := fused.Conv2d(channels, 8, 3))
    x = torch.randn(8, channels, 16, 16)
    before = x.clone()
    ours = torch.autograd.grad(writes(x).square().sum(), conv.weight)[0]
    assert torch.equal(x, before) or channels == 1
    want = torch.autograd.grad(conv(before.relu()).square().sum(), conv.weight)[0]
    torch.testing.assert_close(ours, want, rtol=1e-4, atol=1e-3)


def test_exports_with_a_batch_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gan_fast.backends, "SMALL", 8192)
    chain = fused.ChannelsLastSequential(*blocks()).eval()
    batch = torch.export.Dim("batch")
    exported = torch.export.export(chain, (torch.randn(8, 3, 8, 8),), dynamic_shapes=({0: batch},))
    x = torch.randn(60, 3, 8, 8)
    torch.testing.assert_close(exported.module()(x), chain(x))


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
def test_channels_last_inside_the_callers_layout_at_the_ends(shape: tuple[int, ...]) -> None:
    inside = Strides()
    chain = fused.ChannelsLastSequential(*blocks()[:2], inside, *blocks()[2:])
    plain = nn.Sequential(*chain)
    results = []
    for model in (chain, plain):
        for block in model:
            if hasattr(block, "bn"):
                block.bn.reset_running_stats()
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
        output = model(x)
        grads = torch.autograd.grad(output.square().sum(), [x, *model.parameters()], create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in grads), [x, *model.parameters()])
        results.append((output, *grads, *second))
        assert output.is_contiguous()
        assert (inside.seen[1] == 1) == (model is chain)
    for ours, want in zip(*results):
        torch.testing.assert_close(ours, want, rtol=1e-3, atol=1e-3)
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    assert chain(x).is_contiguous(memory_format=torch.channels_last)


def test_one_pixel_becomes_channels_last() -> None:
    inside = Strides()
    chain = fused.ChannelsLastSequential(fused.ConvTransposeBNAct2d(5, 4, 4), inside)
    assert chain(torch.randn(3, 5, 1, 1)).is_contiguous()
    assert inside.seen == (64, 1, 16, 4)


def test_channels_last_leaves_other_inputs_alone() -> None:
    inside = Strides()
    assert fused.ChannelsLastSequential(fused.Conv1d(3, 4, 3), inside)(torch.randn(2, 3, 9)).shape == (2, 4, 7)
    double = fused.ChannelsLastSequential(fused.Conv2d(3, 4, 3), inside).double()
    double(torch.randn(2, 3, 9, 9, dtype=torch.float64))
    assert inside.seen == (196, 49, 7, 1)
    chain = fused.ChannelsLastSequential(*blocks()).eval()
    x = torch.randn(2, 3, 8, 8)
    expected = chain(x)
    with gan_fast.use_backend("reference"):
        torch.testing.assert_close(chain(x), expected)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(chain, fullgraph=True, backend="aot_eager")(x), expected)
    torch.testing.assert_close(torch.func.vmap(chain)(x[:, None])[:, 0], expected)
    torch.testing.assert_close(torch.jit.trace(chain, x)(x), expected)


def test_parameters_that_are_no_longer_parameters() -> None:
    """Pruning and weight norm put a plain tensor in a parameter's place, parametrisation a property."""
    for change in (
        lambda conv: prune.random_unstructured(conv, "weight", amount=0.5),
        lambda conv: parametrizations.spectral_norm(conv).eval(),
        lambda conv: parametrizations.weight_norm(conv),
    ):
        block, chain = pair(2, "Conv", True, "relu")
        changed = change(block.conv)
        chain[0].weight = nn.Parameter(changed.weight.detach().clone())
        chain[0].bias = changed.bias
        x = torch.randn(3, 4, 5, 6)
        torch.testing.assert_close(block(x), chain(x))
    block, _ = pair(2, "Conv", True, "relu")
    want = block.eval()(x)
    replica = block._replicate_for_data_parallel()
    for child in ("conv", "bn"):
        part = replica._modules[child] = getattr(block, child)._replicate_for_data_parallel()
        for name, parameter in getattr(block, child)._parameters.items():
            setattr(part, name, parameter)
    torch.testing.assert_close(replica(x), want)


def test_buffers_that_are_no_longer_buffers() -> None:
    x = torch.randn(3, 6, 5, 5)
    for change in (
        lambda bn: delattr(bn, "num_batches_tracked"),
        lambda bn: setattr(bn, "running_mean", nn.Parameter(bn.__dict__["_buffers"].pop("running_mean"), False)),
    ):
        bn = fused.BatchNormAct2d(6, activation="relu").eval()
        want = bn(x)
        change(bn)
        torch.testing.assert_close(bn(x), want)


def test_tracers_and_compilers_of_children_are_heard() -> None:
    class Leaves(torch.fx.Tracer):
        def is_leaf_module(self, module: nn.Module, name: str) -> bool:
            return isinstance(module, (fused.Conv2d, fused.BatchNormAct2d))

    graph = Leaves().trace(fused.ConvBNAct2d(4, 6, 3))
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


def test_an_activation_that_becomes_wrong_is_named() -> None:
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
