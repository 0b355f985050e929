"""One discriminator step, one generator step, or one of both.

Everything here only queues work: no value is read back, and nothing branches on one, so a whole iteration can be
captured as a CUDA graph. Symbols: x real images, z latents, G the generator, D the discriminator.
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
        discriminator: D, on the device and in the mode (training) that the step is to use.
        optimizer: D's.
        objective: the losses and penalties.
        real: x, (N, C, H, W).
        fake: G(z), (N, C, H, W); its graph is not followed.
        autocast: a fresh context for the forward passes.
        penalty_scale: times the penalties' weight; 0 leaves them out.
        generator: of the penalties' random numbers.

    Returns:
        The losses; 1 where the update was skipped, else 0.

    Notes:
        x and G(z) go through D one after the other, so that batch norm sees each by itself.
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
    """Update G once, on D's answer to G(z), and to x where G's loss is of both.

    Args: as :func:`d_step`; ``optimizer`` is G's, and ``fake`` has G's graph behind it.

    Returns:
        The loss; 1 where the update was skipped, else 0: both without gradient.

    Notes:
        D is frozen meanwhile: its weight gradients would be computed and thrown away. Its running statistics move.
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
    """Update D and G once, both from one pass of x and of G(z) through the D that there was.

    Args: as :func:`d_step` and :func:`g_step`.

    Returns:
        D's losses; G's loss; 1 where an update was skipped, else 0.

    Notes:
        Not the alternating algorithm: there G learns from the D that was just updated. It saves one pass of G(z)
        through D forward and one backward: in passes of D and G, each taken as one, 9 instead of 11.
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
    """Let no parameter require gradients inside the block; after it, those do that did before."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    for p in trainable:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trainable:
            p.requires_grad_(True)
