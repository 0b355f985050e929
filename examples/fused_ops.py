"""Call the fused ops as functions, in networks whose weights no torch.nn layer could hold.

    python examples/fused_ops.py --steps 1200 --out runs/fused_ops

The ops of ``gan_fast.ops`` take weights as arguments, like those of torch.nn.functional. Here a weight is drawn from
N(0, 1) and scaled by 1 / sqrt(fan-in) each time it is used, so that Adam changes all layers at the same relative rate
(equalized learning rate; Karras et al., 2018, arXiv 1710.10196). Convolution, batch norm and activation are one op, and
each loss is another. The program prints the losses and the time of a step. samples.png then shows 64 generated images
of 16x16 pixels that look like digits.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
import tyro
from torch import Tensor, nn

from gan_fast import ops
from gan_fast.data import DeviceLoader, load_images
from gan_fast.train.pictures import write_grid

LATENT_DIM, WIDTH, BATCH_SIZE = 16, 32, 64


class ScaledConv(nn.Module):
    """The tensors of one layer: a weight and a bias; with ``norm``, also the weight and statistics of a batch norm."""

    def __init__(self, shape: tuple[int, ...], out_channels: int, norm: bool) -> None:
        super().__init__()
        self.raw_weight = nn.Parameter(torch.randn(shape))
        self.scale = (self.raw_weight.numel() / out_channels) ** -0.5
        self.gain = nn.Parameter(torch.ones(out_channels)) if norm else None
        self.bias = nn.Parameter(torch.zeros(out_channels))
        if norm:
            self.register_buffer("mean", torch.zeros(out_channels))
            self.register_buffer("var", torch.ones(out_channels))

    @property
    def weight(self) -> Tensor:
        return self.raw_weight * self.scale

    def norm(self) -> dict[str, Tensor | bool | None]:
        """Return the batch norm's tensors as keyword arguments of the ops."""
        return {
            "running_mean": self.mean, "running_var": self.var, "bn_weight": self.gain, "bn_bias": self.bias,
            "training": self.training,
        }  # fmt: skip


class Generator(nn.Module):
    """Map latents (N, LATENT_DIM) to images (N, 1, 16, 16) in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.first = ScaledConv((LATENT_DIM, 2 * WIDTH, 4, 4), 2 * WIDTH, norm=True)
        self.second = ScaledConv((2 * WIDTH, WIDTH, 4, 4), WIDTH, norm=True)
        self.last = ScaledConv((WIDTH, 1, 4, 4), 1, norm=False)

    def forward(self, latent: Tensor) -> Tensor:
        x = latent[:, :, None, None]
        x = ops.conv_transpose2d_bn_act(x, self.first.weight, **self.first.norm(), activation="relu")
        x = ops.conv_transpose2d_bn_act(x, self.second.weight, None, 2, 1, **self.second.norm(), activation="relu")
        return ops.conv_transpose2d_act(x, self.last.weight, self.last.bias, 2, 1, activation="tanh")


class Discriminator(nn.Module):
    """Map images (N, 1, 16, 16) to logits (N,)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = ScaledConv((WIDTH, 1, 4, 4), WIDTH, norm=False)
        self.second = ScaledConv((2 * WIDTH, WIDTH, 4, 4), 2 * WIDTH, norm=True)
        self.last = ScaledConv((1, 2 * WIDTH, 4, 4), 1, norm=False)

    def forward(self, images: Tensor) -> Tensor:
        x = ops.conv2d_act(images, self.first.weight, self.first.bias, 2, 1, negative_slope=0.2)
        x = ops.conv2d_bn_act(x, self.second.weight, None, 2, 1, **self.second.norm(), negative_slope=0.2)
        return ops.conv2d(x, self.last.weight, self.last.bias).flatten()


def main(steps: int = 1200, out: Path = Path("runs/fused_ops")) -> list[tuple[float, float]]:
    """Train, write samples.png to the folder ``out``, and return the printed losses of D and G."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loader = DeviceLoader(load_images("digits", image_size=16).images, BATCH_SIZE, seed=0, device=device)
    generator, discriminator = Generator().to(device), Discriminator().to(device)
    g_adam = torch.optim.Adam(generator.parameters(), lr=4e-3, betas=(0.5, 0.99))
    d_adam = torch.optim.Adam(discriminator.parameters(), lr=2e-3, betas=(0.5, 0.99))
    losses, start = [], time.perf_counter()
    for step in range(1, steps + 1):
        fake = generator(torch.randn(BATCH_SIZE, LATENT_DIM, device=device))
        d_loss = ops.minimax_d_loss(discriminator(loader.batch(step)), discriminator(fake.detach()), real_target=0.9)
        d_adam.zero_grad()
        d_loss.backward()
        d_adam.step()
        g_loss = ops.minimax_g_loss(discriminator(fake))
        g_adam.zero_grad()
        g_loss.backward()
        g_adam.step()
        if step == 1 or step % max(1, steps // 8) == 0:
            losses.append((d_loss.item(), g_loss.item()))
            time_ms = (time.perf_counter() - start) / step * 1e3
            print(f"step {step:5}: D loss {losses[-1][0]:.3f}, G loss {losses[-1][1]:.3f}, {time_ms:.1f} ms per step")
    out.mkdir(parents=True, exist_ok=True)
    with torch.no_grad(), open(out / "samples.png", "wb") as file:
        write_grid(file, generator.eval()(torch.randn(64, LATENT_DIM, device=device)))
    print(f"samples: {out / 'samples.png'}")
    return losses


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
