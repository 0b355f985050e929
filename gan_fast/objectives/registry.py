"""The objectives by the name that a configuration gives."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from gan_fast.objectives.losses import NAMES, AdversarialLoss


class Objective(Protocol):
    """What a training step asks of an objective.

    One with an attribute ``g_needs_real`` that is true is given D's logits for real images by :meth:`g_loss` too.
    """

    def d_loss(self, real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return D's scalar loss and, without gradient, three means to log.

        They are of D on real and on generated images, and how often it tells them apart.
        """
        ...

    def g_loss(self, fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
        """Return G's scalar loss."""
        ...


def make_objective(name: str, *, real_label: float = 1.0, fake_label: float = 0.0) -> Objective:
    """Make the objective called ``name``.

    Args:
        name: one of ``NAMES``.
        real_label: D's target for real images, in [0, 1].
        fake_label: D's target for generated images, in [0, 1].

    Raises:
        ValueError: another name; the message lists the names there are. A fake label where logits are paired.
    """
    if name not in NAMES:
        raise ValueError(f"make_objective: expected name one of {', '.join(NAMES)}, got {name!r}")
    return AdversarialLoss(name, real_label, fake_label)
