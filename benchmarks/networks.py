"""DCGAN as people write it, from torch.nn alone."""

from __future__ import annotations

from torch import nn

LATENT_DIM = 100

Pair = tuple[nn.Module, nn.Module]
SequentialPair = tuple[nn.Sequential, nn.Sequential]


def eager_models(image_size: int, channels: int, width: int, inplace: bool = True) -> SequentialPair:
    """Build DCGAN as its PyTorch example does; parameters are in the order of gan_fast's models."""
    features = width * image_size // 8
    generator: list[nn.Module] = []
    for index, size in enumerate(_halvings(features, width)):
        inputs, stride, padding = (LATENT_DIM, 1, 0) if index == 0 else (2 * size, 2, 1)
        generator += [nn.ConvTranspose2d(inputs, size, 4, stride, padding, bias=False)]
        generator += [nn.BatchNorm2d(size), nn.ReLU(inplace)]
    generator += [nn.ConvTranspose2d(width, channels, 4, 2, 1, bias=False), nn.Tanh()]
    discriminator: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace)]
    for size in reversed(_halvings(features, 2 * width)):
        discriminator += [nn.Conv2d(size // 2, size, 4, 2, 1, bias=False)]
        discriminator += [nn.BatchNorm2d(size), nn.LeakyReLU(0.2, inplace)]
    discriminator += [nn.Conv2d(features, 1, 4, 1, 0, bias=False), nn.Flatten(0)]
    return nn.Sequential(*generator), nn.Sequential(*discriminator)


def eager_critic(image_size: int, channels: int, width: int, inplace: bool = True) -> nn.Sequential:
    """Build DCGAN's discriminator without batch norm and with biases; parameters are in the order of gan_fast's."""
    sizes = [width]
    while sizes[-1] < width * image_size // 8:
        sizes.append(2 * sizes[-1])
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace)]
    for size in sizes[:-1]:
        layers += [nn.Conv2d(size, 2 * size, 4, 2, 1), nn.LeakyReLU(0.2, inplace)]
    return nn.Sequential(*layers, nn.Conv2d(sizes[-1], 1, 4, 1, 0, bias=False), nn.Flatten(0))


def _halvings(largest: int, smallest: int) -> list[int]:
    sizes = [largest]
    while sizes[-1] > smallest:
        sizes.append(sizes[-1] // 2)
    return sizes
