"""One DCGAN training iteration as people write it, by hand as well as it can be, and by our trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import Work
from benchmarks.networks import LATENT_DIM, Pair
from gan_fast.objectives import Penalties, TwoPlayerLosses, make_objective

ADAM: dict[str, Any] = {"lr": 2e-4, "betas": (0.5, 0.999)}

Draw = Callable[[], Tensor]


def same_latents(batch_size: int, device: torch.device) -> Draw:
    """Draw the same latents at each call, at the full cost of a draw: losses of all providers stay comparable."""
    rng = torch.Generator(device)
    return lambda: torch.randn(batch_size, LATENT_DIM, 1, 1, generator=rng.manual_seed(0), device=device)


def d_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    bce = F.binary_cross_entropy_with_logits
    return bce(real_logits, torch.ones_like(real_logits)) + bce(fake_logits, torch.zeros_like(fake_logits))


def hinge_d_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()


def least_squares_d_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    mse = F.mse_loss
    real, fake = torch.ones_like(real_logits), torch.zeros_like(fake_logits)
    return 0.5 * (mse(real_logits, real) + mse(fake_logits, fake))


def relativistic_average_d_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    return d_loss(real_logits - fake_logits.mean(), fake_logits - real_logits.mean())


def g_loss(fake_logits: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(fake_logits, torch.ones_like(fake_logits))


def classic(models: Pair, real: Tensor, draw: Draw) -> Work:
    """The loop of PyTorch's DCGAN example: two backward passes for D, whose images then serve G again."""
    generator, discriminator = models
    criterion = nn.BCEWithLogitsLoss()
    d_adam = torch.optim.Adam(discriminator.parameters(), **ADAM)
    g_adam = torch.optim.Adam(generator.parameters(), **ADAM)
    label = torch.empty(len(real), device=real.device)

    def work() -> dict[str, Tensor]:
        d_adam.zero_grad()
        real_loss = criterion(discriminator(real), label.fill_(1))
        real_loss.backward()
        fake = generator(draw())
        fake_loss = criterion(discriminator(fake.detach()), label.fill_(0))
        fake_loss.backward()
        d_adam.step()
        g_adam.zero_grad()
        g_loss = criterion(discriminator(fake), label.fill_(1))
        g_loss.backward()
        g_adam.step()
        return {"d_loss": (real_loss + fake_loss).detach(), "g_loss": g_loss.detach()}

    return work


def tuned(
    models: Pair,
    real: Tensor,
    draw: Draw,
    d_loss: Callable[[Tensor, Tensor], Tensor] = d_loss,
    g_loss: Callable[[Tensor], Tensor] = g_loss,
    half: bool = False,
    wrap: Callable[[Callable[..., Tensor]], Callable[..., Tensor]] = lambda function: function,
) -> Work:
    """The same by hand: fused Adam, one backward pass for D, no weight gradients of D in G's step.

    Args:
        half: forward passes and losses under autocast to bfloat16.
        wrap: what the three forward functions go through, such as torch.compile.
    """
    generator, discriminator = models
    capturable = real.device.type == "cuda"
    d_adam = torch.optim.Adam(discriminator.parameters(), **ADAM, fused=True, capturable=capturable)
    g_adam = torch.optim.Adam(generator.parameters(), **ADAM, fused=True, capturable=capturable)

    def autocast() -> torch.autocast:
        # A fresh one for each phase: the casts that it caches are of weights that the phase before has changed.
        return torch.autocast(real.device.type, torch.bfloat16, enabled=half)

    generate = wrap(generator)
    # Two functions, not one module: a compiler specialises each on which weights require gradients.
    d_forward = wrap(lambda real, fake: d_loss(discriminator(real), discriminator(fake)))
    g_forward = wrap(lambda fake: g_loss(discriminator(fake)))

    def work() -> dict[str, Tensor]:
        with autocast():
            fake = generate(draw())
        with autocast():
            loss = d_forward(real, fake.detach())
        d_adam.zero_grad()
        loss.backward()
        d_adam.step()
        discriminator.requires_grad_(False)
        with autocast():
            answer = g_forward(fake)
        g_adam.zero_grad()
        answer.backward()
        discriminator.requires_grad_(True)
        g_adam.step()
        return {"d_loss": loss.detach(), "g_loss": answer.detach()}

    return work


def wgan_gp_penalty(grad: Tensor) -> Tensor:
    return ((grad.flatten(1).norm(2, dim=1) - 1) ** 2).mean()


def penalized(critic: nn.Module, points: Tensor, penalty: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """A critic's logits and a penalty of its gradient at the same points, as people write it."""
    points = points.detach().requires_grad_()
    logits = critic(points)
    (grad,) = torch.autograd.grad(logits.sum(), points, create_graph=True)
    return logits, penalty(grad.float())


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    u = torch.rand(len(real), 1, 1, 1, device=real.device)
    return penalized(critic, u * fake + (1 - u) * real, wgan_gp_penalty)[1]


def wgan_gp(critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """What a WGAN-GP critic minimises, as people write it."""
    return critic(fake).mean() - critic(real).mean() + 10.0 * gradient_penalty(critic, real, fake)


def our_wgan_gp(critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """The same as Trainer has it."""
    objective = TwoPlayerLosses(make_objective("wasserstein"), Penalties(("gradient_penalty",), 10.0))
    return objective.d_loss(critic, real, fake).total


def critic_iteration(
    critic: nn.Module, images: tuple[Tensor, Tensor], loss: Callable[[nn.Module, Tensor, Tensor], Tensor], half: bool
) -> Work:
    """A critic's loss, its gradients and the update of a fused Adam; under autocast to bfloat16 where ``half``."""
    device = images[0].device
    adam = torch.optim.Adam(
        critic.parameters(), lr=1e-4, betas=(0.0, 0.9), fused=True, capturable=device.type == "cuda"
    )

    def work() -> dict[str, Tensor]:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            value = loss(critic, *images)
        adam.zero_grad()
        value.backward()
        adam.step()
        return {"d_loss": value.detach()}

    return work
