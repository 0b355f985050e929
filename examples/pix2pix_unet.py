"""Train pix2pix on fused ops: ``gan_fast.fuse`` rewrites a U-Net with a hand-written forward and skip connections.

    python examples/pix2pix_unet.py --steps 400 --out runs/pix2pix_unet

A gray square hides a part of each digit, and the U-Net learns to fill it in. Its loss adds the L1 distance to the digit
and the loss from a PatchGAN that is given input and output (Isola et al., 2017, arXiv 1611.07004). The networks are
plain PyTorch: ``fuse`` joins a functional activation with the layers before it, unless something else uses the values
in between. The program prints which layers were fused, then the losses and the L1 distance on held-out digits, which
falls. samples.png shows held-out digits in threes: with the square, filled in, original.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

import gan_fast
from gan_fast import ops
from gan_fast.data import DeviceLoader, load_images
from gan_fast.train.pictures import write_grid

IMAGE_SIZE, HIDDEN_SIZE = 32, 16
WIDTH, BATCH_SIZE, L1_WEIGHT = 32, 32, 100.0
HELD_OUT = 297


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Conv2d(1, WIDTH, 4, 2, 1)
        self.down2 = nn.Conv2d(WIDTH, 2 * WIDTH, 4, 2, 1, bias=False)
        self.down2_norm = nn.BatchNorm2d(2 * WIDTH)
        self.down3 = nn.Conv2d(2 * WIDTH, 4 * WIDTH, 4, 2, 1, bias=False)
        self.down3_norm = nn.BatchNorm2d(4 * WIDTH)
        self.up3 = nn.ConvTranspose2d(4 * WIDTH, 2 * WIDTH, 4, 2, 1, bias=False)
        self.up3_norm = nn.BatchNorm2d(2 * WIDTH)
        self.up2 = nn.ConvTranspose2d(4 * WIDTH, WIDTH, 4, 2, 1, bias=False)
        self.up2_norm = nn.BatchNorm2d(WIDTH)
        self.up1 = nn.ConvTranspose2d(2 * WIDTH, 1, 4, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        half = F.leaky_relu(self.down1(image), 0.2)
        quarter = F.leaky_relu(self.down2_norm(self.down2(half)), 0.2)
        eighth = F.relu(self.down3_norm(self.down3(quarter)))
        x = F.relu(self.up3_norm(self.up3(eighth)))
        x = F.relu(self.up2_norm(self.up2(torch.cat((x, quarter), dim=1))))
        return torch.tanh(self.up1(torch.cat((x, half), dim=1)))


class PatchDiscriminator(nn.Module):
    """Return a logit for each of 7x7 patches of 16x16 pixels, given an input and the image made from it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, WIDTH, 4, 2, 1)
        self.second = nn.Conv2d(WIDTH, 2 * WIDTH, 4, 2, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(2 * WIDTH)
        self.last = nn.Conv2d(2 * WIDTH, 1, 4, 1, 1)

    def forward(self, condition: Tensor, image: Tensor) -> Tensor:
        x = F.leaky_relu(self.first(torch.cat((condition, image), dim=1)), 0.2)
        return self.last(F.leaky_relu(self.second_norm(self.second(x)), 0.2))


def hide(images: Tensor) -> Tensor:
    """Cover a random square of each image with gray."""
    corner = torch.randint(IMAGE_SIZE - HIDDEN_SIZE + 1, (2, len(images), 1, 1, 1), device=images.device)
    offset = torch.arange(IMAGE_SIZE, device=images.device) - corner
    inside = (offset >= 0) & (offset < HIDDEN_SIZE)
    return images.masked_fill(inside[0].mT & inside[1], 0.0)


def main(steps: int = 400, out: Path = Path("runs/pix2pix_unet")) -> list[tuple[float, float, float]]:
    """Train, write samples.png to the folder ``out``, and return the printed losses of D and G and held-out L1."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    digits = load_images("digits", image_size=IMAGE_SIZE).images
    loader = DeviceLoader(digits[:-HELD_OUT], BATCH_SIZE, seed=0, device=device)
    original = DeviceLoader(digits[-HELD_OUT:], HELD_OUT, seed=0, device=device).batch(0)
    hidden = hide(original)
    unet, discriminator = gan_fast.fuse(UNet()).to(device), gan_fast.fuse(PatchDiscriminator()).to(device)
    print(gan_fast.fuse_report(unet), gan_fast.fuse_report(discriminator), sep="\n")
    g_adam = torch.optim.Adam(unet.parameters(), lr=1e-3, betas=(0.5, 0.999))
    d_adam = torch.optim.Adam(discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    history, start = [], time.perf_counter()
    for step in range(1, steps + 1):
        real = loader.batch(step)
        condition = hide(real)
        fake = unet(condition)
        d_loss = ops.minimax_d_loss(discriminator(condition, real), discriminator(condition, fake.detach()))
        d_adam.zero_grad()
        d_loss.backward()
        d_adam.step()
        g_loss = ops.minimax_g_loss(discriminator(condition, fake))
        g_adam.zero_grad()
        (g_loss + L1_WEIGHT * F.l1_loss(fake, real)).backward()
        g_adam.step()
        if step == 1 or step % max(1, steps // 8) == 0:
            with torch.no_grad():
                l1 = F.l1_loss(unet.eval()(hidden), original)
            unet.train()
            history.append((d_loss.item(), g_loss.item(), l1.item()))
            time_ms = (time.perf_counter() - start) / step * 1e3
            print(f"step {step:5}: D loss {d_loss.item():.3f}, G loss {g_loss.item():.3f}, ", end="")
            print(f"held-out L1 {l1.item():.4f}, {time_ms:.1f} ms per step")
    out.mkdir(parents=True, exist_ok=True)
    with torch.no_grad(), open(out / "samples.png", "wb") as file:
        filled = unet.eval()(hidden)
        write_grid(file, torch.stack((hidden, filled, original), dim=1).flatten(0, 1)[:81])
    print(f"samples: {out / 'samples.png'}")
    return history


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
