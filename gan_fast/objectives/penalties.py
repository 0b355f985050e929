"""What D pays for its gradient by the images, by the names that a configuration gives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gan_fast import ops
from gan_fast.choices import PENALTIES
from gan_fast.ops.penalties import Critic


@dataclass(frozen=True)
class Penalties:
    """Penalties of D, added up.

    Args:
        names: some of ``PENALTIES``: "gradient_penalty" (WGAN-GP's, between real and generated images), "dragan"
            (around real ones), "r1" (at real ones), "r2" (at generated ones).
        weight: of each. 10 is what the papers of all four take; r1 and r2 have a factor 1/2 of their own.
        center: the gradient norm that "gradient_penalty" and "dragan" pull to: 1, or 0.

    Notes:
        gan_fast.ops has the formulas. Those at the images that D sees anyhow share its passes.
    """

    names: tuple[str, ...] = ()
    weight: float = 10.0
    center: float = 1.0

    def __post_init__(self) -> None:
        for name in self.names:
            if name not in PENALTIES:
                raise ValueError(f"Penalties: expected names any of {', '.join(PENALTIES)}, got {name!r}")

    def of_real(self, critic: Critic, real: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return D's logits for real images, and the penalties at the same images."""
        return _logits(critic, real, "r1" in self.names)

    def of_fake(self, critic: Critic, fake: Tensor) -> tuple[Tensor, list[Tensor]]:
        """As :meth:`of_real`, for generated images."""
        return _logits(critic, fake, "r2" in self.names)

    def elsewhere(self, critic: Critic, real: Tensor, fake: Tensor, generator: torch.Generator | None) -> list[Tensor]:
        """Return the penalties at images that D sees for their sake alone; ``generator`` is of where those are."""
        terms = []
        if "gradient_penalty" in self.names:
            terms.append(ops.gradient_penalty(critic, real, fake, center=self.center, generator=generator))
        if "dragan" in self.names:
            terms.append(ops.dragan_penalty(critic, real, center=self.center, generator=generator))
        return terms


def _logits(critic: Critic, images: Tensor, penalized: bool) -> tuple[Tensor, list[Tensor]]:
    if not penalized:
        return critic(images), []
    logits, term = ops.logits_and_r1(critic, images)
    return logits, [term]
