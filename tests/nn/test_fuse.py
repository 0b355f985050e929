"""fuse on small models: what runs as one op, what is skipped, what stays unchanged; test_fuse_zoo.py has networks."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import random
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import gan_fast
from gan_fast import ops
from gan_fast.nn import deferred


class Net(nn.Module):
    """Layers, and a forward function given as an argument."""

    def __init__(self, forward: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.other, self.inorm = nn.Conv2d(4, 4, 3, padding=1), nn.InstanceNorm2d(4, affine=True)
        self.act, self.drop = nn.LeakyReLU(0.2), nn.Dropout2d(0.5)
        self.function = forward
        self.flag, self.calls = False, 0

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def image(requires_grad: bool = True) -> Tensor:
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)).double().requires_grad_(requires_grad)


def assert_same(model: nn.Module, fused: nn.Module, x: Tensor | None = None) -> None:
    """Compare outputs, first and second gradients and buffers, with the same random numbers."""
    x = image() if x is None else x
    found = []
    for m in (model, fused):
        torch.manual_seed(1)
        leaf = x.detach().clone().requires_grad_()
        output = m(leaf.clone())
        output = torch.cat([t.flatten() for t in output]) if isinstance(output, (tuple, list)) else output
        named = {n: p for n, p in (("x", leaf), *m.named_parameters()) if p.requires_grad}
        first = torch.autograd.grad(output.square().sum(), list(named.values()), create_graph=True, allow_unused=True)
        scalar = sum(g.square().sum() for g in first if g is not None)
        second = torch.autograd.grad(scalar, list(named.values()), allow_unused=True)
        found.append([output, *first, *second, *m.buffers()])
    scale = max(1.0, *(t.abs().max().item() for t in found[0] if t is not None))
    for eager, got in zip(*found, strict=True):
        if eager is None or got is None:
            assert eager is got or not (eager if got is None else got).any()
        else:
            assert torch.allclose(got, eager, rtol=1e-9, atol=1e-11 * scale)


def same_as_eager(model: nn.Module) -> nn.Module:
    model = model.double()
    fused = gan_fast.fuse(model)
    assert_same(model, fused)
    assert_same(model.eval(), fused.eval())
    return fused


# A forward function, and what runs as one op in it.
FORWARDS: dict[str, tuple[Callable[[Any, Tensor], Any], list[str]]] = {
    "module": (lambda m, x: m.act(m.bn(m.conv(x))), ["conv2d + batch_norm + leaky_relu (with bn, act)"]),
    "F.leaky_relu": (lambda m, x: F.leaky_relu(m.bn(m.conv(x)), 0.3), ["conv2d + batch_norm + leaky_relu (with bn)"]),
    "slope by name": (
        lambda m, x: F.leaky_relu(m.conv(x), negative_slope=0.3, inplace=True), ["conv2d + leaky_relu"]
    ),
    "in place": (lambda m, x: F.relu_(m.bn(m.conv(x))), ["conv2d + batch_norm + relu (with bn)"]),
    "method": (lambda m, x: m.conv(x).tanh(), ["conv2d + tanh"]),
    "method in place": (lambda m, x: m.bn(m.conv(x)).sigmoid_(), ["conv2d + batch_norm + sigmoid (with bn)"]),
    "torch.tanh": (lambda m, x: torch.tanh(m.conv(x)), ["conv2d + tanh"]),
    "no activation": (lambda m, x: m.bn(m.conv(x)), ["conv2d + batch_norm (with bn)"]),
    "another activation": (lambda m, x: F.elu(m.bn(m.conv(x))), ["conv2d + batch_norm (with bn)"]),
    "norm first": (lambda m, x: m.other(F.relu(m.bn(m.conv(x) * 2))), ["batch_norm + relu"]),
    "instance norm": (lambda m, x: F.relu(m.inorm(m.conv(x))), ["instance_norm + relu"]),
    "dropout between": (lambda m, x: m.act(m.drop(m.bn(m.conv(x)))), ["conv2d + batch_norm (with bn)"]),
    "skip": (lambda m, x: (lambda h: m.other(F.relu(h)) + h)(m.bn(m.conv(x))), ["conv2d + batch_norm (with bn)"]),
    "skip of the convolution": (lambda m, x: (lambda h: F.relu(m.bn(h)) + h)(m.conv(x)), ["batch_norm + relu"]),
    "twice": (lambda m, x: F.relu(m.other(F.relu(m.other(m.conv(x))))), []),
    "one norm twice": (lambda m, x: F.relu(m.bn(m.other(F.relu(m.bn(m.conv(x)))))), []),
    "written between": (
        lambda m, x: (lambda z: (lambda h: (z.mul_(2), F.relu(h))[1] + z.sum())(m.conv(x)))(x + 1), []
    ),
    "slope of a tensor": (lambda m, x: F.leaky_relu(m.conv(x), float(torch.ones(()))), ["conv2d + leaky_relu"]),
    "slope below zero": (
        lambda m, x: F.leaky_relu(m.bn(m.conv(x)), -0.5), ["conv2d + batch_norm + leaky_relu (with bn)"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORWARDS)
def test_layers_of_forward_function_run_as_one_op(name: str) -> None:
    forward, expected = FORWARDS[name]
    torch.manual_seed(0)
    model = Net(forward)
    report = gan_fast.fuse_report(model)
    assert [e.reason for e in report.fused if " alone" not in e.reason] == expected
    same_as_eager(model)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("norm", ["BatchNorm", "InstanceNorm"])
def test_layers_fuse_in_every_dimension(dims: int, kind: str, norm: str) -> None:
    conv, layer = getattr(nn, f"{kind}{dims}d"), getattr(nn, f"{norm}{dims}d")
    model = nn.Sequential(conv(2, 4, 3, 2, 1, groups=2), layer(4, affine=True), nn.ReLU(True), nn.Flatten()).double()
    fused = gan_fast.fuse(model)
    assert_same(model, fused, torch.randn(3, 2, *(6,) * dims, dtype=torch.float64))
    assert gan_fast.fuse_report(model).fused[-1].reason.startswith(
        f"{layer.__name__[:-6].lower()}_norm + relu" if norm == "InstanceNorm" else
        f"{'conv_transpose' if 'T' in kind else 'conv'}{dims}d + batch_norm + relu"
    )  # fmt: skip


def test_group_runs_as_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call gets the convolution, the norm and the activation, as the report says."""
    seen = []
    from gan_fast.nn import conv

    run = conv.conv_norm_act
    monkeypatch.setattr(conv, "conv_norm_act", lambda *a, **k: (seen.append(a[5:8]), run(*a, **k))[1])
    model = gan_fast.fuse(Net(FORWARDS["F.leaky_relu"][0]).double())
    model(image())
    assert seen == [(model.bn, "leaky_relu", 0.3)]


# Forward functions that are traced while a flag is not set, and take another path once it is set.
BRANCHES: dict[str, Callable[[Any, Tensor], Any]] = {
    "value returned": lambda m, x: m.conv(x) if m.flag else F.relu(m.bn(m.conv(x))),
    "norm returned": lambda m, x: m.bn(m.conv(x)) if m.flag else F.relu(m.bn(m.conv(x))),
    "in a tuple": lambda m, x: (m.conv(x), x * 2) if m.flag else F.relu(m.conv(x)),
    "skip": lambda m, x: (lambda h: F.relu(h) + (h if m.flag else 0))(m.bn(m.conv(x))),
    "arithmetic": lambda m, x: (lambda h: 2 * h**2 - h[:, :1] if m.flag else F.relu(h))(m.bn(m.conv(x))),
    "other function": lambda m, x: (lambda h: F.softplus(h) if m.flag else F.relu(h))(m.bn(m.conv(x))),
    "other layer": lambda m, x: m.other(m.conv(x)) if m.flag else m.other(F.relu(m.conv(x))),
    "instance norm": lambda m, x: m.inorm(m.conv(x)) if m.flag else F.relu(m.conv(x)),
    "norm of a norm": lambda m, x: m.bn(F.relu(m.inorm(m.conv(x)))) if m.flag else F.relu(m.inorm(m.conv(x))),
    "in place": lambda m, x: (lambda h: (h.mul_(2), h.sum(), h)[2] if m.flag else F.relu(h))(m.conv(x)),
    "activated in place": lambda m, x: (lambda h: (F.relu_(h), h)[1] if m.flag else F.relu(h))(m.bn(m.conv(x))),
    "never used": lambda m, x: (m.bn(m.conv(x)), x.exp())[1] if m.flag else F.relu(m.bn(m.conv(x))),
    "shape": lambda m, x: (lambda h: F.relu(h).view(h.shape[0], -1) if m.flag else F.relu(h))(m.bn(m.conv(x))),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_untraced_path_gives_the_same_results(name: str) -> None:
    """A deferred value that meets an unexpected use is computed first."""
    torch.manual_seed(0)
    model = Net(BRANCHES[name]).double()
    fused = gan_fast.fuse(model)
    assert fused.__dict__["_gan_fast_plan"].groups
    for flag in (True, False, True):
        model.flag = fused.flag = flag
        assert_same(model, fused)


@pytest.mark.parametrize(
    "around", [torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)], ids=["no_grad", "autocast"]
)
def test_layer_keeps_the_modes_of_its_call(around: Callable[[], Any]) -> None:
    """A convolution called under no_grad or autocast runs under it, even if its activation is called outside."""

    def forward(m: Any, x: Tensor) -> Tensor:
        with around():
            h = m.conv(x)
        return F.relu(m.other(F.relu(m.bn(h.float()) if around is not torch.no_grad else m.bn(h))))

    torch.manual_seed(0)
    model = Net(forward)
    fused = gan_fast.fuse(model)
    x = image().float()
    outputs = [m(x) for m in (model, fused)]
    assert torch.allclose(*outputs, atol=1e-6)
    for m, output in zip((model, fused), outputs):
        output.sum().backward()
        assert (m.conv.weight.grad is None) == (around is torch.no_grad)


def test_writing_to_the_input_of_a_deferred_layer_is_an_error() -> None:
    """The layer would otherwise be computed silently from the changed input."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = x * 1
        h = m.conv(x)
        if m.flag:
            x.add_(1)
        return F.relu(h) + x.sum()

    model = gan_fast.fuse(Net(forward).double())
    model(image())
    model.flag = True
    with pytest.raises(RuntimeError, match="fuse: the input of a fused layer was modified in place before"):
        model(image())
    gan_fast.unfuse(model)
    model(image(requires_grad=False))


def test_forward_runs_as_written() -> None:
    """Side effects of the forward happen at each call, and not while it is traced."""

    def forward(m: Any, x: Tensor) -> Tensor:
        m.calls += 1
        m.last = x
        return F.relu(m.conv(x)) * m.calls

    model = gan_fast.fuse(Net(forward).double())
    assert model.calls == 0
    assert not hasattr(model, "last")
    x = image()
    first, second = model(x), model(x)
    assert model.calls == 2
    assert torch.equal(2 * first, second)
    assert model.last is x


def test_in_place_activation_of_the_input_stays_in_place() -> None:
    """pix2pix's U-Net uses its input again after the first activation has written to it."""
    x = torch.randn(2, 3, 8, 8)
    model = nn.Sequential(nn.LeakyReLU(0.2, inplace=True), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True))
    fused_input, eager_input = x.clone(), x.clone()
    gan_fast.fuse(model)(fused_input)
    model(eager_input)
    assert torch.equal(fused_input, eager_input)
    assert not torch.equal(fused_input, x)


def hooked(register: str) -> Callable[[nn.Sequential], None]:
    def change(model: nn.Sequential) -> None:
        getattr(model[1], register)(lambda *a: None)

    return change


class DoublingConv(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


def replace(index: int, module: Callable[[], nn.Module]) -> Callable[[nn.Sequential], None]:
    def change(model: nn.Sequential) -> None:
        model[index] = module()

    return change


def patch_forward(model: nn.Sequential) -> None:
    model[0].forward = lambda x: nn.Conv2d.forward(model[0], x) + 1  # type: ignore[method-assign]


SKIPPED: dict[str, tuple[Callable[[nn.Sequential], None], str, str]] = {
    "forward hook": (hooked("register_forward_hook"), "1", "has hooks"),
    "forward pre-hook": (hooked("register_forward_pre_hook"), "1", "has hooks"),
    "backward hook": (hooked("register_full_backward_hook"), "1", "has hooks"),
    "replaced forward": (patch_forward, "0", "its forward was replaced"),
    "subclass": (replace(0, lambda: DoublingConv(3, 4, 3)), "0", "DoublingConv: subclass of Conv2d"),
    "lazy": (
        replace(0, lambda: nn.LazyConv2d(4, 3)),
        "0",
        "LazyConv2d: lazy module without a shape; run the model once first",
    ),
    "sync_batch_norm": (replace(1, lambda: nn.SyncBatchNorm(4)), "1", "SyncBatchNorm: no fused kernel"),
    "group norm": (replace(1, lambda: nn.GroupNorm(2, 4)), "1", "GroupNorm: no fused kernel"),
    "scripted": (
        replace(2, lambda: torch.jit.script(nn.ReLU())),
        "2",
        "TorchScript module: runs its own compiled code",
    ),
    "complex": (
        replace(0, lambda: nn.Conv2d(3, 4, 3, dtype=torch.complex64)),
        "0",
        "complex64 weights: no fused kernel",
    ),
    "gan_fast": (
        replace(0, lambda: gan_fast.nn.ConvAct2d(3, 4, 3)),
        "0",
        "gan_fast module: runs on gan_fast's ops already",
    ),
    "spectral-normed linear": (
        replace(2, lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))),
        "2",
        "Linear: no fused kernel",
    ),
    "other activation": (replace(2, nn.ELU), "2", "ELU: no fused kernel"),
    "activation alone": (replace(0, nn.Tanh), "0", "tanh: no layer before it to fuse with"),
}


@pytest.mark.parametrize("name", SKIPPED)
def test_layer_is_skipped_for_a_reason(name: str) -> None:
    change, module, reason = SKIPPED[name]
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True))
    change(model)
    report = gan_fast.fuse_report(model)
    assert (module, reason) in [(e.name, e.reason) for e in report.skipped]
    before = type(model[int(module)])
    fused = gan_fast.fuse(model, inplace=True)
    assert type(fused[int(module)]) is before
    assert f"skipped  {module}" in str(report)


def test_quantized_layer_is_skipped() -> None:
    model = nn.Sequential(torch.ao.nn.qat.Conv2d(3, 4, 3, qconfig=torch.ao.quantization.default_qat_qconfig), nn.ReLU())
    assert gan_fast.fuse_report(model).skipped[0].reason == "quantized, or prepared for quantization"


def test_layers_below_an_untraceable_forward_are_fused() -> None:
    """The report gives the reason, such as control flow by values or an error in the forward."""

    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True))
            self.last = nn.Conv2d(4, 1, 3)

        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 1e9:
                raise RuntimeError("too bright")
            return torch.tanh(self.last(self.main(x)))

    report = gan_fast.fuse_report(Picky())
    assert [e.reason for e in report.fused] == [
        "conv2d + batch_norm + relu (with main.1, main.2)", "conv2d alone"
    ]  # fmt: skip
    assert [(e.name, e.reason) for e in report.skipped] == [
        (
            "(the model)",
            "torch.fx cannot trace its forward: symbolically traced variables cannot be used as inputs to control flow "
            "(at: if x.sum() > 1e9:)",
        )
    ]
    same_as_eager(Picky())

    class Broken(Picky):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("nothing works")

    assert gan_fast.fuse_report(Broken()).skipped[0].reason == (
        "torch.fx cannot trace its forward: 'nothing works' (at: raise KeyError(\"nothing works\"))"
    )

    class Counting(Picky):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.main(x)) * len(x)

    assert gan_fast.fuse_report(Counting()).skipped[0].reason == (
        "torch.fx cannot trace its forward: 'len' is not supported in symbolic tracing by default; use x.size(0) "
        "instead of len(x) (at: return self.last(self.main(x)) * len(x))"
    )


def test_report_omits_layers_without_parameters_that_are_no_activations() -> None:
    others = (nn.Dropout(), nn.Upsample(scale_factor=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert str(gan_fast.fuse_report(nn.Sequential(nn.Conv2d(3, 4, 3), *others))) == (
        "fused  0  conv2d alone\n1 fused, 0 skipped"
    )


def test_frozen_norm_and_weights_stay_frozen() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Tanh()).double()
    model[0].requires_grad_(False)
    fused = gan_fast.fuse(model)
    for m in (model, fused):
        m.train()
        m[1].eval()
    assert_same(model, fused)
    assert not fused[0].weight.requires_grad


@pytest.mark.parametrize("old", [True, False], ids=["hook", "parametrization"])
def test_spectral_norm_iterates_once_per_call(old: bool) -> None:
    """Also if it is added after fuse()."""
    normalize = nn.utils.spectral_norm if old else parametrizations.spectral_norm

    def build() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(normalize(nn.Conv2d(3, 4, 3)), nn.LeakyReLU(0.2), nn.Conv2d(4, 4, 3), nn.Tanh()).double()

    model = build()
    fused = gan_fast.fuse(model)
    normalize(fused[2])
    torch.manual_seed(0)
    model = build()
    normalize(model[2])
    fused.load_state_dict(model.state_dict())
    assert len(gan_fast.fuse_report(fused).fused) == 2
    for m in (model, fused):
        m.train()
    assert_same(model, fused)
    classes = [type(m).__name__ for m in model.modules()]
    assert [type(m).__name__ for m in gan_fast.unfuse(fused).modules()] == classes
    assert_same(model, fused)
    if not old:
        nn.utils.parametrize.remove_parametrizations(gan_fast.fuse(model, inplace=True)[0], "weight")
        assert gan_fast.unfuse(model)[0].__class__ is nn.Conv2d


def test_hooks_added_later_see_tensors() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()).double()
    fused = gan_fast.fuse(model)
    for index in (0, 1, 2):
        seen: list[list[Any]] = [[], []]
        handles = [
            m[index].register_forward_hook(lambda _, given, output, values=values: values.extend((*given, output)))
            for m, values in zip((model, fused), seen)
        ]
        assert_same(model, fused)
        assert all(type(t) is Tensor for t in seen[1])
        assert all(torch.allclose(a, b) for a, b in zip(*seen, strict=True))
        for handle in handles:
            handle.remove()
    everywhere = nn.modules.module.register_module_forward_hook(lambda _, given, output: seen[1].append(output))
    fused(image())
    everywhere.remove()
    assert all(type(t) is Tensor for t in seen[1])


def test_edited_sequential_gives_the_same_results() -> None:
    """Layers are replaced, removed and appended after fuse(), and the model is sliced."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Tanh()).double()
    fused = gan_fast.fuse(model)
    for m in (model, fused):
        m[1] = nn.GroupNorm(2, 4).double()
    assert_same(model, fused)
    for m in (model, fused):
        del m[1]
        m.append(nn.Sigmoid())
    assert_same(model, fused)
    assert torch.allclose(fused[:1](image()), model[:1](image()))
    assert torch.allclose(fused[1:](fused[0](image())), model(image()))
    assert type(fused[0](image())) is Tensor


class Doubled(nn.LeakyReLU):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize(
    "make_layer",
    [lambda: nn.BatchNorm2d(4), lambda: nn.Conv2d(3, 4, 3), Doubled],
    ids=["norm", "convolution", "activation"],
)
def test_layers_put_in_after_fuse_run_unfused(make_layer: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(0.2)).double()
    fused = gan_fast.fuse(model)
    layer = make_layer().double()
    index = next(i for i, m in enumerate(model) if isinstance(layer, type(m)))
    for m in (model, fused):
        m[index] = copy.deepcopy(layer)
    assert_same(model, fused)


def test_subclass_of_an_activation_is_not_fused() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Doubled(0.2))
    assert gan_fast.fuse_report(model).fused[0].reason == "conv2d + batch_norm (with 1)"
    same_as_eager(model)


def test_optimizer_stays_valid_after_inplace_fuse() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 4)).double()
    eager = copy.deepcopy(model)
    optimizers = [torch.optim.Adam(m.parameters(), 0.01) for m in (eager, model)]
    for step in range(4):
        if step == 2:
            assert gan_fast.fuse(model, inplace=True) is model
        for m, optimizer in zip((eager, model), optimizers):
            optimizer.zero_grad()
            m(image()).square().mean().backward()
            optimizer.step()
    for a, b in zip(eager.state_dict().values(), model.state_dict().values()):
        assert torch.allclose(a, b, atol=1e-9)


class Picklable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(0.2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.main(x))


def test_copies_and_pickles_stay_fused() -> None:
    torch.manual_seed(0)
    model = Picklable().double()
    fused = gan_fast.fuse(model)
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    copies = [copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), torch.load(file, weights_only=False)]
    for other in copies:
        assert type(other) is type(fused)
        assert [type(m) for m in other.modules()] == [type(m) for m in fused.modules()]
        assert_same(copy.deepcopy(model), other)
        assert type(gan_fast.unfuse(other)) is Picklable
    assert isinstance(fused, Picklable)
    assert isinstance(fused.main[0], nn.Conv2d)
    assert type(fused).__name__ == "Picklable"
    fused.load_state_dict(model.state_dict(), strict=True)
    again = type(fused)().double()  # a new instance, which is not fused
    assert again(image()).shape == fused(image()).shape


def test_repr_adds_only_the_groups() -> None:
    model = Picklable()
    fused = str(gan_fast.fuse(model))
    assert fused.replace("(\n    fused: 0 + 1 + 2\n    (0)", "(\n    (0)") == str(model)


def test_mode_dtype_and_device_carry_over() -> None:
    model = gan_fast.fuse(Picklable().eval())
    assert not model.training
    assert not model.main[1].training
    model = model.to(torch.bfloat16).train()
    assert model(image().bfloat16()).dtype == torch.bfloat16
    assert model.to("meta")(torch.empty(2, 3, 6, 6, dtype=torch.bfloat16, device="meta")).shape == (2, 4, 4, 4)


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "text": (lambda: "generator", TypeError, "expected model type Module, got str"),
    "class": (lambda: nn.Conv2d, TypeError, "expected model type Module, got the class Conv2d; pass an instance"),
    "none": (lambda: None, TypeError, "expected model type Module, got NoneType"),
    "scripted": (
        lambda: torch.jit.script(nn.ReLU()), TypeError,
        "expected model that is not scripted, got RecursiveScriptModule; TorchScript runs its own compiled code",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("call", [gan_fast.fuse, gan_fast.unfuse, gan_fast.fuse_report])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_bad_model_raises(name: str, call: Callable[[Any], Any]) -> None:
    make, error, message = BAD[name]
    with pytest.raises(error, match=f"{call.__name__}: {message}"):
        call(make())


def test_model_that_cannot_be_copied_is_fused_in_place() -> None:
    model = Picklable()
    with open(__file__) as file:
        model.file = file
        message = (
            r"fuse: expected model that copy\.deepcopy can copy, got TypeError: cannot .*; inplace=True needs no copy"
        )
        with pytest.raises(ValueError, match=message):
            gan_fast.fuse(model)
        gan_fast.fuse(model, inplace=True)


def test_error_leaves_the_model_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def __setattr__(self, name: str, value: Any) -> None:
            if name == "__class__":
                raise RuntimeError("not with me")
            super().__setattr__(name, value)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.conv(x))

    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(), Stubborn())
    before = [type(m) for m in model.modules()]
    with pytest.raises(RuntimeError, match="not with me"):
        gan_fast.fuse(model, inplace=True)
    assert [type(m) for m in model.modules()] == before
    assert not any("_gan_fast_plan" in m.__dict__ for m in model.modules())


def test_fusing_a_hundred_modules_takes_under_half_a_second() -> None:
    blocks = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(True)) for _ in range(26)]
    model = nn.Sequential(*blocks)
    assert len(list(model.modules())) > 100
    times = []
    for _ in range(3):
        start = time.process_time()
        fused = gan_fast.fuse(model)
        times.append(time.process_time() - start)
    assert min(times) < 0.5
    assert len(gan_fast.fuse_report(fused).fused) == 26


def test_fused_models_compile_and_trace() -> None:
    torch.manual_seed(0)
    model = Picklable().double()
    fused = torch.compile(gan_fast.fuse(model), fullgraph=True, backend="aot_eager")
    assert torch.allclose(fused(image()), model(image()))
    inside = gan_fast.fuse(torch.compile(model, fullgraph=True, backend="aot_eager"))
    assert isinstance(inside, torch._dynamo.eval_frame.OptimizedModule)
    assert gan_fast.fuse_report(inside).fused[0].name == "_orig_mod.main.0"
    assert torch.allclose(inside(image()), model(image()))
    assert len(list(torch.fx.symbolic_trace(gan_fast.fuse(Picklable())).graph.nodes)) == 6


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.n = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.n(self.c(x)).relu() * self.scale

    def described(self) -> str:
        return "block"


class Down(Block):
    pass


class Last(Down):
    def __init__(self) -> None:
        super(self.__class__, self).__init__()

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(super(self.__class__, self).forward(x), 2)

    def described(self) -> str:
        return f"last {super(self.__class__, self).described()}"

    def another(self) -> Any:
        return self.__class__()


class SuperOfType(Down):
    def __init__(self) -> None:
        super(type(self), self).__init__()

    def described(self) -> str:
        return f"of {super(type(self), self).extra_repr()}"


def test_super_of_own_class_works() -> None:
    """``__class__`` of a fused module is the original class."""
    torch.manual_seed(0)
    model = Last()
    fused = same_as_eager(model)
    assert "c + n" in str(fused)
    again = gan_fast.fuse(gan_fast.fuse(fused), inplace=True)
    for other in (fused, again, copy.deepcopy(fused), copy.copy(fused), pickle.loads(pickle.dumps(fused))):
        assert type(other) is type(fused)
        assert other.__class__ is Last
        assert isinstance(other, Down)
        assert other.described() == "last block"
        assert type(other.another()) is Last
        assert_same(copy.deepcopy(model), copy.deepcopy(other))
    assert type(gan_fast.unfuse(fused)) is Last


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_module_with_a_forward_is_parametrized_before_and_after_fuse(before: bool) -> None:
    again = Down().double()
    if before:
        nn.utils.parametrize.register_parametrization(again, "scale", nn.Softplus())
    again = gan_fast.fuse(again)
    nn.utils.parametrize.register_parametrization(again, "scale", nn.Softplus())
    nn.utils.parametrize.register_parametrization(again.n, "bias", nn.Tanh())
    same_as_eager(gan_fast.unfuse(copy.deepcopy(again)))
    again = gan_fast.fuse(again)
    again(image())
    nn.utils.parametrize.remove_parametrizations(again, "scale")
    assert type(gan_fast.unfuse(again)) is Down


def test_module_with_super_of_type_is_skipped() -> None:
    model = SuperOfType()
    assert gan_fast.fuse_report(model).skipped[0].reason == (
        "its described calls super(type(self), self), which fails in a subclass"
    )
    fused = gan_fast.fuse(model)
    assert type(fused) is SuperOfType
    assert type(fused.c) is not nn.Conv2d


def test_penalties_on_a_fused_critic_match_eager() -> None:
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.2), nn.Conv2d(4, 1, 4), nn.Flatten(0)).double()
    fused = gan_fast.fuse(critic)
    x = image(requires_grad=False)
    gradients = []
    for m in (critic, fused):
        logits, r1 = ops.logits_and_r1(m, x)
        (F.softplus(-logits).mean() + r1 + ops.gradient_penalty(m, x, x + 1, generator=torch.Generator())).backward()
        gradients.append([p.grad for p in m.parameters()])
    assert all(torch.allclose(a, b) for a, b in zip(*gradients))


def test_layer_called_outside_of_the_forward_returns_a_tensor() -> None:
    assert not deferred._scope.modules
    conv = gan_fast.fuse(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))[0]
    assert type(conv(torch.randn(1, 3, 8, 8))) is Tensor


def test_channels_last_weights_keep_the_memory_format_of_eager() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
    x = torch.randn(2, 3, 16, 16)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model = model.to(memory_format=memory_format)
        fused = gan_fast.fuse(model)
        for given in (x, x.to(memory_format=torch.channels_last)):
            assert fused(given).stride() == model(given).stride()


class Attributed(Net):
    """A module with attributes whose names fuse could be using."""

    def __init__(self) -> None:
        super().__init__(lambda m, x: m.plain(m._fusion(F.relu(m.bn(m.conv(x))))))
        self.plain, self._fusion = nn.Conv2d(4, 4, 1), nn.Tanh()


def test_user_attributes_do_not_collide() -> None:
    same_as_eager(Attributed())
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ELU())
    model[1].activation = "tanh"  # type: ignore[assignment]
    same_as_eager(model)
    convolve = model[0]._conv_forward
    model[0]._conv_forward = lambda input, weight, bias: convolve(input, 2 * weight, bias)  # type: ignore[operator]
    assert ("0", "its _conv_forward was replaced") in [(e.name, e.reason) for e in gan_fast.fuse_report(model).skipped]


class Reduced(Picklable):
    def __reduce__(self) -> Any:
        return type(self), (), self.__dict__


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", [Picklable, Reduced])
def test_every_pickle_protocol_works(kind: type[nn.Module], protocol: int) -> None:
    fused = gan_fast.fuse(kind().double())
    other = pickle.loads(pickle.dumps(fused, protocol))
    assert type(other) is type(fused)
    assert torch.equal(other(image()), fused(image()))


def test_forward_replaced_on_the_class_runs() -> None:
    class Patched(Picklable):
        pass

    model = Patched().double()
    fused = gan_fast.fuse(model)
    Patched.forward = lambda self, x: 3 * self.main(x)  # type: ignore[method-assign]
    assert_same(model, fused)


def test_class_registries_do_not_see_fused_classes() -> None:
    classes: dict[str, type] = {}

    class Meta(type):
        def __init__(cls, name: str, bases: Any, names: Any) -> None:
            classes[f"meta {name}"] = cls

    class Base(Picklable, metaclass=Meta):
        def __init_subclass__(cls) -> None:
            classes[cls.__name__] = cls

    class Model(Base):
        pass

    fused = gan_fast.fuse(Model())
    assert classes == {"meta Base": Base, "meta Model": Model, "Model": Model}
    assert type(type(fused)) is Meta


def test_fused_classes_are_garbage_collected() -> None:
    def fuse_and_drop() -> weakref.ref[type]:
        class Model(Picklable):
            pass

        gan_fast.fuse(Model())(image().float())
        return weakref.ref(Model)

    classes = [fuse_and_drop() for _ in range(4)]
    gc.collect()
    assert [ref() for ref in classes[:-1]] == [None] * 3


def test_report_leaves_no_side_effects() -> None:
    """Tracing runs the forward, which changes buffers, attributes, lists and random number generators."""

    def forward(m: Any, x: Tensor) -> Tensor:
        m.count.add_(1)
        m.scale += 1
        m.act.style = x.mean()
        m.log["seen"].append(x)
        m.bn.eval()
        return m.act(m.bn(m.conv(x))) * random.random() + torch.rand(())

    model = Net(forward)
    model.register_buffer("count", torch.zeros(()))
    model.scale, model.log = torch.zeros(()), {"seen": []}  # type: ignore[assignment]
    torch.manual_seed(0), random.seed(0)
    drawn = torch.rand(()), random.random()
    torch.manual_seed(0), random.seed(0)
    assert gan_fast.fuse_report(model).fused[0].reason.startswith("conv2d + batch_norm + leaky_relu")
    assert (model.count, model.scale, model.log) == (0, 0, {"seen": []})
    assert not hasattr(model.act, "style")
    assert model.bn.training
    assert (torch.rand(()), random.random()) == drawn


KEPT: list[Any] = []


def stored(m: Any, x: Tensor) -> Tensor:
    m.kept = m.bn(m.conv(x))
    return F.relu(m.kept)


def appended(m: Any, x: Tensor) -> Tensor:
    h = m.bn(m.conv(x))
    KEPT[:] = [h]
    return F.relu(h)


def test_values_that_outlive_the_forward_are_tensors() -> None:
    models = [gan_fast.fuse(Net(forward).double()) for forward in (stored, appended)]
    for model in models:
        assert not gan_fast.fuse_report(model).skipped
        same_as_eager(model)
        model(image())
    assert type(models[0].kept) is Tensor
    assert type(KEPT[0]) is Tensor


class TimesThree(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        return F.relu(input)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return 3 * grad_output


def inspecting_type(m: Any, x: Tensor) -> Tensor:
    h = m.conv(x)
    return F.relu(2 * h if isinstance(h, Tensor) else h)


def writing_input(m: Any, x: Tensor) -> Tensor:
    x = 1 * x
    h = m.conv(x)
    with torch.no_grad():
        x += 1
    return F.relu(h) + x.sum()


def checkpointed(m: Any, x: Tensor) -> Tensor:
    def part(x: Tensor) -> Tensor:
        return m.other(torch.tanh(m.bn(m.conv(x))))

    return torch.utils.checkpoint.checkpoint(part, x, use_reentrant=False)


UNTRACED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "autograd.Function": lambda m, x: m.other(TimesThree.apply(m.conv(x))),
    "isinstance": inspecting_type,
}


@pytest.mark.parametrize("name", UNTRACED)
def test_forward_that_torch_fx_misreads_matches_eager(name: str) -> None:
    torch.manual_seed(0)
    same_as_eager(Net(UNTRACED[name]))


@pytest.mark.parametrize("forward", [writing_input, checkpointed])
def test_write_or_checkpoint_between_layers_matches_eager(forward: Any) -> None:
    torch.manual_seed(0)
    model = Net(forward).double()
    fused = gan_fast.fuse(model)
    assert torch.allclose(fused(image(False)), model(image(False)))
    if forward is checkpointed:
        for m in (model, fused):
            m(image()).sum().backward()
        assert torch.allclose(model.conv.weight.grad, fused.conv.weight.grad)


def test_hooks_see_the_memory_format_of_eager() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU())
    fused = gan_fast.fuse(model)
    strides: list[Any] = []
    for m in (model, fused):
        m[2].register_forward_hook(lambda _, given, output: strides.append(output.stride()))
        m(torch.randn(4, 3, 16, 16))
    assert strides[0] == strides[1]


def test_activations_are_freed_without_gradients() -> None:
    """Eager frees each activation once the next layer has used it."""

    class Count(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            held.append(sum(type(t) is Tensor and t.shape == x.shape for t in gc.get_objects()))
            return x

    held: list[int] = []
    layers = [layer for _ in range(6) for layer in (nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())]
    model = nn.Sequential(*layers, Count()).double()
    for m in (model, gan_fast.fuse(model)):
        with torch.no_grad():
            m(torch.randn(2, 3, 6, 7).double())
    assert held[1] <= held[0] + 1


def test_fx_tracer_without_leaf_modules_works() -> None:
    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return False

    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.2), nn.ConvTranspose2d(4, 3, 3), nn.Tanh()).double()
    fused = gan_fast.fuse(layers)
    traced = torch.fx.GraphModule(fused, Tracer().trace(fused))
    assert torch.allclose(traced(image()), layers(image()))


@pytest.mark.parametrize("small", [True, False], ids=["small", "large"])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels", [(5, 4), (3, 5)], ids=["convolution", "norm"])
@pytest.mark.parametrize("custom", [True, False], ids=["forward", "Sequential"])
def test_wrong_channels_raise_the_error_of_torch(
    custom: bool, channels: tuple[int, int], training: bool, grad: bool, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not small:
        monkeypatch.setattr(gan_fast.backends, "SMALL", -1)
    conv, norm = nn.Conv2d(channels[0], 4, 3), nn.BatchNorm2d(channels[1])
    model: nn.Module = nn.Sequential(conv, norm, nn.ReLU())
    if custom:
        model = Net(FORWARDS["in place"][0])
        model.conv, model.bn = conv, norm
    errors = []
    for m in (model.train(training), gan_fast.fuse(model).train(training)):
        with torch.set_grad_enabled(grad), pytest.raises((RuntimeError, ValueError)) as caught:
            m(torch.randn(2, 3, 6, 6))
        errors.append((type(caught.value), str(caught.value)))
    assert errors[0] == errors[1]
