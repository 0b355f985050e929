"""Speed up an existing DCGAN by adding one line per network: ``netG = gan_fast.fuse(netG)``.

    python examples/dcgan_fuse.py --steps 600 --out runs/dcgan_fuse

Networks, initialization, losses and training loop are those of PyTorch's DCGAN example, here for 32x32 digits. Only the
two lines marked "added" are new. The program prints which layers became fused ops (``gan_fast.fuse_report``), then the
losses, and at the end the time of a training step without and with fused ops. Networks this small gain little;
docs/benchmarks.md lists larger ones. samples.png then shows 64 generated images that look like digits.
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


def make_step(netG: nn.Module, netD: nn.Module) -> Callable[[Tensor], tuple[float, float]]:
    """Return a function that trains both networks on one batch and returns the losses of D and G."""
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


def time_ms(step: Callable[[Tensor], tuple[float, float]], real: Tensor) -> float:
    start = time.perf_counter()
    step(real)
    return (time.perf_counter() - start) * 1e3


def main(steps: int = 600, out: Path = Path("runs/dcgan_fuse")) -> list[tuple[float, float]]:
    """Train, write samples.png to the folder ``out``, and return the printed losses of D and G."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loader = DeviceLoader(load_images("digits", image_size=32).images, batch_size, seed=0, device=device)
    netG = Generator().to(device).apply(weights_init)
    netG = gan_fast.fuse(netG)  # added
    netD = Discriminator().to(device).apply(weights_init)
    netD = gan_fast.fuse(netD)  # added
    print(gan_fast.fuse_report(netG), gan_fast.fuse_report(netD), sep="\n")
    fused_step, losses = make_step(netG, netD), []
    for step in range(1, steps + 1):
        errD, errG = fused_step(loader.batch(step))
        if step == 1 or step % max(1, steps // 8) == 0:
            losses.append((errD, errG))
            print(f"step {step:5}: D loss {errD:.3f}, G loss {errG:.3f}")
    out.mkdir(parents=True, exist_ok=True)
    with torch.no_grad(), open(out / "samples.png", "wb") as file:
        write_grid(file, netG(torch.randn(64, nz, 1, 1, device=device)))
    print(f"samples: {out / 'samples.png'}")

    # Steps without and with fused ops alternate, so that other programs slow down both alike.
    eager_step = make_step(gan_fast.unfuse(copy.deepcopy(netG)), gan_fast.unfuse(copy.deepcopy(netD)))
    eager_ms, fused_ms = [], []
    for index in range(min(steps, 30)):
        eager_ms.append(time_ms(eager_step, loader.batch(index)))
        fused_ms.append(time_ms(fused_step, loader.batch(index)))
    ratio = statistics.median(eager / fused for eager, fused in zip(eager_ms, fused_ms))
    print(
        f"one step: eager {statistics.median(eager_ms):.1f} ms, fused {statistics.median(fused_ms):.1f} ms, "
        f"eager / fused {ratio:.2f}"
    )
    return losses


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
