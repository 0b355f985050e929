"""The table of GAN architectures, written as people write them, that rewriting a user's model is tried on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import dcgan, handwritten


@dataclass(frozen=True)
class Entry:
    """One network.

    Args:
        name: Unique.
        build: The network at test size; the same after the same ``torch.manual_seed``.
        inputs: What ``forward`` takes at that size, always the same: float32, and int64 for labels.
        workload: The network at the widths of its paper with inputs of a size for benchmarks.
        conv_blocks: Whether most of the time goes into blocks of convolution, norm and activation.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    workload: Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]
    conv_blocks: bool


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(2)) * 2 - 1


def labels(count: int, classes: int) -> Tensor:
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(3))


def onehot(count: int, classes: int) -> Tensor:
    return torch.eye(classes)[labels(count, classes)]


ZOO: tuple[Entry, ...] = (
    Entry(
        "dcgan_generator",
        lambda: dcgan.Generator(ngpu=1, nz=8, ngf=4, nc=3).apply(dcgan.weights_init),
        lambda: (noise(3, 8, 1, 1),),
        lambda: (dcgan.Generator(ngpu=1, nz=100, ngf=64, nc=3).apply(dcgan.weights_init), (noise(16, 100, 1, 1),)),
        conv_blocks=True,
    ),
    Entry(
        "dcgan_discriminator",
        lambda: dcgan.Discriminator(ngpu=1, ndf=4, nc=3).apply(dcgan.weights_init),
        lambda: (images(3, 3, 64, 64),),
        lambda: (dcgan.Discriminator(ngpu=1, ndf=64, nc=3).apply(dcgan.weights_init), (images(16, 3, 64, 64),)),
        conv_blocks=True,
    ),
    Entry(
        "wgan_generator",
        lambda: dcgan.NamedGenerator(32, 8, 3, 4, ngpu=1, n_extra_layers=1).apply(dcgan.weights_init),
        lambda: (noise(3, 8, 1, 1),),
        lambda: (
            dcgan.NamedGenerator(64, 100, 3, 64, ngpu=1, n_extra_layers=1).apply(dcgan.weights_init),
            (noise(16, 100, 1, 1),),
        ),
        conv_blocks=True,
    ),
    Entry(
        "wgan_critic",
        lambda: dcgan.NamedCritic(32, 3, 4, ngpu=1, n_extra_layers=1).apply(dcgan.weights_init),
        lambda: (images(3, 3, 32, 32),),
        lambda: (
            dcgan.NamedCritic(64, 3, 64, ngpu=1, n_extra_layers=1).apply(dcgan.weights_init),
            (images(16, 3, 64, 64),),
        ),
        conv_blocks=True,
    ),
    Entry(
        "handwritten_generator",
        lambda: handwritten.Generator(d=4),
        lambda: (noise(3, 100, 1, 1),),
        lambda: (handwritten.Generator(d=64), (noise(16, 100, 1, 1),)),
        conv_blocks=True,
    ),
    Entry(
        "handwritten_discriminator",
        lambda: handwritten.Discriminator(d=4),
        lambda: (images(3, 1, 64, 64),),
        lambda: (handwritten.Discriminator(d=64), (images(16, 1, 64, 64),)),
        conv_blocks=True,
    ),
    Entry(
        "helper_generator",
        lambda: handwritten.HelperGenerator(8, conv_dim=4),
        lambda: (noise(3, 8),),
        lambda: (handwritten.HelperGenerator(100, conv_dim=64), (noise(64, 100),)),
        conv_blocks=True,
    ),
    Entry(
        "helper_discriminator",
        lambda: handwritten.HelperDiscriminator(conv_dim=4),
        lambda: (images(3, 3, 32, 32),),
        lambda: (handwritten.HelperDiscriminator(conv_dim=64), (images(64, 3, 32, 32),)),
        conv_blocks=True,
    ),
    Entry(
        "loop_generator",
        lambda: handwritten.LoopGenerator(8, channels=(16, 8, 6, 4)),
        lambda: (noise(5, 8),),
        lambda: (handwritten.LoopGenerator(100), (noise(16, 100),)),
        conv_blocks=True,
    ),
    Entry(
        "loop_discriminator",
        lambda: handwritten.LoopDiscriminator(channels=(3, 4, 6, 8)),
        lambda: (images(3, 3, 32, 32),),
        lambda: (handwritten.LoopDiscriminator(), (images(16, 3, 64, 64),)),
        conv_blocks=True,
    ),
    Entry(
        "feature_discriminator",
        lambda: handwritten.FeatureDiscriminator(nf=4, n_layers=3),
        lambda: (images(3, 3, 32, 32),),
        lambda: (handwritten.FeatureDiscriminator(), (images(16, 3, 64, 64),)),
        conv_blocks=True,
    ),
    Entry(
        "tuple_discriminator",
        lambda: handwritten.TupleDiscriminator(ndf=4),
        lambda: (images(3, 3, 64, 64),),
        lambda: (handwritten.TupleDiscriminator(), (images(16, 3, 64, 64),)),
        conv_blocks=True,
    ),
)
