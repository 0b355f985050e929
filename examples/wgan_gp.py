"""Train WGAN-GP with ``ops.gradient_penalty``, which needs four passes of the critic instead of six.

    python examples/wgan_gp.py --steps 320 --out runs/wgan_gp

``ops.gradient_penalty`` takes any critic, here one of plain torch.nn layers, and uses a cheaper double backward for it,
fused or not. ``gan_fast.fuse`` speeds up the other passes; ``--no-fuse`` leaves the networks unchanged. The critic has
no batch norm, with which the gradient of each image would depend on the whole batch. The program prints the estimated
Wasserstein distance between real and generated images, which first rises and then falls, the penalty and the time of a
step. samples.png then shows 64 generated images of 16x16 pixels that look like digits.

Source: Gulrajani et al., 2017 (arXiv 1704.00028), algorithm 1.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
import tyro
from torch import nn

import gan_fast
from gan_fast import ops
from gan_fast.data import DeviceLoader, load_images
from gan_fast.train.pictures import write_grid

LATENT_DIM, WIDTH, BATCH_SIZE = 32, 32, 64
CRITIC_UPDATES, PENALTY_WEIGHT = 5, 10.0


def make_generator() -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(LATENT_DIM, 2 * WIDTH, 4, 1, 0, bias=False), nn.BatchNorm2d(2 * WIDTH), nn.ReLU(),
        nn.ConvTranspose2d(2 * WIDTH, WIDTH, 4, 2, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU(),
        nn.ConvTranspose2d(WIDTH, 1, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip


def make_critic() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, WIDTH, 4, 2, 1), nn.LeakyReLU(0.2),
        nn.Conv2d(WIDTH, 2 * WIDTH, 4, 2, 1), nn.LeakyReLU(0.2),
        nn.Flatten(), nn.Linear(2 * WIDTH * 4 * 4, 1),
    )  # fmt: skip


def main(steps: int = 320, out: Path = Path("runs/wgan_gp"), fuse: bool = True) -> list[tuple[float, float]]:
    """Train, write samples.png, and return the printed distances and penalties.

    Args:
        steps: updates of the generator, each after five updates of the critic.
        out: folder of samples.png.
        fuse: whether to fuse both networks.
    """
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loader = DeviceLoader(load_images("digits", image_size=16).images, BATCH_SIZE, seed=0, device=device)
    generator, critic = make_generator().to(device), make_critic().to(device)
    if fuse:
        generator, critic = gan_fast.fuse(generator), gan_fast.fuse(critic)
    g_adam = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.0, 0.9))
    critic_adam = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.0, 0.9))

    def latents(count: int = BATCH_SIZE) -> torch.Tensor:
        return torch.randn(count, LATENT_DIM, 1, 1, device=device)

    history, start = [], time.perf_counter()
    for step in range(1, steps + 1):
        for update in range(CRITIC_UPDATES):
            real = loader.batch(step * CRITIC_UPDATES + update)
            with torch.no_grad():
                fake = generator(latents())
            # mean critic(fake) - mean critic(real), the negative of the estimated Wasserstein distance
            critic_loss = ops.wasserstein_d_loss(critic(real), critic(fake))
            penalty = ops.gradient_penalty(critic, real, fake)
            critic_adam.zero_grad()
            (critic_loss + PENALTY_WEIGHT * penalty).backward()
            critic_adam.step()
        g_loss = ops.wasserstein_g_loss(critic(generator(latents())))
        g_adam.zero_grad()
        g_loss.backward()
        g_adam.step()
        if step == 1 or step % max(1, steps // 8) == 0:
            history.append((-critic_loss.item(), penalty.item()))
            time_ms = (time.perf_counter() - start) / step * 1e3
            print(f"step {step:5}: distance {history[-1][0]:.3f}, penalty {history[-1][1]:.3f}, ", end="")
            print(f"{time_ms:.1f} ms per step")
    out.mkdir(parents=True, exist_ok=True)
    with torch.no_grad(), open(out / "samples.png", "wb") as file:
        write_grid(file, generator(latents(64)))
    print(f"samples: {out / 'samples.png'}")
    return history


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
