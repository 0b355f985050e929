"""DCGAN's generator and discriminator for square images of 16 to 128 pixels.

Each block doubles the image size and halves the channels in the generator, and the reverse in the discriminator.

>>> import torch
>>> from gan_fast.models import DCGANDiscriminator
>>> critic = DCGANDiscriminator(channels=1, image_size=32, width=8, norm="none")
>>> critic(torch.zeros(2, 1, 32, 32))
tensor([0., 0.], grad_fn=<ViewBackward0>)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from gan_fast.choices import IMAGE_SIZES, NORMS
from gan_fast.nn import ChannelsLastSequential, ConvAct2d, ConvBNAct2d, ConvTransposeAct2d, ConvTransposeBNAct2d
from gan_fast.ops import checks


def _check_size(owner: str, image_size: int) -> int:
    """The number of times that the image doubles from 4 pixels."""
    if image_size not in IMAGE_SIZES:
        wanted = ", ".join(map(str, IMAGE_SIZES))
        raise ValueError(f"{owner}: expected image_size one of {wanted}, got {image_size}")
    return int(math.log2(image_size // 4))


def _check_positive(owner: str, **values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{owner}: expected {name} at least 1, got {value}")


def initialize(model: nn.Module) -> None:
    """Initialize in place as DCGAN: weights N(0, 0.02), batch norm weights N(1, 0.02), biases 0."""
    for module in model.modules():
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            nn.init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            nn.init.normal_(module.weight, 1.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class DCGANGenerator(nn.Module):
    """Generate images from latent vectors with transposed convolutions, batch norm and ReLU, and a final tanh.

    Args:
        latent_dim: length of the latent vector, at least 1.
        channels: image channels, at least 1.
        image_size: 16, 32, 64 or 128 pixels.
        width: channels of the last hidden layer, at least 1. Each layer before it has twice as many as the next.

    Shapes: (N, latent_dim) or (N, latent_dim, 1, 1) to (N, channels, image_size, image_size) in [-1, 1].

    Raises:
        ValueError: an argument out of range, or an input of another shape.

    Source: Radford, Metz and Chintala, 2015 (arXiv 1511.06434), figure 1. With image_size 64 and width 64 the layers
    are those of the authors' code.
    """

    def __init__(self, latent_dim: int = 100, channels: int = 3, image_size: int = 64, width: int = 64) -> None:
        super().__init__()
        doublings = _check_size("DCGANGenerator", image_size)
        _check_positive("DCGANGenerator", latent_dim=latent_dim, channels=channels, width=width)
        self.latent_dim, self.channels, self.image_size = latent_dim, channels, image_size
        features = width * 2 ** (doublings - 1)
        blocks: list[nn.Module] = [
            ConvTransposeBNAct2d(latent_dim, features, 4, 1, 0, activation="relu"),
        ]
        for _ in range(doublings - 1):
            blocks.append(ConvTransposeBNAct2d(features, features // 2, 4, 2, 1, activation="relu"))
            features //= 2
        blocks.append(
            ConvTransposeAct2d(
                features, channels, 4, 2, 1, bias=False, activation="tanh", memory_format=torch.contiguous_format
            )
        )
        self.blocks = ChannelsLastSequential(*blocks)
        initialize(self)

    def forward(self, latent: Tensor) -> Tensor:
        image = latent[:, :, None, None] if latent.dim() == 2 else latent
        if image.dim() != 4 or image.shape[1:] != (self.latent_dim, 1, 1):
            wanted = f"(N, {self.latent_dim}) or (N, {self.latent_dim}, 1, 1)"
            raise ValueError(f"DCGANGenerator: expected latent shape {wanted}, got {tuple(latent.shape)}")
        return self.blocks(image)


class DCGANDiscriminator(nn.Module):
    """Classify images as real or generated with strided convolutions and LeakyReLU(0.2).

    All layers but the first and the last have batch norm.

    Args:
        channels: image channels, at least 1.
        image_size: 16, 32, 64 or 128 pixels.
        width: channels of the first hidden layer, at least 1. It doubles each time the image is halved.
        norm: "batch" or "none". Use "none" with a gradient penalty, which is defined per sample.

    Shapes: (N, channels, image_size, image_size) to logits (N,).

    Raises:
        ValueError: an argument out of range, or an input of another shape.

    Source: Radford, Metz and Chintala, 2015 (arXiv 1511.06434).
    """

    def __init__(self, channels: int = 3, image_size: int = 64, width: int = 64, norm: str = "batch") -> None:
        super().__init__()
        halvings = _check_size("DCGANDiscriminator", image_size)
        _check_positive("DCGANDiscriminator", channels=channels, width=width)
        checks.one_of("DCGANDiscriminator", "norm", norm, NORMS)
        self.channels, self.image_size = channels, image_size
        act: dict[str, Any] = {"activation": "leaky_relu", "negative_slope": 0.2}
        blocks: list[nn.Module] = [ConvAct2d(channels, width, 4, 2, 1, bias=False, **act)]
        features = width
        for _ in range(halvings - 1):
            if norm == "batch":
                blocks.append(ConvBNAct2d(features, 2 * features, 4, 2, 1, **act))
            else:
                blocks.append(ConvAct2d(features, 2 * features, 4, 2, 1, **act))
            features *= 2
        blocks.append(ConvAct2d(features, 1, 4, 1, 0, bias=False, activation="identity"))
        self.blocks = ChannelsLastSequential(*blocks)
        initialize(self)

    def _check(self, images: Tensor) -> None:
        wanted = (self.channels, self.image_size, self.image_size)
        if images.dim() != 4 or images.shape[1:] != wanted:
            shape = f"(N, {', '.join(map(str, wanted))})"
            raise ValueError(f"DCGANDiscriminator: expected images shape {shape}, got {tuple(images.shape)}")

    def forward(self, images: Tensor) -> Tensor:
        self._check(images)
        return self.blocks(images).flatten()

    def features(self, images: Tensor) -> Tensor:
        """Return the input of the last block, (N, width * image_size / 8, 4, 4), for feature matching."""
        self._check(images)
        return self.blocks.forward_to(images, -1)[0]

    def forward_with_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits and the features from one pass."""
        self._check(images)
        features, run_last_block = self.blocks.forward_to(images, -1)
        return run_last_block().flatten(), features
