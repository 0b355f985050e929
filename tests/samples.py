"""The shapes, layouts, dtypes and values that the tests of every op share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from gan_fast.choices import ACTIVATIONS
from gan_fast.ops import checks

DTYPES = checks.FLOATING


def _gaps(t: Tensor) -> Tensor:
    wide = torch.zeros(*t.shape[:-1], 2 * t.shape[-1], dtype=t.dtype)
    wide[..., ::2] = t
    return wide[..., ::2]


def _offset(t: Tensor) -> Tensor:
    storage = torch.zeros(t.numel() + 3, dtype=t.dtype)
    view = storage[3:].view(t.shape)
    return view.copy_(t)


def _channels_last(t: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if t.dim() in formats:
        return t.contiguous(memory_format=formats[t.dim()])
    # torch has no channels-last format for other ranks, but tensors with strides in that order exist.
    return t.movedim(1, -1).contiguous().movedim(-1, 1)


def _sliced_channels_last(t: Tensor) -> Tensor:
    return _channels_last(torch.cat([t, t], 1))[:, : t.shape[1]]


def _transposed(t: Tensor) -> Tensor:
    return t.transpose(0, -1).contiguous().transpose(0, -1)


def _expanded(t: Tensor) -> Tensor:
    # Expands the last spatial dim, not the batch: samples that are all equal may have no variance.
    return t[..., :1].expand(t.shape) if t.dim() > 2 else t[:1].expand(t.shape)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": torch.Tensor.contiguous,
    "channels_last": _channels_last,
    "sliced_channels_last": _sliced_channels_last,
    "gaps": _gaps,
    "offset": _offset,
    "transposed": _transposed,
    "expanded": _expanded,
}


@dataclass(frozen=True)
class NormSample:
    """Arguments of a norm with an activation."""

    shape: tuple[int, ...]
    training: bool = True
    activation: str = "leaky_relu"
    negative_slope: float = 0.2
    layout: str = "contiguous"
    affine: bool = True
    running: bool = True
    momentum: float = 0.1
    eps: float = 1e-5
    mean: float = 0.5
    std: float = 2.0
    small: bool = field(default=True)  # small enough for numerical differentiation

    def __str__(self) -> str:
        parts = ["x".join(map(str, self.shape)), "train" if self.training else "eval", self.activation, self.layout]
        parts += [] if self.affine else ["plain"]
        parts += [] if self.running else ["no_running"]
        parts += [] if self.negative_slope == 0.2 else [f"slope{self.negative_slope}"]
        parts += [] if self.mean == 0.5 else [f"mean{self.mean:g}"]
        return "-".join(parts)

    def make(self, dtype: torch.dtype, seed: int = 0, requires_grad: bool = True) -> dict[str, Any]:
        """Return keyword arguments for the op; parameters are float32 where the input is a half type."""
        generator = torch.Generator().manual_seed(seed)
        channels = self.shape[1]
        x = torch.randn(self.shape, generator=generator, dtype=torch.float64) * self.std + self.mean
        input = LAYOUTS[self.layout](x.to(dtype)) if x.numel() else x.to(dtype)
        parameter_dtype = torch.float32 if dtype.itemsize == 2 else dtype
        values = torch.randn((4, channels), generator=generator, dtype=torch.float64)
        weight, bias, mean = 1 + 0.3 * values[0], 0.5 * values[1], self.mean + 0.3 * values[2]
        var = self.std**2 * (1 + 0.3 * values[3].tanh())
        weight, bias, mean, var = (t.to(parameter_dtype) for t in (weight, bias, mean, var))
        return {
            "input": input.detach().requires_grad_(requires_grad),
            "running_mean": mean if self.running else None,
            "running_var": var if self.running else None,
            "weight": weight.requires_grad_(requires_grad) if self.affine else None,
            "bias": bias.requires_grad_(requires_grad) if self.affine else None,
            "training": self.training,
            "momentum": self.momentum,
            "eps": self.eps,
            "activation": self.activation,
            "negative_slope": self.negative_slope,
        }


def _norm_samples() -> list[NormSample]:
    samples = []
    # Every activation, in both modes.
    for activation in ACTIVATIONS:
        for training in (True, False):
            samples.append(NormSample((3, 5, 4, 3), training, activation))
            samples.append(NormSample((2, 8, 2, 3), training, activation, layout="channels_last"))
    # Every layout, with 0 to 4 spatial dims.
    for layout in LAYOUTS:
        samples.append(NormSample((3, 4, 5, 3), layout=layout))
        samples.append(NormSample((4, 6), training=layout != "expanded", layout=layout))
        samples.append(NormSample((3, 3, 7), training=False, layout=layout))
        samples.append(NormSample((2, 3, 2, 3, 2), activation="tanh", layout=layout))
    samples.append(NormSample((2, 3, 2, 1, 2, 3)))
    # Edge cases: one sample, one pixel, one channel, sizes around the vector width, slope 0, optional arguments.
    for shape in ((1, 3, 3, 3), (5, 3, 1, 1), (3, 1, 4, 4), (2, 7, 3, 3), (2, 9, 1, 17), (3, 16, 1, 8), (4, 1)):
        for layout in ("contiguous", "channels_last"):
            samples.append(NormSample(shape, layout=layout))
    samples += [
        NormSample((3, 4, 3, 3), negative_slope=0.0),
        NormSample((3, 4, 3, 3), affine=False),
        NormSample((3, 4, 3, 3), affine=False, training=False, activation="sigmoid"),
        NormSample((3, 4, 3, 3), running=False),
        NormSample((3, 4, 3, 3), momentum=1.0, eps=1e-3),
        NormSample((3, 4, 3, 3), mean=100.0, std=1.0),
    ]
    # Workloads: enough values for several blocks, chunks and threads.
    for layout in ("contiguous", "channels_last"):
        samples += [
            NormSample((8, 64, 32, 32), layout=layout, small=False),
            NormSample((32, 256, 8, 8), layout=layout, small=False, activation="relu"),
            NormSample((16, 48, 7, 7), layout=layout, small=False, activation="tanh"),
            NormSample((64, 3, 33, 31), layout=layout, small=False, mean=30.0, std=1.0),
        ]
    samples.append(NormSample((3000, 24), small=False))
    return samples


NORM_SAMPLES = _norm_samples()


LOSS_KINDS = ("minimax", "hinge", "wasserstein", "least_squares")
LOSS_RELATIVISTIC = ("none", "paired", "average")


@dataclass(frozen=True)
class LossSample:
    """Arguments of the adversarial losses; logits are normal with standard deviation ``scale``."""

    real_shape: tuple[int, ...]
    fake_shape: tuple[int, ...]
    real_target: float = 1.0
    fake_target: float = 0.0
    scale: float = 2.0
    layout: str = "contiguous"
    small: bool = True
    kind: str = "minimax"
    relativistic: str = "none"

    def __str__(self) -> str:
        shapes = "_".join("x".join(map(str, s)) or "scalar" for s in (self.real_shape, self.fake_shape))
        loss = f"{self.kind}-{self.relativistic}"
        return f"{loss}-{shapes}-{self.real_target:g}-{self.fake_target:g}-{self.scale:g}-{self.layout}"

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of ops.d_loss_and_means."""
        targets = {"real_target": self.real_target, "fake_target": self.fake_target}
        return {"kind": self.kind, "relativistic": self.relativistic, **targets}

    @property
    def arguments(self) -> tuple[float, float, float, str, str]:
        """Arguments of the registered ops after the logits."""
        return self.real_target, self.fake_target, 1.0, self.kind, self.relativistic

    def make(self, dtype: torch.dtype, seed: int = 0, requires_grad: bool = True) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        logits = []
        for shape in (self.real_shape, self.fake_shape):
            x = (torch.randn(shape, generator=generator, dtype=torch.float64) * self.scale).to(dtype)
            if x.dim():
                x = LAYOUTS[self.layout](x)
            logits.append(x.detach().requires_grad_(requires_grad))
        return logits[0], logits[1]


def _loss_samples() -> list[LossSample]:
    samples = [
        LossSample((), ()),
        LossSample((1,), (1,)),
        LossSample((7,), (13,)),
        LossSample((4, 1), (4, 1), real_target=0.9),
        LossSample((4, 1), (4, 1), real_target=0.9, fake_target=0.1),
        LossSample((2, 1, 3, 5), (2, 1, 3, 5), scale=10.0),
        LossSample((6,), (6,), scale=60.0),
        *(LossSample((3, 2, 3, 4), (3, 2, 3, 4), layout=layout) for layout in LAYOUTS if layout != "contiguous"),
        LossSample((128,), (128,), small=False),
        LossSample((16, 1, 30, 30), (16, 1, 30, 30), small=False),
        LossSample((5, 1, 61, 67), (3, 1, 30, 30), small=False),
        LossSample((70000,), (40000,), small=False),
    ]
    for kind in LOSS_KINDS:
        for relativistic in LOSS_RELATIVISTIC:
            if (kind, relativistic) == ("minimax", "none"):
                continue
            which: dict[str, Any] = {"kind": kind, "relativistic": relativistic}
            paired = relativistic == "paired"
            samples += [
                LossSample((13,), (13,) if paired else (7,), **which),
                LossSample((3, 1, 5), (3, 1, 5), 0.9, 0.0 if paired else 0.1, layout="transposed", **which),
                # Enough logits for several blocks and threads.
                LossSample((5, 1, 61, 67), (5, 1, 61, 67) if paired else (3, 1, 30, 30), small=False, **which),
            ]
    return samples


LOSS_SAMPLES = _loss_samples()


@dataclass(frozen=True)
class SampleNormSample:
    """Arguments of sample_norm_penalty; inputs are normal with standard deviation ``std``."""

    shape: tuple[int, ...]
    center: float = 1.0
    scale: float = 1.0
    weighted: bool = False
    std: float = 0.5
    layout: str = "contiguous"
    small: bool = True

    def __str__(self) -> str:
        parts = ["x".join(map(str, self.shape)), f"center{self.center:g}", self.layout]
        parts += ["weighted"] if self.weighted else []
        parts += [] if self.scale == 1 else [f"scale{self.scale:g}"]
        parts += [] if self.std == 0.5 else [f"std{self.std:g}"]
        return "-".join(parts)

    def make(self, dtype: torch.dtype, seed: int = 0, requires_grad: bool = True) -> dict[str, Any]:
        """Return keyword arguments for the op; coefficients are float32 where the input is a half type."""
        generator = torch.Generator().manual_seed(seed)
        x = (torch.randn(self.shape, generator=generator, dtype=torch.float64) * self.std).to(dtype)
        x = LAYOUTS[self.layout](x) if x.dim() > 1 and x.numel() else x
        coefficients = None
        if self.weighted:
            values = 1 + torch.randn(self.shape[0], generator=generator, dtype=torch.float64)
            values = values.to(torch.float64 if dtype == torch.float64 else torch.float32)
            coefficients = values.requires_grad_(requires_grad)
        return {
            "input": x.detach().requires_grad_(requires_grad),
            "coefficients": coefficients,
            "center": self.center,
            "scale": self.scale,
        }


SAMPLE_NORM_SAMPLES = [
    SampleNormSample((1,)),
    SampleNormSample((6,), weighted=True),
    SampleNormSample((4, 1), 0.0, 0.5),
    SampleNormSample((3, 7), 0.7, weighted=True),
    SampleNormSample((1, 3, 5, 5)),
    SampleNormSample((2, 3, 4, 5), 0.0, 0.5),
    SampleNormSample((2, 3, 4, 5), 0.0, 10.0, weighted=True),
    SampleNormSample((2, 3, 2, 3, 2), 1.0, 10.0, weighted=True),
    SampleNormSample((3, 2, 4, 4), std=20.0),
    SampleNormSample((3, 2, 4, 4), -1.5, weighted=True),
    *(
        SampleNormSample((3, 2, 3, 4), center, weighted=center > 0, layout=layout)
        for layout in LAYOUTS
        if layout != "contiguous"
        for center in (0.0, 1.0)
    ),
    # A single sample is dense in any order of its dims; samples of one dim are dense only in the order (N, C).
    SampleNormSample((1, 3, 4, 4), layout="transposed"),
    SampleNormSample((5, 6), layout="transposed"),
    # Workloads: samples of several blocks, and many short samples.
    SampleNormSample((32, 3, 64, 64), std=0.01, small=False),
    SampleNormSample((2, 3, 191, 173), weighted=True, std=0.003, small=False),
    SampleNormSample((4, 3, 65, 67), 0.0, 0.5, layout="channels_last", small=False),
    SampleNormSample((3000, 9), weighted=True, small=False),
]


@dataclass(frozen=True)
class ConvSample:
    """Arguments of a convolution; ``layout`` applies to the input, and to the weight if it is channels_last."""

    input_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    transposed: bool = False
    bias: bool = True
    options: tuple[tuple[str, Any], ...] = ()
    layout: str = "contiguous"

    def __str__(self) -> str:
        shapes = ["x".join(map(str, shape)) for shape in (self.input_shape, self.weight_shape)]
        parts = [*shapes, "transposed" if self.transposed else "plain", self.layout]
        parts += [] if self.bias else ["no_bias"]
        return "-".join(parts + [f"{name}{value}".replace(" ", "") for name, value in self.options])

    @property
    def op(self) -> str:
        return f"conv{'_transpose' if self.transposed else ''}{len(self.weight_shape) - 2}d"

    def make(self, dtype: torch.dtype, seed: int = 0, requires_grad: bool = True) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)

        def draw(shape: tuple[int, ...], layout: str) -> Tensor:
            x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            return (LAYOUTS[layout](x) if x.numel() else x).detach().requires_grad_(requires_grad)

        options = dict(self.options)
        c_out = self.weight_shape[1] * options.get("groups", 1) if self.transposed else self.weight_shape[0]
        # Weights are dense in practice, and channels-last in a model that was converted to it.
        weight_layout = self.layout if self.layout == "channels_last" else "contiguous"
        return {
            "input": draw(self.input_shape, self.layout),
            "weight": draw(self.weight_shape, weight_layout),
            "bias": draw((c_out,), "contiguous") if self.bias else None,
            **options,
        }


def _conv_samples() -> list[ConvSample]:
    samples = []
    for layout in LAYOUTS:
        samples.append(ConvSample((2, 3, 6, 5), (4, 3, 3, 3), layout=layout))
        samples.append(
            ConvSample((2, 3, 4, 5), (3, 4, 4, 4), True, options=(("stride", 2), ("padding", 1)), layout=layout)
        )
    for dims in (1, 2, 3):
        space, kernel = (7, 5, 6)[:dims], (3, 2, 3)[:dims]
        samples += [
            ConvSample((2, 4, *space), (6, 2, *kernel), options=(("groups", 2), ("padding", 1), ("stride", 2))),
            ConvSample((2, 4, *space), (6, 4, *kernel), bias=False, options=(("dilation", 2), ("padding", 2))),
            ConvSample((2, 4, *space), (6, 4, *kernel), options=(("padding", "same"),)),
            ConvSample((2, 4, *space), (4, 3, *kernel), True, options=(("groups", 2), ("stride", 2))),
            ConvSample(
                (2, 4, *space), (4, 3, *kernel), True, bias=False,
                options=(("stride", 3), ("padding", 1), ("output_padding", 2), ("dilation", 2)),
            ),
        ]  # fmt: skip
    samples += [
        ConvSample((3, 6, 5), (4, 3, 3, 3)),  # unbatched
        ConvSample((3, 4, 5), (3, 4, 4, 4), True, options=(("stride", (2, 1)),)),
        ConvSample((3, 16, 1, 1), (8, 16, 1, 1)),
        ConvSample((4, 4, 6, 6), (4, 1, 3, 3), options=(("groups", 4), ("padding", (1, 0)))),
        ConvSample((0, 3, 6, 5), (4, 3, 3, 3)),
        ConvSample((2, 8, 4, 4), (1, 8, 4, 4), bias=False),  # the last layer of a discriminator
    ]
    return samples


CONV_SAMPLES = _conv_samples()


@dataclass(frozen=True)
class BlockSample:
    """Arguments of a convolution with an activation, and with batch norm between them where ``norm`` is True."""

    conv: ConvSample
    norm: bool = True
    training: bool = True
    activation: str = "leaky_relu"
    negative_slope: float = 0.2
    affine: bool = True
    running: bool = True

    def __str__(self) -> str:
        parts = [str(self.conv), self.activation]
        parts += [f"slope{self.negative_slope}"] if self.activation == "leaky_relu" else []
        if self.norm:
            parts += ["train" if self.training else "eval"]
            parts += [] if self.affine else ["plain"]
            parts += [] if self.running else ["no_running"]
        return "-".join(parts)

    @property
    def op(self) -> str:
        return f"{self.conv.op}{'_bn' if self.norm else ''}_act"

    def make(self, dtype: torch.dtype, seed: int = 0, requires_grad: bool = True) -> dict[str, Any]:
        """Return keyword arguments for the op; those of the norm are float32 where the input is a half type."""
        arguments = self.conv.make(dtype, seed, requires_grad)
        arguments |= {"activation": self.activation, "negative_slope": self.negative_slope}
        if not self.norm:
            return arguments
        weight = self.conv.weight_shape
        c_out = weight[1] * arguments.get("groups", 1) if self.conv.transposed else weight[0]
        norm = NormSample((1, c_out), affine=self.affine, running=self.running).make(dtype, seed + 1, requires_grad)
        for name in ("weight", "bias"):
            arguments[f"bn_{name}"] = norm[name]
        for name in ("running_mean", "running_var"):
            arguments[name] = norm[name]
        return arguments | {"training": self.training, "momentum": 0.1, "eps": 1e-5}


def _block_samples() -> list[BlockSample]:
    down = (("stride", 2), ("padding", 1))
    plain, transposed = (
        ConvSample((3, 3, 6, 6), (4, 3, 4, 4), options=down),
        ConvSample((3, 3, 4, 4), (3, 5, 4, 4), True, False, down),
    )
    samples = []
    for conv in (plain, transposed):
        for activation in ACTIVATIONS:
            samples.append(BlockSample(conv, False, activation=activation))
            samples += [BlockSample(conv, True, training, activation) for training in (True, False)]
        samples += [
            BlockSample(conv, False, negative_slope=0.0),
            BlockSample(conv, False, negative_slope=-0.5),
            BlockSample(conv, negative_slope=0.0),
            BlockSample(conv, affine=False),
            BlockSample(conv, running=False),
            BlockSample(conv, training=False, affine=False),
        ]
    for layout in LAYOUTS:
        if layout != "contiguous":
            conv = ConvSample((3, 3, 6, 6), (4, 3, 4, 4), options=down, layout=layout)
            samples += [BlockSample(conv, False), BlockSample(conv)]
    for dims in (1, 2, 3):
        space, kernel = (7, 5, 6)[:dims], (3, 2, 3)[:dims]
        for conv in (
            ConvSample((3, 4, *space), (6, 2, *kernel), options=(("groups", 2), ("padding", 1), ("stride", 2))),
            ConvSample((3, 4, *space), (6, 4, *kernel), bias=False, options=(("dilation", 2), ("padding", 2))),
            ConvSample(
                (3, 4, *space), (4, 3, *kernel), True,
                options=(("stride", 3), ("padding", 1), ("output_padding", 2), ("groups", 2), ("dilation", 2)),
            ),
        ):  # fmt: skip
            samples += [BlockSample(conv, False, activation="relu"), BlockSample(conv, activation="relu")]
            samples.append(BlockSample(conv, training=False, activation="tanh"))
    samples += [
        BlockSample(ConvSample((3, 6, 5), (4, 3, 3, 3)), False),  # unbatched
        BlockSample(ConvSample((0, 3, 6, 5), (4, 3, 3, 3)), False),
        BlockSample(ConvSample((0, 3, 6, 5), (4, 3, 3, 3)), training=False),
        BlockSample(ConvSample((8, 64, 8, 8), (300, 64, 4, 4), bias=False, options=down), activation="relu"),
        BlockSample(ConvSample((8, 64, 16, 16), (64, 3, 4, 4), True, True, down), False, activation="tanh"),
    ]
    return samples


BLOCK_SAMPLES = _block_samples()


@st.composite
def conv_samples(draw: st.DrawFn) -> ConvSample:
    dims, transposed = draw(st.integers(1, 3)), draw(st.booleans())
    groups = draw(st.sampled_from([1, 2, 3]))
    c_in, c_out = (groups * draw(st.integers(1, 3)) for _ in range(2))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    kernel, stride, dilation, padding = each(1, 3), each(1, 3), each(1, 2), each(0, 2)
    options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    reach = [d * (k - 1) for d, k in zip(dilation, kernel)]
    if transposed:
        options["output_padding"] = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation))
        # The smallest input that gives an output.
        least = [max(1, -(-(2 * p - r) // s) + 1) for p, r, s in zip(padding, reach, stride)]
    else:
        least = [max(1, r + 1 - 2 * p) for r, p in zip(reach, padding)]
    space = tuple(n + draw(st.integers(0, 4)) for n in least)
    weight = (c_in, c_out // groups, *kernel) if transposed else (c_out, c_in // groups, *kernel)
    layout = draw(st.sampled_from(sorted(LAYOUTS)))
    return ConvSample(
        (draw(st.integers(1, 3)), c_in, *space), weight, transposed, draw(st.booleans()), tuple(options.items()), layout
    )


def every_tap_sees_an_input(sample: ConvSample) -> bool:
    """Whether every tap of the kernel meets a value of the input.

    Where a tap meets padding only, the half-precision weight gradient of ATen (torch 2.13) is uninitialized memory.
    """
    arguments = sample.make(torch.float64, requires_grad=False)
    spaces = [sample.input_shape[2:], getattr(F, sample.op)(**arguments).shape[2:]]
    if sample.transposed:
        spaces.reverse()
    seen, taken_at = spaces
    return all(
        any(0 <= at * stride - padding + tap * dilation < size for at in range(count))
        for size, count, kernel, stride, padding, dilation in zip(
            seen, taken_at, sample.weight_shape[2:], *(arguments[name] for name in ("stride", "padding", "dilation"))
        )
        for tap in range(kernel)
    )


@dataclass(frozen=True)
class StdDevSample:
    """Arguments of minibatch_stddev."""

    shape: tuple[int, ...]
    group_size: int | None = 4
    num_channels: int = 1
    layout: str = "contiguous"

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))}-{self.group_size}-{self.num_channels}-{self.layout}"

    def make(self, dtype: torch.dtype, seed: int = 0, requires_grad: bool = True) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        x = (torch.randn(self.shape, generator=generator, dtype=torch.float64) * 2 + 0.5).to(dtype)
        x = LAYOUTS[self.layout](x) if x.numel() else x
        return {
            "input": x.detach().requires_grad_(requires_grad),
            "group_size": self.group_size,
            "num_channels": self.num_channels,
        }


STDDEV_SAMPLES = [
    *(StdDevSample((8, 6, 3, 2), num_channels=2, layout=layout) for layout in LAYOUTS),
    StdDevSample((2, 3, 2, 2)),  # a batch smaller than a group
    StdDevSample((6, 3, 2, 2), group_size=None),
    StdDevSample((6, 4, 2, 2), group_size=3, num_channels=4),
    StdDevSample((3, 4, 2, 2), group_size=1),
    StdDevSample((1, 2, 1, 1)),
    StdDevSample((4, 5)),
    StdDevSample((4, 2, 3)),
    StdDevSample((4, 2, 2, 1, 3)),
    StdDevSample((0, 2, 3, 3)),
    StdDevSample((32, 64, 4, 4)),
]


@dataclass(frozen=True)
class DiscriminationSample:
    """Projected features (N, B, C) of minibatch discrimination, with distances of about ``scale``."""

    shape: tuple[int, int, int]
    layout: str = "contiguous"
    scale: float = 1.0
    small: bool = True

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))}-{self.layout}-{self.scale:g}"

    def make(self, dtype: torch.dtype, seed: int = 0, requires_grad: bool = True) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(self.shape, generator=generator, dtype=torch.float64) * self.scale / max(self.shape[2], 1)
        x = LAYOUTS[self.layout](x.to(dtype)) if x.numel() else x.to(dtype)
        return {"projected": x.detach().requires_grad_(requires_grad)}


DISCRIMINATION_SAMPLES = [
    *(DiscriminationSample((4, 3, 5), layout) for layout in LAYOUTS),
    DiscriminationSample((2, 1, 1)),
    DiscriminationSample((3, 8, 2)),
    DiscriminationSample((5, 9, 3)),
    DiscriminationSample((6, 17, 4), "channels_last"),
    DiscriminationSample((5, 4, 3), scale=30.0),
    DiscriminationSample((1, 4, 3)),  # a sample without others
    DiscriminationSample((0, 4, 3)),
    DiscriminationSample((3, 0, 2)),
    DiscriminationSample((3, 4, 0)),
    DiscriminationSample((64, 100, 5), small=False),
    DiscriminationSample((33, 50, 16), small=False),
]


@dataclass(frozen=True)
class SpectralSample:
    """A weight to normalize, and vectors u and v that one power iteration has brought near its singular vectors."""

    shape: tuple[int, ...]
    dim: int = 0
    n_power_iterations: int = 1
    small: bool = True

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))}-dim{self.dim}-{self.n_power_iterations}"

    def make(self, dtype: torch.dtype, seed: int = 0, requires_grad: bool = True) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(self.shape, generator=generator, dtype=torch.float64) / 4
        matrix = weight.movedim(self.dim, 0).flatten(1)
        v = torch.randn(matrix.size(1), generator=generator, dtype=torch.float64)
        u = F.normalize(matrix @ v, dim=0)
        return {
            "weight": weight.to(dtype, copy=True).requires_grad_(requires_grad),
            "u": u.to(dtype),
            "v": F.normalize(matrix.T @ u, dim=0).to(dtype),
            "n_power_iterations": self.n_power_iterations,
            "dim": self.dim,
        }


SPECTRAL_SAMPLES = [
    SpectralSample((4, 5)),
    SpectralSample((3, 4, 2, 3)),
    SpectralSample((3, 4, 2, 3), dim=1),
    SpectralSample((3, 2, 3), dim=2),
    SpectralSample((3, 4, 2, 3), n_power_iterations=0),
    SpectralSample((3, 4, 2, 3), dim=1, n_power_iterations=0),
    SpectralSample((3, 4, 2, 3), n_power_iterations=3),
    SpectralSample((1, 9, 4, 4)),
    SpectralSample((37, 17)),  # blocks of several rows, the last one shorter
    SpectralSample((17, 1)),
    SpectralSample((128, 64, 4, 4), small=False),
    SpectralSample((64, 130, 4, 4), dim=1, small=False),
]
