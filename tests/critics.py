"""The one table of critics: what penalties and shared passes are tried on. Images are (N, 3, 8, 8)."""

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


class Shared(nn.Module):
    """One layer used twice, positions as rows of a linear one, and an average."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 1, 1), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.again(F.leaky_relu(self.first(x), 0.1)), 0.1)
        rows = F.leaky_relu(self.again(x), 0.1).flatten(2).transpose(1, 2)
        return self.last(rows).mean(dim=(1, 2))


class Cube(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv3d(1, 2, 3, padding=1), nn.Conv1d(2, 1, 192)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.conv(x.unsqueeze(1))).flatten(2)).squeeze(1)


class Attention(nn.Module):
    """The samples of a batch look at each other."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(192, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(1)
        return self.last(torch.softmax(rows @ rows.t(), 1) @ rows)


class Broadcast(nn.Module):
    """Each logit sees all, by dims that numpy's rules line up."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(192, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(x.flatten(1))
        return (y + y.flatten()).mean(1)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.scale = nn.Conv2d(3, 1, 8), nn.Parameter(torch.ones(1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv(x) * self.scale).flatten()


class Conditional(nn.Module):
    """A layer that sees labels alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.embed = nn.Conv2d(3, 4, 8), nn.Linear(5, 4)
        self.labels: Tensor

    def forward(self, x: Tensor) -> Tensor:
        labels = F.one_hot(torch.arange(len(x)) % 5, 5).to(x.dtype)
        return (self.conv(x).flatten(1) * self.embed(labels)).sum(1)


class FromImages(nn.Module):
    """A weight that the images have a say in."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(192, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.first.weight * x.mean()
        return self.last(F.leaky_relu(F.linear(x.flatten(1), weight, self.first.bias + x.mean()), 0.2))


class LowRank(nn.Module):
    """A weight that a layer computes."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Parameter(torch.randn(5, 2)), nn.Parameter(torch.randn(192, 2))
        self.last = nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(F.linear(x.flatten(1), F.linear(self.left, self.right))))


class Shifted(nn.Module):
    """Each sample meets the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(192, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.last(x * F.pad(x, (0, 0, 1, -1)))


class Mish(torch.autograd.Function):
    """The mean over the batch, by a name that torch gives to something else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.factors = 2
        return x + x.mean(0, keepdim=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad + grad.mean(0, keepdim=True)


class Named(nn.Module):
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


# Each takes samples by themselves, in layers that factors pass through.
APART: dict[str, Callable[[], nn.Module]] = {
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
    "shared": Shared,
    "cube": Cube,
    "dcgan": lambda: nn.Sequential(nn.Upsample(scale_factor=2), DCGANDiscriminator(3, 16, 4, "none")),
    "frozen": lambda: _with_frozen_weight(chain(nn.LeakyReLU(0.2))),
    "spectral_norm": lambda: nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 4, 2, 1)).eval(), nn.LeakyReLU(0.1), nn.Flatten(),
        nn.Linear(64, 1),
    ),
    "perceptron": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 1)),
}  # fmt: skip

# What keeps factors away from each of these.
TOGETHER: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "batch_norm": (
        lambda: chain(nn.LeakyReLU(0.2), norm=nn.BatchNorm2d),
        "BatchNorm is not known to keep samples apart",
    ),
    "patches": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 3)),
        "not return one logit each",
    ),
    "attention": (Attention, "is not known to keep samples apart"),
    "broadcast": (Broadcast, "broadcasts the batch"),
    "scaled": (Scaled, "a parameter is used outside of convolutions and linear layers"),
    "group_norm": (lambda: chain(nn.ReLU(), norm=lambda c: nn.GroupNorm(2, c)), "NativeGroupNorm is not known"),
    "instance_norm": (lambda: chain(nn.ReLU(), norm=nn.InstanceNorm2d), "changes the first dim"),
    "from_images": (FromImages, "a weight depends on the images"),
    "low_rank": (LowRank, "a layer computes another one's weight"),
    "shifted": (Shifted, "ConstantPadNd is not known to keep samples apart"),
    "named": (Named, "Mish is not known to keep samples apart"),
    "checkpointed": (Checkpointed, "Convolution is not known to keep samples apart"),
    "conditional": (Conditional, "a layer does not see the images"),
}


def _with_frozen_weight(critic: nn.Module) -> nn.Module:
    critic[0].weight.requires_grad_(False)  # type: ignore[index, union-attr]
    return critic


def make(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    critic = APART[name]() if name in APART else TOGETHER[name][0]()
    return critic.to(dtype)


def images(count: int = 5, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=dtype)
