"""The discriminator step, the generator step, and the step that updates both at once.

The functions only queue work on the device: they neither read a value back nor branch on one, so that a whole
iteration can be captured as a CUDA graph. Symbols: x real images, z latents, G the generator, D the discriminator.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from gan_fast.objectives import DLoss, TwoPlayerLosses
from gan_fast.train.optimizers import update_if_finite


def d_step(
    discriminator: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: TwoPlayerLosses,
    real: Tensor,
    fake: Tensor,
    autocast: AbstractContextManager,
    penalty_scale: float = 1.0,
    generator: torch.Generator | None = None,
) -> tuple[DLoss, Tensor]:
    """Update D once, on one batch of x and one of G(z).

    Args:
        discriminator: D, on the device, in training mode.
        optimizer: of D.
        objective: the losses and penalties.
        real: x, (N, C, H, W).
        fake: G(z), (N, C, H, W); no gradient flows into G.
        autocast: a new context for the forward passes.
        penalty_scale: factor on the weight of the penalties; 0 leaves them out.
        generator: source of the penalties' random numbers.

    Returns:
        The losses; a scalar tensor: 1 if the update was skipped, else 0.

    Notes:
        x and G(z) pass through D separately, so that batch norm normalizes each by its own statistics.
    """
    with autocast:
        loss = objective.d_loss(discriminator, real, fake, penalty_scale=penalty_scale, generator=generator)
    optimizer.zero_grad()
    loss.total.backward()
    return loss, update_if_finite(optimizer)


def g_step(
    discriminator: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: TwoPlayerLosses,
    real: Tensor,
    fake: Tensor,
    autocast: AbstractContextManager,
) -> tuple[Tensor, Tensor]:
    """Update G once, from D(G(z)), and from D(x) if G's loss needs it.

    Args:
        discriminator: D, on the device, in training mode.
        optimizer: of G.
        objective: the losses.
        real: x, (N, C, H, W).
        fake: G(z), (N, C, H, W), with the autograd graph of G.
        autocast: a new context for the forward passes.

    Returns:
        The loss, without gradient; a scalar tensor: 1 if the update was skipped, else 0.

    Notes:
        D is frozen during the update, so that its weight gradients, which would be discarded, are not computed. The
        running statistics of its norms still change.
    """
    with frozen(discriminator):
        with autocast:
            loss = objective.g_loss(discriminator, real, fake)
        optimizer.zero_grad()
        loss.backward()
    return loss.detach(), update_if_finite(optimizer)


def one_stage_step(
    discriminator: nn.Module,
    d_optimizer: torch.optim.Optimizer,
    g_optimizer: torch.optim.Optimizer,
    objective: TwoPlayerLosses,
    real: Tensor,
    fake: Tensor,
    autocast: AbstractContextManager,
    penalty_scale: float = 1.0,
    generator: torch.Generator | None = None,
) -> tuple[DLoss, Tensor, Tensor]:
    """Update D and G once, both from the same pass of x and of G(z) through D.

    Args:
        discriminator: D, on the device, in training mode, without batch norm.
        d_optimizer: of D.
        g_optimizer: of G.
        objective: the losses and penalties.
        real: x, (N, C, H, W).
        fake: G(z), (N, C, H, W), with the autograd graph of G.
        autocast: a new context for the forward passes.
        penalty_scale: factor on the weight of the penalties; 0 leaves them out.
        generator: source of the penalties' random numbers.

    Returns:
        D's losses; G's loss; a scalar tensor: 1 if an update was skipped, else 0.

    Notes:
        This is not the alternating algorithm, in which G learns from the D that was just updated. It saves one forward
        and one backward pass of G(z) through D: 9 passes of D and G instead of 11.
    """
    with autocast:
        d_loss, g_loss = objective.losses(discriminator, real, fake, penalty_scale=penalty_scale, generator=generator)
    d_optimizer.zero_grad()
    g_optimizer.zero_grad()
    (d_loss.total + g_loss).backward()
    skipped = torch.maximum(update_if_finite(d_optimizer), update_if_finite(g_optimizer))
    return d_loss, g_loss.detach(), skipped


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Set ``requires_grad`` of all parameters to False inside the block, and restore it afterwards."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    for p in trainable:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trainable:
            p.requires_grad_(True)
