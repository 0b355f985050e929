"""The interface of an objective, and the objectives by name.

>>> from gan_fast.objectives import make_objective
>>> make_objective("least_squares", real_label=0.9)
AdversarialLoss(name='least_squares', real_label=0.9, fake_label=0.0)
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from gan_fast.objectives.losses import NAMES, AdversarialLoss


class Objective(Protocol):
    """What a training step requires of an objective.

    If an objective has a true attribute ``g_needs_real``, :meth:`g_loss` also receives D's logits for real images.
    """

    def d_loss(self, real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return D's scalar loss and, without gradient, three values to log.

        These are D's mean output for real images, for generated images, and its accuracy.
        """
        ...

    def g_loss(self, fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
        """Return G's scalar loss."""
        ...


def make_objective(name: str, *, real_label: float = 1.0, fake_label: float = 0.0) -> Objective:
    """Return the objective called ``name``.

    Args:
        name: one of ``NAMES``.
        real_label: D's target for real images, from 0 to 1.
        fake_label: D's target for generated images, from 0 to 1; must be 0 for "relativistic".

    Raises:
        ValueError: an unknown name, or a fake_label other than 0 for "relativistic".
    """
    if name not in NAMES:
        raise ValueError(f"make_objective: expected name one of {', '.join(NAMES)}, got {name!r}")
    return AdversarialLoss(name, real_label, fake_label)
