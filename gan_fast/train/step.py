"""One discriminator step and one generator step.

Everything here only queues work: no value is read back, and nothing branches on one, so a whole iteration can be
captured as a CUDA graph. Symbols: x real images, z latents, G the generator, D the discriminator.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from gan_fast.objectives import Objective


def d_step(
    discriminator: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    real: Tensor,
    fake: Tensor,
    autocast: AbstractContextManager,
) -> tuple[Tensor, Tensor, Tensor]:
    """Update D once, on one batch of x and one of G(z).

    Args:
        discriminator: D, on the device and in the mode (training) that the step is to use.
        optimizer: D's fused Adam.
        objective: the losses.
        real: x, (N, C, H, W).
        fake: G(z), (N, C, H, W); its graph is not followed.
        autocast: a fresh context for the forward passes.

    Returns:
        The loss; (mean D(x), mean D(G(z)), accuracy); 1 where the update was skipped, else 0: all without gradient.

    Notes:
        x and G(z) go through D one after the other, so that batch norm sees each by itself.
    """
    with autocast:
        loss, means = objective.d_loss(discriminator(real), discriminator(fake.detach()))
    optimizer.zero_grad()
    loss.backward()
    return loss.detach(), means, update_if_finite(optimizer)


def g_step(
    discriminator: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    real: Tensor,
    fake: Tensor,
    autocast: AbstractContextManager,
) -> tuple[Tensor, Tensor]:
    """Update G once, on D's answer to G(z), and to x where the objective's loss for G is of both.

    Args: as :func:`d_step`; ``optimizer`` is G's, and ``fake`` has G's graph behind it.

    Returns:
        The loss; 1 where the update was skipped, else 0: both without gradient.

    Notes:
        D is frozen meanwhile: its weight gradients would be computed and thrown away. Its running statistics move.
    """
    with frozen(discriminator):
        with autocast:
            real_logits = None
            if objective.g_needs_real:
                with torch.no_grad():
                    real_logits = discriminator(real)
            loss = objective.g_loss(discriminator(fake), real_logits)
        optimizer.zero_grad()
        loss.backward()
    return loss.detach(), update_if_finite(optimizer)


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


def update_if_finite(optimizer: torch.optim.Optimizer) -> Tensor:
    """Step a fused optimizer unless a gradient is NaN or infinite, decided on the device.

    Returns:
        float32 scalar: 1 where nothing was updated, weights, moments and step count alike; else 0.

    Notes:
        ``found_inf`` is what ``torch.amp.GradScaler`` tells fused optimizers. A finite gradient of more than 1e19,
        whose square overflows, counts as infinite.
    """
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    found_inf = 1.0 - torch.nn.utils.get_total_norm(grads).isfinite().float()
    optimizer.found_inf = found_inf  # type: ignore[attr-defined]
    optimizer.step()
    return found_inf


@torch.no_grad()
def average_into(averages: list[Tensor], tensors: list[Tensor], weight: Tensor) -> None:
    """Move each average towards its tensor: average = (1 - weight) * average + weight * tensor.

    Args:
        averages: written in place.
        tensors: as the averages in shape and dtype.
        weight: scalar on their device: a number would be frozen in a CUDA graph.
    """
    weights = {dtype: weight.to(dtype) for dtype in {a.dtype for a in averages}}
    for average, tensor in zip(averages, tensors, strict=True):
        average.lerp_(tensor, weights[average.dtype])
