"""One DCGAN training iteration: as people write it, tuned by hand, and the losses that both use."""

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
    """Draw the same latents in each call, at the full cost of a draw, so that losses of providers can be compared."""
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


def example_loop(models: Pair, real: Tensor, draw: Draw, one_d_loss: bool = False) -> Work:
    """Return an iteration of PyTorch's DCGAN example: the images that D was trained on train G again.

    Args:
        one_d_loss: whether D's two losses are added before one backward pass; the example has a pass for each.
    """
    generator, discriminator = models
    criterion = nn.BCEWithLogitsLoss()
    d_adam = torch.optim.Adam(discriminator.parameters(), **ADAM)
    g_adam = torch.optim.Adam(generator.parameters(), **ADAM)
    label = torch.empty(len(real), device=real.device)

    def work() -> dict[str, Tensor]:
        d_adam.zero_grad()
        # A fill in place would change the labels that the first loss keeps for a common backward pass.
        real_loss = criterion(discriminator(real), torch.ones_like(label) if one_d_loss else label.fill_(1))
        if not one_d_loss:
            real_loss.backward()
        fake = generator(draw())
        fake_loss = criterion(discriminator(fake.detach()), label.fill_(0))
        d_loss = real_loss + fake_loss
        (d_loss if one_d_loss else fake_loss).backward()
        d_adam.step()
        g_adam.zero_grad()
        g_loss = criterion(discriminator(fake), label.fill_(1))
        g_loss.backward()
        g_adam.step()
        return {"d_loss": d_loss.detach(), "g_loss": g_loss.detach()}

    return work


def tuned(
    models: Pair,
    real: Tensor,
    draw: Draw,
    half: bool = False,
    wrap: Callable[[Callable[..., Tensor]], Callable[..., Tensor]] = lambda function: function,
) -> Work:
    """Return the same iteration tuned by hand.

    Fused Adam, gradients reset to None, one backward pass for D, and no gradients of D's weights in G's update.

    Args:
        half: whether forward passes and losses run under autocast to bfloat16.
        wrap: applied to the three forward functions, for example torch.compile.
    """
    generator, discriminator = models
    capturable = real.device.type == "cuda"
    d_adam = torch.optim.Adam(discriminator.parameters(), **ADAM, fused=True, capturable=capturable)
    g_adam = torch.optim.Adam(generator.parameters(), **ADAM, fused=True, capturable=capturable)

    def autocast() -> torch.autocast:
        # Each phase needs a new context: a context caches casts of weights, which the previous phase has changed.
        return torch.autocast(real.device.type, torch.bfloat16, enabled=half)

    generate = wrap(generator)
    # Two functions, not one module: a compiler specializes each for the weights that require gradients.
    d_forward = wrap(lambda real, fake: d_loss(discriminator(real), discriminator(fake)))
    g_forward = wrap(lambda fake: g_loss(discriminator(fake)))

    def work() -> dict[str, Tensor]:
        with autocast():
            fake = generate(draw())
        with autocast():
            d_value = d_forward(real, fake.detach())
        d_adam.zero_grad(set_to_none=True)
        d_value.backward()
        d_adam.step()
        discriminator.requires_grad_(False)
        with autocast():
            g_value = g_forward(fake)
        g_adam.zero_grad(set_to_none=True)
        g_value.backward()
        discriminator.requires_grad_(True)
        g_adam.step()
        return {"d_loss": d_value.detach(), "g_loss": g_value.detach()}

    return work


def wgan_gp_penalty(grad: Tensor) -> Tensor:
    return ((grad.flatten(1).norm(2, dim=1) - 1) ** 2).mean()


def penalized(critic: nn.Module, points: Tensor, penalty: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Return a critic's logits and a penalty of its gradient at the same points, as people write it."""
    points = points.detach().requires_grad_()
    logits = critic(points)
    (grad,) = torch.autograd.grad(logits.sum(), points, create_graph=True)
    return logits, penalty(grad.float())


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    u = torch.rand(len(real), 1, 1, 1, device=real.device)
    return penalized(critic, u * fake + (1 - u) * real, wgan_gp_penalty)[1]


def wgan_gp(critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """Return the loss of a WGAN-GP critic as people write it."""
    return critic(fake).mean() - critic(real).mean() + 10.0 * gradient_penalty(critic, real, fake)


def gan_fast_wgan_gp(critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """Return the loss of a WGAN-GP critic as gan_fast's Trainer computes it."""
    objective = TwoPlayerLosses(make_objective("wasserstein"), Penalties(("gradient_penalty",), 10.0))
    return objective.d_loss(critic, real, fake).total


def critic_iteration(
    critic: nn.Module, images: tuple[Tensor, Tensor], loss: Callable[[nn.Module, Tensor, Tensor], Tensor], half: bool
) -> Work:
    """Return a critic's loss, backward pass and fused Adam update; ``half`` runs it under autocast to bfloat16."""
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
