"""WGAN-GP with a critic of torch.nn's layers and ``ops.gradient_penalty``, in four passes of it instead of six.

    python examples/wgan_gp.py --steps 320 --out runs/wgan_gp              # --no-fuse: networks as they are

The penalty runs any critic on ops with a lean double backward, fused or not; ``gan_fast.fuse`` is for the other passes.
The critic has no batch norm: it would have every gradient depend on the whole batch. Writes samples.png: 64 digits of
16x16 pixels. Source: Gulrajani et al., 2017 (arXiv 1704.00028), algorithm 1.
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


def generator_of_digits() -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(LATENT_DIM, 2 * WIDTH, 4, 1, 0, bias=False), nn.BatchNorm2d(2 * WIDTH), nn.ReLU(),
        nn.ConvTranspose2d(2 * WIDTH, WIDTH, 4, 2, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU(),
        nn.ConvTranspose2d(WIDTH, 1, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip


def critic_of_digits() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, WIDTH, 4, 2, 1), nn.LeakyReLU(0.2),
        nn.Conv2d(WIDTH, 2 * WIDTH, 4, 2, 1), nn.LeakyReLU(0.2),
        nn.Flatten(), nn.Linear(2 * WIDTH * 4 * 4, 1),
    )  # fmt: skip


def main(steps: int = 320, out: Path = Path("runs/wgan_gp"), fuse: bool = True) -> list[tuple[float, float]]:
    """Train, write samples.png, and return what was printed: the critic's estimated distance, and the penalty.

    Args:
        steps: updates of the generator, with five of the critic before each.
        out: folder of the picture.
        fuse: whether both networks run on fused ops.
    """
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loader = DeviceLoader(load_images("digits", image_size=16).images, BATCH_SIZE, seed=0, device=device)
    generator, critic = generator_of_digits().to(device), critic_of_digits().to(device)
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
            # mean critic(fake) - mean critic(real): less the distance between the two, as this critic sees it.
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
            distance, penalized = history[-1]
            print(f"step {step:5}: distance {distance:.3f}, penalty {penalized:.3f}, {time_ms:.1f} ms a step")
    out.mkdir(parents=True, exist_ok=True)
    with torch.no_grad(), open(out / "samples.png", "wb") as file:
        write_grid(file, generator(latents(64)))
    print(f"samples: {out / 'samples.png'}")
    return history


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
