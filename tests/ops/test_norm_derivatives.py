"""First to fourth derivatives of batch norm and instance norm, compared with float64 formulas."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from pairs import pairwise
from torch import Tensor

import gan_fast
from gan_fast import backends, ops

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda z: z, "relu": F.relu, "leaky_relu": lambda z: F.leaky_relu(z, 0.2), "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}  # fmt: skip
# Below and above the size up to which automatic choice uses ATen.
SHAPES = {"small": (3, 4, 5, 3), "large": (8, 8, 17, 16)}
ORDER = 4


@pytest.fixture(autouse=True)
def aten_for_small_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "SMALL", 8192)


def normalized(x: Tensor, dims: tuple[int, ...], statistics: tuple[Tensor, Tensor] | None) -> Tensor:
    if statistics is None:
        mean, var = x.mean(dims, keepdim=True), x.var(dims, unbiased=False, keepdim=True)
    else:
        mean, var = (t.view(1, -1, 1, 1) for t in statistics)
    return (x - mean) / (var + 1e-5).sqrt()


def affine(z: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    z = z if weight is None else z * weight.view(1, -1, 1, 1)
    return z if bias is None else z + bias.view(1, -1, 1, 1)


class Path:
    """A curve through tensors: derivatives along it depend on all partial derivatives of their order."""

    def __init__(self, *tensors: Tensor | None) -> None:
        self.tensors = tensors
        generator = torch.Generator().manual_seed(7)
        self.directions = [
            None if t is None else torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in tensors
        ]

    def at(self, t: Tensor) -> list[Tensor | None]:
        return [
            None if a is None or v is None else a * torch.cos(t) + v * torch.sin(t + 0.3)
            for a, v in zip(self.tensors, self.directions)
        ]

    def derivatives(self, function: Callable[..., Tensor], by_functorch: bool = False) -> Tensor:
        def value(t: Tensor) -> Tensor:
            output = function(*self.at(t))
            weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
            return (output * weights).sum()

        if by_functorch:
            found = []
            for _ in range(ORDER):
                value = torch.func.grad(value)
                found.append(value(torch.zeros((), dtype=torch.float64)))
            return torch.stack(found)
        t = torch.zeros((), dtype=torch.float64, requires_grad=True)
        derivative, found = value(t), []
        for _ in range(ORDER):
            (derivative,) = torch.autograd.grad(derivative, t, create_graph=True)
            found.append(derivative.detach())
        return torch.stack(found)


def draw(shape: tuple[int, ...], channels_last: bool, with_weight: bool, with_bias: bool) -> list[Tensor | None]:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    weight, bias = torch.randn(2, shape[1], dtype=torch.float64)
    return [x, weight if with_weight else None, bias if with_bias else None]


def assert_equal_derivatives(actual: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(actual, want, rtol=1e-8, atol=1e-8 * want.abs().max().item())


@pytest.mark.parametrize(
    ("size", "how"), [("small", "auto"), ("large", "auto"), ("large", "reference"), ("small", "functorch")]
)
@pytest.mark.parametrize(
    *pairwise(
        norm=["batch", "instance"],
        activation=["identity", "leaky_relu", "tanh"],
        parameters=[(True, True), (True, False), (False, True), (False, False)],
        training=[True, False],
    )
)
def test_first_to_fourth_derivatives_equal_the_formula(
    norm: str, activation: str, parameters: tuple[bool, bool], training: bool, size: str, how: str
) -> None:
    path = Path(*draw(SHAPES[size], size == "large", *parameters))
    channels = SHAPES[size][1]
    statistics = None if training else (torch.randn(channels).double(), torch.rand(channels).double() + 0.5)
    dims = (0, 2, 3) if norm == "batch" else (2, 3)

    def actual(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        function = ops.batch_norm_act if norm == "batch" else ops.instance_norm_act
        given = statistics or (None, None)
        return function(x, *given, weight, bias, training, 0.1, 1e-5, activation, 0.2)

    want = path.derivatives(
        lambda x, weight, bias: ACTIVATIONS[activation](affine(normalized(x, dims, statistics), weight, bias))
    )
    with gan_fast.use_backend("reference" if how == "reference" else "auto"):
        assert_equal_derivatives(path.derivatives(actual, how == "functorch"), want)


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("activation", ["leaky_relu", "tanh"])
def test_derivatives_of_conv2d_bn_act(activation: str, size: str) -> None:
    x, gamma, beta = draw(SHAPES[size], False, True, True)
    path = Path(x, torch.randn(SHAPES[size][1], SHAPES[size][1], 3, 3).double(), gamma, beta)

    def actual(x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return ops.conv2d_bn_act(
            x, weight, None, 1, 1, bn_weight=gamma, bn_bias=beta, training=True, activation=activation,
            negative_slope=0.2,
        )  # fmt: skip

    def want(x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        raw = F.conv2d(x, weight, None, 1, 1)
        return ACTIVATIONS[activation](affine(normalized(raw, (0, 2, 3), None), gamma, beta))

    assert_equal_derivatives(path.derivatives(actual), path.derivatives(want))


@pytest.mark.parametrize("how", ["auto", "reference"])
def test_higher_derivatives_update_running_statistics_once(how: str) -> None:
    x = draw(SHAPES["small"], False, False, False)[0]
    running, by_functorch, want = (
        (torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)) for _ in range(3)
    )
    F.batch_norm(x, *want, training=True)
    with gan_fast.use_backend(how):
        leaf = x.clone().requires_grad_()
        output = ops.batch_norm_act(leaf, *running, training=True, activation="tanh")
        (first,) = torch.autograd.grad(output.sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), leaf, create_graph=True)
        second.square().sum().backward()
        torch.func.grad(
            lambda x: ops.batch_norm_act(x, *by_functorch, training=True, activation="tanh").square().sum()
        )(x)
    for updated in (running, by_functorch):
        for actual, statistic in zip(updated, want):
            torch.testing.assert_close(actual, statistic)


def test_third_derivative_raises_under_saved_tensor_hooks() -> None:
    """Hooks replace the saved input, so the third derivative cannot be corrected, and ATen's is wrong."""
    weight = torch.randn(4, dtype=torch.float64, requires_grad=True)
    leaf = torch.randn(SHAPES["small"], dtype=torch.float64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().clone(), lambda t: t):
        output = ops.batch_norm_act(leaf * 2, None, None, weight, training=True, activation="identity")
    (first,) = torch.autograd.grad(output.pow(3).sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), weight, retain_graph=True)
    assert second.isfinite().all()
    with pytest.raises(NotImplementedError, match="expected derivative order at most 2"):
        torch.autograd.grad(first.square().sum(), weight, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_second_derivative_under_functorch_is_as_accurate_as_in_aten(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, v = torch.randn(2, 4, 6, 5, 7, dtype=torch.float64).to(dtype)
    x = x + 3

    def second(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        first = torch.func.grad(lambda x: (function(x) ** 3).sum())
        return torch.func.grad(lambda x: (first(x) * v.to(x.dtype)).sum())(x)

    exact = second(lambda x: torch.tanh(normalized(x, (0, 2, 3), None)), x.double())
    eager = second(lambda x: torch.tanh(F.batch_norm(x, None, None, training=True)), x)
    actual = second(lambda x: ops.batch_norm_act(x, None, None, training=True, activation="tanh"), x)
    allowed = 2 * (eager.double() - exact).abs().max() + torch.finfo(dtype).eps * exact.abs().max()
    assert actual.dtype == dtype
    assert (actual.double() - exact).abs().max() <= allowed


@pytest.mark.parametrize(
    *pairwise(
        norm=["batch", "instance"], frozen=[True, False], training=[True, False], how=["auto", "reference"], size=SHAPES
    )
)
def test_bias_without_weight_gets_correct_derivatives(
    norm: str, frozen: bool, training: bool, how: str, size: str
) -> None:
    """ATen's double backward fails here, or returns no gradient for the bias."""
    x, _, bias = draw(SHAPES[size], False, False, True)
    channels = SHAPES[size][1]
    statistics = None if training else (torch.randn(channels).double(), torch.rand(channels).double() + 0.5)
    leaves = [bias.requires_grad_()] if frozen else [x.requires_grad_(), bias.requires_grad_()]
    found = []
    with gan_fast.use_backend(how):
        function = ops.batch_norm_act if norm == "batch" else ops.instance_norm_act
        actual = function(x, *(statistics or (None, None)), None, bias, training, activation="identity")
    want = affine(normalized(x, (0, 2, 3) if norm == "batch" else (2, 3), statistics), None, bias)
    for output in (actual, want):
        first = torch.autograd.grad(output.pow(3).sum(), leaves, create_graph=True)
        found.append([*first, *torch.autograd.grad(sum(g.square().sum() for g in first), leaves)])
    for actual, expected in zip(*found):
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-7 * expected.abs().max().item())
