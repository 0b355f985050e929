"""What D pays for its gradient by the images, by the names that a configuration gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gan_fast import ops
from gan_fast.ops.penalties import Critic

PENALTIES = ("gradient_penalty", "dragan", "r1", "r2")
NONE = "none"


@dataclass(frozen=True)
class Penalties:
    """Penalties of D, added up.

    Args:
        names: some of ``PENALTIES``: "gradient_penalty" (WGAN-GP's, between real and generated images), "dragan"
            (around real ones), "r1" (at real ones), "r2" (at generated ones).
        weight: of each. 10 is what the papers of all four take; r1 and r2 have a factor 1/2 of their own.
        center: the gradient norm that "gradient_penalty" and "dragan" pull to: 1, or 0.

    Notes:
        The formulas are those of :func:`gan_fast.ops.gradient_penalty`, ``dragan_penalty``, ``r1_penalty``.
    """

    names: tuple[str, ...] = ()
    weight: float = 10.0
    center: float = 1.0

    def logits(
        self, critic: Critic, real: Tensor, fake: Tensor, scale: float, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return D's logits for real and for generated images, and the penalties times weight and ``scale``.

        What a penalty can share of D's passes over the images themselves it does. ``scale`` 0 leaves the penalties out.
        """
        wanted = self.names if scale else ()
        terms: list[Tensor] = []
        logits = []
        for images, name in ((real, "r1"), (fake, "r2")):
            if name in wanted:
                of_images, term = ops.logits_and_r1(critic, images)
                terms.append(term)
            else:
                of_images = critic(images)
            logits.append(of_images)
        if "gradient_penalty" in wanted:
            terms.append(ops.gradient_penalty(critic, real, fake, center=self.center, generator=generator))
        if "dragan" in wanted:
            terms.append(ops.dragan_penalty(critic, real, center=self.center, generator=generator))
        return logits[0], logits[1], sum_of(terms, self.weight * scale)


def sum_of(terms: Sequence[Tensor], weight: float) -> Tensor | None:
    return weight * torch.stack(list(terms)).sum() if terms else None


def parse_penalties(text: str) -> tuple[str, ...]:
    """Return the names in "none", "r1", "r1+r2", ...

    Raises:
        ValueError: another name, or one twice; the message lists the names there are.
    """
    names = tuple(text.split("+")) if text != NONE else ()
    if any(name not in PENALTIES for name in names) or len(set(names)) != len(names):
        raise ValueError(f"{NONE}, or {', '.join(PENALTIES)}, or several of these joined by +, got {text!r}")
    return names
