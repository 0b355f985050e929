"""Penalties on D's gradient with respect to its images, by name.

>>> import torch
>>> from gan_fast.objectives import Penalties
>>> critic = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 1))
>>> logits, terms = Penalties(("r1",)).at_real(critic, torch.zeros(4, 3, 2, 2))
>>> bool(torch.isclose(terms[0], critic[1].weight.square().sum() / 2))
True
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gan_fast import ops
from gan_fast.choices import PENALTIES
from gan_fast.ops.penalties import Critic


@dataclass(frozen=True)
class Penalties:
    """A sum of gradient penalties for D.

    Args:
        names: any of ``PENALTIES``: "gradient_penalty" (WGAN-GP, between real and generated images), "dragan" (around
            real images), "r1" (at real images), "r2" (at generated images).
        weight: weight of each penalty. The papers of all four use 10; r1 and r2 contain a further factor 1/2.
        center: the gradient norm at which "gradient_penalty" and "dragan" are zero, 1 or 0.

    Raises:
        ValueError: an unknown name.

    Notes:
        The functions in :mod:`gan_fast.ops` give the formulas and papers. "r1" and "r2" share passes through D with
        the loss at the same images.
    """

    names: tuple[str, ...] = ()
    weight: float = 10.0
    center: float = 1.0

    def __post_init__(self) -> None:
        for name in self.names:
            if name not in PENALTIES:
                raise ValueError(f"Penalties: expected names any of {', '.join(PENALTIES)}, got {name!r}")

    def at_real(self, critic: Critic, real: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return D's logits for real images and the penalties at these images."""
        return _logits_and_penalty(critic, real, "r1" in self.names)

    def at_fake(self, critic: Critic, fake: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return D's logits for generated images and the penalties at these images."""
        return _logits_and_penalty(critic, fake, "r2" in self.names)

    def at_random_points(
        self, critic: Critic, real: Tensor, fake: Tensor, generator: torch.Generator | None
    ) -> list[Tensor]:
        """Return the penalties at points drawn with ``generator`` between real and fake or around real images."""
        terms = []
        if "gradient_penalty" in self.names:
            terms.append(ops.gradient_penalty(critic, real, fake, center=self.center, generator=generator))
        if "dragan" in self.names:
            terms.append(ops.dragan_penalty(critic, real, center=self.center, generator=generator))
        return terms


def _logits_and_penalty(critic: Critic, images: Tensor, penalized: bool) -> tuple[Tensor, list[Tensor]]:
    if not penalized:
        return critic(images), []
    logits, term = ops.logits_and_r1(critic, images)
    return logits, [term]
