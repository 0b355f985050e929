"""Critics for the tests of penalties and shared passes. Images are (N, 3, 8, 8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gan_fast.models import DCGANDiscriminator

SHAPE = (3, 8, 8)


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, channels, 3, 1, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.5 * self.second(F.leaky_relu(self.first(torch.relu(x)), 0.2))


class SharedLayer(nn.Module):
    """Uses one convolution twice, a linear layer on every position, and an average over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 1, 1), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.again(F.leaky_relu(self.first(x), 0.1)), 0.1)
        rows = F.leaky_relu(self.again(x), 0.1).flatten(2).transpose(1, 2)
        return self.last(rows).mean(dim=(1, 2))


class Conv3dConv1d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv3d(1, 2, 3, padding=1), nn.Conv1d(2, 1, 192)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.conv(x.unsqueeze(1))).flatten(2)).squeeze(1)


class Attention(nn.Module):
    """Attention among the samples of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(192, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(1)
        return self.last(torch.softmax(rows @ rows.t(), 1) @ rows)


class Broadcast(nn.Module):
    """Adds (N, 1) and (N,), which broadcasts to (N, N): each logit depends on all samples."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(192, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(x.flatten(1))
        return (y + y.flatten()).mean(1)


class LearnedScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.scale = nn.Conv2d(3, 1, 8), nn.Parameter(torch.ones(1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv(x) * self.scale).flatten()


class Conditional(nn.Module):
    """Has a linear layer that depends only on labels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.embed = nn.Conv2d(3, 4, 8), nn.Linear(5, 4)
        self.labels: Tensor

    def forward(self, x: Tensor) -> Tensor:
        labels = F.one_hot(torch.arange(len(x)) % 5, 5).to(x.dtype)
        return (self.conv(x).flatten(1) * self.embed(labels)).sum(1)


class WeightFromImages(nn.Module):
    """Computes a weight from the images."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(192, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.first.weight * x.mean()
        return self.last(F.leaky_relu(F.linear(x.flatten(1), weight, self.first.bias + x.mean()), 0.2))


class WeightFromLayer(nn.Module):
    """Computes a weight with another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Parameter(torch.randn(5, 2)), nn.Parameter(torch.randn(192, 2))
        self.last = nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(F.linear(x.flatten(1), F.linear(self.left, self.right))))


class BatchShift(nn.Module):
    """Multiplies each sample by the one before it."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(192, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.last(x * F.pad(x, (0, 0, 1, -1)))


class Mish(torch.autograd.Function):
    """Adds the batch's mean, under the name of an elementwise activation of torch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.factors = 2
        return x + x.mean(0, keepdim=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad + grad.mean(0, keepdim=True)


class MisleadingName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(192, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(Mish.apply(x.flatten(1))))


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.last = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.2)), nn.Linear(144, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(checkpoint(self.body, x, use_reentrant=False).flatten(1))


def chain(*activation: nn.Module, norm: Callable[[int], nn.Module] = lambda _: nn.Identity()) -> nn.Module:
    first, second = activation if len(activation) == 2 else activation * 2
    return nn.Sequential(
        nn.Conv2d(3, 6, 4, 2, 1), norm(6), first, nn.Conv2d(6, 8, 3, 1, 1, bias=False), second, nn.Flatten(),
        nn.Linear(128, 1),
    )  # fmt: skip


# Critics whose losses can share a backward pass.
SHARABLE: dict[str, Callable[[], nn.Module]] = {
    "leaky_relu": lambda: chain(nn.LeakyReLU(0.2)),
    "in_place": lambda: chain(nn.LeakyReLU(0.2, inplace=True), nn.ReLU(inplace=True)),
    "relu": lambda: chain(nn.ReLU()),
    "tanh": lambda: chain(nn.Tanh()),
    "silu": lambda: chain(nn.SiLU(), nn.Softplus()),
    "pooling": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.LeakyReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(4, 4), nn.LeakyReLU(), nn.Linear(4, 1), nn.Flatten(0),
    ),
    "residual": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, 1, 1), Residual(4), nn.AvgPool2d(2), Residual(4), nn.Flatten(), nn.Linear(64, 1)
    ),
    "shared_layer": SharedLayer,
    "conv3d_conv1d": Conv3dConv1d,
    "dcgan": lambda: nn.Sequential(nn.Upsample(scale_factor=2), DCGANDiscriminator(3, 16, 4, "none")),
    "frozen": lambda: _with_frozen_weight(chain(nn.LeakyReLU(0.2))),
    "spectral_norm": lambda: nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 4, 2, 1)).eval(), nn.LeakyReLU(0.1), nn.Flatten(),
        nn.Linear(64, 1),
    ),
    "perceptron": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 1)),
}  # fmt: skip

# Critics whose losses cannot share a pass, and the reason that the log and the error must give.
UNSHARABLE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "batch_norm": (
        lambda: chain(nn.LeakyReLU(0.2), norm=nn.BatchNorm2d),
        "the shared pass does not support batch norm",
    ),
    "patches": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 3)),
        "the critic does not return exactly one logit per sample",
    ),
    "attention": (Attention, "the shared pass does not support matrix products other than linear layers"),
    "broadcast": (Broadcast, "the operation add broadcasts the batch dimension"),
    "learned_scale": (LearnedScale, "a parameter is used outside of convolutions and linear layers"),
    "group_norm": (
        lambda: chain(nn.ReLU(), norm=lambda c: nn.GroupNorm(2, c)),
        "the shared pass does not support group norm",
    ),
    "instance_norm": (
        lambda: chain(nn.ReLU(), norm=nn.InstanceNorm2d),
        "a reshape changes the batch dimension, as inside instance norm",
    ),
    "weight_from_images": (WeightFromImages, "a layer's weight is computed from the images"),
    "weight_from_layer": (WeightFromLayer, "a layer's weight is computed by another layer"),
    "batch_shift": (BatchShift, "the shared pass does not support padding along the batch dimension"),
    "misleading_name": (MisleadingName, "the shared pass does not support the custom autograd function Mish"),
    "checkpointed": (Checkpointed, "the shared pass does not support convolutions under activation checkpointing"),
    "conditional": (Conditional, "a convolution or linear layer does not depend on the images"),
}


def _with_frozen_weight(critic: nn.Module) -> nn.Module:
    critic[0].weight.requires_grad_(False)  # type: ignore[index, union-attr]
    return critic


def make(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    critic = SHARABLE[name]() if name in SHARABLE else UNSHARABLE[name][0]()
    return critic.to(dtype)


def images(count: int = 5, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=dtype)
