"""DCGAN as PyTorch's example trains it, on fused ops by one line for each network: ``netG = gan_fast.fuse(netG)``.

    python examples/dcgan_fuse.py --steps 600 --out runs/dcgan_fuse

Networks, initialisation, losses and loop are those people know; two marked lines are all that training has of new.
Prints what became one op (``gan_fast.fuse_report``) and, at the end, what a step takes as it was and fused, taking
turns: networks this small gain little, README has larger ones. Writes samples.png: 64 digits of 32x32 pixels.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import tyro
from torch import Tensor, nn, optim

import gan_fast
from gan_fast.data import DeviceLoader, load_images
from gan_fast.train.pictures import write_grid

batch_size, nc, nz, ngf, ndf, lr, beta1 = 64, 1, 16, 32, 16, 2e-4, 0.5


def weights_init(m: nn.Module) -> None:
    classname = m.__class__.__name__
    if classname.find("Conv") != -1:
        nn.init.normal_(m.weight.data, 0.0, 0.02)
    elif classname.find("BatchNorm") != -1:
        nn.init.normal_(m.weight.data, 1.0, 0.02)
        nn.init.constant_(m.bias.data, 0)


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(nz, ngf * 4, 4, 1, 0, bias=False), nn.BatchNorm2d(ngf * 4), nn.ReLU(True),
            nn.ConvTranspose2d(ngf * 4, ngf * 2, 4, 2, 1, bias=False), nn.BatchNorm2d(ngf * 2), nn.ReLU(True),
            nn.ConvTranspose2d(ngf * 2, ngf, 4, 2, 1, bias=False), nn.BatchNorm2d(ngf), nn.ReLU(True),
            nn.ConvTranspose2d(ngf, nc, 4, 2, 1, bias=False), nn.Tanh(),
        )  # fmt: skip

    def forward(self, input: Tensor) -> Tensor:
        return self.main(input)


class Discriminator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(nc, ndf, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(ndf, ndf * 2, 4, 2, 1, bias=False), nn.BatchNorm2d(ndf * 2), nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(ndf * 2, ndf * 4, 4, 2, 1, bias=False), nn.BatchNorm2d(ndf * 4), nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(ndf * 4, 1, 4, 1, 0, bias=False), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, input: Tensor) -> Tensor:
        return self.main(input).view(-1)


def training_of(netG: nn.Module, netD: nn.Module) -> Callable[[Tensor], tuple[float, float]]:
    """Make optimizers, and return the body of the example's loop: one iteration on a batch, and both losses of it."""
    criterion = nn.BCELoss()
    optimizerD = optim.Adam(netD.parameters(), lr=lr, betas=(beta1, 0.999))
    optimizerG = optim.Adam(netG.parameters(), lr=lr, betas=(beta1, 0.999))

    def step(real: Tensor) -> tuple[float, float]:
        label = torch.full((real.size(0),), 1.0, device=real.device)
        netD.zero_grad()
        errD_real = criterion(netD(real), label)
        errD_real.backward()
        fake = netG(torch.randn(real.size(0), nz, 1, 1, device=real.device))
        label.fill_(0.0)
        errD_fake = criterion(netD(fake.detach()), label)
        errD_fake.backward()
        optimizerD.step()
        netG.zero_grad()
        label.fill_(1.0)
        errG = criterion(netD(fake), label)
        errG.backward()
        optimizerG.step()
        return errD_real.item() + errD_fake.item(), errG.item()

    return step


def main(steps: int = 600, out: Path = Path("runs/dcgan_fuse")) -> list[tuple[float, float]]:
    """Train, write samples.png, and return the losses of D and G that were printed."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loader = DeviceLoader(load_images("digits", image_size=32).images, batch_size, seed=0, device=device)
    netG = Generator().to(device).apply(weights_init)
    netG = gan_fast.fuse(netG)  # new
    netD = Discriminator().to(device).apply(weights_init)
    netD = gan_fast.fuse(netD)  # new
    print(gan_fast.fuse_report(netG), gan_fast.fuse_report(netD), sep="\n")
    fused, losses = training_of(netG, netD), []
    for step in range(1, steps + 1):
        errD, errG = fused(loader.batch(step))
        if step == 1 or step % max(1, steps // 8) == 0:
            losses.append((errD, errG))
            print(f"step {step:5}: D loss {errD:.3f}, G loss {errG:.3f}")
    out.mkdir(parents=True, exist_ok=True)
    with torch.no_grad(), open(out / "samples.png", "wb") as file:
        write_grid(file, netG(torch.randn(64, nz, 1, 1, device=device)))
    print(f"samples: {out / 'samples.png'}")

    eager = training_of(*(gan_fast.unfuse(copy.deepcopy(net)) for net in (netG, netD)))
    times_ms: dict[Callable, list[float]] = {eager: [], fused: []}
    for turn in range(min(steps, 30)):
        for step, times in times_ms.items():
            start = time.perf_counter()
            step(loader.batch(turn))
            times.append((time.perf_counter() - start) * 1e3)
    eager_ms, fused_ms = (statistics.median(times) for times in times_ms.values())
    ratio = statistics.median(before / after for before, after in zip(*times_ms.values()))
    print(f"a step: eager {eager_ms:.1f} ms, fused {fused_ms:.1f} ms, ratio {ratio:.2f}")
    return losses


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
